package config

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// pairOf writes a certificate and its key.
func pairOf(t *testing.T, dir, name string, ca *proxytest.Certs, leaf x509.Certificate) (cert, key string) {
	t.Helper()
	c, k, err := ca.Issue(leaf)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
	for path, data := range map[string][]byte{cert: c, key: k} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func named(names ...string) x509.Certificate {
	return x509.Certificate{Subject: pkix.Name{CommonName: "proxy"}, DNSNames: names}
}

// A listener's TLS is read from the file's own directory, one pair or several.
func TestListenerTLS(t *testing.T) {
	ca, err := proxytest.NewCerts()
	if err != nil {
		t.Fatal(err)
	}
	path := write(t, "a.toml", `
[[listener]]
port = 5673
[[listener]]
port = 5671
tls = true
cert_file = ["a.pem", "b.pem"]
key_file = ["a.key", "b.key"]
client_cert = "optional"
client_ca_file = "ca.pem"
tls_min_version = "1.3"
[[listener]]
port = 5670
tls = true
cert_file = "a.pem"
key_file = "a.key"
`)
	dir := filepath.Dir(path)
	pairOf(t, dir, "a", ca, named("a.example"))
	pairOf(t, dir, "b", ca, named("b.example"))
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), ca.CAPEM, 0o644); err != nil {
		t.Fatal(err)
	}
	s, warnings, err := Load(Source{File: path})
	if err != nil || len(warnings) > 0 {
		t.Fatal(warnings, err)
	}
	c, err := s.ProxyConfig("1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Listeners[0].TLS != nil {
		t.Error("the plain listener speaks TLS")
	}
	got := c.Listeners[1].TLS
	if len(got.Certificates) != 2 || got.MinVersion != tls.VersionTLS13 || got.ClientCert != proxy.ClientCertOptional || !got.ClientCAs.Equal(ca.Pool) ||
		got.Certificates[1].Leaf.DNSNames[0] != "b.example" {
		t.Errorf("got %+v", got)
	}
	if got := c.Listeners[2].TLS; len(got.Certificates) != 1 || got.MinVersion != tls.VersionTLS12 || got.ClientCert != proxy.ClientCertNone || got.ClientCAs != nil {
		t.Errorf("got %+v", got)
	}
	if w := s.Warnings(); len(w) > 0 {
		t.Errorf("warnings: %q", w)
	}
	if files := s.TLSFiles(); len(files) != 7 || files[4] != filepath.Join(dir, "ca.pem") {
		t.Errorf("the files are %q", files)
	}
	s, _, err = Load(Source{CommandLine: []Override{{Find("listener.cert_file"), "/a.pem, /b.pem", "--set"}}})
	if err != nil || len(s.Listeners[0].CertFile) != 2 || s.Listeners[0].CertFile[1] != "/b.pem" {
		t.Errorf("the command line's list is %q, %v", s.Listeners[0].CertFile, err)
	}
}

// Each thing that is wrong with the files is one line that names setting and file.
func TestListenerTLSErrors(t *testing.T) {
	ca, err := proxytest.NewCerts()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key := pairOf(t, dir, "good", ca, named("a.example"))
	_, other := pairOf(t, dir, "other", ca, named("a.example"))
	old, oldKey := pairOf(t, dir, "old", ca, x509.Certificate{NotAfter: time.Now().Add(-time.Minute), DNSNames: []string{"a"}})
	junk, none := write(t, "junk", "junk"), filepath.Join(dir, "none")
	locked := write(t, "locked", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
	open := write(t, "open", "x")
	for path, mode := range map[string]os.FileMode{junk: 0o600, locked: 0o600, open: 0o644} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	on := func(cert, key, ca string, ask proxy.ClientCert) Listener {
		l := defaultListener()
		l.TLS, l.ClientCert, l.ClientCAFile = true, ask, ca
		if cert != "" {
			l.CertFile, l.KeyFile = []string{cert}, []string{key}
		}
		return l
	}
	for name, c := range map[string]struct {
		l    Listener
		want string
	}{
		"no certificate":   {on("", "", "", proxy.ClientCertNone), "listener 1: listener.tls is true, which needs listener.cert_file"},
		"too few keys":     {func() Listener { l := on(cert, key, "", proxy.ClientCertNone); l.KeyFile = nil; return l }(), "listener.cert_file has 1, listener.key_file 0"},
		"no authority":     {on(cert, key, "", proxy.ClientCertRequired), "listener.client_cert is required, which needs listener.client_ca_file"},
		"missing file":     {on(none, key, "", proxy.ClientCertNone), "listener 1: listener.cert_file: " + none + ": cannot be read: there is no such file"},
		"missing key":      {on(cert, none, "", proxy.ClientCertNone), "listener 1: listener.key_file: " + none},
		"another's key":    {on(cert, other, "", proxy.ClientCertNone), "are no pair in PEM: private key does not match public key"},
		"junk":             {on(junk, key, "", proxy.ClientCertNone), "are no pair in PEM"},
		"expired":          {on(old, oldKey, "", proxy.ClientCertNone), old + ": has expired on "},
		"with passphrase":  {on(cert, locked, "", proxy.ClientCertNone), locked + ": is encrypted"},
		"junk authority":   {on(cert, key, junk, proxy.ClientCertOptional), "listener.client_ca_file: " + junk + ": holds no certificate"},
		"no such auth.":    {on(cert, key, none, proxy.ClientCertOptional), "listener.client_ca_file: " + none},
		"everybody's key":  {on(cert, open, "", proxy.ClientCertNone), "everybody on this machine may read or change it (mode 0644), allowed is 0640 or stricter"},
		"nothing is wrong": {on(cert, key, "", proxy.ClientCertNone), ""},
	} {
		if strings.HasPrefix(name, "everybody") && runtime.GOOS == "windows" {
			continue
		}
		s := Defaults()
		s.Listeners = []Listener{c.l}
		problems := s.check()
		if len(problems) == 0 {
			_, err := s.ProxyConfig("1", nil)
			var wrong *Error
			if errors.As(err, &wrong) {
				problems = wrong.Problems
			}
		}
		if c.want == "" && len(problems) > 0 || c.want != "" && (len(problems) != 1 || !strings.Contains(problems[0], c.want) || strings.Contains(problems[0], "\n")) {
			t.Errorf("%s: got %q, want one line with %q", name, problems, c.want)
		}
	}
}

// What is allowed and unwise is said.
func TestListenerTLSWarnings(t *testing.T) {
	ca, err := proxytest.NewCerts()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	l := defaultListener()
	add := func(name string, leaf x509.Certificate) {
		cert, key := pairOf(t, dir, name, ca, leaf)
		l.CertFile, l.KeyFile = append(l.CertFile, cert), append(l.KeyFile, key)
	}
	add("first", named("a.example", "b.example"))
	add("second", named("B.example"))
	add("early", x509.Certificate{NotBefore: time.Now().Add(time.Hour), DNSNames: []string{"c.example"}})
	add("nameless", x509.Certificate{Subject: pkix.Name{CommonName: "x"}})
	l.ClientCAFile = "ca.pem"
	say := func(want ...string) {
		t.Helper()
		got := l.warnings(time.Now())
		if len(got) != len(want) {
			t.Errorf("got %q, want %q", got, want)
			return
		}
		for i := range want {
			if !strings.Contains(got[i], want[i]) {
				t.Errorf("got %q, want %q", got[i], want[i])
			}
		}
	}
	say("listener.tls is not")
	l.TLS = true
	say("clients are not asked", "second.pem are both for b.example", "early.pem is not valid before", "nameless.pem has no subject alternative name")
}

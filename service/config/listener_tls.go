// The TLS of listeners: which settings go together, and the certificates, keys and authorities
// read from their files, each with what is wrong with it.

package config

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
)

// checkTLS looks at settings of one listener that go together. n counts it from 1.
func (l *Listener) checkTLS(n int) (problems []string) {
	bad := func(format string, args ...any) {
		problems = append(problems, fmt.Sprintf("listener %d: ", n)+fmt.Sprintf(format, args...))
	}
	if !l.TLS {
		return nil
	}
	switch {
	case len(l.CertFile) == 0:
		bad("listener.tls is true, which needs listener.cert_file and listener.key_file")
	case len(l.CertFile) != len(l.KeyFile):
		bad("listener.cert_file has %d, listener.key_file %d, allowed are as many keys as certificates, in the same order", len(l.CertFile), len(l.KeyFile))
	}
	if l.ClientCert == proxy.ClientCertNone && l.ExternalUser != string(proxy.ExternalOff) {
		bad("listener.external_user is %s, which needs listener.client_cert: clients are asked for no certificate", l.ExternalUser)
	}
	if l.ClientCert != proxy.ClientCertNone && l.ClientCAFile == "" {
		bad("listener.client_cert is %s, which needs listener.client_ca_file", l.ClientCert)
	}
	return problems
}

// server reads the files. Problems name setting and file; there are none if t is not nil.
func (l *Listener) server() (t *proxy.ServerTLS, problems []string) {
	t = &proxy.ServerTLS{Files: l.CertFile, ClientCert: l.ClientCert, MinVersion: tls.VersionTLS12, External: proxy.ExternalUser(l.ExternalUser)}
	if l.TLSMinVersion == "1.3" {
		t.MinVersion = tls.VersionTLS13
	}
	for i, file := range l.CertFile {
		pair, problem := readPair(file, l.KeyFile[i], time.Now())
		if problem != "" {
			problems = append(problems, problem)
			continue
		}
		t.Certificates = append(t.Certificates, pair)
	}
	if l.ClientCert != proxy.ClientCertNone {
		data, err := readFile(l.ClientCAFile)
		switch {
		case err != nil:
			problems = append(problems, "listener.client_ca_file: "+err.Error())
		default:
			t.ClientCAs = x509.NewCertPool()
			if !t.ClientCAs.AppendCertsFromPEM(data) {
				problems = append(problems, "listener.client_ca_file: "+l.ClientCAFile+": holds no certificate, allowed is PEM (-----BEGIN CERTIFICATE-----)")
			}
		}
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return t, nil
}

// readPair reads a certificate and its key. The problem is one line without anything of the key.
func readPair(certFile, keyFile string, now time.Time) (pair tls.Certificate, problem string) {
	cert, err := readFile(certFile)
	if err != nil {
		return pair, "listener.cert_file: " + err.Error()
	}
	if mode, open := readableByAll(keyFile); open {
		return pair, fmt.Sprintf("listener.key_file: %s: everybody on this machine may read or change it (mode %04o), allowed is 0640 or stricter", keyFile, mode)
	}
	key, err := readFile(keyFile)
	if err != nil {
		return pair, "listener.key_file: " + err.Error()
	}
	if encrypted(key) {
		return pair, "listener.key_file: " + keyFile + ": is encrypted, allowed is a key without a passphrase (openssl pkey -in OLD -out NEW)"
	}
	if pair, err = tls.X509KeyPair(cert, key); err != nil {
		return pair, fmt.Sprintf("listener.cert_file, listener.key_file: %s and %s are no pair in PEM: %s", certFile, keyFile, strings.TrimPrefix(err.Error(), "tls: "))
	}
	if pair.Leaf == nil { // GODEBUG may keep it from being there
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return pair, fmt.Sprintf("listener.cert_file: %s: %s", certFile, err)
		}
	}
	if now.After(pair.Leaf.NotAfter) {
		return pair, fmt.Sprintf("listener.cert_file: %s: has expired on %s", certFile, pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return pair, ""
}

// readableByAll reports whether others than the owner and the group may read or write a file.
// Windows' permissions are not of that kind.
func readableByAll(file string) (mode os.FileMode, open bool) {
	info, err := os.Stat(file)
	if err != nil || runtime.GOOS == "windows" {
		return 0, false
	}
	mode = info.Mode().Perm()
	return mode, mode&0o006 != 0
}

// encrypted reports whether a key in PEM has a passphrase.
func encrypted(key []byte) bool {
	for {
		var block *pem.Block
		if block, key = pem.Decode(key); block == nil {
			return false
		}
		if strings.Contains(block.Type, "ENCRYPTED") || bytes.Contains([]byte(block.Headers["Proc-Type"]), []byte("ENCRYPTED")) {
			return true
		}
	}
}

// warnings are what is allowed but unwise.
func (l *Listener) warnings(now time.Time) (warnings []string) {
	if !l.TLS {
		d := defaultListener()
		if len(l.CertFile) > 0 || len(l.KeyFile) > 0 || l.ClientCert != d.ClientCert || l.ClientCAFile != "" || l.TLSMinVersion != d.TLSMinVersion || l.ExternalUser != d.ExternalUser {
			warnings = append(warnings, "certificates and what belongs to them are set but listener.tls is not: clients speak plain AMQP here")
		}
		return warnings
	}
	if l.ClientCert == proxy.ClientCertNone && l.ClientCAFile != "" {
		warnings = append(warnings, "listener.client_ca_file is set but listener.client_cert is none: clients are not asked for a certificate")
	}
	t, problems := l.server()
	if len(problems) > 0 {
		return warnings // which are said elsewhere
	}
	holds := map[string]string{}
	for i := range t.Certificates {
		leaf, file := t.Certificates[i].Leaf, l.CertFile[i]
		if now.Before(leaf.NotBefore) {
			warnings = append(warnings, fmt.Sprintf("listener.cert_file: %s is not valid before %s", file, leaf.NotBefore.UTC().Format(time.RFC3339)))
		}
		if len(leaf.DNSNames)+len(leaf.IPAddresses) == 0 {
			warnings = append(warnings, "listener.cert_file: "+file+" has no subject alternative name, without which most clients take no certificate")
		}
		for _, name := range leaf.DNSNames {
			name = strings.ToLower(name)
			other, held := holds[name]
			if held && other != file && sameKind(t, l.CertFile, other, i) {
				warnings = append(warnings, fmt.Sprintf("listener.cert_file: %s and %s are both for %s: clients that ask for it are shown the first", other, file, name))
			}
			if !held {
				holds[name] = file
			}
		}
	}
	return warnings
}

// sameKind reports whether two certificates have keys of one kind: one of each kind for a name
// is how clients that take only one of them are served.
func sameKind(t *proxy.ServerTLS, files []string, other string, i int) bool {
	return t.Certificates[slices.Index(files, other)].Leaf.PublicKeyAlgorithm == t.Certificates[i].Leaf.PublicKeyAlgorithm
}

// TLSFiles are the files that the engine's TLS is made of.
func (s *Settings) TLSFiles() (files []string) {
	for _, l := range s.Listeners {
		if !l.TLS {
			continue
		}
		files = append(append(files, l.CertFile...), l.KeyFile...)
		if l.ClientCert != proxy.ClientCertNone {
			files = append(files, l.ClientCAFile)
		}
	}
	if s.usesTLS() {
		for _, f := range []string{s.TLS.CAFile, s.TLS.CertFile, s.TLS.KeyFile} {
			if f != "" {
				files = append(files, f)
			}
		}
	}
	return files
}

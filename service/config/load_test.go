// Sources and their rank, the file's errors, the broker's URL, TLS, AMQProxy's ini file.

package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
)

// write makes a settings file in a directory of the test's own.
func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func environment(vars map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { v, ok := vars[name]; return v, ok }
}

func TestPrecedence(t *testing.T) {
	file := write(t, "a.toml", "[[listener]]\nport = 1\naddress = \"10.0.0.1\"\n[[listener]]\nport = 2\n[pool]\nidle_timeout = 11\nmax_channels = 12\n[http]\nport = 13\n")
	env := environment(map[string]string{"LISTEN_PORT": "21", "IDLE_CONNECTION_TIMEOUT": "22", "HTTP_PORT": ""})
	line := []Override{
		{Find("listener.port"), "31", "--port"},
		{Find("listener.port"), "32", "--port"},
	}
	s, _, err := Load(Source{File: file, Env: env, CommandLine: line})
	if err != nil {
		t.Fatal(err)
	}
	want := []Listener{defaultListener(), defaultListener()}
	want[0].Address, want[0].Port = "10.0.0.1", 32
	want[1].Port = 2
	if !reflect.DeepEqual(s.Listeners, want) {
		t.Errorf("listeners are %v, want %v: the command line has the last word, on the first one", s.Listeners, want)
	}
	if s.Engine.IdleTimeout != 22*time.Second {
		t.Errorf("idle_timeout is %v, want the environment's 22s over the file's 11s", s.Engine.IdleTimeout)
	}
	if s.HTTP.Port != 13 {
		t.Errorf("http.port is %d, want the file's 13: an empty variable is not set", s.HTTP.Port)
	}
	if s.Engine.MaxChannels != 12 || s.Engine.AuthTTL != proxy.DefaultConfig().AuthTTL {
		t.Errorf("max_channels %d, auth_ttl %v: want the file's 12 and the default", s.Engine.MaxChannels, s.Engine.AuthTTL)
	}
}

func TestUnits(t *testing.T) {
	file := write(t, "a.toml", `
drain_timeout = "1h30m"
term_timeout = -1
[pool]
idle_timeout = "2d"
max_lifetime = 0
[client]
max_message_size = "3MiB"
message_buffer = 4_194_304
client_queue = "1 MB"
[log]
level = "WARN"
max_age = "7d"
`)
	s, _, err := Load(Source{File: file})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name      string
		got, want any
	}{
		{"drain_timeout", s.Engine.DrainTimeout, 90 * time.Minute},
		{"term_timeout", s.TermTimeout, time.Duration(-1)},
		{"idle_timeout", s.Engine.IdleTimeout, 48 * time.Hour},
		{"max_lifetime", s.Engine.MaxLifetime, time.Duration(0)},
		{"max_message_size", s.Engine.MaxMessageSize, int64(3 << 20)},
		{"message_buffer", s.Engine.MessageBuffer, int64(4 << 20)},
		{"client_queue", s.Engine.ClientQueue, 1_000_000},
		{"level", s.Log.Level, slog.LevelWarn},
		{"max_age", s.Log.MaxAge, 7 * 24 * time.Hour},
	} {
		if c.got != c.want {
			t.Errorf("%s is %v, want %v", c.name, c.got, c.want)
		}
	}
}

func TestLogLevelsOfAMQProxy(t *testing.T) {
	for text, want := range map[string]slog.Level{"TRACE": slog.LevelDebug, "Debug": slog.LevelDebug, "notice": slog.LevelInfo, "WARNING": slog.LevelWarn, "fatal": slog.LevelError} {
		s, _, err := Load(Source{Env: environment(map[string]string{"LOG_LEVEL": text})})
		if err != nil || s.Log.Level != want {
			t.Errorf("LOG_LEVEL=%s gives %v, %v, want %v", text, s.Log.Level, err, want)
		}
	}
}

func TestFileErrors(t *testing.T) {
	cases := []struct{ name, text, want string }{
		{"unknown key", "[pool]\n\nidle_timout = 3\n", `:3: unknown setting "idle_timout" in [pool], did you mean "idle_timeout"?`},
		{"another section's key", "\nidle_timeout = 3\n", `:2: unknown setting "idle_timeout" at the top of the file, did you mean "idle_timeout" in [pool]?`},
		{"top key in a section", "[pool]\ndrain_timeout = 3\n", `did you mean "drain_timeout" at the top of the file?`},
		{"case", "[pool]\nIdle_Timeout = 3\n", `did you mean "idle_timeout"?`},
		{"nothing near", "[http]\nquux = 3\n", `:2: unknown setting "quux" in [http], allowed are address, port, hosts, page, password_file, pprof`},
		{"unknown section", "[pol]\nx = 1\n", `:1: unknown section [pol], did you mean [pool]?`},
		{"AMQProxy's section", "[listen]\nport = 1\n", `unknown section [listen], did you mean [[listener]]?`},
		{"no section near", "[zzzzzz]\n", `allowed are [[listener]] [upstream]`},
		{"second listener", "[[listener]]\nport = 1\n[[listener]]\n\nport = 70000\n", `:5: listener.port is 70000, allowed is 0 to 65535`},
		{"listener with one bracket", "[listener]\nport = 1\n", `:1: listener is repeatable, write [[listener]]`},
		{"no listener", "listener = []\n", `:1: no listener is set`},
		{"section as value", "pool = 3\n", `:1: pool is a section, write [pool]`},
		{"inline table", "pool = {idle_timeout = 0}\n", `:1: pool.idle_timeout is 0, allowed is 1s to 365d`},
		{"dotted key", "\npool.idle_timeout = 0\n", `:2: pool.idle_timeout is 0`},
		{"syntax", "[pool]\nidle_timeout = \n", `:2: not valid TOML: `},
		{"twice", "[pool]\nfast_close = true\nfast_close = true\n", `:3: not valid TOML: `},
		{"backslash", "[log]\nfile = \"C:\\dir\\x\"\n", `write paths in single quotes`},
		{"not text", "\x00\xff\xfe", `:1: not valid TOML: `},
		{"buffer below message", "[client]\nmax_message_size = \"2GiB\"\n", `client.message_buffer is 1GiB, allowed is client.max_message_size (2GiB) or more`},
		{"half heartbeat", "[upstream]\nheartbeat = \"1500ms\"\n", `upstream.heartbeat is 1.5s, allowed are whole seconds`},
		{"cert without key", "[tls]\ncert_file = \"x\"\n", `tls.cert_file and tls.key_file go together`},
		{"same address twice", "[[listener]]\n[[listener]]\n", `listener 2 is 127.0.0.1:5673, which overlaps 127.0.0.1:5673 of listener 1`},
		{"http on a listener", "[http]\nport = 5673\n", `listener 1 is 127.0.0.1:5673, which overlaps 127.0.0.1:5673 of http.address, http.port`},
		{"one among all of IPv4", "[[listener]]\naddress = \"0.0.0.0\"\n[[listener]]\n", `listener 2 is 127.0.0.1:5673, which overlaps 0.0.0.0:5673 of listener 1`},
		{"one among all", "[[listener]]\n[[listener]]\naddress = \"::\"\n", `listener 2 is [::]:5673, which overlaps`},
		{"two writings of one", "[[listener]]\naddress = \"::1\"\n[[listener]]\naddress = \"0:0:0:0:0:0:0:1\"\n", `listener 2 is [0:0:0:0:0:0:0:1]:5673, which overlaps`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			path := write(t, "amqproxysvc.toml", c.text)
			_, _, err := Load(Source{File: path})
			var wrong *Error
			if !errors.As(err, &wrong) {
				t.Fatalf("got %v, want an error", err)
			}
			if len(wrong.Problems) != 1 {
				t.Errorf("got %d problems %q, want 1", len(wrong.Problems), wrong.Problems)
			}
			if wrong.CommandLine {
				t.Error("an error of the file is marked as one of the command line")
			}
			if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %q, want one line with %q", err, c.want)
			}
		})
	}
}

func TestAllProblemsAreFound(t *testing.T) {
	path := write(t, "a.toml", "[http]\nport = -1\n[pool]\nmax_channels = 0\nnonsense_here = 1\n")
	_, _, err := Load(Source{File: path})
	var wrong *Error
	if !errors.As(err, &wrong) || len(wrong.Problems) != 3 {
		t.Fatalf("got %v, want 3 problems", err)
	}
	if !strings.HasSuffix(err.Error(), "(and 2 more: see check-config)") || !strings.HasPrefix(err.Error(), path+":2: http.port is -1") {
		t.Errorf("got %q", err)
	}
}

func TestAddressesSideBySide(t *testing.T) {
	for _, text := range []string{
		"[[listener]]\nport = 0\n[[listener]]\nport = 0\n",
		"[[listener]]\n[[listener]]\naddress = \"127.0.0.2\"\n",
		"[[listener]]\naddress = \"0.0.0.0\"\n[[listener]]\naddress = \"::1\"\n",
		"[[listener]]\naddress = \"0.0.0.0\"\n[http]\nport = 0\n",
	} {
		if _, _, err := Load(Source{File: write(t, "a.toml", text)}); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestUnreadableFiles(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, make([]byte, 1<<20+1), 0o600); err != nil {
		t.Fatal(err)
	}
	cases := map[string]string{
		filepath.Join(dir, "none"): "there is no such file",
		dir:                        "is a directory",
		big:                        "more than 1MiB",
	}
	if os.Getuid() > 0 {
		locked := filepath.Join(dir, "locked")
		if err := os.WriteFile(locked, nil, 0); err != nil {
			t.Fatal(err)
		}
		cases[locked] = "permission denied"
	}
	for path, want := range cases {
		_, _, err := Load(Source{File: path})
		if err == nil || !strings.HasPrefix(err.Error(), path+": cannot be read: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", path, err, want)
		}
	}
}

func TestRelativePathsStartAtTheFile(t *testing.T) {
	path := write(t, "a.toml", "[log]\nfile = \"log/a.log\"\n")
	s, _, err := Load(Source{File: path})
	if want := filepath.Join(filepath.Dir(path), "log", "a.log"); err != nil || s.Log.File != want {
		t.Errorf("log.file is %q, %v, want %q", s.Log.File, err, want)
	}
}

func TestParseURL(t *testing.T) {
	for text, want := range map[string]Broker{
		"amqp://h":                       {"h", 5672, false},
		"amqps://h":                      {"h", 5671, true},
		"AMQPS://Host.example:1":         {"Host.example", 1, true},
		"amqp://h/":                      {"h", 5672, false},
		"amqp://127.0.0.1:5672":          {"127.0.0.1", 5672, false},
		"amqp://[::1]":                   {"::1", 5672, false},
		"amqps://[2001:db8::1]:7":        {"2001:db8::1", 7, true},
		"amqp://[fe80::1%25eth0]:7":      {"fe80::1%eth0", 7, false},
		"amqps://1.mq-amqp.cn-x.aliy.co": {"1.mq-amqp.cn-x.aliy.co", 5671, true},
	} {
		got, warning, err := ParseURL(text)
		if err != nil || got != want || warning != "" {
			t.Errorf("ParseURL(%q) = %v, %q, %v, want %v", text, got, warning, err, want)
		}
	}
	if got := (Broker{"::1", 7, true}).String(); got != "amqps://[::1]:7" {
		t.Errorf("got %s", got)
	}
}

// Nothing that may be a secret stands in a warning or an error.
func TestURLKeepsSecrets(t *testing.T) {
	const secret = "s3cr3t"
	for text, want := range map[string]string{
		"amqp://user:" + secret + "@h":            "user and password in the URL ignored",
		"amqp://user:" + secret + "@h/" + secret:  "user and password and vhost in the URL ignored",
		"amqp://h/" + secret:                      "vhost in the URL ignored",
		"amqp://h?password=" + secret:             "parameters in the URL ignored",
		"amqp://user:p@" + secret + "@h:1/v":      "user and password and vhost",
		"amqp://user:" + secret + "%zz@h":         "user and password",
		"amqp://user:" + secret + "/x@h":          `has an "@" after a "/"`,
		"amqp://user:" + secret + "#x@h":          `has an "@" after a "/"`,
		"amqp://user:" + secret + "?x@h":          `has an "@" after a "/"`,
		"user:" + secret + "@h":                   "has no scheme",
		"http://user:" + secret + "@h":            `has the scheme "http"`,
		"amqp://user:" + secret + "@h:99999":      "has the port 99999",
		"amqp://user:" + secret + "@h:port":       "which is not HOST[:PORT]",
		"amqp://user:" + secret + "@":             `has the host ""`,
		"amqp://user:" + secret + "@[::1":         "which is not HOST[:PORT]",
		"amqp://user:" + secret + "@a%20b" + "/v": "which is not HOST[:PORT]",
	} {
		o := Override{Find("upstream.url"), text, "AMQP_URL"}
		s, warnings, err := Load(Source{CommandLine: []Override{o}})
		said := strings.Join(warnings, "\n")
		if err != nil {
			said += err.Error()
		}
		if strings.Contains(said, secret) || strings.Contains(s.Broker.String(), secret) {
			t.Errorf("the secret of %q is told: %q", text, said)
		}
		if !strings.Contains(said, want) {
			t.Errorf("%q: got %q, want %q", text, said, want)
		}
	}
	_, _, err := Load(Source{CommandLine: []Override{{Find("listener.address"), "amqp://u:" + secret + "@h", "--listen"}}})
	if err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("a URL in the wrong place: got %v, want an error without the secret", err)
	}
}

func TestHosts(t *testing.T) {
	for text, want := range map[string]string{"[::1]": "[::1]:5673", "::": "[::]:5673", "localhost": "localhost:5673", "0.0.0.0": "0.0.0.0:5673", "fe80::1%eth0": "[fe80::1%eth0]:5673"} {
		s, _, err := Load(Source{CommandLine: []Override{{Find("listener.address"), text, "-l"}}})
		if err != nil || s.Listeners[0].HostPort() != want {
			t.Errorf("-l %s listens on %q, %v, want %q", text, s.Listeners[0].HostPort(), err, want)
		}
	}
}

// certificate makes a self-signed one and gives the paths of it and of its key.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &priv.PublicKey, priv)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return write(t, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))),
		write(t, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
}

func TestTLS(t *testing.T) {
	cert, key := certificate(t)
	s := Defaults()
	s.Broker = Broker{"broker.example", 5671, true}
	s.TLS.CAFile, s.TLS.CertFile, s.TLS.KeyFile = cert, cert, key
	c, err := s.ProxyConfig("1", nil)
	if err != nil {
		t.Fatal(err)
	}
	got := c.Upstream.TLS
	if got.MinVersion != tls.VersionTLS12 || got.ServerName != "broker.example" || got.InsecureSkipVerify || got.RootCAs == nil || len(got.Certificates) != 1 {
		t.Errorf("got %+v: want TLS 1.2, SNI of the host, verification on, one CA, one certificate", got)
	}
	s.TLS.ServerName, s.TLS.Verify = "other", false
	if c, err = s.ProxyConfig("1", nil); err != nil || c.Upstream.TLS.ServerName != "other" || !c.Upstream.TLS.InsecureSkipVerify {
		t.Errorf("got %+v, %v: want server_name other, not verified", c.Upstream.TLS, err)
	}
	if w := s.Warnings(); len(w) != 1 || !strings.Contains(w[0], "not verified") {
		t.Errorf("warnings %q, want one that verification is off", w)
	}
	s.Broker.TLS = false
	if w := s.Warnings(); len(w) != 1 || !strings.Contains(w[0], "without TLS") {
		t.Errorf("warnings %q, want one that [tls] is of no use", w)
	}
}

func TestTLSErrors(t *testing.T) {
	cert, key := certificate(t)
	_, other := certificate(t)
	junk := write(t, "junk.pem", "junk")
	none := filepath.Join(t.TempDir(), "none")
	for name, c := range map[string]struct {
		tls  TLS
		want string
	}{
		"no CA file":     {TLS{CAFile: none, Verify: true}, "tls.ca_file: " + none + ": cannot be read: there is no such file"},
		"junk CA file":   {TLS{CAFile: junk, Verify: true}, "tls.ca_file: " + junk + ": holds no certificate"},
		"no certificate": {TLS{CAFile: cert, CertFile: none, KeyFile: key, Verify: true}, "tls.cert_file: " + none},
		"no key":         {TLS{CAFile: cert, CertFile: cert, KeyFile: none, Verify: true}, "tls.key_file: " + none},
		"another's key":  {TLS{CAFile: cert, CertFile: cert, KeyFile: other, Verify: true}, "are no pair"},
	} {
		s := Defaults()
		s.Broker.TLS, s.TLS = true, c.tls
		_, err := s.ProxyConfig("1", nil)
		var wrong *Error
		if !errors.As(err, &wrong) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

func TestNoSystemRoots(t *testing.T) {
	before := systemRoots
	t.Cleanup(func() { systemRoots = before })
	systemRoots = func() (*x509.CertPool, error) { return x509.NewCertPool(), nil }
	cert, _ := certificate(t)
	s := Defaults()
	s.Broker.TLS = true
	c, err := s.ProxyConfig("1", nil)
	if err != nil {
		t.Fatal(err)
	}
	builtin, err := builtinRoots()
	if err != nil || builtin.Equal(x509.NewCertPool()) || !builtin.Equal(c.Upstream.TLS.RootCAs) {
		t.Errorf("the broker is not verified with the built-in authorities: %v", err)
	}
	s.TLS.CAFile = cert
	if _, err := s.ProxyConfig("1", nil); err != nil {
		t.Errorf("with a ca_file: %v", err)
	}
	s.TLS.CAFile, s.TLS.Verify = "", false
	if _, err := s.ProxyConfig("1", nil); err != nil {
		t.Errorf("without verification: %v", err)
	}
	s.TLS.Verify, s.Broker.TLS = true, false
	if _, err := s.ProxyConfig("1", nil); err != nil {
		t.Errorf("without TLS: %v", err)
	}
}

func TestImport(t *testing.T) {
	path := write(t, "amqproxy.ini", `; AMQProxy
[main]
log_level = NOTICE
idle_connection_timeout = 5
max_upstream_channels = 65535
upstream = amqps://user:s3cr3t@broker.example.com/vh
term_timeout = -1
term_client_close_timeout = 7
frobnicate = s3cr3t

[listen]
bind = 0.0.0.0
port = 5673
`)
	text, notes, err := Import(path)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, filepath.Join("testdata", "imported.toml"), text)
	if len(notes) != 3 {
		t.Errorf("notes are %q, want 3: the level's name, the URL's secret, the unknown key", notes)
	}
	if strings.Contains(text+strings.Join(notes, ""), "s3cr3t") {
		t.Errorf("a secret was printed:\n%s\n%q", text, notes)
	}
	s, warnings, err := Load(Source{File: write(t, "a.toml", text)})
	if err != nil || len(warnings) > 0 {
		t.Fatalf("what was imported does not load: %v %v\n%s", err, warnings, text)
	}
	if s.Broker != (Broker{"broker.example.com", 5671, true}) || s.Listeners[0].HostPort() != "0.0.0.0:5673" ||
		s.Engine.IdleTimeout != 5*time.Second || s.Engine.MaxChannels != 65535 || s.TermTimeout != -1 || s.Engine.DrainTimeout != 7*time.Second {
		t.Errorf("imported as %+v\n%s", s, text)
	}
}

func TestImportOddities(t *testing.T) {
	text, notes, err := Import(write(t, "a.ini", "upstream=amqp://b\r\n[main]\r\nidle_connection_timeout = 0\r\nlog_level =\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text, `url = "amqp://b:5672"`) || len(notes) != 2 ||
		!strings.Contains(notes[0], "line 3: \"idle_connection_timeout\" in [main] is left out") {
		t.Errorf("got %q\n%s", notes, text)
	}
	for body, want := range map[string]string{"[main\n": ":1: a section's header is not closed", "\nfoo\n": ":2: neither [SECTION] nor KEY = VALUE"} {
		if _, _, err := Import(write(t, "a.ini", body)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", body, err, want)
		}
	}
	if _, _, err := Import(filepath.Join(t.TempDir(), "none")); err == nil || !strings.Contains(err.Error(), "there is no such file") {
		t.Errorf("got %v", err)
	}
}

func FuzzLoadFile(f *testing.F) {
	sample, _ := Sample(nil)
	f.Add(sample)
	f.Add("[[listener]]\nport=1\n[pool]\nx=\"\"\"\na\n\"\"\"\n")
	f.Add("listener=[{port=1},{}]\npool.idle_timeout=\"5s\"\n")
	path := filepath.Join(f.TempDir(), "f.toml")
	f.Fuzz(func(t *testing.T, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s, _, err := Load(Source{File: path})
		if err != nil {
			if strings.TrimSpace(err.Error()) == "" {
				t.Error("an error without words")
			}
			return
		}
		if _, err := s.ProxyConfig("fuzz", nil); err != nil && !s.Broker.TLS {
			t.Errorf("loaded but not valid: %v", err)
		}
	})
}

// What is accepted is a broker that can be written as a URL and read again, and nothing
// before an "@" is ever told.
func FuzzParseURL(f *testing.F) {
	for _, text := range []string{"amqp://h", "amqps://u:p@[::1]:5/v?x#y", "amqp://a@b@c", "AMQP://[fe80::1%25e]:1"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		b, warning, err := ParseURL(text)
		if err == nil {
			if b.Host == "" || b.Port < 1 || b.Port > 65535 {
				t.Errorf("ParseURL(%q) = %+v", text, b)
			}
			if strings.Contains(b.Host, "%") {
				return // a zone is written percent-encoded, and only the system reads it
			}
			again, warning, err := ParseURL(b.String())
			if again != b || warning != "" || err != nil {
				t.Errorf("ParseURL(%q) = %+v, which reads back as %+v, %q, %v", text, b, again, warning, err)
			}
		}
		if _, rest, found := strings.Cut(text, "://"); found && err != nil {
			if user, _, found := strings.Cut(rest, "@"); found && len(user) > 12 && strings.Contains(err.Error(), user) {
				t.Errorf("ParseURL(%q) tells %q: %v", text, user, err)
			}
		}
		if _, _, err := ParseURL("amqp://user:s3cr3t" + text + "@h"); err != nil && strings.Contains(err.Error(), "s3cr3t") && !strings.Contains(text, "s3cr3t") {
			t.Errorf("%q: %v", text, err)
		} else if strings.Contains(warning, "s3cr3t") && !strings.Contains(text, "s3cr3t") {
			t.Errorf("%q: %v", text, warning)
		}
	})
}

// What a file sets and the environment overrides is said; what is only repeated is not.
func TestEnvironmentOverFileIsSaid(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.toml")
	if err := os.WriteFile(file, []byte("[log]\nlevel = \"warn\"\n[upstream]\nurl = \"amqp://filebroker\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"AMQP_URL": "amqp://envbroker", "LOG_LEVEL": "warn", "LISTEN_PORT": "5999"}
	s, warnings, err := Load(Source{File: file, Env: func(k string) (string, bool) { v, ok := env[k]; return v, ok }})
	if err != nil || s.Broker.Host != "envbroker" {
		t.Fatalf("got %v, %v", s.Broker, err)
	}
	if want := []string{"upstream.url of " + file + ":4 is not used: the environment's AMQP_URL comes before it"}; !slices.Equal(warnings, want) {
		t.Errorf("warnings %q, want %q", warnings, want)
	}
}

// AMQProxy's ini file is taken where ours is.
func TestAnINIFileIsTaken(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"amqproxy.ini":  "[main]\nlog_level = debug\nupstream = amqp://broker:5673\n[listen]\nbind = 0.0.0.0\nport = 5675\n",
		"amqproxy.conf": "; comment\n[main]\nlog_level = debug\nupstream = amqp://broker:5673\n[listen]\naddress = 0.0.0.0\nport = 5675\n",
	} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s, warnings, err := Load(Source{File: file})
		if err != nil || s.Broker != (Broker{Host: "broker", Port: 5673}) || s.Listeners[0].Address != "0.0.0.0" || s.Listeners[0].Port != 5675 || s.Log.Level != slog.LevelDebug {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
		if len(warnings) != 1 || !strings.Contains(warnings[0], "an ini file of AMQProxy, taken as it is") {
			t.Errorf("%s: warnings %q", name, warnings)
		}
	}
	file := filepath.Join(dir, "bad.ini")
	if err := os.WriteFile(file, []byte("[main]\nmax_upstream_channels = many\nfoo = bar\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, warnings, err := Load(Source{File: file}); err == nil || !strings.Contains(err.Error(), file+": line 2: ") || len(warnings) != 2 {
		t.Errorf("a wrong value: %v, %q", err, warnings)
	}
	toml := filepath.Join(dir, "ours.toml")
	if err := os.WriteFile(toml, []byte("[main]\nx = debug\n[upstream]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Load(Source{File: toml}); err == nil || !strings.Contains(err.Error(), "not valid TOML") {
		t.Errorf("our own file with a slip: %v", err)
	}
}

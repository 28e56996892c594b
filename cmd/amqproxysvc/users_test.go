package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/admin"
	"github.com/amqproxysvc/amqproxysvc/proxy/hash"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/service"
	"github.com/amqproxysvc/amqproxysvc/service/config"
	"github.com/amqproxysvc/amqproxysvc/service/logging"
)

// withInput runs a command with standard input.
func withInput(t *testing.T, input string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	root := newRootCommand()
	root.SetIn(strings.NewReader(input))
	root.SetOut(&out)
	root.SetErr(&errs)
	root.SetArgs(args)
	if err := root.Execute(); err != nil {
		complain(&errs, err)
		code = exitCode(err)
	}
	return code, out.String(), errs.String()
}

func TestHashPassword(t *testing.T) {
	for _, input := range []string{"pässword\n", "pässword", "pässword\r\nmore\n"} {
		code, out, errs := withInput(t, input, "hash-password")
		h, err := hash.Parse(strings.TrimSuffix(out, "\n"))
		if code != 0 || errs != "" || err != nil || !h.Matches("pässword") {
			t.Errorf("%q: exit code %d, %v, %s%s", input, code, err, out, errs)
		}
	}
	for input, want := range map[string]string{"": "the password is empty", "\n": "the password is empty", "a\x00b\n": "NUL", strings.Repeat("x", 5000): "longer than 4,000"} {
		code, out, errs := withInput(t, input, "hash-password")
		if out != "" {
			t.Errorf("%q: printed %s", input, out)
		}
		oneLine(t, code, service.ExitFailed, errs, want)
	}
	code, _, errs := withInput(t, "", "hash-password", "hunter2")
	if code != service.ExitUsage || strings.Contains(errs, "\n\n") {
		t.Errorf("a password as argument: exit code %d, %s", code, errs)
	}
}

func TestProtectIsForWindows(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.secret")
	code, out, errs := withInput(t, "s3cr3t\n", "protect", file)
	_, err := os.Stat(file)
	if runtime.GOOS == "windows" {
		if code != 0 || errs != "" || !strings.Contains(out, "written") || err != nil {
			t.Errorf("exit code %d, %v, %s%s", code, err, out, errs)
		}
		return
	}
	oneLine(t, code, service.ExitFailed, errs, "systemd-creds encrypt")
	if out != "" || err == nil {
		t.Errorf("the file is there (%v), %s", err, out)
	}
}

func TestCheckLogin(t *testing.T) {
	b := proxytest.StartBroker(t, proxytest.BrokerConfig{Users: map[string]string{"prod": "s3cr3t", "other": "o"}, VHosts: []string{"/", "shop"}})
	dir := t.TempDir()
	file := filepath.Join(dir, "a.toml")
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("x.password", "s3cr3t\n")
	write("a.toml", "[upstream]\nurl = \""+b.URL()+"\"\n[[user]]\nname = \"shop\"\nvhosts = \"shop\"\nbroker_user = \"prod\"\nbroker_password_file = \"x.password\"\npassword_hash = \""+hash.New("local")+"\"\n")
	check := func(wantCode int, want, input string, args ...string) {
		t.Helper()
		code, out, errs := withInput(t, input, append([]string{"check-login", "-c", file}, args...)...)
		said := out + errs
		if code != wantCode || !strings.Contains(said, want) || strings.Count(said, "\n") != 1 || strings.Contains(said, "s3cr3t") || strings.Contains(said, "$argon") {
			t.Errorf("%q %q: exit code %d, %q; want %d, %q", args, input, code, said, wantCode, want)
		}
	}
	check(0, "the broker was not asked", "local\n", "shop")
	check(1, "the password is wrong", "s3cr3t", "shop")
	check(1, "the password is wrong", "wrong", "shop", "--broker")
	check(0, "the broker decides", "x", "other")
	check(0, "no [[user]] of that name, and the broker", "o", "other", "--broker")
	check(1, "ACCESS_REFUSED", "x", "other", "--broker")
	check(1, "by user.vhosts", "local", "shop", "--vhost", "/")
	check(1, "the password is empty", "", "shop")
	if n := b.Counts().Accepted; n != 2 {
		t.Errorf("the broker has seen %d connections, want those of --broker", n)
	}
	check(0, "accepts what it is sent", "local", "shop", "--broker", "--vhost", "shop")
	check(0, "the broker at "+b.URL()+" accepts what it is sent", "local", "shop", "--broker")
	green := proxytest.StartBroker(t, proxytest.BrokerConfig{Users: map[string]string{"only": "o"}, VHosts: []string{"green"}})
	routed, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write("a.toml", string(routed)+"[[broker]]\nname = \"green\"\nurl = \""+green.URL()+"\"\n[[route]]\nvhost = \"green\"\nbroker = \"green\"\n")
	check(0, "the broker at "+green.URL()+" ([[broker]] green) accepts the password", "o", "only", "--broker")
	check(0, "the broker at "+green.URL()+" ([[broker]] green) accepts the password", "o", "only", "--broker", "--vhost", "green")
	check(1, "broker [upstream], where vhost 'shop' is", "o", "only", "--broker", "--vhost", "shop")
	check(1, "ACCESS_REFUSED", "x", "only", "--broker")
	b.SetUser("prod", "changed")
	check(1, "ACCESS_REFUSED", "local", "shop", "--broker")
	b.Close()
	check(1, "not let in", "local", "shop", "--broker")
}

// Users that are wrong are one line and exit code 78, whoever reads the settings; nothing starts.
func TestWrongUsersStartNothing(t *testing.T) {
	neverStarted(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dir := t.TempDir()
	good := "password_hash = \"kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR\"\n"
	secret := filepath.Join(dir, "x.password")
	if err := os.WriteFile(secret, []byte("s3cr3t\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(secret, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ text, want string }{
		"a hash that is none": {"[[user]]\nname = \"a\"\npassword_hash = \"hunter2\"\nbroker_password_file = \"x\"\n", "user 1 (a): user.password_hash is no hash"},
		"two of a name":       {strings.Repeat("[[user]]\nname = \"a\"\nbroker_password_file = \"x\"\n"+good, 2), "user 2 (a): user.name is that of user 1 too"},
		"world-readable":      {"[[user]]\nname = \"a\"\nbroker_password_file = \"x.password\"\n" + good, "everybody on this machine may read or change it (mode 0644)"},
		"no such file":        {"[[user]]\nname = \"a\"\nbroker_password_file = \"y\"\n" + good, "y: cannot be read: there is no such file"},
	} {
		if runtime.GOOS == "windows" && name == "world-readable" {
			continue
		}
		file := filepath.Join(dir, "a.toml")
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"-c", file}, {"check-config", file}, {"check-login", "a", "-c", file}} {
			t.Run(name+" "+args[0], func(t *testing.T) {
				code, _, errs := withInput(t, "x", args...)
				oneLine(t, code, service.ExitConfig, errs, c.want)
				if strings.Contains(errs, "hunter2") || strings.Contains(errs, "s3cr3t") {
					t.Errorf("a secret is in %s", errs)
				}
			})
		}
	}
}

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// carrier is a service.Host of an engine that a test carries.
type carrier struct{ e *engine }

func (carrier) Upgrade(context.Context) (int, error) { return 0, nil }
func (carrier) Before() *service.Before              { return nil }
func (c carrier) State() service.State {
	st := c.e.Status()
	return service.State{Listening: st.Listening, Upstream: st.Upstream, Broker: &st.Broker}
}

func (c carrier) Reload(context.Context) (service.ReloadState, error) {
	return service.ReloadState{}, nil
}

// shownBy is all that a running proxy shows: the answers of its HTTP port, profiles included, and of its admin
// channel, its status and its log.
func shownBy(e *engine, log fmt.Stringer) map[string]string {
	e.host = carrier{e}
	shown := map[string]string{"log": log.String()}
	ask := func(h http.Handler, path string) {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "http://localhost"+path, nil)
		h.ServeHTTP(w, r.WithContext(admin.WithPeer(r.Context(), admin.Peer{Role: admin.Change})))
		shown[path] = fmt.Sprint(w.Code, " ", w.Body.String())
	}
	web := admin.Handler(admin.Options{Source: e, Lister: e, Pprof: true})
	for _, path := range []string{"/metrics", "/healthz", "/readyz", "/", "/debug/pprof/goroutine?debug=2", "/debug/pprof/heap?debug=1", "/debug/pprof/allocs?debug=1", "/debug/pprof/cmdline"} {
		ask(web, path)
	}
	control := admin.Control(e, "test")
	for _, v := range admin.Verbs {
		if v.Role == admin.Look {
			ask(control, "/v1/"+v.Name)
		}
	}
	status, err := json.Marshal(e.Status())
	shown["status"] = fmt.Sprint(string(status), err)
	return shown
}

// No secret is in anything that a running proxy shows, after logins that are right, wrong, refused by the
// broker, and reloads that are good and bad.
func TestNoSecretIsShown(t *testing.T) {
	b := proxytest.StartBroker(t, proxytest.BrokerConfig{Users: map[string]string{"prod": "s3cr3t-at-the-broker"}})
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	argon := hash.New("l0cal-password")
	const rabbits = "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR" // of test12
	file := filepath.Join(dir, "a.toml")
	users := "[[user]]\nname = \"shop\"\nbroker_user = \"prod\"\nbroker_password_file = \"x.password\"\npassword_hash = \"" + argon + "\"\n" +
		"[[user]]\nname = \"till\"\nbroker_password_file = \"y.password\"\npassword_hash = \"" + rabbits + "\"\n"
	users += "[[user]]\nname = \"cloud\"\nprovider = \"alibaba\"\ninstance_id = \"i\"\naccess_key_file = \"key\"\nsecurity_token_file = \"token\"\npassword_hash = \"" + rabbits + "\"\n"
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprint(w, `{"access_token": "t0ken-of-the-issuer", "token_type": "bearer", "expires_in": 3600}`)
	}))
	defer issuer.Close()
	b.SetUser("svc", "t0ken-of-the-issuer")
	users += "[[user]]\nname = \"svc\"\nprovider = \"oauth2\"\ntoken_url = \"" + issuer.URL + "\"\nclient_id = \"proxy\"\nclient_secret_file = \"client\"\npassword_hash = \"" + rabbits + "\"\n"
	write("client", "cl13nt-secret\n")
	write("key", "LTAI5t\n4ccess-secret\n")
	write("token", "5ts-token\n")
	write("x.password", "s3cr3t-at-the-broker\n")
	write("y.password", "wr0ng-at-the-broker\n")
	write("a.toml", "[log]\nlevel = \"debug\"\n[http]\nport = 0\n[[listener]]\nport = 0\n[upstream]\nurl = \""+b.URL()+"\"\n"+users)
	var log lockedBuffer
	before := slog.Default()
	t.Cleanup(func() { slog.SetDefault(before) })
	e, err := openEngine(config.Source{File: file}, logging.Options{Output: &log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.log.Close() })
	if err := e.Start(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		_ = e.Drain(ended)
	})
	at := e.server.Addrs()[0].String()
	_, pair := proxytest.Sign("i", "LTAI5t", "4ccess-secret", time.Now())
	sts := base64.StdEncoding.EncodeToString([]byte("0:i:LTAI5t:5ts-token"))
	for _, c := range []struct {
		user, password string
		in             bool
	}{{"shop", "l0cal-password", true}, {"shop", "gu3ssed", false}, {"till", "test12", false}, {"cloud", "test12", false}, {"svc", "test12", true}, {"prod", "s3cr3t-at-the-broker", true}, {"nobody", "gu3ssed", false},
		{sts, pair, false}, {sts, "gu3ssed", false}, {"MDppOkxUQUlvdGhlcjo1dHMtdG9rZW4=", pair, false}} { // of the key, and of one that it has not
		client, err := proxytest.Dial(proxytest.ClientConfig{Addr: at, User: c.user, Password: c.password})
		if (err == nil) != c.in {
			t.Fatalf("%s with %s: %v", c.user, c.password, err)
		}
		for _, secret := range []string{"s3cr3t", "wr0ng", "l0cal", "gu3ssed"} {
			if err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("%s hears %v", c.user, err)
			}
		}
		if err == nil {
			t.Cleanup(func() { _ = client.Hangup() })
			if err := client.OpenChannel(1); err != nil {
				t.Error(err)
			}
		}
	}
	write("x.password", "n3w-at-the-broker\n")
	if _, err := e.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	write("a.toml", users+"[[user]]\nname = \"bad\"\npassword_hash = \"my-pl4in-password\"\nbroker_password_file = \"x.password\"\n")
	_, wrong := e.Reload(t.Context())
	if wrong == nil {
		t.Fatal("a hash that is none is taken")
	}
	shown := shownBy(e, &log)
	shown["the reload's error"] = wrong.Error()
	if !strings.Contains(shown["/v1/config"], "[redacted]") || !strings.Contains(shown["/metrics"], `amqproxysvc_local_logins_total{result="ok"} 5`) || !strings.Contains(shown["log"], "the broker refuses the secret kept for a user") {
		t.Errorf("the test looks at too little: %v", shown)
	}
	key := argon[strings.LastIndex(argon, "$")+1:]
	for where, text := range shown {
		for _, secret := range []string{key, rabbits, rabbits[8:24], "s3cr3t", "wr0ng", "n3w-at", "l0cal", "gu3ssed", "my-pl4in", "4ccess", "5ts", "t0ken", "cl13nt", base64.StdEncoding.EncodeToString([]byte("0:i:LTAI5t:5")), base64.StdEncoding.EncodeToString([]byte("0:i:LTAIother:5t"))[:20], pair} {
			if strings.Contains(text, secret) {
				t.Errorf("%s shows %q", where, secret)
			}
		}
	}
}

// The engine as the service carries it: reload keeps what works, a drain ends in bounds,
// the HTTP server lives as long as the proxy.

package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/service"
	"github.com/amqproxysvc/amqproxysvc/service/config"
	"github.com/amqproxysvc/amqproxysvc/service/logging"
)

// startEngine writes the settings into a file, opens and starts an engine on them.
func startEngine(t *testing.T, fake func(*fakeServer), settings string) (e *engine, f *fakeServer, file string) {
	t.Helper()
	f = useFake(t, fake)
	file = filepath.Join(t.TempDir(), "a.toml")
	writeFile(t, file, settings)
	e, err := openEngine(config.Source{File: file}, logging.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.log.Close() })
	if err := e.Start(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	return e, f, file
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

const ports = "[[listener]]\nport = 0\n[http]\nport = 0\n"

func TestReload(t *testing.T) {
	e, fake, file := startEngine(t, nil, ports)
	defer func() { _ = e.Drain(t.Context()) }()
	logFile := filepath.Join(t.TempDir(), "a.log")
	writeFile(t, file, "drain_timeout = 7\n[upstream]\nurl = \"amqp://other\"\n[log]\nfile = '"+logFile+"'\n[[listener]]\nport = 0\n[http]\nport = 1\npprof = true\n")
	fake.need = []string{"listener.port"}
	done, err := e.Reload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"listener.port", "http.port", "http.pprof"}; !slices.Equal(done.NeedRestart, want) {
		t.Errorf("need a restart: %q, want %q", done.NeedRestart, want)
	}
	slices.Sort(done.Changed)
	if want := []string{"drain_timeout", "http.port", "http.pprof", "log.file", "upstream.url"}; !slices.Equal(done.Changed, want) {
		t.Errorf("changed: %q, want %q", done.Changed, want)
	}
	if len(fake.reloaded) != 1 || fake.reloaded[0].Upstream.Host != "other" || fake.reloaded[0].DrainTimeout != 7*time.Second {
		t.Errorf("the proxy was given %+v", fake.reloaded)
	}
	if st := e.Status(); st.Upstream != "other:5672" || st.DrainTimeout != 7*time.Second {
		t.Errorf("status is %+v", st)
	}
	if _, err := os.Stat(logFile); err != nil {
		t.Errorf("the new log file is not there: %v", err)
	}
}

// A socket that no listener takes would leave those who connect to it without an answer.
func TestSocketsWithoutAListener(t *testing.T) {
	useFake(t, nil)
	file := filepath.Join(t.TempDir(), "a.toml")
	writeFile(t, file, ports)
	e, err := openEngine(config.Source{File: file}, logging.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.log.Close() })
	err = e.Start(t.Context(), make([]net.Listener, 2))
	if !errors.Is(err, service.ErrConfig) || !strings.Contains(err.Error(), "listener 1, counted from 0, and the settings have 1 [[listener]]") {
		t.Errorf("two sockets for one listener: got %v", err)
	}
}

// 0.0.0.0 is what the settings page says: the addresses of IPv4.
func TestHTTPOnAllOfIPv4(t *testing.T) {
	// Free on every address: one that is free on the loopback address may be taken on another, or by a connection.
	ln, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	_ = ln.Close()
	e, _, _ := startEngine(t, nil, "[[listener]]\nport = 0\n[http]\naddress = \"0.0.0.0\"\nport = "+port+"\n")
	defer func() { _ = e.Drain(t.Context()) }()
	if got := e.adminAddr.String(); !strings.HasPrefix(got, "0.0.0.0:") {
		t.Errorf("metrics are served on %s", got)
	}
}

// After a reload that fails, whatever failed, everything is as it was.
func TestFailedReloadChangesNothing(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		settings string
		fake     error
		want     string
		config   bool
	}{
		"broken file":   {"[pool\n", nil, "not valid TOML", true},
		"unknown key":   {"[pool]\nx = 1\n", nil, "unknown setting", true},
		"no CA file":    {"[upstream]\nurl = \"amqps://h\"\n[tls]\nca_file = \"none\"\n", nil, "tls.ca_file", true},
		"log directory": {"[log]\nfile = '" + dir + "'\n", nil, "log.file", true},
		"engine":        {"[log]\nlevel = \"debug\"\n[upstream]\nurl = \"amqp://new\"\n", errTest, errTest.Error(), false},
	} {
		t.Run(name, func(t *testing.T) {
			e, fake, file := startEngine(t, nil, ports)
			defer func() { _ = e.Drain(t.Context()) }()
			fake.reloadErr = c.fake
			writeFile(t, file, c.settings)
			_, err := e.Reload(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if isConfig := exitCode(err) == service.ExitConfig; isConfig != c.config {
				t.Errorf("%v: exit code %d", err, exitCode(err))
			}
			if len(fake.reloaded) != 0 {
				t.Errorf("the proxy was given %+v", fake.reloaded)
			}
			if st := e.Status(); st.Upstream != "localhost:5672" {
				t.Errorf("status is %+v", st)
			}
			if e.log.Logger().Enabled(t.Context(), -4) {
				t.Error("the log's level was changed")
			}
		})
	}
}

func TestHTTPLivesAsLongAsTheProxy(t *testing.T) {
	free := freePort(t)
	e, fake, _ := startEngine(t, func(f *fakeServer) { f.stuck = true }, "term_timeout = 1\ndrain_timeout = 0\n[[listener]]\nport = 0\n[http]\nport = "+free+"\n")
	url := "http://127.0.0.1:" + free
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(path string) (int, string) {
		res, err := client.Get(url + path)
		if err != nil {
			return 0, err.Error()
		}
		defer func() { _ = res.Body.Close() }()
		body, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(body)
	}
	if code, body := get("/readyz"); code != 200 {
		t.Errorf("/readyz: %d %s", code, body)
	}
	e.draining.Store(true)
	if err := e.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "stopping") {
		t.Errorf("ready while stopping: %v", err)
	}
	if code, body := get("/metrics"); code != 200 || !strings.Contains(body, "amqproxy_upstream_connections 1") {
		t.Errorf("/metrics: %d %s", code, body)
	}
	if err := e.Drain(t.Context()); err != nil {
		t.Errorf("Drain: %v", err)
	}
	within(t, "the fake's end", fake.done)
	if code, _ := get("/healthz"); code != 0 {
		t.Errorf("/healthz answers after the end: %d", code)
	}
}

// A proxy that does not end is cut off term_timeout after the drain's end.
func TestTermTimeout(t *testing.T) {
	for name, c := range map[string]struct {
		term       time.Duration
		cancelled  bool
		want       time.Duration
		closedByIt bool
	}{
		"after drain and term timeout":  {3 * time.Second, false, 23 * time.Second, false},
		"after the second signal":       {3 * time.Second, true, 3 * time.Second, false},
		"at once":                       {0, true, 0, false},
		"never: the engine has its own": {-1, true, time.Hour, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fake := newFake(proxy.Config{})
				fake.stuck = true
				if c.closedByIt {
					time.AfterFunc(time.Hour, func() { _ = fake.Close() })
				}
				e := &engine{server: fake, settings: config.Defaults()}
				e.settings.TermTimeout = c.term
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if c.cancelled {
					cancel()
				}
				began := time.Now()
				if err := e.Drain(ctx); err != nil {
					t.Errorf("Drain: %v", err)
				}
				if took := time.Since(began); took != c.want {
					t.Errorf("took %v, want %v", took, c.want)
				}
			})
		})
	}
}

// With drain_delay clients are still accepted, while /readyz says no; a second request ends it.
func TestDrainDelay(t *testing.T) {
	for name, c := range map[string]struct{ second, want time.Duration }{
		"to its end":       {time.Hour, 5 * time.Second},
		"a second request": {2 * time.Second, 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fake := newFake(proxy.Config{})
				e := &engine{server: fake, settings: config.Defaults()}
				e.settings.DrainDelay = 5 * time.Second
				if got := e.Status().DrainTimeout; got != 25*time.Second {
					t.Errorf("clients may stay for %v", got)
				}
				ctx, cancel := context.WithTimeout(t.Context(), c.second)
				defer cancel()
				began := time.Now()
				drained := make(chan error, 1)
				go func() { drained <- e.Drain(ctx) }()
				synctest.Wait()
				select {
				case <-fake.done:
					t.Error("it has ended already")
				default:
				}
				if e.Ready(t.Context()) == nil {
					t.Error("it says that it is ready")
				}
				if err := <-drained; err != nil {
					t.Errorf("Drain: %v", err)
				}
				if took := time.Since(began); took != c.want {
					t.Errorf("took %v, want %v", took, c.want)
				}
			})
		})
	}
}

func TestWarningsAreLogged(t *testing.T) {
	useFake(t, nil)
	var out strings.Builder
	e, err := openEngine(config.Source{CommandLine: []config.Override{
		{Setting: config.Find("upstream.url"), Value: "amqp://u:s3cr3t@h", Origin: "AMQP_URL"}}},
		logging.Options{Output: &out, Style: logging.StyleJournal})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.log.Close(); err != nil {
		t.Error(err)
	}
	if got, want := out.String(), "<4>AMQP_URL: upstream.url: user and password in the URL ignored: clients bring their own; ps shows the command line to everybody on this machine: leave them away\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestBindErrorKeepsItsCause(t *testing.T) {
	if err := bindError(errTest, "x"); !errors.Is(err, errTest) || err.Error() != errTest.Error() {
		t.Errorf("got %v", err)
	}
}

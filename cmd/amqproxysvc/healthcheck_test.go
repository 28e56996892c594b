package main

import (
	"bytes"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// asked runs the command against a server that answers with what is said.
func asked(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	root := newRootCommand()
	root.SetOut(&out)
	root.SetArgs(append([]string{"healthcheck"}, args...))
	if err := root.Execute(); err != nil {
		complain(&errs, err)
		code = exitCode(err)
	}
	return code, out.String(), errs.String()
}

func TestHealthcheck(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1") // must not be asked
	broker := http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/healthz":
			_, _ = w.Write([]byte("OK\n"))
		case "/readyz":
			w.WriteHeader(broker)
			_, _ = w.Write([]byte("not ready: the broker is away\n"))
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer server.Close()
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if code, out, errs := asked(t, "--http-port", port); code != 0 || out != "OK\n" || errs != "" {
		t.Errorf("a proxy that is well: %d %q %q", code, out, errs)
	}
	if code, out, _ := asked(t, "--http-port", port, "--set", "http.address=0.0.0.0"); code != 0 || out != "OK\n" {
		t.Errorf("one that serves on all addresses: %d %q", code, out)
	}
	broker = http.StatusServiceUnavailable
	if code, _, errs := asked(t, "-b", port, "--ready"); code != 1 || !strings.Contains(errs, "the broker is away") {
		t.Errorf("a broker that is away: %d %q", code, errs)
	}
	server.Close()
	if code, _, errs := asked(t, "-b", port); code != 1 || !strings.Contains(errs, "refused") || strings.Count(errs, "\n") != 1 {
		t.Errorf("nobody there: %d %q", code, errs)
	}
	if code, _, errs := asked(t, "-b", "0"); code != 1 || !strings.Contains(errs, "http.port is 0") {
		t.Errorf("no HTTP port: %d %q", code, errs)
	}
	if code, _, _ := asked(t, "-b", "70000"); code != 64 {
		t.Errorf("a port that there is not: exit code %d, want 64", code)
	}
}

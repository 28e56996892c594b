// The program as a whole: real engine, terminal, settings file, TLS to a stand-in broker.

package main

import (
	"crypto/tls"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

var realEngine = []string{asProgram + "=real"}

func httpGet(t *testing.T, url string) (int, string) {
	t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

func TestWholeProgram(t *testing.T) {
	const secret = "s3cr3t-pass"
	certs, err := proxytest.NewCerts()
	if err != nil {
		t.Fatal(err)
	}
	others, err := proxytest.NewCerts()
	if err != nil {
		t.Fatal(err)
	}
	broker := proxytest.StartBroker(t, proxytest.BrokerConfig{TLS: certs.Server(), Users: map[string]string{"app": secret}})

	dir := t.TempDir()
	file, httpPort := filepath.Join(dir, "amqproxysvc.toml"), freePort(t)
	writeFile(t, filepath.Join(dir, "ca.pem"), string(others.CAPEM)) // not the broker's
	writeFile(t, file, "[[listener]]\nport = 0\n[tls]\nca_file = 'ca.pem'\n[http]\nport = "+httpPort+
		"\n[upstream]\nretry_delay = 0\n[log]\nfile = 'amqproxysvc.log'\nlevel = \"debug\"\n")
	tty, screen := openPTY(t)
	stderr := newOutput()
	host := strings.TrimPrefix(broker.URL(), "amqps://")
	cmd := startProgram(t, nil, stderr, tty, realEngine, "--config", file, "amqps://app:"+secret+"@"+host)
	m := screen.wait(t, `Proxy upstream: `+regexp.QuoteMeta(host)+` TLS\r\nProxy listening on (127\.0\.0\.1:\d+)\r\n`)
	screen.wait(t, `\r0 clients\t\t 0 upstreams`)
	login := proxytest.ClientConfig{Addr: m[1], User: "app", Password: secret}
	metrics := "http://127.0.0.1:" + httpPort

	// A broker whose certificate is nobody's: not ready, and no login gets through.
	if code, body := httpGet(t, metrics+"/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "certificate") {
		t.Errorf("/readyz with another CA: %d %q, want 503 and the reason", code, body)
	}
	if c, err := proxytest.Dial(login); err == nil {
		_ = c.Close()
		t.Error("a login got through to a broker with an unknown certificate")
	}
	if n := broker.Counts().Logins; n != 0 {
		t.Errorf("the broker saw %d logins, want none", n)
	}

	// The right file and a reload.
	writeFile(t, filepath.Join(dir, "ca.pem"), string(certs.CAPEM))
	if err := cmd.Process.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	screen.wait(t, `configuration reloaded`)
	for range 2 {
		c, err := proxytest.Dial(login)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
	}
	screen.wait(t, `\r2 clients\t\t 1 upstreams`)
	if code, body := httpGet(t, metrics+"/readyz"); code != http.StatusOK {
		t.Errorf("/readyz: %d %q", code, body)
	}
	code, body := httpGet(t, metrics+"/metrics")
	for _, want := range []string{
		"amqproxy_client_connections 2", "amqproxy_upstream_connections 1", `amqproxysvc_logins_total{result="ok"} 2`,
		"amqproxysvc_reuse_hits_total 1", `amqproxysvc_pool_upstreams{user="app",vhost="/"} 1`,
		"amqproxysvc_upstream_connect_seconds_count 1",
	} {
		if !strings.Contains(body, "\n"+want+"\n") {
			t.Errorf("/metrics: %d, lacks %q", code, want)
		}
	}
	bird := proxytest.NewCanary(t, login)
	bird.Sing()
	// A wrong password is refused as the broker does it.
	wrong := login
	wrong.Password = secret + "x"
	if c, err := proxytest.Dial(wrong); err == nil {
		_ = c.Close()
		t.Error("a wrong password was accepted")
	}
	bird.Sing()

	began := time.Now()
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	screen.wait(t, `Stopping: \d clients have 20s to finish; Ctrl-C again ends at once\.`)
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	again := time.NewTicker(1500 * time.Millisecond) // soon after the first it is still the first
	defer again.Stop()
	for running := true; running; {
		select {
		case <-again.C:
			if !strings.Contains(screen.String(), "asked to stop a second time") { // a further one may find nobody who heeds it
				_ = cmd.Process.Signal(unix.SIGTERM) // the canary stays: a second request ends it at once
			}
		case <-exited:
			running = false
		}
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("a second signal ended it after %v, want at once", took)
	}
	screen.wait(t, `\r0 clients\t\t 0 upstreams *\r\n$`)
	log, err := os.ReadFile(filepath.Join(dir, "amqproxysvc.log"))
	if err != nil || len(log) == 0 {
		t.Errorf("the log file holds %d bytes, %v", len(log), err)
	}
	if said := screen.String() + stderr.String() + string(log) + body; strings.Contains(said, secret) {
		t.Errorf("the password was told: %s", said)
	}
}

// The documented TLS floor: a broker that speaks nothing newer than 1.1 is refused.
func TestOldTLSIsRefused(t *testing.T) {
	certs, err := proxytest.NewCerts()
	if err != nil {
		t.Fatal(err)
	}
	server := certs.Server()
	server.MinVersion, server.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	broker := proxytest.StartBroker(t, proxytest.BrokerConfig{TLS: server})
	dir, httpPort := t.TempDir(), freePort(t)
	ca := filepath.Join(dir, "ca.pem")
	writeFile(t, ca, string(certs.CAPEM))
	stdout, stderr := newOutput(), newOutput()
	cmd := startProgram(t, stdout, stderr, nil, realEngine, "-p", "0", "-b", httpPort, "--set", "tls.ca_file="+ca, broker.URL())
	stdout.wait(t, `HTTP server listening`)
	if code, body := httpGet(t, "http://127.0.0.1:"+httpPort+"/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "protocol version") {
		t.Errorf("/readyz: %d %q, want 503 and the reason", code, body)
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ended(t, cmd, 0, stdout, stderr)
}

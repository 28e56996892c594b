// Metrics and health as a scraper and a prober see them.

package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/advice"
)

// fake is a Source.
type fake struct {
	stats proxy.Stats
	ready func(context.Context) error
	asked atomic.Int32
}

func (f *fake) Stats() proxy.Stats { return f.stats }

func (f *fake) BeforeUpgrade() *Before {
	return &Before{PID: 7, Clients: 3, Until: time.Unix(1_900_000_000, 0)}
}

func (f *fake) Ready(ctx context.Context) error {
	f.asked.Add(1)
	if f.ready == nil {
		return nil
	}
	return f.ready(ctx)
}

func get(t *testing.T, h http.Handler, target string) (code int, body string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://127.0.0.1"+target, nil))
	return w.Code, w.Body.String()
}

func TestMetrics(t *testing.T) {
	f := &fake{stats: proxy.Stats{
		LocalOK: 42, LocalRefused: 43, Tokens: []proxy.TokenStats{{User: "shop", Ends: time.Unix(3000, 0)}},
		Started: time.Unix(1000, 0), BrokerUp: true, UpstreamsBlocked: 32, Clients: 3, Upstreams: 2, Channels: 5, Bindings: 4, Kept: 27, ChannelsOpened: 28, ChannelsReused: 29, ChannelBarriers: 30, ChannelsNotReused: [6]uint64{0, 31}, Identities: 2, Waiting: 1,
		Barred: 44, Limits: []proxy.LimitStats{{By: "user", Limit: "max_clients", Done: [3]uint64{1, 2, 3}}}, LimitKeys: [4]int{9, -1, -1, -1},
		LongestWait: 1500 * time.Millisecond, ClientsTotal: 10, UpstreamsTotal: 11, LoginsOK: 12, LoginsRefused: 13,
		LoginsFailed: 14, ReuseHits: 15, BytesFromClients: 16, BytesToClients: 17, BytesFromUpstreams: 18,
		BytesToUpstreams: 19, FramesFromClients: 20, FramesFromUpstreams: 21, LateErrors: 22, SlowClientCloses: 23,
		FirewallCloses: 24, HeartbeatTimeouts: 25, UpstreamsLost: 26,
		ConnectLatencySum: 250 * time.Millisecond,
		Pools:             []proxy.PoolStats{{User: `a"b`, VHost: "/", Upstreams: 2, Idle: 1, Sessions: 1, Channels: 5, Waiting: 1}},
		Targets:           []proxy.TargetStats{{Address: "a:5671", Up: true, Links: 52, Connects: 53, Failures: 54}, {Address: "b:5671", Outs: [2]uint64{55, 56}}},
		Brokers:           []proxy.BrokerStats{{Name: "green"}, {Name: "red", Up: true}},
		Listeners: []proxy.ListenerStats{{Address: "127.0.0.1:5673"}, {Address: "[::]:5671", TLSHandshakes: []uint64{33, 34, 35, 36, 37}, ProxyHeaders: []uint64{38, 39, 40, 41, 42},
			Certificates: []proxy.CertificateStats{{File: "/a.pem", NotAfter: time.Unix(2000, 0)}, {File: "/a.pem", NotAfter: time.Unix(2000, 0)}}}},
	}}
	f.stats.Waits.Counts[len(proxy.WaitBounds)], f.stats.Waits.Sum = 7, 1500*time.Millisecond
	f.stats.FirstFrames.Counts[len(proxy.WaitBounds)] = 8
	f.stats.ConnectionErrors[0], f.stats.ChannelErrors[len(proxy.ErrorCodes)-1] = 5, 6
	f.stats.Listeners[0].Clients, f.stats.Listeners[0].Accepted = 3, 4
	f.stats.Advice = []advice.Advice{
		{App: advice.App{User: "shop", VHost: "/", Name: "a"}, Rule: "polling"}, {App: advice.App{User: "shop", VHost: "/", Name: "b"}, Rule: "polling"}}
	for i := range f.stats.ConnectLatency {
		f.stats.ConnectLatency[i] = uint64(i)
	}
	code, body := get(t, Handler(Options{Source: f, Version: "1.2.3"}), "/metrics")
	if code != http.StatusOK {
		t.Fatalf("got %d", code)
	}
	for _, want := range []string{
		"amqproxy_client_connections 3",
		"amqproxy_upstream_connections 2",
		"amqproxysvc_start_time_seconds 1000",
		"amqproxysvc_clients 3",
		"amqproxysvc_upstreams 2",
		"amqproxysvc_upstreams_blocked 32",
		"amqproxysvc_broker_up 1\n", `amqproxysvc_broker_up{broker="green"} 0`, `amqproxysvc_broker_up{broker="red"} 1`,
		`amqproxysvc_target_up{target="a:5671"} 1`, `amqproxysvc_target_up{target="b:5671"} 0`, `amqproxysvc_target_upstreams{target="a:5671"} 52`,
		`amqproxysvc_target_connects_total{target="a:5671"} 53`, `amqproxysvc_target_failures_total{target="a:5671"} 54`,
		`amqproxysvc_target_outs_total{reason="connect",target="b:5671"} 55`, `amqproxysvc_target_outs_total{reason="drain",target="b:5671"} 56`,
		"amqproxysvc_client_channels 5",
		"amqproxysvc_upstream_channels 4",
		"amqproxysvc_identities 2",
		"amqproxysvc_waiting_clients 1",
		"amqproxysvc_longest_wait_seconds 1.5",
		"amqproxysvc_clients_total 10",
		"amqproxysvc_upstreams_total 11",
		`amqproxysvc_logins_total{result="ok"} 12`,
		`amqproxysvc_logins_total{result="refused"} 13`,
		`amqproxysvc_logins_total{result="failed"} 14`,
		"amqproxysvc_reuse_hits_total 15",
		`amqproxysvc_received_bytes_total{from="clients"} 16`,
		`amqproxysvc_sent_bytes_total{to="clients"} 17`,
		`amqproxysvc_received_bytes_total{from="upstreams"} 18`,
		`amqproxysvc_sent_bytes_total{to="upstreams"} 19`,
		`amqproxysvc_received_frames_total{from="clients"} 20`,
		`amqproxysvc_received_frames_total{from="upstreams"} 21`,
		"amqproxysvc_idle_channels 27",
		"amqproxysvc_channels_opened_total 28",
		"amqproxysvc_channels_reused_total 29",
		"amqproxysvc_channel_barriers_total 30",
		`amqproxysvc_channels_not_reused_total{reason="consumed"} 31`,
		"amqproxysvc_late_errors_total 22",
		"amqproxysvc_slow_client_closes_total 23",
		"amqproxysvc_firewall_closes_total 24",
		"amqproxysvc_heartbeat_timeouts_total 25",
		"amqproxysvc_upstreams_lost_total 26",
		`amqproxysvc_upstream_connect_seconds_bucket{le="0.001"} 0`,
		`amqproxysvc_upstream_connect_seconds_bucket{le="5"} 11`,
		`amqproxysvc_upstream_connect_seconds_bucket{le="+Inf"} 12`,
		"amqproxysvc_upstream_connect_seconds_sum 0.25",
		"amqproxysvc_upstream_connect_seconds_count 12",
		`amqproxysvc_pool_upstreams{user="a\"b",vhost="/"} 2`,
		`amqproxysvc_pool_idle_upstreams{user="a\"b",vhost="/"} 1`,
		`amqproxysvc_pool_session_upstreams{user="a\"b",vhost="/"} 1`,
		`amqproxysvc_pool_channels{user="a\"b",vhost="/"} 5`,
		`amqproxysvc_pool_waiting_clients{user="a\"b",vhost="/"} 1`,
		`amqproxysvc_tls_handshakes_total{listener="[::]:5671",result="ok"} 33`,
		`amqproxysvc_tls_handshakes_total{listener="[::]:5671",result="expired"} 37`,
		`amqproxysvc_proxy_headers_total{listener="[::]:5671",result="untrusted"} 41`,
		`amqproxysvc_certificate_expiry_timestamp_seconds{file="/a.pem",listener="[::]:5671"} 2000`,
		`amqproxysvc_local_logins_total{result="ok"} 42`,
		`amqproxysvc_local_logins_total{result="refused"} 43`,
		`amqproxysvc_token_expiry_timestamp_seconds{user="shop"} 3000`,
		`amqproxysvc_advice{rule="polling",user="shop",vhost="/"} 1`,
		`amqproxysvc_limited_total{action="refused",by="user",limit="max_clients"} 1`, `amqproxysvc_limited_total{action="alarm",by="user",limit="max_clients"} 3`,
		`amqproxysvc_limit_keys{by="user"} 9`, "amqproxysvc_barred_total 44",
		`amqproxysvc_wait_seconds_bucket{le="60"} 0`,
		`amqproxysvc_wait_seconds_bucket{le="+Inf"} 7`,
		"amqproxysvc_wait_seconds_sum 1.5",
		"amqproxysvc_first_frame_seconds_count 8",
		`amqproxysvc_errors_total{code="311",of="connection"} 5`,
		`amqproxysvc_errors_total{code="other",of="channel"} 6`,
		`amqproxysvc_listener_clients{listener="127.0.0.1:5673"} 3`,
		`amqproxysvc_listener_clients_total{listener="127.0.0.1:5673"} 4`,
		`amqproxysvc_build_info{goversion="go`,
		"go_goroutines ",
	} {
		if !strings.Contains(body, "\n"+want) {
			t.Errorf("metrics lack %q", want)
		}
	}
	for _, name := range Names() {
		if !strings.Contains(body, "# HELP "+name+" ") || !strings.Contains(body, "# TYPE "+name+" ") {
			t.Errorf("%s has no help or type", name)
		}
	}
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "amqproxysvc_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

func TestPoolsAreBounded(t *testing.T) {
	pools := []proxy.PoolStats{
		{User: "same", VHost: "/", Upstreams: 1, Channels: 10},
		{User: "same", VHost: "/", Upstreams: 2, Channels: 20}, // another password
		{User: "bad\xff", VHost: "/", Upstreams: 1},
		{User: "bad\xfe", VHost: "/", Upstreams: 1}, // the same once it is text
	}
	for i := range 300 {
		pools = append(pools, proxy.PoolStats{User: fmt.Sprintf("u%03d", i), VHost: "v", Upstreams: 1, Channels: 1, Idle: 1})
	}
	got := boundPools(pools, 100)
	if len(got) != 101 {
		t.Fatalf("%d pools, want 100 and one for the others", len(got))
	}
	sum := proxy.PoolStats{}
	seen := map[string]bool{}
	for _, p := range got {
		key := p.User + "\x00" + p.VHost
		if seen[key] {
			t.Errorf("%q comes twice", key)
		}
		seen[key] = true
		sum.Upstreams += p.Upstreams
		sum.Channels += p.Channels
		sum.Idle += p.Idle
	}
	if sum.Upstreams != 305 || sum.Channels != 330 || sum.Idle != 300 {
		t.Errorf("sums are %+v, want nothing lost", sum)
	}
	if p := got[0]; p.User != "same" || p.Upstreams != 3 || p.Channels != 30 {
		t.Errorf("first is %+v, want both pools of that user", p)
	}
	if p := got[100]; p.User != otherPools || p.Upstreams != 202 {
		t.Errorf("last is %+v, want the 202 others", p)
	}
	// A scrape with all of that must succeed.
	code, body := get(t, Handler(Options{Source: &fake{stats: proxy.Stats{Pools: pools}}}), "/metrics")
	if n := strings.Count(body, "\namqproxysvc_pool_upstreams{"); code != http.StatusOK || n != maxPools+1 {
		t.Errorf("got %d with %d pools, want %d", code, n, maxPools+1)
	}
}

func TestHealth(t *testing.T) {
	f := &fake{}
	h := Handler(Options{Source: f, Version: "1"})
	for target, want := range map[string]struct {
		code int
		body string
	}{
		"/healthz":      {200, "OK\n"},
		"/readyz":       {200, "OK\n"},
		"/":             {200, "amqproxysvc 1: /metrics /healthz /readyz\n"},
		"/nothing":      {404, "404 page not found\n"},
		"/debug/pprof/": {404, "404 page not found\n"},
	} {
		if code, body := get(t, h, target); code != want.code || body != want.body {
			t.Errorf("%s: got %d %q, want %d %q", target, code, body, want.code, want.body)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "http://127.0.0.1/metrics", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST /metrics: got %d, want 405", w.Code)
	}
	if code, body := get(t, Handler(Options{Source: f, Pprof: true}), "/debug/pprof/"); code != 200 || !strings.Contains(body, "goroutine") {
		t.Errorf("pprof switched on: got %d", code)
	}
	if _, body := get(t, Handler(Options{Source: f, Pprof: true}), "/debug/pprof/cmdline"); strings.Contains(body, os.Args[0]) {
		t.Error("pprof tells the command line")
	}
}

func TestNotReady(t *testing.T) {
	f := &fake{ready: func(context.Context) error { return errors.New("dial tcp 127.0.0.1:1:\nconnection refused") }}
	h := Handler(Options{Source: f})
	code, body := get(t, h, "/readyz")
	if want := "not ready: dial tcp 127.0.0.1:1:; connection refused\n"; code != http.StatusServiceUnavailable || body != want {
		t.Errorf("got %d %q, want 503 %q", code, body, want)
	}
	if code, _ := get(t, h, "/healthz"); code != http.StatusOK {
		t.Errorf("/healthz: got %d, want 200: the process lives", code)
	}
}

// However many probe, the broker is asked once at a time and once a second.
func TestReadyIsAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{ready: func(context.Context) error { time.Sleep(100 * time.Millisecond); return nil }}
		h := Handler(Options{Source: f})
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if code, _ := get(t, h, "/readyz"); code != http.StatusOK {
					t.Errorf("got %d", code)
				}
			})
		}
		all.Wait()
		if n := f.asked.Load(); n != 1 {
			t.Errorf("asked %d times, want once", n)
		}
		time.Sleep(readyTTL)
		get(t, h, "/readyz")
		if n := f.asked.Load(); n != 2 {
			t.Errorf("asked %d times, want twice: the first answer is old", n)
		}
	})
}

func TestReadyIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{ready: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
		began := time.Now()
		code, _ := get(t, Handler(Options{Source: f}), "/readyz")
		if took := time.Since(began); code != http.StatusServiceUnavailable || took != readyTimeout {
			t.Errorf("got %d after %v, want 503 after %v", code, took, readyTimeout)
		}
	})
}

func TestServeAndShutdown(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{Source: &fake{}})
	s.Serve(ln)
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	res, err := client.Get("http://" + ln.Addr().String() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if string(body) != "OK\n" {
		t.Errorf("got %q", body)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if _, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		t.Error("the port is still open")
	}
}

// Who has come before the end, and asks after it has begun, has an answer.
func TestShutdownAnswersWhoHasCome(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{Source: &fake{}})
	s.Serve(ln)
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for !s.limited.holds() {
		time.Sleep(time.Millisecond)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Shutdown(t.Context()) }()
	for open := true; open; {
		another, err := net.Dial("tcp", ln.Addr().String())
		if open = err == nil; open {
			_ = another.Close()
		}
	}
	if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(c); err != nil || !strings.HasSuffix(string(answer), "OK\n") {
		t.Errorf("got %q, %v", answer, err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// At the bound the longest idle connection gives way; where none is idle the new one goes.
func TestConnectionsAreBounded(t *testing.T) {
	inner, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = inner.Close() }()
	ln := newLimitListener(inner, 2)
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp4", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	accept := func() net.Conn {
		t.Helper()
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	firstClient := dial()
	first := accept()
	dial()
	second := accept()
	second.(*limitConn).begins(true) // it is being answered
	dial()
	third := accept()
	if told, err := io.ReadAll(firstClient); err != nil || string(told) != string(ln.told) {
		t.Errorf("the connection that is waited for did not give way with a word: %q, %v", told, err)
	}
	third.(*limitConn).begins(true)
	refused := dial() // both are busy now
	ended := make(chan struct{})
	go func() { defer close(ended); _, _ = ln.Accept() }()
	if told, err := io.ReadAll(refused); err != nil || !strings.HasPrefix(string(told), "HTTP/1.1 503 ") || !strings.HasSuffix(string(told), "\r\n\r\n2 connections are held already: ask again later\n") {
		t.Errorf("a connection without a place was told %q, %v", told, err)
	}
	_ = first.Close()
	_ = second.Close()
	_ = second.Close() // a second Close frees no second place
	_ = third.Close()
	if n := len(ln.held[0]) + len(ln.held[1]); n != 0 {
		t.Errorf("%d places are taken when all have gone", n)
	}
	_ = ln.Close()
	<-ended
}

// Strangers' connections take no place of those of this machine.
func TestPlacesForThisMachine(t *testing.T) {
	ln := newLimitListener(nil, 1)
	stranger, local := &fakeConn{"192.0.2.1"}, &fakeConn{"127.0.0.1"}
	first, _ := ln.place(stranger)
	if first == nil {
		t.Fatal("a stranger has no place")
	}
	first.begins(true)
	if c, told := ln.place(stranger); c != nil || told != stranger {
		t.Error("the bound of strangers is not kept")
	}
	if c, _ := ln.place(local); c == nil {
		t.Error("a stranger took this machine's place")
	}
}

type fakeConn struct{ ip string }

func (c *fakeConn) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.ParseIP(c.ip), Port: 1} }
func (c *fakeConn) LocalAddr() net.Addr              { return nil }
func (c *fakeConn) Close() error                     { return nil }
func (c *fakeConn) Read([]byte) (int, error)         { return 0, io.EOF }
func (c *fakeConn) Write([]byte) (int, error)        { return 0, io.EOF }
func (c *fakeConn) SetDeadline(time.Time) error      { return nil }
func (c *fakeConn) SetReadDeadline(time.Time) error  { return nil }
func (c *fakeConn) SetWriteDeadline(time.Time) error { return nil }

// Keep-alive connections that do nothing, as many as there are places, leave the probe its answer.
func TestIdleConnectionsDoNotHoldUpAProbe(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{Source: &fake{}})
	s.Serve(ln)
	defer func() { _ = s.Shutdown(context.Background()) }()
	for range maxConns {
		c, err := net.Dial("tcp4", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 512)); err != nil {
			t.Fatal(err)
		}
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://" + ln.Addr().String() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
}

func TestHostHeader(t *testing.T) {
	h := Handler(Options{Source: &fake{}, Hosts: "proxy.example.com, metrics"})
	own, _ := os.Hostname()
	for host, want := range map[string]int{
		"127.0.0.1:15673": 200, "[::1]:15673": 200, "localhost": 200, "10.1.2.3": 200, "": 200, "Proxy.Example.com:15673": 200, "metrics": 200, own: 200,
		"evil.example": 421, "localhost.evil.example": 421, "127.0.0.1.evil.example:15673": 421,
	} {
		req := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		req.Host = host
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		if w.Code != want {
			t.Errorf("Host %q: got %d, want %d", host, w.Code, want)
		}
	}
}

func TestProfilesAreBounded(t *testing.T) {
	h := Handler(Options{Source: &fake{}, Pprof: true})
	for _, target := range []string{"profile?seconds=100000", "trace?seconds=61", "profile?seconds=-1", "trace?seconds=NaN", "profile?seconds=x"} {
		if code, body := get(t, h, "/debug/pprof/"+target); code != http.StatusBadRequest || !strings.Contains(body, "allowed is 0 to 60") {
			t.Errorf("%s: got %d %q", target, code, body)
		}
	}
}

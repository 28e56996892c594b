// The live page: what it serves, to whom, and that it ends.

package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
)

// looked is one GET as a browser makes it.
func looked(h http.Handler, target string, change func(*http.Request)) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	req := httptest.NewRequest(http.MethodGet, "http://127.0.0.1"+target, nil)
	req.Header.Set("Accept", "text/html,*/*")
	if change != nil {
		change(req)
	}
	h.ServeHTTP(w, req)
	return w
}

func TestPage(t *testing.T) {
	l := &listed{}
	h := Handler(Options{Source: l, Lister: l, Version: "1"})
	for target, want := range map[string]string{
		"/":                    "<title>amqproxysvc</title>",
		"/page.js":             `"use strict"`,
		"/page.css":            "prefers-color-scheme",
		"/api/v1/clients":      `"clients":[{"id":1`,
		"/api/v1/pools":        `"pools":[`,
		"/api/v1/upstreams":    `"upstreams":[{"id":7`,
		"/api/v1/stats":        `"schema":1`,
		"/api/v1/clients?user": `"total":1`,
	} {
		w := looked(h, target, nil)
		if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: got %d %.200s, want %q", target, w.Code, w.Body, want)
		}
		if csp := w.Header().Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'; script-src 'self'") {
			t.Errorf("%s: Content-Security-Policy is %q", target, csp)
		}
	}
	html := looked(h, "/", nil).Body.String()
	for _, bad := range []string{"http://", "https://", "<style", "onclick", "style="} {
		if strings.Contains(html, bad) {
			t.Errorf("the page has %q, which its policy forbids or which leads elsewhere", bad)
		}
	}
	// What changes something, and the settings, are not for the page.
	for _, target := range []string{"/api/v1/kick?client=1", "/api/v1/reconnect", "/api/v1/config"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "http://127.0.0.1"+target, nil))
		if w.Code < 400 || len(l.kicked)+len(l.reconnected) > 0 {
			t.Errorf("POST %s: got %d", target, w.Code)
		}
	}
	if w := looked(h, "/", func(r *http.Request) { r.Header.Set("Accept", "*/*") }); w.Body.String() != "amqproxysvc 1: /metrics /healthz /readyz\n" {
		t.Errorf("a probe of / hears %q", w.Body)
	}
	if w := looked(h, "/", func(r *http.Request) { r.Host = "evil.example" }); w.Code != http.StatusMisdirectedRequest {
		t.Errorf("a foreign Host: got %d", w.Code)
	}
	none := Handler(Options{Source: l})
	for _, target := range []string{"/page.js", "/live", "/api/v1/clients"} {
		if w := looked(none, target, nil); w.Code != http.StatusNotFound {
			t.Errorf("without a page %s: got %d, want 404", target, w.Code)
		}
	}
}

func TestPagePassword(t *testing.T) {
	l := &listed{}
	h := Handler(Options{Source: l, Lister: l, Password: "right"})
	with := func(password, from string) func(*http.Request) {
		return func(r *http.Request) {
			r.RemoteAddr = from
			if password != "" {
				r.SetBasicAuth("any", password)
			}
		}
	}
	for _, target := range []string{"/", "/page.js", "/api/v1/clients", "/live"} {
		if w := looked(h, target, with("", "192.0.2.1:1")); w.Code != http.StatusUnauthorized || strings.Contains(w.Body.String(), "id") {
			t.Errorf("%s without a password: got %d %s", target, w.Code, w.Body)
		}
	}
	for _, target := range []string{"/metrics", "/healthz"} {
		if w := looked(h, target, with("", "192.0.2.1:1")); w.Code != http.StatusOK {
			t.Errorf("%s asks for a password: %d", target, w.Code)
		}
	}
	if w := looked(h, "/api/v1/clients", with("right", "192.0.2.1:1")); w.Code != http.StatusOK {
		t.Errorf("the right password: got %d", w.Code)
	}
	for n := range passwordTries + 1 {
		w := looked(h, "/api/v1/clients", with("wrong", "192.0.2.1:1"))
		if want := http.StatusUnauthorized; n < passwordTries && w.Code != want {
			t.Errorf("wrong password %d: got %d, want %d", n, w.Code, want)
		} else if n == passwordTries && w.Code != http.StatusTooManyRequests {
			t.Errorf("one too many: got %d, want 429", w.Code)
		}
	}
	if w := looked(h, "/api/v1/clients", with("right", "192.0.2.2:1")); w.Code != http.StatusOK {
		t.Errorf("another address pays for it: got %d", w.Code)
	}
	// Whoever has one IPv6 address has a whole network of them, and several tries at a time are as many.
	var refused atomic.Int32
	var wg sync.WaitGroup
	for n := range 10 * passwordTries {
		wg.Go(func() {
			if w := looked(h, "/api/v1/clients", with("wrong", fmt.Sprintf("[2001:db8::%x]:1", n))); w.Code == http.StatusUnauthorized {
				refused.Add(1)
			}
		})
	}
	wg.Wait()
	if n := refused.Load(); n != passwordTries {
		t.Errorf("%d passwords of one network were looked at, want %d", n, passwordTries)
	}
	if w := looked(h, "/api/v1/clients", with("right", "[2001:db8:0:1::1]:1")); w.Code != http.StatusOK {
		t.Errorf("another network pays for it: got %d", w.Code)
	}
}

// The stream goes on beyond the server's bounds on an answer, tells counts that are new, is
// bounded in number, and ends with the server.
func TestLive(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &listed{}
	s := New(Options{Source: l, Lister: l, Version: "1"})
	s.http.ReadTimeout, s.http.WriteTimeout = 20*time.Millisecond, 20*time.Millisecond
	s.Serve(ln)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	open := func() *http.Response {
		t.Helper()
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+ln.Addr().String()+"/live", nil)
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = res.Body.Close() })
		return res
	}
	first := open()
	lines := bufio.NewReader(first.Body)
	for n := range 3 {
		line, err := lines.ReadString('\n')
		for ; err == nil && line == "\n"; line, err = lines.ReadString('\n') {
		}
		var e struct {
			Time  float64
			Stats Stats
			Pools []Pool
		}
		if err != nil || json.Unmarshal([]byte(strings.TrimPrefix(line, "data: ")), &e) != nil || e.Stats.Version != "1" {
			t.Fatalf("event %d is %q, %v", n, line, err)
		}
	}
	for range maxLive - 1 {
		if res := open(); res.StatusCode != http.StatusOK {
			t.Fatalf("a page below the bound: %d", res.StatusCode)
		}
	}
	if res := open(); res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a page beyond the bound: %d", res.StatusCode)
	}
	if err := s.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	for {
		if _, err := lines.ReadString('\n'); err != nil {
			return
		}
	}
}

// What the page reads of an event is there: a name that it does not find would show nothing.
func TestPageReadsWhatThereIs(t *testing.T) {
	script, err := pageFiles.ReadFile("page/page.js")
	if err != nil {
		t.Fatal(err)
	}
	if len(script) > 15_000 {
		t.Errorf("page.js has %d octets, at most 15 kB are wanted", len(script))
	}
	full := Stats{BrokerReason: "x", Pauses: []Pause{{VHost: "v", Left: 1}}, Listeners: []Listener{{}}, Errors: []ErrorCount{{}}}
	said, err := json.Marshal([]any{full, Client{}, Upstream{Client: 1}, Pool{}, Advice{}})
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`\b(?:[spculea]|stats)\.([a-z_]+_[a-z_]+|pauses|listeners|brokers|errors|code|count|of|all|vhost|tls|address)\b`)
	found := named.FindAllStringSubmatch(string(script), -1)
	if len(found) < 50 {
		t.Errorf("only %d names are read", len(found))
	}
	for _, m := range found {
		if !strings.Contains(string(said), `"`+m[1]+`":`) {
			t.Errorf("page.js reads %s, which no answer has", m[0])
		}
	}
}

// The page tells of several brokers and of routes, and of the only broker nothing beside its tile.
func TestPathsOf(t *testing.T) {
	one := proxy.Stats{Targets: []proxy.TargetStats{{Address: "a:5672", Up: true}}}
	if got := pathsOf(&one); got == nil || len(got) != 0 {
		t.Errorf("of one broker: %q", got)
	}
	one.Targets = append(one.Targets, proxy.TargetStats{Broker: "green", Address: "g:5672", Since: time.Now().Add(-5 * time.Second), Reason: "connection refused"})
	one.Routes = []proxy.Route{{VHost: "shop", Broker: "green", Durable: true, QueueType: "quorum"}, {VHost: "x*", ToVHost: "y"}}
	want := []path{{"a:5672: connections: 0", ""}, {"green g:5672: out for 5s: connection refused", "bad"},
		{`vhost "shop" to green, queues durable quorum`, ""}, {`vhost "x*" to [upstream], vhost "y"`, ""}}
	if got := pathsOf(&one); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// However many pages are opened, those beyond the bound are told so at once, and hold nothing.
func TestAThousandPages(t *testing.T) {
	l := &listed{}
	p := newPage(l, "1", "")
	mux := http.NewServeMux()
	p.routes(mux, func(http.ResponseWriter, *http.Request) {})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var codes sync.Map
	var streams sync.WaitGroup
	full := make(chan struct{}, 1000)
	for range 1000 {
		streams.Go(func() {
			w := httptest.NewRecorder()
			mux.ServeHTTP(deadlines{w}, httptest.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1/live", nil))
			n, _ := codes.LoadOrStore(w.Code, new(atomic.Int32))
			n.(*atomic.Int32).Add(1)
			if w.Code == http.StatusServiceUnavailable {
				if !strings.Contains(w.Body.String(), "8 pages are looked at already") {
					t.Errorf("beyond the bound: %q", w.Body)
				}
				full <- struct{}{}
			}
		})
	}
	for range 1000 - maxLive {
		<-full
	}
	cancel()
	streams.Wait()
	if p.live != 0 {
		t.Errorf("%d places are held when all have gone", p.live)
	}
	if n, ok := codes.Load(http.StatusOK); !ok || n.(*atomic.Int32).Load() != maxLive {
		t.Errorf("pages served: %v, want %d", n, maxLive)
	}
}

// deadlines lets a recorder have them.
type deadlines struct{ *httptest.ResponseRecorder }

func (deadlines) SetReadDeadline(time.Time) error  { return nil }
func (deadlines) SetWriteDeadline(time.Time) error { return nil }

// The admin channel's verbs: who may, what is refused, what is answered.

package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/advice"
)

// listed is a Lister.
type listed struct {
	fake
	kicked, reconnected []any
	traced              []proxy.TraceWanted
	closed              bool // the trace
	paused              []any
	reloads             int
	reloadErr           error
	upgradeErr          error
	before              *Before
}

func (l *listed) ListClients() []proxy.ClientInfo {
	return []proxy.ClientInfo{
		{ID: 1, User: "a", VHost: "/", Address: "127.0.0.1:1000", State: proxy.ClientRunning, Channels: 2, Bound: 2, Upstreams: []uint64{7}, In: 10, Out: 20, Age: 1500 * time.Millisecond},
		{ID: 2, User: "b", VHost: "v", Address: "[::1]:1000", State: proxy.ClientWaiting, Session: true, Waiting: 3 * time.Second},
		{ID: 3, Address: "192.0.2.1:5", State: proxy.ClientConnecting},
	}
}

func (l *listed) ListUpstreams() []proxy.UpstreamInfo {
	return []proxy.UpstreamInfo{{ID: 7, Broker: "192.0.2.9:5672", User: "a", VHost: "/", State: proxy.UpstreamShared, Lane: "publish", Channels: 2}}
}

func (l *listed) Kick(id uint64, user string) int {
	l.kicked = append(l.kicked, id, user)
	if id == 99 {
		return 0
	}
	return 1
}

func (l *listed) Reconnect(id uint64, user string) int {
	l.reconnected = append(l.reconnected, id, user)
	return 2
}

func (l *listed) Balance() int { return 4 }

func (l *listed) Pause(vhost string, all bool, most time.Duration) int {
	l.paused = append(l.paused, vhost, all, most)
	return 3
}

func (l *listed) Resume(vhost string, all bool) bool {
	l.paused = append(l.paused, vhost, all)
	return vhost != "never"
}

// told is a Tracer that has it all at once.
type told struct {
	proxy.ClientInfo
	frames []proxy.TracedFrame
	lost   uint64
	closed *bool
}

func (t *told) Client() proxy.ClientInfo { return t.ClientInfo }
func (t *told) ProxyAddress() string     { return "127.0.0.1:5673" }
func (t *told) Close()                   { *t.closed = true }
func (t *told) Next(context.Context) ([]proxy.TracedFrame, uint64, error) {
	frames, lost := t.frames, t.lost
	if frames == nil {
		return nil, 0, io.EOF
	}
	t.frames, t.lost = nil, 0
	return frames, lost, nil
}

func (l *listed) Trace(_ context.Context, w proxy.TraceWanted) (Tracer, error) {
	l.traced = append(l.traced, w)
	if w.Client == 99 {
		return nil, errors.New("there is no client 99")
	}
	return &told{l.ListClients()[0], []proxy.TracedFrame{
		{At: time.Unix(1, 5000), FromClient: true, Type: 1, Channel: 1, Size: 5, Payload: []byte("\x00\x14\x00\x0a\x00")},
		{At: time.Unix(2, 0), Channel: 1, Seat: proxy.TracedSeat{Upstream: 7, Channel: 3}},
		{At: time.Unix(2, 0), FromClient: true, Type: 3, Channel: 1, Seat: proxy.TracedSeat{Upstream: 7, Channel: 3}, Size: 400, Payload: []byte("gr\xc3")},
		{At: time.Unix(3, 0), Type: 8},
	}, 5, &l.closed}, nil
}

func (l *listed) ListLimits(most int, which func(proxy.LimitBy, string) bool) ([]proxy.Limit, []proxy.LimitKeyInfo, int) {
	limit := proxy.Limit{By: proxy.ByUser, Match: "*", MaxClients: 5, ConnectRate: proxy.Rate{N: 30, Per: time.Minute}}
	keys := []proxy.LimitKeyInfo{{Key: "a", Limit: limit, Clients: 5, Refused: 2}, {Key: "b", Limit: limit}}
	keys = slices.DeleteFunc(keys, func(k proxy.LimitKeyInfo) bool { return !which(proxy.ByUser, k.Key) })
	return []proxy.Limit{limit}, keys[:min(most, len(keys))], len(keys)
}

func (l *listed) Settings() []Setting { return []Setting{{"http.port", "1", "a.toml:3"}} }

func (l *listed) ReloadNow(context.Context) (Reload, error) {
	l.reloads++
	return Reload{Changed: []string{"max_clients"}}, l.reloadErr
}

func (l *listed) UpgradeNow(context.Context) (int, error) { return 4711, l.upgradeErr }

func (l *listed) BeforeUpgrade() *Before { return l.before }

func (l *listed) State() any { return map[string]int{"pid": 42} }

// asks is one request by a peer.
func asks(h http.Handler, method, target string, peer *Peer) (code int, body string) {
	w := httptest.NewRecorder()
	req := httptest.NewRequest(method, "http://admin"+target, nil)
	if peer != nil {
		req = req.WithContext(WithPeer(req.Context(), *peer))
	}
	h.ServeHTTP(w, req)
	return w.Code, w.Body.String()
}

var looks, changes = &Peer{Look, "uid 1000"}, &Peer{Change, "uid 0"}

// Every verb is for its role and those above, for its method, and for nobody unknown.
func TestRoles(t *testing.T) {
	query := map[string]string{"kick": "?client=1", "trace": "?client=1"}
	for _, v := range Verbs {
		for _, peer := range []*Peer{nil, looks, changes} {
			l := &listed{}
			target := "/v1/" + v.Name + query[v.Name]
			code, body := asks(Control(l, "1"), v.Method, target, peer)
			want := http.StatusForbidden
			if peer != nil && peer.Role >= v.Role {
				want = http.StatusOK
			}
			if code != want {
				t.Errorf("%s by %+v: got %d %s, want %d", v.Name, peer, code, body, want)
			}
			if want == http.StatusForbidden && len(l.kicked)+len(l.reconnected)+len(l.traced)+len(l.paused)+l.reloads > 0 {
				t.Errorf("%s by %+v was done", v.Name, peer)
			}
			var answer struct {
				Schema int `json:"schema"`
			}
			if err := json.NewDecoder(strings.NewReader(body)).Decode(&answer); err != nil || answer.Schema != Schema {
				t.Errorf("%s by %+v: %q has no schema: %v", v.Name, peer, body, err)
			}
		}
		other := http.MethodPost
		if v.Method == http.MethodPost {
			other = http.MethodGet
		}
		l := &listed{}
		if code, _ := asks(Control(l, "1"), other, "/v1/"+v.Name+query[v.Name], changes); code != http.StatusMethodNotAllowed || len(l.kicked) > 0 {
			t.Errorf("%s %s: got %d, want 405", other, v.Name, code)
		}
	}
}

func TestVerbs(t *testing.T) {
	l := &listed{}
	l.stats.Pools = []proxy.PoolStats{{User: "a", VHost: "/", Logins: 10, Reused: 9}, {User: "b", VHost: "v", Waiting: 1}}
	l.stats.Advice = []advice.Advice{{App: advice.App{User: "a", VHost: "/", Name: "shop", Host: "192.0.2.1"}, Rule: "polling", Level: "warn", Since: time.Now(), Evidence: "9 of 10", Remedy: "consume"}}
	h := Control(l, "1.2.3")
	for _, c := range []struct {
		method, target string
		code           int
		want           string // a part of the answer
	}{
		{"GET", "/v1/clients", 200, `"total":3,"clients":[{"id":1,"user":"a","vhost":"/","address":"127.0.0.1:1000","name":"","state":"running","mode":"shared","channels":2,"bound":2,"upstreams":[7],"in_bytes":10,"out_bytes":20,"queue_bytes":0,"age_seconds":1.5,`},
		{"GET", "/v1/clients?user=b", 200, `"total":1,"clients":[{"id":2,"user":"b","vhost":"v","address":"[::1]:1000","name":"","state":"waiting","mode":"session","channels":0,"bound":0,"upstreams":[],`},
		{"GET", "/v1/clients?address=::1", 200, `"total":1,"clients":[{"id":2,`},
		{"GET", "/v1/clients?address=192.0.2.1:5", 200, `"total":1,"clients":[{"id":3,`},
		{"GET", "/v1/clients?limit=1", 200, `"total":3,"clients":[{"id":1,`},
		{"GET", "/v1/clients?user=nobody", 200, `"total":0,"clients":[]}`},
		{"GET", "/v1/clients?limit=0", 400, `limit is \"0\", allowed is a number, 1 or more`},
		{"GET", "/v1/clients?nonsense=1", 400, `\"nonsense\" is not known to clients`},
		{"GET", "/v1/clients?user=a&user=b", 400, `given twice`},
		{"GET", "/v1/clients?%zz", 400, `cannot be read`},
		{"GET", "/v1/nonsense", 404, `\"nonsense\" is not known; there are clients, `},
		{"GET", "/v1/upstreams?state=shared", 200, `"upstreams":[{"id":7,"broker":"192.0.2.9:5672"`},
		{"GET", "/v1/pools", 200, `"pools":[{"user":"b","vhost":"v","clients":0,"waiting_clients":1,"max_wait_seconds":3,`},
		{"GET", "/v1/pools?user=a", 200, `"pools":[{"user":"a","vhost":"/","clients":0,"waiting_clients":0,"max_wait_seconds":0,"upstreams":0,"idle_upstreams":0,"session_upstreams":0,"channels":0,"logins":10,"reused":9}]`},
		{"GET", "/v1/advise", 200, `"schema":1,"advice":[{"rule":"polling","level":"warn","user":"a","vhost":"/","name":"shop","address":"192.0.2.1","since_seconds":`},
		{"GET", "/v1/advise?rule=unnamed", 200, `"advice":[]`},
		{"GET", "/v1/limits?limit=1", 200, `"schema":1,"limits":[{"by":"user","match":"*","action":"enforce","max_clients":5,"max_upstreams":0,"connects_per_second":0.5,"bytes_per_second":0}],"total":2,"keys":[{"key":"a","limit":{"by":"user","match":"*","action":"enforce","max_clients":5,"max_upstreams":0,"connects_per_second":0.5,"bytes_per_second":0},"clients":5,"upstreams":0,"waiting_logins":0,"logins_per_second":0,"bytes_per_second":0,"refused":2,"delayed":0,"alarms":0}]`},
		{"GET", "/v1/limits?key=b&by=user", 200, `"total":1,"keys":[{"key":"b"`},
		{"GET", "/v1/limits?by=vhost", 200, `"total":0,"keys":[]`},
		{"GET", "/v1/limits?by=color", 400, `by is \"color\", allowed is user, vhost, address or listener`},
		{"GET", "/v1/stats", 200, `"version":"1.2.3"`},
		{"GET", "/v1/config", 200, `"settings":[{"name":"http.port","value":"1","origin":"a.toml:3"}]`},
		{"GET", "/v1/status", 200, `{"schema":1,"state":{"pid":42}}`},
		{"POST", "/v1/reload", 200, `{"schema":1,"changed":["max_clients"],"need_restart":[]}`},
		{"POST", fmt.Sprintf("/v1/reload?pid=%d", os.Getpid()), 200, `max_clients`},
		{"POST", "/v1/reload?pid=1", 400, `not 1`},
		{"POST", "/v1/reload?pid=-1", 400, `pid is \"-1\"`},
		{"POST", "/v1/kick?client=1", 200, `"count":1`},
		{"POST", "/v1/kick?user=b", 200, `"count":1`},
		{"POST", "/v1/kick", 400, `kick takes a client's ID, or a user`},
		{"POST", "/v1/kick?client=1&user=b", 400, `kick takes a client's ID, or a user`},
		{"POST", "/v1/kick?client=99", 400, `there is no client 99`},
		{"POST", "/v1/kick?client=x", 400, `client is \"x\"`},
		{"POST", "/v1/reconnect", 200, `"count":2`},
		{"POST", "/v1/reconnect?balance=true", 200, `"count":4`},
		{"POST", "/v1/reconnect?balance=yes", 400, `allowed is true`},
		{"POST", "/v1/reconnect?balance=true&user=a", 400, `neither an upstream nor a user`},
		{"POST", "/v1/pause", 200, `"count":3`},
		{"POST", "/v1/pause?vhost=v&max=60", 200, `"count":3`},
		{"POST", "/v1/pause?max=0", 400, `max is \"0\", allowed is a number of seconds`},
		{"POST", "/v1/pause?max=1000000", 400, `max is \"1000000\"`},
		{"POST", "/v1/resume?vhost=v", 200, `"count":1`},
		{"POST", "/v1/resume?vhost=never", 400, `vhost \"never\" is not paused by itself`},
		{"POST", "/v1/reconnect?upstream=7&user=a", 400, `an upstream's ID, a user, or nothing`},
	} {
		code, body := asks(h, c.method, c.target, changes)
		if code != c.code || !strings.Contains(body, c.want) {
			t.Errorf("%s %s: got %d %s\nwant %d %s", c.method, c.target, code, body, c.code, c.want)
		}
	}
	for target, want := range map[string]string{
		"": `trace takes a client's ID; or a user`, "?client=1&user=a": "trace takes a client's ID; or a user", "?client=99": "there is no client 99",
		"?client=1&bodies=x": `bodies is \"x\"`, "?client=1&raw=maybe": `raw is \"maybe\"`,
	} {
		if code, body := asks(h, "GET", "/v1/trace"+target, changes); code != 400 || !strings.Contains(body, want) {
			t.Errorf("trace%s: got %d %s\nwant 400 %s", target, code, body, want)
		}
	}
	if got, want := fmt.Sprint(l.paused), "[ true 0s v false 1m0s v false never false]"; got != want {
		t.Errorf("paused and resumed %s, want %s", got, want)
	}
	if l.reloads != 2 {
		t.Errorf("reloaded %d times, want 2", l.reloads)
	}
	l.reloadErr = errors.New("nonsense in a.toml")
	if code, body := asks(h, "POST", "/v1/reload", changes); code != 400 || !strings.Contains(body, "nonsense in a.toml") {
		t.Errorf("of a reload that fails: %d %s", code, body)
	}
	for code, err := range map[int]error{409: Elsewhere{errors.New("process 7 has taken over")}, 501: fmt.Errorf("of a terminal: %w", errors.ErrUnsupported), 400: errors.New("the new process ended")} {
		l.upgradeErr = err
		if got, body := asks(h, "POST", "/v1/upgrade", changes); got != code || !strings.Contains(body, err.Error()) {
			t.Errorf("of an upgrade with %q: %d %s, want %d", err, got, body, code)
		}
	}
	l.reloadErr, l.before = nil, &Before{PID: 7, Clients: 3, Until: time.Unix(1_900_000_000, 0).UTC()}
	if code, body := asks(h, "POST", "/v1/reload?pid=7", changes); code != 200 {
		t.Errorf("of a reload of the process from before the upgrade: %d %s", code, body)
	}
	if _, body := asks(h, "GET", "/v1/stats", looks); !strings.Contains(body, `"before_upgrade":{"pid":7,"clients":3,"until":"2030-03-17T17:46:40Z"}`) {
		t.Errorf("stats of an upgrade: %s", body)
	}
	if got, want := len(l.kicked), 6; got != want {
		t.Errorf("kicked %v, want three times", l.kicked)
	}
}

func TestTraceLines(t *testing.T) {
	l := &listed{}
	code, body := asks(Control(l, "1"), "GET", "/v1/trace?user=a&address=::1&bodies=3&raw=true", changes)
	const want = `{"schema":1,"client":{"id":1,"user":"a","vhost":"/","address":"127.0.0.1:1000","name":"","state":"running","mode":"shared","channels":2,"bound":2,"upstreams":[7],"in_bytes":10,"out_bytes":20,"queue_bytes":0,"age_seconds":1.5,"idle_seconds":0,"waiting_seconds":0},"proxy_address":"127.0.0.1:5673"}
{"time":1.000005,"kind":"method","from":"client","channel":1,"size_bytes":5,"method":"channel.open","text":"channel.open","type":1,"payload":"ABQACgA="}
{"time":2,"kind":"bound","channel":1,"upstream":7,"upstream_channel":3,"size_bytes":0,"text":"goes over upstream 7 from here on, as its channel 3"}
{"time":2,"kind":"body","from":"client","channel":1,"upstream":7,"upstream_channel":3,"size_bytes":400,"body":"gr","text":"body of 400 octets \"gr\"","type":3,"payload":"Z3LD"}
{"time":3,"kind":"heartbeat","from":"proxy","channel":0,"size_bytes":0,"text":"heartbeat","type":8}
`
	lines := strings.SplitAfter(body, "\n")
	if n := len(lines); code != 200 || n != 8 || strings.Join(lines[:5], "") != want ||
		!strings.Contains(lines[5], `"kind":"lost","channel":0,"size_bytes":0,"lost":5,"text":"5 frames were lost`) || !strings.Contains(lines[6], `"kind":"end"`) {
		t.Errorf("got %d\n%s\nwant\n%s and what was lost, and the end", code, body, want)
	}
	if len(l.traced) != 1 || l.traced[0] != (proxy.TraceWanted{User: "a", Address: "::1", Bodies: 3}) || !l.closed {
		t.Errorf("asked for %+v, closed %v", l.traced, l.closed)
	}
}

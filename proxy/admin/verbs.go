// The admin channel's verbs: a table of what can be asked and done, and who may. It is HTTP
// over a socket that only this machine's users reach; who asks is known from the socket.

package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
)

// Role is what somebody may do.
type Role int

const (
	// Look may read.
	Look Role = iota
	// Change may act on clients and connections, too.
	Change
)

// Peer is who asks.
type Peer struct {
	Role Role
	Name string // for the log: "uid 0"
}

type peerKey struct{}

// WithPeer notes who is at the other end of a connection; to be set once for each, as
// http.Server.ConnContext. Without it nobody is answered.
func WithPeer(ctx context.Context, p Peer) context.Context {
	return context.WithValue(ctx, peerKey{}, p)
}

// Lister is the engine as far as the admin channel needs it.
type Lister interface {
	Stats() proxy.Stats
	ListClients() []proxy.ClientInfo
	ListUpstreams() []proxy.UpstreamInfo
	// Kick closes a client by ID, or with ID 0 those of a user, and says how many.
	Kick(id uint64, user string) int
	// Reconnect has connections to the broker take no new channels and end with their last.
	Reconnect(id uint64, user string) int
	// Balance has the surplus at brokers that have more connections than their share end so.
	Balance() int
	// Pause has logins and first frames wait, of a vhost or of all, and says how many connections to the broker
	// end with their last channel; Resume ends that, or says that there is nothing to end.
	Pause(vhost string, all bool, most time.Duration) int
	Resume(vhost string, all bool) bool
	// Trace looks at what a client and the proxy send each other; it waits for the client where it is not told by ID.
	Trace(ctx context.Context, w proxy.TraceWanted) (Tracer, error)
	// ListLimits are the limits, and those at them, who were hit most first: at most so many of total.
	ListLimits(most int, which func(by proxy.LimitBy, key string) bool) (limits []proxy.Limit, keys []proxy.LimitKeyInfo, total int)
	// Settings are those in force, in the order of their page.
	Settings() []Setting
	// ReloadNow reads the settings anew, and waits for the outcome.
	ReloadNow(ctx context.Context) (Reload, error)
	// UpgradeNow has a new process of the program take over, and gives its number.
	UpgradeNow(ctx context.Context) (pid int, err error)
	// BeforeUpgrade is the process from before an upgrade while it serves, nil: there is none.
	BeforeUpgrade() *Before
	// State is what the state file of the service holds.
	State() any
}

// Verb is one thing that can be asked or done.
type Verb struct {
	Name   string // its path is /v1/Name
	Method string
	Role   Role
	Params []string // what its query may hold

	run func(v *verbs, q url.Values) (any, error)
	// stream answers in place of run: line by line, until the asker goes.
	stream func(v *verbs, w http.ResponseWriter, req *http.Request, q url.Values) error
}

// Verbs are all there are.
var Verbs = []Verb{
	{"clients", http.MethodGet, Look, []string{"user", "vhost", "address", "state", "limit"}, (*verbs).clients, nil},
	{"upstreams", http.MethodGet, Look, []string{"user", "vhost", "state"}, (*verbs).upstreams, nil},
	{"pools", http.MethodGet, Look, []string{"user", "vhost"}, (*verbs).pools, nil},
	{"stats", http.MethodGet, Look, nil, (*verbs).stats, nil},
	{"limits", http.MethodGet, Look, []string{"by", "key", "limit"}, (*verbs).limits, nil},
	{"advise", http.MethodGet, Look, []string{"user", "vhost", "rule"}, (*verbs).advise, nil},
	{"config", http.MethodGet, Look, nil, (*verbs).config, nil},
	{"status", http.MethodGet, Look, nil, (*verbs).status, nil},
	{"reload", http.MethodPost, Change, []string{"pid"}, nil, (*verbs).reload},
	{"upgrade", http.MethodPost, Change, nil, nil, (*verbs).upgrade},
	{"kick", http.MethodPost, Change, []string{"client", "user"}, (*verbs).kick, nil},
	{"reconnect", http.MethodPost, Change, []string{"upstream", "user", "balance"}, (*verbs).reconnect, nil},
	{"pause", http.MethodPost, Change, []string{"vhost", "max"}, (*verbs).pause, nil},
	{"resume", http.MethodPost, Change, []string{"vhost"}, (*verbs).resume, nil},
	{"trace", http.MethodGet, Change, []string{"client", "user", "address", "bodies", "raw"}, nil, (*verbs).trace},
}

type verbs struct {
	engine  Lister
	version string
}

// Control is the admin channel's handler.
func Control(engine Lister, version string) http.Handler {
	v := &verbs{engine, version}
	mux := http.NewServeMux()
	for i := range Verbs {
		verb := &Verbs[i]
		mux.HandleFunc("/v1/"+verb.Name, func(w http.ResponseWriter, req *http.Request) { v.serve(w, req, verb) })
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, req *http.Request) {
		fail(w, http.StatusNotFound, fmt.Sprintf("%.60q is not known; there are %s", strings.TrimPrefix(req.URL.Path, "/v1/"), strings.Join(names(), ", ")))
	})
	return mux
}

func names() (all []string) {
	for _, v := range Verbs {
		all = append(all, v.Name)
	}
	return all
}

func (v *verbs) serve(w http.ResponseWriter, req *http.Request, verb *Verb) {
	peer, known := req.Context().Value(peerKey{}).(Peer)
	switch {
	case !known || peer.Role < verb.Role:
		fail(w, http.StatusForbidden, verb.Name+" is for root, an administrator, or the service's own user")
		return
	case req.Method != verb.Method:
		fail(w, http.StatusMethodNotAllowed, verb.Name+" takes "+verb.Method)
		return
	}
	q, err := url.ParseQuery(req.URL.RawQuery)
	if err != nil {
		fail(w, http.StatusBadRequest, "the query cannot be read")
		return
	}
	for name, values := range q {
		if !slices.Contains(verb.Params, name) || len(values) != 1 {
			fail(w, http.StatusBadRequest, fmt.Sprintf("%.60q is not known to %s, or given twice; it takes %s", name, verb.Name, strings.Join(verb.Params, ", ")))
			return
		}
	}
	if verb.stream != nil {
		slog.Info("admin command", "command", verb.Name, "arguments", clip(q.Encode()), "by", peer.Name, "count", 1)
		if err := verb.stream(v, w, req, q); err != nil {
			fail(w, http.StatusBadRequest, err.Error())
		}
		return
	}
	answer, err := verb.run(v, q)
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	if verb.Role == Change {
		count := 0
		if d, ok := answer.(Done); ok {
			count = d.Count
		}
		slog.Info("admin command", "command", verb.Name, "arguments", clip(q.Encode()), "by", peer.Name, "count", count)
	}
	write(w, http.StatusOK, answer)
}

// clip keeps what somebody sent from filling the log.
func clip(text string) string { return text[:min(len(text), 200)] }

func fail(w http.ResponseWriter, code int, text string) { write(w, code, Failure{Schema, text}) }

func write(w http.ResponseWriter, code int, answer any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	if long, ok := answer.(interface{ writeJSON(io.Writer) error }); ok {
		_ = long.writeJSON(w)
		return
	}
	_ = json.NewEncoder(w).Encode(answer) // who hung up is gone
}

// matches reports whether a value is the one asked for, if one is.
func matches(q url.Values, name, value string) bool {
	want, asked := q[name]
	return !asked || want[0] == value
}

// number is a parameter that counts something; 0 when it is not given.
func number(q url.Values, name string) (uint64, error) {
	text := q.Get(name)
	if !q.Has(name) {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%s is %.40q, allowed is a number, 1 or more", name, text)
	}
	return n, nil
}

func (v *verbs) clients(q url.Values) (any, error) {
	limit, err := number(q, "limit")
	if err != nil {
		return nil, err
	}
	all := v.engine.ListClients()
	most := uint64(len(all))
	if limit != 0 {
		most = min(most, limit)
	}
	a := Clients{Schema: Schema, Clients: make([]Client, 0, most)}
	for i := range all {
		c := &all[i]
		host := c.Address
		if i := strings.LastIndexByte(host, ':'); i >= 0 {
			host = strings.Trim(host[:i], "[]")
		}
		if !matches(q, "user", c.User) || !matches(q, "vhost", c.VHost) || !matches(q, "state", string(c.State)) ||
			!matches(q, "address", host) && !matches(q, "address", c.Address) {
			continue
		}
		a.Total++
		if uint64(len(a.Clients)) < most {
			a.Clients = append(a.Clients, clientOf(c))
		}
	}
	return a, nil
}

func (v *verbs) upstreams(q url.Values) (any, error) {
	a := Upstreams{Schema: Schema, Upstreams: []Upstream{}}
	for _, u := range v.engine.ListUpstreams() {
		if matches(q, "user", u.User) && matches(q, "vhost", u.VHost) && matches(q, "state", string(u.State)) {
			a.Upstreams = append(a.Upstreams, upstreamOf(u))
		}
	}
	return a, nil
}

func (v *verbs) pools(q url.Values) (any, error) {
	stats := v.engine.Stats()
	var waiting []proxy.ClientInfo
	if stats.Waiting > 0 || slices.ContainsFunc(stats.Pools, func(p proxy.PoolStats) bool { return p.Waiting > 0 }) {
		waiting = v.engine.ListClients()
	}
	a := Pools{Schema: Schema, Pools: []Pool{}}
	for _, p := range poolsOf(stats.Pools, waiting) {
		if matches(q, "user", p.User) && matches(q, "vhost", p.VHost) {
			a.Pools = append(a.Pools, p)
		}
	}
	return a, nil
}

func (v *verbs) stats(url.Values) (any, error) {
	a := statsOf(v.engine.Stats(), v.version)
	a.BeforeUpgrade = v.engine.BeforeUpgrade()
	return a, nil
}

func (v *verbs) advise(q url.Values) (any, error) {
	a := Advise{Schema: Schema, Advice: []Advice{}}
	for _, one := range adviceOf(v.engine.Stats().Advice) {
		if matches(q, "user", one.User) && matches(q, "vhost", one.VHost) && matches(q, "rule", one.Rule) {
			a.Advice = append(a.Advice, one)
		}
	}
	return a, nil
}

// limitKeys is how many `limits` tells of where it is not asked for another number.
const limitKeys = 100

func (v *verbs) limits(q url.Values) (any, error) {
	most, err := number(q, "limit")
	if err != nil {
		return nil, err
	}
	if by := proxy.LimitBy(q.Get("by")); q.Has("by") && !slices.Contains(proxy.LimitBys[:], by) {
		return nil, fmt.Errorf("by is %.40q, allowed is user, vhost, address or listener", by)
	}
	return limitsOf(v.engine.ListLimits(int(min(cmp.Or(most, limitKeys), 1_000_000)), func(by proxy.LimitBy, key string) bool {
		return matches(q, "by", string(by)) && matches(q, "key", key)
	})), nil
}

func (v *verbs) config(url.Values) (any, error) {
	return Config{Schema: Schema, Settings: v.engine.Settings()}, nil
}

func (v *verbs) status(url.Values) (any, error) { return Status{Schema, v.engine.State()}, nil }

// reload takes as long as it takes, the broker's name may have to be looked up say; who asks waits as long as he likes.
func (v *verbs) reload(w http.ResponseWriter, req *http.Request, q url.Values) error {
	pid, err := number(q, "pid")
	if err != nil {
		return err
	}
	// Who took this process's predecessor for the one to ask is right here.
	if own, before := os.Getpid(), v.engine.BeforeUpgrade(); pid != 0 && pid != uint64(own) && (before == nil || pid != uint64(before.PID)) {
		return fmt.Errorf("this is process %d, not %d", own, pid)
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{})
	_ = control.SetWriteDeadline(time.Time{})
	done, err := v.engine.ReloadNow(req.Context())
	_ = control.SetWriteDeadline(time.Now().Add(10 * time.Second)) // who reads nothing is left
	if err != nil {
		return elsewhere(w, err)
	}
	done.Schema, done.Changed, done.NeedRestart = Schema, append([]string{}, done.Changed...), append([]string{}, done.NeedRestart...) // [], not null
	write(w, http.StatusOK, done)
	return nil
}

// elsewhere answers where another process is the one to ask; else the error is the caller's.
func elsewhere(w http.ResponseWriter, err error) error {
	if !errors.As(err, &Elsewhere{}) {
		return err
	}
	fail(w, http.StatusConflict, err.Error())
	return nil
}

// Upgrade is what an upgrade came to.
type Upgrade struct {
	Schema int `json:"schema"`
	PID    int `json:"pid"` // of the process that serves new clients
	OldPID int `json:"old_pid"`
}

// upgrade takes as long as a start does, or its bound.
func (v *verbs) upgrade(w http.ResponseWriter, req *http.Request, _ url.Values) error {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{})
	_ = control.SetWriteDeadline(time.Time{})
	pid, err := v.engine.UpgradeNow(req.Context())
	_ = control.SetWriteDeadline(time.Now().Add(10 * time.Second))
	switch {
	case err == nil:
	case errors.As(err, &Elsewhere{}):
		return elsewhere(w, err)
	case errors.Is(err, errors.ErrUnsupported):
		fail(w, http.StatusNotImplemented, fmt.Sprintf("no upgrade, process %d serves on as before: %v", os.Getpid(), err))
		return nil
	default:
		return fmt.Errorf("no upgrade, process %d serves on as before: %w", os.Getpid(), err)
	}
	write(w, http.StatusOK, Upgrade{Schema, pid, os.Getpid()})
	return nil
}

func (v *verbs) kick(q url.Values) (any, error) {
	id, err := number(q, "client")
	if err != nil {
		return nil, err
	}
	if (id != 0) == q.Has("user") {
		return nil, fmt.Errorf("kick takes a client's ID, or a user")
	}
	n := v.engine.Kick(id, q.Get("user"))
	if n == 0 && id != 0 {
		return nil, fmt.Errorf("there is no client %d, or it is being closed already", id)
	}
	return Done{Schema, n}, nil
}

func (v *verbs) reconnect(q url.Values) (any, error) {
	id, err := number(q, "upstream")
	if err != nil {
		return nil, err
	}
	if id != 0 && q.Has("user") {
		return nil, fmt.Errorf("reconnect takes an upstream's ID, a user, or nothing for all")
	}
	if q.Has("balance") {
		if q.Get("balance") != "true" || id != 0 || q.Has("user") {
			return nil, fmt.Errorf("balance is %.40q, allowed is true, and neither an upstream nor a user beside it", q.Get("balance"))
		}
		return Done{Schema, v.engine.Balance()}, nil
	}
	n := v.engine.Reconnect(id, q.Get("user"))
	if n == 0 && id != 0 {
		return nil, fmt.Errorf("there is no upstream %d, or it is retired already", id)
	}
	return Done{Schema, n}, nil
}

func (v *verbs) pause(q url.Values) (any, error) {
	most, err := number(q, "max")
	if err != nil || most > 7*24*3600 {
		return nil, fmt.Errorf("max is %.40q, allowed is a number of seconds, 1 to 604800", q.Get("max"))
	}
	return Done{Schema, v.engine.Pause(q.Get("vhost"), !q.Has("vhost"), time.Duration(most)*time.Second)}, nil
}

func (v *verbs) resume(q url.Values) (any, error) {
	if !v.engine.Resume(q.Get("vhost"), !q.Has("vhost")) {
		what := "nothing is paused as a whole"
		if q.Has("vhost") {
			what = fmt.Sprintf("vhost %.100q is not paused by itself", q.Get("vhost"))
		}
		return nil, fmt.Errorf("%s: see stats", what)
	}
	return Done{Schema, 1}, nil
}

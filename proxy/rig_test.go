// What the engine's tests share: a proxy between in-memory connections, in a bubble whose
// clock is the test's, and the invariants that hold when all is over.

package proxy

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// rig is a proxy, what stands behind it, and the way in.
type rig struct {
	t  *testing.T
	s  *Server
	in *proxytest.MemListener
	to *proxytest.MemListener // the broker's
	// wrap, if it is set, comes between the proxy and in.
	wrap func(net.Listener) net.Listener
	b    *proxytest.Broker // one of these two
	sc   *proxytest.Script

	mu   sync.Mutex
	logs strings.Builder
}

// Write keeps the proxy's log.
func (r *rig) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.logs.Write(p)
}

func (r *rig) log() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.logs.String()
}

// start runs a proxy in front of what listens on r.to, until the test ends.
func (r *rig) start(change func(*Config)) {
	r.t.Helper()
	cfg := DefaultConfig()
	cfg.Upstream = Upstream{Host: "broker", Port: 5672}
	cfg.Dial = r.to.Dial
	cfg.Logger = slog.New(slog.NewTextHandler(io.Writer(r), &slog.HandlerOptions{Level: slog.LevelDebug}))
	cfg.ReuseChannels = r.sc == nil // a script says what becomes of channels, unless it asks for reuse
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.s = s
	r.in = proxytest.ListenMem("127.0.0.1:5673", 0)
	listeners := inherit(r.in)
	if r.wrap != nil {
		listeners[0] = r.wrap(listeners[0])
	}
	if err := s.Start(listeners); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(r.end)
}

// withBroker is a test of a proxy before the stand-in broker.
func withBroker(t *testing.T, bc proxytest.BrokerConfig, change func(*Config), test func(*rig)) {
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, to: proxytest.ListenMem("broker:5672", 0)}
		bc.Listener = r.to
		r.b = proxytest.StartBroker(t, bc)
		r.start(change)
		test(r)
		r.settled()
	})
}

// withScript is a test of a proxy before a scripted broker, whose connections hold capacity
// octets (0: plenty) in each direction.
func withScript(t *testing.T, capacity int, change func(*Config), test func(*rig)) {
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, to: proxytest.ListenMem("broker:5672", capacity)}
		r.sc = proxytest.NewScript(t, r.to)
		r.start(change)
		test(r)
	})
}

// end closes the proxy and looks that nothing is left of it.
func (r *rig) end() {
	s := r.s
	_ = s.Close()
	synctest.Wait()
	if r.t.Failed() {
		r.t.Logf("the proxy's log:\n%s", r.log())
	}
	if n := s.n.bindings.Load(); n != 0 {
		r.t.Errorf("%d bindings are left after Close", n)
	}
	if n := s.n.channels.Load(); n != 0 {
		r.t.Errorf("%d channels are left after Close", n)
	}
	s.gate.mu.Lock()
	used, waits, rows := s.gate.used, s.gate.waiters.Load(), len(s.gate.rows)+len(s.gate.order)
	s.gate.mu.Unlock()
	if used != 0 || waits != 0 || rows != 0 {
		r.t.Errorf("%d connections to the broker are counted after Close, %d waits in %d rows", used, waits, rows)
	}
	s.mu.Lock()
	clients, ups, held := s.clients.len(), len(s.upstreams), s.limits.clients.Used()
	s.mu.Unlock()
	if clients != 0 || ups != 0 || held != 0 {
		r.t.Errorf("after Close: %d clients, %d upstreams, %d places held", clients, ups, held)
	}
	s.gate.mu.Lock()
	if len(s.gate.users)+len(s.gate.vhosts) != 0 {
		r.t.Errorf("connections to the broker are counted after Close: %v, %v", s.gate.users, s.gate.vhosts)
	}
	s.gate.mu.Unlock()
	s.quotas.mu.Lock()
	for kind := range s.quotas.of {
		for _, k := range s.quotas.of[kind] {
			if k.clients != 0 || k.refs != 0 || k.line.LenLocked() != 0 {
				r.t.Errorf("after Close %s %s has %d clients, %d uses, %d that wait", LimitBys[kind], k.name, k.clients, k.refs, k.line.LenLocked())
			}
		}
	}
	if s.quotas.waiting != 0 || len(s.quotas.lines) != 0 {
		r.t.Errorf("after Close %d logins wait, in %d lines", s.quotas.waiting, len(s.quotas.lines))
	}
	s.quotas.mu.Unlock()
	s.budget.mu.Lock()
	room, queue := s.budget.used, s.budget.line.LenLocked()
	s.budget.mu.Unlock()
	if room != 0 || queue != 0 {
		r.t.Errorf("after Close: %d octets of message_buffer in use, %d wait", room, queue)
	}
	if strings.Contains(r.log(), "panic") {
		r.t.Error("the log tells of a panic")
	}
}

// settled looks at the counters when the clients have left and the broker has answered.
func (r *rig) settled() {
	r.t.Helper()
	if r.t.Failed() {
		return
	}
	s := r.s
	if !r.eventually(20*time.Second, func() bool { return s.Stats().Clients == 0 }) {
		return // the test left clients connected on purpose
	}
	ok := r.eventually(20*time.Second, func() bool { return s.n.bindings.Load() == int64(s.Stats().Kept) })
	if !ok {
		r.t.Errorf("%d bindings are left when all clients have gone", s.n.bindings.Load())
		s.mu.Lock()
		for u := range s.upstreams {
			for id := range uint16(65535) {
				if b := u.lookup(id); b != nil {
					u.mu.Lock()
					r.t.Errorf("upstream %d: id %d is bound to channel %d of client %d, binding state %d, silent %v, channel state %d, calls %d",
						u.n, id, b.ch.id, b.ch.c.n, b.state, b.silent, b.ch.state.Load(), b.broker.Calls.Load())
					u.mu.Unlock()
				}
			}
		}
		s.mu.Unlock()
	}
	if n := s.n.channels.Load(); n != 0 {
		r.t.Errorf("%d channels are counted when all clients have gone", n)
	}
	for _, p := range s.allPools() {
		if n := p.closes.n.Load(); n != 0 {
			r.t.Errorf("%d quiet closes are pending", n)
		}
		p.mu.Lock()
		for _, u := range p.ups {
			if u.load != 0 || u.crowded.Load() != 0 || u.closingN.Load() != 0 || u.owner.Load() != nil || u.lane != laneNone {
				r.t.Errorf("upstream %d: load %d, crowded %d, closing %d, owned %v, lane %d; want none", u.n, u.load,
					u.crowded.Load(), u.closingN.Load(), u.owner.Load() != nil, u.lane)
			}
		}
		if p.clients != 0 || p.waiting != 0 || p.opening != 0 {
			r.t.Errorf("pool counts %d clients, %d that wait, %d upstreams that are being opened", p.clients, p.waiting, p.opening)
		}
		p.mu.Unlock()
	}
	s.logins.mu.Lock()
	spares := 0
	for _, a := range s.logins.accounts {
		if a.refs != 0 {
			r.t.Errorf("account counts %d clients", a.refs)
		}
		if a.spare != nil {
			spares++
		}
	}
	s.logins.mu.Unlock()
	s.gate.mu.Lock()
	used := s.gate.used
	s.gate.mu.Unlock()
	if ups := s.Stats().Upstreams; used != ups+spares {
		r.t.Errorf("%d connections to the broker are counted, there are %d and %d spare ones", used, ups, spares)
	}
	s.budget.mu.Lock()
	if s.budget.used != 0 || s.budget.first != nil || len(s.budget.users) != 0 {
		r.t.Errorf("%d octets of message_buffer are in use, by %d users", s.budget.used, len(s.budget.users))
	}
	s.budget.mu.Unlock()
}

// eventually waits in the bubble's time.
func (r *rig) eventually(within time.Duration, cond func() bool) bool {
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		synctest.Wait()
		if cond() {
			return true
		}
		if time.Since(begin) > within {
			return false
		}
	}
}

// connect opens a socket to the proxy.
func (r *rig) connect(cfg proxytest.ClientConfig) *proxytest.Client {
	r.t.Helper()
	cfg.Addr, cfg.Dial = "127.0.0.1:5673", r.in.Dial
	if cfg.Timeout == 0 {
		cfg.Timeout = time.Minute
	}
	c, err := proxytest.Connect(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// loginUntilOpen begins a login that stands when the broker's answer to connection.open is due.
func (r *rig) loginUntilOpen(cfg proxytest.ClientConfig) (*proxytest.Peer, <-chan *proxytest.Client) {
	done := make(chan *proxytest.Client, 1)
	go func() {
		c, err := r.login(cfg)
		if err != nil {
			r.t.Error(err)
		}
		done <- c
	}()
	p := r.sc.Accept()
	p.Start()
	p.Send(amqp.AppendTune(nil, amqp.ConnectionTune, proxytest.DefaultTune))
	p.Expect(amqp.ConnectionTuneOk)
	p.Expect(amqp.ConnectionOpen)
	return p, done
}

// login is connect and a whole handshake; with a script, answer its side in another goroutine.
func (r *rig) login(cfg proxytest.ClientConfig) (*proxytest.Client, error) {
	c := r.connect(cfg)
	if err := c.Handshake(); err != nil {
		_ = c.Hangup()
		return nil, err
	}
	return c, nil
}

// client is a logged-in client with channel 1 open. With a script it answers one login of the proxy.
func (r *rig) client(cfg proxytest.ClientConfig) *proxytest.Client {
	r.t.Helper()
	c, err := r.login(cfg)
	r.must(err)
	r.must(c.OpenChannel(1))
	return c
}

// pair is a client and the scripted upstream that the proxy opens for its login.
func (r *rig) pair(cfg proxytest.ClientConfig) (*proxytest.Client, *proxytest.Peer) {
	r.t.Helper()
	var c *proxytest.Client
	done := make(chan error)
	go func() {
		var err error
		c, err = r.login(cfg)
		done <- err
	}()
	p := r.sc.AcceptOpen()
	r.must(<-done)
	r.must(c.OpenChannel(1))
	return c, p
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// hears fails the test unless err is the code, and its text has the words.
func (r *rig) hears(err error, code uint16, words ...string) {
	r.t.Helper()
	var e *amqp.Error
	if !errors.As(err, &e) {
		r.t.Fatalf("got %v, want %d %q", err, code, words)
	}
	for _, w := range words {
		if e.Code != code || !strings.Contains(e.Text, w) {
			r.t.Fatalf("got %d %q, want %d %q", e.Code, e.Text, code, words)
		}
	}
}

// publishesUpstream cuts what arrived on a peer into whole publishes by channel and fails the
// test when content is not contiguous. It gives the bodies in order.
func (r *rig) bodies(records []proxytest.Record) []string {
	r.t.Helper()
	type part struct {
		left   uint64
		header bool
		body   []byte
	}
	open := map[uint16]*part{}
	var all []string
	for _, rec := range records {
		f := rec.Frame
		p := open[f.Channel()]
		switch f.Type() {
		case amqp.FrameMethod:
			if p != nil {
				r.t.Fatalf("a method amid content: %v\n%s", rec, r.sc.Log())
			}
			if f.Method() == amqp.BasicPublish {
				open[f.Channel()] = &part{header: true}
			}
		case amqp.FrameHeader:
			if p == nil || !p.header {
				r.t.Fatalf("a stray header: %v\n%s", rec, r.sc.Log())
			}
			p.header, p.left = false, f.BodySize()
		case amqp.FrameBody:
			if p == nil || p.header || uint64(len(f.Payload())) > p.left {
				r.t.Fatalf("a stray body: %v\n%s", rec, r.sc.Log())
			}
			p.left -= uint64(len(f.Payload()))
			p.body = append(p.body, f.Payload()...)
		}
		if p != nil && !p.header && p.left == 0 {
			all = append(all, string(p.body))
			delete(open, f.Channel())
		}
	}
	if len(open) != 0 {
		r.t.Fatalf("a publish is not whole\n%s", r.sc.Log())
	}
	return all
}

func inherit(ln net.Listener) []net.Listener { return []net.Listener{ln} }

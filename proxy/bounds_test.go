package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// Beyond max_handshakes connections are closed before anything is done for them; who has logged
// in does not count, and a place comes free when a handshake ends.
func TestMaxHandshakes(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, func(c *Config) { c.MaxHandshakes = 3 }, func(r *rig) {
		in := r.client(proxytest.ClientConfig{})
		var silent []*proxytest.Client
		for range 3 {
			silent = append(silent, r.connect(proxytest.ClientConfig{}))
		}
		synctest.Wait()
		over := r.connect(proxytest.ClientConfig{Timeout: time.Second})
		began := time.Now()
		if err := over.Handshake(); err == nil || time.Since(began) > 0 {
			t.Errorf("one too many heard %v after %v", err, time.Since(began))
		}
		if st := r.s.Stats(); st.TurnedAway != 1 || st.Clients != 4 {
			t.Errorf("%d turned away, %d clients; want 1, 4", st.TurnedAway, st.Clients)
		}
		_ = silent[0].Hangup()
		synctest.Wait()
		again := r.client(proxytest.ClientConfig{})
		for _, c := range append(silent[1:], over, in, again) {
			_ = c.Hangup()
		}
	})
}

// One address has half of the places for handshakes.
func TestHandshakesOfOneAddress(t *testing.T) {
	var l limits
	a, b := netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("2001:db8::/64")
	for range 2 {
		if why := l.begin(a, true, 4, 0); why != "" {
			t.Fatal(why)
		}
	}
	if l.begin(a, true, 4, 0) == "" {
		t.Error("an address has more than half of the places")
	}
	for range 2 {
		if l.begin(b, true, 4, 0) != "" {
			t.Error("another address does not have the other half")
		}
	}
	if l.begin(netip.Prefix{}, false, 4, 0) == "" {
		t.Error("there are more than max_handshakes")
	}
	for range 2 {
		l.over(a, true)
		l.over(b, true)
	}
	if l.handshakes != 0 || len(l.from) != 0 {
		t.Errorf("%d handshakes of %d addresses are left", l.handshakes, len(l.from))
	}
	l.sockets = 10
	if l.begin(a, true, 0, 10) == "" || l.begin(a, true, 0, 9) != "" {
		t.Error("the bound on sockets is not ten")
	}
}

// Who says nothing holds no place under max_clients, and who waits for one is not overtaken.
func TestPlacesAreForClientsInTurn(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, func(c *Config) { c.MaxClients = 1 }, func(r *rig) {
		silent := r.connect(proxytest.ClientConfig{})
		synctest.Wait()
		first := r.client(proxytest.ClientConfig{})
		got := make(chan *proxytest.Client, 3)
		for range 3 {
			go func() {
				c, err := r.login(proxytest.ClientConfig{})
				r.must(err)
				got <- c
			}()
			synctest.Wait()
		}
		time.Sleep(time.Second)
		if st := r.s.Stats(); st.Waiting != 3 || st.LongestWait != time.Second {
			t.Errorf("%d clients wait, the first for %v; want 3, 1s", st.Waiting, st.LongestWait)
		}
		_ = first.Hangup()
		for range 3 {
			synctest.Wait()
			if len(got) != 1 {
				t.Fatalf("%d clients have the one place", len(got))
			}
			_ = (<-got).Hangup()
		}
		_ = silent.Hangup()
	})
}

// Who hangs up in a line that a login stands in has left it at once, and not at its time-out or when it would be his turn;
// those who wait with him wait on.
func TestWhoHangsUpLeavesTheLine(t *testing.T) {
	b := proxytest.ClientConfig{User: "b", Password: "b"}
	two := b
	two.VHost = "two"
	for _, c := range []struct {
		name   string
		mode   PoolMode
		change func(*Config)
		hold   proxytest.ClientConfig // who has the one place
		wait   proxytest.ClientConfig
		before func(r *rig)
		gate   int32 // places in the line for connections while two wait
	}{
		{name: "max_clients, known", mode: PoolAuto, change: func(c *Config) { c.MaxClients = 1 }, wait: b},
		{name: "max_clients, a session", mode: PoolSession, change: func(c *Config) { c.MaxClients = 1 }, wait: b},
		{name: "max_clients, new", mode: PoolAuto, change: func(c *Config) { c.MaxClients = 1 }, wait: proxytest.ClientConfig{User: "new", Password: "new"}},
		{name: "verification", mode: PoolShared, change: func(c *Config) { c.MaxUpstreams = 1 }, wait: b, gate: 1},
		{name: "vhost", mode: PoolShared, change: func(c *Config) { c.MaxUpstreams = 1 }, hold: b, wait: two, gate: 1},
		{name: "a session's vhost", mode: PoolSession, change: func(c *Config) { c.MaxUpstreams = 1 }, hold: b, wait: two, gate: 2},
		{name: "a session's place in its pool", mode: PoolSession, change: func(c *Config) { c.MaxUpstreamsPerIdentity = 1 }, hold: two, wait: two, gate: 2},
	} {
		users := map[string]string{"guest": "guest", "b": "b", "new": "new"}
		withBroker(t, proxytest.BrokerConfig{Users: users, VHosts: []string{"/", "two"}}, func(cfg *Config) {
			cfg.Listeners[0].Mode, cfg.IdleTimeout, cfg.AuthTTL = c.mode, time.Second, time.Second
			c.change(cfg)
		}, func(r *rig) {
			for _, known := range []proxytest.ClientConfig{b, two} {
				k, err := r.login(known)
				r.must(err)
				_ = k.Hangup()
				synctest.Wait()
			}
			time.Sleep(time.Minute) // nothing stands, and nobody is believed unasked
			holds := r.client(c.hold)
			_, err := holds.DeclareQueue(1, "q", 0)
			r.must(err) // its connection is not idle
			var waits []*proxytest.Client
			for range 2 {
				w := r.connect(c.wait)
				go func() { _ = w.Handshake() }()
				waits = append(waits, w)
				synctest.Wait()
			}
			for left := 2; left >= 0; left-- {
				st := r.s.Stats()
				if st.Waiting != left || st.Clients != 1+left {
					t.Errorf("%s: %d clients, of whom %d wait; want %d and %d", c.name, st.Clients, st.Waiting, 1+left, left)
				}
				gate := c.gate
				if left < 2 {
					gate = min(gate, int32(left))
				}
				if n := r.s.gate.waiters.Load(); n != gate {
					t.Errorf("%s: %d places are wanted by %d clients, want %d", c.name, n, left, gate)
				}
				if left > 0 {
					waits[left-1].Abort()
					synctest.Wait()
				}
			}
			_ = holds.Hangup()
		})
	}
}

// Wrong passwords hold no place under max_clients while the broker makes up its mind: who was accepted before comes in
// beside any number of them, and who is new as soon as he is found right.
func TestGuessesHoldNoPlace(t *testing.T) {
	withScript(t, 0, func(c *Config) { c.MaxClients = 2 }, func(r *rig) {
		stays, _ := r.pair(proxytest.ClientConfig{User: "known", Password: "good"})
		var guesses []*proxytest.Peer
		for i := range 5 {
			c := r.connect(proxytest.ClientConfig{User: fmt.Sprint("u", i), Password: "wrong"})
			go func() { _ = c.Start() }()
			p := r.sc.Accept()
			p.Start() // and does not answer
			guesses = append(guesses, p)
		}
		synctest.Wait()
		if n := r.s.limits.clients.Used(); n != 1 {
			t.Errorf("%d places are held beside five guesses, want the one of who is in", n)
		}
		came := time.Now()
		c, err := r.login(proxytest.ClientConfig{User: "known", Password: "good"})
		r.must(err)
		if took := time.Since(came); took > 0 {
			t.Errorf("who is known waited %v for a place", took)
		}
		_ = c.Close()
		done := make(chan *proxytest.Client)
		go func() {
			c, err := r.login(proxytest.ClientConfig{User: "new", Password: "right"})
			r.must(err)
			done <- c
		}()
		r.sc.AcceptOpen()
		c = <-done
		if n := r.s.limits.clients.Used(); n != 2 {
			t.Errorf("%d places are held, want those of the two who are in", n)
		}
		_ = c.Close()
		_ = stays.Close()
		for _, p := range guesses {
			p.Send(proxytest.CloseBytes(0, amqp.AccessRefused, "ACCESS_REFUSED - Login was refused", 0))
		}
	})
}

// A self-check that finds no descriptor, or no place, is no sign of a proxy that hangs.
func TestSelfCheckAtTheBounds(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Listeners[0].Address = "127.0.0.1:0"
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(nil); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.limits.mu.Lock()
	s.limits.sockets = 1
	s.limits.handshakes = 1
	s.limits.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	cfg = *s.cfg()
	cfg.MaxHandshakes = 1
	s.setConfig(cfg)
	if err := s.SelfCheck(ctx); err != nil {
		t.Errorf("at max_handshakes: %v", err)
	}
	if s.Stats().TurnedAway != 1 {
		t.Error("the self-check was not turned away: the test tries nothing")
	}
	for errno, want := range map[syscall.Errno]bool{syscall.EMFILE: true, syscall.ECONNREFUSED: false} {
		wrapped := &net.OpError{Op: "dial", Err: os.NewSyscallError("socket", errno)}
		got := syscall.Errno(0)
		if !errors.As(wrapped, &got) || outOfDescriptors(got) != want {
			t.Errorf("%v counts as out of descriptors: %v", errno, !want)
		}
	}
}

// Before open-ok a client gets no buffer beyond the largest frame of a handshake, whatever it
// sends, and busy ones get theirs after it.
func TestBufferBeforeOpen(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		c := r.connect(proxytest.ClientConfig{})
		r.must(c.Send(amqp.ProtocolHeader[:]))
		synctest.Wait()
		r.must(c.Send(amqp.AppendStartOk(nil, make([]byte, 7900), "PLAIN", nil, "en_US")[:7900]))
		synctest.Wait()
		x := r.s.clients.appendTo(nil, nil)[0]
		if n := x.rd.Cap(); n > handshakeFrame+amqp.FrameOverhead {
			t.Errorf("a client that is not logged in has a buffer of %d octets", n)
		}
		_ = c.Hangup()
	})
}

// A client that is closing is not judged by what its handshake may still be writing.
func TestClosingClientIsNotLookedAt(t *testing.T) {
	cfg := DefaultConfig()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.coarse.Store(int64(time.Hour))
	c := &client{s: s, env: &s.env, heartbeat: time.Second}
	c.phase.Store(phaseClosing)
	if c.due(s.now()) {
		t.Error("its heartbeat was looked at")
	}
	c.closeAt.Store(1)
	if !c.due(s.now()) {
		t.Error("it is not closed in time")
	}
}

// A client with many channels leaves with one write to its upstream, however it leaves.
func TestManyChannelsLeaveInOneWrite(t *testing.T) {
	for name, leave := range map[string]func(*client){"hangs up": (*client).releaseChannels, "closes": (*client).closeConnection} {
		c, u, broker := halves(t)
		const n = 90 // of 100 ids
		var p []byte
		for id := uint16(1); id <= n; id++ {
			if id > 1 {
				p = append(p, proxytest.Method(id, amqp.ChannelOpen, "")...)
			}
			p = append(p, proxytest.PublishBytes(id, "", "q", []byte("x"), 0)...)
		}
		feedClient(t, c, p)
		before := broker.writes
		leave(c)
		if got := broker.writes - before; got != 1 {
			t.Errorf("a client that %s: %d writes, want 1", name, got)
		}
		if got := u.closingN.Load(); got != n {
			t.Errorf("a client that %s: %d channels closed, want %d", name, got, n)
		}
	}
}

// BenchmarkLook is what the janitor's look at one of 100,000 clients at rest costs, ten times a second for each.
func BenchmarkLook(b *testing.B) {
	s, err := New(DefaultConfig())
	if err != nil {
		b.Fatal(err)
	}
	s.coarse.Store(1)
	const n = 100_000
	for i := range uint64(n) {
		c := &client{s: s, env: &s.env, n: i, heartbeat: time.Minute}
		c.phase.Store(phaseRunning)
		c.rested.Store(true)
		s.clients.add(c, func() bool { return true })
	}
	now := s.now()
	for b.Loop() {
		if due := s.clients.appendTo(nil, func(c *client) bool { return c.due(now) }); len(due) > 0 {
			b.Fatalf("%d clients at rest are due", len(due))
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/client")
}

// BenchmarkScans is what a client that comes and leaves waits for, in nanoseconds, while others
// look at all of 100,000 clients without end; shard-ns is how long one lock is held for a look.
// On a machine that is busy otherwise max-ns is the scheduler's.
func BenchmarkScans(b *testing.B) {
	s, err := New(DefaultConfig())
	if err != nil {
		b.Fatal(err)
	}
	s.coarse.Store(1)
	own := func() bool { return true }
	newClient := func(n uint64) *client {
		c := &client{s: s, env: &s.env, n: n}
		c.phase.Store(phaseRunning)
		return c
	}
	for n := range uint64(100_000) {
		s.clients.add(newClient(n), own)
	}
	var all []*client
	began := time.Now()
	for range 10 {
		all = s.clients.appendTo(all[:0], func(c *client) bool { return c.due(s.now()) })
		s.Stats()
	}
	shard := float64(time.Since(began)) / 10 / 2 / clientShards
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				all = s.clients.appendTo(all[:0], func(c *client) bool { return c.due(s.now()) })
				s.Stats()
			}
		}
	})
	c := newClient(100_001)
	var waits []time.Duration
	for b.Loop() {
		c.n = 100_001 + uint64(len(waits))
		began := time.Now()
		s.clients.add(c, own)
		s.clients.remove(c)
		waits = append(waits, time.Since(began))
	}
	close(stop)
	wg.Wait()
	slices.Sort(waits)
	b.ReportMetric(shard, "shard-ns")
	b.ReportMetric(float64(waits[len(waits)*999/1000]), "p99.9-ns")
	b.ReportMetric(float64(waits[len(waits)-1]), "max-ns")
}

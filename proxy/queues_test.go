package proxy

import (
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// fill has the broker send a message of so many octets on a channel.
func fill(p *proxytest.Peer, id uint16, size int) {
	p.Send(proxytest.Method(id, amqp.BasicGetOk, 1, 0, "", "q", 0), proxytest.Header(id, uint64(size)))
	for size > 0 {
		n := min(size, 64<<10)
		p.Send(proxytest.Body(id, make([]byte, n)))
		size -= n
	}
}

// Where more waits for all clients than may, those for whom most waits are ended, and no more of
// them than is needed; who is alone on its upstream is not.
func TestLongestQueueGoesFirst(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Logger = slog.New(slog.DiscardHandler)
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cfg.ClientQueues = 560 << 10
	s.conf.Store(&cfg)
	s.coarse.Store(1)
	shared, own, sole := &upstream{}, &upstream{}, &upstream{}
	waits := func(n uint64, u *upstream, size int) *client {
		near, far := net.Pipe()
		t.Cleanup(func() { near.Close(); far.Close() })
		c := &client{s: s, env: &s.env, n: n, gone: make(chan struct{}), fedBy: u}
		c.accepted(near, nil)
		c.out.Init(&c.mu, near, &s.coarse, nil)
		c.phase.Store(phaseRunning)
		s.clients.add(c, func() bool { return true })
		u.setLocked(uint16(n), &binding{ch: &channel{c: c}})
		c.mu.Lock()
		c.out.AppendLocked(make([]byte, size))
		c.countLocked()
		c.mu.Unlock()
		return c
	}
	short, long, middle := waits(1, shared, 96<<10), waits(2, shared, 304<<10), waits(3, shared, 208<<10)
	owner, alone := waits(4, own, 400<<10), waits(5, sole, 64<<10)
	own.owner.Store(owner)
	s.relieve()
	for name, x := range map[string]struct {
		c     *client
		ended bool
	}{"96 KiB": {short, false}, "304 KiB": {long, true}, "208 KiB": {middle, true}, "400 KiB, owner": {owner, false},
		"64 KiB, alone": {alone, false}} {
		if ended := x.c.phase.Load() == phaseClosing; ended != x.ended {
			t.Errorf("%s: ended %v, want %v", name, ended, x.ended)
		}
	}
	if n := s.queues.total.Load(); n != (96+400+64)<<10 {
		t.Errorf("%d octets are counted", n)
	}
	less := cfg
	less.ClientQueues = 460 << 10
	s.conf.Store(&less)
	s.relieve()
	if short.phase.Load() != phaseClosing || owner.phase.Load() == phaseClosing || alone.phase.Load() == phaseClosing {
		t.Error("with more than may still waiting, it is not the last one that shares its upstream that is ended")
	}
}

// What waits stays in its bound, and those who are left go on.
func TestClientQueuesAreBounded(t *testing.T) {
	withScript(t, 0, func(c *Config) { c.ClientQueue, c.ClientQueues, c.WriteTimeout = 1<<20, 2<<20, time.Hour }, func(r *rig) {
		var clients []*proxytest.Client
		var ids []uint16
		var p *proxytest.Peer
		for range 6 {
			var c *proxytest.Client
			if p == nil {
				c, p = r.pair(proxytest.ClientConfig{})
			} else {
				c = r.client(proxytest.ClientConfig{})
			}
			r.must(c.Send(proxytest.Method(1, amqp.BasicGet, 0, "q", 1)))
			ids = append(ids, p.OpenChannel())
			p.Expect(amqp.BasicGet)
			clients = append(clients, c)
		}
		for _, id := range ids {
			fill(p, id, 900<<10)
			synctest.Wait()
		}
		time.Sleep(2 * time.Second)
		if st := r.s.Stats(); st.SlowClientCloses == 0 || st.Clients == 0 || st.Clients != 6-int(st.SlowClientCloses) {
			t.Errorf("%d clients were ended, %d are there", st.SlowClientCloses, st.Clients)
		}
		if n := r.s.queues.total.Load(); n > 2<<20 {
			t.Errorf("%d octets are counted, client_queues is %d", n, 2<<20)
		}
		for _, c := range clients {
			_ = c.Hangup()
		}
		synctest.Wait()
		if n := r.s.queues.total.Load(); n != 0 {
			t.Errorf("%d octets are counted with nobody there", n)
		}
	})
}

// Who has its upstream for itself is never ended for reading slowly: less is read for it.
func TestSoleTenantsAreHaltedNotEnded(t *testing.T) {
	withScript(t, 0, func(c *Config) {
		c.ClientQueue, c.ClientQueues, c.WriteTimeout = 1<<20, 1<<20, time.Hour
		c.Listeners[0].Mode = PoolSession
	}, func(r *rig) {
		const n = 20
		var clients []*proxytest.Client
		for range n {
			c, p := r.pair(proxytest.ClientConfig{})
			r.must(c.Send(proxytest.Method(1, amqp.BasicGet, 0, "q", 1)))
			id := p.OpenChannel()
			p.Expect(amqp.BasicGet)
			clients = append(clients, c)
			go fill(p, id, 2<<20)
			synctest.Wait()
		}
		time.Sleep(time.Second)
		if st := r.s.Stats(); st.SlowClientCloses != 0 || st.Clients != n {
			t.Fatalf("%d clients were ended, %d are there", st.SlowClientCloses, st.Clients)
		}
		if total := r.s.queues.total.Load(); total > n*(256<<10) {
			t.Errorf("%d octets wait for %d sole tenants", total, n)
		}
		for _, c := range clients {
			_, err := c.Await(1, amqp.BasicGetOk)
			r.must(err)
			for left := 2 << 20; left > 0; {
				f, err := c.Next()
				r.must(err)
				if f.Type() == amqp.FrameBody {
					left -= len(f.Payload())
				}
			}
		}
		for _, c := range clients {
			_ = c.Hangup()
		}
	})
}

// Memory is given back after a crowd has left, once, and not while it still comes or goes.
func TestCrowdLeaves(t *testing.T) {
	var c crowd
	for i, x := range []struct {
		load int64
		left bool
	}{{1 << 20, false}, {200 << 20, false}, {190 << 20, false}, {80 << 20, false}, {20 << 20, false}, {19 << 20, true},
		{19 << 20, false}, {30 << 20, false}, {15 << 20, false}, {100 << 20, false}, {49 << 20, false}, {49 << 20, true}} {
		if got := c.left(x.load); got != x.left {
			t.Errorf("step %d, load %d: %v", i, x.load, got)
		}
	}
}

package proxy

import (
	"log/slog"
	"net"
	"sync"
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

// crowders are a server that nothing runs in, and what makes clients of it for whom so much waits.
func crowders(t *testing.T, queues int64) (s *Server, waits func(n uint64, u *upstream, size int) *client) {
	cfg := DefaultConfig()
	cfg.Logger = slog.New(slog.DiscardHandler)
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cfg.ClientQueues = queues
	s.conf.Store(&cfg)
	s.coarse.Store(1)
	return s, func(n uint64, u *upstream, size int) *client {
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
}

// Where more waits for all clients than may, those for whom most waits are ended, and no more of
// them than is needed; who is alone on its upstream is not.
func TestLongestQueueGoesFirst(t *testing.T) {
	s, waits := crowders(t, 560<<10)
	shared, own, sole := &upstream{}, &upstream{}, &upstream{}
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
	if n := s.queues.total.Load(); n != (96+400+64)<<10 || s.queues.over.Load() || s.queues.least.Load() != 0 {
		t.Errorf("%d octets are counted; over %v, at least %d", n, s.queues.over.Load(), s.queues.least.Load())
	}
	less := *s.cfg()
	less.ClientQueues = 460 << 10
	s.conf.Store(&less)
	s.relieve()
	if short.phase.Load() != phaseClosing || owner.phase.Load() == phaseClosing || alone.phase.Load() == phaseClosing {
		t.Error("with more than may still waiting, it is not the last one that shares its upstream that is ended")
	}
	// What is left is more than may, and nobody can be ended for it: no reader is to try at each chunk.
	if n := s.queues.least.Load(); n != (400+64)<<10 || s.queues.over.Load() {
		t.Errorf("over %v, at least %d", s.queues.over.Load(), n)
	}
	late := waits(6, shared, 16<<10)
	late.mu.Lock()
	late.out.AppendLocked(make([]byte, 64<<10))
	late.countLocked()
	late.mu.Unlock()
	if !s.queues.over.Load() {
		t.Error("more has come, for one who can be ended, and nobody is to see to it")
	}
	s.relieve()
	if late.phase.Load() != phaseClosing || s.queues.over.Load() {
		t.Error("who came late was not ended")
	}
}

// However many see that it is too much, no more are ended than need be, and all go on when that has been done.
func TestReliefIsOne(t *testing.T) {
	s, waits := crowders(t, 1<<20)
	shared := &upstream{}
	for n := range uint64(100) {
		waits(n+1, shared, 64<<10)
	}
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			s.relieve()
			if n := s.queues.total.Load(); n > 1<<20 {
				t.Errorf("it goes on with %d octets waiting", n)
			}
		})
	}
	wg.Wait()
	if n, ended := s.queues.total.Load(), s.n.slowCloses.Load(); n != 1<<20 || ended != 100-16 {
		t.Errorf("%d octets wait, %d were ended; want %d and %d", n, ended, 1<<20, 100-16)
	}
}

// Who is about to end, and for whom much waits all the same, ends at once where room is needed.
func TestWhoLeavesHoldsNoRoom(t *testing.T) {
	s, waits := crowders(t, 1<<20)
	shared := &upstream{}
	leaves, stays := waits(1, shared, 800<<10), waits(2, shared, 512<<10)
	leaves.shut(amqp.Errorf(amqp.ConnectionForced, 0, "for whatever reason"), false)
	s.relieve()
	if !leaves.cut() || stays.phase.Load() != phaseRunning || s.n.slowCloses.Load() != 0 {
		t.Errorf("who leaves is gone: %v; who stays is ended: %v", leaves.cut(), stays.phase.Load() != phaseRunning)
	}
	if n := s.queues.total.Load(); n != 512<<10 {
		t.Errorf("%d octets are counted", n)
	}
}

// Who adds too much sees to it before he adds more: no time passes, and the janitor has no part in it. Who
// shares the connection with those that are ended hears the same as ever.
func TestReaderRelieves(t *testing.T) {
	const most, one, read = 2 << 20, 900 << 10, 64 << 10
	withScript(t, 0, func(c *Config) { c.ClientQueue, c.ClientQueues, c.WriteTimeout = 1<<20, most, time.Hour }, func(r *rig) {
		reads, p := r.pair(proxytest.ClientConfig{})
		gets := func(c *proxytest.Client) uint16 {
			r.must(c.Send(proxytest.Method(1, amqp.BasicGet, 0, "q", 1)))
			id := p.OpenChannel()
			p.Expect(amqp.BasicGet)
			return id
		}
		mine := gets(reads)
		var ids []uint16
		for range 12 {
			ids = append(ids, gets(r.client(proxytest.ClientConfig{})))
		}
		began := time.Now()
		for i, id := range ids {
			fill(p, id, one)
			fill(p, mine, 1000)
			synctest.Wait()
			if n := r.s.queues.total.Load(); n > most+read {
				t.Errorf("%d octets wait after %d messages, client_queues is %d", n, i+1, most)
			}
			_, err := reads.Await(1, amqp.BasicGetOk)
			r.must(err)
		}
		if passed := time.Since(began); passed != 0 {
			t.Errorf("it took %v", passed)
		}
		if n := r.s.Stats().SlowClientCloses; n == 0 || n > 12-most/one { // their sockets hold something too
			t.Errorf("%d were ended of 12, there was room for %d", n, most/one)
		}
	})
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
		if total, least := r.s.queues.total.Load(), r.s.queues.least.Load(); total <= 1<<20 || least != total || r.s.queues.over.Load() {
			t.Errorf("%d octets wait, at least %d; over %v", total, least, r.s.queues.over.Load())
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
		synctest.Wait()
		if total, least := r.s.queues.total.Load(), r.s.queues.least.Load(); total != 0 || least != 0 {
			t.Errorf("%d octets wait, at least %d, with nobody there", total, least)
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

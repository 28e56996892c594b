// The janitor: one goroutine that keeps the coarse clock and, ten times a second, has
// clients, upstreams and pools tended.

package proxy

import (
	"runtime"
	"runtime/debug"
	"time"
)

// tick is the resolution of the coarse clock and with it of every timeout here: what a
// peer must not hear too early has one more.
const tick = 100 * time.Millisecond

func (s *Server) janitor() {
	t := time.NewTicker(tick)
	defer t.Stop()
	var clients []*client
	var ups []*upstream
	var crowd crowd
	var naps naps
	for i := 0; ; i++ {
		select {
		case <-s.ctx.Done():
			return
		case <-t.C:
		}
		s.coarse.Store(int64(time.Since(s.began)) + 1)
		clients, ups = clients[:0], ups[:0]
		now := s.now()
		clients = s.clients.appendTo(clients, func(c *client) bool { return c.due(now) })
		s.mu.Lock()
		for u := range s.upstreams {
			ups = append(ups, u)
		}
		s.mu.Unlock()
		tired := 0
		for _, c := range clients {
			if c.tired(now) {
				tired++
			}
		}
		mayRest := naps.may(tired)
		for _, c := range clients {
			c.tend()
			if mayRest && c.tired(now) {
				c.rest()
			}
		}
		for _, u := range ups {
			u.tend()
		}
		if d := s.users.Load(); d != nil && d.expiring {
			s.tendTokens(ups)
		}
		clear(clients)
		clear(ups)
		if c := s.budget.slowest(s.now(), s.cfg().WriteTimeout); c != nil {
			c.hoards()
		}
		s.relieve()
		if s.rests.Load() > 0 {
			s.giveBack()
		}
		if i%10 == 0 && crowd.left(s.load()) {
			go freeMemory()
		}
		s.quotas.tell()
		if i%int(adviseEvery/tick) == int(adviseEvery/tick)-1 {
			s.advise()
		}
		if i%5 == 0 {
			for _, w := range s.ways.Load().all {
				left, back := w.Tend()
				if left {
					s.retireStale()
				}
				if back {
					s.rebalance(w, false)
				}
			}
			s.tendPools()
			s.gate.poke() // a login may have come that nobody goes on with
			s.forgive()
			s.strangers.tend()
			s.quotas.tend()
		}
	}
}

// freeMemory gives memory back to the system. It collects twice: pools of buffers give up what is
// idle only at the second collection.
func freeMemory() {
	runtime.GC()
	debug.FreeOSMemory()
}

// naps has a crowd of clients rest at the right time. Their readers get fresh stacks then, and the
// runtime makes those as large as the stacks in use were, on average, at its last collection: if
// that was while the crowd waited for channels, twice what an idle reader needs. So a crowd rests
// after a collection of its own, where that costs no more than a hundredth of the time.
type naps struct {
	under chan time.Duration // a collection is under way, and will tell what it took
	at    time.Time          // when the last one had ended
	took  time.Duration
}

// may is asked at each tick, with how many clients are tired. False: they rest at a later tick.
func (n *naps) may(tired int) bool {
	if n.under != nil {
		select {
		case n.took = <-n.under:
			n.under, n.at = nil, time.Now()
		default:
			return false
		}
	}
	if tired < restCrowd || time.Since(n.at) < max(100*n.took, restAfter/2) {
		return true
	}
	under := make(chan time.Duration, 1)
	n.under = under
	go func() {
		began := time.Now()
		runtime.GC()
		under <- time.Since(began)
	}()
	return false
}

// restCrowd is how many clients are worth a collection.
const restCrowd = 256

// giveBack returns memory to the system when a crowd of clients has come to rest: their
// stacks and what their handshakes left would otherwise stay until something else needs it.
func (s *Server) giveBack() {
	rests := s.rests.Load()
	if rests != s.restsSeen {
		s.restsSeen = rests
		return // more may come
	}
	s.rests.Store(0)
	s.restsSeen = 0
	if rests >= restCrowd {
		go freeMemory()
	}
}

func (s *Server) tendPools() {
	now := s.clock()
	for _, p := range s.allPools() {
		if !p.tend(now) {
			continue
		}
		l := &s.logins
		l.mu.Lock()
		// A client may have come for it meanwhile: poolOf counts under the same lock.
		p.mu.Lock()
		still := p.emptyLocked()
		p.mu.Unlock()
		if still {
			if p.account.pools[p.id.vhost] == p {
				delete(p.account.pools, p.id.vhost)
			}
			for i, x := range s.orphans {
				if x == p {
					s.orphans = append(s.orphans[:i], s.orphans[i+1:]...)
					break
				}
			}
			s.tidyLocked(p.account)
		}
		l.mu.Unlock()
	}
}

// load is about how much memory clients take now.
func (s *Server) load() int64 {
	const idle = 16 << 10 // of stack, buffers and what belongs to it
	s.budget.mu.Lock()
	used := s.budget.used
	s.budget.mu.Unlock()
	return int64(s.clients.len())*idle + s.queues.total.Load() + used
}

// crowd watches load for crowds that have left, by whatever way: what they took would stay until
// something else needs it.
type crowd struct {
	peak, last int64
}

// left is asked once a second. True: much less is in use than was, and it has come to rest.
func (c *crowd) left(load int64) bool {
	const much = 32 << 20
	last := c.last
	c.last = load
	if load >= c.peak {
		c.peak = load
		return false
	}
	if c.peak-load < max(much, c.peak/2) || last-load > much/8 {
		return false
	}
	c.peak = load
	return true
}

// The bound on connections to the broker, and the wait for a place at it.

package proxy

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// gate counts the connections to the broker, those being opened included.
type gate struct {
	s       *Server
	env     *env
	mu      sync.Mutex
	used    int
	waits   map[*gateWait]struct{}
	waiters atomic.Int32  // len(waits)
	changed chan struct{} // closed when a place may have come free
}

type gateWait struct{ since time.Time }

// take waits for a place in all and, when p is not nil, in the pool (beyond: whatever its bound). At a bound an idle
// upstream of whomever is closed to make one; for a session in the pool, a shared one too.
func (g *gate) take(p *pool, session, beyond bool) *amqp.Error {
	var timer *time.Timer
	var w *gateWait
	defer func() {
		if timer != nil {
			timer.Stop()
			g.mu.Lock()
			delete(g.waits, w)
			g.waiters.Add(-1)
			g.mu.Unlock()
		}
	}()
	for {
		cfg := g.env.cfg()
		setting, bound := "max_upstreams", cfg.MaxUpstreams
		g.mu.Lock()
		full := bound > 0 && g.used >= bound
		most := cfg.MaxUpstreamsPerIdentity
		if beyond {
			most = 0
		}
		if !full && p != nil && !p.arrives(most) {
			full, setting, bound = true, "max_upstreams_per_identity", cfg.MaxUpstreamsPerIdentity
		}
		if !full {
			g.used++
			g.mu.Unlock()
			return nil
		}
		if g.changed == nil {
			g.changed = make(chan struct{})
		}
		changed := g.changed
		if timer == nil {
			timer = time.NewTimer(cfg.WaitTimeout)
			w = &gateWait{since: time.Now()}
			if g.waits == nil {
				g.waits = make(map[*gateWait]struct{})
			}
			g.waits[w] = struct{}{}
			g.waiters.Add(1)
		}
		g.mu.Unlock()
		if setting == "max_upstreams" {
			g.s.evictIdle()
		} else {
			p.evict(session)
		}
		select {
		case <-changed:
		case <-timer.C:
			g.env.log.Warn("no place for a connection to the broker", "setting", setting, "bound", bound)
			return amqp.Errorf(amqp.ConnectionForced, 0,
				"no connection to the broker is free: %s = %d are in use", setting, bound)
		case <-g.env.ctx.Done():
			return errStopping
		}
	}
}

// full tells whether the pool can open no other connection now.
func (g *gate) full(p *pool) bool {
	cfg := g.env.cfg()
	g.mu.Lock()
	used := g.used
	g.mu.Unlock()
	p.mu.Lock()
	mine := len(p.ups) + p.opening
	p.mu.Unlock()
	most := cfg.MaxUpstreamsPerIdentity
	return cfg.MaxUpstreams > 0 && used >= cfg.MaxUpstreams || most > 0 && mine >= most
}

// try takes a place in all if one is free.
func (g *gate) try() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if bound := g.env.cfg().MaxUpstreams; bound > 0 && g.used >= bound {
		return false
	}
	g.used++
	return true
}

func (g *gate) give() {
	g.mu.Lock()
	g.used--
	g.wakeLocked()
	g.mu.Unlock()
}

func (g *gate) wakeLocked() {
	if g.changed != nil {
		close(g.changed)
		g.changed = nil
	}
}

// poke has those who wait look again: something became idle, or a bound changed.
func (g *gate) poke() {
	g.mu.Lock()
	g.wakeLocked()
	g.mu.Unlock()
}

// pokeIfWaiting is poke for the path of every connect.
func (g *gate) pokeIfWaiting() {
	if g.waiters.Load() > 0 {
		g.poke()
	}
}

func (g *gate) waiting() (n int, longest time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for w := range g.waits {
		longest = max(longest, time.Since(w.since))
	}
	return len(g.waits), longest
}

// evictIdle closes the upstream that has been idle longest, of any identity, or else a
// connection that waits for its vhost to be named.
func (s *Server) evictIdle() {
	var oldest *upstream
	var since time.Time
	for _, p := range s.allPools() {
		if u, t := p.oldestIdle(); u != nil && (oldest == nil || t.Before(since)) {
			oldest, since = u, t
		}
	}
	switch {
	case oldest == nil:
		s.dropSpares(1)
	case oldest.retireIdle():
		oldest.close("its place is needed")
	}
}

// The bound on connections to the broker, and the wait for a place at it.

package proxy

import (
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
	"github.com/amqproxysvc/amqproxysvc/proxy/wait"
)

// gate counts the connections to the broker, those being opened included. Whoever finds no place
// stands in a line: a place that comes free is the first's who can use it, before he wakes up.
type gate struct {
	s       *Server
	env     *env
	mu      lock.Mutex[lock.Gate]
	used    int
	line    wait.Line[*placeWanted]
	users   map[string]int // of used, those that have a pool, by its user
	vhosts  map[string]int // and by its vhost
	waiters atomic.Int32   // how many stand in the line
}

// placeWanted is what one waits for.
type placeWanted struct {
	p               *pool // nil: a place in all only
	session, beyond bool
	clients         func() int      // that wait for it; nil: one, or those of the pool
	gone            <-chan struct{} // closed when nobody wants it any more; nil: somebody will
	look            chan struct{}   // something may have become idle, whose place is to be taken

	// Guarded by gate.mu: what is in the way.
	setting string
	bound   int
	full    *upstreamsFull // nil: it is none of the limits
	delayed bool           // which has been counted
}

// take waits for a place in all and, when a pool is named, in that (beyond: whatever its bound). At the bound
// in all an idle upstream of any pool is closed to make one; at the pool's one that was a session, or for a session any.
func (g *gate) take(w *placeWanted) (*berth, *amqp.Error) {
	p := w.p
	w.look = make(chan struct{}, 1)
	g.mu.Lock()
	place := g.line.JoinLocked(w)
	g.serveLocked()
	g.mu.Unlock()
	b := &berth{g: g, p: p, opening: p != nil}
	select {
	case <-place.Served():
		return b, nil
	default:
	}
	timer := time.NewTimer(g.env.cfg().WaitTimeout)
	defer timer.Stop()
	for {
		g.makePlace(w)
		select {
		case <-place.Served():
			return b, nil
		case <-w.look:
		case <-timer.C:
			if g.leave(place) {
				g.env.log.Warn("no place for a connection to the broker", "setting", w.setting, "bound", w.bound)
				if f := w.full; f != nil {
					g.s.quotas.hit(f.kind, f.name, limitUpstreams, limitRefused, f.rule)
				}
				return nil, amqp.Errorf(amqp.ConnectionForced, 0,
					"no connection to the broker is free: %s = %d are in use", w.setting, w.bound)
			}
			return b, nil
		case <-w.gone:
			if g.leave(place) {
				return nil, errGone
			}
			return b, nil
		case <-g.env.ctx.Done():
			if g.leave(place) {
				return nil, errStopping
			}
			return b, nil
		}
	}
}

// leave ends a wait. False: it has been served, and the place is the caller's.
func (g *gate) leave(place *wait.Place[*placeWanted]) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	left := g.line.LeaveLocked(place)
	g.serveLocked() // the one behind is the first now
	return left
}

// makePlace ends something idle that is in the way of w.
func (g *gate) makePlace(w *placeWanted) {
	g.mu.Lock()
	setting, full := w.setting, w.full
	g.mu.Unlock()
	switch {
	case full != nil:
		g.s.evictIdle(full.counts)
	case setting == "max_upstreams":
		g.s.evictIdle(nil)
	default:
		w.p.evict(w.session)
	}
}

// serveLocked gives the places that are free to those who came first, and has the first of those
// who wait on look for something idle: of all, and of each pool at its own bound.
func (g *gate) serveLocked() {
	cfg := g.env.cfg()
	full := false
	var looks map[*pool]bool
	g.line.ServeLocked(func(place *wait.Place[*placeWanted]) wait.Verdict {
		w := place.Want
		if cfg.MaxUpstreams > 0 && g.used >= cfg.MaxUpstreams {
			w.setting, w.bound, w.full = "max_upstreams", cfg.MaxUpstreams, nil
			if !full {
				full = true
				offer(w.look)
			}
			return wait.Skip // to note what is in the way of the others too
		}
		most := cfg.MaxUpstreamsPerIdentity
		if w.beyond {
			most = 0
		}
		w.full = nil
		if w.p != nil && !w.beyond {
			w.full = g.limitedLocked(w.p)
		}
		switch {
		case w.full != nil:
			w.setting, w.bound = w.full.setting(), w.full.rule.MaxUpstreams
			if !w.delayed {
				w.delayed = true
				g.s.quotas.hit(w.full.kind, w.full.name, limitUpstreams, limitDelayed, w.full.rule)
			}
		case w.p == nil:
			g.used++
			return wait.Serve
		case w.p.arrives(most):
			g.used++
			g.cameLocked(w.p)
			return wait.Serve
		default:
			w.setting, w.bound = "max_upstreams_per_identity", most
		}
		if !looks[w.p] {
			if looks == nil {
				looks = make(map[*pool]bool)
			}
			looks[w.p] = true
			offer(w.look)
		}
		return wait.Skip
	})
	g.waiters.Store(int32(g.line.LenLocked()))
}

// offer leaves a signal that is not there yet.
func offer(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// full reports whether the pool can open no other connection now.
func (g *gate) full(p *pool) bool {
	cfg := g.env.cfg()
	g.mu.Lock()
	used, limited := g.used, g.limitedLocked(p) != nil
	g.mu.Unlock()
	if limited {
		return true
	}
	p.mu.Lock()
	mine := len(p.ups) + p.opening
	p.mu.Unlock()
	most := cfg.MaxUpstreamsPerIdentity
	return cfg.MaxUpstreams > 0 && used >= cfg.MaxUpstreams || most > 0 && mine >= most
}

// try takes a place in all if one is free and nobody came before who can use it. Nil: there is none.
func (g *gate) try() *berth {
	g.mu.Lock()
	defer g.mu.Unlock()
	place := g.line.JoinLocked(&placeWanted{look: make(chan struct{}, 1)})
	g.serveLocked()
	served := !g.line.LeaveLocked(place)
	g.waiters.Store(int32(g.line.LenLocked()))
	if !served {
		return nil
	}
	return &berth{g: g}
}

// limitedLocked is the limit that lets the pool have no connection more; nil: none.
func (g *gate) limitedLocked(p *pool) *upstreamsFull {
	return g.s.quotas.upstreams(p.id, [2]int{byUser: g.users[p.id.user], byVHost: g.vhosts[p.id.vhost]})
}

// cameLocked counts a connection that has a place in its pool.
func (g *gate) cameLocked(p *pool) {
	if g.users == nil {
		g.users, g.vhosts = make(map[string]int), make(map[string]int)
	}
	g.users[p.id.user]++
	g.vhosts[p.id.vhost]++
	g.s.quotas.upstreamsAlarm(p.id, [2]int{byUser: g.users[p.id.user], byVHost: g.vhosts[p.id.vhost]})
}

func (g *gate) wentLocked(p *pool) {
	less := func(of map[string]int, name string) {
		if of[name]--; of[name] == 0 {
			delete(of, name)
		}
	}
	less(g.users, p.id.user)
	less(g.vhosts, p.id.vhost)
}

// give takes back a place; p: and one in that pool.
func (g *gate) give(p *pool) {
	g.mu.Lock()
	g.used--
	if p != nil {
		g.wentLocked(p)
	}
	g.serveLocked()
	g.mu.Unlock()
}

// poke serves those who wait: something became idle, or a bound changed.
func (g *gate) poke() {
	g.mu.Lock()
	g.serveLocked()
	g.mu.Unlock()
}

// pokeIfWaiting is poke for the path of every connect.
func (g *gate) pokeIfWaiting() {
	if g.waiters.Load() > 0 {
		g.poke()
	}
}

// waiting is how many clients wait for a place and how long the first has: those who wait for a
// login, or for a shared connection of a pool, wait for one place together, and nobody for what is
// checked behind a login that was served.
func (g *gate) waiting() (n int, longest time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	counted := make(map[*pool]bool)
	g.line.ServeLocked(func(place *wait.Place[*placeWanted]) wait.Verdict {
		w := place.Want
		if w.beyond {
			return wait.Skip
		}
		longest = max(longest, time.Since(place.Since))
		switch {
		case w.clients != nil:
			n += w.clients()
		case w.p == nil || w.session:
			n++
		case !counted[w.p]: // its first login and a connection more are wanted side by side
			counted[w.p] = true
			w.p.mu.Lock()
			n += max(1, w.p.waiting+w.p.entering)
			w.p.mu.Unlock()
		}
		return wait.Skip
	})
	return n, longest
}

// evictIdle closes the upstream that has been idle longest, of those pools that are meant. Where all are, nil, it may
// be a connection that waits for its vhost to be named.
func (s *Server) evictIdle(which func(*pool) bool) {
	var oldest *upstream
	var since time.Time
	for _, p := range s.allPools() {
		if which != nil && !which(p) {
			continue
		}
		if u, t := p.oldestIdle(); u != nil && (oldest == nil || t.Before(since)) {
			oldest, since = u, t
		}
	}
	switch {
	case oldest == nil && which != nil:
	case oldest == nil:
		s.dropSpares(1)
	case oldest.retireIdle():
		oldest.close("its place is needed")
	}
}

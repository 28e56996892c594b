// The bound on connections to the broker, and the wait for a place at it.

package proxy

import (
	"cmp"
	"slices"
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
	rows    map[rowKey]*row
	order   []*row         // by when the first of each came
	turns   uint64         // how many came
	users   map[string]int // of used, those that have a pool, by its user
	vhosts  map[string]int // and by its vhost
	waiters atomic.Int32   // how many stand in the line; written under mu
}

// row are those of the line who want the same. Where the first of them can have nothing the others cannot either, so that
// nobody looks at them: a crowd that waits costs whoever comes or leaves no more than one who waits.
type row struct {
	rowKey
	line wait.Line[*placeWanted]

	// What is in the way of the first, beside max_upstreams.
	setting string
	bound   int
	full    *upstreamsFull // nil: it is none of the limits
}

// rowKey is what they want, see placeWanted.
type rowKey struct {
	p      *pool
	beyond bool
}

// placeWanted is what one waits for.
type placeWanted struct {
	p               *pool // nil: a place in all only
	session, beyond bool
	clients         func() int      // that wait for it; nil: one, or those of the pool
	gone            <-chan struct{} // closed when nobody wants it any more; nil: somebody will
	look            chan struct{}   // something may have become idle, whose place is to be taken

	// Guarded by gate.mu.
	row     *row
	turn    uint64
	delayed bool // by a limit, which has been counted
}

// take waits for a place in all and, when a pool is named, in that (beyond: whatever its bound). At the bound
// in all an idle upstream of any pool is closed to make one; at the pool's one that was a session, or for a session any.
func (g *gate) take(w *placeWanted) (*berth, *amqp.Error) {
	w.look = make(chan struct{}, 1)
	g.mu.Lock()
	place := g.joinLocked(w)
	g.mu.Unlock()
	b := &berth{g: g, p: w.p, opening: w.p != nil}
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
			setting, bound, full := g.inTheWay(w)
			if g.leave(place) {
				g.env.log.Warn("no place for a connection to the broker", "setting", setting, "bound", bound)
				if full != nil {
					g.s.quotas.hit(full.kind, full.name, limitUpstreams, limitRefused, full.rule)
				}
				return nil, amqp.Errorf(amqp.ConnectionForced, 0,
					"no connection to the broker is free: %s = %d are in use", setting, bound)
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

// joinLocked begins a wait, which is over if there is a place.
func (g *gate) joinLocked(w *placeWanted) *wait.Place[*placeWanted] {
	k := rowKey{w.p, w.beyond}
	r := g.rows[k]
	if r == nil {
		if g.rows == nil {
			g.rows = make(map[rowKey]*row)
		}
		r = &row{rowKey: k}
		g.rows[k] = r
		g.order = append(g.order, r)
	}
	g.turns++
	w.row, w.turn = r, g.turns
	place := r.line.JoinLocked(w)
	g.waiters.Add(1)
	switch { // those before it have what they can have
	case g.allUsedLocked():
	case r.line.FirstLocked() != place:
		if w.p != nil && !w.beyond {
			g.delayedLocked(w, g.limitedLocked(w.p))
		}
	case !g.blockedLocked(w):
		g.serveFirstLocked(len(g.order) - 1)
	}
	return place
}

// leave ends a wait. False: it has been served, and the place is the caller's.
func (g *gate) leave(place *wait.Place[*placeWanted]) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.leaveLocked(place)
}

func (g *gate) leaveLocked(place *wait.Place[*placeWanted]) bool {
	w := place.Want
	first := w.row.line.FirstLocked() == place
	at := 0
	if first {
		at = g.turnLocked(w.turn)
	}
	if !w.row.line.LeaveLocked(place) {
		return false
	}
	g.waiters.Add(-1)
	if !first {
		return true
	}
	g.firstLeftLocked(at)
	// The one behind is the first now.
	switch all := g.allUsedLocked(); {
	case !all && w.row.line.LenLocked() > 0:
		w.row.lookLocked()
	case all && at == 0 && len(g.order) > 0:
		g.order[0].lookLocked()
	}
	return true
}

// turnLocked is where a row is in the order whose first came then.
func (g *gate) turnLocked(turn uint64) int {
	at, _ := slices.BinarySearchFunc(g.order, turn, func(r *row, turn uint64) int {
		return cmp.Compare(r.line.FirstLocked().Want.turn, turn)
	})
	return at
}

// firstLeftLocked puts a row whose first has left the line to where its next one's turn is.
func (g *gate) firstLeftLocked(at int) {
	r := g.order[at]
	g.order = slices.Delete(g.order, at, at+1)
	next := r.line.FirstLocked()
	if next == nil {
		delete(g.rows, r.rowKey)
		return
	}
	g.order = slices.Insert(g.order, g.turnLocked(next.Want.turn), r)
}

// allUsedLocked reports whether max_upstreams is in the way of everybody.
func (g *gate) allUsedLocked() bool {
	most := g.env.cfg().MaxUpstreams
	return most > 0 && g.used >= most
}

// inTheWay is the setting that one who waits has no place for, its value, and which of the limits it is.
func (g *gate) inTheWay(w *placeWanted) (setting string, bound int, full *upstreamsFull) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r := w.row; r.setting != "" && !g.allUsedLocked() {
		return r.setting, r.bound, r.full
	}
	return "max_upstreams", g.env.cfg().MaxUpstreams, nil
}

// makePlace ends something idle that is in the way of w.
func (g *gate) makePlace(w *placeWanted) {
	setting, _, full := g.inTheWay(w)
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
	for at := 0; at < len(g.order); {
		r := g.order[at]
		switch {
		case g.allUsedLocked():
			r.lookLocked()
			return
		case g.blockedLocked(r.line.FirstLocked().Want):
			r.lookLocked()
			at++
		default:
			g.serveFirstLocked(at)
		}
	}
}

// serveFirstLocked gives the first of a row its place, which its pool counts already.
func (g *gate) serveFirstLocked(at int) {
	r := g.order[at]
	g.used++
	if r.p != nil {
		g.cameLocked(r.p)
	}
	r.line.ServeFirstLocked()
	g.waiters.Add(-1)
	g.firstLeftLocked(at)
}

// blockedLocked notes what is in the way of one, beside max_upstreams. False: nothing is, and its pool counts the place.
func (g *gate) blockedLocked(w *placeWanted) bool {
	if w.p == nil {
		return false
	}
	most := g.env.cfg().MaxUpstreamsPerIdentity
	if w.beyond {
		most = 0
	}
	r := w.row
	r.full = nil
	if !w.beyond {
		r.full = g.limitedLocked(w.p)
	}
	switch {
	case r.full != nil:
		r.setting, r.bound = r.full.setting(), r.full.rule.MaxUpstreams
		g.delayedLocked(w, r.full)
	case w.p.arrives(most):
		return false
	default:
		r.setting, r.bound = "max_upstreams_per_identity", most
	}
	return true
}

// lookLocked has the first of a row look for something idle.
func (r *row) lookLocked() {
	select {
	case r.line.FirstLocked().Want.look <- struct{}{}:
	default: // it is about to
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

// delayedLocked counts one who waits at a limit.
func (g *gate) delayedLocked(w *placeWanted, full *upstreamsFull) {
	if full != nil && !w.delayed {
		w.delayed = true
		g.s.quotas.hit(full.kind, full.name, limitUpstreams, limitDelayed, full.rule)
	}
}

// try takes a place in all if one is free and nobody came before who can use it. Nil: there is none.
func (g *gate) try() *berth {
	g.mu.Lock()
	defer g.mu.Unlock()
	place := g.joinLocked(&placeWanted{look: make(chan struct{}, 1)})
	if g.leaveLocked(place) {
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

// poke serves those who wait, and has them look: a bound changed.
func (g *gate) poke() {
	g.mu.Lock()
	g.serveLocked()
	g.mu.Unlock()
}

// idle has those look who wait for what has become idle in a pool. It is on the path of every connect.
func (g *gate) idle(p *pool) {
	if g.waiters.Load() == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.order) > 0 && g.allUsedLocked() {
		g.order[0].lookLocked()
		return
	}
	if r := g.rows[rowKey{p: p}]; r != nil {
		r.lookLocked()
	}
	if g.s.quotas.rules.Load() == nil {
		return
	}
	for _, r := range g.order {
		if r.full != nil && r.p != p && r.full.counts(p) {
			r.lookLocked()
		}
	}
}

// waiting is how many clients wait for a place and how long the first has: those who wait for a
// login, or for a shared connection of a pool, wait for one place together, and nobody for what is
// checked behind a login that was served.
func (g *gate) waiting() (n int, longest time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.order {
		if r.beyond {
			continue
		}
		_, first := r.line.WaitingLocked()
		longest = max(longest, first)
		counted := false
		r.line.ServeLocked(func(place *wait.Place[*placeWanted]) wait.Verdict {
			switch w := place.Want; {
			case w.clients != nil:
				n += w.clients()
			case w.p == nil || w.session:
				n++
			case !counted: // its first login and a connection more are wanted side by side
				counted = true
				w.p.mu.Lock()
				n += max(1, w.p.waiting+w.p.entering)
				w.p.mu.Unlock()
			}
			return wait.Skip
		})
	}
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

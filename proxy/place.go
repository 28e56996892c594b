// Places: a channel's on an upstream, and a connection's at the bounds on connections (its berth).
// Both are given back once, by whoever comes to it first; a second time is nothing.

package proxy

import "sync/atomic"

// place is a channel's on an upstream, promised by its pool. The zero value is none.
type place struct {
	u    *upstream
	left bool // guarded by pool.mu
}

// leave gives the place back.
func (pl *place) leave() {
	if pl.u != nil {
		pl.u.pool.leavePlace(pl, false)
	}
}

// lose gives the place back whose channel id can never be used again.
func (pl *place) lose() {
	if pl.u != nil {
		pl.u.pool.leavePlace(pl, true)
	}
}

// placeLocked counts a channel more, whose lane becomes that of an upstream that has none.
func (u *upstream) placeLocked(l lane) place {
	if u.lane == laneNone {
		u.lane = max(l, lanePublish)
	}
	u.load++
	return place{u: u}
}

// promise gives a channel a place on one upstream, whatever its lane: a session's, or if one is
// free the proxy's own. A session's channel waits for an id only after that. False: there is none, or the session is to be replaced.
func (p *pool) promise(u *upstream, ifFree bool) (place, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ifFree && u.load+u.lost >= int(u.ids.limit) || !ifFree && u.retired && u.unusedLocked() {
		return place{}, false
	}
	u.load++
	return place{u: u}, true
}

func (p *pool) leavePlace(pl *place, lost bool) {
	u := pl.u
	p.mu.Lock()
	if pl.left {
		p.mu.Unlock()
		return
	}
	pl.left = true
	if lost {
		u.lost++
	}
	u.load--
	end := false
	if u.load == 0 {
		u.lane = laneNone
		u.idleFrom = p.env.clock()
		end = u.retired && u.unusedLocked()
	}
	p.changed.FireLocked()
	p.mu.Unlock()
	if end {
		u.closeUnused("retired")
	}
	p.s.gate.idle(p)
}

// berth is a connection's place at the bounds: in all, from before it is dialled until its socket is
// closed, and in its pool, where the upstream counts itself from when it has arrived there.
type berth struct {
	g    *gate
	p    *pool // nil: it has a place in all only; written before others know of it
	left atomic.Bool

	opening bool // it counts in p.opening; guarded by p.mu
}

// join takes a place in the pool too, for a connection that has one in all. False: there is none.
func (b *berth) join(p *pool) bool {
	g := b.g
	g.mu.Lock()
	joins := g.limitedLocked(p) == nil && p.arrives(p.env.cfg().MaxUpstreamsPerIdentity)
	if joins {
		g.cameLocked(p)
	}
	g.mu.Unlock()
	if !joins {
		return false
	}
	b.p, b.opening = p, true
	return true
}

// arrivedLocked is for an upstream that its pool counts from now on, under p.mu.
func (b *berth) arrivedLocked() {
	if b.opening {
		b.opening = false
		b.p.opening--
	}
}

// leave gives back whatever the connection has a place in.
func (b *berth) leave() {
	if b.left.Swap(true) {
		return
	}
	if p := b.p; p != nil {
		p.mu.Lock()
		b.arrivedLocked()
		p.changed.FireLocked()
		p.mu.Unlock()
	}
	b.g.give(b.p)
}

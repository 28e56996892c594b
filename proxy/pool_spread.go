// Spread: several connections for one identity, which a pool otherwise fills one after the other,
// and connections over several brokers.

package proxy

import (
	"cmp"
	"context"
	"math"
	"slices"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
)

// narrowFor is how long a pool that found no place for one more connection opens none but those
// that channels need.
const narrowFor = 30 * time.Second

// spread is how many connections an identity may have in a lane before channels share them. Both
// lanes together stay within its bound.
func (c *Config) spread() int {
	if most := c.MaxUpstreamsPerIdentity; most > 0 {
		return max(1, min(c.Spread, most/2))
	}
	return c.Spread
}

// trySpreadLocked gives a channel a place on one of the upstreams with the fewest: where there are as many as spread says
// on the one that was given the fewest so far, which may have one more, else whichever answers faster would carry most of
// the messages. Where there are not as many, one that is idle is taken and another opened behind; where none is idle, none
// is taken.
func (p *pool) trySpreadLocked(l lane, spread int) (place, bool) {
	have, least := 0, math.MaxInt
	gone := int64(math.MaxInt64) // how many channels each has had, at least, that have ended: a new one is no fewer behind
	for _, u := range p.ups {
		if !u.session && u.owner.Load() == nil && !u.retired && (u.lane == laneNone || u.lane == max(l, lanePublish)) {
			have++
		}
		if p.fitsLocked(u, l) {
			least = min(least, u.load)
			if u.given > 0 {
				gone = min(gone, u.given-int64(u.load))
			}
		}
	}
	if least == math.MaxInt {
		return place{}, false
	}
	more := 1
	if have < spread && p.env.now() >= p.narrowTo {
		if least > 0 {
			return place{}, false
		}
		if p.dialling == nil {
			p.dialLocked((*pool).widen)
		}
		more = 0
	}
	var best *upstream
	var bestGiven int64
	for _, u := range p.ups {
		if u.load > least+more || !p.fitsLocked(u, l) {
			continue
		}
		given := u.given
		if given == 0 && gone < math.MaxInt64 {
			given = gone
		}
		if best == nil || given < bestGiven || given == bestGiven && u.load < best.load {
			best, bestGiven = u, given
		}
	}
	best.given = bestGiven + 1
	return best.placeLocked(l), true
}

// widen opens one more upstream if there is a place for it. Nobody needs it now.
func (p *pool) widen(f *loginFlight) {
	if !p.s.gate.full(p) {
		p.dialShared(f)
		return
	}
	p.mu.Lock()
	p.narrowLocked()
	p.dialling = nil
	f.Land(verdict{}) // who waits looks again
	p.changed.FireLocked()
	p.mu.Unlock()
}

// narrow has channels share what there is for a while, at a bound on connections. It gives a
// channel a place there.
func (p *pool) narrow(l lane) (place, bool) {
	if p.env.cfg().spread() == 1 {
		return place{}, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.narrowLocked()
	return p.tryLocked(nil, l)
}

func (p *pool) narrowLocked() { p.narrowTo = p.env.now() + int64(narrowFor) }

// beside has a dial go to the target with the fewest of the pool's connections, where these are to
// be spread. A shared one more than channels need waits for no broker that is away.
func (p *pool) beside(ctx context.Context, shared bool) context.Context {
	cfg := p.env.cfg()
	if cfg.spread() == 1 {
		return ctx
	}
	at := make(map[string]int)
	room := false
	p.mu.Lock()
	for _, u := range p.ups {
		if !u.retired {
			at[u.link.Target.Address()]++
		}
		room = room || p.dialling != nil && shared && p.roomLocked(u)
	}
	p.mu.Unlock()
	if room {
		ctx = broker.AtOnce(ctx)
	}
	return broker.Beside(ctx, at)
}

// lifetime is max_lifetime, up to a tenth less: what was opened together does not end together.
func (u *upstream) lifetime(most time.Duration) time.Duration {
	const steps = 64
	return most - most/10*time.Duration(u.n*0x9E3779B97F4A7C15>>58)/steps
}

// rebalance has the surplus of connections at the targets that stood in for another end with their
// last channel, when that has come back: what comes then goes there. Nobody is cut. Where they are asked in their
// order, and somebody has asked for it, that are all but those at the first.
func (s *Server) rebalance(w *way, asked bool) (surplus int) {
	inOrder, first := w.InOrder(), ""
	if inOrder && !asked {
		return 0
	}
	at := make(map[string][]*upstream)
	n, up := 0, 0
	for _, t := range w.Targets() {
		if t.Up {
			if up++; up == 1 {
				first = t.Address
			}
			at[t.Address] = nil
		}
	}
	if up < 2 {
		return 0
	}
	load := make(map[*upstream]int)
	for _, p := range s.allPools() {
		p.mu.Lock()
		for _, u := range p.ups {
			a := u.link.Target.Address()
			if _, known := at[a]; !known || u.retired || u.to.way != w {
				continue
			}
			n++
			at[a] = append(at[a], u)
			load[u] = u.load
			if u.owner.Load() != nil {
				load[u] = 1 << 16 // its client keeps it
			}
		}
		p.mu.Unlock()
	}
	fair := (n + up - 1) / up
	for a, ups := range at {
		fair := fair
		if inOrder {
			fair = 0
			if a == first {
				fair = len(ups)
			}
		}
		if len(ups) <= fair {
			continue
		}
		slices.SortFunc(ups, func(a, b *upstream) int { return cmp.Compare(load[a], load[b]) })
		for _, u := range ups[:len(ups)-fair] {
			surplus++
			if u.retireIdle() {
				u.close("another broker has fewer connections")
			} else {
				u.retire()
			}
		}
	}
	if surplus > 0 {
		s.log.Info("connections are spread anew", "retired", surplus, "of", n, "brokers", up)
	}
	return surplus
}

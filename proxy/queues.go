// client_queues: the bound on what waits for all clients together.

package proxy

import (
	"cmp"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

const (
	// countStep is how much a client's queue changes before it is counted anew: those of clients
	// that keep up are not.
	countStep = 32 << 10
	// tightHigh is how much may wait for a sole tenant before the broker's socket is left
	// alone, where much waits for others.
	tightHigh = 32 << 10
)

// queues counts what is held for clients, but for countStep of each.
type queues struct {
	total atomic.Int64
	tight atomic.Bool   // more than half of client_queues is in use
	full  chan struct{} // has one element when more waits than may
}

// high is how much may wait for a client before it crowds its upstream.
func (q *queues) high(cfg *Config) int {
	high := min(sessionHigh, cfg.ClientQueue/2)
	if q.tight.Load() {
		high = min(high, tightHigh)
	}
	return high
}

// add counts d bytes more.
func (q *queues) add(d int, most int64) {
	total := q.total.Add(int64(d))
	if most <= 0 {
		if q.tight.Load() {
			q.tight.Store(false)
		}
		return
	}
	if tight := total > most/2; tight != q.tight.Load() {
		q.tight.Store(tight)
	}
	if total > most {
		select {
		case q.full <- struct{}{}:
		default:
		}
	}
}

// countLocked has the client's queue counted if it has changed much.
func (c *client) countLocked() {
	waiting := c.out.MemLocked()
	if c.uncounted {
		return
	}
	if waiting <= countStep {
		waiting = 0
	}
	d := waiting - c.counted
	if -countStep < d && d < countStep {
		return
	}
	c.counted = waiting
	c.counting.Store(waiting > 0)
	c.s.queues.add(d, c.env.cfg().ClientQueues)
}

// uncountLocked is for a client that has ended.
func (c *client) uncountLocked() {
	c.uncounted = true
	if c.counted != 0 {
		c.s.queues.add(-c.counted, c.env.cfg().ClientQueues)
		c.counted = 0
		c.counting.Store(false)
	}
}

// glutLocked notes whether the client is to read before it is asked for more.
func (c *client) glutLocked() {
	waiting := c.out.LenLocked()
	if waiting < countStep && c.counted == 0 {
		c.glut = false
		return
	}
	c.countLocked()
	c.glut = waiting > c.env.cfg().ClientQueue || c.s.queues.tight.Load() && waiting > tightHigh
}

// relieve ends those for whom most waits, where more waits for all than may. A sole tenant's queue
// is not what it is about: its upstream waits for it.
func (s *Server) relieve() {
	most := s.cfg().ClientQueues
	if most <= 0 || s.queues.total.Load() <= most {
		return
	}
	type crowder struct {
		c *client
		n int
	}
	var all []crowder
	over := -most // of those that stay: a client that has been ended is on its way, and may leave meanwhile
	for _, c := range s.clients.appendTo(nil, func(c *client) bool { return c.counting.Load() }) {
		c.mu.Lock()
		c.countLocked()
		n, ended := c.counted, c.phase.Load() == phaseClosing
		c.mu.Unlock()
		if ended {
			continue
		}
		over += int64(n)
		all = append(all, crowder{c, n})
	}
	slices.SortFunc(all, func(a, b crowder) int { return cmp.Compare(b.n, a.n) })
	for _, x := range all {
		if over <= 0 {
			return
		}
		if x.c.yields() {
			over -= int64(x.n)
		}
	}
}

// yields ends the client for what waits for all, unless nobody else is served by the upstream that feeds it.
func (c *client) yields() bool {
	c.mu.Lock()
	if c.phase.Load() != phaseRunning || c.hasOwnLocked() {
		c.mu.Unlock()
		return false
	}
	c.env.n.slowCloses.Add(1)
	c.out.DropLocked()
	c.countLocked()
	most := c.env.cfg().ClientQueues
	c.closeLocked(amqp.Errorf(amqp.ResourceError, 0,
		"the client reads too slowly: more than client_queues = %d bytes wait for all clients, and most for it", most))
	since := c.out.WriteSince.Load()
	stuck := since != 0 && c.env.now()-since >= int64(tick/time.Nanosecond)
	c.mu.Unlock()
	c.log(slog.LevelWarn, "client closed: it reads too slowly, and too much waits for all", "client_queues", most)
	if stuck {
		c.closeSocket() // it would not hear the reason behind all that is on its way
	}
	return true
}

// hasOwnLocked reports whether all that feed the client serve it alone: these wait for it.
func (c *client) hasOwnLocked() bool {
	if c.fedBy != nil && !c.fedBy.isFor(c) {
		return false
	}
	return !slices.ContainsFunc(c.crowdedAt, func(u *upstream) bool { return !u.isFor(c) })
}

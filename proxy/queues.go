// client_queues: the bound on what waits for all clients together.

package proxy

import (
	"cmp"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
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
	tight atomic.Bool  // more than half of client_queues is in use
	over  atomic.Bool  // more than may, which relieve may help: who adds sees to it before it adds more
	least atomic.Int64 // what relieve left where that was more than may; else 0

	mu    lock.Mutex[lock.Leaf]
	under chan struct{} // closed when the relief that is under way has ended; nil: none is
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
		q.tight.Store(false)
		q.over.Store(false)
		return
	}
	if tight := total > most/2; tight != q.tight.Load() {
		q.tight.Store(tight)
	}
	if total <= most && q.least.Load() != 0 {
		q.least.Store(0)
	}
	if over := total > most && total > q.least.Load()+most/16; over != q.over.Load() {
		q.over.Store(over)
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

// relieve ends those for whom most is held, where more is held for all than may, or waits until another
// goroutine has done so. It waits for nothing else: who calls it, without a lock, goes on soon. A sole
// tenant's queue is not what it is about: its upstream waits for it.
func (s *Server) relieve() {
	q := &s.queues
	most := s.cfg().ClientQueues
	if most <= 0 || q.total.Load() <= most {
		q.add(0, most)
		return
	}
	q.mu.Lock()
	if under := q.under; under != nil {
		q.mu.Unlock()
		<-under
		return
	}
	under := make(chan struct{})
	q.under = under
	q.mu.Unlock()
	left := s.endLongest(most)
	q.mu.Lock()
	q.under = nil
	q.mu.Unlock()
	q.least.Store(left)
	q.add(0, most)
	close(under)
}

// endLongest ends those for whom most is held until no more is held for the others than may, and returns
// how much that is where it is more: nobody is left then who is to be ended. Else 0.
func (s *Server) endLongest(most int64) (left int64) {
	type crowder struct {
		c *client
		n int
	}
	var all []crowder
	over := -most
	for _, c := range s.clients.appendTo(nil, func(c *client) bool { return c.counting.Load() }) {
		c.mu.Lock()
		c.countLocked()
		n := c.counted
		c.mu.Unlock()
		over += int64(n)
		all = append(all, crowder{c, n})
	}
	slices.SortFunc(all, func(a, b crowder) int { return cmp.Compare(b.n, a.n) })
	for _, x := range all {
		if over <= 0 {
			return 0
		}
		if x.c.yields() {
			over -= int64(x.n)
		}
	}
	if over <= 0 {
		return 0
	}
	return most + over
}

// yields ends the client for what waits for all, unless nobody else is served by the upstream that feeds it.
func (c *client) yields() bool {
	c.mu.Lock()
	if c.uncounted || c.hasOwnLocked() {
		c.mu.Unlock()
		return false
	}
	c.out.DropLocked()
	c.uncountLocked()                   // what is being written is of its own share, and nothing is added any more
	if c.phase.Load() != phaseRunning { // it is about to end, but much may wait for it until then
		c.mu.Unlock()
		c.closeSocket()
		return true
	}
	c.env.n.slowCloses.Add(1)
	most := c.env.cfg().ClientQueues
	c.closeLocked(amqp.Errorf(amqp.ResourceError, 0,
		"the client reads too slowly: more than client_queues = %d bytes wait for all clients, and most for it", most))
	since := c.out.WriteSince.Load()
	stuck := since != 0 && c.env.now()-since >= int64(tick/time.Nanosecond)
	c.mu.Unlock()
	c.env.spawn(func() {
		c.log(slog.LevelWarn, "client closed: it reads too slowly, and too much waits for all", "client_queues", most)
	})
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

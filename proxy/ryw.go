// Read your writes: a client that reads or declares waits until the quiet closes of the same
// identity that came before it are through.

package proxy

import (
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
)

// ticket stands for one quiet close that the broker has not answered.
type ticket struct {
	b    *binding
	done chan struct{}
}

// pendingCloses are the quiet closes under way of one identity.
type pendingCloses struct {
	n  atomic.Int32 // len(open), for the fast path
	mu lock.Mutex[lock.Closes]
	// open is unordered: a reader waits for all that are there when it comes.
	open map[*ticket]struct{}
}

func (p *pendingCloses) add(b *binding) *ticket {
	t := &ticket{b: b, done: make(chan struct{})}
	p.mu.Lock()
	if p.open == nil {
		p.open = make(map[*ticket]struct{})
	}
	p.open[t] = struct{}{}
	p.n.Store(int32(len(p.open)))
	p.mu.Unlock()
	return t
}

func (p *pendingCloses) finish(t *ticket) {
	p.mu.Lock()
	if _, ok := p.open[t]; ok {
		delete(p.open, t)
		p.n.Store(int32(len(p.open)))
		close(t.done)
	}
	p.mu.Unlock()
}

// wait returns when all closes that are under way now, of one upstream or with nil of all, are
// through, at the latest after timeout. It reports whether there were any. A close behind an alarm
// is not waited for: the broker does not read it. Of a broker that has gone silent the client hears
// within two of its heartbeats, even if it needs a new connection after the wait, which may take connect.
func (p *pendingCloses) wait(of *upstream, timeout, connect time.Duration, cancel <-chan struct{}) bool {
	p.mu.Lock()
	waits := make([]*ticket, 0, len(p.open))
	for t := range p.open {
		if u := t.b.u; !u.blocked.Load() && (of == nil || of == u) {
			waits = append(waits, t)
			if u.heartbeat > 0 {
				timeout = min(timeout, max(2*u.heartbeat-connect, u.heartbeat/2))
			}
		}
	}
	p.mu.Unlock()
	if len(waits) == 0 {
		return false
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for _, t := range waits {
		select {
		case <-t.done:
		case <-timer.C:
			return true
		case <-cancel:
			return true
		}
	}
	return true
}

// readYourWrites waits until the quiet closes of the identity that came before are through.
func (c *client) readYourWrites() { c.awaitQuietCloses(nil) }

// awaitQuietCloses waits until the quiet closes that came before are through: those of one upstream, or
// with nil all of the identity.
func (c *client) awaitQuietCloses(of *upstream) {
	if c.pool.closes.n.Load() == 0 {
		return
	}
	c.settle()
	cfg := c.env.cfg()
	began := time.Now()
	if c.pool.closes.wait(of, cfg.CloseTimeout, cfg.ConnectTimeout, c.gone) {
		c.env.n.heldBehindCloses.Add(1)
		c.env.n.heldTime.Add(int64(time.Since(began)))
	}
}

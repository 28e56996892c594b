// What waits for a client: the broker's deliveries and replies, the proxy's own answers, and
// the bound on both.

package proxy

import (
	"log/slog"
	"slices"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/ledger"
)

// deliver queues frames of a binding. True: the client must be woken. Frames of a channel
// that is not open, or that has moved, go nowhere.
func (c *client) deliver(b *binding, p []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if st := b.ch.state.Load(); c.phase.Load() != phaseRunning || (st != chOpen && st != chClosing) || b.ch.cur.Load() != b {
		return false
	}
	c.out.AppendLocked(p)
	c.measureLocked(b.u)
	return true
}

// measureLocked keeps the queue in its bounds: a crowded client's upstream takes no new
// tenants; a full queue ends the client, unless the upstream is its own to halt.
func (c *client) measureLocked(u *upstream) {
	waiting := c.out.LenLocked()
	cfg := c.env.cfg()
	limit := cfg.ClientQueue
	if c.fedBy != u {
		c.fedBy = u
	}
	c.countLocked()
	// Every upstream that adds to a long queue is told: each is to be halted, or closed to
	// new tenants.
	if high := c.s.queues.high(cfg); waiting > high {
		if !slices.Contains(c.crowdedAt, u) {
			c.crowding.Store(true)
			c.crowdedAt = append(c.crowdedAt, u)
			u.crowded.Add(1)
		}
	} else if waiting <= high/4 {
		c.uncrowdLocked()
	}
	if waiting <= limit || c.phase.Load() == phaseClosing || u.soleTenant() == c {
		return
	}
	c.env.n.slowCloses.Add(1)
	e := amqp.Errorf(amqp.ResourceError, 0,
		"the client reads too slowly: more than client_queue = %d bytes wait for it", limit)
	c.out.DropLocked()
	c.uncountLocked()
	c.closeLocked(e)
	go c.log(slog.LevelWarn, "client closed: it reads too slowly", "client_queue", limit)
}

// relievedLocked reports whether little waits for the client, and notes it.
func (c *client) relievedLocked() bool {
	if c.out.LenLocked() > c.s.queues.high(c.env.cfg())/4 && c.out.ErrLocked() == nil {
		return false
	}
	c.uncrowdLocked()
	return true
}

func (c *client) uncrowdLocked() {
	if len(c.crowdedAt) == 0 {
		return
	}
	for _, u := range c.crowdedAt {
		u.crowded.Add(-1)
	}
	c.crowding.Store(false)
	c.crowdedAt = nil
}

// wake sends what deliver queued.
func (c *client) wake() {
	c.mu.Lock()
	c.out.KickLocked()
	c.mu.Unlock()
}

// wakeAlone is wake for the only client that a chunk touched: what its socket takes at
// once is written here, which saves waking a goroutine; the socket is never waited for.
func (c *client) wakeAlone() {
	if c.raw == nil {
		c.wake()
		return
	}
	c.out.FlushTry(c)
}

// waitRoom waits until little waits for the client, it is gone, or cancel is closed.
func (c *client) waitRoom(cancel <-chan struct{}) {
	for {
		c.mu.Lock()
		if c.relievedLocked() {
			c.mu.Unlock()
			return
		}
		room := c.out.RoomLocked()
		c.mu.Unlock()
		select {
		case <-room:
		case <-c.gone:
			return
		case <-cancel:
			return
		}
	}
}

// pass0 queues a frame of channel 0.
func (c *client) pass0(f amqp.Frame) {
	c.mu.Lock()
	if c.phase.Load() == phaseRunning {
		c.out.AppendLocked(f)
		c.out.KickLocked()
	}
	c.mu.Unlock()
}

// reply appends frames for a channel that is still open, in answer to the client.
func (c *client) reply(ch *channel, m amqp.Method, args ...byte) {
	c.mu.Lock()
	if ch.state.Load() == chOpen && c.phase.Load() == phaseRunning {
		c.out.SetBufferLocked(amqp.AppendMethod(c.out.BufferLocked(32+len(args)), ch.id, m, args...))
	}
	c.glutLocked()
	c.mu.Unlock()
}

// tellBlocked sends connection.blocked once for this alarm, to a client that can hear it.
func (c *client) tellBlocked(u *upstream) {
	if !c.caps.blocked {
		return
	}
	c.mu.Lock()
	if c.blockedBy != nil || c.phase.Load() != phaseRunning {
		c.mu.Unlock()
		return
	}
	c.blockedBy = u
	c.mu.Unlock()

	u.mu.Lock()
	reason := u.blockedReason
	on := u.blocked.Load() && u.failed == nil
	if on {
		if u.blockedTold == nil {
			u.blockedTold = make(map[*client]struct{})
		}
		u.blockedTold[c] = struct{}{}
	}
	u.mu.Unlock()

	c.mu.Lock()
	defer c.mu.Unlock()
	if !on {
		c.blockedBy = nil
		return
	}
	if c.blockedBy != u {
		return // over already: neither is said
	}
	c.blockedSaid = true
	start := len(c.out.BufferLocked(300))
	p := amqp.BeginMethod(c.out.BufferLocked(300), 0, amqp.ConnectionBlocked)
	c.out.SetBufferLocked(amqp.EndMethod(amqp.AppendShortStr(p, reason), start))
	c.out.KickLocked()
}

func (c *client) tellUnblocked(u *upstream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.blockedBy != u {
		return
	}
	c.blockedBy = nil
	if c.blockedSaid && c.phase.Load() == phaseRunning {
		c.out.SetBufferLocked(amqp.AppendMethod(c.out.BufferLocked(16), 0, amqp.ConnectionUnblocked))
		c.out.KickLocked()
	}
	c.blockedSaid = false
}

// refused has the client hear the broker's channel.close, or one of the proxy's own. True: wake.
func (c *client) refused(b *binding, by ledger.Cause, f amqp.Frame) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b.ch.cur.Load() != b || c.phase.Load() != phaseRunning {
		return false
	}
	return b.ch.endLocked(by, f) != 0
}

// crossed passes the broker's channel.close on to a client that is closing the channel
// itself, and its close-ok too: some brokers do not answer a close that crosses theirs.
func (c *client) crossed(b *binding, f amqp.Frame) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b.ch.cur.Load() != b || b.ch.state.Load() != chClosing {
		return false
	}
	return b.ch.endLocked(ledger.ByBroker, f) != 0
}

// closeAnswered passes the broker's close-ok on, or stands in for it. True: wake.
func (c *client) closeAnswered(b *binding, by ledger.Cause) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return b.ch.cur.Load() == b && b.ch.endLocked(by, nil) != 0
}

// What the janitor looks after in a client: its heartbeat, its silence, its end.

package proxy

import (
	"log/slog"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// due tells cheaply whether tend has something to do.
func (c *client) due(now int64) bool {
	switch c.phase.Load() {
	case phaseHandshake:
		return !c.paused.Load() && now-c.started-c.granted.Load() >= int64(c.env.cfg().HandshakeTimeout)
	case phaseClosing: // perhaps amid its handshake: what that writes must not be looked at
		at := c.closeAt.Load()
		return at != 0 && now >= at
	}
	if c.crowding.Load() || c.counting.Load() {
		return true
	}
	if c.tired(now) {
		return true
	}
	hb := int64(c.heartbeat)
	if hb != 0 && (now-c.out.LastWrite.Load() >= hb/2 || now-c.lastRead.Load() > 2*hb+int64(tick)) {
		return true
	}
	since := c.out.WriteSince.Load()
	return since != 0 && now-since >= int64(c.env.cfg().WriteTimeout)
}

func (c *client) tend() {
	now := c.env.now()
	switch c.phase.Load() {
	case phaseClosing:
		if at := c.closeAt.Load(); at != 0 && now >= at {
			c.mu.Lock()
			own := c.leaving
			c.mu.Unlock()
			if own { // it closed, and has been answered
				c.closeSocket()
			} else {
				c.cutOff()
			}
		}
		return
	case phaseHandshake:
		if c.cut() {
			return
		}
		// Waiting for the broker's verdict is not the client's fault, but bounded all the same.
		// What it has told of itself is still its reader's, which log would read.
		c.env.log.Info("client closed: its handshake took too long", "client", c.n,
			"address", c.address().String(), "handshake_timeout", c.env.cfg().HandshakeTimeout)
		c.cutOff()
		return
	}
	if c.crowding.Load() || c.counting.Load() {
		c.mu.Lock()
		c.relievedLocked()
		c.countLocked()
		c.mu.Unlock()
	}
	if c.cut() {
		return
	}
	silent := now - c.lastRead.Load()
	if since := c.out.WriteSince.Load(); since != 0 && now-since >= int64(c.env.cfg().WriteTimeout) &&
		silent >= int64(c.env.cfg().WriteTimeout) && !c.ownsUpstream() {
		c.log(slog.LevelInfo, "client closed: it takes no data", "write_timeout", c.env.cfg().WriteTimeout)
		c.cutOff()
		return
	}
	hb := int64(c.heartbeat)
	if hb == 0 {
		return
	}
	if silent > 2*hb+int64(tick) && c.reading.Load() {
		c.env.n.heartbeatTimeouts.Add(1)
		c.log(slog.LevelInfo, "client closed: no heartbeat", "silent_for", time.Duration(silent), "heartbeat", c.heartbeat)
		c.cutOff()
		return
	}
	if now-c.out.LastWrite.Load() >= hb/2 {
		c.mu.Lock()
		if c.out.IdleLocked() && c.phase.Load() == phaseRunning {
			c.out.AppendLocked(amqp.Heartbeat)
		}
		c.mu.Unlock()
		c.wakeAlone() // answers may lie there while the reader waits for the broker
	}
}

// cut reports whether the socket has been closed: the reader, which goes on for a moment, ends the
// client, and what was said and counted of its end is not said and counted anew.
func (c *client) cut() bool {
	select {
	case <-c.gone:
		return true
	default:
		return false
	}
}

// ownsUpstream reports whether the client has a session: then it may be as slow as it likes.
func (c *client) ownsUpstream() bool { return c.hasSession.Load() }

// tired reports whether the client has been idle for so long that it may rest. One whose reader waits for
// the broker is not idle: a crowd of these would have memory collected again and again.
func (c *client) tired(now int64) bool {
	return c.phase.Load() == phaseRunning && c.reading.Load() && !c.rested.Load() && now-c.lastRead.Load() >= int64(restAfter)
}

// rest interrupts the read of a client that has been idle, see read. From now on the
// kernel also looks whether its peer is still there: clients without heartbeats may die unseen.
func (c *client) rest() {
	if c.reading.Load() && c.rested.CompareAndSwap(false, true) {
		c.keepAlive()
		_ = c.conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// hoards ends a client whose publishes hold room of the message buffer that others wait for and
// come too slowly. The room is free when its reader has woken up.
func (c *client) hoards() {
	c.env.n.slowPublishes.Add(1)
	c.log(slog.LevelInfo, "client closed: a publish comes too slowly while others wait for room", "message_buffer", c.env.cfg().MessageBuffer)
	c.shut(amqp.Errorf(amqp.ResourceError, amqp.BasicPublish,
		"a publish comes too slowly while others wait for message_buffer = %d bytes", c.env.cfg().MessageBuffer), false)
	_ = c.conn.SetReadDeadline(time.Unix(1, 0))
}

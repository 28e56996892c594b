// The router: every frame of a client is passed on, answered or refused here. What the
// proxy knows about AMQP beyond bytes is in the one switch of method.

package proxy

import (
	"encoding/binary"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/ledger"
)

// route looks at a frame. True: it goes to the upstream, the channel id already rewritten.
func (c *client) route(f amqp.Frame) bool {
	id := f.Channel()
	if id == 0 {
		return c.route0(f)
	}
	ch := c.last
	if ch == nil || ch.id != id {
		ch = c.chans.get(id)
		c.last = ch
	}
	if ch != nil && ch.state.Load() == chClosed {
		c.forget(ch)
		ch = nil
	}
	switch f.Type() {
	case amqp.FrameMethod:
		return c.method(ch, id, f)
	case amqp.FrameHeader:
		return c.header(ch, f)
	case amqp.FrameBody:
		return c.body(ch, f)
	case amqp.FrameHeartbeat:
		if len(f) != amqp.FrameOverhead {
			return c.refuse(amqp.FrameError, 0, "type 8, %d octets of payload: unknown_frame", len(f.Payload()))
		}
		c.refuse(amqp.UnexpectedFrame, 0, "heartbeat on channel %d, expected on channel 0", id)
	default:
		c.refuse(amqp.FrameError, 0, "type %d on channel %d: unknown frame type", f.Type(), id)
	}
	return false
}

// refuse ends the client with a hard error, in the broker's stead. It is false, for route.
func (c *client) refuse(code uint16, m amqp.Method, format string, args ...any) bool {
	c.env.n.firewallCloses.Add(1)
	c.die(amqp.Errorf(code, m, format, args...))
	return false
}

func (c *client) forget(ch *channel) {
	c.dropSpill(ch)
	c.chans.remove(ch)
	if c.last == ch {
		c.last = nil
	}
}

// method routes a method of a channel; ch is nil when the channel is not open.
func (c *client) method(ch *channel, id uint16, f amqp.Frame) bool {
	m := f.Method()
	spec := m.Spec()
	if ch != nil && ch.content != noContent {
		if ch.state.Load() == chOpen {
			return c.strayContent(ch, f)
		}
		c.abandon(ch) // the client heard of the close half way through
	}
	unopened := ch == nil && m != amqp.ChannelOpen && spec.Name != ""
	if e := c.admit(m, spec, f); e != nil && !unopened {
		c.env.n.firewallCloses.Add(1)
		return c.die(e)
	}
	bits, err := spec.CheckArgs(f.Args())
	if err != nil {
		c.env.n.firewallCloses.Add(1)
		return c.die(err)
	}
	if unopened {
		return c.unopened(id, m)
	}
	if ch == nil {
		c.openChannel(id)
		return false
	}
	if st := ch.state.Load(); st != chOpen {
		return c.afterChannelClose(ch, m, st)
	}
	if b := ch.cur.Load(); b != nil && b.broker.Commits.Load() > 0 {
		c.awaitCommit(b)
	}
	wait := spec.Sync && (spec.NoWait == 0 || bits&spec.NoWait == 0)

	switch m {
	case amqp.BasicPublish:
		if !c.publishable(ch, f, bits) {
			return false
		}
		return c.beginPublish(ch, f, bits&1 != 0)

	case amqp.BasicAck, amqp.BasicNack, amqp.BasicReject:
		if m == amqp.BasicAck && bits&1 != 0 && ch.ledger.Tx && c.acksNothing(ch, f) {
			return c.refuse(amqp.InternalError, 0, "Unexpected error")
		}
		ch.ledger.Settle(binary.BigEndian.Uint64(f.Args()), m != amqp.BasicReject && bits&1 != 0, ch.broker())
		return c.pass(ch, f, laneRead, false)

	case amqp.BasicQos:
		return c.qos(ch, f, bits)

	case amqp.ConfirmSelect:
		return c.confirmSelect(ch, f, wait)

	case amqp.BasicGet:
		c.readYourWrites()
		if !c.queueKnown(ch, m, f) {
			return false
		}
		c.ready(ch)
		ch.ledger.Hears(bits&1 != 0)
		return c.pass(ch, f, laneRead, true)

	case amqp.BasicConsume:
		return c.consume(ch, f, bits, wait)

	case amqp.BasicCancel:
		a := amqp.ReadArgs(f)
		if b := ch.cur.Load(); b != nil {
			b.u.consumerGone(b, string(a.Str())) // its tag may be used again right behind
		}
		return c.pass(ch, f, laneRead, wait)

	case amqp.BasicRecover, amqp.BasicRecoverAsync:
		if bits&1 == 0 && !c.asks(ch, m, amqp.NotImplemented, "requeue=false") {
			return false
		}
		if c.hazards().mayFail(m, f, bits) && !c.asks(ch, m, amqp.NotImplemented, m.String()) {
			return false
		}
		ch.ledger.Recover(ch.broker())
		return c.pass(ch, f, laneRead, wait)

	case amqp.TxSelect:
		ch.ledger.Tx = true
		return c.pass(ch, f, lanePublish, wait)

	case amqp.TxCommit, amqp.TxRollback:
		if !c.pass(ch, f, lanePublish, wait) {
			return false
		}
		if m == amqp.TxCommit {
			ch.ledger.Commit()
			ch.cur.Load().broker.Commits.Add(1)
		} else {
			ch.ledger.Rollback()
		}
		return true

	case amqp.QueueDeclare:
		c.readYourWrites()
		if exclusive := bits&4 != 0 && bits&1 == 0; exclusive {
			if !c.declareExclusive(ch) {
				return false
			}
		} else if !c.isolated(ch, m, f, bits, wait) || isTransient(bits) && !c.transient(ch, f, wait) {
			return false
		}
		return c.pass(ch, f, laneNone, wait)

	case amqp.ChannelOpen:
		return c.refuse(amqp.ChannelError, m, "second 'channel.open' seen")

	case amqp.ChannelClose:
		return c.closeChannel(ch, f)

	case amqp.ChannelCloseOk:
		return c.refuse(amqp.CommandInvalid, m, "unimplemented method")

	case amqp.ChannelFlow:
		if bits&1 == 0 && !c.asks(ch, m, amqp.NotImplemented, "active=false") {
			return false
		}
		return c.pass(ch, f, laneNone, wait)

	case amqp.ChannelFlowOk:
		if b := ch.cur.Load(); b != nil && b.broker.Flows.Load() > 0 {
			b.broker.Flows.Add(-1)
			return c.pass(ch, f, laneNone, false)
		}
		return c.refuse(amqp.CommandInvalid, m, "unimplemented method")

	case amqp.BasicCancelOk:
		return c.refuse(amqp.CommandInvalid, m, "unimplemented method")

	case amqp.QueueBind, amqp.QueueUnbind, amqp.QueuePurge, amqp.QueueDelete:
		c.readYourWrites()
		if !c.queueKnown(ch, m, f) || !c.isolated(ch, m, f, bits, wait) {
			return false
		}
		return c.pass(ch, f, laneNone, wait)

	default: // exchanges, access.request
		c.readYourWrites()
		if !c.isolated(ch, m, f, bits, wait) {
			return false
		}
		return c.pass(ch, f, laneNone, wait)
	}
}

// unopened takes a method, other than channel.open, on a channel that is not open.
func (c *client) unopened(id uint16, m amqp.Method) bool {
	if c.pastClose(id, m) {
		return false
	}
	return c.refuse(amqp.ChannelError, m, "expected 'channel.open'")
}

func (c *client) openChannel(id uint16) {
	if c.chanMax != 0 && c.chans.len() >= int(c.chanMax) {
		open := 0
		for ch := range c.chans.all() {
			switch ch.state.Load() {
			case chClosed:
				c.forget(ch)
			case chOwing:
			default:
				open++
			}
		}
		if open >= int(c.chanMax) {
			c.refuse(amqp.NotAllowed, 0, "number of channels opened (%d) has reached the negotiated channel_max (%d)",
				open, c.chanMax)
			return
		}
	}
	ch := &channel{c: c, id: id}
	c.chans.add(ch)
	c.last = ch
	if c.lately.id == id {
		c.lately.id = 0
	}
	c.env.n.channels.Add(1)
	c.chansN.Add(1)
	c.reply(ch, amqp.ChannelOpenOk, 0, 0, 0, 0)
}

// afterChannelClose takes a method on a channel that either side has closed.
func (c *client) afterChannelClose(ch *channel, m amqp.Method, st channelState) bool {
	owing := st == chRefused || st == chOwing
	switch {
	case m == amqp.ChannelOpen && owing:
		return c.refuse(amqp.ChannelError, m, "second 'channel.open' seen")
	case m == amqp.ChannelCloseOk && owing:
		c.ended(ch, ledger.ByClientOk)
	case m == amqp.ChannelClose && owing:
		c.ended(ch, ledger.ByClient)
	case m == amqp.BasicPublish:
		ch.content, ch.discard = wantHeader, true
	}
	return false // everything else comes too late and is ignored, as the broker does
}

// ended takes what the client says to a channel that the broker has closed; close-ok frees its number.
func (c *client) ended(ch *channel, by ledger.Cause) {
	c.mu.Lock()
	ch.endLocked(by, nil)
	closed := ch.state.Load() == chClosed
	c.mu.Unlock()
	if closed {
		c.forget(ch)
	}
}

// admit judges a method by itself: is it known, and may a client send it on this channel?
// Codes and texts are RabbitMQ's; for an unknown method RabbitMQ only cuts the connection.
func (c *client) admit(m amqp.Method, spec *amqp.Spec, f amqp.Frame) *amqp.Error {
	onChannel0 := f.Channel() == 0
	switch {
	case len(f) < amqp.FrameOverhead+4:
		return amqp.Errorf(amqp.FrameError, 0, "type 1, %d octets of payload: unknown_frame", len(f.Payload()))
	case m.Index() == 0:
		return amqp.Errorf(amqp.CommandInvalid, m, "%s", m)
	case onChannel0 && m != amqp.ConnectionClose && m != amqp.ConnectionUpdateSecret:
		return amqp.Errorf(amqp.ChannelError, m, "unexpected method in connection state running")
	case !onChannel0 && (!spec.Client || m.Class() == amqp.ClassConnection):
		return amqp.Errorf(amqp.CommandInvalid, m, "unimplemented method")
	}
	return nil
}

// pastClose tells whether a frame that came behind the client's own channel.close is to be
// swallowed, as the broker does while it closes: another thread of the application may
// have been publishing. Only what asks for no answer, and only for a moment.
func (c *client) pastClose(id uint16, m amqp.Method) bool {
	if c.lately.id != id || time.Since(c.lately.at) > closeGrace {
		return false
	}
	switch m {
	case amqp.BasicPublish:
		c.lately.content = true
		return true
	case amqp.BasicAck, amqp.BasicNack, amqp.BasicReject:
		return true
	}
	return false
}

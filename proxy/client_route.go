// The router: every frame of a client is passed on, answered or refused here. What becomes of a
// method is decided first (client_decide.go), and then done here, which may wait.

package proxy

import (
	"encoding/binary"

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
		if f.Method() == amqp.BasicAck && ch != nil && ch.plainAck(f) {
			return c.pass(ch, f, laneRead, false)
		}
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
	return c.refuseWith(amqp.Errorf(code, m, format, args...))
}

func (c *client) refuseWith(e *amqp.Error) bool {
	c.env.n.firewallCloses.Add(1)
	return c.die(e)
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
	if ch != nil && ch.content != noContent && ch.state.Load() != chOpen {
		c.abandon(ch) // the client heard of the close half way through
	}
	if ch != nil && ch.state.Load() == chOpen && !c.goesOn(ch) {
		return false
	}
	if ch != nil && f.Method() == amqp.QueueDeclare {
		c.rewrite(f)
	}
	a := c.decide(ch, f)
	if a.needs != 0 && !c.meet(ch, f, a) {
		if a.do == doPublish {
			ch.content, ch.discard = wantHeader, true // its content is to come yet
		}
		return false
	}
	switch a.do {
	case doPass:
		return c.passNoted(ch, f, a)
	case doPublish:
		return c.beginPublish(ch, f, a.bits&1 != 0)
	case doQos:
		return c.qos(ch, f, a.bits)
	case doConfirm:
		return c.confirmSelect(ch, f, a.called)
	case doConsume:
		return c.consume(ch, f, a)
	case doClose:
		return c.closeChannel(ch, f)
	case doOpen:
		c.openChannel(id)
	case doEnd, doEndClose:
		c.ended(ch, a.by())
	case doSkip:
		ch.content, ch.discard = wantHeader, true
	case doSkipLate:
		c.lately.content = true
	case doRefuse:
		c.refuseWith(a.err)
	}
	return false
}

// meet does what must be done before a method is, in this order; it may wait for each. False: the
// method is not done, its channel or client is being closed.
func (c *client) meet(ch *channel, f amqp.Frame, a action) bool {
	m := f.Method()
	if a.needs&needCommit != 0 {
		c.awaitCommit(ch.cur.Load())
	}
	if a.needs&needWrites != 0 {
		c.readYourWrites()
	}
	if a.needs&needQueue != 0 && !c.queueKnown(ch, m, f) {
		return false
	}
	if a.needs&needAsk != 0 && !c.asks(ch, a.err) {
		return false
	}
	if a.needs&needExclusive != 0 && !c.declareExclusive(ch) {
		return false
	}
	if a.needs&needIsolation != 0 && !c.isolated(ch, m, f, a.called) {
		return false
	}
	if a.needs&needPermission != 0 && !c.transient(ch, f, a.called) {
		return false
	}
	if a.needs&needSession != 0 && !c.needSession(ch, m) {
		return false
	}
	if a.needs&needReaders != 0 {
		c.ready(ch)
	}
	return true
}

// plainAck settles what comes with every delivery, a basic.ack of the usual length on a channel where
// nothing else is under way: decide and passNoted would do the same (a test holds the two against
// each other), in half as many steps. False: it needs a second look.
func (ch *channel) plainAck(f amqp.Frame) bool {
	const length = amqp.FrameOverhead + 4 + 8 + 1
	if len(f) != length || ch.content != noContent || ch.state.Load() != chOpen || ch.ledger.Tx {
		return false
	}
	b := ch.cur.Load()
	if b == nil || b.broker.Commits.Load() > 0 {
		return false
	}
	args := f.Args()
	ch.ledger.Settle(binary.BigEndian.Uint64(args), args[8]&1 != 0, &b.broker)
	return true
}

// passNoted has a method go to the broker, and the ledger know of it.
func (c *client) passNoted(ch *channel, f amqp.Frame, a action) bool {
	m := f.Method()
	switch m {
	case amqp.BasicAck, amqp.BasicNack, amqp.BasicReject:
		ch.ledger.Settle(binary.BigEndian.Uint64(f.Args()), m != amqp.BasicReject && a.bits&1 != 0, ch.broker())
	case amqp.BasicGet:
		ch.ledger.Hears(a.bits&1 != 0)
		c.did.got++
	case amqp.QueueDeclare, amqp.ExchangeDeclare, amqp.QueueBind, amqp.ExchangeBind:
		c.did.declared++
	case amqp.BasicCancel:
		tag := amqp.ReadArgs(f)
		if b := ch.cur.Load(); b != nil {
			b.u.consumerGone(b, string(tag.Str())) // its tag may be used again right behind
		}
	case amqp.BasicRecover, amqp.BasicRecoverAsync:
		ch.ledger.Recover(ch.broker())
	case amqp.TxSelect:
		ch.ledger.Tx = true
	case amqp.ChannelFlowOk:
		ch.cur.Load().broker.Flows.Add(-1)
	}
	if !c.pass(ch, f, a.lane, a.called) {
		return false
	}
	switch m {
	case amqp.TxCommit:
		ch.ledger.Commit()
		ch.cur.Load().broker.Commits.Add(1)
	case amqp.TxRollback:
		ch.ledger.Rollback()
	}
	return true
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
	c.did.opened++
	c.reply(ch, amqp.ChannelOpenOk, 0, 0, 0, 0)
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

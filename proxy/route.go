// The router: every frame of a client is passed on, answered or refused here. What the
// proxy knows about AMQP beyond bytes is in the one switch of method.

package proxy

import (
	"encoding/binary"
	"errors"
	"log/slog"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// chunk routes all whole frames of what was read. False: the client has ended.
func (c *client) chunk() bool {
	c.buf = c.rd.Buffered()
	c.s0, c.e0 = 0, 0
	pos, frames := 0, uint64(0)
	alive := true
	for alive {
		n, need, err := amqp.Split(c.buf[pos:], c.rd.MaxFrame)
		if err != nil {
			var e *amqp.Error
			errors.As(err, &e)
			c.die(e)
			pos = len(c.buf)
			break
		}
		if n == 0 {
			c.rd.Expect(need)
			break
		}
		f := amqp.Frame(c.buf[pos : pos+n])
		frames++
		if c.phase.Load() != phaseRunning {
			alive = c.afterClose(f)
		} else if c.route(f) {
			c.keep(f, pos)
		}
		pos += n
	}
	if c.gathered == 1 && c.e0 == pos {
		pos = c.leaveTail(pos)
	}
	c.flushRun()
	c.rd.Skip(pos)
	c.s.n.framesClients.Add(frames)
	if alive && c.spilling > 0 && c.phase.Load() == phaseRunning {
		c.reserveAll()
	}
	c.out.Flush()
	return alive
}

// keep puts the frame at buf[pos:] at the end of the run.
func (c *client) keep(f amqp.Frame, pos int) {
	switch {
	case c.s0 == c.e0:
		c.s0, c.e0 = pos, pos+len(f)
	case c.e0 == pos:
		c.e0 += len(f)
	default:
		c.e0 += copy(c.buf[c.e0:], f)
	}
	if c.begun != nil {
		c.begun.start = c.e0 - len(f)
		c.begun = nil
	}
}

// flushRun sends the run, publishes that are not whole set aside.
func (c *client) flushRun() {
	if c.gathered > 0 {
		c.cutOpen()
	}
	if c.run.u != nil && (c.e0 > c.s0 || len(c.run.prefix) > 0) {
		c.run.body = c.resplit(c.run.u, c.buf[c.s0:c.e0])
		c.s.n.toUpstreams.Add(uint64(len(c.run.body) + len(c.run.prefix)))
		if err := c.run.u.send(&c.run, c.gone); err != nil {
			c.log(slog.LevelDebug, "frames not sent", "error", err)
		}
	}
	c.run.reset()
	c.runSeq++
	c.s0 = c.e0
}

// settle lets everything go that waits for the end of the chunk, before the reader waits
// for something itself.
func (c *client) settle() {
	c.flushRun()
	c.out.Flush()
}

// afterClose takes what comes when connection.close was sent or answered. False: the end.
func (c *client) afterClose(f amqp.Frame) bool {
	switch f.Method() {
	case amqp.ConnectionCloseOk:
		return f.Type() != amqp.FrameMethod || f.Channel() != 0
	case amqp.ConnectionClose:
		if f.Type() == amqp.FrameMethod && f.Channel() == 0 {
			c.mu.Lock()
			c.out.SetBufferLocked(amqp.AppendMethod(c.out.BufferLocked(16), 0, amqp.ConnectionCloseOk))
			c.mu.Unlock()
		}
	}
	return true
}

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
		c.clear(ch)
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
	c.s.n.firewallCloses.Add(1)
	c.die(amqp.Errorf(code, m, format, args...))
	return false
}

// clear forgets a channel that the broker's word has closed.
func (c *client) clear(ch *channel) {
	if ch.crossed.Load() {
		c.owe(ch.id)
	}
	c.forget(ch)
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
		c.s.n.firewallCloses.Add(1)
		return c.die(e)
	}
	bits, err := spec.CheckArgs(f.Args())
	if err != nil {
		c.s.n.firewallCloses.Add(1)
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
	if b := ch.cur.Load(); b != nil && b.commits.Load() > 0 {
		c.awaitCommit(b)
	}
	wait := spec.Sync && (spec.NoWait == 0 || bits&spec.NoWait == 0)

	switch m {
	case amqp.BasicPublish:
		if bits&2 != 0 {
			return c.refuse(amqp.NotImplemented, m, "immediate=true")
		}
		if badReplyTo(f) {
			c.s.n.firewallCloses.Add(1)
			return c.die(&amqp.Error{Code: amqp.InternalError, Text: "INTERNAL_ERROR"})
		}
		return c.beginPublish(ch, f, bits&1 != 0)

	case amqp.BasicAck, amqp.BasicNack, amqp.BasicReject:
		c.settled(ch, f, m != amqp.BasicReject && bits&1 != 0)
		return c.pass(ch, f, laneRead, false)

	case amqp.BasicQos:
		return c.qos(ch, f, bits)

	case amqp.ConfirmSelect:
		return c.confirmSelect(ch, f, wait)

	case amqp.BasicGet:
		c.readYourWrites()
		c.ready(ch)
		ch.hearing(bits&1 != 0)
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
		if bits&1 == 0 {
			return c.refuse(amqp.NotImplemented, m, "requeue=false")
		}
		if b := ch.cur.Load(); b != nil {
			ch.acked.add(b.lastTag.Load(), true)
		}
		return c.pass(ch, f, laneRead, wait)

	case amqp.TxSelect:
		ch.tx = true
		return c.pass(ch, f, lanePublish, wait)

	case amqp.TxCommit, amqp.TxRollback:
		if !c.pass(ch, f, lanePublish, wait) {
			return false
		}
		ch.txDirty = false
		if m == amqp.TxCommit {
			ch.cur.Load().commits.Add(1)
		} else if ch.wantsAcks {
			ch.neverQuiet = true // the acks since are undone, which of them is not known
		}
		return true

	case amqp.QueueDeclare:
		c.readYourWrites()
		if bits&4 != 0 {
			c.exclusive = true
		}
		if (bits&4 != 0 || ownHazard(m, f, bits)) && !c.needSession(ch, m) {
			return false
		}
		return c.pass(ch, f, laneNone, wait)

	case amqp.ChannelOpen:
		return c.refuse(amqp.ChannelError, m, "second 'channel.open' seen")

	case amqp.ChannelClose:
		return c.closeChannel(ch, f)

	case amqp.ChannelCloseOk:
		if _, ok := c.owed[id]; ok {
			delete(c.owed, id)
			return false
		}
		return c.refuse(amqp.CommandInvalid, m, "unimplemented method")

	case amqp.ChannelFlow:
		if bits&1 == 0 {
			return c.refuse(amqp.NotImplemented, m, "active=false")
		}
		return c.pass(ch, f, laneNone, wait)

	case amqp.ChannelFlowOk:
		if b := ch.cur.Load(); b != nil && b.flows.Load() > 0 {
			b.flows.Add(-1)
			return c.pass(ch, f, laneNone, false)
		}
		return c.refuse(amqp.CommandInvalid, m, "unimplemented method")

	case amqp.BasicCancelOk:
		return c.refuse(amqp.CommandInvalid, m, "unimplemented method")

	default: // exchanges, queues, access.request
		c.readYourWrites()
		if ownHazard(m, f, bits) && !c.needSession(ch, m) {
			return false
		}
		return c.pass(ch, f, laneNone, wait)
	}
}

// pass binds the channel where it is not, and has the frame go there. called: an answer is awaited.
func (c *client) pass(ch *channel, f amqp.Frame, l lane, called bool) bool {
	b := c.bound(ch, l)
	if b == nil || !c.fits(b.u, f) {
		return false
	}
	m := f.Method()
	if called {
		b.calls.Add(1)
		ch.unheard = false // its answer will speak for those before it
	} else if l == laneNone && m.Spec().Sync {
		ch.unheard = true
	}
	if at := &b.u.senders[m.Index()]; at.Load() != c {
		at.Store(c)
	}
	switch m {
	case amqp.BasicGet, amqp.QueueBind, amqp.QueueUnbind, amqp.QueuePurge, amqp.QueueDelete:
		return c.passQueue(ch, b, f)
	case amqp.QueueDeclare:
		ch.lastQueue = ""
	}
	f.SetChannel(b.id)
	return true
}

// bound is the channel's binding, made when there is none, and joined to the run. nil: the
// client is being closed.
func (c *client) bound(ch *channel, l lane) *binding {
	b := ch.cur.Load()
	if b == nil {
		if b = c.bind(ch, l); b == nil {
			return nil
		}
	}
	if c.run.u != b.u {
		if c.run.u != nil {
			c.flushRun()
		}
		c.run.u = b.u
	}
	if b.runSeq != c.runSeq {
		b.runSeq = c.runSeq
		c.run.bs = append(c.run.bs, b)
	}
	return b
}

// bind gives the channel a place on an upstream of the lane.
func (c *client) bind(ch *channel, l lane) *binding {
	for {
		if c.session == nil && c.s.atChannelLimit(c.pool) {
			if e := c.becomeSession(); e != nil {
				c.die(e)
				return nil
			}
		}
		u, err := c.upstreamFor(l)
		if err != nil {
			c.die(err)
			return nil
		}
		if c.run.u != nil && (c.e0 > c.s0 || c.run.u != u) {
			c.flushRun()
		}
		b, prefix, failed := u.bind(ch, c.run.prefix)
		if failed != nil {
			c.pool.release(u)
			switch {
			case c.phase.Load() != phaseRunning:
				return nil
			case u != c.session:
				c.dropUpstream(u)
			case failed != errNoID:
				c.die(u.why())
				return nil
			case !c.awaitID(u):
				c.die(amqp.Errorf(amqp.ConnectionForced, 0, "the broker closes no channel within %v", c.s.cfg().CloseTimeout))
				return nil
			}
			continue
		}
		c.run.u, c.run.prefix = u, prefix
		c.mu.Lock()
		ch.cur.Store(b)
		c.mu.Unlock()
		return b
	}
}

// unopened takes a method, other than channel.open, on a channel that is not open.
func (c *client) unopened(id uint16, m amqp.Method) bool {
	if m == amqp.ChannelCloseOk {
		if _, ok := c.owed[id]; ok {
			delete(c.owed, id)
			return false
		}
	}
	if c.pastClose(id, m) {
		return false
	}
	return c.refuse(amqp.ChannelError, m, "expected 'channel.open'")
}

func (c *client) openChannel(id uint16) {
	if c.chanMax != 0 && c.chans.len() >= int(c.chanMax) {
		for ch := range c.chans.all() {
			if ch.state.Load() == chClosed {
				c.clear(ch)
			}
		}
		if c.chans.len() >= int(c.chanMax) {
			c.refuse(amqp.NotAllowed, amqp.ChannelOpen, "number of channels opened (%d) has reached the negotiated channel_max (%d)",
				c.chans.len(), c.chanMax)
			return
		}
	}
	ch := &channel{c: c, id: id}
	c.chans.add(ch)
	c.last = ch
	delete(c.owed, id)
	if c.lately.id == id {
		c.lately.id = 0
	}
	c.s.n.channels.Add(1)
	c.reply(ch, amqp.ChannelOpenOk, 0, 0, 0, 0)
}

// afterChannelClose takes a method on a channel that either side has closed.
func (c *client) afterChannelClose(ch *channel, m amqp.Method, st channelState) bool {
	switch {
	case m == amqp.ChannelOpen && st == chRefused:
		return c.refuse(amqp.ChannelError, m, "second 'channel.open' seen")
	case m == amqp.ChannelCloseOk && st == chRefused:
		c.closed(ch)
	case m == amqp.ChannelClose && st == chRefused:
		c.mu.Lock()
		c.out.SetBufferLocked(amqp.AppendMethod(c.out.BufferLocked(16), ch.id, amqp.ChannelCloseOk))
		c.mu.Unlock()
		c.closed(ch)
		c.owe(ch.id)
	case m == amqp.BasicPublish:
		ch.content, ch.discard = wantHeader, true
	}
	return false // everything else comes too late and is ignored, as the broker does
}

func (c *client) owe(id uint16) {
	if c.owed == nil {
		c.owed = make(map[uint16]struct{})
	}
	c.owed[id] = struct{}{}
}

// closed makes a channel's number free for the client.
func (c *client) closed(ch *channel) {
	c.mu.Lock()
	ch.state.Store(chClosed)
	c.mu.Unlock()
	c.forget(ch)
	c.s.n.channels.Add(-1)
}

// beginPublish takes basic.publish; its content follows.
func (c *client) beginPublish(ch *channel, f amqp.Frame, mandatory bool) bool {
	if !c.pubs.Load() {
		c.pubs.Store(true)
	}
	b := c.bound(ch, lanePublish)
	if b == nil {
		return false
	}
	if b.u.blocked.Load() {
		c.tellBlocked(b.u)
	}
	if at := &b.u.senders[amqp.BasicPublish.Index()]; at.Load() != c {
		at.Store(c)
	}
	ch.stateful = true
	ch.mandatory = mandatory
	ch.hears = ch.hears || mandatory
	ch.content, ch.discard = wantHeader, false
	ch.inRun = true
	c.begun = ch
	c.gathered++
	f.SetChannel(b.id)
	return true
}

// header takes a content header.
func (c *client) header(ch *channel, f amqp.Frame) bool {
	if ch == nil || ch.content != wantHeader {
		return c.strayContent(ch, f)
	}
	size, err := amqp.CheckContentHeader(f.Payload())
	if err != nil {
		c.s.n.firewallCloses.Add(1)
		return c.die(err)
	}
	if most := uint64(c.s.cfg().MaxMessageSize); size > most {
		return c.refuse(amqp.FrameError, amqp.BasicPublish,
			"message of %d octets is larger than max_message_size = %d", size, most)
	}
	if !ch.discard && !c.fits(ch.cur.Load().u, f) {
		return false
	}
	ch.remaining, ch.bodySize = size, size
	ch.content = wantBody
	if size == 0 {
		c.published(ch)
	}
	return c.content(ch, f)
}

// body takes a content body.
func (c *client) body(ch *channel, f amqp.Frame) bool {
	if ch == nil || ch.content != wantBody {
		return c.strayContent(ch, f)
	}
	n := uint64(len(f) - amqp.FrameOverhead)
	if n > ch.remaining {
		return c.refuse(amqp.FrameError, amqp.BasicPublish, "content body frame exceeds remaining content size")
	}
	ch.remaining -= n
	if ch.remaining == 0 {
		c.published(ch)
	}
	return c.content(ch, f)
}

// strayContent takes a frame that does not go on with the content that is due.
func (c *client) strayContent(ch *channel, f amqp.Frame) bool {
	if ch == nil && c.lately.id == f.Channel() && c.lately.content {
		return false // of a publish behind channel.close
	}
	due := noContent
	if ch != nil {
		due = ch.content
	}
	switch due {
	case wantHeader:
		return c.refuse(amqp.UnexpectedFrame, amqp.BasicPublish,
			"expected content header for class 60, got non content header frame instead")
	case wantBody:
		return c.refuse(amqp.UnexpectedFrame, amqp.BasicPublish,
			"expected content body, got non content body frame instead")
	}
	return c.refuse(amqp.UnexpectedFrame, 0, "expected method frame, got non method frame instead")
}

// content has a frame of content go where its publish goes.
func (c *client) content(ch *channel, f amqp.Frame) bool {
	if ch.discard {
		return false
	}
	b := ch.cur.Load()
	f.SetChannel(b.id)
	if ch.spill != nil {
		c.gather(ch, f)
		return false
	}
	return true
}

// published counts a publish that is whole now.
func (c *client) published(ch *channel) {
	ch.content = noContent
	if ch.discard {
		return
	}
	if ch.inRun {
		ch.inRun = false
		c.gathered--
	}
	switch {
	case ch.confirm:
		ch.published++
	case ch.mandatory:
		ch.neverQuiet = true
	}
	if ch.tx {
		ch.txDirty = true
	}
}

// abandon forgets a publish that its client does not finish.
func (c *client) abandon(ch *channel) {
	c.dropSpill(ch)
	if ch.inRun {
		ch.inRun = false
		c.gathered--
	}
	ch.content = noContent
}

// settled notes what basic.ack, nack or reject settles.
func (c *client) settled(ch *channel, f amqp.Frame, multiple bool) {
	tag := binary.BigEndian.Uint64(f.Args())
	if multiple && tag == 0 {
		if b := ch.cur.Load(); b != nil {
			tag = b.lastTag.Load()
		}
	}
	if !ch.neverQuiet {
		ch.acked.add(tag, multiple)
		if len(ch.acked.above) > maxAbove {
			ch.untracked()
		}
	}
	if ch.tx {
		ch.txDirty = true
	}
}

// maxAbove bounds the deliveries that are settled out of order.
const maxAbove = 1 << 16

// hearing notes that deliveries may come, which need acks or do not. Where both do, which
// of them are settled cannot be told.
func (ch *channel) hearing(noAck bool) {
	ch.stateful, ch.hears = true, true
	if noAck {
		ch.noAcks = true
	} else {
		ch.wantsAcks = true
	}
	if ch.noAcks && ch.wantsAcks {
		ch.untracked()
	}
}

// untracked gives up on knowing which deliveries are settled.
func (ch *channel) untracked() { ch.neverQuiet, ch.acked = true, tagSet{} }

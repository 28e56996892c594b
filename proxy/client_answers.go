// What the proxy answers itself, each answer saving a round trip to the broker.

package proxy

import (
	"log/slog"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/ledger"
)

// qos answers basic.qos at once and sends it on; a global one is awaited.
func (c *client) qos(ch *channel, f amqp.Frame, bits byte) bool {
	a := amqp.ReadArgs(f)
	size, prefetch := a.Long(), a.Short()
	if bits&1 != 0 || size != 0 {
		if !c.pass(ch, f, laneRead, true) {
			return false
		}
		ch.globalQos = true // a size is no bound on their number either
		ch.ledger.Stay()
		c.expectQos(ch.cur.Load(), false)
		return true
	}
	ch.qosSet, ch.prefetch = true, prefetch
	atOnce := ch.mayAnswer()
	if atOnce {
		c.reply(ch, amqp.BasicQosOk)
	}
	if ch.cur.Load() == nil {
		return false // goes out with the prelude
	}
	if !c.pass(ch, f, laneRead, !atOnce) {
		return false
	}
	c.expectQos(ch.cur.Load(), atOnce)
	return true
}

func (c *client) expectQos(b *binding, own bool) {
	b.u.mu.Lock()
	b.prefetch = b.ch.prefetch
	b.qosOwn.Push(own)
	b.u.mu.Unlock()
}

// confirmSelect answers confirm.select at once and sends it on, unless the broker may refuse it.
func (c *client) confirmSelect(ch *channel, f amqp.Frame, wait bool) bool {
	b := ch.cur.Load()
	if ch.ledger.Tx || !c.brokerInfo().Confirms {
		ch.ledger.Once() // whether the broker counts publishes from here on is not known
		if !c.pass(ch, f, lanePublish, wait) {
			return false
		}
		b = ch.cur.Load()
		if wait {
			b.u.mu.Lock()
			b.selectOwn.Push(false)
			b.u.mu.Unlock()
		}
		return true
	}
	ch.ledger.Confirms = true
	atOnce := ch.mayAnswer()
	if wait && atOnce {
		c.reply(ch, amqp.ConfirmSelectOk)
	}
	if b == nil {
		return false
	}
	if !c.pass(ch, f, lanePublish, wait && !atOnce) {
		return false
	}
	if wait {
		b.u.mu.Lock()
		b.selectOwn.Push(atOnce)
		b.u.mu.Unlock()
	}
	return true
}

// closeChannel takes the client's channel.close: answered at once when the channel is
// quiet, by the broker's close-ok otherwise.
func (c *client) closeChannel(ch *channel, f amqp.Frame) bool {
	b := ch.cur.Load()
	by := ledger.ByClient
	if b == nil || c.env.cfg().FastClose && b.quiet() {
		by = ledger.ByClientQuiet
	}
	if !c.answerClose(ch, by) || b == nil {
		return false
	}
	b = c.bound(ch, laneNone)
	if by == ledger.ByClientQuiet {
		by = b.quietEnd(by)
	}
	c.run.closes = append(c.run.closes, closing{b, by})
	f.SetChannel(b.id)
	return by != ledger.ByKeep
}

// answerClose ends a channel for its client, with close-ok where nobody waits for the
// broker's. False: the broker was faster, nothing is to be sent.
func (c *client) answerClose(ch *channel, by ledger.Cause) bool {
	c.mu.Lock()
	open := ch.state.Load() == chOpen
	ch.endLocked(by, nil)
	closed := ch.state.Load() == chClosed
	c.glutLocked()
	c.mu.Unlock()
	if closed {
		c.forget(ch)
		c.lately = lateChannel{id: ch.id, at: time.Now()}
	}
	return open
}

// route0 takes the frames of channel 0.
func (c *client) route0(f amqp.Frame) bool {
	switch f.Type() {
	case amqp.FrameHeartbeat:
		if len(f) != amqp.FrameOverhead {
			return c.refuse(amqp.FrameError, 0, "type 8, %d octets of payload: unknown_frame", len(f.Payload()))
		}
		return false
	case amqp.FrameMethod:
	case amqp.FrameHeader, amqp.FrameBody:
		return c.refuse(amqp.UnexpectedFrame, 0, "content frame of type %d on channel 0", f.Type())
	default:
		return c.refuse(amqp.FrameError, 0, "type %d on channel 0: unknown frame type", f.Type())
	}
	m := f.Method()
	if e := admit(m, m.Spec(), f); e != nil {
		return c.refuseWith(e)
	}
	if _, err := m.Spec().CheckArgs(f.Args()); err != nil {
		if err.Method == 0 {
			err = &amqp.Error{Code: amqp.FrameError, Text: err.Text, Method: m} // UTF-8, see Spec.CheckArgs
		} else {
			err = &amqp.Error{Code: amqp.InternalError, Text: "INTERNAL_ERROR"}
		}
		return c.refuseWith(err)
	}
	switch m {
	case amqp.ConnectionClose:
		c.closeConnection()
	case amqp.ConnectionUpdateSecret:
		c.updateSecret(f)
	}
	return false
}

// closeConnection answers connection.close: at once when all channels are quiet, otherwise
// when the broker has closed those that are not, at the latest after close_timeout.
func (c *client) closeConnection() {
	c.flushRun()
	fast := c.env.cfg().FastClose
	var waits []*channel
	var said upstreams
	for ch := range c.chans.all() {
		c.dropSpill(ch)
		b := ch.cur.Load()
		if b != nil && !b.noLongerFirst() {
			b = nil // its answer is not waited for
		}
		by := ledger.ByConnection
		if b == nil || fast && b.quiet() {
			by = ledger.ByConnectionQuiet
		}
		c.mu.Lock()
		c.leaving = true
		ch.endLocked(by, nil)
		if ch.state.Load() == chClosing {
			waits = append(waits, ch)
		}
		c.mu.Unlock()
		if b != nil {
			if by == ledger.ByConnectionQuiet {
				by = b.quietEnd(by)
			}
			said.add(b.u.closeBinding(b, by))
		}
	}
	said.flush()
	if len(waits) > 0 {
		c.awaitCloses(waits)
	}
	c.endSession()
	c.mu.Lock()
	if c.phase.Load() == phaseRunning {
		c.closeAt.Store(c.env.now() + int64(closeGrace))
		c.phase.Store(phaseClosing)
		c.out.SetBufferLocked(amqp.AppendMethod(c.out.BufferLocked(16), 0, amqp.ConnectionCloseOk))
	}
	c.mu.Unlock()
}

// awaitCloses waits until none of the channels waits for close-ok any more.
func (c *client) awaitCloses(chs []*channel) {
	c.out.Flush()
	timer := time.NewTimer(c.env.cfg().CloseTimeout)
	defer timer.Stop()
	for {
		c.mu.Lock()
		open := 0
		for _, ch := range chs {
			if ch.state.Load() == chClosing {
				open++
			}
		}
		if open == 0 || c.phase.Load() != phaseRunning {
			c.mu.Unlock()
			return
		}
		answers := c.answers.WaitLocked()
		c.mu.Unlock()
		select {
		case <-answers:
		case <-c.gone:
			return
		case <-timer.C:
			c.log(slog.LevelWarn, "the broker did not answer channel.close in time", "channels", open)
			return
		}
	}
}

// awaitCommit waits, bounded, until the broker has answered the channel's tx.commit:
// RabbitMQ takes anything amid a commit for a hard error.
func (c *client) awaitCommit(b *binding) {
	c.awaitBroker(b, func() bool { return b.broker.Commits.Load() > 0 })
}

// consume passes basic.consume on, and notes its tag.
func (c *client) consume(ch *channel, f amqp.Frame, a action) bool {
	args := amqp.ReadArgs(f)
	args.Short()
	args.Str()
	tag := string(args.Str())
	wait, noAck := a.called, a.bits&2 != 0
	b := c.bound(ch, laneRead)
	if b == nil || !c.fits(b.u, f) {
		return false
	}
	b.u.mu.Lock()
	_, used := b.consumers[tag]
	if !used {
		if tag != "" {
			b.addConsumerLocked(tag)
		}
		if wait {
			b.unnamed.Push(tag == "")
		}
	}
	b.u.mu.Unlock()
	if used {
		again := c.asking(a, amqp.NotAllowed, amqp.BasicConsume, "attempt to reuse consumer tag '"+tag+"'")
		if again.do == doRefuse {
			return c.refuseWith(again.err)
		}
		if !c.asks(ch, again.err) {
			return false
		}
		if b = c.bound(ch, laneRead); b == nil {
			return false
		}
		ch.ledger.Untold() // two consumers go by one tag
		if wait {
			b.u.mu.Lock()
			b.unnamed.Push(false)
			b.u.mu.Unlock()
		}
	}
	if at := &b.u.senders[amqp.BasicConsume.Index()]; at.Load() != c {
		at.Store(c)
	}
	b.broker.Consuming.Add(1)
	ch.ledger.Hears(noAck)
	c.consumes.Store(true)
	if noAck || ch.prefetch == 0 || int(ch.prefetch) > c.env.cfg().SharedPrefetchLimit {
		c.unbounded.Store(true)
	}
	if wait {
		b.broker.Calls.Add(1)
	}
	return c.passQueue(ch, b, f)
}

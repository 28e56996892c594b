// The content of publishes: basic.publish, header and bodies, in this order and whole.

package proxy

import (
	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// beginPublish takes basic.publish; its content follows.
func (c *client) beginPublish(ch *channel, f amqp.Frame, mandatory bool) bool {
	if !c.pubs.Load() {
		c.pubs.Store(true)
	}
	b := c.bound(ch, lanePublish)
	if b == nil {
		ch.content, ch.discard = wantHeader, true
		return false
	}
	if b.u.blocked.Load() {
		c.tellBlocked(b.u)
	}
	if at := &b.u.senders[amqp.BasicPublish.Index()]; at.Load() != c {
		at.Store(c)
	}
	if ch.confirm || mandatory {
		ch.stateful = true
	}
	ch.sent, ch.unheard = true, true
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
		c.env.n.firewallCloses.Add(1)
		return c.die(err)
	}
	if most := uint64(c.env.cfg().MaxMessageSize); size > most {
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

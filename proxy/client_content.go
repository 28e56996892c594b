// The content of publishes: basic.publish, header and bodies, in this order and whole.

package proxy

import (
	"github.com/amqproxysvc/amqproxysvc/proxy/advice"
	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// beginPublish takes basic.publish; its content follows.
func (c *client) beginPublish(ch *channel, f amqp.Frame, mandatory bool) bool {
	b := c.publishes(ch)
	if b == nil {
		ch.content, ch.discard = wantHeader, true
		return false
	}
	if mandatory {
		ch.ledger.Mandatory()
	}
	ch.mandatory = mandatory
	ch.content, ch.discard = wantHeader, false
	ch.inRun = true
	c.begun = ch
	c.gathered++
	f.SetChannel(b.id)
	return true
}

// wholePublishes takes the publishes at pos that amqp.WholePublish knows, as many as follow one
// another on a channel where nothing else is under way. It does what route does for their
// frames, and stops before the first that needs a second look.
func (c *client) wholePublishes(pos int) (until int, frames uint64) {
	id := amqp.Frame(c.buf[pos:]).Channel()
	ch := c.last
	if ch == nil || ch.id != id {
		ch = c.chans.get(id)
		c.last = ch
	}
	if ch == nil || ch.content != noContent || ch.state.Load() != chOpen {
		return pos, 0
	}
	b := ch.cur.Load()
	if b == nil || b.broker.Commits.Load() > 0 || b.u.blocked.Load() || b.first.Load() != nil { // which may bind it anew
		return pos, 0
	}
	most := c.env.cfg().MaxMessageSize
	n, start, buf, maxFrame := uint64(0), pos, c.buf, c.rd.MaxFrame
	for {
		p := amqp.Frame(buf[pos:])
		if len(p) < amqp.HeaderLen || p.Channel() != id {
			break
		}
		header, body, end := amqp.WholePublish(p, maxFrame)
		if end == 0 || body > 0 && int64(end-body-amqp.FrameOverhead) > most {
			break
		}
		if n == 0 {
			c.publishes(ch)
		}
		n++
		frames += 2
		p.SetChannel(b.id)
		p[header:].SetChannel(b.id)
		if body > 0 {
			p[body:].SetChannel(b.id)
			frames++
		}
		pos += end
	}
	if n > 0 {
		c.keep(amqp.Frame(buf[start:pos]), start)
		ch.mandatory = false
		ch.ledger.Published(n, false)
		c.did.published += n
	}
	return pos, frames
}

// publishes notes what holds of a channel that publishes, and gives its binding, joined to the
// run. nil: the client or the channel is being closed.
func (c *client) publishes(ch *channel) *binding {
	if !c.pubs.Load() {
		c.pubs.Store(true)
	}
	b := c.bound(ch, lanePublish)
	if b == nil {
		return nil
	}
	if b.u.blocked.Load() {
		c.tellBlocked(b.u)
	}
	if at := &b.u.senders[publishIndex]; at.Load() != c {
		at.Store(c)
	}
	ch.ledger.Begin()
	return b
}

var publishIndex = amqp.BasicPublish.Index()

// header takes a content header.
func (c *client) header(ch *channel, f amqp.Frame) bool {
	if ch == nil || ch.content != wantHeader {
		return c.stray(ch, f)
	}
	size, err := amqp.CheckContentHeader(f.Payload())
	if err != nil {
		return c.refuseWith(err)
	}
	if !c.bearable(ch, f.Payload()) {
		return false
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
		return c.stray(ch, f)
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

// stray ends the client for a frame that is not due. It is false, for route.
func (c *client) stray(ch *channel, f amqp.Frame) bool {
	if a := c.strayContent(ch, f); a.do == doRefuse {
		c.refuseWith(a.err)
	}
	return false
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
	ch.ledger.Published(1, ch.mandatory)
	c.did.published++
	if ch.bodySize > advice.BigBody {
		c.did.big++
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

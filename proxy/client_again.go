// Again: a channel whose first method is unanswered when its upstream is lost holds nothing there. Where repeating that
// method does no harm it is bound anew and the method sent once more, and its client hears nothing of the loss.

package proxy

import (
	"bytes"
	"log/slog"
	"slices"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// firstCall is the first method of a binding, unanswered, with nothing behind it. Whoever takes it out of binding.first
// decides: the client's reader as more follows, the upstream's as the answer comes, or the upstream's end, which leaves it lost.
type firstCall struct {
	f    amqp.Frame
	l    lane
	lost bool
}

// repeats reports whether a method may be sent twice.
func repeats(m amqp.Method, f amqp.Frame) bool {
	switch m {
	case amqp.QueueDeclare: // one without a name makes another queue each time
		name := int(f.Args()[2])
		return name > 0 && f.Args()[3+name]&declareExclusive == 0
	case amqp.QueueBind:
		return f.Args()[2] != 0
	case amqp.ExchangeDeclare, amqp.ExchangeBind:
		return true
	}
	return false
}

// noLongerFirst takes the binding's first call away. False: it is lost, and is to be sent again.
func (b *binding) noLongerFirst() bool {
	for {
		p := b.first.Load()
		switch {
		case p == nil:
			return true
		case p.lost:
			return false
		case b.first.CompareAndSwap(p, nil):
			return true
		}
	}
}

// losesFirst is for the end of the upstream. False: there is none, the client hears of it.
func (b *binding) losesFirst() bool {
	p := b.first.Load()
	return p != nil && !p.lost && b.first.CompareAndSwap(p, &firstCall{p.f, p.l, true})
}

// goesOn is asked before more is done on a channel. False: the channel or the client is being closed.
func (c *client) goesOn(ch *channel) bool {
	b := ch.cur.Load()
	return b == nil || b.noLongerFirst() || c.again(ch, b)
}

// again binds a channel anew and sends its first method once more. False: the channel or the client is being closed.
func (c *client) again(ch *channel, b *binding) bool {
	p := b.first.Load()
	c.mu.Lock()
	ch.cur.Store(nil)
	if t := c.traced.Load(); t != nil {
		delete(t.seats, ch.id)
	}
	c.mu.Unlock()
	c.log(slog.LevelDebug, "a first method is sent again, its connection to the broker was lost", "method", p.f.Method().String(), "upstream", b.u.n)
	f := bytes.Clone(p.f)
	c.repeating = true
	passes := c.pass(ch, f, p.l, true)
	c.repeating = false
	now := ch.cur.Load()
	if passes {
		c.inject(now, f)
	}
	return now != nil && c.phase.Load() == phaseRunning
}

// sendAgain does so for all channels, when the reader was woken for it.
func (c *client) sendAgain() {
	c.takeDesk()
	c.s0, c.e0 = 0, 0
	for _, ch := range slices.Collect(c.chans.all()) {
		b := ch.cur.Load()
		if b == nil {
			continue
		}
		if p := b.first.Load(); p != nil && p.lost && !c.again(ch, b) {
			break
		}
	}
	c.settle()
}

// wakeToSendAgain interrupts the client's reader.
func (c *client) wakeToSendAgain() { _ = c.conn.SetReadDeadline(time.Unix(1, 0)) }

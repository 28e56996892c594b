// The way round for what may be a hard error, from a channel that cannot move: such a method has
// no state of its channel, so it is sent on another one, of an upstream of the client's own, and its
// answer is heard on the channel that it came on.

package proxy

import (
	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/ledger"
)

// isolated has a method that may be a hard error go where that hurts nobody else. True: it is to be passed on.
func (c *client) isolated(ch *channel, m amqp.Method, f amqp.Frame, wait bool) bool {
	h := c.hazards()
	switch c.own(ch, m) {
	case placed:
		return true
	case ended:
		return false
	}
	if c.lst.Mode == PoolShared {
		if h.rabbit && m == amqp.QueueDeclare && hasField(f, "hsb", masterLocator) {
			return c.apart(ch, f, wait)
		}
		if !h.rabbit && m == amqp.QueueDeclare {
			return c.refuseChannel(ch, amqp.PreconditionFailed, m,
				"some brokers close the connection over such arguments, and with pool_mode = shared it is shared by many clients: set pool_mode to auto or session")
		}
		ch.ledger.Untold()
		return true
	}
	c.detour(ch, m, f, wait)
	return false
}

// detour sends a method round, and waits for its answer.
func (c *client) detour(ch *channel, m amqp.Method, f amqp.Frame, wait bool) {
	if c.session == nil {
		if e := c.becomeSession(); e != nil {
			c.die(e)
			return
		}
	}
	other := &channel{c: c, id: ch.id} // what the broker says on it is for the client's channel
	b := c.bind(other, laneNone)
	if b == nil || !c.fits(b.u, f) {
		return
	}
	b.runSeq = c.runSeq
	c.run.bs = append(c.run.bs, b)
	if at := &b.u.senders[m.Index()]; at.Load() != c {
		at.Store(c)
	}
	f = append(amqp.Frame(nil), f...)
	f.SetChannel(b.id)
	if wait {
		b.broker.Calls.Add(1)
	}
	if m == amqp.QueueDeclare {
		c.declares(other, b, f, wait)
		if out := c.typed(f); out != nil {
			f = out
		}
	}
	c.inject(b, f)
	answer := c.awaitBroker(b, func() bool { return b.broker.Calls.Load() > 0 || b.broker.Declares.Load() > 0 })
	b.u.mu.Lock()
	refused := answer == brokerGone && b.refusal != nil
	b.u.closeLocked(b, ledger.ByMove)
	if m == amqp.QueueDeclare {
		if ch.lastQueue = other.lastQueue; ch.lastQueue == "" {
			ch.lastQueue = b.lastQueue
		}
	}
	b.u.mu.Unlock()
	b.u.out.Flush()
	switch {
	case refused: // which the client hears
		c.refusedElsewhere(ch)
	case answer == brokerLate:
		c.die(amqp.Errorf(amqp.ConnectionForced, m, "the broker did not answer %v within write_timeout = %v", m, c.env.cfg().WriteTimeout))
	case !wait: // only when the close is through it is known whether it was refused
		c.readYourWrites()
		if b.u.ended() {
			break
		}
		c.refusedBehind(ch, b)
		if ch.state.Load() == chRefused {
			c.refusedElsewhere(ch)
		}
	}
	if b.u.ended() {
		c.die(b.u.why()) // what follows must not go on elsewhere
	}
}

// refusedElsewhere closes at the broker what the client has heard to be closed.
func (c *client) refusedElsewhere(ch *channel) {
	c.mu.Lock()
	if ch.state.Load() == chOpen {
		ch.endLocked(ledger.ByBroker, nil) // said already
	}
	c.mu.Unlock()
	if b := ch.cur.Load(); b != nil {
		b.u.closeBinding(b, ledger.ByProxy)
	}
}

// ended reports whether the upstream is no more.
func (u *upstream) ended() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.failed != nil
}

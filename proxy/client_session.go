// Sessions: an upstream that belongs to one client while it is connected. A client gets
// one by its listener's mode, or in mode auto when it does what cannot be shared.

package proxy

import (
	"log/slog"
	"slices"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/ledger"
)

// needSession makes the client a session, if its mode lets it, and moves the channel there
// if it can still move. False: the client is being closed.
func (c *client) needSession(ch *channel, why amqp.Method) bool {
	if c.session == nil && c.lst.Mode == PoolShared {
		ch.ledger.Untold()
		return true
	}
	if c.session == nil {
		if e := c.becomeSession(); e != nil {
			c.die(e)
			return false
		}
		c.log(slog.LevelDebug, "client has an upstream of its own now", "upstream", c.session.n, "because", why.String())
	}
	c.move(c.session, ch)
	return true
}

// becomeSession gets the client an upstream of its own, and frees the channels that can
// move for it.
func (c *client) becomeSession() *amqp.Error {
	if e := c.awaitResumed(); e != nil {
		return e
	}
	c.settle()
	u := c.idleSession()
	if u == nil {
		if c.s.gate.full(c.pool) {
			c.move(nil, slices.Collect(c.chans.all())...) // first: what these leave idle makes the place
		}
		var e *amqp.Error
		u, e = c.openSession(c.gone)
		if e != nil && verdictOf(e).ruling == full {
			// The connection that the client leaves is what its own may take the place of.
			c.move(nil, slices.Collect(c.chans.all())...)
			c.pool.awaitIdle(c.gone)
			u, e = c.openSession(c.gone)
		}
		if e != nil {
			return e
		}
	}
	c.session = u
	c.hasSession.Store(true)
	c.move(u, slices.Collect(c.chans.all())...)
	return nil
}

// renewSession gets the client another upstream of its own in place of one that has ended, or ends, with nothing of it there.
func (c *client) renewSession() *amqp.Error {
	u := c.session
	u.mu.Lock()
	told := u.ownerTold
	u.mu.Unlock()
	if told {
		return u.why()
	}
	c.session = nil
	c.hasSession.Store(false)
	c.pool.giveBack(u)
	e := c.becomeSession()
	if e == nil && c.exclusive {
		c.session.precious.Store(true)
	}
	return e
}

// idleSession takes a connection that was somebody's session.
func (c *client) idleSession() *upstream {
	return c.pool.idleSession(c, c.lst.Mode == PoolSession && c.lst.MatchProperties)
}

// openSession opens an upstream with the client's own properties; closing gone ends the wait for its place.
func (c *client) openSession(gone <-chan struct{}) (*upstream, *amqp.Error) {
	u, e := c.s.openUpstream(c.pool, gone, c.props, c.tells(), false)
	if e != nil {
		return nil, e
	}
	c.adopt(u)
	return u, nil
}

// adopt makes a fresh upstream the client's own.
func (c *client) adopt(u *upstream) {
	u.session = true
	u.owner.Store(c)
	c.hasSession.Store(true)
	c.pool.mu.Lock()
	c.pool.addLocked(u)
	c.pool.mu.Unlock()
}

// move frees channels from the upstreams they are bound to, those that hold nothing there;
// the next method of each binds it to where the client's work is done now.
func (c *client) move(to *upstream, chs ...*channel) {
	var behind []*binding
	for _, ch := range chs {
		if b := c.leave(ch, to); b != nil {
			behind = append(behind, b)
		}
	}
	if len(behind) == 0 {
		return
	}
	c.readYourWrites()
	for _, b := range behind {
		c.refusedBehind(b.ch, b)
	}
}

// leave closes a channel's binding, if it can move away from there. Not nil: what it closed,
// whose close-ok must come before the channel is bound anew.
func (c *client) leave(ch *channel, to *upstream) *binding {
	b := ch.cur.Load()
	if b == nil || b.u == to || ch.state.Load() != chOpen || !b.movable() {
		return nil
	}
	c.flushRun()
	b.u.mu.Lock()
	if ch.lastQueue == "" {
		ch.lastQueue = b.lastQueue
	}
	freed := b.u.closeLocked(b, ledger.ByMove)
	b.u.mu.Unlock()
	if !freed {
		return nil // the broker has closed it meanwhile, which the client hears
	}
	b.u.out.Flush()
	c.mu.Lock()
	ch.cur.Store(nil)
	if t := c.traced.Load(); t != nil {
		delete(t.seats, ch.id)
	}
	c.mu.Unlock()
	if !ch.ledger.Unheard() && !c.s.atChannelLimit(c.pool) {
		return nil
	}
	// What the broker may refuse goes first; and at the limit of the user's channels the
	// broker must not count this one twice.
	ch.ledger.Heard()
	return b
}

// refusedBehind passes on what the broker said to a declaration without an answer, on the
// binding that the channel has moved away from.
func (c *client) refusedBehind(ch *channel, b *binding) {
	b.u.mu.Lock()
	e := b.refusal
	b.u.mu.Unlock()
	if e == nil {
		return
	}
	c.closeChannelFor(ch, e)
}

// ready has the channel where readers are, before its first get or consume: it may have
// been declaring among the publishers.
func (c *client) ready(ch *channel) {
	b := ch.cur.Load()
	switch {
	case b == nil:
	case c.session != nil:
		c.move(c.session, ch)
	case b.movable() && !ch.ledger.Sent() && !b.u.turnToReaders():
		c.move(nil, ch)
	}
}

// endSession gives the client's own upstream back, or ends it when it held exclusive
// queues: they go with the connection, before the client has its answer.
func (c *client) endSession() {
	u := c.session
	if u == nil {
		return
	}
	c.session = nil
	if !c.exclusive {
		c.pool.giveBack(u)
		return
	}
	u.retire()
	u.toEnd.Store(!u.isRabbitMQ())
	u.close("it held exclusive queues")
	if c.phase.Load() != phaseRunning {
		return
	}
	timer := time.NewTimer(c.env.cfg().CloseTimeout)
	defer timer.Stop()
	select {
	case <-u.done:
	case <-timer.C:
	case <-c.gone:
	}
}

// updateSecret passes connection.update-secret on, which only a session can. In mode auto a
// client becomes one for it when all of its channels can follow: one that stays would go
// on with the old secret.
func (c *client) updateSecret(f amqp.Frame) {
	if c.account.login.stored() != nil {
		// What the client sends proved who it is, and is not what the broker knows.
		c.pass0(amqp.AppendMethod(nil, 0, amqp.ConnectionUpdateSecretOk))
		return
	}
	if c.session == nil && c.lst.Mode == PoolAuto && c.movable() {
		if e := c.becomeSession(); e != nil {
			c.die(e)
			return
		}
		c.log(slog.LevelDebug, "client has an upstream of its own now", "upstream", c.session.n, "because", amqp.ConnectionUpdateSecret.String())
	}
	u := c.session
	if u == nil {
		c.refuse(amqp.NotAllowed, amqp.ConnectionUpdateSecret,
			"update-secret on a shared connection to the broker: set pool_mode to session, or let the secret be a bearer token from the start")
		return
	}
	c.flushRun()
	for u.mu.Lock(); u.failed != nil || u.closing; u.mu.Lock() {
		u.mu.Unlock()
		if e := c.renewSession(); e != nil {
			c.die(e)
			return
		}
		u = c.session
	}
	u.precious.Store(true)
	u.out.AppendLocked(f)
	u.mu.Unlock()
	u.out.Flush()
	// The upstream's secret is no longer that of its pool.
	u.retire()
}

// movable reports whether all of the client's channels can go to another upstream.
func (c *client) movable() bool {
	for ch := range c.chans.all() {
		if b := ch.cur.Load(); b != nil && (ch.state.Load() != chOpen || !b.movable()) {
			return false
		}
	}
	return true
}

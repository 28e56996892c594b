// What only an upstream of the client's own may carry: exclusive queues, which belong to a
// connection and not to a channel, and what may close a connection.

package proxy

import (
	"log/slog"
	"slices"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// placement is where a channel has come to be that needs an upstream of its client's own.
type placement int

const (
	placed placement = iota
	barred           // it shares its upstream: its mode says so, or it cannot move away from the others
	ended            // the client is being closed
)

// own has the channel on an upstream of the client's own: it moves to the client's session, or
// what it is bound to becomes that when nobody else is there.
func (c *client) own(ch *channel, why amqp.Method) placement {
	if c.session == nil && c.lst.Mode == PoolShared {
		return barred
	}
	if b := ch.cur.Load(); b != nil && b.u != c.session && ch.state.Load() == chOpen {
		if b.broker.Calls.Load() > 0 || b.broker.Declares.Load() > 0 {
			c.awaitBroker(b, func() bool { return b.broker.Calls.Load() > 0 || b.broker.Declares.Load() > 0 })
		}
		if ch.state.Load() != chOpen {
			return ended
		}
		if !b.movable() {
			if c.session != nil || !c.takeOver(b.u) {
				return barred
			}
			return placed
		}
	}
	if !c.needSession(ch, why) {
		return ended
	}
	return placed // or closed by the broker meanwhile, and then nothing is sent
}

// takeOver makes a shared upstream the client's session, if nobody else is there or about to come.
func (c *client) takeOver(u *upstream) bool {
	c.settle()
	for range 20 {
		ok, again, changed := u.takeOver(c)
		if ok {
			c.session = u
			c.hasSession.Store(true)
			c.log(slog.LevelDebug, "client has the upstream for itself now", "upstream", u.n)
			c.move(u, slices.Collect(c.chans.all())...)
			return true
		}
		if !again {
			return false
		}
		// Somebody's place is promised and not taken yet, or left and not given back yet.
		timer := time.NewTimer(50 * time.Millisecond)
		select {
		case <-changed:
		case <-timer.C:
		case <-c.gone:
			timer.Stop()
			return false
		}
		timer.Stop()
	}
	return false
}

// takeOver makes the client the owner of an upstream that was shared, when nobody else has a
// channel there. again: that may be so in a moment.
func (u *upstream) takeOver(c *client) (ok, again bool, changed <-chan struct{}) {
	p := u.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.failed != nil || u.closing || u.owner.Load() != nil {
		return false, false, nil
	}
	bound := 0
	t := u.table.Load()
	for i := range *t {
		b := (*t)[i].Load()
		if b == nil {
			continue
		}
		if b.ch.c != c && b.state == bOpen {
			return false, false, nil
		}
		bound++
	}
	if u.load != bound {
		return false, true, p.changed.WaitLocked()
	}
	u.owner.Store(c)
	u.dropKeptLocked(func(*keptSeat) bool { return true })
	return true, false, nil
}

// declareExclusive has the channel where an exclusive queue may be declared: nobody else may
// reach it, and it ends with its owner. False: the channel or the client is being closed.
func (c *client) declareExclusive(ch *channel) bool {
	const m = amqp.QueueDeclare
	switch c.own(ch, m) {
	case ended:
		return false
	case barred:
		if c.lst.Mode == PoolShared {
			return c.refuseChannel(ch, amqp.PreconditionFailed, m,
				"an exclusive queue belongs to one connection, and with pool_mode = shared this one's is shared by many clients: set pool_mode to auto or session")
		}
		return c.refuseChannel(ch, amqp.PreconditionFailed, m,
			"an exclusive queue cannot be declared on this channel any more, others share its connection to the broker: "+
				"declare it before the channel publishes with confirms, consumes or gets, or set pool_mode to session")
	}
	c.exclusive = true
	c.session.precious.Store(true)
	return true
}

// Refusals that end a channel and not its client, and the waits for the broker's word that
// must come before them.

package proxy

import (
	"log/slog"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/ledger"
)

// refuseChannel closes a channel with a soft error, in the broker's stead. What the broker has
// still to say to what came before is heard first. It is false, for route.
func (c *client) refuseChannel(ch *channel, code uint16, m amqp.Method, format string, args ...any) bool {
	if b := ch.cur.Load(); b != nil {
		if c.awaitBroker(b, func() bool { return b.broker.Calls.Load() > 0 }) == brokerGone || c.awaitBarrier(b) == brokerGone {
			return false // the client hears of that
		}
		c.flushRun()
		b.u.mu.Lock()
		open := b.u.closeLocked(b, ledger.ByProxy)
		b.u.mu.Unlock()
		if !open {
			return false // the broker was faster
		}
		b.u.out.Flush()
	}
	e := amqp.Errorf(code, m, format, args...)
	c.log(slog.LevelInfo, "channel closed", "channel", ch.id, "code", e.Code, "reason", e.Text, "method", m.String())
	c.closeChannelFor(ch, e)
	return false
}

// closeChannelFor tells the client that its channel is closed for an error.
func (c *client) closeChannelFor(ch *channel, e *amqp.Error) {
	c.mu.Lock()
	if c.phase.Load() == phaseRunning && ch.state.Load() == chOpen {
		ch.endLocked(ledger.ByProxy, amqp.AppendClose(nil, ch.id, e))
	}
	c.mu.Unlock()
}

// brokerAnswer is how a wait for the broker ended.
type brokerAnswer int

const (
	brokerAnswered brokerAnswer = iota
	brokerLate                  // not within write_timeout
	brokerGone                  // the channel is closed there, the upstream has ended, or the client is gone
)

// awaitBroker waits, at most write_timeout, while something of a channel is due from the broker.
func (c *client) awaitBroker(b *binding, due func() bool) brokerAnswer {
	c.settle()
	u := b.u
	u.awaits.Add(1) // before the look at what is due, see upstream.pass
	defer u.awaits.Add(-1)
	timer := time.NewTimer(c.env.cfg().WriteTimeout)
	defer timer.Stop()
	for {
		u.mu.Lock()
		open := b.state == bOpen && u.failed == nil
		answered := u.answered.WaitLocked()
		u.mu.Unlock()
		switch {
		case !open:
			return brokerGone
		case !due():
			return brokerAnswered
		}
		select {
		case <-answered:
		case <-u.done:
			return brokerGone
		case <-c.gone:
			return brokerGone
		case <-timer.C:
			return brokerLate
		}
	}
}

// awaitBarrier waits until the broker has taken all that came before on a channel, publishes and
// acks too, which have no answer unless they are refused.
func (c *client) awaitBarrier(b *binding) brokerAnswer {
	u := b.u
	u.mu.Lock()
	if b.state == bOpen {
		u.barrierLocked(b)
	}
	u.mu.Unlock()
	u.out.Flush()
	return c.awaitBroker(b, func() bool {
		u.mu.Lock()
		defer u.mu.Unlock()
		return !b.qosOwn.Empty()
	})
}

// queueKnown has the name of the queue that a channel declared last ready for a method that gives
// none. It is never left to the broker, which may remember it for the whole connection: on a shared
// one that is another client's. False: the channel or the client is being closed.
func (c *client) queueKnown(ch *channel, m amqp.Method, f amqp.Frame) bool {
	if ch.lastQueue != "" || f.Args()[2] != 0 {
		return true
	}
	if b := ch.cur.Load(); b != nil {
		if b.broker.Declares.Load() > 0 {
			switch c.awaitBroker(b, func() bool { return b.broker.Declares.Load() > 0 }) {
			case brokerGone:
				return false
			case brokerLate:
				return c.die(amqp.Errorf(amqp.ConnectionForced, m,
					"the broker did not answer queue.declare within write_timeout = %v", c.env.cfg().WriteTimeout))
			}
		}
		b.u.mu.Lock()
		ch.lastQueue = b.lastQueue
		b.u.mu.Unlock()
	}
	if ch.lastQueue == "" {
		return c.refuseChannel(ch, amqp.NotFound, m, "no previously declared queue")
	}
	return true
}

// declares notes a queue.declare, whose queue later methods may mean without naming it.
func (c *client) declares(ch *channel, b *binding, f amqp.Frame, called bool) {
	const noWait = 1 << 4
	a := amqp.ReadArgs(f)
	a.Short()
	name := a.Str()
	ch.lastQueue = ""
	if c.did.queue != string(name) {
		c.did.queue = string(name)
	}
	if !called {
		if len(name) > 0 {
			ch.lastQueue = string(name)
			return
		}
		f.Args()[3] &^= noWait // only the answer tells the name; the client does not hear it
	}
	b.broker.Declares.Add(1)
	b.u.mu.Lock()
	b.declareOwn.Push(!called)
	b.transients.Push(isTransient(f.Args()[3+len(name)]))
	b.u.mu.Unlock()
}

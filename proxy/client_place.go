// A channel's place: on which upstream it is bound, when its first frame for the broker comes.

package proxy

import (
	"bytes"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// pass binds the channel where it is not, and has the frame go there. called: an answer is awaited.
func (c *client) pass(ch *channel, f amqp.Frame, l lane, called bool) bool {
	fresh := called && !c.repeating && ch.cur.Load() == nil
	b := c.bound(ch, l)
	if b == nil || !c.fits(b.u, f) {
		return false
	}
	m := f.Method()
	if fresh && repeats(m, f) {
		b.first.Store(&firstCall{f: bytes.Clone(f), l: l})
	}
	if called {
		b.broker.Calls.Add(1)
		ch.ledger.Called() // its answer will speak for those before it
	} else if l == laneNone && m.Spec().Sync {
		ch.ledger.Said()
	}
	if at := &b.u.senders[m.Index()]; at.Load() != c {
		at.Store(c)
	}
	switch m {
	case amqp.BasicGet, amqp.QueueBind, amqp.QueueUnbind, amqp.QueuePurge, amqp.QueueDelete:
		return c.passQueue(ch, b, f)
	case amqp.QueueDeclare:
		c.declares(ch, b, f, called)
		if out := c.typed(f); out != nil {
			if c.fits(b.u, out) {
				out.SetChannel(b.id)
				c.inject(b, out)
			}
			return false
		}
	}
	f.SetChannel(b.id)
	return true
}

// bound is the channel's binding, made when there is none, and joined to the run. nil: the
// client or the channel is being closed.
func (c *client) bound(ch *channel, l lane) *binding {
	b := ch.cur.Load()
	if b != nil && b.first.Load() != nil && c.goesOn(ch) {
		b = ch.cur.Load()
	}
	if b == nil {
		if ch.state.Load() != chOpen {
			return nil // refused where it was before it moved
		}
		came := time.Now()
		if b = c.bind(ch, l); b == nil {
			return nil
		}
		c.env.n.firstFrames.observe(time.Since(came))
	}
	r := &c.run
	if r.u != b.u {
		if r.u != nil {
			c.flushRun()
		}
		r.u = b.u
	}
	if b.runSeq != c.runSeq {
		b.runSeq = c.runSeq
		r.bs = append(r.bs, b)
	}
	return b
}

// bind gives the channel a place on an upstream of the lane.
func (c *client) bind(ch *channel, l lane) *binding {
	if e := c.awaitResumed(); e != nil {
		c.die(e)
		return nil
	}
	for {
		if c.session == nil && (c.s.atChannelLimit(c.pool) || c.s.hasOffended(c)) {
			if e := c.becomeSession(); e != nil {
				c.die(e)
				return nil
			}
		}
		at, err := c.placeFor(l)
		if err != nil {
			c.die(err)
			return nil
		}
		u := at.u
		if u.late.Load() >= closesLate || u.closingN.Load() >= closesMost {
			c.awaitQuietCloses(u) // another upstream's are not in its way
		}
		seat := c.awaitSeat(ch, u)
		if c.run.u != nil && (c.e0 > c.s0 || c.run.u != u) {
			c.flushRun()
		}
		b, prefix, failed := u.bind(ch, at, seat, c.run.prefix)
		if failed != nil {
			at.leave()
			switch {
			case c.phase.Load() != phaseRunning:
				return nil
			case u != c.session:
				c.dropUpstream(u)
			case failed != errNoID:
				if e := c.renewSession(); e != nil {
					c.die(e)
					return nil
				}
			case !c.awaitID(u):
				c.die(amqp.Errorf(amqp.ConnectionForced, 0, "the broker closes no channel within %v", c.env.cfg().CloseTimeout))
				return nil
			}
			continue
		}
		c.run.u, c.run.prefix = u, prefix
		c.mu.Lock()
		ch.cur.Store(b)
		if t := c.traced.Load(); t != nil {
			t.seatedLocked(b)
		}
		c.mu.Unlock()
		return b
	}
}

// placeFor is where a channel of the client goes.
func (c *client) placeFor(l lane) (place, *amqp.Error) {
	for c.session != nil {
		if at, ok := c.pool.promise(c.session, false); ok {
			return at, nil
		}
		if e := c.renewSession(); e != nil {
			return place{}, e
		}
	}
	slot := &c.publish
	if l == laneRead {
		slot = &c.readers
	}
	at, ok := c.pool.try(*slot, l)
	if !ok {
		c.settle()
		c.waitsFrom.Store(c.env.now())
		var e *amqp.Error
		came := time.Now()
		at, e = c.pool.acquire(l, c.gone)
		c.env.n.waits.observe(time.Since(came))
		c.waitsFrom.Store(0)
		if e != nil {
			return at, e
		}
	}
	*slot = at.u
	return at, nil
}

// awaitID waits until a channel id of the session comes free. False: none did.
func (c *client) awaitID(u *upstream) bool {
	c.settle()
	timer := time.NewTimer(c.env.cfg().CloseTimeout)
	defer timer.Stop()
	for {
		c.pool.mu.Lock()
		changed := c.pool.changed.WaitLocked()
		free := u.load+u.lost+int(u.keptIDs.Load()) < int(u.ids.limit)
		c.pool.mu.Unlock()
		if free {
			return true
		}
		select {
		case <-changed:
		case <-c.gone:
			return false
		case <-timer.C:
			return false
		}
	}
}

// dropUpstream forgets a shared upstream that turned out to be dead.
func (c *client) dropUpstream(u *upstream) {
	if c.publish == u {
		c.publish = nil
	}
	if c.readers == u {
		c.readers = nil
	}
}

// passQueue passes a method whose second argument is a queue, with the name of the queue that
// the channel declared last where the client, rightly, gave none.
func (c *client) passQueue(ch *channel, b *binding, f amqp.Frame) bool {
	f.SetChannel(b.id)
	if f.Args()[2] != 0 {
		return true
	}
	m := f.Method()
	args := f.Args()
	out := amqp.BeginMethod(nil, b.id, m)
	out = append(out, args[:2]...)
	out = amqp.AppendShortStr(out, ch.lastQueue)
	rest := args[3:]
	if m == amqp.QueueBind || m == amqp.QueueUnbind {
		// An empty routing key beside an empty queue means the queue's name as well.
		n := 1 + int(rest[0])
		if rest[n] == 0 {
			out = append(out, rest[:n]...)
			out = amqp.AppendShortStr(out, ch.lastQueue)
			rest = rest[n+1:]
		}
	}
	out = append(out, rest...)
	out = amqp.EndMethod(out, 0)
	c.inject(b, out)
	return false
}

// inject puts a frame that does not stand in the read buffer at the end of the run.
func (c *client) inject(b *binding, f amqp.Frame) {
	if c.e0 > c.s0 {
		c.flushRun()
		c.bound(b.ch, laneNone)
	}
	c.run.prefix = append(c.run.prefix, f...)
}

// Sessions: an upstream that belongs to one client while it is connected. A client gets
// one by its listener's mode, or in mode auto when it does what cannot be shared.

package proxy

import (
	"log/slog"
	"slices"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// needSession makes the client a session, if its mode lets it, and moves the channel there
// if it can still move. False: the client is being closed.
func (c *client) needSession(ch *channel, why amqp.Method) bool {
	if c.lst.Mode == PoolShared {
		ch.neverQuiet = true
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
	if b := ch.cur.Load(); b != nil && b.u != c.session && why == amqp.QueueDeclare {
		b.u.retire() // an exclusive queue that stays there ends when its tenants have left
	}
	return true
}

// becomeSession gets the client an upstream of its own, and frees the channels that can
// move for it.
func (c *client) becomeSession() *amqp.Error {
	c.settle()
	u := c.pool.idleSession(c)
	if u == nil {
		if c.s.gate.full(c.pool) {
			c.move(nil, slices.Collect(c.chans.all())...) // first: what these leave idle makes the place
		}
		var e *amqp.Error
		if u, e = c.openSession(); e != nil {
			return e
		}
	}
	c.session = u
	c.hasSession.Store(true)
	c.move(u, slices.Collect(c.chans.all())...)
	return nil
}

// openSession opens an upstream with the client's own properties.
func (c *client) openSession() (*upstream, *amqp.Error) {
	u, e := c.s.openUpstream(c.pool, c.props, false)
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

// admittedSession is the verdict for a client that is a session from its start.
func (c *client) admittedSession() *amqp.Error {
	p := c.pool
	if u := p.idleSession(c); u != nil {
		c.session = u
		c.hasSession.Store(true)
		p.mu.Lock()
		if c.s.now()-p.verified > int64(c.s.cfg().AuthTTL) && !p.rechecking {
			p.rechecking = true
			c.s.spawn(p.recheck)
		}
		p.mu.Unlock()
		c.s.n.reuseHits.Add(1)
		return nil
	}
	u, e := p.openSpare(c.props)
	switch {
	case u != nil:
		c.adopt(u)
	case e == nil:
		u, e = c.openSession()
	}
	c.session = u
	return e
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
	freed := b.u.closeLocked(b, true)
	b.u.mu.Unlock()
	if !freed {
		return nil // the broker has closed it meanwhile, which the client hears
	}
	b.u.out.Flush()
	c.mu.Lock()
	ch.cur.Store(nil)
	c.mu.Unlock()
	if !ch.unheard && !c.s.atChannelLimit(c.pool) {
		return nil
	}
	// What the broker may refuse goes first; and at the limit of the user's channels the
	// broker must not count this one twice.
	ch.unheard = false
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
	c.mu.Lock()
	if ch.state.Load() == chOpen && c.phase.Load() == phaseRunning {
		ch.state.Store(chRefused)
		c.out.SetBufferLocked(amqp.AppendClose(c.out.BufferLocked(300), ch.id, e))
	}
	c.mu.Unlock()
}

// ready has the channel where readers are, before its first get or consume: it may have
// been declaring among the publishers.
func (c *client) ready(ch *channel) {
	b := ch.cur.Load()
	switch {
	case b == nil:
	case c.session != nil:
		c.move(c.session, ch)
	case b.movable() && !ch.sent && !b.u.turnToReaders():
		c.move(nil, ch)
	}
}

// consume takes basic.consume.
func (c *client) consume(ch *channel, f amqp.Frame, bits byte, wait bool) bool {
	a := amqp.ReadArgs(f)
	a.Short()
	a.Str()
	tag := string(a.Str())
	noAck := bits&2 != 0
	limit := c.s.cfg().SharedPrefetchLimit
	c.readYourWrites()
	if noAck || ch.prefetch == 0 || int(ch.prefetch) > limit || ch.globalQos ||
		ownHazard(amqp.BasicConsume, f, bits) {
		if !c.needSession(ch, amqp.BasicConsume) {
			return false
		}
	}
	c.ready(ch)
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
			b.unnamed.push(tag == "")
		}
	}
	b.u.mu.Unlock()
	if used {
		return c.refuse(amqp.NotAllowed, amqp.BasicConsume, "attempt to reuse consumer tag '%s'", tag)
	}
	if at := &b.u.senders[amqp.BasicConsume.Index()]; at.Load() != c {
		at.Store(c)
	}
	b.consuming.Add(1)
	ch.hearing(noAck)
	if wait {
		b.calls.Add(1)
	}
	return c.passQueue(ch, b, f)
}

// passQueue passes a method whose second argument is a queue. A channel that has moved
// puts the name of the queue it declared last where the client, rightly, gave none.
func (c *client) passQueue(ch *channel, b *binding, f amqp.Frame) bool {
	f.SetChannel(b.id)
	if ch.lastQueue == "" || f.Args()[2] != 0 {
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
	u.close("it held exclusive queues")
	if c.phase.Load() != phaseRunning {
		return
	}
	timer := time.NewTimer(c.s.cfg().CloseTimeout)
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
	u.mu.Lock()
	u.out.AppendLocked(f)
	u.mu.Unlock()
	u.out.Flush()
	// The upstream's secret is no longer that of its pool.
	u.retire()
}

// movable says whether all of the client's channels can go to another upstream.
func (c *client) movable() bool {
	for ch := range c.chans.all() {
		if b := ch.cur.Load(); b != nil && (ch.state.Load() != chOpen || !b.movable()) {
			return false
		}
	}
	return true
}

// retire lets no new channels or sessions onto the upstream.
func (u *upstream) retire() {
	u.pool.mu.Lock()
	u.retired = true
	u.pool.mu.Unlock()
}

// turnToReaders tells whether the upstream is one for readers, which it becomes when the
// caller's channel is the only one there and there is no other for readers.
func (u *upstream) turnToReaders() bool {
	p := u.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if u.load == 1 && !slices.ContainsFunc(p.ups, func(x *upstream) bool { return x != u && x.lane == laneRead && p.roomLocked(x) }) {
		u.lane = laneRead
	}
	return u.lane != lanePublish
}

// soleTenant is the client that has the upstream for itself: the session's owner, or,
// when somebody's queue is crowded, the only client bound here. Nil: several, or nobody crowded.
func (u *upstream) soleTenant() *client {
	if c := u.owner.Load(); c != nil {
		return c
	}
	if u.crowded.Load() == 0 {
		return nil
	}
	var sole *client
	t := u.table.Load()
	for i := range *t {
		b := (*t)[i].Load()
		if b == nil || b.ch.c == sole {
			continue
		}
		if sole != nil {
			return nil
		}
		sole = b.ch.c
	}
	return sole
}

// Whether an upstream still answers: what it owes, the question that is put to it, its end.
//
// A frozen process, a stuck connection and a path that loses packets close nothing. So an
// upstream that owes an answer for close_timeout is suspect: it takes no new channels, and is
// asked, by opening and closing a spare channel, which tells a call that takes long from a
// connection that answers nobody. When that has had no answer for as long again, it ends.
//
// RabbitMQ does not read a connection that publishes while its queues are behind, and looks no different
// then but for its heartbeats; one comes at the latest a whole interval after its last byte.
// A publisher keeps the connection while these come, for write_timeout more; those that wait there
// for an answer and have not published are told at once. In an alarm, which the broker tells of,
// nothing is owed.

package proxy

import (
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// alive is what the janitor knows of an upstream's answers. It is the janitor's alone.
type alive struct {
	tended  int64 // when it looked last
	written int64 // when the last byte had been sent of those of which nothing is owed
	since   int64 // since when an answer is owed; 0: none is
	asked   int64 // when the upstream was asked; 0: not since its last answer
	pinged  bool  // a spare channel could be had for it
	look    int64 // when it looks at the clients' heartbeats next
}

const (
	// suspectAfter is how long an upstream that is asked goes on to take new channels: one
	// that only has a call that takes long has answered by then.
	suspectAfter = 5 * tick
	// lookEvery is how often the clients' heartbeats are looked at.
	lookEvery = 5 * tick
)

// heldUp reports whether the proxy itself has stood still since the janitor looked last: what
// has come meanwhile is not read yet, and nobody was silent.
func (u *upstream) heldUp(now int64) bool {
	a := &u.alive
	last := a.tended
	a.tended = now
	if last == 0 || now-last < int64(10*tick) {
		return false
	}
	u.lastRead.Store(now)
	u.trust()
	return true
}

// trust forgets all suspicion.
func (u *upstream) trust() {
	a := &u.alive
	a.since, a.asked = 0, 0
	u.suspect.Store(false)
}

// watch looks whether the upstream answers.
func (u *upstream) watch(now int64) {
	if u.halted.Load() || u.blocked.Load() {
		u.trust()
		return
	}
	a := &u.alive
	cfg := u.env.cfg()
	answered := u.replied.Load()
	if a.asked != 0 && answered >= a.asked {
		u.trust()
	}
	switch {
	case !u.owes(now):
		a.since = 0
	case a.since == 0:
		a.since = now
	default:
		a.since = max(a.since, answered)
	}
	silent := now - u.lastRead.Load()
	hb := int64(u.heartbeat)
	var shortest int64
	if silent > int64(time.Second) && hb != 0 && now >= a.look {
		a.look = now + int64(lookEvery)
		shortest = u.hearts(silent, 0)
	}
	if a.asked == 0 {
		if a.since != 0 && now-a.since >= int64(cfg.CloseTimeout) || hb != 0 && silent > hb+int64(tick) ||
			shortest != 0 && silent > shortest {
			a.asked, a.pinged = now, u.ask(now)
		}
		return
	}
	if now-a.asked >= int64(suspectAfter) {
		u.suspect.Store(true)
	}
	if shortest != 0 && silent > 2*shortest+int64(tick) {
		u.hearts(silent, now)
	}
	if now-a.asked < int64(cfg.CloseTimeout) {
		return
	}
	e := amqp.Errorf(amqp.ConnectionForced, 0, "the broker does not answer: it was asked %v ago and last heard %v ago",
		time.Duration(now-a.asked).Round(tick), time.Duration(silent).Round(tick))
	if a.pinged && u.senders[amqp.BasicPublish.Index()].Load() == nil {
		u.silent(e)
		return
	}
	patience := min(max(hb-int64(time.Second), 2*int64(cfg.CloseTimeout)), max(int64(cfg.WriteTimeout), 2*int64(cfg.CloseTimeout)))
	switch {
	case hb != 0 && silent >= patience, a.pinged && now-a.asked >= int64(cfg.WriteTimeout):
		u.silent(e)
	case a.pinged:
		u.tell(e, func(b *binding) bool { return b.broker.Calls.Load() > 0 && !b.ch.c.pubs.Load() })
	}
}

// silent ends an upstream that gives no sign of life. What waits for its socket is not tried
// again and again by the kernel.
func (u *upstream) silent(e *amqp.Error) {
	u.env.n.heartbeatTimeouts.Add(1)
	abrupt(u.conn)
	u.fail(e, true)
}

// owes reports whether the broker owes an answer. Where nothing has been sent since the last
// look, the channels need not be looked at.
func (u *upstream) owes(now int64) bool {
	if u.closingN.Load() > 0 {
		return true
	}
	sent := u.out.LastWrite.Load()
	t := u.table.Load()
	if t == nil || sent == u.alive.written && u.out.WriteSince.Load() == 0 {
		return false
	}
	for i := range *t {
		if b := (*t)[i].Load(); b != nil && (b.broker.Calls.Load() > 0 || !b.opened.Load() || b.published.Load() > b.broker.Confirmed.Load()) {
			return true
		}
	}
	if sent < now { // else more may leave at the same time of the coarse clock
		u.alive.written = sent
	}
	return false
}

// nobody is the client of the channels that are opened to ask, and of those that are kept.
var nobody = &channel{c: &client{}}

// ask opens and closes a channel that nobody needs. False: none is to be had, or one more may
// be more than the broker lets the user have.
func (u *upstream) ask(now int64) bool {
	p := u.pool
	if u.s.atChannelLimit(p) {
		return false
	}
	at, room := p.promise(u, true)
	if !room {
		return false
	}
	u.mu.Lock()
	var id uint16
	ok := u.failed == nil && !u.closing
	if ok {
		id, ok = u.ids.take()
	}
	if ok {
		b := &binding{u: u, ch: nobody, id: id, state: bClosing, silent: true, closedAt: now, place: at}
		u.setLocked(id, b)
		u.closingN.Add(1)
		u.env.n.bindings.Add(1)
		buf := amqp.AppendMethod(u.out.BufferLocked(64), id, amqp.ChannelOpen, 0)
		u.out.SetBufferLocked(amqp.AppendClose(buf, id, &amqp.Error{Code: amqp.ReplySuccess, Text: "Goodbye"}))
		u.out.KickLocked()
	}
	u.mu.Unlock()
	if !ok {
		at.leave()
	}
	return ok
}

// hearts gives the shortest heartbeat of the clients here that have a shorter one than the
// upstream; 0: none has. With a time, those that have been left without a sign of life for two
// of theirs are told, as they would have found out straight.
func (u *upstream) hearts(silent, now int64) (shortest int64) {
	short := func(c *client) bool {
		h := int64(c.heartbeat)
		if h == 0 || h >= int64(u.heartbeat) {
			return false
		}
		if shortest == 0 || h < shortest {
			shortest = h
		}
		return silent > 2*h+int64(tick)
	}
	why := func(c *client) *amqp.Error {
		return amqp.Errorf(amqp.ConnectionForced, 0, "the broker has been silent for %v, the client's heartbeat is %v",
			time.Duration(silent).Round(tick), c.heartbeat)
	}
	if c := u.owner.Load(); c != nil {
		if short(c) && now != 0 {
			u.silent(why(c))
		}
		return shortest
	}
	t := u.table.Load()
	if t == nil {
		return 0
	}
	for i := range *t {
		if b := (*t)[i].Load(); b != nil && short(b.ch.c) && now != 0 {
			b.ch.c.shut(why(b.ch.c), false)
		}
	}
	return shortest
}

// tell closes the clients of those channels with an error.
func (u *upstream) tell(e *amqp.Error, which func(*binding) bool) {
	t := u.table.Load()
	for i := range *t {
		if b := (*t)[i].Load(); b != nil && b.ch != nobody && which(b) {
			b.ch.c.shut(e, false)
		}
	}
}

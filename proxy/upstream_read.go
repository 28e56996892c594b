// The reader of an upstream: frames from the broker to the clients' queues. It never
// waits for a client's socket, but for that of a sole tenant, and that on purpose.

package proxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/ledger"
)

// delivery gathers consecutive frames of one binding, and the clients to wake.
type delivery struct {
	b       *binding
	from    int // where its frames begin, Reader.Mark
	touched []*client
}

// read runs until the upstream ends; its goroutine is the upstream's owner.
func (u *upstream) read() {
	u.env.log.Info("upstream opened", "upstream", u.n, "user", u.account.login.user, "vhost", u.vhost())
	defer u.s.readerGone(u)
	defer u.rd.Release()
	var ackNow func()
	if !u.isRabbitMQ() { // which sets TCP_NODELAY, and would only pay for it
		ackNow = quickAck(u.conn)
	}
	var d delivery
	if e := u.chunk(&d); e != nil { // what came behind open-ok
		u.fail(e, true)
		return
	}
	for {
		n, err := u.rd.Fill(u.conn)
		if n > 0 {
			if ackNow != nil {
				ackNow()
			}
			u.lastRead.Store(u.env.now())
			u.env.n.fromUpstreams.Add(uint64(n))
			u.received.Store(u.received.Load() + uint64(n))
			if e := u.chunk(&d); e != nil {
				if u.toEnd.Load() && u.closeOk {
					u.readToEnd()
				}
				u.fail(e, true)
				return
			}
		}
		if err != nil {
			u.lostSocket(err)
			return
		}
	}
}

// endGrace bounds the wait for a broker that closes its socket behind close-ok.
const endGrace = 200 * time.Millisecond

// readToEnd waits until the broker closes the socket. LavinMQ deletes exclusive queues between
// its close-ok and that; RabbitMQ does before its close-ok, and leaves the socket to the client.
func (u *upstream) readToEnd() {
	_ = u.conn.SetReadDeadline(time.Now().Add(endGrace))
	for p := make([]byte, 512); ; {
		if _, err := u.conn.Read(p); err != nil {
			return
		}
	}
}

// lostSocket ends the upstream whose socket just died. Of what the network says of that, with its
// addresses, the clients hear nothing: that is the operator's, who has it in the log.
func (u *upstream) lostSocket(err error) {
	u.cut.Store(true)
	why := "the broker closed the connection"
	if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		why = "the connection to the broker was lost"
		u.cause.CompareAndSwap(nil, &err)
	}
	u.fail(amqp.Errorf(amqp.ConnectionForced, 0, "%s", why), true)
}

// chunk passes on all whole frames of what was read.
func (u *upstream) chunk(d *delivery) *amqp.Error {
	frames := uint64(0)
	d.from = u.rd.Mark()
	var fatal *amqp.Error
	for {
		at := u.rd.Mark()
		if n := u.plain(d, at); n > 0 {
			frames += n
			continue
		}
		f, err := u.rd.Next()
		if err != nil {
			var e *amqp.Error
			errors.As(err, &e)
			fatal = amqp.Errorf(amqp.ConnectionForced, 0, "the broker sent what is not AMQP: %s", e.Text)
			break
		}
		if f == nil {
			break
		}
		frames++
		id := f.Channel()
		var b *binding
		keep := false
		if id == 0 {
			u.pass(d, at)
			if fatal = u.control(f); fatal != nil {
				break
			}
		} else if b = u.lookup(id); b != nil {
			keep = u.route(b, f, d, at)
		} else if f.Type() == amqp.FrameMethod && f.Method() == amqp.ChannelClose {
			u.keptClosed(f)
		}
		if !keep || b != d.b {
			u.pass(d, at)
			if keep {
				d.b = b
				d.from = at
			} else {
				d.from = u.rd.Mark()
			}
		}
	}
	u.pass(d, u.rd.Mark())
	u.env.n.framesUpstreams.Add(frames)
	if u.replies {
		u.replies = false
		u.replied.Store(u.env.now())
	}
	if len(d.touched) == 1 {
		d.touched[0].wakeAlone()
		d.touched[0] = nil
	} else {
		for i, c := range d.touched {
			d.touched[i] = nil
			c.wake()
		}
	}
	d.touched = d.touched[:0]
	// Only now, with every client's frames queued and nothing held, may it wait.
	if u.s.queues.over.Load() {
		u.s.relieve()
	}
	u.backPressure()
	return fatal
}

// plain gathers the frames at the mark at that need no more than their client's channel number:
// deliveries, their content, and confirms, as many as follow one another on a channel. It does
// what route does for them, and stops before the first that needs a second look.
func (u *upstream) plain(d *delivery, at int) (frames uint64) {
	buf := u.rd.Buffered()
	if len(buf) < amqp.FrameOverhead+4 {
		return 0
	}
	id := amqp.Frame(buf).Channel()
	b := u.lookup(id) // nil for channel 0, among others
	if b == nil {
		return 0
	}
	most := u.rd.MaxFrame - 1 // of a size less one: 0, no bound, becomes the largest
	if own := b.ch.c.frameMax; own != 0 {
		if own < u.tune.FrameMax || u.tune.FrameMax == 0 {
			return 0 // a body may be too large for the client
		}
		most = min(most, own-amqp.FrameOverhead-1)
	}
	var tag uint64
	n, delivers, confirms := 0, false, false
gather:
	for len(buf)-n >= amqp.FrameOverhead+4 {
		f := amqp.Frame(buf[n:])
		size := binary.BigEndian.Uint32(f[3:])
		if size-1 > most || uint64(len(f)) < uint64(size)+amqp.FrameOverhead || f[amqp.HeaderLen+size] != amqp.FrameEnd || f.Channel() != id {
			break
		}
		switch f.Type() {
		case amqp.FrameHeader, amqp.FrameBody:
		case amqp.FrameMethod:
			args := f[amqp.HeaderLen : amqp.HeaderLen+size]
			switch f.Method() {
			case amqp.BasicDeliver:
				if len(args) < 13 || len(args) < 13+int(args[4]) {
					break gather
				}
				tag, delivers = binary.BigEndian.Uint64(args[5+int(args[4]):]), true
			case amqp.BasicAck:
				if len(args) < 13 {
					break gather
				}
				b.broker.Confirming(b.ownTag(args[4:]), args[12]&1 != 0)
				confirms = true
			default:
				break gather
			}
		default:
			break gather
		}
		f.SetChannel(b.ch.id)
		n += int(size) + amqp.FrameOverhead
		frames++
	}
	if n == 0 {
		return 0
	}
	// Before the client can hear of them.
	if delivers {
		b.broker.LastTag.Store(tag)
	}
	if confirms {
		u.replies = true
		b.broker.TellConfirms()
	}
	if d.b != b {
		u.pass(d, at)
		d.b, d.from = b, at
	}
	u.rd.Skip(n)
	return frames
}

// pass hands the gathered frames, which end at the mark to, to their client.
func (u *upstream) pass(d *delivery, to int) {
	if d.b == nil {
		return
	}
	if p := u.rd.Between(d.from, to); len(p) > 0 {
		c := d.b.ch.c
		if c.deliver(d.b, p) {
			d.touch(c)
		}
	}
	if n := d.b.answered; n != 0 {
		d.b.answered = 0
		d.b.broker.Calls.Add(-n) // only now: an answer of the proxy's own must not overtake these
		u.wakeAwaiting()
	}
	d.b = nil
}

func (d *delivery) touch(c *client) {
	for _, x := range d.touched {
		if x == c {
			return
		}
	}
	d.touched = append(d.touched, c)
}

// put queues bytes for a client out of the order of the read buffer: what was gathered goes first.
func (u *upstream) put(d *delivery, at int, b *binding, p []byte) {
	u.pass(d, at)
	if b.ch.c.deliver(b, p) {
		d.touch(b.ch.c)
	}
}

// route looks at a frame of a channel. True: it goes to the client as it is, with the
// client's channel number already in it.
func (u *upstream) route(b *binding, f amqp.Frame, d *delivery, at int) bool {
	ch := b.ch
	switch f.Type() {
	case amqp.FrameMethod:
		return u.method(b, f, d, at)
	case amqp.FrameHeader: // cannot be cut: one that is too large goes to the client whole, as RabbitMQ sends it
	case amqp.FrameBody:
		if most := ch.c.frameMax; most != 0 && uint32(len(f)) > most {
			u.put(d, at, b, amqp.AppendBody(nil, ch.id, f.Payload(), most))
			return false
		}
	default:
		return false
	}
	f.SetChannel(ch.id)
	return true
}

// method looks at a method from the broker. True: pass it on.
func (u *upstream) method(b *binding, f amqp.Frame, d *delivery, at int) bool {
	ch := b.ch
	m := f.Method()
	answers := m.Spec().Reply
	if answers || m == amqp.BasicAck || m == amqp.BasicNack || m == amqp.ChannelClose {
		u.replies = true
	}
	switch m {
	case amqp.BasicDeliver:
		if p := f.Args(); len(p) > 8 && len(p) >= 9+int(p[0]) {
			b.broker.LastTag.Store(binary.BigEndian.Uint64(p[1+int(p[0]):]))
		}
	case amqp.BasicGetEmpty:
		if a := ch.c.app; a != nil {
			a.empty.Add(1)
		}
	case amqp.BasicGetOk:
		if p := f.Args(); len(p) >= 8 {
			b.broker.LastTag.Store(binary.BigEndian.Uint64(p))
		}
	case amqp.BasicAck, amqp.BasicNack:
		if p := f.Args(); len(p) >= 9 {
			b.broker.Confirm(b.ownTag(p), p[8]&1 != 0)
		}
	case amqp.ChannelOpenOk:
		b.opened.Store(true)
		return false
	case amqp.BasicQosOk, amqp.ConfirmSelectOk:
		u.mu.Lock()
		own, leaves := false, false
		if m == amqp.BasicQosOk {
			own = b.qosOwn.Pop()
			leaves = b.state == ledger.SeatProving
		} else {
			own = b.selectOwn.Pop()
		}
		u.mu.Unlock()
		if leaves {
			u.proven(b)
		}
		u.wakeAwaiting()
		if own {
			return false
		}
	case amqp.BasicConsumeOk:
		a := amqp.ReadArgs(f)
		u.consumerNamed(b, string(a.Str()))
	case amqp.BasicCancel:
		a := amqp.ReadArgs(f)
		u.consumerGone(b, string(a.Str()))
		if !ch.c.caps.cancelNotify {
			return false
		}
	case amqp.QueueDeclareOk:
		a := amqp.ReadArgs(f)
		name := string(a.Str())
		u.mu.Lock()
		b.lastQueue = name
		own, transient := b.declareOwn.Pop(), b.transients.Pop()
		b.broker.Declares.Add(-1)
		u.answered.FireLocked()
		u.mu.Unlock()
		if transient {
			u.to.way.transients.settle(permitted, nil, 0)
		}
		if own {
			return false
		}
	case amqp.TxCommitOk:
		u.mu.Lock()
		b.broker.Commits.Add(-1)
		u.answered.FireLocked()
		u.mu.Unlock()
	case amqp.ChannelFlow: // not RabbitMQ's, but the specification's
		b.broker.Flows.Add(1)
	case amqp.ChannelClose:
		u.pass(d, at)
		u.brokerClosed(b, f, d)
		return false
	case amqp.ChannelCloseOk:
		u.pass(d, at)
		u.closeAnswered(b, d)
		return false
	}
	if answers {
		if !b.noLongerFirst() {
			return false // the client hears another one
		}
		b.answered++
	}
	f.SetChannel(ch.id)
	return true
}

// consumerNamed notes the tag that the broker gave a consumer without one.
func (u *upstream) consumerNamed(b *binding, tag string) {
	u.mu.Lock()
	if b.unnamed.Pop() {
		b.addConsumerLocked(tag)
	}
	u.mu.Unlock()
}

func (u *upstream) consumerGone(b *binding, tag string) {
	u.mu.Lock()
	if _, ok := b.consumers[tag]; ok {
		delete(b.consumers, tag)
		b.broker.Consuming.Add(-1)
	}
	u.mu.Unlock()
}

// brokerClosed takes the broker's channel.close: it is answered at once, the id is free,
// and the client hears it unless it has closed the channel itself.
func (u *upstream) brokerClosed(b *binding, f amqp.Frame, d *delivery) {
	said := amqp.ParseClose(f)
	e := u.to.in(u.pool.id.vhost, said)
	ch := b.ch
	ch.c.missed(e)
	u.mu.Lock()
	was := b.state
	b.refusal = e // before the ticket of a channel that moves is through
	act := u.endLocked(b, ledger.ByBroker)
	u.mu.Unlock()
	f = closeFor(f, e, b, e != said)
	switch {
	case act.Has(ledger.Free):
		b.place.leave()
		if ch.c.refused(b, ledger.ByBroker, f) {
			d.touch(ch.c)
		} else if ch.state.Load() == chClosed && ch.cur.Load() == b {
			u.s.lateError(u, ch, e) // its close has been answered and waits to be sent
		}
	case act.Has(ledger.Tell):
		if ch.c.crossed(b, f) {
			d.touch(ch.c)
		}
	case was == bClosing && ch.state.Load() != chOpen: // else it has moved, and hears it
		u.s.lateError(u, ch, e)
	}
}

// closeFor is the broker's channel.close for the client, with the client's number of the channel, in
// the text too: "delivery acknowledgement on channel 7 timed out". reworded: e is not what f says.
func closeFor(f amqp.Frame, e *amqp.Error, b *binding, reworded bool) amqp.Frame {
	if reworded {
		f = amqp.AppendClose(nil, b.ch.id, e)
	}
	f.SetChannel(b.ch.id)
	theirs := fmt.Sprintf("channel %d", b.id)
	i := strings.Index(e.Text, theirs)
	if b.id == b.ch.id || i < 0 {
		return f
	}
	if rest := e.Text[i+len(theirs):]; rest == "" || rest[0] < '0' || rest[0] > '9' {
		mine := *e
		mine.Text = fmt.Sprintf("%schannel %d%s", e.Text[:i], b.ch.id, rest)
		return amqp.AppendClose(nil, b.ch.id, &mine)
	}
	return f
}

// closeAnswered takes the broker's channel.close-ok.
func (u *upstream) closeAnswered(b *binding, d *delivery) {
	u.mu.Lock()
	act := u.endLocked(b, ledger.ByAnswer)
	u.mu.Unlock()
	if !act.Has(ledger.Free) {
		return
	}
	b.place.leave()
	if act.Has(ledger.Tell) && b.ch.c.closeAnswered(b, ledger.ByAnswer) {
		d.touch(b.ch.c)
	}
}

// control takes the methods of channel 0. An error ends the upstream.
func (u *upstream) control(f amqp.Frame) *amqp.Error {
	if f.Type() != amqp.FrameMethod {
		return nil // a heartbeat: its arrival was all it had to say
	}
	switch f.Method() {
	case amqp.ConnectionClose:
		e := u.to.in(u.vhost(), amqp.ParseClose(f))
		_ = u.conn.SetWriteDeadline(time.Now().Add(closeGrace))
		u.mu.Lock()
		u.lastWords = e
		u.out.AppendLocked(amqp.AppendMethod(nil, 0, amqp.ConnectionCloseOk))
		u.mu.Unlock()
		u.out.FlushAll() // the socket is closed next, and a client may be writing
		u.blame(e)
		return e
	case amqp.ConnectionCloseOk:
		u.closeOk = true
		return &amqp.Error{Code: amqp.ConnectionForced, Text: "CONNECTION_FORCED - closed"}
	case amqp.ConnectionBlocked:
		a := amqp.ReadArgs(f)
		u.alarm(string(a.Str()))
	case amqp.ConnectionUnblocked:
		u.alarmOver()
	case amqp.ConnectionUpdateSecretOk:
		if u.stored() != nil {
			u.tokenTaken()
		} else if c := u.owner.Load(); c != nil {
			c.pass0(f)
		}
	}
	return nil
}

// backPressure waits while the sole tenant's queue is too full; TCP then tells the broker.
// A tenant that comes meanwhile ends the wait.
func (u *upstream) backPressure() {
	c := u.owner.Load()
	if c == nil && u.crowded.Load() > 0 {
		c = u.soleTenant()
	}
	if c == nil || !c.crowding.Load() {
		return
	}
	cancel := make(chan struct{})
	u.mu.Lock()
	u.unhalt = cancel
	u.mu.Unlock()
	if u.soleTenant() == c {
		u.halted.Store(true)
		c.waitRoom(cancel)
		u.lastRead.Store(u.env.now())
		u.halted.Store(false)
	}
	u.mu.Lock()
	if u.unhalt == cancel {
		u.unhalt = nil
	}
	u.mu.Unlock()
}

// lateError logs a soft error for a channel whose close was answered before the broker's word.
func (s *Server) lateError(u *upstream, ch *channel, e *amqp.Error) {
	s.n.lateErrors.Add(1)
	c := ch.c
	s.log.Warn("late error for a channel that was closed already", "client", c.n,
		"address", c.address().String(), "name", c.name(), "user", c.user, "vhost", u.vhost(),
		"upstream", u.n, "code", e.Code, "reason", e.Text, "method", e.Method.String())
}

// An upstream: one connection to the broker, shared by bindings. Sending and the states
// of its bindings are guarded by one lock, so that no frame is late by the time it leaves.

package proxy

import (
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
	"github.com/amqproxysvc/amqproxysvc/proxy/ledger"
	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
	"github.com/amqproxysvc/amqproxysvc/proxy/outbox"
	"github.com/amqproxysvc/amqproxysvc/proxy/wait"
)

// upstreamHigh is how many bytes may wait for the broker's socket before the clients
// that feed it are no longer read.
const upstreamHigh = 256 << 10

// lane says what kind of work a shared upstream carries: RabbitMQ in an alarm stops
// reading a connection that publishes, the acks of its consumers included.
type lane uint8

const (
	laneNone lane = iota // nobody yet
	lanePublish
	laneRead
)

// upstream is a connection to the broker.
type upstream struct {
	// Immutable after the handshake.
	s         *Server
	env       *env
	n         uint64 // number, for names and logs
	conn      net.Conn
	account   *account
	pool      *pool        // nil before connection.open
	props     []byte       // client-properties it was opened with
	from      *net.TCPAddr // whose address the broker was told; nil: nobody's
	own       bool         // these are the proxy's own
	session   bool         // opened with a client's own properties
	link      *broker.Link
	to        destination // where it leads; of one that waits for a vhost, its broker
	berth     *berth      // its place at the bounds on connections
	tune      amqp.Tune
	far       bool // no client waits for a seat here, see seatFar
	heartbeat time.Duration
	opened    time.Time
	done      chan struct{} // closed when the reader has ended

	lastRead atomic.Int64           // when bytes last came in, coarse clock
	replied  atomic.Int64           // when an answer last came in, likewise
	suspect  atomic.Bool            // it owes an answer for too long: no new channels
	toEnd    atomic.Bool            // is read on after close-ok until the broker closes the socket
	halted   atomic.Bool            // the reader waits for a client on purpose
	blocked  atomic.Bool            // the broker announced an alarm
	crowded  atomic.Int32           // clients whose queue fills up
	closingN atomic.Int32           // bindings that wait for close-ok
	late     atomic.Int32           // those of them that have waited for lateAfter
	keptN    atomic.Int32           // len(kept)
	keptIDs  atomic.Int32           // ids of kept seats, and of those that are being closed
	keptFree atomic.Int32           // kept seats that any client can have
	provingN atomic.Int32           // seats behind a barrier that any client could have then
	awaits   atomic.Int32           // clients' readers in awaitBroker
	blamed   atomic.Bool            // why it ends is in the log, with its owner's name
	cut      atomic.Bool            // the broker or the network has ended the socket
	precious atomic.Bool            // its owner would miss it, with no channel there: exclusive queues, a renewed secret
	owner    atomic.Pointer[client] // the client whose session this is
	received atomic.Uint64          // bytes, for lists; written by the reader
	cause    atomic.Pointer[error]  // what the network said when the socket died

	mu  lock.Mutex[lock.Upstream] // guards all below, the outbox and the bindings' states
	out outbox.Box
	ids ids
	// table maps ids to bindings; written under mu, read by the reader without.
	table         atomic.Pointer[[]atomic.Pointer[binding]]
	kept          []keptSeat // seats that belong to nobody, the one left last at the end
	keptClosing   int        // seats that were kept and wait for close-ok
	seatLine      wait.Line[*seatWanted]
	blockedReason string
	blockedTold   map[*client]struct{}
	failed        error         // why it ended
	lastWords     *amqp.Error   // the broker's connection.close
	closing       bool          // connection.close was sent
	ownerTold     bool          // of its end
	sentLast      *client       // whose bytes left last
	answered      wait.Signal   // the broker answers what a client waits for, see awaitBroker, or closes a channel
	token         broker.Secret // that the broker was told last, where one of the proxy's own ends
	tokenSent     int64         // when that was, and is not answered; coarse clock, 0: nothing is due
	unhalt        chan struct{} // ends the reader's wait for its sole tenant

	// Guarded by pool.mu.
	lane     lane
	load     int   // ids in use or promised
	given    int64 // channels that it was given, where spread counts them
	lost     int   // ids that are neither in use nor can be used again
	retired  bool  // takes no new channels, ends with its last
	idleFrom time.Time

	// senders are the clients that last sent each method, by Method.Index.
	senders [amqp.NumMethods]atomic.Pointer[client]

	alive alive // the janitor's

	// The reader's.
	rd      *amqp.Reader
	replies bool // the chunk holds an answer
	closeOk bool // connection.close-ok has come
}

var errUpstreamGone = errors.New("the connection to the broker has ended")

// errNoID is returned when every channel id of an upstream is in use.
var errNoID = errors.New("no free channel id on the upstream")

// lookup is the binding of an id, or nil.
func (u *upstream) lookup(id uint16) *binding {
	if t := u.table.Load(); t != nil && int(id) < len(*t) {
		return (*t)[id].Load()
	}
	return nil
}

// setLocked puts a binding into the table, or nil to take it out.
func (u *upstream) setLocked(id uint16, b *binding) {
	t := u.table.Load()
	if t == nil || int(id) >= len(*t) {
		size := 16
		for size <= int(id) {
			size *= 2
		}
		next := make([]atomic.Pointer[binding], size)
		if t != nil {
			for i := range *t {
				next[i].Store((*t)[i].Load())
			}
		}
		u.table.Store(&next)
		t = &next
	}
	(*t)[id].Store(b)
}

// bind gives a channel an id here, at its place: that of the seat it is promised, if it is. The prelude that opens
// the channel is appended to prefix.
func (u *upstream) bind(ch *channel, at place, promised uint16, prefix []byte) (*binding, []byte, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.failed != nil || u.closing {
		return nil, prefix, errUpstreamGone
	}
	k, reused := u.takeKeptLocked(ch, promised)
	if !reused {
		id, ok := u.ids.take()
		if !ok {
			one := true // kept seats that do not fit give way
			u.dropKeptLocked(func(*keptSeat) bool { drop := one; one = false; return drop })
			return nil, prefix, errNoID
		}
		k = keptSeat{seat: seat{since: u.env.now()}, id: id}
	}
	b := &binding{u: u, ch: ch, id: k.id, seat: k.seat, place: at}
	u.setLocked(k.id, b)
	if u.unhalt != nil {
		close(u.unhalt) // whoever comes now must not wait behind the sole tenant
		u.unhalt = nil
	}
	if reused {
		b.opened.Store(true)
		u.env.n.channelsReused.Add(1)
		return b, b.keptPrelude(prefix), nil
	}
	u.env.n.channelsOpened.Add(1)
	u.env.n.bindings.Add(1)
	return b, b.prelude(prefix), nil
}

// send passes a run to the broker, less the frames of channels that are no longer open.
// When too much waits already it waits its turn; then it writes at once when nobody else
// does, and appends otherwise.
// The error is that of a dead upstream, whose clients are being told, or of a wait that the
// client's end (gone) cut short.
func (u *upstream) send(r *run, gone <-chan struct{}) error {
	u.mu.Lock()
	if u.failed == nil {
		for _, x := range r.closes {
			if x.by != ledger.ByClient && x.b.state == bOpen {
				u.ticketLocked(x.b) // the client may have its answer before the wait is over
			}
		}
	}
	// A client that is gone waits no longer, but its run leaves all the same: it opens channels that
	// are about to be closed, and closes others that nobody else will close.
	if err := u.out.AwaitRoomLocked(upstreamHigh, gone); err != nil && !errors.Is(err, outbox.ErrCanceled) {
		u.mu.Unlock()
		return err
	}
	prefix, body := r.prefix, r.body
	if len(r.bs) > 0 {
		u.sentLast = r.bs[0].ch.c
	}
	for _, b := range r.bs {
		b.sending()
		if b.state != bOpen {
			prefix, body = u.filterLocked(prefix, r.bs), u.filterLocked(body, r.bs)
			break
		}
	}
	keeps := 0
	for _, x := range r.closes {
		if x.by == ledger.ByKeep {
			keeps++
		} else {
			u.endLocked(x.b, x.by)
		}
	}
	if keeps == 0 && len(prefix) == 0 && u.out.StartLocked() { // from the read buffer, uncopied
		u.mu.Unlock()
		return u.out.Through(outbox.Taken{}, body)
	}
	u.out.AppendLocked(prefix)
	u.out.AppendLocked(body)
	kept := r.closes[:0]
	for i := 0; keeps > 0 && i < len(r.closes); i++ { // behind the body, which holds no close for these
		if x := r.closes[i]; x.by == ledger.ByKeep && u.leaveSeatLocked(x.b) {
			kept = append(kept, x)
		}
	}
	u.out.PassRoomLocked(upstreamHigh)
	u.out.FlushLocked() // unlocks
	for _, x := range kept {
		x.b.place.leave()
	}
	return nil
}

// sendBig passes one large publish without copying it into the queue.
func (u *upstream) sendBig(b *binding, body []byte) error {
	if err := u.out.WaitTurn(b.ch.c.gone); err != nil {
		return err
	}
	b.sending()
	u.mu.Lock()
	if b.state != bOpen {
		body = nil
	}
	u.sentLast = b.ch.c
	first := u.out.TakeLocked()
	u.mu.Unlock()
	return u.out.Through(first, body)
}

// filterLocked drops the frames of those of the bindings that are not open, in place.
// The table is not asked: an id may be somebody else's by now.
func (u *upstream) filterLocked(body []byte, bs []*binding) []byte {
	kept := body[:0]
	for len(body) > 0 {
		n, _, err := amqp.Split(body, 0)
		if err != nil || n == 0 {
			break // cannot be: a run holds whole frames
		}
		id := amqp.Frame(body).Channel()
		if slices.ContainsFunc(bs, func(b *binding) bool { return b.id == id && b.state == bOpen }) {
			kept = append(kept, body[:n]...)
		}
		body = body[n:]
	}
	return kept
}

// closeBinding ends a binding that is still open: channel.close or a barrier is queued, which
// the caller flushes, or it is kept at once. Nil: nothing was queued.
func (u *upstream) closeBinding(b *binding, by ledger.Cause) *upstream {
	u.mu.Lock()
	was, kept := b.state, false
	if by == ledger.ByKeep {
		kept = u.leaveSeatLocked(b)
	} else {
		u.closeLocked(b, by)
	}
	queued := was == bOpen && b.state != bOpen && !kept
	u.mu.Unlock()
	if kept {
		b.place.leave()
	}
	if !queued {
		return nil
	}
	return u
}

// upstreams are those for which something was queued: a client with thousands of channels
// leaves with one write to each.
type upstreams struct {
	few [3]*upstream
	all []*upstream
}

func (s *upstreams) add(u *upstream) {
	if s.all == nil {
		s.all = s.few[:0]
	}
	if u != nil && !slices.Contains(s.all, u) {
		s.all = append(s.all, u)
	}
}

func (s *upstreams) flush() {
	for _, u := range s.all {
		u.out.Flush()
	}
}

// closeLocked ends a binding from this side, with channel.close. False: it has ended already.
func (u *upstream) closeLocked(b *binding, by ledger.Cause) bool {
	if !u.endLocked(b, by).Has(ledger.SayClose) {
		return false
	}
	buf := u.out.BufferLocked(64)
	u.out.SetBufferLocked(amqp.AppendClose(buf, b.id, &amqp.Error{Code: amqp.ReplySuccess, Text: "Goodbye"}))
	return true
}

// endLocked is the broker's side of every end of a channel: the binding's next state, and in
// the same step what follows from it. Saying channel.close is the caller's, whose run may
// hold it; so is giving the place back to the pool, without the lock (Free: release, Lose: lose).
func (u *upstream) endLocked(b *binding, by ledger.Cause) ledger.Act {
	was := b.state
	next, act := was.End(by, b.silent)
	b.state = next
	if act&(ledger.SayClose|ledger.SayBarrier) != 0 {
		b.closedAt = u.env.now()
	}
	if waits := next.Waits(); waits != was.Waits() {
		if waits {
			u.closingN.Add(1)
		} else {
			u.closingN.Add(-1)
		}
	}
	if (was == ledger.SeatProving) != (next == ledger.SeatProving) {
		u.countProvingLocked(b, next)
	}
	if act.Has(ledger.Silent) {
		b.silent = true
	}
	if act.Has(ledger.Ticket) {
		u.ticketLocked(b)
	}
	if act.Has(ledger.SayCloseOk) {
		u.out.SetBufferLocked(amqp.AppendMethod(u.out.BufferLocked(16), b.id, amqp.ChannelCloseOk))
		u.out.KickLocked()
	}
	if act.Has(ledger.Keep) {
		u.setLocked(b.id, nil)
	}
	if next == bFree && was != bFree {
		u.setLocked(b.id, nil)
		if b.kept {
			u.keptClosing--
			u.countKeptLocked()
		}
		if act.Has(ledger.Free) {
			u.ids.free(b.id)
		}
		u.env.n.bindings.Add(-1)
		u.answered.FireLocked()
	}
	if act.Has(ledger.Through) && b.ticket != nil {
		u.pool.closes.finish(b.ticket)
	}
	return act
}

// ticketLocked has later readers wait for the binding's close.
func (u *upstream) ticketLocked(b *binding) {
	if b.ticket == nil {
		b.ticket = u.pool.closes.add(b)
	}
}

// wakeAwaiting wakes those who wait for an answer of the broker, if there are any.
func (u *upstream) wakeAwaiting() {
	if u.awaits.Load() == 0 {
		return
	}
	u.mu.Lock()
	u.answered.FireLocked()
	u.mu.Unlock()
}

// fail ends the upstream: the socket is closed and every client bound here is told e.
// Only the first call counts.
func (u *upstream) fail(e *amqp.Error, lost bool) {
	u.mu.Lock()
	if u.failed != nil {
		u.mu.Unlock()
		return
	}
	if u.lastWords != nil {
		e = u.lastWords // the broker's own say more than what befell the socket then
	}
	u.failed = e
	lost = lost && !u.closing
	words := u.lastWords
	u.out.FailLocked(e)
	mayRepeat := lost && (words == nil && u.cut.Load() || words != nil && broker.GoesAway(words.Text)) // and not for what a client has sent
	var told, again []*client
	seen := make(map[*client]struct{})
	if t := u.table.Load(); t != nil {
		for i := range *t {
			b := (*t)[i].Load()
			if b == nil {
				continue
			}
			// A client that has its answer, or is gone, has no part in this.
			// When the proxy itself said connection.close, nobody is affected either.
			tell := u.endLocked(b, ledger.ByUpstream).Has(ledger.Tell) && !u.closing
			if tell && mayRepeat && b.losesFirst() {
				again = append(again, b.ch.c)
				continue
			}
			if _, ok := seen[b.ch.c]; !ok && tell {
				seen[b.ch.c] = struct{}{}
				told = append(told, b.ch.c)
			}
		}
	}
	if c := u.owner.Load(); c != nil && !u.closing {
		_, u.ownerTold = seen[c]
		meant := words != nil && !broker.GoesAway(words.Text) // it alone, by an operator say
		if !u.ownerTold && (u.precious.Load() || meant) {
			seen[c] = struct{}{}
			told = append(told, c)
			u.ownerTold = true
		} // else it gets another one when it needs it, see renewSession
	}
	for u.seatLine.ServeFirstLocked() {
	}
	waiting := u.blockedTold
	u.blockedTold = nil
	u.env.n.bindings.Add(-int64(len(u.kept)))
	u.setKeptLocked(nil)
	u.mu.Unlock()

	if u.pool != nil {
		u.pool.remove(u)
	}
	u.s.upstreamGone(u, lost && !u.blamed.Load())
	if lost && words != nil {
		u.link.Leaving(words)
	}
	u.link.End(lost)
	go func() { // with TLS it says goodbye first, and the caller may be the janitor
		_ = u.conn.Close()
		u.berth.leave()
	}()
	if lost {
		if e.Code == amqp.ConnectionForced {
			u.to.way.transients.forget() // perhaps it is started anew
		}
		u.env.n.upstreamsLost.Add(1)
		level := slog.LevelWarn
		if u.blamed.Load() {
			level = slog.LevelDebug
		}
		why := []any{"upstream", u.n, "user", u.account.login.user, "vhost", u.vhost(), "code", e.Code, "reason", e.Text,
			"clients", len(told), "broker", u.conn.RemoteAddr().String()}
		if err := u.cause.Load(); err != nil {
			why = append(why, "error", *err)
		}
		u.env.log.Log(bg, level, "upstream lost", why...)
	}
	for _, c := range told {
		c.shut(e, false)
	}
	for _, c := range again {
		c.wakeToSendAgain()
	}
	for c := range waiting {
		if _, ok := seen[c]; !ok {
			c.tellUnblocked(u)
		}
	}
}

func (u *upstream) vhost() string {
	if u.pool == nil {
		return ""
	}
	return u.pool.id.vhost
}

// close ends the upstream politely: connection.close, and the socket when the broker
// answered or after a while.
func (u *upstream) close(reason string) {
	u.retire()
	u.sayClose(reason, false)
}

// closeUnused is close for an upstream that is retired and that nobody would miss, unless its owner has come back.
func (u *upstream) closeUnused(reason string) { u.sayClose(reason, true) }

func (u *upstream) sayClose(reason string, unused bool) {
	u.mu.Lock()
	if u.failed != nil || u.closing || unused && u.owner.Load() != nil && (u.precious.Load() || u.boundLocked()) {
		u.mu.Unlock()
		return
	}
	u.closing = true
	buf := u.out.BufferLocked(64)
	u.out.SetBufferLocked(amqp.AppendClose(buf, 0, &amqp.Error{Code: amqp.ReplySuccess, Text: "Goodbye"}))
	u.out.KickLocked()
	u.mu.Unlock()
	u.env.log.Debug("upstream closing", "upstream", u.n, "reason", reason)
	time.AfterFunc(u.env.cfg().CloseTimeout, func() {
		u.fail(&amqp.Error{Code: amqp.ConnectionForced, Text: "CONNECTION_FORCED - closed"}, false)
	})
}

// boundLocked reports whether a channel is there.
func (u *upstream) boundLocked() bool {
	if t := u.table.Load(); t != nil {
		for i := range *t {
			if (*t)[i].Load() != nil {
				return true
			}
		}
	}
	return false
}

// why is the error of an upstream that has ended or is about to.
func (u *upstream) why() *amqp.Error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if e, ok := u.failed.(*amqp.Error); ok {
		return e
	}
	return amqp.Errorf(amqp.ConnectionForced, 0, "%v", errUpstreamGone)
}

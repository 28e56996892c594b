// Channels that are not closed at the broker when their client closes them, but kept for the
// next client of the identity: nothing is opened, nothing is closed, and the broker is spared
// the processes of a channel for each message.
//
// A channel is kept only when it has published and declared at most, and only once that is
// proven to have gone well: by the confirms of all it published, by the answer to its last
// method, or by a barrier behind its publishes. The barrier is a basic.qos with the prefetch
// that is set already, whose ok the broker sends when it has taken what came before. An
// error that comes instead is the late error of a channel that was closed quietly.

package proxy

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/ledger"
	"github.com/amqproxysvc/amqproxysvc/proxy/wait"
)

// keptSeat is a channel that is open at the broker and belongs to nobody.
type keptSeat struct {
	seat
	id       uint16
	promised bool // to one that waited for it, and has not bound its channel yet
}

// seat is what is known of an upstream's channel beyond one client's use of it, guarded by upstream.mu.
type seat struct {
	since    int64  // when it was opened, coarse clock
	prefetch uint16 // the last basic.qos sent
	confirms bool   // confirm.select was sent
	base     uint64 // with confirms: publishes of those who had it before
}

// quietEnd is how the seat of a channel ends that its client has closed, or left, with nothing
// under way: it is kept for the next one, or as by says.
func (b *binding) quietEnd(by ledger.Cause) ledger.Cause {
	u, ch := b.u, b.ch
	cfg := u.env.cfg()
	if !cfg.ReuseChannels || !cfg.FastClose || cfg.IdleChannels == 0 || u.session || u.owner.Load() != nil || ch.content != noContent {
		return by
	}
	use := ch.ledger.Use(&b.broker)
	if use == ledger.UsePublished && ch.globalQos {
		use = ledger.UseConsumed
	}
	if use != ledger.UsePublished {
		u.env.n.notReused[use].Add(1)
		return by
	}
	return ledger.ByKeep
}

// provenLocked reports whether nothing of what the client did on the seat can still fail.
func (b *binding) provenLocked() bool {
	return b.qosOwn.Empty() && b.selectOwn.Empty() && b.declareOwn.Empty() && b.ch.ledger.Proven(&b.broker)
}

// mostKept is how many seats the upstream keeps: a part of a small channel_max is left for clients.
func (u *upstream) mostKept() int {
	cfg := u.env.cfg()
	if !cfg.ReuseChannels || u.session {
		return 0
	}
	return min(cfg.IdleChannels, int(u.ids.limit)/4)
}

// keepsLocked reports whether one more seat can be kept, and this one is young enough: what
// the broker remembers of a channel, its user's permissions say, is no older than a login may be.
func (u *upstream) keepsLocked(s *seat) bool {
	switch {
	case u.failed != nil || u.closing || u.owner.Load() != nil || u.s.limited.Load():
	case len(u.kept)+u.keptClosing >= u.mostKept():
		u.env.n.notReused[ledger.UseFull].Add(1)
		return false
	case u.env.now()-s.since < int64(u.env.cfg().AuthTTL):
		return true
	}
	u.env.n.notReused[ledger.UseOld].Add(1)
	return false
}

// keepLocked puts a proven seat aside. The caller then leaves its place.
func (u *upstream) keepLocked(b *binding) {
	s := b.seat
	if l := &b.ch.ledger; l.Confirms {
		s.confirms = true
		s.base += l.Publish
	}
	u.endLocked(b, ledger.ByProven)
	k := keptSeat{seat: s, id: b.id}
	k.promised = u.promiseLocked(&k)
	u.setKeptLocked(append(u.kept, k))
}

// countProvingLocked counts a seat that is behind a barrier from now on, or no longer: next is what it is now. For one
// that is not kept after it the first that waits opens another.
func (u *upstream) countProvingLocked(b *binding, next ledger.Seat) {
	if b.ch.ledger.Confirms {
		return
	}
	switch next {
	case ledger.SeatProving:
		u.provingN.Add(1)
		return
	case ledger.SeatKept:
	default:
		u.seatLine.ServeFirstLocked()
	}
	u.provingN.Add(-1)
}

// seatWanted is what a channel waits for in the seatLine.
type seatWanted struct {
	confirms bool
	id       uint16 // of the seat that it is promised; 0: it has none, and opens its own
}

// seatWait bounds the wait for a seat: a broker that takes longer does not keep up, or is blocked.
const seatWait = lateAfter

// seatFar is how long the quickest answer of a broker takes that is too far away to wait for a seat: who comes would wait for
// a good part of the way there and back, where who opens a channel waits for nothing.
const seatFar = 10 * time.Millisecond

// promiseLocked promises a seat to the first that waits for one. False: nobody who can use it does.
func (u *upstream) promiseLocked(k *keptSeat) (promised bool) {
	u.seatLine.ServeLocked(func(w *wait.Place[*seatWanted]) wait.Verdict {
		switch {
		case promised:
			return wait.Stop
		case k.confirms && !w.Want.confirms:
			return wait.Skip
		}
		w.Want.id, promised = k.id, true
		return wait.Serve
	})
	return promised
}

// seatDueLocked reports whether a seat will come free that is to be waited for: as many are behind barriers as are
// kept, and not all of them are waited for. Clients that come and go faster than the broker takes what they leave would
// open a channel each otherwise, and as many would be closed, at ten times the broker's work, from which it falls back further.
func (u *upstream) seatDueLocked() bool {
	most, proving := u.mostKept(), int(u.provingN.Load())
	return !u.far && most > 0 && proving >= most && proving > u.seatLine.LenLocked() &&
		u.failed == nil && !u.closing && !u.s.limited.Load() && u.owner.Load() == nil
}

// awaitSeat waits for a seat that comes free in a moment, behind those who came before, and gives its id; the caller then
// binds the channel, to which it is promised until then. 0: there is one for anybody, or one is to be opened.
func (c *client) awaitSeat(ch *channel, u *upstream) uint16 {
	if u.keptFree.Load() > 0 || u.provingN.Load() == 0 { // the usual ways, without the lock
		return 0
	}
	w := &seatWanted{confirms: ch.ledger.Confirms}
	due := func() bool { return u.keptForLocked(w.confirms) < 0 && u.seatDueLocked() }
	u.mu.Lock()
	waits := due()
	u.mu.Unlock()
	if !waits {
		return 0
	}
	c.settle() // what others wait for may be in the run
	u.mu.Lock()
	if !due() {
		u.mu.Unlock()
		return 0
	}
	in := u.seatLine.JoinLocked(w)
	u.mu.Unlock()
	timer := time.NewTimer(seatWait)
	defer timer.Stop()
	select {
	case <-in.Served():
	case <-timer.C:
	case <-c.gone:
	}
	u.mu.Lock()
	u.seatLine.LeaveLocked(in)
	u.mu.Unlock()
	c.env.n.heldBehindCloses.Add(1)
	c.env.n.heldTime.Add(int64(time.Since(in.Since)))
	return w.id
}

func (u *upstream) setKeptLocked(kept []keptSeat) {
	u.kept = kept
	u.countKeptLocked()
}

func (u *upstream) countKeptLocked() {
	anybody := 0
	for i := range u.kept {
		if !u.kept[i].confirms && !u.kept[i].promised {
			anybody++
		}
	}
	u.keptN.Store(int32(len(u.kept)))
	u.keptFree.Store(int32(anybody))
	u.keptIDs.Store(int32(len(u.kept) + u.keptClosing))
}

// seatFor reports whether one more channel finds an id beside so many, or a seat that is kept.
func (u *upstream) seatFor(used int) bool {
	return used+int(u.keptIDs.Load()) < int(u.ids.limit) || u.keptFree.Load() > 0
}

// leaveSeatLocked ends a client's use of a seat that may serve another: it is kept when all is
// proven, else a barrier goes out, and where there is no room it is closed. True: it is kept, and the
// caller leaves its place.
func (u *upstream) leaveSeatLocked(b *binding) bool {
	switch {
	case b.state != bOpen:
	case !u.keepsLocked(&b.seat):
		u.closeLocked(b, ledger.ByClientQuiet)
	case b.provenLocked():
		u.keepLocked(b)
		return true
	default:
		u.endLocked(b, ledger.ByKeep)
		u.barrierLocked(b)
		u.env.n.barriers.Add(1)
	}
	return false
}

// barrierLocked appends the method whose answer proves that all before it went well.
func (u *upstream) barrierLocked(b *binding) {
	b.qosOwn.Push(true)
	u.out.SetBufferLocked(amqp.AppendQos(u.out.BufferLocked(32), b.id, b.prefetch, false))
}

// proven takes basic.qos-ok on a seat behind a barrier: when it is the last that was due, the
// seat is kept, or closed where there is no room for it.
func (u *upstream) proven(b *binding) {
	u.mu.Lock()
	if b.state != ledger.SeatProving || !b.qosOwn.Empty() {
		u.mu.Unlock()
		return
	}
	keep := u.keepsLocked(&b.seat)
	if keep {
		u.keepLocked(b)
	} else {
		u.closeLocked(b, ledger.ByProxy)
		u.out.KickLocked()
	}
	u.mu.Unlock()
	if keep {
		b.place.leave()
	}
}

// takeKeptLocked is a kept seat for the channel, the one left last: where it is the same again,
// messages keep their order across connections. A seat in confirm mode serves none that is not.
func (u *upstream) takeKeptLocked(ch *channel, promised uint16) (k keptSeat, ok bool) {
	i := -1
	if promised != 0 { // the broker, or the proxy, may have closed it since
		i = slices.IndexFunc(u.kept, func(k keptSeat) bool { return k.id == promised && k.promised })
	}
	if i < 0 {
		i = u.keptForLocked(ch.ledger.Confirms)
	}
	if i < 0 {
		return k, false
	}
	return u.popKeptLocked(i), true
}

// keptForLocked is where the kept seat for a channel is that selects confirms, or does not; -1: there is none.
func (u *upstream) keptForLocked(confirms bool) int {
	plain := -1
	for i := len(u.kept) - 1; i >= 0; i-- {
		switch k := &u.kept[i]; {
		case k.promised:
		case k.confirms == confirms:
			return i
		case !k.confirms && plain < 0:
			plain = i
		}
	}
	return plain
}

func (u *upstream) popKeptLocked(i int) keptSeat {
	k := u.kept[i]
	u.setKeptLocked(slices.Delete(u.kept, i, i+1))
	return k
}

// keptPrelude appends what makes a kept seat equal to the client's channel: its prefetch, its confirm mode.
func (b *binding) keptPrelude(dst []byte) []byte {
	l := &b.ch.ledger
	prefetch := uint16(0)
	if b.ch.qosSet {
		prefetch = b.ch.prefetch
	}
	if prefetch != b.prefetch {
		dst = amqp.AppendQos(dst, b.id, prefetch, false)
		b.qosOwn.Push(true)
		b.prefetch = prefetch
	}
	if l.Confirms && !b.confirms {
		dst = amqp.AppendMethod(dst, b.id, amqp.ConfirmSelect, 0)
		b.selectOwn.Push(true)
		b.confirms = true
	}
	return dst
}

// dropKept closes the kept seats that have become too old, or all.
func (u *upstream) dropKept(all bool) {
	if u.keptN.Load() == 0 {
		return
	}
	u.mu.Lock()
	now, ttl := u.env.now(), int64(u.env.cfg().AuthTTL)
	all = all || u.s.limited.Load() || u.mostKept() == 0
	u.dropKeptLocked(func(k *keptSeat) bool { return all || now-k.since >= ttl })
	u.mu.Unlock()
}

func (u *upstream) dropKeptLocked(old func(*keptSeat) bool) {
	if len(u.kept) == 0 || u.failed != nil || u.closing {
		return
	}
	closed := false
	u.setKeptLocked(slices.DeleteFunc(u.kept, func(k keptSeat) bool {
		if !old(&k) {
			return false
		}
		b := &binding{u: u, ch: nobody, id: k.id, state: ledger.SeatKept, silent: true, kept: true}
		u.keptClosing++
		u.setLocked(k.id, b)
		u.closeLocked(b, ledger.ByProxy)
		closed = true
		return true
	}))
	if closed {
		u.out.KickLocked()
	}
}

// keptClosed takes the broker's channel.close for a seat that is kept: its id is free.
func (u *upstream) keptClosed(f amqp.Frame) {
	u.mu.Lock()
	defer u.mu.Unlock()
	i := slices.IndexFunc(u.kept, func(k keptSeat) bool { return k.id == f.Channel() })
	if i < 0 {
		return
	}
	u.popKeptLocked(i)
	u.endLocked(&binding{u: u, ch: nobody, id: f.Channel(), state: ledger.SeatKept, silent: true}, ledger.ByBroker)
}

// ownTag makes a confirm's tag, at the start of p, the client's own and gives it: the broker
// counts from the seat's first publish on.
func (b *binding) ownTag(p []byte) uint64 {
	tag := binary.BigEndian.Uint64(p)
	if b.base != 0 && tag > b.base {
		tag -= b.base
		binary.BigEndian.PutUint64(p, tag)
	}
	return tag
}

// Package ledger knows what a channel has under way: events go in, and three questions can
// be asked. Is it quiet (its close needs not be waited for)? Can it move to another
// connection? May the proxy answer in the broker's stead? It has no lock, socket or clock.
package ledger

import "sync/atomic"

// Broker is the broker's side of a channel on one upstream: what it owes and what it has
// said. The atomic fields are read by the other side.
type Broker struct {
	Calls     atomic.Int32  // synchronous methods sent and not answered
	Commits   atomic.Int32  // of these, tx.commit
	Declares  atomic.Int32  // queue.declare whose declare-ok, and so the queue's name, is due
	Flows     atomic.Int32  // the broker's channel.flow that the client has not answered
	Consuming atomic.Int32  // consumers, asked for ones included
	LastTag   atomic.Uint64 // the last delivery tag the broker used
	Confirmed atomic.Uint64 // all publishes up to this tag are confirmed

	confirms Tags // the upstream's reader alone
}

// Confirm notes basic.ack or basic.nack from the broker. For the upstream's reader.
func (b *Broker) Confirm(tag uint64, multiple bool) {
	b.Confirming(tag, multiple)
	b.TellConfirms()
}

// Confirming is Confirm for one of several; TellConfirms then shows them to the other side.
func (b *Broker) Confirming(tag uint64, multiple bool) { b.confirms.Add(tag, multiple) }

// TellConfirms belongs behind calls of Confirming, before the client can hear of them.
func (b *Broker) TellConfirms() { b.Confirmed.Store(b.confirms.Low) }

// maxAbove bounds the deliveries that are settled out of order and remembered.
const maxAbove = 1 << 16

// Ledger is the client's side: what its application has done on a channel. It belongs to
// the client's reader. A channel that moves keeps it and gets a new Broker.
type Ledger struct {
	Confirms bool   // confirm.select
	Tx       bool   // tx.select
	txDirty  bool   // published or settled since tx.select, commit or rollback
	Publish  uint64 // with Confirms: the tag of the last publish

	// untold is set by what cannot be followed: a mandatory publish without confirms (a
	// return may come at any time), a rollback of acks.
	untold    bool
	hears     bool // got, consumed or published mandatorily: content may come for it
	stays     bool // got, consumed, acked or published with an answer due
	sent      bool // published
	took      bool // got, consumed or settled
	said      bool // a declaration without an answer went since the last answer
	unheard   bool // what has no answer, a publish or a declaration, went last to the broker
	settled   Tags // delivery tags that the client has settled
	wantsAcks bool // some delivery must be acked
	noAcks    bool // some delivery needs no ack
}

// Begin notes basic.publish, whose content follows.
func (l *Ledger) Begin() {
	if l.Confirms {
		l.stays = true
	}
	l.sent, l.unheard = true, true
}

// Mandatory notes that the publish may be returned.
func (l *Ledger) Mandatory() { l.stays, l.hears = true, true }

// Published notes n publishes that are whole now.
func (l *Ledger) Published(n uint64, mandatory bool) {
	switch {
	case l.Confirms:
		l.Publish += n
	case mandatory:
		l.untold = true
	}
	if l.Tx {
		l.txDirty = true
	}
}

// Hears notes a get or a consumer: deliveries may come, which need acks or do not. Where
// both do, which of them are settled cannot be told.
func (l *Ledger) Hears(noAck bool) {
	l.stays, l.hears, l.took = true, true, true
	if noAck {
		l.noAcks = true
	} else {
		l.wantsAcks = true
	}
	if l.noAcks && l.wantsAcks {
		l.untracked()
	}
}

// Settle notes basic.ack, nack or reject; tag 0 with multiple settles all. Where there is
// nothing to settle the broker closes the channel, which is to be heard.
func (l *Ledger) Settle(tag uint64, multiple bool, b *Broker) {
	l.stays, l.took = true, true
	if multiple && tag == 0 && b != nil {
		tag = b.LastTag.Load()
	}
	if !l.untold {
		l.settled.Add(tag, multiple)
		if len(l.settled.above) > maxAbove {
			l.untracked()
		}
	}
	if l.Tx {
		l.txDirty = true
	}
}

// Recover notes basic.recover: what was unsettled comes anew.
func (l *Ledger) Recover(b *Broker) {
	l.took = true
	if b != nil {
		l.settled.Add(b.LastTag.Load(), true)
	}
}

// Commit and Rollback note the end of a transaction. The acks that a rollback undoes are not known.
func (l *Ledger) Commit() { l.txDirty = false }

// Rollback is noted like Commit.
func (l *Ledger) Rollback() {
	l.txDirty = false
	if l.wantsAcks {
		l.untold = true
	}
}

// Called notes a method whose answer is awaited, and which speaks for those before it.
func (l *Ledger) Called() { l.unheard, l.said = false, false }

// Said notes a declaration without an answer: what the broker says to it is not heard yet.
func (l *Ledger) Said() { l.unheard, l.said = true, true }

// Heard notes that nothing unheard is left behind.
func (l *Ledger) Heard() { l.unheard, l.said = false, false }

// Stay notes that the channel holds something where it is.
func (l *Ledger) Stay() { l.stays = true }

// Once notes something at the broker that must not be left to another client.
func (l *Ledger) Once() { l.took = true }

// Untold notes that the channel may do what cannot be followed: it is never quiet again.
func (l *Ledger) Untold() { l.untold = true }

func (l *Ledger) untracked() { l.untold, l.settled = true, Tags{} }

// Unheard reports whether what has no answer went last to the broker.
func (l *Ledger) Unheard() bool { return l.unheard }

// Sent reports whether the channel has published.
func (l *Ledger) Sent() bool { return l.sent }

// Quiet reports whether nothing of the channel is under way, so that its close needs not be
// waited for: no consumer, no delivery to settle, no open transaction, no publish to confirm
// or to be returned, no call unanswered.
func (l *Ledger) Quiet(b *Broker) bool {
	switch {
	case b.Calls.Load() > 0, b.Consuming.Load() > 0, l.untold:
		return false
	case l.Confirms && b.Confirmed.Load() < l.Publish:
		return false
	case l.Tx && l.txDirty:
		return false
	case l.wantsAcks && l.settled.Low < b.LastTag.Load():
		return false
	}
	return true
}

// Unsettled reports whether there may be deliveries to settle.
func (l *Ledger) Unsettled(b *Broker) bool {
	return b != nil && b.LastTag.Load() != 0 && (l.untold || l.settled.Low < b.LastTag.Load())
}

// Movable reports whether the channel holds nothing at the broker that would be lost with
// its place there. Content that is half way holds it too: the caller knows of that.
func (l *Ledger) Movable(b *Broker) bool {
	return !l.stays && !l.Tx && b.Calls.Load() == 0 && b.Declares.Load() == 0
}

// MayAnswer reports whether an answer of the proxy's own may go out on the channel now: no
// earlier call waits for the broker's, and no content can be half way to the client. b is
// nil where the channel has no place at the broker.
func (l *Ledger) MayAnswer(b *Broker) bool { return b == nil || (!l.hears && b.Calls.Load() == 0) }

// Use is what a channel was used for, where that decides whether another client may have it.
type Use uint8

const (
	UsePublished Use = iota // published and declared at most, all of it through: it may
	UseBusy                 // something is under way
	UseConsumed             // got, consumed or settled, or a prefetch for the whole channel
	UseTx                   // a transaction was begun on it
	UseReturns              // a message may yet be returned
	UseFull                 // enough are kept
	UseOld                  // it is too old, or its upstream takes nobody
	NumUses
)

// Use is what the channel was used for.
func (l *Ledger) Use(b *Broker) Use {
	switch {
	case l.Tx:
		return UseTx
	case l.took || b.Consuming.Load() > 0:
		return UseConsumed
	case l.untold || l.hears && !l.Confirms:
		return UseReturns
	case !l.Quiet(b) || b.Flows.Load() > 0:
		return UseBusy
	}
	return UsePublished
}

// Proven reports whether the broker has said of all that the channel did that it went well: a
// publish that it has confirmed, a method that it has answered behind the rest.
func (l *Ledger) Proven(b *Broker) bool {
	return b.Calls.Load() == 0 && b.Declares.Load() == 0 &&
		(!l.unheard || l.Confirms && !l.said && b.Confirmed.Load() >= l.Publish)
}

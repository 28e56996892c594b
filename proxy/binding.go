// A binding ties a client's channel to an upstream's channel: its states, what both
// sides know of it, and the allocator of the upstream's channel ids.

package proxy

import (
	"sync/atomic"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/ledger"
)

// bindingState is an upstream's channel as the broker sees it. It changes only under
// upstream.mu, in endLocked.
type bindingState = ledger.Seat

const (
	bOpen    = ledger.SeatOpen
	bClosing = ledger.SeatClosing
	bCrossed = ledger.SeatCrossed
	bFree    = ledger.SeatFree
)

// binding is one use of an upstream's channel id.
type binding struct {
	u  *upstream
	ch *channel
	id uint16 // on the upstream

	// Guarded by upstream.mu.
	state      bindingState
	silent     bool                // the client has its answer already, or wants none
	kept       bool                // it was kept, and is being closed
	ticket     *ticket             // a quiet close that later readers wait for
	closedAt   int64               // when close was sent
	refusal    *amqp.Error         // the broker's channel.close
	qosOwn     ledger.Bits         // which of the awaited qos-ok are the proxy's to swallow
	selectOwn  ledger.Bits         // likewise for confirm.select-ok
	consumers  map[string]struct{} // tags in use
	unnamed    ledger.Bits         // which of the awaited consume-ok tell of a tag
	declareOwn ledger.Bits         // which of the awaited declare-ok are the proxy's to swallow
	transients ledger.Bits         // which of them are of transient queues
	lastQueue  string              // name of the queue last declared here

	seat        // beyond this client's use
	place place // in the pool; a kept one has none

	broker ledger.Broker             // what the broker has said and owes here
	first  atomic.Pointer[firstCall] // see client_again.go
	opened atomic.Bool               // open-ok has come; written by the upstream's reader
	// published is up to which tag publishes have been sent, in confirm mode; written by the client's reader.
	published atomic.Uint64

	// The upstream's reader only.
	answered int32 // calls answered by what is gathered and not delivered yet

	runSeq uint64 // the client's reader: the run it is part of
}

// quiet reports whether nothing of the channel is under way, so that its close needs not be waited for.
func (b *binding) quiet() bool { return b.ch.ledger.Quiet(&b.broker) }

// sending notes how many confirms the broker owes. It is called by the client's reader.
func (b *binding) sending() {
	if b.ch.ledger.Confirms {
		b.published.Store(b.ch.ledger.Publish)
	}
}

func (b *binding) addConsumerLocked(tag string) {
	if b.consumers == nil {
		b.consumers = make(map[string]struct{})
	}
	b.consumers[tag] = struct{}{}
}

// movable reports whether the channel holds nothing on this binding that would be lost with it.
func (b *binding) movable() bool {
	return b.ch.content == noContent && b.ch.ledger.Movable(&b.broker)
}

// ids allocates an upstream's channel ids: fresh ones first, then the oldest freed, so that
// a late frame has the longest time to be late in. Guarded by upstream.mu.
type ids struct {
	fresh uint16 // the last fresh id given out
	limit uint16
	freed []uint16
	head  int
}

func (a *ids) take() (id uint16, ok bool) {
	if a.fresh < a.limit {
		a.fresh++
		return a.fresh, true
	}
	if a.head == len(a.freed) {
		return 0, false
	}
	id = a.freed[a.head]
	a.head++
	if a.head == len(a.freed) {
		a.freed, a.head = a.freed[:0], 0
	} else if a.head >= 1024 {
		a.freed, a.head = append(a.freed[:0], a.freed[a.head:]...), 0
	}
	return id, true
}

func (a *ids) free(id uint16) { a.freed = append(a.freed, id) }

// prelude appends what makes a fresh upstream channel equal to the client's: open, its
// prefetch, its confirm mode.
func (b *binding) prelude(dst []byte) []byte {
	dst = amqp.AppendMethod(dst, b.id, amqp.ChannelOpen, 0)
	if b.ch.qosSet {
		b.prefetch = b.ch.prefetch
		dst = amqp.AppendQos(dst, b.id, b.ch.prefetch, false)
		b.qosOwn.Push(true)
	}
	if b.ch.ledger.Confirms {
		b.confirms = true
		dst = amqp.AppendMethod(dst, b.id, amqp.ConfirmSelect, 0)
		b.selectOwn.Push(true)
	}
	return dst
}

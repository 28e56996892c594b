// A binding ties a client's channel to an upstream's channel: its states, what both
// sides know of it, and the allocator of the upstream's channel ids.

package proxy

import (
	"sync/atomic"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// bindingState is an upstream's channel as the broker sees it, guarded by upstream.mu.
type bindingState uint8

const (
	bOpen    bindingState = iota // open was sent, perhaps not yet answered
	bClosing                     // close was sent, close-ok not received
	bCrossed                     // as closing, and the broker's own close was answered
	bFree                        // close-ok was received or sent: the id may be used again
)

// binding is one use of an upstream's channel id.
type binding struct {
	u  *upstream
	ch *channel
	id uint16 // on the upstream

	// Guarded by upstream.mu.
	state      bindingState
	silent     bool                // the client has its answer already, or wants none
	ticket     *ticket             // a quiet close that later readers wait for
	closedAt   int64               // when close was sent
	refusal    *amqp.Error         // the broker's channel.close
	qosOwn     bitQueue            // which of the awaited qos-ok are the proxy's to swallow
	selectOwn  bitQueue            // likewise for confirm.select-ok
	consumers  map[string]struct{} // tags in use
	unnamed    bitQueue            // which of the awaited consume-ok tell of a tag
	declareOwn bitQueue            // which of the awaited declare-ok are the proxy's to swallow
	lastQueue  string              // name of the queue last declared here

	// Read by the other side.
	calls     atomic.Int32  // synchronous methods sent and not answered
	commits   atomic.Int32  // of these, tx.commit
	declares  atomic.Int32  // queue.declare whose declare-ok, and so the queue's name, is due
	flows     atomic.Int32  // the broker's channel.flow that the client has not answered
	consuming atomic.Int32  // consumers, asked for ones included
	lastTag   atomic.Uint64 // last delivery tag the broker used
	confirmed atomic.Uint64 // all publishes up to this tag are confirmed

	// The upstream's reader only.
	confirms tagSet
	answered int32 // calls answered by what is gathered and not delivered yet

	runSeq uint64 // the client's reader: the run it is part of
}

// bitQueue is a queue of booleans.
type bitQueue []bool

func (q *bitQueue) push(v bool) { *q = append(*q, v) }

// pop is false when the queue is empty.
func (q *bitQueue) pop() bool {
	if len(*q) == 0 {
		return false
	}
	v := (*q)[0]
	if *q = (*q)[1:]; len(*q) == 0 {
		*q = nil
	}
	return v
}

// tagSet is a set of tags in which all up to low are, and few above it.
type tagSet struct {
	low   uint64
	above map[uint64]struct{}
}

// add puts in one tag, or with multiple all up to it.
func (s *tagSet) add(tag uint64, multiple bool) {
	switch {
	case tag <= s.low:
		return
	case multiple:
		s.low = tag
		for t := range s.above {
			if t <= tag {
				delete(s.above, t)
			}
		}
	case tag == s.low+1:
		s.low = tag
	default:
		if s.above == nil {
			s.above = make(map[uint64]struct{})
		}
		s.above[tag] = struct{}{}
		return
	}
	for len(s.above) > 0 {
		if _, ok := s.above[s.low+1]; !ok {
			return
		}
		s.low++
		delete(s.above, s.low)
	}
}

// quiet tells whether nothing of the channel is under way, so that its close needs not be
// waited for: no consumer, no delivery to settle, no open transaction, no publish to
// confirm or to be returned, no call unanswered.
func (b *binding) quiet() bool {
	ch := b.ch
	switch {
	case b.calls.Load() > 0, b.consuming.Load() > 0, ch.neverQuiet:
		return false
	case ch.confirm && b.confirmed.Load() < ch.published:
		return false
	case ch.tx && ch.txDirty:
		return false
	case ch.wantsAcks && ch.acked.low < b.lastTag.Load():
		return false
	}
	return true
}

func (b *binding) addConsumerLocked(tag string) {
	if b.consumers == nil {
		b.consumers = make(map[string]struct{})
	}
	b.consumers[tag] = struct{}{}
}

// movable tells whether the channel holds nothing on this binding that would be lost with it.
func (b *binding) movable() bool {
	return !b.ch.stateful && !b.ch.tx && b.ch.content == noContent && b.calls.Load() == 0 && b.declares.Load() == 0
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
		dst = amqp.AppendQos(dst, b.id, b.ch.prefetch, false)
		b.qosOwn.push(true)
	}
	if b.ch.confirm {
		dst = amqp.AppendMethod(dst, b.id, amqp.ConfirmSelect, 0)
		b.selectOwn.push(true)
	}
	return dst
}

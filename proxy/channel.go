// A channel as its client sees it.

package proxy

import "sync/atomic"

// channelState is a channel as its client sees it. It changes only under client.mu; a
// frame for the client is appended under the same lock after a look at it.
type channelState = uint32

const (
	chOpen    channelState = iota // open-ok was sent
	chClosing                     // the client asked to close and waits for close-ok
	chRefused                     // the broker closed it; the client owes close-ok
	chClosed                      // its number may be opened again
)

// contentState is how far the content of a publish has come on a channel.
type contentState uint8

const (
	noContent contentState = iota
	wantHeader
	wantBody
)

// channel is a client's channel. A number that is opened again gets a new one.
type channel struct {
	c  *client
	id uint16

	state atomic.Uint32           // channelState; written under client.mu
	cur   atomic.Pointer[binding] // written by the client's reader under client.mu

	crossed atomic.Bool // closed by both sides at once: the client owes close-ok

	// All below belongs to the client's reader.

	content   contentState
	remaining uint64 // octets of body still to come
	start     int    // where the publish begins in the current run
	inRun     bool   // the publish is in the current run, from start on
	spill     *spill // the publish is gathered here
	discard   bool   // the publish came too late, it goes nowhere
	mandatory bool   // the current publish is mandatory

	qosSet    bool
	globalQos bool // a prefetch for the whole channel: quorum queues refuse consumers then
	prefetch  uint16
	confirm   bool
	tx        bool
	txDirty   bool // published or acked since tx.select, commit or rollback
	// neverQuiet is set by what cannot be followed: a mandatory publish without confirms
	// (a return may come at any time), a rollback of acks.
	neverQuiet bool

	hears     bool   // got, consumed or published mandatorily: content may come for it
	stateful  bool   // got, consumed, acked or published with an answer due: it can move no more
	sent      bool   // published: it moves to a session alone
	published uint64 // in confirm mode: the tag of the last publish
	acked     tagSet // delivery tags that the client has settled
	wantsAcks bool   // some delivery must be acked
	noAcks    bool   // some delivery needs no ack
	unheard   bool   // what has no answer, a publish or a declaration, went last to the current binding

	bodySize  uint64 // of the current publish, as announced
	lastQueue string // after a move: the queue last declared before it
}

// mayAnswer tells whether an answer of the proxy's own may go out on the channel now: no
// earlier call waits for the broker's, and no content can be half way to the client.
func (ch *channel) mayAnswer() bool {
	b := ch.cur.Load()
	return b == nil || (!ch.hears && b.calls.Load() == 0)
}

// hearing notes that deliveries may come, which need acks or do not. Where both do, which
// of them are settled cannot be told.
func (ch *channel) hearing(noAck bool) {
	ch.stateful, ch.hears = true, true
	if noAck {
		ch.noAcks = true
	} else {
		ch.wantsAcks = true
	}
	if ch.noAcks && ch.wantsAcks {
		ch.untracked()
	}
}

// untracked gives up on knowing which deliveries are settled.
func (ch *channel) untracked() { ch.neverQuiet, ch.acked = true, tagSet{} }

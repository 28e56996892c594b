// A channel as its client sees it.

package proxy

import (
	"sync/atomic"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/ledger"
)

// channelState is a channel as its client sees it, a ledger.State. It changes only under
// client.mu, in endLocked; a frame for the client is appended under the same lock after a look at it.
type channelState = uint32

const (
	chOpen    = channelState(ledger.Open)
	chClosing = channelState(ledger.Closing)
	chRefused = channelState(ledger.Refused)
	chOwing   = channelState(ledger.Owing)
	chClosed  = channelState(ledger.Closed)
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

	ledger ledger.Ledger // what it has under way

	bodySize  uint64 // of the current publish, as announced
	lastQueue string // after a move: the queue last declared before it
}

// mayAnswer reports whether an answer of the proxy's own may go out on the channel now.
func (ch *channel) mayAnswer() bool {
	return ch.ledger.MayAnswer(ch.broker())
}

// broker is the broker's side of the channel's ledger, or nil where it is not bound.
func (ch *channel) broker() *ledger.Broker {
	if b := ch.cur.Load(); b != nil {
		return &b.broker
	}
	return nil
}

// endLocked is the client's side of every end of the channel, under client.mu: its next state,
// and in the same step what the client hears. said is the channel.close that it hears, where there is one.
func (ch *channel) endLocked(by ledger.Cause, said amqp.Frame) ledger.Act {
	c := ch.c
	next, act := ledger.State(ch.state.Load()).End(by, c.leaving)
	ch.state.Store(channelState(next))
	if c.phase.Load() == phaseRunning { // else connection.close is the last word
		if act.Has(ledger.SayClose) {
			c.env.n.channelErrors.add(amqp.ParseClose(said).Code)
			c.out.AppendLocked(said)
		}
		if act.Has(ledger.SayCloseOk) {
			c.out.SetBufferLocked(amqp.AppendMethod(c.out.BufferLocked(16), ch.id, amqp.ChannelCloseOk))
		}
	}
	if act.Has(ledger.Uncount) {
		c.env.n.channels.Add(-1)
		c.chansN.Add(-1)
	}
	if act.Has(ledger.Wake) {
		c.answers.FireLocked()
	}
	return act
}

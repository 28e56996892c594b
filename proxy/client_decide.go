// What becomes of a client's method: decided here, done by the router. A decision waits for nothing,
// sends nothing and changes nothing. What the proxy knows about AMQP beyond bytes is in the one
// switch of decideOpen.

package proxy

import (
	"fmt"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/ledger"
)

// action is what becomes of a method.
type action struct {
	do     deed
	needs  need
	lane   lane // where it is passed
	called bool // its answer is awaited
	bits   byte // of its arguments
	// err is, of doRefuse, what ends the client; of needAsk, what RabbitMQ says.
	err *amqp.Error
}

// deed is what is done with a method.
type deed uint8

const (
	doDrop     deed = iota // nothing: it comes too late
	doPass                 // it goes to the broker
	doRefuse               // it ends its client, and nobody else
	doPublish              // it goes with its content
	doQos                  // answered where that may be, and passed
	doConfirm              // likewise
	doConsume              // passed, its tag noted
	doClose                // the client closes its channel
	doOpen                 // the client opens a channel
	doEnd                  // the client answers the close of its channel
	doEndClose             // or crosses it with its own, which is likewise the answer
	doSkip                 // a publish that goes nowhere, nor does its content
	doSkipLate             // likewise, on a channel that is closed
)

// by is the cause of the channel's end, of doEnd.
func (a *action) by() ledger.Cause {
	if a.do == doEndClose {
		return ledger.ByClient
	}
	return ledger.ByClientOk
}

// need is what must be so before a method is done, see client.meet.
type need uint16

const (
	needCommit     need = 1 << iota // the broker has answered tx.commit
	needWrites                      // what the identity published before is there to be read
	needQueue                       // the name of the queue declared last is known
	needAsk                         // the broker is one that may be asked what RabbitMQ refuses, where it hurts nobody else
	needExclusive                   // the channel is where an exclusive queue may be declared
	needIsolation                   // it goes where a hard error hurts nobody else
	needPermission                  // transient queues are permitted, or it is asked for
	needSession                     // the channel is on an upstream of the client's own, where its mode has one
	needReaders                     // the channel is where readers are
)

func hard(code uint16, m amqp.Method, format string, args ...any) action {
	return action{do: doRefuse, err: amqp.Errorf(code, m, format, args...)}
}

// decide says what becomes of a method; ch is nil when its channel is not open.
func (c *client) decide(ch *channel, f amqp.Frame) action {
	m := f.Method()
	spec := m.Spec()
	if ch != nil && ch.content != noContent {
		return c.strayContent(ch, f)
	}
	unopened := ch == nil && m != amqp.ChannelOpen && spec.Name != ""
	if e := admit(m, spec, f); e != nil && !unopened {
		return action{do: doRefuse, err: e}
	}
	bits, err := spec.CheckArgs(f.Args())
	switch {
	case err != nil:
		return action{do: doRefuse, err: err}
	case unopened:
		return c.decideUnopened(f.Channel(), m)
	case ch == nil:
		return action{do: doOpen}
	}
	if st := ch.state.Load(); st != chOpen {
		return decideClosed(m, st)
	}
	a := c.decideOpen(ch, m, f, bits, spec.Sync && (spec.NoWait == 0 || bits&spec.NoWait == 0))
	if b := ch.cur.Load(); b != nil && b.broker.Commits.Load() > 0 {
		a.needs |= needCommit
	}
	return a
}

// decideOpen is decide for a method on an open channel. called: it has an answer.
func (c *client) decideOpen(ch *channel, m amqp.Method, f amqp.Frame, bits byte, called bool) action {
	pass := action{do: doPass, called: called, bits: bits}
	switch m {
	case amqp.BasicPublish:
		return c.decidePublish(f, bits)

	case amqp.BasicAck, amqp.BasicNack, amqp.BasicReject:
		if m == amqp.BasicAck && bits&1 != 0 && ch.ledger.Tx && c.acksNothing(ch, f) {
			return hard(amqp.InternalError, 0, "Unexpected error")
		}
		pass.lane = laneRead

	case amqp.BasicQos:
		a := amqp.ReadArgs(f)
		size := a.Long()
		pass.do = doQos
		if size != 0 || bits&1 != 0 {
			// RabbitMQ 4.3 may refuse a global one with a hard error, and any version a consumer
			// of a quorum queue behind it.
			pass.needs = needSession
		}
		if size != 0 {
			return c.asking(pass, amqp.NotImplemented, m, fmt.Sprintf("prefetch_size!=0 (%d)", size))
		}

	case amqp.ConfirmSelect:
		pass.do = doConfirm

	case amqp.BasicGet:
		pass.lane, pass.called, pass.needs = laneRead, true, needWrites|needReaders
		if c.namesNoQueue(ch, f) {
			pass.needs |= needQueue
		}

	case amqp.BasicConsume:
		pass.do, pass.needs = doConsume, needWrites|needReaders
		if c.namesNoQueue(ch, f) {
			pass.needs |= needQueue
		}
		if noAck := bits&2 != 0; noAck || ch.prefetch == 0 || int(ch.prefetch) > c.env.cfg().SharedPrefetchLimit || ch.globalQos ||
			c.hazards().mayFail(m, f, bits) {
			pass.needs |= needSession
		}

	case amqp.BasicCancel:
		pass.lane = laneRead

	case amqp.BasicRecover, amqp.BasicRecoverAsync:
		pass.lane = laneRead
		switch {
		case bits&1 == 0:
			return c.asking(pass, amqp.NotImplemented, m, "requeue=false")
		case c.hazards().mayFail(m, f, bits):
			return c.asking(pass, amqp.NotImplemented, m, m.String())
		}

	case amqp.TxSelect, amqp.TxCommit, amqp.TxRollback:
		pass.lane = lanePublish

	case amqp.QueueDeclare:
		pass.needs = needWrites
		if exclusive := bits&4 != 0 && bits&1 == 0; exclusive {
			pass.needs |= needExclusive
			break
		}
		if c.hazards().mayFail(m, f, bits) {
			pass.needs |= needIsolation
		}
		if isTransient(bits) {
			pass.needs |= needPermission
		}

	case amqp.ChannelOpen:
		return hard(amqp.ChannelError, m, "second 'channel.open' seen")

	case amqp.ChannelClose:
		pass.do = doClose

	case amqp.ChannelFlow:
		if bits&1 == 0 {
			return c.asking(pass, amqp.NotImplemented, m, "active=false")
		}

	case amqp.ChannelFlowOk:
		if b := ch.cur.Load(); b == nil || b.broker.Flows.Load() == 0 {
			return hard(amqp.CommandInvalid, m, "unimplemented method")
		}
		pass.called = false

	case amqp.ChannelCloseOk, amqp.BasicCancelOk:
		return hard(amqp.CommandInvalid, m, "unimplemented method")

	case amqp.QueueBind, amqp.QueueUnbind, amqp.QueuePurge, amqp.QueueDelete:
		pass.needs = needWrites
		if c.namesNoQueue(ch, f) {
			pass.needs |= needQueue
		}
		if c.hazards().mayFail(m, f, bits) {
			pass.needs |= needIsolation
		}

	default: // exchanges, access.request
		pass.needs = needWrites
		switch {
		case !c.hazards().mayFail(m, f, bits):
		case m == amqp.AccessRequest:
			return c.asking(pass, amqp.NotImplemented, m, m.String())
		default:
			pass.needs |= needIsolation
		}
	}
	return pass
}

// asking has what RabbitMQ answers with a hard error refused as RabbitMQ does, and another broker asked.
func (c *client) asking(a action, code uint16, m amqp.Method, text string) action {
	e := amqp.Errorf(code, m, "%s", text)
	if c.hazards().rabbit {
		return action{do: doRefuse, err: e}
	}
	a.needs |= needAsk
	a.err = e
	return a
}

// namesNoQueue reports whether a method means the queue that its channel declared last, whose name
// is not at hand.
func (c *client) namesNoQueue(ch *channel, f amqp.Frame) bool {
	return ch.lastQueue == "" && f.Args()[2] == 0
}

// decidePublish looks whether a publish may be sent to the broker, by its method.
func (c *client) decidePublish(f amqp.Frame, bits byte) action {
	const immediate = 2
	a := action{do: doPublish, bits: bits}
	if bits&immediate != 0 {
		if a = c.asking(a, amqp.NotImplemented, amqp.BasicPublish, "immediate=true"); a.do == doRefuse {
			return a
		}
	}
	if badReplyTo(f) && c.hazards().replyTo {
		return hard(amqp.InternalError, 0, "a direct reply-to address that is none")
	}
	args := amqp.ReadArgs(f)
	args.Short()
	if !amqp.IsUTF8(args.Str()) && !c.hazards().rabbit {
		return hard(amqp.InternalError, 0, "the exchange's name is not UTF-8")
	}
	return a
}

// decideUnopened is decide for a method, other than channel.open, on a channel that is not open.
func (c *client) decideUnopened(id uint16, m amqp.Method) action {
	if c.isLate(id) {
		switch m {
		case amqp.BasicPublish:
			return action{do: doSkipLate}
		case amqp.BasicAck, amqp.BasicNack, amqp.BasicReject:
			return action{do: doDrop}
		}
	}
	return hard(amqp.ChannelError, m, "expected 'channel.open'")
}

// isLate reports whether what asks for no answer may have been sent behind the client's own
// channel.close, and is to be swallowed, as the broker does while it closes: another thread of the
// application may have been publishing. Only for a moment.
func (c *client) isLate(id uint16) bool {
	return c.lately.id == id && time.Since(c.lately.at) <= closeGrace
}

// decideClosed is decide for a method on a channel that either side has closed.
func decideClosed(m amqp.Method, st channelState) action {
	owing := st == chRefused || st == chOwing
	switch {
	case m == amqp.ChannelOpen && owing:
		return hard(amqp.ChannelError, m, "second 'channel.open' seen")
	case m == amqp.ChannelCloseOk && owing:
		return action{do: doEnd}
	case m == amqp.ChannelClose && owing:
		return action{do: doEndClose}
	case m == amqp.BasicPublish:
		return action{do: doSkip}
	}
	return action{do: doDrop} // everything else comes too late and is ignored, as the broker does
}

// admit judges a method by itself: is it known, and may a client send it on this channel?
// Codes and texts are RabbitMQ's; for an unknown method RabbitMQ only cuts the connection.
func admit(m amqp.Method, spec *amqp.Spec, f amqp.Frame) *amqp.Error {
	onChannel0 := f.Channel() == 0
	switch {
	case len(f) < amqp.FrameOverhead+4:
		return amqp.Errorf(amqp.FrameError, 0, "type 1, %d octets of payload: unknown_frame", len(f.Payload()))
	case m.Index() == 0:
		return amqp.Errorf(amqp.CommandInvalid, m, "%s", m)
	case onChannel0 && m != amqp.ConnectionClose && m != amqp.ConnectionUpdateSecret:
		return amqp.Errorf(amqp.ChannelError, m, "unexpected method in connection state running")
	case !onChannel0 && (!spec.Client || m.Class() == amqp.ClassConnection):
		return amqp.Errorf(amqp.CommandInvalid, m, "unimplemented method")
	}
	return nil
}

// strayContent takes a frame that does not go on with the content that is due.
func (c *client) strayContent(ch *channel, f amqp.Frame) action {
	if ch == nil && c.lately.id == f.Channel() && c.lately.content {
		return action{do: doDrop} // of a publish behind channel.close
	}
	due := noContent
	if ch != nil {
		due = ch.content
	}
	switch due {
	case wantHeader:
		return hard(amqp.UnexpectedFrame, amqp.BasicPublish,
			"expected content header for class 60, got non content header frame instead")
	case wantBody:
		return hard(amqp.UnexpectedFrame, amqp.BasicPublish,
			"expected content body, got non content body frame instead")
	}
	return hard(amqp.UnexpectedFrame, 0, "expected method frame, got non method frame instead")
}

// LavinMQ as a flavour of the stand-in broker: what version 2.9.1 does otherwise than
// RabbitMQ where clients share a connection. All under the broker's lock.

package proxytest

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"
	"unicode/utf8"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// lavinPause is how long after close-ok LavinMQ's exclusive queues and socket are still
// there, for a race that its clients can lose.
const lavinPause = 5 * time.Millisecond

// lavinState is what LavinMQ keeps of a connection.
type lavinState struct {
	lastQueue string
	// mute: a cut frame was written and nothing is answered any more, while what comes is
	// read and dropped.
	mute bool
	// garbled: the reader has lost its place, the next frame is the end.
	garbled bool
}

func (c *BrokerConn) isLavin() bool { return c.b.cfg.Flavour == LavinMQ }

// last is where the name of the queue declared last is kept.
func (ch *brokerChannel) last() *string {
	if ch.c.isLavin() {
		return &ch.c.lavin.lastQueue
	}
	return &ch.lastQueue
}

func lavinUnexpected() *amqp.Error {
	return &amqp.Error{Code: amqp.InternalError, Text: "INTERNAL_ERROR - Unexpected error, please report"}
}

func lavinGarbled(f amqp.Frame) *amqp.Error {
	n := uint32(1635016991) // what the octets of an access.request read like
	if f.Type() != amqp.FrameMethod {
		n = uint32(len(f.Payload())) << 24
	}
	return amqp.Errorf(amqp.FrameError, 0, "Frame size %d exceeds max", n)
}

// lavinLocked sees each frame of an open connection before the broker does.
func (c *BrokerConn) lavinLocked(f amqp.Frame) (handled bool, err error) {
	switch {
	case c.lavin.mute:
		return true, nil
	case c.lavin.garbled:
		return true, lavinGarbled(f)
	case f.Channel() == 0 && is(f, amqp.ConnectionUpdateSecret):
		return true, amqp.Errorf(amqp.AccessRefused, f.Method(), "update-secret not supported for current authentication mechanism")
	case f.Type() == amqp.FrameHeader && len(f.Payload()) >= 14 && f.Payload()[13]&3 != 0:
		return true, amqp.Errorf(amqp.FrameError, 0, "Invalid property flags")
	}
	ch := c.channels[f.Channel()]
	if ch == nil || ch.closing || f.Type() != amqp.FrameMethod || ch.content != nil {
		return false, nil
	}
	return ch.lavinMethod(f)
}

func (ch *brokerChannel) lavinMethod(f amqp.Frame) (handled bool, err error) {
	m := f.Method()
	switch m {
	case amqp.AccessRequest:
		ch.failLocked(&amqp.Error{Code: amqp.NotImplemented, Method: m, Text: "NOT_IMPLEMENTED"})
		return true, lavinGarbled(f)
	case amqp.BasicRecoverAsync:
		ch.failLocked(&amqp.Error{Code: amqp.NotImplemented, Method: m, Text: "NOT_IMPLEMENTED"})
		ch.c.lavin.garbled = true
		return true, nil
	}
	bits, err := lenientArgs(m.Spec(), f.Args())
	if err != nil {
		return false, nil // it is the broker's to say what is wrong
	}
	a := amqp.ReadArgs(f)
	switch m {
	case amqp.BasicPublish:
		a.Short()
		if !utf8.Valid(a.Str()) {
			return true, lavinUnexpected()
		}
	case amqp.BasicAck:
		if ch.tx && a.LongLong() == 0 && bits&1 != 0 && len(ch.unacked) == 0 {
			return true, lavinUnexpected()
		}
	case amqp.QueueDeclare:
		a.Short()
		a.Str()
		a.Octet()
		args := a.LongStr()
		if _, name, ok := amqp.Lookup(args, "x-dead-letter-exchange"); ok && !utf8.Valid(name) {
			return true, lavinUnexpected()
		}
		if beyondTime(args) {
			return true, lavinUnexpected()
		}
	case amqp.BasicQos:
		if size := a.Long(); size != 0 {
			ch.failLocked(amqp.Errorf(amqp.NotImplemented, m, "prefetch size is not implemented"))
			return true, nil
		}
	case amqp.ChannelFlow:
		ch.paused = bits&1 == 0
		ch.send(amqp.ChannelFlowOk, bits&1)
		ch.pumpLocked()
		return true, nil
	case amqp.BasicRecover:
		if bits&1 != 0 {
			return false, nil
		}
		ch.send(amqp.BasicRecoverOk)
		for _, u := range ch.unacked {
			if u.by != nil {
				ch.sendContent(Method(ch.id, amqp.BasicDeliver, u.by.tag, u.tag, true, u.m.exchange, u.m.key), u.m.header, u.m.body)
			}
		}
		return true, nil
	}
	return false, nil
}

// lenientArgs is Spec.CheckArgs but for tables, whose depth and values are not judged: a
// table is the last argument of each method that has one.
func lenientArgs(spec *amqp.Spec, args []byte) (byte, error) {
	n := len(spec.Args)
	if n == 0 || spec.Args[n-1] != 'T' {
		bits, err := spec.CheckArgs(args)
		if err != nil {
			return 0, err
		}
		return bits, nil
	}
	at := 0
	for _, kind := range []byte(spec.Args[:n-1]) {
		switch kind {
		case 'h':
			at += 2
		case 's':
			if at >= len(args) {
				return 0, fmt.Errorf("%s: cut", spec.Name)
			}
			at += 1 + int(args[at])
		default:
			at++
		}
	}
	if at+4 > len(args) {
		return 0, fmt.Errorf("%s: cut", spec.Name)
	}
	bits, err := spec.CheckArgs(append(append([]byte(nil), args[:at]...), 0, 0, 0, 0))
	if err != nil {
		return 0, err
	}
	return bits, nil
}

// beyondTime looks for a field of type T that no calendar holds.
func beyondTime(table []byte) bool {
	for len(table) > 0 {
		n := 1 + int(table[0])
		if n >= len(table) {
			return false
		}
		value := table[n+1:]
		if table[n] == 'T' && len(value) >= 8 && binary.BigEndian.Uint64(value) > 1<<48 {
			return true
		}
		size := fieldSize(table[n], value)
		if size < 0 || size > len(value) {
			return false
		}
		table = value[size:]
	}
	return false
}

// fieldSize is how many octets a field's value has behind its type; -1: not known.
func fieldSize(kind byte, value []byte) int {
	switch kind {
	case 'V':
		return 0
	case 't', 'b', 'B':
		return 1
	case 's', 'u':
		return 2
	case 'I', 'i', 'f':
		return 4
	case 'D':
		return 5
	case 'l', 'L', 'd', 'T':
		return 8
	case 'S', 'x', 'F', 'A':
		if len(value) >= 4 {
			return 4 + int(binary.BigEndian.Uint32(value))
		}
	}
	return -1
}

// lavinClose writes a soft error. A text that no short string holds is cut off in the
// middle of its frame, and the connection answers nothing any more: it waits for the answer
// to a close that it never managed to send.
func (ch *brokerChannel) lavinClose(e *amqp.Error) {
	if len(e.Text) <= math.MaxUint8 {
		ch.c.Send(amqp.AppendClose(nil, ch.id, e))
		return
	}
	whole := amqp.AppendClose(nil, ch.id, &amqp.Error{Code: e.Code, Method: e.Method, Text: e.Text[:math.MaxUint8]})
	ch.c.Send(whole[:9]) // frame head and class
	ch.c.lavin.mute = true
}

// Package amqp knows the bytes of AMQP 0-9-1 and nothing else: no network, no
// goroutine, no log. Frames are viewed in place and payloads stay opaque; only
// what a proxy must know is decoded.
package amqp

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Frame types (spec 4.2.3).
const (
	FrameMethod    = 1
	FrameHeader    = 2
	FrameBody      = 3
	FrameHeartbeat = 8

	// FrameEnd closes every frame.
	FrameEnd = 0xCE
)

const (
	// HeaderLen is type, channel and size.
	HeaderLen = 7
	// FrameOverhead is all of a frame that is not payload.
	FrameOverhead = HeaderLen + 1
	// FrameMinSize is the smallest frame_max that may be negotiated (spec 4.2.3).
	FrameMinSize = 4096
)

// ProtocolHeader is what a client sends first (spec 4.2.2).
var ProtocolHeader = [8]byte{'A', 'M', 'Q', 'P', 0, 0, 9, 1}

// Heartbeat is the whole heartbeat frame.
var Heartbeat = []byte{FrameHeartbeat, 0, 0, 0, 0, 0, 0, FrameEnd}

// Frame is one whole frame, header and end octet included, in somebody's buffer.
type Frame []byte

// Type is the frame's type octet.
func (f Frame) Type() byte { return f[0] }

// Channel is the frame's channel number.
func (f Frame) Channel() uint16 { return binary.BigEndian.Uint16(f[1:]) }

// SetChannel rewrites the channel number in place.
func (f Frame) SetChannel(id uint16) { binary.BigEndian.PutUint16(f[1:], id) }

// Payload is what lies between the header and the end octet.
func (f Frame) Payload() []byte { return f[HeaderLen : len(f)-1] }

// Method is the class and method of a method frame, or 0 when the payload is too short for them.
func (f Frame) Method() Method {
	if len(f) < FrameOverhead+4 {
		return 0
	}
	return Method(binary.BigEndian.Uint32(f[HeaderLen:]))
}

// Args is what follows class and method in a method frame's payload; nothing when the
// payload is too short for them.
func (f Frame) Args() []byte {
	if len(f) < FrameOverhead+4 {
		return nil
	}
	return f[HeaderLen+4 : len(f)-1]
}

// BodySize is the announced size in a content header's payload.
// The payload must have passed CheckContentHeader.
func (f Frame) BodySize() uint64 { return binary.BigEndian.Uint64(f[HeaderLen+4:]) }

// AppendFrame appends a whole frame.
func AppendFrame(dst []byte, typ byte, channel uint16, payload []byte) []byte {
	dst = append(dst, typ, byte(channel>>8), byte(channel))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(payload)))
	dst = append(dst, payload...)
	return append(dst, FrameEnd)
}

// Split looks for the next whole frame at the start of b. n is the length of that
// frame, or 0 when b holds only a part of one; need is then the length of the whole
// frame as far as it is known, at least HeaderLen. maxFrame bounds a payload as
// RabbitMQ does (a payload of exactly frame_max is let through); 0 is no bound.
// The size is judged before a byte of the payload is waited for.
func Split(b []byte, maxFrame uint32) (n, need int, err error) {
	if len(b) < HeaderLen {
		return 0, HeaderLen, nil
	}
	size := binary.BigEndian.Uint32(b[3:])
	if size > maxFrame && maxFrame != 0 {
		return 0, 0, FrameTooLarge(b[0], size, maxFrame)
	}
	total := int(min(uint64(size)+FrameOverhead, math.MaxInt)) // an int may have 32 bits
	if len(b) < total {
		return 0, total, nil
	}
	if b[total-1] != FrameEnd {
		return 0, 0, &Error{Code: FrameError, Text: fmt.Sprintf(
			"FRAME_ERROR - type %d, channel %d: frame ends in octet %d, expected %d",
			b[0], binary.BigEndian.Uint16(b[1:]), b[total-1], FrameEnd)}
	}
	return total, total, nil
}

// FrameTooLarge is the error for a payload over frame_max.
func FrameTooLarge(typ byte, size, maxFrame uint32) *Error {
	return &Error{Code: FrameError, Text: fmt.Sprintf(
		"FRAME_ERROR - type %d, payload of %d octets is larger than the negotiated frame_max of %d",
		typ, size, maxFrame)}
}

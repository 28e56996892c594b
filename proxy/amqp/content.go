// Content headers (spec 4.2.6): the body size and a check of the properties.

package amqp

import (
	"encoding/binary"
	"math/bits"
)

// The properties of class basic from flag bit 15 downwards, a letter each as in Spec.Args.
// Flag bits 1 and 0 stand for nothing; RabbitMQ ignores them, and so does this.
const basicProperties = "ssTbbssssqssss"

// CheckContentHeader reports whether the payload is a content header of class basic
// and weight 0 whose properties decode, and returns the announced size of the body.
func CheckContentHeader(p []byte) (bodySize uint64, err *Error) {
	if len(p) < 12 {
		return 0, Errorf(FrameError, 0, "content header of %d octets, at least 14 are needed", len(p))
	}
	if class := binary.BigEndian.Uint16(p); class != ClassBasic {
		return 0, Errorf(UnexpectedFrame, BasicPublish,
			"expected content header for class 60, got one for class %d instead", class)
	}
	if weight := binary.BigEndian.Uint16(p[2:]); weight != 0 {
		return 0, Errorf(UnexpectedFrame, BasicPublish,
			"expected content header for class 60, got non content header frame instead (of weight %d, not 0)", weight)
	}
	if len(p) < 14 {
		return 0, propertiesCut()
	}
	bodySize = binary.BigEndian.Uint64(p[4:])
	flags := binary.BigEndian.Uint16(p[12:])
	if flags == 0 && len(p) == 14 {
		return bodySize, nil
	}
	b := p[14:]
	for left := flags &^ 3; left != 0; {
		i := bits.LeadingZeros16(left)
		left &^= 0x8000 >> i
		n := 0
		switch basicProperties[i] {
		case 'b':
			n = 1
		case 'q':
			n = 8
		case 's':
			if len(b) == 0 {
				return 0, propertiesCut()
			}
			n = 1 + int(b[0])
		case 'T':
			if len(b) < 4 {
				return 0, propertiesCut()
			}
			n = longLen(b, 4)
			if n <= len(b) {
				if why := checkTable(b[4:n], 0); why != "" {
					return 0, Errorf(SyntaxError, BasicPublish, "content header, headers table: %s", why)
				}
			}
		}
		if n > len(b) {
			return 0, propertiesCut()
		}
		b = b[n:]
	}
	if len(b) != 0 {
		return 0, Errorf(InternalError, 0, "content header: %d octets after the last property", len(b))
	}
	return bodySize, nil
}

// propertiesCut has RabbitMQ's code for properties that do not decode.
func propertiesCut() *Error {
	return Errorf(InternalError, 0, "content header: a property is cut off")
}

// AppendBody appends body as frames whose whole size is at most frameMax, which is 0
// (unbounded) or at least FrameMinSize.
func AppendBody(dst []byte, channel uint16, body []byte, frameMax uint32) []byte {
	most := len(body)
	if frameMax != 0 && uint64(most) > uint64(frameMax)-FrameOverhead {
		most = int(frameMax) - FrameOverhead
	}
	for len(body) > 0 {
		n := min(most, len(body))
		dst = AppendFrame(dst, FrameBody, channel, body[:n])
		body = body[n:]
	}
	return dst
}

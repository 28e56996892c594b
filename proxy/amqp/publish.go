// The usual publish in one look: three frames whose shape is known, checked in one straight
// pass. It says nothing about any other: those are looked at frame by frame.

package amqp

import "encoding/binary"

const (
	// publishHead is what lies before the exchange in the frame of basic.publish: the frame's
	// header, class and method, the reserved field, the exchange's length.
	publishHead = HeaderLen + 4 + 2 + 1
	// plainHeader is the frame of a content header without properties.
	plainHeader = HeaderLen + 14 + 1
)

// WholePublish measures the publish that b begins with: its content header begins at header,
// its one body frame at body (0: it has none), and it ends at end. It has passed the same checks
// as its frames would one by one: Split with maxFrame, CheckArgs, BadReplyTo and
// CheckContentHeader, and nothing about it is odd (HeaderOdd, an exchange that is not UTF-8); all are of one channel, the flags of basic.publish are 0, and the header's
// payload is no larger than FrameMinSize. end is 0 for all that is not so.
func WholePublish(b []byte, maxFrame uint32) (header, body, end int) {
	if len(b) < publishHead+3+plainHeader || b[0] != FrameMethod {
		return 0, 0, 0
	}
	e := int(b[publishHead-1])
	at := publishHead + e // the routing key's length
	if at >= len(b) {
		return 0, 0, 0
	}
	k := int(b[at])
	at += 1 + k          // the flags, then the frame's end
	most := maxFrame - 1 // of a size less one: 0, no bound, becomes the largest
	// Size, class and method are eight octets in a row.
	size := uint32(publishHead - HeaderLen + e + 1 + k + 1)
	if binary.BigEndian.Uint64(b[3:]) != uint64(size)<<32|uint64(BasicPublish) || size-1 > most ||
		len(b) < at+2+plainHeader || b[at] != 0 || b[at+1] != FrameEnd {
		return 0, 0, 0
	}
	if e == 0 && k > len(replyTo) && BadReplyTo(b[at-k:at]) || !asciiOrUTF8(b[publishHead:publishHead+e]) {
		return 0, 0, 0
	}

	header = at + 2
	h := b[header:]
	// Type and channel of each frame, the channel being that of the first.
	channel := uint32(b[1])<<8 | uint32(b[2])
	size = binary.BigEndian.Uint32(h[3:])
	if binary.BigEndian.Uint32(h)>>8 != FrameHeader<<16|channel || size-1 > most || size > FrameMinSize ||
		len(h) < int(size)+FrameOverhead || h[HeaderLen+size] != FrameEnd {
		return 0, 0, 0
	}
	length := binary.BigEndian.Uint64(h[HeaderLen+4:])
	// Nothing is left to check where class, weight and flags say that there are no properties.
	if size != 14 || binary.BigEndian.Uint32(h[HeaderLen:]) != ClassBasic<<16 || binary.BigEndian.Uint16(h[HeaderLen+12:]) != 0 {
		if p := h[HeaderLen : HeaderLen+size]; wrong(p) || HeaderOdd(p) != 0 {
			return 0, 0, 0
		}
	}
	end = header + int(size) + FrameOverhead
	if length == 0 {
		return header, 0, end
	}

	body = end
	c := b[body:]
	if length-1 > uint64(most) || uint64(len(c)) < length+FrameOverhead ||
		binary.BigEndian.Uint32(c)>>8 != FrameBody<<16|channel || uint64(binary.BigEndian.Uint32(c[3:])) != length ||
		c[HeaderLen+int(length)] != FrameEnd {
		return 0, 0, 0
	}
	return header, body, body + int(length) + FrameOverhead
}

func wrong(header []byte) bool {
	_, err := CheckContentHeader(header)
	return err != nil
}

// What is in order by itself, and yet more than some brokers bear.

package amqp

import (
	"encoding/binary"
)

// Odd is a set of what may be odd about the content header of a publish.
type Odd uint8

const (
	OddFlags   Odd = 1 << iota // a property flag that stands for nothing
	OddReplyTo                 // a reply_to that is not UTF-8
	OddRoutes                  // CC or BCC has a direct reply-to address that is none
)

const (
	flagHeaders = 1 << 13
	flagReplyTo = 1 << 9
	flagsOdd    = 1<<1 | 1
)

// HeaderOdd looks for what is odd in a content header that CheckContentHeader has passed.
func HeaderOdd(p []byte) (odd Odd) {
	flags := binary.BigEndian.Uint16(p[12:])
	if flags&(flagHeaders|flagReplyTo|flagsOdd) == 0 {
		return 0
	}
	if flags&flagsOdd != 0 {
		odd = OddFlags
	}
	a := ArgsOf(p[14:])
	for i := range 7 { // content-type to reply-to
		if flags&(0x8000>>i) == 0 {
			continue
		}
		switch basicProperties[i] {
		case 's':
			if s := a.Str(); 0x8000>>i == flagReplyTo && !asciiOrUTF8(s) {
				odd |= OddReplyTo
			}
		case 'b':
			a.Octet()
		case 'T':
			if badRoutes(a.LongStr()) {
				odd |= OddRoutes
			}
		}
	}
	return odd
}

// IsUTF8 reports whether a short string is what the specification lets it be.
func IsUTF8(s []byte) bool { return asciiOrUTF8(s) }

// LateTimes reports whether a table, or one within it, has a time after the year 9999.
func LateTimes(table []byte) bool {
	for len(table) > 0 {
		n := 1 + int(table[0])
		if n > len(table) {
			return false
		}
		v, late := lateTime(table[n:])
		if late || v == 0 {
			return late
		}
		table = table[n+v:]
	}
	return false
}

// lateTime measures a value of a table that has been checked, and looks for such a time in
// it; n is 0 where it is none. What is nested is walked once, not again at each level.
func lateTime(b []byte) (n int, late bool) {
	const year10000 = 253402300800
	if len(b) > 4 && (b[0] == 'F' || b[0] == 'A') {
		if n = longLen(b[1:], 5); n > len(b) {
			return 0, false
		}
		if b[0] == 'F' {
			return n, LateTimes(b[5:n])
		}
		for v := b[5:n]; len(v) > 0; {
			k, late := lateTime(v)
			if late || k == 0 {
				return n, late
			}
			v = v[k:]
		}
		return n, false
	}
	n, why := checkValue(b, 0)
	if why != "" {
		return 0, false
	}
	return n, b[0] == 'T' && binary.BigEndian.Uint64(b[1:]) >= year10000
}

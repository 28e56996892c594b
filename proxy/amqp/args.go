// Arguments of methods: a check that they decode as the method table says, and a
// cursor that reads single ones out of checked bytes.

package amqp

import (
	"encoding/binary"
	"strconv"
	"unicode/utf8"
)

func itoa(n int) string { return strconv.Itoa(n) }

// CheckArgs reports whether args are exactly the arguments of s: every field whole,
// short strings valid UTF-8, tables well formed, no byte left over. It returns the octet of bits,
// 0 for a method without one. As in RabbitMQ, methods with content may carry any octets in
// their short strings.
func (s *Spec) CheckArgs(args []byte) (bits byte, err *Error) {
	b := args
	for i := 0; i < len(s.Args); i++ {
		n := 0
		switch s.Args[i] {
		case 'b', 'o', 'O':
			if len(b) >= 1 {
				bits = b[0]
			}
			n = 1
		case 'h':
			n = 2
		case 'l':
			n = 4
		case 'q':
			n = 8
		case 's':
			if len(b) == 0 {
				return 0, s.cannotDecode(args)
			}
			n = 1 + int(b[0])
			if n <= len(b) && !s.Content && !asciiOrUTF8(b[1:n]) {
				return 0, s.malformedUTF8()
			}
		case 'S':
			if len(b) < 4 {
				return 0, s.cannotDecode(args)
			}
			n = longLen(b, 4)
		case 'T':
			if len(b) < 4 {
				return 0, s.cannotDecode(args)
			}
			n = longLen(b, 4)
			if n <= len(b) {
				if why := checkTable(b[4:n], 0); why != "" {
					return 0, Errorf(SyntaxError, s.ID, "arguments table of %s: %s", s.Name, why)
				}
			}
		}
		if n > len(b) {
			return 0, s.cannotDecode(args)
		}
		b = b[n:]
	}
	if len(b) != 0 {
		return 0, s.cannotDecode(args)
	}
	return bits, nil
}

func (s *Spec) cannotDecode(args []byte) *Error {
	return Errorf(FrameError, s.ID, "cannot decode the %d octets of arguments of %s", len(args), s.Name)
}

// malformedUTF8 names the method only where RabbitMQ does: on channel 0.
func (s *Spec) malformedUTF8() *Error {
	m := s.ID
	if m.Class() != ClassConnection {
		m = 0
	}
	return Errorf(FrameError, m, "Malformed UTF-8 in shortstr")
}

func asciiOrUTF8(b []byte) bool {
	for _, c := range b {
		if c >= utf8.RuneSelf {
			return utf8.Valid(b)
		}
	}
	return true
}

// Args reads fields one after another from a method's checked arguments. Reading past
// the end gives zero values and sets Bad; it never panics.
type Args struct {
	b   []byte
	Bad bool
}

// ReadArgs begins at the first argument of a method frame.
func ReadArgs(f Frame) Args { return Args{b: f.Args()} }

// ArgsOf begins at the first of the fields in b.
func ArgsOf(b []byte) Args { return Args{b: b} }

func (a *Args) take(n int) []byte {
	if n > len(a.b) || a.Bad {
		a.Bad = true
		return nil
	}
	v := a.b[:n]
	a.b = a.b[n:]
	return v
}

// Octet reads one octet, bits among them.
func (a *Args) Octet() byte {
	if v := a.take(1); v != nil {
		return v[0]
	}
	return 0
}

// Short reads 16 bits.
func (a *Args) Short() uint16 {
	if v := a.take(2); v != nil {
		return binary.BigEndian.Uint16(v)
	}
	return 0
}

// Long reads 32 bits.
func (a *Args) Long() uint32 {
	if v := a.take(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

// LongLong reads 64 bits.
func (a *Args) LongLong() uint64 {
	if v := a.take(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

// Str reads a short string; the bytes stay where they are.
func (a *Args) Str() []byte { return a.take(int(a.Octet())) }

// LongStr reads a long string or the inside of a table; the bytes stay where they are.
func (a *Args) LongStr() []byte {
	n := a.Long()
	if a.Bad || uint64(n) > uint64(len(a.b)) {
		a.Bad = true
		return nil
	}
	return a.take(int(n))
}

// Rest is all that has not been read.
func (a *Args) Rest() []byte { return a.b }

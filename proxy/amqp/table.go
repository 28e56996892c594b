// Field tables (spec 4.2.5.5) as RabbitMQ reads them: checked, searched, added to;
// never decoded as a whole and never built anew.

package amqp

import (
	"encoding/binary"
	"math"
	"unicode/utf8"
)

// maxTableDepth bounds tables within tables, and with it the stack that one client can make a
// check use (some 30 KiB). RabbitMQ has no such bound; LavinMQ bears 120 and ends as a whole
// over 10,000.
const maxTableDepth = 128

// CheckTable says what is wrong with the inside of a table, or "" when it is well formed.
func CheckTable(b []byte) string { return checkTable(b, 0) }

func checkTable(b []byte, depth int) string {
	if depth > maxTableDepth {
		return "tables are nested more than " + itoa(maxTableDepth) + " deep"
	}
	for len(b) > 0 {
		n := 1 + int(b[0])
		if n > len(b) {
			return "a field's name is cut off"
		}
		v, why := checkValue(b[n:], depth)
		if why != "" {
			return why
		}
		b = b[n+v:]
	}
	return ""
}

func checkArray(b []byte, depth int) string {
	if depth > maxTableDepth {
		return "arrays are nested more than " + itoa(maxTableDepth) + " deep"
	}
	for len(b) > 0 {
		v, why := checkValue(b, depth)
		if why != "" {
			return why
		}
		b = b[v:]
	}
	return ""
}

// checkValue measures one value with its type octet.
func checkValue(b []byte, depth int) (n int, why string) {
	if len(b) == 0 {
		return 0, "a field has no value"
	}
	switch b[0] {
	case 'V':
		n = 1
	case 't', 'b', 'B':
		n = 2
	case 's', 'u':
		n = 3
	case 'I', 'i', 'f':
		n = 5
	case 'D':
		n = 6
	case 'l', 'L', 'd', 'T':
		n = 9
	case 'S', 'x', 'F', 'A':
		if len(b) < 5 {
			return 0, "a field's length is cut off"
		}
		n = longLen(b[1:], 5)
		if n > len(b) {
			return 0, "a field is longer than what holds it"
		}
		switch b[0] {
		case 'F':
			why = checkTable(b[5:n], depth+1)
		case 'A':
			why = checkArray(b[5:n], depth+1)
		}
		return n, why
	default:
		return 0, "unknown field type " + itoa(int(b[0]))
	}
	if n > len(b) {
		return 0, "a field's value is cut off"
	}
	// Erlang has neither: RabbitMQ fails on them as on an unknown type.
	switch b[0] {
	case 'f':
		if binary.BigEndian.Uint32(b[1:])&0x7F800000 == 0x7F800000 {
			return 0, "a float is infinite or not a number"
		}
	case 'd':
		if binary.BigEndian.Uint64(b[1:])&0x7FF0000000000000 == 0x7FF0000000000000 {
			return 0, "a double is infinite or not a number"
		}
	}
	return n, ""
}

// longLen is how long a field of head octets and what the length in b announces is, or more
// than anything can be: an int may have 32 bits.
func longLen(b []byte, head int) int {
	n := binary.BigEndian.Uint32(b)
	if n > math.MaxInt32-64 {
		return math.MaxInt
	}
	return head + int(n)
}

// Lookup finds a field in the inside of a well-formed table: its type octet and the
// bytes of its value (for S, x, F and A without their length). ok is false when there is none.
func Lookup(table []byte, name string) (typ byte, value []byte, ok bool) {
	for len(table) > 0 {
		n := 1 + int(table[0])
		if n > len(table) {
			return 0, nil, false
		}
		v, why := checkValue(table[n:], 0)
		if why != "" {
			return 0, nil, false
		}
		if string(table[1:n]) == name {
			typ, value = table[n], table[n+1:n+v]
			switch typ {
			case 'S', 'x', 'F', 'A':
				value = value[4:]
			}
			return typ, value, true
		}
		table = table[n+v:]
	}
	return 0, nil, false
}

// LookupBool is the value of a field of type t; false when there is none.
func LookupBool(table []byte, name string) bool {
	typ, v, ok := Lookup(table, name)
	return ok && typ == 't' && v[0] != 0
}

// LookupString is the value of a field of type S; "" when there is none.
func LookupString(table []byte, name string) string {
	if typ, v, ok := Lookup(table, name); ok && typ == 'S' {
		return string(v)
	}
	return ""
}

// AppendShortStr appends a short string, cut to the 255 octets that fit and never
// within a character: peers may refuse malformed UTF-8.
func AppendShortStr(dst []byte, s string) []byte {
	if len(s) > 255 {
		n := 255
		for n > 255-utf8.UTFMax && !utf8.RuneStart(s[n]) {
			n--
		}
		s = s[:n]
	}
	dst = append(dst, byte(len(s)))
	return append(dst, s...)
}

// AppendLongStr appends a long string or, given its inside, a table.
func AppendLongStr[T string | []byte](dst []byte, s T) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(s)))
	return append(dst, s...)
}

// AppendStringField appends a field of type S to the inside of a table.
func AppendStringField(dst []byte, name, value string) []byte {
	dst = append(AppendShortStr(dst, name), 'S')
	return AppendLongStr(dst, value)
}

// AppendBoolField appends a field of type t to the inside of a table.
func AppendBoolField(dst []byte, name string, value bool) []byte {
	dst = append(AppendShortStr(dst, name), 't')
	if value {
		return append(dst, 1)
	}
	return append(dst, 0)
}

// AppendTableField appends a field of type F, given its inside, to the inside of a table.
func AppendTableField(dst []byte, name string, table []byte) []byte {
	dst = append(AppendShortStr(dst, name), 'F')
	return AppendLongStr(dst, table)
}

// Bytes for tests: methods encoded by the method table, contents, hexadecimal
// golden bytes with remarks, and frames written out for people.

package proxytest

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// Method encodes a whole method frame. The arguments are those of the method table in
// their order: integers for o, h, l and q, strings or []byte for s, S and T (T: the inside
// of the table, nil for an empty one), an integer or a bool for the octet of bits. It
// panics when they are not what the method takes: that is a mistake in the test.
func Method(channel uint16, m amqp.Method, args ...any) []byte {
	spec := m.Spec()
	if spec.Name == "" {
		panic(fmt.Sprintf("proxytest.Method: %v is not in the method table", m))
	}
	if len(args) != len(spec.Args) {
		panic(fmt.Sprintf("proxytest.Method: %s takes %d arguments (%s), got %d", spec.Name, len(spec.Args), spec.Args, len(args)))
	}
	b := amqp.BeginMethod(nil, channel, m)
	for i, a := range args {
		switch spec.Args[i] {
		case 'b', 'o', 'O':
			b = append(b, byte(number(spec, i, a)))
		case 'h':
			b = binary.BigEndian.AppendUint16(b, uint16(number(spec, i, a)))
		case 'l':
			b = binary.BigEndian.AppendUint32(b, uint32(number(spec, i, a)))
		case 'q':
			b = binary.BigEndian.AppendUint64(b, number(spec, i, a))
		case 's':
			b = amqp.AppendShortStr(b, string(octets(spec, i, a)))
		case 'S', 'T':
			b = amqp.AppendLongStr(b, octets(spec, i, a))
		}
	}
	return amqp.EndMethod(b, 0)
}

func number(spec *amqp.Spec, i int, a any) uint64 {
	switch v := a.(type) {
	case int:
		return uint64(v)
	case bool:
		if v {
			return 1
		}
		return 0
	case byte:
		return uint64(v)
	case uint16:
		return uint64(v)
	case uint32:
		return uint64(v)
	case uint64:
		return v
	}
	panic(fmt.Sprintf("proxytest.Method: argument %d of %s is %T, an integer is wanted", i, spec.Name, a))
}

func octets(spec *amqp.Spec, i int, a any) []byte {
	switch v := a.(type) {
	case nil:
		return nil
	case string:
		return []byte(v)
	case []byte:
		return v
	}
	panic(fmt.Sprintf("proxytest.Method: argument %d of %s is %T, a string or []byte is wanted", i, spec.Name, a))
}

// Header encodes a content header frame without properties that announces size.
func Header(channel uint16, size uint64) []byte {
	return HeaderWith(channel, size, 0, nil)
}

// HeaderWith encodes a content header frame with the given flags and encoded properties.
func HeaderWith(channel uint16, size uint64, flags uint16, properties []byte) []byte {
	p := binary.BigEndian.AppendUint32(nil, amqp.ClassBasic<<16)
	p = binary.BigEndian.AppendUint64(p, size)
	p = binary.BigEndian.AppendUint16(p, flags)
	return amqp.AppendFrame(nil, amqp.FrameHeader, channel, append(p, properties...))
}

// Body encodes one body frame.
func Body(channel uint16, b []byte) []byte {
	return amqp.AppendFrame(nil, amqp.FrameBody, channel, b)
}

// PublishBytes encodes a whole publish without properties; bodies are cut for frameMax (0: never).
func PublishBytes(channel uint16, exchange, key string, body []byte, frameMax uint32) []byte {
	b := Method(channel, amqp.BasicPublish, 0, exchange, key, 0)
	b = append(b, Header(channel, uint64(len(body)))...)
	return amqp.AppendBody(b, channel, body, frameMax)
}

// CloseBytes encodes a channel.close or, on channel 0, a connection.close.
func CloseBytes(channel, code uint16, text string, m amqp.Method) []byte {
	return amqp.AppendClose(nil, channel, &amqp.Error{Code: code, Text: text, Method: m})
}

// Hex reads hexadecimal golden bytes: white space between octets does not count, and a
// remark goes from # to the end of its line. It panics on anything else.
func Hex(s string) []byte {
	var digits strings.Builder
	for line := range strings.Lines(s) {
		line, _, _ = strings.Cut(line, "#")
		for _, f := range strings.Fields(line) {
			digits.WriteString(f)
		}
	}
	b, err := hex.DecodeString(digits.String())
	if err != nil {
		panic("proxytest.Hex: " + err.Error())
	}
	return b
}

// Frames cuts b into whole frames; what is left over is an error.
func Frames(b []byte) ([]amqp.Frame, error) {
	var fs []amqp.Frame
	for len(b) > 0 {
		n, _, err := amqp.Split(b, 0)
		if err != nil {
			return fs, err
		}
		if n == 0 {
			return fs, fmt.Errorf("%d octets after the last whole frame", len(b))
		}
		fs = append(fs, amqp.Frame(b[:n:n]))
		b = b[n:]
	}
	return fs, nil
}

// Describe writes a frame out for people: type, channel, method and arguments.
func Describe(f amqp.Frame) string {
	if len(f) < amqp.FrameOverhead {
		return fmt.Sprintf("no frame: % x", []byte(f))
	}
	switch f.Type() {
	case amqp.FrameMethod:
		m := f.Method()
		return fmt.Sprintf("%d: %v%s", f.Channel(), m, describeArgs(m.Spec(), f.Args()))
	case amqp.FrameHeader:
		if len(f.Payload()) >= 14 {
			return fmt.Sprintf("%d: header, body of %d, properties %s", f.Channel(), f.BodySize(), cut(f.Payload()[12:]))
		}
	case amqp.FrameBody:
		return fmt.Sprintf("%d: body %s", f.Channel(), cut(f.Payload()))
	case amqp.FrameHeartbeat:
		return fmt.Sprintf("%d: heartbeat", f.Channel())
	}
	return fmt.Sprintf("%d: frame of type %d %s", f.Channel(), f.Type(), cut(f.Payload()))
}

func describeArgs(spec *amqp.Spec, args []byte) string {
	a := amqp.ArgsOf(args)
	var out []string
	for _, kind := range []byte(spec.Args) {
		switch kind {
		case 'b':
			out = append(out, fmt.Sprintf("%#b", a.Octet()))
		case 'o', 'O':
			out = append(out, fmt.Sprint(a.Octet()))
		case 'h':
			out = append(out, fmt.Sprint(a.Short()))
		case 'l':
			out = append(out, fmt.Sprint(a.Long()))
		case 'q':
			out = append(out, fmt.Sprint(a.LongLong()))
		case 's':
			out = append(out, cut(a.Str()))
		case 'S', 'T':
			out = append(out, cut(a.LongStr()))
		}
	}
	if a.Bad {
		out = append(out, "cut off")
	}
	if rest := a.Rest(); len(rest) > 0 {
		out = append(out, fmt.Sprintf("and %d octets too many", len(rest)))
	}
	return "(" + strings.Join(out, ", ") + ")"
}

func cut(b []byte) string {
	if len(b) > 64 {
		return fmt.Sprintf("%q… (%d octets)", b[:64], len(b))
	}
	return fmt.Sprintf("%q", b)
}

// Diff says where two byte sequences part, frame by frame; "" when they are equal.
func Diff(got, want []byte) string {
	if bytes.Equal(got, want) {
		return ""
	}
	g, gerr := Frames(got)
	w, werr := Frames(want)
	if gerr != nil || werr != nil {
		return fmt.Sprintf("got  % x\nwant % x", got, want)
	}
	var out strings.Builder
	for i := range max(len(g), len(w)) {
		switch {
		case i >= len(w):
			fmt.Fprintf(&out, "frame %d: got %s, want none\n", i, Describe(g[i]))
		case i >= len(g):
			fmt.Fprintf(&out, "frame %d: got none, want %s\n", i, Describe(w[i]))
		case !bytes.Equal(g[i], w[i]):
			fmt.Fprintf(&out, "frame %d: got %s, want %s\n  got  % x\n  want % x\n", i, Describe(g[i]), Describe(w[i]), []byte(g[i]), []byte(w[i]))
		}
	}
	return out.String()
}

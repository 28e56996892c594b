// Golden bytes: every frame the proxy builds or takes apart, octet for octet, with why
// each matters. A change here is a change on the wire.

package amqp

import (
	"bytes"
	"encoding/hex"
	"math"
	"strings"
	"testing"
)

// wire reads hexadecimal octets written with blanks; 'text' in quotes is taken as it is.
func wire(t testing.TB, s string) []byte {
	t.Helper()
	var out []byte
	for i, part := range strings.Split(s, "'") {
		if i%2 == 1 {
			out = append(out, part...)
			continue
		}
		b, err := hex.DecodeString(strings.Join(strings.Fields(part), ""))
		if err != nil {
			t.Fatalf("%q is no golden text: %v", s, err)
		}
		out = append(out, b...)
	}
	return out
}

func TestGoldenBuilt(t *testing.T) {
	pre := []byte{0xEE, 0xEE} // what is in the buffer already stays
	for _, c := range []struct {
		name, why string
		build     func(dst []byte) []byte
		want      string
	}{
		{"protocol header", "the version octets are 0 0 9 1; a server answers anything else with its own header",
			func(d []byte) []byte { return append(d, ProtocolHeader[:]...) },
			"'AMQP' 00 00 09 01"},
		{"heartbeat", "eight octets on channel 0; on any other channel it is a hard error 505",
			func(d []byte) []byte { return append(d, Heartbeat...) },
			"08 0000 00000000 CE"},
		{"empty frame", "a frame of no payload is eight octets and legal for bodies",
			func(d []byte) []byte { return AppendFrame(d, FrameBody, 0x0102, nil) },
			"03 0102 00000000 CE"},
		{"channel.close-ok", "a method without arguments has a payload of four octets; it frees the channel's number",
			func(d []byte) []byte { return AppendMethod(d, 0x0102, ChannelCloseOk) },
			"01 0102 00000004 0014 0029 CE"},
		{"channel.open", "out-of-band is an empty short string, not nothing: without it the broker answers 501",
			func(d []byte) []byte { return AppendMethod(d, 1, ChannelOpen, 0) },
			"01 0001 00000005 0014 000A 00 CE"},
		{"channel.open-ok", "channel-id is a long string here, four octets, where open's is a short one",
			func(d []byte) []byte { return AppendMethod(d, 1, ChannelOpenOk, 0, 0, 0, 0) },
			"01 0001 00000008 0014 000B 00000000 CE"},
		{"connection.close", "on channel 0 it is class 10; code, text, then class and method at fault",
			func(d []byte) []byte {
				return AppendClose(d, 0, &Error{Code: NotAllowed, Text: "no", Method: BasicConsume})
			},
			"01 0000 0000000D 000A 0032 0212 02'no' 003C 0014 CE"},
		{"channel.close", "the same arguments on a channel are class 20, method 40",
			func(d []byte) []byte {
				return AppendClose(d, 7, &Error{Code: NotFound, Text: "no", Method: QueueDeclare})
			},
			"01 0007 0000000D 0014 0028 0194 02'no' 0032 000A CE"},
		{"close without a method", "class and method 0 say that no method is at fault",
			func(d []byte) []byte { return AppendClose(d, 0, &Error{Code: ConnectionForced, Text: ""}) },
			"01 0000 0000000B 000A 0032 0140 00 0000 0000 CE"},
		{"connection.tune", "channel_max 16 bits, frame_max 32, heartbeat 16, in this order",
			func(d []byte) []byte { return AppendTune(d, ConnectionTune, Tune{2047, 131072, 60}) },
			"01 0000 0000000C 000A 001E 07FF 00020000 003C CE"},
		{"connection.tune-ok", "the answer differs in the method alone",
			func(d []byte) []byte { return AppendTune(d, ConnectionTuneOk, Tune{0, 4096, 0}) },
			"01 0000 0000000C 000A 001F 0000 00001000 0000 CE"},
		{"connection.start", "version 0 9, then three long things: table, mechanisms, locales",
			func(d []byte) []byte {
				return AppendStart(d, AppendBoolField(nil, "a", true), "PLAIN AMQPLAIN", "en_US")
			},
			"01 0000 00000029 000A 000A 00 09 00000004 01'a' 74 01 0000000E'PLAIN AMQPLAIN' 00000005'en_US' CE"},
		{"connection.start-ok", "mechanism and locale are short strings, the response a long one with zero octets in it",
			func(d []byte) []byte {
				return AppendStartOk(d, AppendStringField(nil, "k", "v"), "PLAIN", []byte("\x00u\x00p"), "en_US")
			},
			"01 0000 00000024 000A 000B 00000008 01'k' 53 00000001'v' 05'PLAIN' 00000004 00'u' 00'p' 05'en_US' CE"},
		{"connection.open", "two reserved arguments follow the vhost: a short string and a bit",
			func(d []byte) []byte { return AppendOpen(d, "/") },
			"01 0000 00000008 000A 0028 01'/' 00 00 CE"},
		{"basic.qos", "prefetch_size first, always 0: anything else is a hard error 540",
			func(d []byte) []byte { return AppendQos(d, 3, 0x0102, false) },
			"01 0003 0000000B 003C 000A 00000000 0102 00 CE"},
		{"basic.qos global", "global is the lowest bit of the octet of bits",
			func(d []byte) []byte { return AppendQos(d, 3, 1, true) },
			"01 0003 0000000B 003C 000A 00000000 0001 01 CE"},
		{"body in one frame", "frame_max counts the whole frame, so 12 octets of body fit in 20",
			func(d []byte) []byte { return AppendBody(d, 1, []byte("abcdefghijkl"), 20) },
			"03 0001 0000000C'abcdefghijkl' CE"},
		{"body in two frames", "one octet more begins a second frame on the same channel",
			func(d []byte) []byte { return AppendBody(d, 1, []byte("abcdefghijklm"), 20) },
			"03 0001 0000000C'abcdefghijkl' CE 03 0001 00000001'm' CE"},
		{"body unbounded", "frame_max 0 is no bound",
			func(d []byte) []byte { return AppendBody(d, 1, []byte("abc"), 0) },
			"03 0001 00000003'abc' CE"},
		{"no body", "an empty body has no frame at all: the header with size 0 ends the content",
			func(d []byte) []byte { return AppendBody(d, 1, nil, 4096) },
			""},
		{"fields", "each field is a short name, a type octet and a value; a table in a table brings its length",
			func(d []byte) []byte {
				d = AppendStringField(d, "s", "x")
				d = AppendBoolField(d, "t", false)
				return AppendTableField(d, "f", AppendBoolField(nil, "b", true))
			},
			"01's' 53 00000001'x' 01't' 74 00 01'f' 46 00000004 01'b' 74 01"},
	} {
		got := c.build(bytes.Clone(pre))
		want := append(bytes.Clone(pre), wire(t, c.want)...)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got\n%x, want\n%x\n(%s)", c.name, got, want, c.why)
		}
	}
}

// What is built decodes by the method table, so that a broker takes it.
func TestBuiltMethodsDecode(t *testing.T) {
	long := strings.Repeat("é", 200)
	for _, b := range [][]byte{
		AppendClose(nil, 0, &Error{Code: 320, Text: long}),
		AppendClose(nil, 1, &Error{Code: 404, Text: "x" + long, Method: QueueDeclare}),
		AppendTune(nil, ConnectionTune, Tune{1, 2, 3}),
		AppendTune(nil, ConnectionTuneOk, Tune{math.MaxUint16, math.MaxUint32, math.MaxUint16}),
		AppendStart(nil, AppendStringField(nil, "product", "RabbitMQ"), "PLAIN", "en_US"),
		AppendStartOk(nil, nil, "PLAIN", nil, "en_US"),
		AppendOpen(nil, ""), AppendOpen(nil, "vhost"),
		AppendQos(nil, 1, 65535, true),
		AppendMethod(nil, 1, ChannelOpen, 0),
		AppendMethod(nil, 0, ConnectionCloseOk),
	} {
		n, _, err := Split(b, 0)
		if err != nil || n != len(b) {
			t.Fatalf("%x: Split gave %d, %v, want the whole frame of %d", b, n, err, len(b))
		}
		f := Frame(b)
		if _, err := f.Method().Spec().CheckArgs(f.Args()); err != nil {
			t.Errorf("%s: %v", f.Method(), err)
		}
	}
}

func TestGoldenParsed(t *testing.T) {
	// What RabbitMQ sends on the second use of a consumer tag.
	e := ParseClose(Frame(wire(t, "01 0000 0000003A 000A 0032 0212 2F'NOT_ALLOWED - attempt to reuse consumer tag' 20 27 't' 27 003C 0014 CE")))
	if want := (Error{NotAllowed, "NOT_ALLOWED - attempt to reuse consumer tag 't'", BasicConsume}); *e != want {
		t.Errorf("connection.close parses as %+v, want %+v", *e, want)
	}
	// Cut off: nothing is made up and nothing panics.
	e = ParseClose(Frame(wire(t, "01 0000 00000007 000A 0032 0212 09 CE")))
	if e.Code != NotAllowed || e.Text != "" || e.Method != 0 {
		t.Errorf("a cut connection.close parses as %+v, want the code alone", *e)
	}
	tune, ok := ParseTune(Frame(wire(t, "01 0000 0000000C 000A 001E 07FF 00020000 003C CE")))
	if want := (Tune{2047, 131072, 60}); !ok || tune != want {
		t.Errorf("connection.tune parses as %+v, %v, want %+v", tune, ok, want)
	}
	if tune, ok = ParseTune(Frame(wire(t, "01 0000 0000000A 000A 001E 07FF 00020000 CE"))); ok {
		t.Errorf("a cut connection.tune parses as %+v and says it is whole", tune)
	}

	a := ReadArgs(Frame(wire(t, "01 0001 00000020 003C 0014 0000 01'q' 01't' 0A 0000000E 01'x' 46 00000007 01'y' 49 00000001 CE")))
	if got := a.Short(); got != 0 {
		t.Errorf("ticket %d, want 0", got)
	}
	if q, tag, bits := string(a.Str()), string(a.Str()), a.Octet(); q != "q" || tag != "t" || bits != 0x0A || a.Bad {
		t.Errorf("basic.consume parses as queue %q, tag %q, bits %#x, bad %v", q, tag, bits, a.Bad)
	}
	args := a.LongStr()
	typ, inner, ok := Lookup(args, "x")
	if !ok || typ != 'F' {
		t.Fatalf("field x: type %q, found %v, want a table", typ, ok)
	}
	if typ, v, ok := Lookup(inner, "y"); !ok || typ != 'I' || !bytes.Equal(v, []byte{0, 0, 0, 1}) {
		t.Errorf("field y: type %q, value %x, found %v", typ, v, ok)
	}
	if len(a.Rest()) != 0 || a.Bad {
		t.Errorf("%x is left over, bad %v", a.Rest(), a.Bad)
	}
	b := ArgsOf([]byte{1, 2, 3, 4, 5, 6, 7, 8, 0xAA})
	if got := b.LongLong(); got != 0x0102030405060708 {
		t.Errorf("LongLong %#x", got)
	}
	if b.Short() != 0 || !b.Bad || b.Octet() != 0 || b.Long() != 0 || b.LongLong() != 0 || b.Str() != nil || b.LongStr() != nil {
		t.Error("reading past the end gives something")
	}
	c := ArgsOf([]byte{0xFF, 0xFF, 0xFF, 0xFF, 1})
	if c.LongStr() != nil || !c.Bad {
		t.Error("a long string of 4 GiB is found in five octets")
	}
}

func TestFrameView(t *testing.T) {
	f := Frame(wire(t, "02 0102 00000010 003C 0000 0102030405060708 1000 02 FF CE"))
	if f.Type() != FrameHeader || f.Channel() != 0x0102 || len(f.Payload()) != 16 || f.BodySize() != 0x0102030405060708 {
		t.Errorf("type %d, channel %#x, payload %d, size %#x", f.Type(), f.Channel(), len(f.Payload()), f.BodySize())
	}
	before := bytes.Clone(f)
	f.SetChannel(0xABCD)
	if f.Channel() != 0xABCD || f[0] != before[0] || !bytes.Equal(f[3:], before[3:]) {
		t.Errorf("after SetChannel: %x, want only octets 1 and 2 of %x changed", []byte(f), before)
	}
	// Frames too short for a method, as a client may send them.
	for n := range 4 {
		s := Frame(AppendFrame(nil, FrameMethod, 1, make([]byte, n)))
		if s.Method() != 0 || len(s.Args()) != 0 || s.Method().Index() != 0 {
			t.Errorf("a payload of %d octets has method %v and arguments %x", n, s.Method(), s.Args())
		}
	}
}

// A close's text is cut between characters: clients decode it as UTF-8 and would fail.
func TestShortStringIsCutBetweenCharacters(t *testing.T) {
	for _, c := range []struct {
		in   string
		want int
	}{
		{strings.Repeat("a", 254), 254},
		{strings.Repeat("a", 255), 255},
		{strings.Repeat("a", 256), 255},
		{strings.Repeat("a", 254) + "é", 254},
		{strings.Repeat("a", 253) + "é", 255},
		{strings.Repeat("a", 252) + "😀", 252},
		{strings.Repeat("a", 254) + "€", 254},
		{strings.Repeat("\x80", 300), 252}, // not text at all: still bounded
	} {
		got := AppendShortStr(nil, c.in)
		if int(got[0]) != len(got)-1 {
			t.Fatalf("%q: the length octet is %d, %d octets follow", c.in[240:], got[0], len(got)-1)
		}
		if c.in[0] == 'a' && len(got)-1 != c.want {
			t.Errorf("...%q is cut to %d octets, want %d", c.in[240:], len(got)-1, c.want)
		}
		if len(got) > 256 {
			t.Errorf("a short string of %d octets", len(got)-1)
		}
	}
}

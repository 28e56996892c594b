// Arguments, tables and content headers: what is refused is what a RabbitMQ fails on.

package amqp

import (
	"bytes"
	"encoding/binary"
	"math"
	"strings"
	"testing"
)

// emptyArgs is a set of arguments of s whose fields are all empty or zero.
func emptyArgs(s *Spec) (b []byte) {
	for _, c := range s.Args {
		switch c {
		case 'b', 'o', 'O', 's':
			b = append(b, 0)
		case 'h':
			b = append(b, 0, 0)
		case 'l', 'S', 'T':
			b = append(b, 0, 0, 0, 0)
		case 'q':
			b = append(b, make([]byte, 8)...)
		}
	}
	return b
}

// fullArgs has something in every field; bits is the octet of bits.
func fullArgs(s *Spec, bits byte) (b []byte) {
	for _, c := range s.Args {
		switch c {
		case 'b', 'o', 'O':
			b = append(b, bits)
		case 's':
			b = AppendShortStr(b, "é"+strings.Repeat("x", 253))
		case 'S':
			b = AppendLongStr(b, strings.Repeat("\xff\x00", 150))
		case 'T':
			b = AppendLongStr(b, AppendTableField(nil, "t", AppendStringField(nil, "\xff", "\xfe")))
		case 'h':
			b = append(b, 0xFF, 0xFF)
		case 'l':
			b = append(b, 0xFF, 0xFF, 0xFF, 0xFF)
		case 'q':
			b = append(b, bytes.Repeat([]byte{0xFF}, 8)...)
		}
	}
	return b
}

func TestCheckArgsEveryMethod(t *testing.T) {
	for i := range specs[1:] {
		s := &specs[i+1]
		for _, args := range [][]byte{emptyArgs(s), fullArgs(s, 0x15)} {
			bits, err := s.CheckArgs(args)
			if err != nil {
				t.Errorf("%s: %v", s.Name, err)
				continue
			}
			if want := byte(0x15); strings.ContainsAny(s.Args, "boO") && len(args) > len(emptyArgs(s)) && bits != want {
				t.Errorf("%s: bits %#x, want %#x", s.Name, bits, want)
			}
			// Cut off anywhere: refused, never read beyond.
			for n := range args {
				_, err := s.CheckArgs(args[:n:n])
				if err == nil {
					t.Fatalf("%s: accepted when cut off after %d of %d octets", s.Name, n, len(args))
				}
				if err.Code != FrameError && err.Code != SyntaxError {
					t.Fatalf("%s cut off: code %d, want 501 or 502", s.Name, err.Code)
				}
				if err.Method != s.ID {
					t.Fatalf("%s cut off: names %v", s.Name, err.Method)
				}
			}
			// RabbitMQ answers any octet left over with 501.
			for _, extra := range []int{1, 8, 100} {
				if _, err := s.CheckArgs(append(bytes.Clone(args), make([]byte, extra)...)); err == nil || err.Code != FrameError || err.Method != s.ID {
					t.Errorf("%s with %d octets left over: %v, want 501", s.Name, extra, err)
				}
			}
		}
	}
}

// RabbitMQ checks short strings of methods without content only ("for speed"): what it
// lets through must pass.
func TestCheckArgsUTF8(t *testing.T) {
	bad := []string{"\xff", "a\xc0\x80", "\xe2\x82", "\x80", "\xf8\x88\x80\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80"}
	good := []string{"", "a\x00b", "é", "\xef\xbf\xbe", "\xef\xbb\xbfa", "😀", "\r\n"}
	for i := range specs[1:] {
		s := &specs[i+1]
		for at := range s.Args {
			if s.Args[at] != 's' {
				continue
			}
			with := func(v string) []byte {
				head, tail := Spec{Args: s.Args[:at]}, Spec{Args: s.Args[at+1:]}
				return append(AppendShortStr(emptyArgs(&head), v), emptyArgs(&tail)...)
			}
			for _, v := range good {
				if _, err := s.CheckArgs(with(v)); err != nil {
					t.Errorf("%s with %q: %v", s.Name, v, err)
				}
			}
			for _, v := range bad {
				_, err := s.CheckArgs(with(v))
				switch {
				case s.Content && err != nil:
					t.Errorf("%s with %q: %v, but RabbitMQ takes it", s.Name, v, err)
				case s.Content:
				case err == nil:
					t.Errorf("%s with %q is accepted", s.Name, v)
				case err.Code != FrameError || err.Text != "FRAME_ERROR - Malformed UTF-8 in shortstr":
					t.Errorf("%s with %q: %v", s.Name, v, err)
				case (err.Method == s.ID) != (s.ID.Class() == ClassConnection):
					t.Errorf("%s with %q names method %v", s.Name, v, err.Method)
				}
			}
		}
	}
}

// values of every type that RabbitMQ reads, with what follows the type octet.
var values = []string{
	"t\x01", "t\x07", "b\xff", "B\xff", "s\xff\xff", "u\xff\xff", "I\xff\xff\xff\xff", "i\xff\xff\xff\xff",
	"l\xff\xff\xff\xff\xff\xff\xff\xff", "L\xff\xff\xff\xff\xff\xff\xff\xff", "f\x3f\x80\x00\x00", "f\xff\x7f\xff\xff",
	"d\x3f\xf0\x00\x00\x00\x00\x00\x00", "d\xff\xef\xff\xff\xff\xff\xff\xff", "D\xff\xff\xff\xff\xff",
	"T\xff\xff\xff\xff\xff\xff\xff\xff", "V", "S\x00\x00\x00\x00", "S\x00\x00\x00\x02\xff\xfe", "x\x00\x00\x00\x01\x00",
	"F\x00\x00\x00\x00", "F\x00\x00\x00\x03\x01aV", "A\x00\x00\x00\x00", "A\x00\x00\x00\x03Vt\x01", "A\x00\x00\x00\x05A\x00\x00\x00\x00",
}

func TestCheckTableTypes(t *testing.T) {
	known := map[byte]bool{}
	for _, v := range values {
		known[v[0]] = true
		for _, name := range []string{"", "a", "\xff", strings.Repeat("n", 255)} {
			table := append(AppendShortStr(nil, name), v...)
			if why := CheckTable(table); why != "" {
				t.Errorf("field %q of %q: %s", name, v, why)
			}
			inArray := append(append(AppendShortStr(nil, name), 'A'), AppendLongStr(nil, v)...)
			if why := CheckTable(inArray); why != "" {
				t.Errorf("%q in an array: %s", v, why)
			}
			for n := 1; n < len(table); n++ {
				if CheckTable(table[:n:n]) == "" {
					t.Errorf("%q is accepted when cut off after %d octets", table, n)
				}
			}
			// Twice the same name is no error to RabbitMQ.
			if why := CheckTable(append(bytes.Clone(table), table...)); why != "" {
				t.Errorf("%q twice: %s", table, why)
			}
		}
	}
	for typ := range 256 {
		b := append([]byte{1, 'a', byte(typ)}, make([]byte, 12)...)
		if !known[byte(typ)] {
			if CheckTable(b) == "" || CheckTable(append(append([]byte{1, 'a', 'A'}, 0, 0, 0, 13), b[2:]...)) == "" {
				t.Errorf("type %q is accepted", rune(typ))
			}
		}
	}
	if CheckTable(nil) != "" {
		t.Error("an empty table is refused")
	}
}

func TestCheckTableRefuses(t *testing.T) {
	nan64 := binary.BigEndian.AppendUint64([]byte("\x01ad"), math.Float64bits(math.NaN()))
	for name, b := range map[string][]byte{
		"double NaN":                 nan64,
		"double infinity":            binary.BigEndian.AppendUint64([]byte("\x01ad"), math.Float64bits(math.Inf(1))),
		"double -infinity":           binary.BigEndian.AppendUint64([]byte("\x01ad"), math.Float64bits(math.Inf(-1))),
		"float NaN":                  []byte("\x01af\x7f\xc0\x00\x00"),
		"float infinity":             []byte("\x01af\x7f\x80\x00\x00"),
		"float -infinity":            []byte("\x01af\xff\x80\x00\x00"),
		"NaN in an array":            append([]byte("\x01aA"), AppendLongStr(nil, nan64[2:])...),
		"NaN in a table":             AppendTableField(nil, "a", nan64),
		"string over the end":        []byte("\x01aS\x00\x00\x00\x02x"),
		"string of 4 GiB":            []byte("\x01aS\xff\xff\xff\xffx"),
		"table over the end":         []byte("\x01aF\x00\x00\x00\x09\x01bV"),
		"array over the end":         []byte("\x01aA\xff\xff\xff\xfcV"),
		"name over the end":          []byte("\xffa"),
		"a table's inner garbage":    []byte("\x01aF\x00\x00\x00\x03\x01bZ"),
		"a table's last octet":       []byte("\x01aF\x00\x00\x00\x01\x00"),
		"an array's inner garbage":   []byte("\x01aA\x00\x00\x00\x01Z"),
		"an array's value cut off":   []byte("\x01aA\x00\x00\x00\x02I\x00"),
		"garbage behind good fields": []byte("\x01aV\x01bt\x01\x01cZ"),
	} {
		if why := CheckTable(b); why == "" {
			t.Errorf("%s is accepted", name)
		} else if strings.IndexByte(why, 0) >= 0 || strings.IndexByte(why, 0xFF) >= 0 {
			t.Errorf("%s: the reason %q holds octets of the table", name, why)
		}
		// The same through a method and a content header.
		args := AppendLongStr([]byte{0, 0, 1, 'q', 0}, b)
		if _, err := QueueDeclare.Spec().CheckArgs(args); err == nil || err.Code != SyntaxError || err.Method != QueueDeclare {
			t.Errorf("%s in queue.declare: %v, want 502", name, err)
		}
		if _, err := CheckContentHeader(contentHeader(3, 1<<13, AppendLongStr(nil, b))); err == nil || err.Code != SyntaxError {
			t.Errorf("%s in headers: %v, want 502", name, err)
		}
	}
}

func nested(depth int, array bool) []byte {
	var b []byte
	for range depth {
		if array {
			b = append([]byte{'A'}, AppendLongStr(nil, b)...)
		} else {
			b = AppendTableField(nil, "a", b)
		}
	}
	if array {
		b = append([]byte("\x01a"), b...)
	}
	return b
}

func TestCheckTableDepth(t *testing.T) {
	for _, array := range []bool{false, true} {
		if why := CheckTable(nested(maxTableDepth, array)); why != "" {
			t.Errorf("%d deep (arrays %v): %s", maxTableDepth, array, why)
		}
		for _, n := range []int{maxTableDepth + 1, maxTableDepth + 2, 20000} {
			if CheckTable(nested(n, array)) == "" {
				t.Errorf("%d deep (arrays %v) is accepted", n, array)
			}
		}
	}
}

func TestLookup(t *testing.T) {
	tab := AppendStringField(nil, "product", "RabbitMQ")
	tab = AppendBoolField(tab, "yes", true)
	tab = AppendBoolField(tab, "no", false)
	tab = AppendTableField(tab, "caps", AppendBoolField(nil, "basic.nack", true))
	tab = append(tab, "\x05bytesx\x00\x00\x00\x01z"...)
	tab = append(tab, "\x01VV"...)
	tab = append(tab, "\x01nI\x00\x00\x00\x07"...)
	tab = AppendStringField(tab, "", "nameless")
	tab = AppendStringField(tab, "product", "the second")
	if why := CheckTable(tab); why != "" {
		t.Fatal(why)
	}
	if got := LookupString(tab, "product"); got != "RabbitMQ" {
		t.Errorf("product is %q; of two fields of a name the first counts", got)
	}
	if got := LookupString(tab, ""); got != "nameless" {
		t.Errorf("the nameless field is %q", got)
	}
	if !LookupBool(tab, "yes") || LookupBool(tab, "no") || LookupBool(tab, "product") || LookupBool(tab, "none") {
		t.Error("LookupBool errs")
	}
	if LookupString(tab, "yes") != "" || LookupString(tab, "bytes") != "" || LookupString(tab, "prod") != "" {
		t.Error("LookupString finds what is no string")
	}
	if typ, v, ok := Lookup(tab, "caps"); !ok || typ != 'F' || !LookupBool(v, "basic.nack") {
		t.Errorf("caps: %q %x %v", typ, v, ok)
	}
	if typ, v, ok := Lookup(tab, "V"); !ok || typ != 'V' || len(v) != 0 {
		t.Errorf("V: %q %x %v", typ, v, ok)
	}
	if typ, v, ok := Lookup(tab, "n"); !ok || typ != 'I' || len(v) != 4 {
		t.Errorf("n: %q %x %v", typ, v, ok)
	}
	if typ, v, ok := Lookup(tab, "bytes"); !ok || typ != 'x' || string(v) != "z" {
		t.Errorf("bytes: %q %x %v", typ, v, ok)
	}
	for n := range tab { // broken tables: nothing is found beyond the break, nothing panics
		Lookup(tab[:n:n], "none")
	}
}

func contentHeader(size uint64, flags uint16, properties []byte) []byte {
	b := binary.BigEndian.AppendUint64([]byte{0, 60, 0, 0}, size)
	return append(binary.BigEndian.AppendUint16(b, flags), properties...)
}

func TestCheckContentHeader(t *testing.T) {
	all := AppendShortStr(nil, "text/plain")                                                                    // content-type
	all = AppendShortStr(all, "utf-8")                                                                          // content-encoding
	all = AppendLongStr(all, AppendTableField(nil, "h", []byte("\x01aV")))                                      // headers
	all = append(all, 2, 9)                                                                                     // delivery-mode, priority
	all = AppendShortStr(AppendShortStr(AppendShortStr(AppendShortStr(all, "corr"), "reply"), "60000"), "\xff") // to message-id
	all = append(all, bytes.Repeat([]byte{0xFF}, 8)...)                                                         // timestamp
	all = AppendShortStr(AppendShortStr(AppendShortStr(AppendShortStr(all, "type"), "guest"), "app"), "cluster")
	const allFlags = 0xFFFC
	for _, size := range []uint64{0, 1, math.MaxUint64} {
		for _, flags := range []uint16{allFlags, allFlags | 1, allFlags | 2, allFlags | 3} { // bits 0 and 1: RabbitMQ ignores them
			if got, err := CheckContentHeader(contentHeader(size, flags, all)); err != nil || got != size {
				t.Errorf("all properties, flags %#x: %d, %v, want %d", flags, got, err, size)
			}
		}
		for _, flags := range []uint16{0, 1, 2, 3} {
			if got, err := CheckContentHeader(contentHeader(size, flags, nil)); err != nil || got != size {
				t.Errorf("no properties, flags %#x: %d, %v, want %d", flags, got, err, size)
			}
		}
	}
	whole := contentHeader(3, allFlags, all)
	for n := range whole {
		if _, err := CheckContentHeader(whole[:n:n]); err == nil || (n < 12 && err.Code != FrameError) || (n >= 12 && err.Code != InternalError && err.Code != SyntaxError) {
			t.Errorf("cut off after %d octets: %v", n, err)
		}
	}
	// Every property alone, whole and cut by one octet.
	samples := []string{"\x01a", "\x01a", "\x00\x00\x00\x03\x01aV", "\x02", "\x09", "\x01a", "\x01a", "\x011", "\x01a", "\x00\x00\x00\x00\x00\x00\x00\x01", "\x01a", "\x01a", "\x01a", "\x01a"}
	for i, p := range samples {
		flags := uint16(1) << (15 - i)
		if _, err := CheckContentHeader(contentHeader(0, flags, []byte(p))); err != nil {
			t.Errorf("property %d alone: %v", i, err)
		}
		for n := range len(p) {
			if _, err := CheckContentHeader(contentHeader(0, flags, []byte(p[:n]))); err == nil {
				t.Errorf("property %d cut off after %d octets is accepted", i, n)
			}
		}
		if _, err := CheckContentHeader(contentHeader(0, flags, []byte(p+"\x00"))); err == nil {
			t.Errorf("property %d with an octet left over is accepted", i)
		}
	}
	for name, c := range map[string]struct {
		p    []byte
		code uint16
	}{
		"left over without properties": {contentHeader(3, 0, []byte{1}), InternalError},
		"left over with flag bit 0":    {contentHeader(3, 1, []byte{0, 0}), InternalError}, // RabbitMQ knows no second flag word
		"headers of 4 GiB":             {contentHeader(3, 1<<13, []byte{0xFF, 0xFF, 0xFF, 0xFF, 0}), InternalError},
		"class 50":                     {append([]byte{0, 50}, contentHeader(3, 0, nil)[2:]...), UnexpectedFrame},
		"weight 1":                     {append([]byte{0, 60, 0, 1}, contentHeader(3, 0, nil)[4:]...), UnexpectedFrame},
		"weight 256":                   {append([]byte{0, 60, 1, 0}, contentHeader(3, 0, nil)[4:]...), UnexpectedFrame},
		"nothing":                      {nil, FrameError},
		"12 octets":                    {contentHeader(3, 0, nil)[:12], InternalError},
	} {
		_, err := CheckContentHeader(c.p)
		by := BasicPublish
		if c.code != UnexpectedFrame {
			by = 0
		}
		if err == nil || err.Code != c.code || err.Method != by {
			t.Errorf("%s: %v, want %d by %v", name, err, c.code, by)
		}
	}
}

// The hot functions make no garbage.
func TestHotFunctionsDoNotAllocate(t *testing.T) {
	publish := AppendMethod(nil, 1, BasicPublish, 0, 0, 3, 'e', 'x', 'c', 3, 'k', 'e', 'y', 0)
	head := AppendFrame(nil, FrameHeader, 1, contentHeader(100, 1<<15|1<<13|1<<12, append(append([]byte("\x0atext/plain"), AppendLongStr(nil, AppendStringField(nil, "a", "b"))...), 2)))
	body := AppendFrame(nil, FrameBody, 1, make([]byte, 100))
	stream := bytes.Join([][]byte{publish, head, body, publish, head, body}, nil)
	rd := NewReader(1024, 131072)
	src := &repeat{b: stream}
	table := AppendStringField(AppendBoolField(nil, "x", true), "consumer", "yes")
	buf := make([]byte, 0, 4096)
	spec := BasicPublish.Spec()
	for name, f := range map[string]func(){
		"CheckArgs":          func() { spec.CheckArgs(Frame(publish).Args()) },
		"CheckContentHeader": func() { CheckContentHeader(Frame(head).Payload()) },
		"Split":              func() { Split(stream, 131072) },
		"Method and Spec":    func() { _ = Frame(publish).Method().Spec().Content },
		"ReadArgs":           func() { a := ReadArgs(publish); a.Short(); a.Str(); a.Str(); a.Octet() },
		"CheckTable, Lookup": func() { CheckTable(table); Lookup(table, "consumer"); LookupBool(table, "x") },
		"Append into room":   func() { buf = AppendMethod(buf[:0], 1, BasicAck, 0, 0, 0, 0, 0, 0, 0, 1, 0) },
		"AppendBody":         func() { buf = AppendBody(buf[:0], 1, body, 64) },
		"SetChannel":         func() { Frame(body).SetChannel(7) },
		"Reader": func() {
			rd.Fill(src)
			for f, _ := rd.Next(); f != nil; f, _ = rd.Next() {
			}
		},
	} {
		f() // borrow what is borrowed
		if n := testing.AllocsPerRun(200, f); n != 0 {
			t.Errorf("%s: %v allocations a run, want 0", name, n)
		}
	}
}

// repeat is an endless stream of b.
type repeat struct {
	b  []byte
	at int
}

func (r *repeat) Read(p []byte) (n int, err error) {
	for n < len(p) {
		k := copy(p[n:], r.b[r.at:])
		n += k
		r.at = (r.at + k) % len(r.b)
	}
	return n, nil
}

// A length beyond what is there is an error, whatever it would be as a signed number.
func TestLengthsBeyondEverything(t *testing.T) {
	for _, length := range []string{"\xff\xff\xff\xff", "\xff\xff\xff\xf0", "\x80\x00\x00\x00", "\x7f\xff\xff\xff"} {
		for _, field := range []string{"\x01aS", "\x01aF", "\x01aA", "\x01ax"} {
			if why := CheckTable([]byte(field + length + "abc")); why == "" {
				t.Errorf("%q: a table with a value of length %x is accepted", field, length)
			}
			if _, _, ok := Lookup([]byte(field+length+"abc"), "a"); ok {
				t.Errorf("%q: a value of length %x is found", field, length)
			}
		}
		declare := []byte("\x00\x00\x01q\x00" + length + "abc")
		if _, err := QueueDeclare.Spec().CheckArgs(declare); err == nil {
			t.Errorf("queue.declare with a table of length %x is accepted", length)
		}
		secret := []byte(length + "abc")
		if _, err := ConnectionUpdateSecret.Spec().CheckArgs(secret); err == nil {
			t.Errorf("a long string of length %x is accepted", length)
		}
		if _, err := CheckContentHeader(contentHeader(3, 1<<13, []byte(length+"abc"))); err == nil {
			t.Errorf("headers of length %x are accepted", length)
		}
		if n, _, err := Split([]byte("\x03\x00\x01"+length+"abc\xce"), 0); n != 0 && err == nil {
			t.Errorf("a frame of length %x is cut out of 3 octets", length)
		}
	}
	if got := AppendBody(nil, 1, []byte("abc"), 1<<32-1); len(got) != FrameOverhead+3 {
		t.Errorf("a small body under the largest frame_max became %x", got)
	}
}

// Fuzz targets: nothing panics, any split gives the same frames, and the checks agree
// with a plain reading of the same rules.

package amqp

import (
	"bytes"
	"testing"
)

func FuzzReaderAnySplit(f *testing.F) {
	f.Add(append(AppendFrame(nil, FrameBody, 1, []byte("abc")), Heartbeat...), []byte{1, 2}, uint16(64), uint32(4096))
	f.Add(stream(16)[:3000], []byte{0, 255, 3}, uint16(16), uint32(131072))
	f.Add([]byte{3, 0, 1, 0, 0, 0x10, 0x01, 0}, []byte{1}, uint16(8), uint32(4096))
	f.Add([]byte("AMQP\x00\x00\x09\x01"), []byte{}, uint16(8), uint32(8192))
	f.Fuzz(func(t *testing.T, b, sizes []byte, small uint16, maxFrame uint32) {
		// MaxFrame 0 is for callers that bound it themselves: here it stays small.
		maxFrame = 1 + maxFrame%(1<<20)
		want, wantErr := whole(b, maxFrame)
		rd := NewReader(HeaderLen+1+int(small%8192), maxFrame)
		src := &chunks{b: b, sizes: sizes}
		got, err := readAll(t, rd, src)
		sameFrames(t, got, want, err, wantErr)
		if limit := max(hugeBuffer, int(maxFrame)+FrameOverhead, len(rd.home)); len(rd.buf) > limit {
			t.Fatalf("%d octets are held, want at most %d", len(rd.buf), limit)
		}
		rd.Release()

		rd = NewReader(HeaderLen+1+int(small%8192), maxFrame)
		src = &chunks{b: b, sizes: sizes}
		got, err = borrowAll(t, rd, src)
		sameFrames(t, got, want, err, wantErr)
		rd.Release()
	})
}

// plainTable reads a table the long way, as RabbitMQ's parser is written; it knows no depth.
func plainTable(b []byte, array bool, depth int) (ok, deep bool) {
	if depth > maxTableDepth {
		return false, true
	}
	sizes := map[byte]int{'V': 0, 't': 1, 'b': 1, 'B': 1, 's': 2, 'u': 2, 'I': 4, 'i': 4, 'f': 4, 'D': 5, 'l': 8, 'L': 8, 'd': 8, 'T': 8}
	for len(b) > 0 {
		if !array {
			n := int(b[0])
			if len(b) < 1+n {
				return false, false
			}
			b = b[1+n:]
			if len(b) == 0 {
				return false, false
			}
		}
		typ := b[0]
		b = b[1:]
		size, fixed := sizes[typ]
		if !fixed {
			if !bytes.ContainsRune([]byte("SxFA"), rune(typ)) || typ >= 0x80 || len(b) < 4 {
				return false, false
			}
			size = int(b[0])<<24 | int(b[1])<<16 | int(b[2])<<8 | int(b[3])
			b = b[4:]
		}
		if len(b) < size {
			return false, false
		}
		v := b[:size]
		switch {
		case typ == 'F' || typ == 'A':
			if ok, deep := plainTable(v, typ == 'A', depth+1); !ok {
				return false, deep
			}
		case typ == 'f' && v[0]&0x7F == 0x7F && v[1]&0x80 != 0, typ == 'd' && v[0]&0x7F == 0x7F && v[1]&0xF0 == 0xF0:
			return false, false
		}
		b = b[size:]
	}
	return true, false
}

func FuzzCheckTable(f *testing.F) {
	for _, v := range values {
		f.Add(append([]byte("\x01a"), v...))
	}
	f.Add(nested(maxTableDepth+1, false))
	f.Add(nested(maxTableDepth, true))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		got := CheckTable(b) == ""
		if want, _ := plainTable(b, false, 0); got != want {
			t.Fatalf("%x: accepted %v, want %v (%s)", b, got, want, CheckTable(b))
		}
		Lookup(b, "a")
		LookupBool(b, "a")
		LookupString(b, "")
		if !bytes.Equal(b, before) {
			t.Fatal("the table was changed")
		}
	})
}

func FuzzCheckArgs(f *testing.F) {
	for i := range specs[1:] {
		s := &specs[i+1]
		f.Add(uint32(s.ID), emptyArgs(s))
		f.Add(uint32(s.ID), fullArgs(s, 1))
	}
	f.Fuzz(func(t *testing.T, id uint32, b []byte) {
		s := Method(id).Spec()
		bits, err := s.CheckArgs(b)
		// What was accepted reads back field by field, to the last octet.
		a := ArgsOf(b)
		var last byte
		for _, c := range s.Args {
			switch c {
			case 'b', 'o', 'O':
				last = a.Octet()
			case 'h':
				a.Short()
			case 'l':
				a.Long()
			case 'q':
				a.LongLong()
			case 's':
				a.Str()
			case 'S', 'T':
				a.LongStr()
			}
		}
		if err == nil && (a.Bad || len(a.Rest()) != 0 || bits != last) {
			t.Fatalf("%s accepts %x, which reads with bad %v, %d left over, bits %#x for %#x", s.Name, b, a.Bad, len(a.Rest()), bits, last)
		}
		if err != nil && err.Code != FrameError && err.Code != SyntaxError {
			t.Fatalf("%s: %v", s.Name, err)
		}
		frame := Frame(AppendMethod(nil, 1, Method(id), b...))
		if !bytes.Equal(frame.Args(), b) || frame.Method() != Method(id) {
			t.Fatalf("%x does not come back from its frame", b)
		}
		ParseClose(frame)
		ParseTune(frame)
	})
}

func FuzzCheckContentHeader(f *testing.F) {
	f.Add(contentHeader(3, 0, nil))
	f.Add(contentHeader(3, 1<<13|1<<15, []byte("\x01a\x00\x00\x00\x03\x01aV")))
	f.Add([]byte{0, 60, 0, 1})
	f.Add([]byte("\x00\x3c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add(contentHeader(3, 1<<15, []byte("\x05a")))
	f.Add(contentHeader(3, 1<<12, []byte("\x01\x02")))
	f.Fuzz(func(t *testing.T, p []byte) {
		size, err := CheckContentHeader(p)
		if err != nil {
			// What is no content header blames the publish; properties that do not decode
			// are the broker's 541, which names no method, nor does a header too short.
			want := BasicPublish
			if err.Code == InternalError || len(p) < 12 {
				want = 0
			}
			if size != 0 || err.Method != want {
				t.Fatalf("%v with size %d by %v, want %v", err, size, err.Method, want)
			}
			return
		}
		if got := Frame(AppendFrame(nil, FrameHeader, 1, p)).BodySize(); got != size {
			t.Fatalf("size %d, the frame says %d", size, got)
		}
		if p[0] != 0 || p[1] != 60 || p[2] != 0 || p[3] != 0 {
			t.Fatalf("class and weight %x are accepted", p[:4])
		}
	})
}

func FuzzAppendBody(f *testing.F) {
	f.Add([]byte("abc"), uint32(4096))
	f.Fuzz(func(t *testing.T, body []byte, frameMax uint32) {
		frameMax = FrameMinSize + frameMax%(1<<16)
		frames, err := whole(AppendBody(nil, 1, body, frameMax), frameMax)
		if err != nil {
			t.Fatal(err)
		}
		var back []byte
		for _, fr := range frames {
			if len(fr) > int(frameMax) {
				t.Fatalf("a frame of %d octets under frame_max %d", len(fr), frameMax)
			}
			back = append(back, Frame(fr).Payload()...)
		}
		if !bytes.Equal(back, body) {
			t.Fatal("the body does not come back")
		}
	})
}

package amqp

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// frameByFrame is WholePublish the long way: each frame by itself.
func frameByFrame(b []byte, maxFrame uint32) (header, body, end int) {
	next := func(typ byte) Frame {
		n, _, err := Split(b[end:], maxFrame)
		f := Frame(b[end : end+n])
		if err != nil || n == 0 || f.Type() != typ || f.Channel() != Frame(b).Channel() {
			return nil
		}
		end += n
		return f
	}
	m := next(FrameMethod)
	if m == nil || m.Method() != BasicPublish {
		return 0, 0, 0
	}
	if flags, err := BasicPublish.Spec().CheckArgs(m.Args()); err != nil || flags != 0 {
		return 0, 0, 0
	}
	a := ReadArgs(m)
	a.Short()
	if exchange, key := a.Str(), a.Str(); len(exchange) == 0 && BadReplyTo(key) || !IsUTF8(exchange) {
		return 0, 0, 0
	}
	header = end
	h := next(FrameHeader)
	if h == nil || len(h.Payload()) > FrameMinSize {
		return 0, 0, 0
	}
	size, err := CheckContentHeader(h.Payload())
	if err != nil || HeaderOdd(h.Payload()) != 0 {
		return 0, 0, 0
	}
	if size == 0 {
		return header, 0, end
	}
	body = end
	if f := next(FrameBody); f == nil || uint64(len(f.Payload())) != size {
		return 0, 0, 0
	}
	return header, body, end
}

// publishOf is a publish in three frames, its properties as they are on the wire.
func publishOf(channel uint16, exchange, key string, flags byte, properties, body []byte) []byte {
	p := BeginMethod(nil, channel, BasicPublish)
	p = AppendShortStr(AppendShortStr(append(p, 0, 0), exchange), key)
	p = EndMethod(append(p, flags), 0)
	head := binary.BigEndian.AppendUint64([]byte{0, ClassBasic, 0, 0}, uint64(len(body)))
	return AppendBody(AppendFrame(p, FrameHeader, channel, append(head, properties...)), channel, body, 0)
}

// usual are publishes as libraries send them, and some that are nearly so.
func usual() map[string][]byte {
	none := []byte{0, 0}
	many := append([]byte{1<<7 | 1<<5 | 1<<4, 0}, AppendShortStr(nil, "text/plain")...)
	many = append(AppendLongStr(many, AppendStringField(nil, "CC", "not an array")), 2)
	all := map[string][]byte{
		"plain":             publishOf(1, "", "queue", 0, none, []byte("body")),
		"empty body":        publishOf(7, "amq.topic", "a.b.c", 0, none, nil),
		"empty names":       publishOf(65535, "", "", 0, none, []byte{FrameEnd}),
		"longest names":     publishOf(1, string(bytes.Repeat([]byte("é"), 127)), string(bytes.Repeat([]byte{255}, 255)), 0, none, []byte("b")),
		"properties":        publishOf(1, "x", "k", 0, many, []byte("body")),
		"unused flags":      publishOf(1, "x", "k", 0, []byte{0, 3}, []byte("body")),
		"mandatory":         publishOf(1, "x", "k", 1, none, []byte("body")),
		"reply-to":          publishOf(1, "", replyTo+"g1h.key", 0, none, []byte("body")),
		"reply-to, x":       publishOf(1, "x", replyTo+"g1h.key", 0, none, []byte("body")),
		"properties cut":    publishOf(1, "x", "k", 0, []byte{128, 0, 4, 'a'}, []byte("body")),
		"properties beyond": publishOf(1, "x", "k", 0, []byte{0, 0, 1}, []byte("body")),
		"large header":      publishOf(1, "x", "k", 0, append([]byte{1 << 5, 0}, AppendLongStr(nil, AppendStringField(nil, "h", string(make([]byte, 5000))))...), []byte("body")),
	}
	all["odd reply_to"] = publishOf(1, "x", "k", 0, []byte{2, 0, 1, 255}, []byte("body"))
	all["odd exchange"] = publishOf(1, "\xff", "k", 0, none, []byte("body"))
	all["two bodies"] = AppendFrame(publishOf(1, "", "q", 0, none, []byte("one")), FrameBody, 1, []byte("two"))
	all["one of two channels"] = bytes.Clone(all["plain"])
	Frame(all["one of two channels"][30:]).SetChannel(2)
	return all
}

// What it takes is what the frames' own checks take, wherever it is cut and whatever octet
// of it is another.
func TestWholePublishAgreesWithItsFrames(t *testing.T) {
	taken := 0
	for name, p := range usual() {
		same := func(what string, b []byte, maxFrame uint32) {
			h, body, end := WholePublish(b, maxFrame)
			wh, wb, we := frameByFrame(b, maxFrame)
			if end != we || end != 0 && (h != wh || body != wb) {
				t.Errorf("%s, %s: header at %d, body at %d, end %d; frame by frame %d, %d, %d", name, what, h, body, end, wh, wb, we)
			}
			if end != 0 {
				taken++
			}
		}
		same("whole", p, 0)
		for cut := range p {
			same("cut", p[:cut:cut], 0)
		}
		for _, most := range []uint32{1, 8, 13, 14, 15, 4096, 5021} {
			same("bounded", append(bytes.Clone(p), p...), most)
		}
		for i := range min(len(p), 400) {
			for _, v := range []byte{0, 1, 2, 3, 60, 206, p[i] + 1, p[i] - 1, p[i] ^ 128} {
				b := bytes.Clone(p)
				b[i] = v
				same("changed", append(b, p...), 131072)
			}
		}
	}
	if taken < 1000 {
		t.Errorf("%d publishes were taken: the test looks at little", taken)
	}
}

func FuzzWholePublish(f *testing.F) {
	for _, p := range usual() {
		f.Add(p, uint32(0))
		f.Add(p, uint32(4096))
	}
	f.Fuzz(func(t *testing.T, b []byte, maxFrame uint32) {
		h, body, end := WholePublish(b, maxFrame)
		wh, wb, we := frameByFrame(b, maxFrame)
		if end != we || end != 0 && (h != wh || body != wb) {
			t.Fatalf("header at %d, body at %d, end %d; frame by frame %d, %d, %d", h, body, end, wh, wb, we)
		}
	})
}

func BenchmarkWholePublish(b *testing.B) {
	for _, name := range []string{"plain", "properties"} {
		p := usual()[name]
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, _, end := WholePublish(p, 131072); end == 0 {
					b.Fatal("not taken")
				}
			}
		})
	}
}

package amqp

import (
	"bytes"
	"testing"
)

// published is n whole publishes of 100 octets, as a busy client sends them.
func published(n int) []byte {
	var b []byte
	for range n {
		start := len(b)
		b = BeginMethod(b, 1, BasicPublish)
		b = append(b, 0, 0)
		b = AppendShortStr(b, "")
		b = AppendShortStr(b, "bench")
		b = EndMethod(append(b, 0), start)
		b = AppendFrame(b, FrameHeader, 1, append([]byte{0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 100}, 0, 0))
		b = AppendBody(b, 1, make([]byte, 100), 131072)
	}
	return b
}

// again gives the same bytes over and over.
type again struct {
	b []byte
	r bytes.Reader
}

func (a *again) Read(p []byte) (int, error) {
	if a.r.Len() == 0 {
		a.r.Reset(a.b)
	}
	return a.r.Read(p)
}

// readMessage takes the three frames of one publish and checks what a proxy checks.
func readMessage(tb testing.TB, rd *Reader, src *again) {
	for i := 0; i < 3; {
		f, err := rd.Next()
		if err != nil {
			tb.Fatal(err)
		}
		if f == nil {
			if _, err := rd.Fill(src); err != nil {
				tb.Fatal(err)
			}
			continue
		}
		switch f.Type() {
		case FrameMethod:
			if _, err := f.Method().Spec().CheckArgs(f.Args()); err != nil {
				tb.Fatal(err)
			}
		case FrameHeader:
			if n, err := CheckContentHeader(f.Payload()); n != 100 || err != nil {
				tb.Fatalf("got %d, %v", n, err)
			}
		}
		f.SetChannel(2)
		i++
	}
}

func TestReadingAPublishAllocatesNothing(t *testing.T) {
	rd, src := NewReader(4096, 131072), &again{b: published(100)}
	readMessage(t, rd, src)
	if n := testing.AllocsPerRun(1000, func() { readMessage(t, rd, src) }); n != 0 {
		t.Fatalf("a publish costs %v allocations, want none", n)
	}
}

func BenchmarkReadPublish(b *testing.B) {
	rd, src := NewReader(4096, 131072), &again{b: published(400)}
	b.SetBytes(int64(len(published(1))))
	b.ReportAllocs()
	for b.Loop() {
		readMessage(b, rd, src)
	}
}

func BenchmarkSplit(b *testing.B) {
	p := published(1)
	for b.Loop() {
		if n, _, err := Split(p, 131072); n == 0 || err != nil {
			b.Fatal(n, err)
		}
	}
}

func BenchmarkCheckArgsPublish(b *testing.B) {
	f := Frame(published(1))
	n, _, _ := Split(f, 0)
	f = f[:n]
	spec := BasicPublish.Spec()
	for b.Loop() {
		if _, err := spec.CheckArgs(f.Args()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendAck(b *testing.B) {
	buf := make([]byte, 0, 64)
	for b.Loop() {
		buf = AppendMethod(buf[:0], 1, BasicAck, 0, 0, 0, 0, 0, 0, 0, 1, 0)
	}
}

// The chunk reader: any split of a stream gives the same frames, no frame changes while
// it is valid, and what is held is bounded by the announced sizes.

package amqp

import (
	"bytes"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"testing"
)

// chunks gives a stream in pieces of the given sizes, over and over; a size of 0 is 1.
type chunks struct {
	b     []byte
	sizes []byte
	i     int
	asked int // the most room that was offered
}

func (c *chunks) Read(p []byte) (int, error) {
	c.asked = max(c.asked, len(p))
	if len(p) == 0 {
		return 0, errors.New("Read into no room: the reader would spin")
	}
	if len(c.b) == 0 {
		return 0, io.EOF
	}
	n := len(p)
	if len(c.sizes) > 0 {
		s := int(c.sizes[c.i%len(c.sizes)])
		c.i++
		n = min(n, max(1, s*s)) // up to 65025, so that big buffers are borrowed
	}
	n = copy(p[:n], c.b)
	c.b = c.b[n:]
	return n, nil
}

// whole cuts a stream by Split alone.
func whole(b []byte, maxFrame uint32) (frames [][]byte, err error) {
	for {
		n, need, err := Split(b, maxFrame)
		if err != nil || n == 0 {
			return frames, err
		}
		if need != n {
			return frames, errors.New("need is not the length of a whole frame")
		}
		frames = append(frames, b[:n])
		b = b[n:]
	}
}

// readAll reads a stream through a Reader, holding every frame until the Fill after it.
func readAll(t testing.TB, rd *Reader, src io.Reader) (frames [][]byte, err error) {
	return readAllBy(t, rd, func() error { _, err := rd.Fill(src); return err })
}

// borrowAll is readAll for a reader that borrows for each read, and rests before every other.
func borrowAll(t testing.TB, rd *Reader, src io.Reader) (frames [][]byte, err error) {
	waits := false
	return readAllBy(t, rd, func() error {
		if waits = !waits; waits {
			rd.Borrow()
			left := bytes.Clone(rd.Buffered())
			if rd.Rest(); !bytes.Equal(rd.Buffered(), left) {
				t.Fatalf("%x is left of %x after a rest", rd.Buffered(), left)
			}
			if len(left) == 0 && rd.buf != nil || len(left) <= smallBuffer && rd.big != nil || len(left) <= restBuffer && rd.small != nil {
				t.Fatalf("a reader at rest keeps %d octets for the %d that are left", len(rd.buf), len(left))
			}
		}
		n, err := src.Read(rd.Borrow())
		rd.Took(n)
		return err
	})
}

func readAllBy(t testing.TB, rd *Reader, fill func() error) (frames [][]byte, err error) {
	type held struct {
		f    Frame
		copy []byte
	}
	var valid []held
	for {
		for _, h := range valid { // a frame is valid until the next Fill, whatever Next did since
			if !bytes.Equal(h.f, h.copy) {
				t.Fatalf("a frame changed while it was valid: %x, was %x", []byte(h.f), h.copy)
			}
		}
		valid = valid[:0]
		end := fill()
		mark := rd.Mark()
		for {
			f, err := rd.Next()
			if err != nil {
				return frames, err
			}
			if f == nil {
				break
			}
			if cap(f) != len(f) {
				t.Fatal("a frame has room behind it: an append would overwrite the next one")
			}
			c := bytes.Clone(f)
			frames = append(frames, c)
			valid = append(valid, held{f, c})
		}
		if got := rd.Between(mark, rd.Mark()); !bytes.Equal(got, bytes.Join(clones(valid, func(h held) []byte { return h.copy }), nil)) {
			t.Fatalf("between the marks are %d octets, not those of the %d frames consumed", len(got), len(valid))
		}
		if end == io.EOF {
			return frames, nil
		}
		if end != nil {
			t.Fatal(end)
		}
	}
}

func clones[T any](in []T, f func(T) []byte) (out [][]byte) {
	for _, v := range in {
		out = append(out, f(v))
	}
	return out
}

func sameFrames(t testing.TB, got, want [][]byte, gotErr, wantErr error) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d frames, want %d", len(got), len(want))
	}
	for i := range got {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("frame %d is %x, want %x", i, got[i], want[i])
		}
	}
	if (gotErr == nil) != (wantErr == nil) || (gotErr != nil && gotErr.Error() != wantErr.Error()) {
		t.Fatalf("ends with %v, want %v", gotErr, wantErr)
	}
}

func TestSplit(t *testing.T) {
	f := AppendFrame(nil, FrameBody, 0x0102, []byte("abc"))
	for n := range f {
		got, need, err := Split(f[:n:n], 4096)
		want := HeaderLen
		if n >= HeaderLen {
			want = len(f)
		}
		if got != 0 || need != want || err != nil {
			t.Errorf("%d octets: %d, %d, %v, want 0, %d", n, got, need, err, want)
		}
	}
	if n, need, err := Split(append(bytes.Clone(f), "more"...), 4096); n != len(f) || need != len(f) || err != nil {
		t.Errorf("a whole frame and more: %d, %d, %v", n, need, err)
	}
	for size, ok := range map[uint32]bool{4095: true, 4096: true, 4097: false, 1 << 31: false, 1<<32 - 1: false} {
		head := []byte{3, 0, 1, byte(size >> 24), byte(size >> 16), byte(size >> 8), byte(size)}
		_, _, err := Split(head, 4096)
		if (err == nil) != ok {
			t.Errorf("payload of %d under frame_max 4096, from its header alone: %v", size, err)
		}
		var e *Error
		if err != nil && (!errors.As(err, &e) || e.Code != FrameError || e.Method != 0) {
			t.Errorf("payload of %d: %v, want 501 by no method", size, err)
		}
		if n, need, err := Split(head, 0); n != 0 || need != int(min(uint64(size)+FrameOverhead, math.MaxInt)) || err != nil {
			t.Errorf("payload of %d without a bound: %d, %d, %v", size, n, need, err)
		}
	}
	f[len(f)-1] = 0xCD
	var e *Error
	if _, _, err := Split(f, 0); !errors.As(err, &e) || e.Code != FrameError {
		t.Errorf("frame end 0xCD: %v, want 501", err)
	}
}

// stream has frames of all sizes around the reader's buffers.
func stream(small int) []byte {
	var b []byte
	for i, n := range []int{0, 1, 3, small - 9, small - 8, small - 7, small, 2 * small, 0, 0, 5000,
		bigBuffer - 9, bigBuffer - 8, bigBuffer - 7, bigBuffer, 1, 2, 100000, 3, 131072, 0, 7} {
		p := make([]byte, max(0, n))
		for j := range p {
			p[j] = byte(i + j)
		}
		b = AppendFrame(b, FrameBody, uint16(i), p)
	}
	for i := range 300 { // and a run of small ones, over which borrowed buffers go back
		b = AppendFrame(b, FrameMethod, uint16(i), []byte{0, 60, 0, 80, byte(i)})
	}
	return b
}

func TestReaderAnySplit(t *testing.T) {
	for _, small := range []int{HeaderLen + 1, 16, 64, 512, 1024, 4096, bigBuffer} {
		b := stream(small)
		want, _ := whole(b, 131072)
		rng := rand.New(rand.NewPCG(1, uint64(small)))
		for range 40 {
			sizes := make([]byte, 1+rng.IntN(40))
			for i := range sizes {
				sizes[i] = byte(rng.IntN(1 << (1 + rng.IntN(8))))
			}
			if small == HeaderLen+1 {
				sizes = append(sizes, 200)
			}
			rd := NewReader(small, 131072)
			got, err := readAll(t, rd, &chunks{b: b, sizes: sizes})
			sameFrames(t, got, want, err, nil)
			if len(rd.Buffered()) != 0 {
				t.Fatalf("%d octets are left", len(rd.Buffered()))
			}
			rd.Release()
		}
		rd := NewReader(small, 131072) // all that the buffer takes at once
		got, err := readAll(t, rd, &chunks{b: b})
		sameFrames(t, got, want, err, nil)
	}
}

func TestReaderOneOctetAtATime(t *testing.T) {
	b := stream(32)[:20000]
	want, _ := whole(b, 131072)
	got, err := readAll(t, NewReader(32, 131072), &chunks{b: b, sizes: []byte{1}})
	sameFrames(t, got, want, err, nil)
}

// The size is judged when the seven octets of the header are there: nothing is made
// for it and nothing waited for.
func TestReaderRefusesBeforeItWaits(t *testing.T) {
	rd := NewReader(64, 4096)
	src := &chunks{b: append(AppendFrame(nil, FrameHeartbeat, 0, nil), 3, 0, 1, 0, 0, 0x10, 0x01)}
	rd.Fill(src)
	if f, err := rd.Next(); err != nil || f.Type() != FrameHeartbeat {
		t.Fatalf("the frame before: %v, %v", f, err)
	}
	var e *Error
	if f, err := rd.Next(); f != nil || !errors.As(err, &e) || e.Code != FrameError {
		t.Fatalf("a payload of 4097: %v, %v, want 501", f, err)
	}
	if f, err := rd.Next(); f != nil || !errors.As(err, &e) {
		t.Errorf("asked again: %v, %v, want the error again", f, err)
	}
	if len(rd.buf) != 64 {
		t.Errorf("the buffer has %d octets, want 64: nothing is made for a frame that is refused", len(rd.buf))
	}
}

// What a reader holds is bounded by its buffers and one frame of the announced maximum,
// and an announced frame costs no more than itself.
func TestReaderMemoryIsBounded(t *testing.T) {
	const maxFrame = 1 << 20
	rd := NewReader(512, maxFrame)
	src := &chunks{b: bytes.Repeat(AppendFrame(nil, FrameBody, 1, make([]byte, maxFrame)), 4)}
	most := 0
	for {
		_, err := rd.Fill(src)
		for f, _ := rd.Next(); f != nil; f, _ = rd.Next() {
		}
		most = max(most, len(rd.buf))
		if err != nil {
			break
		}
	}
	if limit := maxFrame + FrameOverhead; most > limit {
		t.Errorf("the buffer grew to %d octets, want at most %d", most, limit)
	}
	// Small traffic again: the large buffer goes, and at last the borrowed one too.
	src.b = bytes.Repeat(Heartbeat, 100)
	src.sizes = []byte{2} // four octets a read
	for range 2*idleReads + 4 {
		rd.Fill(src)
		for f, _ := rd.Next(); f != nil; f, _ = rd.Next() {
		}
	}
	if len(rd.buf) != 512 || rd.big != nil {
		t.Errorf("after small reads the buffer has %d octets, borrowed %v, want the own 512", len(rd.buf), rd.big != nil)
	}
}

// An idle reader keeps nothing but its small buffer; a busy one borrows, and Release
// gives back what was borrowed, once.
func TestReaderBorrowsAndReturns(t *testing.T) {
	rd := NewReader(64, 131072)
	src := &chunks{b: bytes.Repeat(Heartbeat, 1000)}
	next := func() {
		rd.Fill(src)
		for f, _ := rd.Next(); f != nil; f, _ = rd.Next() {
		}
	}
	next()
	if rd.big != nil || src.asked != 64 {
		t.Fatalf("the first read offers %d octets, want the 64 of its own", src.asked)
	}
	next()
	if rd.big == nil || src.asked != bigBuffer {
		t.Errorf("after a full read %d octets are offered, want a borrowed buffer of %d", src.asked, bigBuffer)
	}
	borrowed := rd.big
	rd.Release()
	if rd.big != nil || rd.buf != nil || rd.home != nil {
		t.Error("Release keeps something")
	}
	rd.Release() // twice must not put a buffer twice
	a := bigBuffers.Get().(*[bigBuffer]byte)
	b := bigBuffers.Get().(*[bigBuffer]byte)
	if a == b {
		t.Fatal("a buffer is in the pool twice: two readers would share it")
	}
	_ = borrowed
	bigBuffers.Put(a)
	bigBuffers.Put(b)
}

// Who reads little borrows little: many may hold theirs while each waits for a channel.
func TestReaderBorrowsByWhatCame(t *testing.T) {
	var rd Reader
	for _, x := range []struct {
		n, want int // octets that come, and the room there is for the read after them
		rest    bool
	}{
		{0, smallBuffer, true},
		{800, smallBuffer, true},
		{smallBuffer - 8, bigBuffer, true},
		{bigBuffer, bigBuffer, true},
		{8, bigBuffer, false}, // it has a large one
		{8, smallBuffer, true},
	} {
		rd.Took(copy(rd.Borrow(), bytes.Repeat(Heartbeat, x.n/len(Heartbeat))))
		rd.Skip(len(rd.Buffered()))
		if x.rest {
			rd.Rest()
		}
		if got := len(rd.Borrow()); got != x.want {
			t.Errorf("after a read of %d octets there is room for %d, want %d", x.n, got, x.want)
		}
	}
}

// Two readers that borrow and return in turn never see each other's octets.
func TestReadersDoNotShareBuffers(t *testing.T) {
	mk := func(fill byte) []byte {
		var b []byte
		for i := range 400 {
			b = AppendFrame(b, FrameBody, uint16(i), bytes.Repeat([]byte{fill}, (i*37)%3000))
			for range i % 40 {
				b = append(b, Heartbeat...)
			}
		}
		return b
	}
	a, b := mk(0xAA), mk(0xBB)
	wantA, _ := whole(a, 0)
	wantB, _ := whole(b, 0)
	ra, rb := NewReader(128, 131072), NewReader(128, 131072)
	sa, sb := &chunks{b: a, sizes: []byte{255, 100, 1, 2, 3, 3, 3, 2, 2, 1, 1, 1, 3, 3, 2, 1, 1, 1, 2, 3, 1}}, &chunks{b: b, sizes: []byte{3, 1, 2, 255, 50, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}}
	var gotA, gotB [][]byte
	step := func(rd *Reader, src *chunks, got *[][]byte) bool {
		_, err := rd.Fill(src)
		for f, _ := rd.Next(); f != nil; f, _ = rd.Next() {
			*got = append(*got, bytes.Clone(f))
		}
		return err == nil
	}
	for {
		x, y := step(ra, sa, &gotA), step(rb, sb, &gotB)
		if !x && !y {
			break
		}
	}
	sameFrames(t, gotA, wantA, nil, nil)
	sameFrames(t, gotB, wantB, nil, nil)
}

// Whoever looks at Buffered and skips himself gets the same, when he says what he awaits.
func TestReaderBySkip(t *testing.T) {
	b := stream(64)
	want, _ := whole(b, 131072)
	rd := NewReader(64, 131072)
	src := &chunks{b: b, sizes: []byte{9, 3, 1, 30, 200}}
	var got [][]byte
	for {
		_, err := rd.Fill(src)
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		buf, at := rd.Buffered(), 0
		for {
			n, need, e := Split(buf[at:], rd.MaxFrame)
			if e != nil {
				t.Fatal(e)
			}
			if n == 0 {
				rd.Expect(need)
				break
			}
			got = append(got, bytes.Clone(buf[at:at+n]))
			at += n
		}
		rd.Skip(at)
		if err != nil {
			break
		}
	}
	sameFrames(t, got, want, nil, nil)
}

// Whoever consumes nothing gets more room: a read into none would spin for ever.
func TestReaderAlwaysHasRoom(t *testing.T) {
	for _, small := range []int{HeaderLen + 1, 512, bigBuffer, 2 * bigBuffer} {
		b := stream(512)
		rd := NewReader(small, 131072)
		src := &chunks{b: b}
		for len(src.b) > 0 {
			if _, err := rd.Fill(src); err != nil {
				t.Fatalf("small buffer %d, %d octets held: %v", small, len(rd.Buffered()), err)
			}
		}
		if !bytes.Equal(rd.Buffered(), b) {
			t.Errorf("small buffer %d: %d octets are held, not the %d of the stream", small, len(rd.Buffered()), len(b))
		}
		got, err := readAll(t, rd, io.MultiReader())
		want, _ := whole(b, 131072)
		sameFrames(t, got, want, err, nil)
	}
}

func TestReaderPassesReadErrorsOn(t *testing.T) {
	rd := NewReader(64, 0)
	n, err := rd.Fill(io.MultiReader())
	if n != 0 || err != io.EOF {
		t.Errorf("Fill at the end: %d, %v", n, err)
	}
	// Octets that come together with an error count.
	rd = NewReader(64, 0)
	n, err = rd.Fill(dataAndEOF{})
	if n != len(Heartbeat) || err != io.EOF {
		t.Errorf("Fill: %d, %v", n, err)
	}
	if f, err := rd.Next(); err != nil || f.Type() != FrameHeartbeat {
		t.Errorf("the frame that came with EOF: %v, %v", f, err)
	}
}

type dataAndEOF struct{}

func (dataAndEOF) Read(p []byte) (int, error) { return copy(p, Heartbeat), io.EOF }

func TestAppendBodyAtEveryBoundary(t *testing.T) {
	const frameMax = FrameMinSize
	for _, n := range []int{0, 1, frameMax - 9, frameMax - 8, frameMax - 7, frameMax, 2*frameMax - 17, 2*frameMax - 16, 2*frameMax - 15, 10*frameMax + 3} {
		body := make([]byte, n)
		for i := range body {
			body[i] = byte(i * 7)
		}
		frames, err := whole(AppendBody(nil, 9, body, frameMax), frameMax)
		if err != nil {
			t.Fatal(err)
		}
		var back []byte
		for i, f := range frames {
			if len(f) > frameMax || Frame(f).Channel() != 9 || Frame(f).Type() != FrameBody || len(Frame(f).Payload()) == 0 {
				t.Fatalf("body of %d, frame %d: %d octets, channel %d, type %d", n, i, len(f), Frame(f).Channel(), Frame(f).Type())
			}
			back = append(back, Frame(f).Payload()...)
		}
		if !bytes.Equal(back, body) {
			t.Errorf("a body of %d comes back as %d octets", n, len(back))
		}
		if want := (n + frameMax - 9) / (frameMax - 8); len(frames) != want {
			t.Errorf("a body of %d is %d frames, want %d", n, len(frames), want)
		}
	}
}

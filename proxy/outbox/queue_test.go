package outbox

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"testing/synctest"
)

// bytes is what the queue holds.
func (q *queue) bytes() (p []byte) {
	for b := q.head; b != nil; b = b.next {
		p = append(p, b.p[b.r:]...)
	}
	return p
}

// check holds the queue's figures against its blocks.
func (q *queue) check(t *testing.T) {
	t.Helper()
	n, held, tail := 0, 0, (*block)(nil)
	for b := q.head; b != nil; b = b.next {
		n += len(b.p) - b.r
		held += cap(b.p)
		tail = b
	}
	if n != q.n || held != q.held || tail != q.tail {
		t.Fatalf("%d octets in %d, the queue says %d in %d; its tail is the last block: %v", n, held, q.n, q.held, tail == q.tail)
	}
}

// numbered are n octets, none of which can be taken for a neighbour.
func numbered(from, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		at := uint32(from + i)
		p[i] = byte(at*2654435761>>24) ^ byte(at)
	}
	return p
}

// How bytes come to lie in blocks: what is small in a small one, what begins small and grows in a big
// one, and never more room than a block beyond what is held.
func TestBlocks(t *testing.T) {
	for name, x := range map[string]struct {
		appends []int
		blocks  []int // what each holds
		rooms   []int
	}{
		"an answer":             {[]int{21}, []int{21}, []int{smallBlock}},
		"a few":                 {[]int{1000, 1000, 48}, []int{2048}, []int{smallBlock}},
		"one more":              {[]int{1000, 1000, 49}, []int{2049}, []int{bigBlock}},
		"begins small":          {[]int{100, 40_000}, []int{bigBlock, bigBlock, 40_100 - 2*bigBlock}, []int{bigBlock, bigBlock, bigBlock}},
		"a read":                {[]int{64 << 10}, []int{bigBlock, bigBlock, bigBlock, bigBlock}, []int{bigBlock, bigBlock, bigBlock, bigBlock}},
		"a read and an answer":  {[]int{64 << 10, 12}, []int{bigBlock, bigBlock, bigBlock, bigBlock, 12}, []int{bigBlock, bigBlock, bigBlock, bigBlock, bigBlock}},
		"nothing":               {[]int{0}, nil, nil},
		"full and one octet":    {[]int{bigBlock, 1}, []int{bigBlock, 1}, []int{bigBlock, bigBlock}},
		"a small one, full":     {[]int{smallBlock, 1}, []int{smallBlock + 1}, []int{bigBlock}},
		"between small and big": {[]int{smallBlock + 1}, []int{smallBlock + 1}, []int{bigBlock}},
	} {
		t.Run(name, func(t *testing.T) {
			var q queue
			at := 0
			for _, n := range x.appends {
				q.append(numbered(at, n))
				q.check(t)
				at += n
			}
			var blocks, rooms []int
			for b := q.head; b != nil; b = b.next {
				blocks, rooms = append(blocks, len(b.p)), append(rooms, cap(b.p))
			}
			if !slices.Equal(blocks, x.blocks) || !slices.Equal(rooms, x.rooms) {
				t.Errorf("blocks of %d hold %d, want %d with %d", rooms, blocks, x.rooms, x.blocks)
			}
			if !bytes.Equal(q.bytes(), numbered(0, at)) {
				t.Error("other octets than were queued")
			}
			q.free()
			q.check(t)
		})
	}
}

// What is appended in place lies in one piece, also where the block at the end has less room, and where
// more comes than was asked for.
func TestInPlace(t *testing.T) {
	var q queue
	at := 0
	for _, n := range []int{bigBlock - 10, 300, 7, bigBlock - 100, 300, 40_000, 5} {
		p := q.room(n)
		if cap(p.p)-len(p.p) < n {
			t.Fatalf("room for %d, %d were asked for", cap(p.p)-len(p.p), n)
		}
		q.set(append(p.p, numbered(at, n)...))
		q.check(t)
		at += n
	}
	q.set(append(q.room(1).p, numbered(at, 3*bigBlock)...))
	q.check(t)
	if at += 3 * bigBlock; !bytes.Equal(q.bytes(), numbered(0, at)) {
		t.Error("other octets than were queued")
	}
}

// cutting takes what is written in pieces of all sizes, and fails after so many octets.
type cutting struct {
	got  []byte
	fail int
}

func (w *cutting) Write(p []byte) (int, error) {
	if len(w.got)+len(p) > w.fail {
		n := max(0, w.fail-len(w.got))
		w.got = append(w.got, p[:n]...)
		return n, io.ErrShortWrite
	}
	w.got = append(w.got, p...)
	return len(p), nil
}

// A write that fails has written what it says, and nothing is held after it.
func TestWriteFails(t *testing.T) {
	for _, fail := range []int{0, 1, bigBlock - 1, bigBlock, bigBlock + 1, 5 * bigBlock, 100_000} {
		w := &cutting{fail: fail}
		o := newOwned()
		o.out.w = w
		want := numbered(0, 100_000)
		o.locked(func() { o.out.AppendLocked(want) })
		o.out.Flush()
		if fail = min(fail, len(want)); !bytes.Equal(w.got, want[:fail]) || o.out.Written.Load() != int64(fail) {
			t.Errorf("%d octets were written of %d, %d are told", len(w.got), fail, o.out.Written.Load())
		}
		if failed := errors.Is(o.out.ErrLocked(), io.ErrShortWrite); failed != (fail < len(want)) {
			t.Errorf("after %d octets: failed %v", fail, failed)
		}
		o.locked(func() {
			if o.out.MemLocked() != 0 || o.out.LenLocked() != 0 {
				t.Errorf("%d octets are held, in %d", o.out.LenLocked(), o.out.MemLocked())
			}
		})
	}
}

// All that waits leaves in as few writes as there may be blocks in one, over a socket that takes them.
func TestBlocksLeaveTogether(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	far, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	near, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	o := newOwned()
	o.out.w = near
	want := numbered(0, 3<<20)
	go func() {
		defer near.Close()
		for at := 0; at < len(want); at += 100_000 {
			o.locked(func() { o.out.AppendLocked(want[at:min(len(want), at+100_000)]) })
			if at%300_000 == 0 {
				o.out.Flush()
			}
		}
		o.out.FlushAll()
	}()
	got, err := io.ReadAll(far)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d octets came of %d, equal: %v, %v", len(got), len(want), bytes.Equal(got, want), err)
	}
}

// Of a queue that is dropped while a slow peer is written to stays what is being written, and the rest of
// what that has begun.
func TestDroppedQueueHoldsLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const each = 100_000
		o := newOwned()
		o.s.set(true, nil)
		o.kick("x")
		synctest.Wait()
		for i := range 80 {
			o.locked(func() { o.out.AppendLocked(numbered(i*each, each)) })
		}
		o.s.step()
		synctest.Wait() // the first step is being written
		o.locked(func() {
			if n, held := o.out.LenLocked(), o.out.MemLocked(); n != 80*each || held < n || held > n+2*bigBlock {
				t.Errorf("%d octets wait, in %d", n, held)
			}
			o.out.DropLocked()
			if held := o.out.MemLocked(); held > writeStep+each+2*bigBlock {
				t.Errorf("%d octets are held of a queue that was dropped", held)
			}
			o.out.AppendLocked([]byte("close"))
		})
		o.s.set(false, nil)
		synctest.Wait()
		o.locked(func() {
			if held := o.out.MemLocked(); held != 0 || !o.out.IdleLocked() {
				t.Errorf("%d octets are held when all has left", held)
			}
		})
		got, ok := bytes.CutSuffix([]byte(o.s.bytes()[1:]), []byte("close"))
		if !ok || len(got)%each != 0 || len(got) == 0 || len(got) > writeStep+each || !bytes.Equal(got, numbered(0, len(got))) {
			t.Errorf("%d octets left before the last words (%v), want whole appends of %d", len(got), ok, each)
		}
	})
}

// FuzzQueue appends, takes, gives back and drops in any order: what leaves is what was queued, in order;
// what is dropped is dropped from where an append ends, and no append that has begun is; who taps sees what is
// taken once, from where an append begins.
func FuzzQueue(f *testing.F) {
	f.Add([]byte{0, 200, 2, 50, 3, 7, 4, 0, 2, 255})
	f.Add([]byte{0, 255, 0, 255, 2, 1, 4, 0, 1, 30, 2, 255, 2, 255})
	f.Add([]byte{0, 180, 5, 0, 3, 100, 4, 0, 0, 20, 2, 255, 5, 0, 2, 255})
	f.Add([]byte{0, 255, 0, 255, 0, 255, 5, 0, 2, 128, 5, 0, 4, 0, 0, 1, 2, 255, 6, 0, 0, 9, 2, 255})
	r := rand.New(rand.NewPCG(1, 2))
	for range 40 {
		p := make([]byte, 120)
		for i := range p {
			p[i] = byte(r.Uint32())
			if i%2 == 0 {
				p[i] %= 7
			}
		}
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, ops []byte) {
		o := newOwned()
		b := &o.out
		b.busy = true // nobody else takes
		var stream, out, seen []byte
		ends := []int{0} // of appends, in stream
		whole := 0       // what has begun ends here
		tapped := -1     // from here on seen is to be, -1: nobody taps
		shown := 0       // up to here
		queued := func(p []byte) {
			stream = append(stream, p...)
			ends = append(ends, len(stream))
		}
		took := func() { // all of out was taken, and the rest of what has begun stays
			if len(out) < whole {
				return
			}
			for _, e := range ends {
				if e >= len(out) {
					whole = e
					break
				}
			}
		}
		serial := 0
		for ; len(ops) >= 2; ops = ops[2:] {
			size := int(ops[1])
			switch ops[0] % 7 {
			case 0: // up to 65 kB
				p := numbered(serial, size*size)
				b.AppendLocked(p)
				if serial += len(p); len(p) > 0 {
					queued(p)
				}
			case 1:
				p := numbered(serial, size)
				b.SetBufferLocked(append(b.BufferLocked(size), p...))
				if serial += size; size > 0 {
					queued(p)
				}
			case 2:
				q := b.takeLocked(size << 10)
				q.check(t)
				out = append(out, q.bytes()...)
				q.free()
				shown = max(shown, len(out))
				took()
			case 3: // as FlushTry
				q := b.takeLocked(everything)
				n := min(q.n, size*size)
				out = append(out, q.bytes()[:n]...)
				q.left(n)
				q.check(t)
				whole, shown = len(stream), len(stream)
				if q.n > 0 {
					b.begun = q.n
					b.pending.putBack(q)
				}
			case 4:
				b.DropLocked()
				stream = stream[:max(len(out), whole)]
				for ends[len(ends)-1] > len(stream) {
					ends = ends[:len(ends)-1]
				}
			case 5:
				b.TapLocked(func(p []byte) { seen = append(seen, p...) })
				seen, tapped = nil, max(len(out), whole)
				shown = tapped
			case 6:
				b.TapLocked(nil)
				tapped = -1
			}
			b.pending.check(t)
			if got := b.pending.bytes(); !bytes.Equal(got, stream[len(out):]) {
				t.Fatalf("%d octets wait, want %d; equal at the start: %d", len(got), len(stream)-len(out), equal(got, stream[len(out):]))
			}
			if !bytes.Equal(out, stream[:len(out)]) {
				t.Fatal("what left is not what was queued")
			}
			if tapped >= 0 && !bytes.Equal(seen, stream[tapped:shown]) {
				t.Fatalf("%d octets were seen, want %d", len(seen), shown-tapped)
			}
		}
		q := b.takeLocked(everything)
		out = append(out, q.bytes()...)
		if !bytes.Equal(out, stream) || b.pending.held != 0 || b.begun != 0 {
			t.Fatalf("%d octets left of %d, %d are held", len(out), len(stream), b.pending.held)
		}
	})
}

func equal(a, b []byte) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

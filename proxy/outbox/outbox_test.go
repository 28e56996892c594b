package outbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// sink takes what is written; while held, writes wait.
type sink struct {
	mu   sync.Mutex
	held sync.Cond
	hold bool
	pass int // so many writes, all the same
	fail error
	got  []byte
	n    int // writes
}

func newSink() *sink {
	s := &sink{}
	s.held.L = &s.mu
	return s
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.hold && s.pass == 0 && s.fail == nil {
		s.held.Wait()
	}
	if s.hold && s.pass > 0 {
		s.pass--
	}
	if s.fail != nil {
		return 0, s.fail
	}
	s.got = append(s.got, p...)
	s.n++
	return len(p), nil
}

func (s *sink) set(hold bool, fail error) {
	s.mu.Lock()
	s.hold, s.fail = hold, fail
	s.held.Broadcast()
	s.mu.Unlock()
}

// step lets one write through.
func (s *sink) step() {
	s.mu.Lock()
	s.pass++
	s.held.Broadcast()
	s.mu.Unlock()
}

func (s *sink) bytes() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.got)
}

type owned struct {
	mu  sync.Mutex
	now atomic.Int64
	out Box
	s   *sink
	err chan error
}

func newOwned() *owned {
	o := &owned{s: newSink(), err: make(chan error, 9)}
	o.out.Init(&o.mu, o.s, &o.now, func(err error) { o.err <- err })
	return o
}

func (o *owned) locked(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f()
}

func (o *owned) kick(p string) {
	o.locked(func() { o.out.AppendLocked([]byte(p)); o.out.KickLocked() })
}

// What is asked for twice, appended to once and grown past every pooled size must leave
// once, in order, and no buffer may end in two hands.
func TestBufferAskedForTwiceIsOneBuffer(t *testing.T) {
	a, b := newOwned(), newOwned()
	fill := bytes.Repeat([]byte("a"), smallBlock-10)
	a.locked(func() {
		a.out.AppendLocked(fill)
		_ = a.out.BufferLocked(100) // grows: the small buffer goes back
	})
	b.locked(func() { b.out.AppendLocked(bytes.Repeat([]byte("b"), smallBlock)) })
	a.locked(func() { a.out.SetBufferLocked(append(a.out.BufferLocked(100), "end"...)) })
	a.out.Flush()
	b.out.Flush()
	if got, want := a.s.bytes(), string(fill)+"end"; got != want {
		t.Errorf("first queue wrote %d octets, want %d, equal: %v", len(got), len(want), got == want)
	}
	if got := b.s.bytes(); got != string(bytes.Repeat([]byte("b"), smallBlock)) {
		t.Errorf("second queue's bytes were overwritten")
	}
}

func TestAppendedWhileWritingLeavesInOneWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOwned()
		o.s.set(true, nil)
		o.kick("1")
		synctest.Wait()
		for i := range 5 {
			o.kick(fmt.Sprint(i + 2))
		}
		o.locked(func() {
			if o.out.LenLocked() != 6 || o.out.IdleLocked() {
				t.Errorf("got %d waiting, idle %v; want 6, false", o.out.LenLocked(), o.out.IdleLocked())
			}
		})
		o.s.set(false, nil)
		synctest.Wait()
		if o.s.bytes() != "123456" || o.s.n != 2 {
			t.Errorf("wrote %q in %d writes, want 123456 in 2", o.s.bytes(), o.s.n)
		}
		o.locked(func() {
			if !o.out.IdleLocked() || o.out.LenLocked() != 0 {
				t.Error("not idle at the end")
			}
		})
		if o.out.Written.Load() != 6 || o.out.WriteSince.Load() != 0 {
			t.Errorf("Written %d, WriteSince %d", o.out.Written.Load(), o.out.WriteSince.Load())
		}
	})
}

// The turn comes in order, after what waits, and what is appended after it was taken
// leaves after the turn's own bytes.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOwned()
		o.s.set(true, nil)
		o.kick("a")
		synctest.Wait()
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				if err := o.out.WaitTurn(nil); err != nil {
					t.Error(err)
					return
				}
				var first Taken
				o.locked(func() { first = o.out.TakeLocked() })
				o.kick(fmt.Sprintf("(%d)", i))
				if err := o.out.Through(first, fmt.Appendf(nil, "[%d]", i)); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait() // so that the turns are asked for in this order
		}
		o.kick("b")
		o.s.set(false, nil)
		wg.Wait()
		synctest.Wait()
		if want := "ab[0](0)[1](1)[2](2)"; o.s.bytes() != want {
			t.Errorf("wrote %q, want %q", o.s.bytes(), want)
		}
	})
}

// FlushAll returns when what waits has left, though another was writing, or when that has failed.
func TestFlushAll(t *testing.T) {
	for _, fail := range []error{nil, errors.New("broken")} {
		synctest.Test(t, func(t *testing.T) {
			o := newOwned()
			o.s.set(true, nil)
			o.kick("a")
			synctest.Wait()
			o.locked(func() { o.out.AppendLocked([]byte("b")) })
			var done atomic.Bool
			go func() { o.out.FlushAll(); done.Store(true) }()
			synctest.Wait()
			if done.Load() {
				t.Error("it returned while another writes")
			}
			o.s.set(false, fail)
			synctest.Wait()
			if want := map[bool]string{true: "ab"}[fail == nil]; !done.Load() || o.s.bytes() != want {
				t.Errorf("failing with %v: returned %v, wrote %q, want %q", fail, done.Load(), o.s.bytes(), want)
			}
			o.out.FlushAll() // with nothing
		})
	}
}

// Everybody who waits for room gets some, one after the other: what waits stays in its bound.
func TestRoomInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most, each, n = 100, 60, 50
		o := newOwned()
		o.s.set(true, nil)
		o.kick("-")
		synctest.Wait()
		var wg sync.WaitGroup
		for i := range n {
			p := fmt.Sprintf("<%0*d>", each-2, i)
			wg.Go(func() {
				o.locked(func() {
					if err := o.out.AwaitRoomLocked(most, nil); err != nil {
						t.Error(err)
					}
					o.out.AppendLocked([]byte(p))
					// As much again may be on its way.
					if got := o.out.LenLocked(); got > 2*(most+each) {
						t.Errorf("%d bytes wait or fly, want at most %d", got, 2*(most+each))
					}
					o.out.PassRoomLocked(most)
				})
				o.out.Flush()
			})
			synctest.Wait()
		}
		o.s.set(false, nil)
		wg.Wait()
		synctest.Wait()
		for i := range n {
			if p := fmt.Sprintf("<%0*d>", each-2, i); strings.Count(o.s.bytes(), p) != 1 {
				t.Errorf("%q was not written once", p)
			}
		}
	})
}

func TestWaitsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, how := range []string{"cancel", "fail", "write error"} {
			o := newOwned()
			o.s.set(true, nil)
			o.kick("a")
			synctest.Wait()
			o.kick("much")
			cancel := make(chan struct{})
			errs := make(chan error, 3)
			go func() { errs <- o.out.WaitTurn(cancel) }()
			go func() { errs <- o.out.WaitTurn(cancel) }()
			go func() {
				o.mu.Lock()
				defer o.mu.Unlock()
				errs <- o.out.AwaitRoomLocked(2, cancel)
			}()
			synctest.Wait()
			if len(errs) != 0 {
				t.Fatalf("%s: a wait ended early", how)
			}
			want := ErrCanceled
			switch how {
			case "cancel":
				close(cancel)
			case "fail":
				want = errors.New("the owner's")
				o.locked(func() { o.out.FailLocked(want) })
			case "write error":
				want = errors.New("the socket's")
				o.s.set(true, want)
			}
			for range 3 {
				if err := <-errs; err != want {
					t.Errorf("%s: got %v, want %v", how, err, want)
				}
			}
			o.s.set(false, nil)
			synctest.Wait()
			switch how {
			case "cancel":
				if o.s.bytes() != "amuch" {
					t.Errorf("after a cancelled turn the queue wrote %q, want amuch", o.s.bytes())
				}
				if err := o.out.WaitTurn(nil); err != nil {
					t.Errorf("the turn is lost: %v", err)
				}
				if err := o.out.Through(Taken{}, nil); err != nil {
					t.Error(err)
				}
			case "fail":
				if len(o.err) != 0 {
					t.Error("onError was called for the owner's own FailLocked")
				}
			case "write error":
				if len(o.err) != 1 || <-o.err != want {
					t.Error("onError was not called once with the error")
				}
			}
			if how != "cancel" {
				o.locked(func() {
					o.out.AppendLocked([]byte("late"))
					o.out.KickLocked()
					if o.out.LenLocked() != 0 || o.out.ErrLocked() != want || o.out.StartLocked() {
						t.Errorf("%s: the queue lives on", how)
					}
				})
				if err := o.out.WaitTurn(nil); err != want {
					t.Errorf("%s: WaitTurn after it: %v", how, err)
				}
			}
		}
	})
}

func TestFailedQueueForgetsWhatWaits(t *testing.T) {
	o := newOwned()
	o.locked(func() {
		o.out.AppendLocked([]byte("x"))
		o.out.FailLocked(nil)
		p := append(o.out.BufferLocked(10), "y"...)
		o.out.SetBufferLocked(p)
		if o.out.LenLocked() != 0 || !errors.Is(o.out.ErrLocked(), ErrClosed) {
			t.Errorf("%d octets wait, error %v", o.out.LenLocked(), o.out.ErrLocked())
		}
	})
	o.out.Flush()
	if o.s.bytes() != "" {
		t.Errorf("wrote %q", o.s.bytes())
	}
}

// Many goroutines by every way in: each one's records must arrive all, once, in its order.
func TestStress(t *testing.T) {
	o := newOwned()
	const writers, records = 12, 400
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			for i := range records {
				size := 12
				if r.IntN(20) == 0 {
					size = 12 + r.IntN(6*bigBlock)
				}
				p := make([]byte, size)
				binary.BigEndian.PutUint32(p, uint32(size))
				binary.BigEndian.PutUint32(p[4:], uint32(w))
				binary.BigEndian.PutUint32(p[8:], uint32(i))
				switch r.IntN(5) {
				case 0:
					o.mu.Lock()
					if o.out.StartLocked() {
						o.mu.Unlock()
						_ = o.out.Through(Taken{}, p)
						continue
					}
					o.out.AppendLocked(p)
					o.mu.Unlock()
				case 1:
					cancel := make(chan struct{})
					if r.IntN(2) == 0 {
						close(cancel)
					}
					if err := o.out.WaitTurn(cancel); err != nil {
						o.locked(func() { o.out.AppendLocked(p) })
						break
					}
					var first Taken
					o.locked(func() { first = o.out.TakeLocked() })
					_ = o.out.Through(first, p)
				case 2:
					o.locked(func() {
						_ = o.out.AwaitRoomLocked(4*bigBlock, nil)
						o.out.SetBufferLocked(append(o.out.BufferLocked(len(p)), p...))
						o.out.PassRoomLocked(4 * bigBlock)
						o.out.KickLocked()
					})
				default:
					o.locked(func() { o.out.AppendLocked(p); o.out.KickLocked() })
				}
				o.out.Flush()
			}
		})
	}
	wg.Wait()
	for { // whoever writes still ends by itself
		if err := o.out.WaitTurn(nil); err != nil {
			t.Fatal(err)
		}
		var first Taken
		o.locked(func() { first = o.out.TakeLocked() })
		_ = o.out.Through(first, nil)
		var idle bool
		o.locked(func() { idle = o.out.IdleLocked() })
		if idle {
			break
		}
	}
	next := [writers]uint32{}
	p := []byte(o.s.bytes())
	for len(p) > 0 {
		size, w, i := binary.BigEndian.Uint32(p), binary.BigEndian.Uint32(p[4:]), binary.BigEndian.Uint32(p[8:])
		if w >= writers || i != next[w] {
			t.Fatalf("record %d of writer %d came where %d was due", i, w, next[min(w, writers-1)])
		}
		next[w]++
		p = p[size:]
	}
	for w, n := range next {
		if n != records {
			t.Errorf("writer %d: %d records arrived, want %d", w, n, records)
		}
	}
}

func TestNothingAllocatedPerWrite(t *testing.T) {
	o := newOwned()
	o.s.got = make([]byte, 0, 1<<20)
	p := bytes.Repeat([]byte("x"), 100)
	n := testing.AllocsPerRun(1000, func() {
		o.mu.Lock()
		o.out.AppendLocked(p)
		o.mu.Unlock()
		o.out.Flush()
	})
	if n != 0 {
		t.Errorf("%v allocations for each append and flush, want 0", n)
	}
}

// Who is called off from a queue that has failed hears of the failure: callers go on after
// ErrCanceled, and must not when nothing leaves any more.
func TestCanceledWaitForAFailedQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 100 {
			o := newOwned()
			o.s.set(true, nil)
			o.kick("a")
			synctest.Wait()
			o.kick("much")
			cancel := make(chan struct{})
			got := make(chan error, 1)
			go func() {
				o.mu.Lock()
				defer o.mu.Unlock()
				got <- o.out.AwaitRoomLocked(2, cancel)
			}()
			synctest.Wait()
			want := errors.New("the owner's")
			o.locked(func() {
				close(cancel)
				o.out.FailLocked(want)
			})
			err := <-got
			o.s.set(false, nil)
			synctest.Wait()
			if err != want {
				t.Fatalf("got %v, want %v", err, want)
			}
		}
	})
}

// shortly takes at most so many octets at once, for a sink.
type shortly struct {
	s    *sink
	most int
}

func (w shortly) TryWrite(p net.Buffers) (int, error) {
	all := bytes.Join(p, nil)
	return w.s.Write(all[:min(len(all), w.most)])
}

// Who taps the queue sees every byte once and in order, also those that a socket gave back, and from
// when he comes only what he can see whole.
func TestTap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOwned()
		var seen []byte
		o.s.set(true, nil)
		o.kick("[before]")
		synctest.Wait() // it is being written
		o.kick("[a]")
		o.locked(func() { o.out.TapLocked(func(p []byte) { seen = append(seen, p...) }) })
		o.s.set(false, nil)
		synctest.Wait()
		for i := range 20 {
			o.locked(func() { o.out.AppendLocked(fmt.Appendf(nil, "[%d]", i)) })
			o.s.set(i%3 == 0, nil)
			if i%3 != 0 {
				o.out.FlushTry(shortly{o.s, i % 5})
			} else {
				o.locked(o.out.KickLocked)
			}
			if i%4 == 0 {
				o.s.set(false, nil)
				synctest.Wait()
			}
		}
		o.s.set(false, nil)
		synctest.Wait()
		o.locked(func() { o.out.TapLocked(nil) })
		got := o.s.bytes()
		if want := strings.TrimPrefix(got, "[before]"); string(seen) != want {
			t.Errorf("seen %q\nwritten %q", seen, want)
		}
		o.kick("[after]")
		synctest.Wait()
		if strings.Contains(string(seen), "after") || !strings.HasSuffix(o.s.bytes(), "[19][after]") {
			t.Errorf("seen %q, written %q", seen, o.s.bytes())
		}
	})
}

// What a socket took a part of leaves whole, whatever is dropped behind it: connection.close must not
// come amid a frame.
func TestDropKeepsWhatHasBegun(t *testing.T) {
	o := newOwned()
	o.mu.Lock()
	o.out.busy = true // FlushTry has just handed the rest to a goroutine, which has not begun
	o.out.AppendLocked([]byte("the rest of a frame"))
	o.out.begun = o.out.LenLocked()
	o.out.AppendLocked([]byte(", others"))
	o.out.DropLocked()
	o.out.AppendLocked([]byte(", close"))
	first := o.out.TakeLocked()
	if got, want := string(first.q.bytes()), "the rest of a frame, close"; got != want {
		t.Errorf("%q leaves, want %q", got, want)
	}
	o.out.AppendLocked([]byte("of no use"))
	o.out.begun = 4
	o.out.FailLocked(ErrClosed)
	if n := o.out.LenLocked() - o.out.flying; n != 0 {
		t.Errorf("%d octets wait in a queue that has failed", n)
	}
	o.mu.Unlock()
}

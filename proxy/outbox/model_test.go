package outbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
)

// each is what is appended at a time to a queue that never gets empty.
const each = 100_000

// busyQueue has more waiting than is taken at a time, and a socket that waits for step.
func busyQueue() *owned {
	o := newOwned()
	o.s.set(true, nil)
	o.locked(func() {
		for range 3 {
			o.out.AppendLocked(make([]byte, each))
		}
	})
	return o
}

// comes lets one write after another through, and appends more than that meanwhile, until done is closed.
// False: what waited at the start had long left, and it was not. At the end nothing is held up.
func (o *owned) comes(done <-chan struct{}) bool {
	defer synctest.Wait()
	defer o.s.set(false, nil)
	for range 10 * each / bigBlock {
		synctest.Wait()
		select {
		case <-done:
			return true
		default:
		}
		o.locked(func() { o.out.AppendLocked(make([]byte, each)) })
		o.s.step()
	}
	return false
}

// Who writes for all writes what waited when he came, however much is appended meanwhile and wherever in
// it a write ends: his own work waits for him.
func TestFlushEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := busyQueue()
		done := make(chan struct{})
		go func() {
			o.out.Flush()
			close(done)
		}()
		if !o.comes(done) {
			t.Error("it writes what was appended long after it came")
		}
		o.locked(func() {
			if !o.out.IdleLocked() {
				t.Errorf("%d octets were left behind", o.out.LenLocked())
			}
		})
	})
}

// A writer's turn comes when what waited before has left, though more is appended all the time.
func TestTurnComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := busyQueue()
		o.locked(o.out.KickLocked)
		synctest.Wait()
		turn := make(chan struct{})
		go func() {
			if err := o.out.WaitTurn(nil); err != nil {
				t.Error(err)
			}
			close(turn)
		}()
		if !o.comes(turn) {
			t.Error("it has not come when much has left that was appended later")
		}
		var first Taken
		o.locked(func() { first = o.out.TakeLocked() })
		_ = o.out.Through(first, nil)
	})
}

// tapping taps the queue amid a try that takes a part.
type tapping struct {
	o    *owned
	most int
	seen []byte
}

func (w *tapping) TryWrite(p net.Buffers) (int, error) {
	w.o.locked(func() {
		w.o.out.TapLocked(func(p []byte) { w.seen = append(w.seen, p...) })
		w.o.out.AppendLocked([]byte("[next]"))
	})
	all := bytes.Join(p, nil)
	return w.o.s.Write(all[:w.most])
}

// Who comes while a socket takes a part of what waits sees nothing of the rest, which begins amid a frame.
func TestTapAmidTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOwned()
		o.locked(func() { o.out.AppendLocked([]byte("[one][two]")) })
		w := &tapping{o: o, most: 3}
		o.out.FlushTry(w)
		synctest.Wait()
		if got := o.s.bytes(); got != "[one][two][next]" || string(w.seen) != "[next]" {
			t.Errorf("seen %q, written %q", w.seen, got)
		}
	})
}

// A record is its size, its writer, its number and what numbered says of that.
const recordHead = 12

func record(w, i uint32, size int) []byte {
	p := make([]byte, recordHead, size)
	binary.BigEndian.PutUint32(p, uint32(size))
	binary.BigEndian.PutUint32(p[4:], w)
	binary.BigEndian.PutUint32(p[8:], i)
	return append(p, numbered(int(w<<16^i), size-recordHead)...)
}

// whole takes the whole records at the start of p and reports how much that was; false: there is something else.
func whole(p []byte, each func(w, i uint32)) (n int, ok bool) {
	for {
		rest := p[n:]
		if len(rest) < recordHead {
			return n, true
		}
		size := int(binary.BigEndian.Uint32(rest))
		if size < recordHead || size > 1<<20 {
			return n, false
		}
		if len(rest) < size {
			return n, true
		}
		w, i := binary.BigEndian.Uint32(rest[4:]), binary.BigEndian.Uint32(rest[8:])
		if !bytes.Equal(rest[:size], record(w, i, size)) {
			return n, false
		}
		each(w, i)
		n += size
	}
}

// partly is a socket that takes parts at once, and fails when it has taken so many octets.
type partly struct {
	mu   sync.Mutex
	r    *rand.Rand
	got  []byte
	fail int
}

func (s *partly) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := max(0, min(len(p), s.fail-len(s.got)))
	s.got = append(s.got, p[:n]...)
	if n < len(p) {
		return n, io.ErrClosedPipe
	}
	return n, nil
}

func (s *partly) TryWrite(p net.Buffers) (int, error) {
	s.mu.Lock()
	all := bytes.Join(p, nil)
	if s.r.IntN(3) > 0 {
		all = all[:s.r.IntN(len(all)+1)]
	}
	s.mu.Unlock()
	return s.Write(all)
}

// Writers of all kinds at once, with drops and with taps that come and go, over a socket that takes parts
// and may fail: whole records leave, each writer's in order, but for one that a failure cut; none is missing
// where nothing was dropped; who taps sees whole records from the first octet on; and nothing is held at the end.
func TestModel(t *testing.T) {
	const writers, records = 8, 150
	for seed := range uint64(6) {
		drops, fails := seed&1 != 0, seed%3 == 2
		s := &partly{r: rand.New(rand.NewPCG(seed, 99)), fail: everything}
		if fails {
			s.fail = s.r.IntN(4 << 20)
		}
		o := &owned{err: make(chan error, 9)}
		o.out.Init(&o.mu, s, &o.now, func(err error) { o.err <- err })
		var taps []*[]byte
		var wg sync.WaitGroup
		for w := range uint32(writers) {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(seed, uint64(w)))
				for i := range uint32(records) {
					size := recordHead + r.IntN(200)
					if r.IntN(8) == 0 {
						size = recordHead + r.IntN(10*bigBlock)
					}
					write(o, s, r, record(w, i, size))
				}
			})
		}
		stop := make(chan struct{})
		var other sync.WaitGroup
		other.Go(func() {
			r := rand.New(rand.NewPCG(seed, 1000))
			for {
				select {
				case <-stop:
					return
				default:
				}
				o.locked(func() {
					switch r.IntN(6) {
					case 0:
						if drops {
							o.out.DropLocked()
						}
					case 1:
						seen := new([]byte)
						taps = append(taps, seen)
						o.out.TapLocked(func(p []byte) { *seen = append(*seen, p...) })
					case 2:
						o.out.TapLocked(nil)
					}
					if o.out.pending.n < 0 || o.out.begun > o.out.pending.n || o.out.MemLocked() < o.out.LenLocked() {
						t.Errorf("%d octets wait in %d, %d of them are begun", o.out.pending.n, o.out.MemLocked(), o.out.begun)
					}
				})
				o.out.FlushTry(s)
			}
		})
		wg.Wait()
		close(stop)
		other.Wait()
		o.out.FlushAll()
		for idle := false; !idle; { // whoever writes yet ends by itself
			err := o.out.WaitTurn(nil)
			if err == nil {
				var first Taken
				o.locked(func() { first = o.out.TakeLocked() })
				err = o.out.Through(first, nil)
			}
			o.locked(func() { idle = err != nil && !o.out.busy || o.out.IdleLocked() })
		}
		s.mu.Lock()
		got, failed := s.got, len(s.got) >= s.fail
		s.mu.Unlock()
		next := [writers]uint32{}
		n, ok := whole(got, func(w, i uint32) {
			if i < next[w] || i > next[w] && !drops && !failed {
				t.Errorf("seed %d: record %d of writer %d came where %d was due", seed, i, w, next[w])
			}
			next[w] = i + 1
		})
		if !ok || n < len(got) && !failed {
			t.Errorf("seed %d: %d octets of %d are whole records (failed: %v)", seed, n, len(got), failed)
		}
		for w, n := range next {
			if n != records && !drops && !failed {
				t.Errorf("seed %d: of writer %d came %d records of %d", seed, w, n, records)
			}
		}
		for i, seen := range taps {
			if n, ok := whole(*seen, func(uint32, uint32) {}); !ok {
				t.Errorf("seed %d: tap %d of %d saw what is no record after %d octets of %d", seed, i, len(taps), n, len(*seen))
			}
		}
		o.locked(func() {
			if o.out.LenLocked() != 0 || o.out.MemLocked() != 0 || o.out.begun != 0 || o.out.Written.Load() != int64(len(got)) || o.out.WriteSince.Load() != 0 {
				t.Errorf("seed %d: at the end %d wait in %d, %d are begun, %d are told to be written of %d", seed,
					o.out.LenLocked(), o.out.MemLocked(), o.out.begun, o.out.Written.Load(), len(got))
			}
			if err := o.out.ErrLocked(); failed != errors.Is(err, io.ErrClosedPipe) || len(o.err) > 1 || len(o.err) == 0 && failed {
				t.Errorf("seed %d: failed %v, %v; the owner was told %d times", seed, failed, err, len(o.err))
			}
		})
	}
}

// write sends a record in one of the ways there are.
func write(o *owned, s *partly, r *rand.Rand, p []byte) {
	switch r.IntN(7) {
	case 0: // past the queue where nobody writes
		o.mu.Lock()
		if o.out.StartLocked() {
			o.mu.Unlock()
			_ = o.out.Through(Taken{}, p)
			return
		}
		o.out.AppendLocked(p)
		o.mu.Unlock()
	case 1: // past the queue, in turn
		cancel := make(chan struct{})
		if r.IntN(2) == 0 {
			close(cancel)
		}
		if o.out.WaitTurn(cancel) == nil {
			var first Taken
			o.locked(func() { first = o.out.TakeLocked() })
			_ = o.out.Through(first, p)
			return
		}
		o.locked(func() { o.out.AppendLocked(p) })
	case 2: // in place, where there is room
		o.locked(func() {
			_ = o.out.AwaitRoomLocked(4*bigBlock, nil)
			o.out.SetBufferLocked(append(o.out.BufferLocked(len(p)), p...))
			o.out.PassRoomLocked(4 * bigBlock)
			o.out.KickLocked()
		})
	case 3: // in place, more than was asked for; asked and not used before
		o.locked(func() {
			_ = o.out.BufferLocked(r.IntN(2 * bigBlock))
			o.out.SetBufferLocked(append(o.out.BufferLocked(1), p...))
		})
		o.out.FlushTry(s)
	case 4:
		o.locked(func() { o.out.AppendLocked(p) })
		o.out.FlushAll()
	default:
		o.locked(func() { o.out.AppendLocked(p); o.out.KickLocked() })
	}
	o.out.Flush()
}

package wait

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var bg = context.Background()

func TestSignalWakesAllOnce(t *testing.T) {
	var s Signal
	s.FireLocked() // nobody waits
	a, b := s.WaitLocked(), s.WaitLocked()
	if a != b {
		t.Error("two who wait at a time do not share the channel")
	}
	s.FireLocked()
	<-a
	select {
	case <-s.WaitLocked():
		t.Error("who comes after the signal is woken by it")
	default:
	}
	if n := testing.AllocsPerRun(100, func() { s.FireLocked(); s.FireLocked() }); n != 0 {
		t.Errorf("a signal nobody waits for allocates %v times", n)
	}
}

// acquirers starts n goroutines that wait for a place, in order, and gives the order in which
// they got it.
func acquirers(b *Bound, n int) *[]int {
	var mu sync.Mutex
	var got []int
	for i := range n {
		go func() {
			if b.Acquire(bg, nil) == nil {
				mu.Lock()
				got = append(got, i)
				mu.Unlock()
			}
		}()
		synctest.Wait()
	}
	return &got
}

func TestBoundServesInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Bound
		b.Resize(2)
		for i, want := range []bool{true, true, false} {
			if b.Try() != want {
				t.Fatalf("place %d of two: had it, %v; want %v", i+1, !want, want)
			}
		}
		got := acquirers(&b, 5)
		if n, longest := b.Waiting(); n != 5 || longest != 0 {
			t.Errorf("%d wait, %v; want 5, 0", n, longest)
		}
		time.Sleep(3 * time.Second)
		b.Release()
		if b.Try() {
			t.Error("a newcomer overtook those who wait")
		}
		synctest.Wait()
		if !slices.Equal(*got, []int{0}) {
			t.Fatalf("after one place %v have one", *got)
		}
		if n, longest := b.Waiting(); n != 4 || longest != 3*time.Second {
			t.Errorf("%d wait, %v; want 4, 3s", n, longest)
		}
		for _, size := range []int{3, 4, 5} {
			b.Resize(size)
			synctest.Wait()
		}
		b.Resize(0)
		synctest.Wait()
		if !slices.Equal(*got, []int{0, 1, 2, 3, 4}) {
			t.Errorf("served in the order %v", *got)
		}
		if n, longest := b.Waiting(); n != 0 || longest != 0 || b.Used() != 6 {
			t.Errorf("%d wait, %v, %d used; want none, 6", n, longest, b.Used())
		}
	})
}

func TestBoundWaitsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b Bound
		b.Resize(1)
		b.Try()
		ctx, cancel := context.WithTimeout(bg, time.Second)
		defer cancel()
		if err := b.Acquire(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the time-out", err)
		}
		gone := make(chan struct{})
		errs := make(chan error, 1)
		go func() { errs <- b.Acquire(bg, gone) }()
		synctest.Wait()
		behind := acquirers(&b, 1)
		close(gone)
		if err := <-errs; err != ErrGone {
			t.Errorf("got %v, want ErrGone", err)
		}
		if n, _ := b.Waiting(); n != 1 {
			t.Errorf("%d wait, want the one behind", n)
		}
		b.Release()
		synctest.Wait()
		if len(*behind) != 1 || b.Used() != 1 {
			t.Errorf("the one behind has no place; %d used", b.Used())
		}
	})
}

// A place that is given at the moment its wait is called off belongs to the caller.
func TestServedAsItLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept, left := 0, 0
		for range 200 {
			var b Bound
			b.Resize(1)
			b.Try()
			gone := make(chan struct{})
			errs := make(chan error, 1)
			go func() { errs <- b.Acquire(bg, gone) }()
			synctest.Wait()
			go close(gone)
			go b.Release()
			if <-errs == nil {
				kept++
				synctest.Wait()
				if b.Used() != 1 {
					t.Fatalf("%d used by one", b.Used())
				}
			} else {
				left++
				synctest.Wait()
				if b.Used() != 0 {
					t.Fatalf("%d used by none", b.Used())
				}
			}
		}
		t.Logf("%d kept, %d left", kept, left)
	})
}

// Small wants pass a large one where the callback lets them, and only there.
func TestLineVerdicts(t *testing.T) {
	for _, pass := range []Verdict{Stop, Skip} {
		var l Line[int]
		big, small, smaller := l.JoinLocked(10), l.JoinLocked(2), l.JoinLocked(1)
		room := 3
		l.ServeLocked(func(p *Place[int]) Verdict {
			if p.Want > room {
				return pass
			}
			room -= p.Want
			return Serve
		})
		served := func(p *Place[int]) bool {
			select {
			case <-p.Served():
				return true
			default:
				return false
			}
		}
		if served(big) || served(small) != (pass == Skip) || served(smaller) != (pass == Skip) {
			t.Errorf("verdict %d: served %v %v %v", pass, served(big), served(small), served(smaller))
		}
		if l.LeaveLocked(small) == (pass == Skip) {
			t.Errorf("verdict %d: leaving after being served", pass)
		}
		if !l.LeaveLocked(big) || l.LeaveLocked(big) {
			t.Error("a place is left once")
		}
	}
}

// Who was served and came too late goes back to the head.
func TestLineRejoin(t *testing.T) {
	var l Line[int]
	if l.ServeFirstLocked() {
		t.Error("somebody was served in an empty line")
	}
	l.RejoinLocked(1)
	l.JoinLocked(2)
	l.RejoinLocked(0)
	var got []int
	l.ServeLocked(func(p *Place[int]) Verdict { got = append(got, p.Want); return Skip })
	if !slices.Equal(got, []int{0, 1, 2}) || l.LenLocked() != 3 {
		t.Errorf("the line is %v, of %d", got, l.LenLocked())
	}
	for l.ServeFirstLocked() {
	}
	if p := l.JoinLocked(3); l.LenLocked() != 1 || !l.LeaveLocked(p) || l.LenLocked() != 0 {
		t.Errorf("%d wait when all have been served or left", l.LenLocked())
	}
}

func TestFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFlight[int](bg)
		var wg sync.WaitGroup
		for i := range 3 {
			s := f.Join()
			wg.Go(func() {
				if v, err := f.Wait(s, nil); v != 7 || err != nil {
					t.Errorf("waiter %d got %d, %v", i, v, err)
				}
			})
			time.Sleep(time.Second)
		}
		if n, longest := f.Waiting(); n != 3 || longest != 3*time.Second {
			t.Errorf("%d wait, %v; want 3, 3s", n, longest)
		}
		if f.Context().Err() != nil {
			t.Error("the flight was broken off while three waited")
		}
		f.Land(7)
		wg.Wait()
		if n, _ := f.Waiting(); n != 0 || f.Context().Err() == nil {
			t.Errorf("after landing %d wait, context %v", n, f.Context().Err())
		}
		if v, err := f.Wait(f.Join(), nil); v != 7 || err != nil {
			t.Errorf("who comes after landing got %d, %v", v, err)
		}
	})
}

// A flight ends with its last waiter's leaving, and no sooner; nobody joins it after that.
func TestFlightEndsWithItsLastWaiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFlight[int](bg)
		gone := [2]chan struct{}{make(chan struct{}), make(chan struct{})}
		errs := make(chan error, 2)
		for _, g := range gone {
			s := f.Join()
			go func() {
				_, err := f.Wait(s, g)
				errs <- err
			}()
		}
		close(gone[0])
		if err := <-errs; err != ErrGone || f.Context().Err() != nil {
			t.Fatalf("the first left with %v, context %v", err, f.Context().Err())
		}
		close(gone[1])
		if err := <-errs; err != ErrGone || f.Context().Err() == nil {
			t.Fatalf("the last left with %v, context %v", err, f.Context().Err())
		}
		if f.Join() != nil {
			t.Error("somebody joined a flight that is being broken off")
		}
		f.Land(0) // its doing ends all the same
	})
}

func TestFlightWithoutWaitersGoesOn(t *testing.T) {
	f := NewFlight[int](bg)
	if f.Context().Err() != nil {
		t.Error("a flight that nobody has joined is broken off")
	}
	f.Land(1)
	<-f.Landed()
	if f.Result() != 1 {
		t.Error("the result is lost")
	}
}

// Many take, wait, leave and give back: places are never more than there are, none is lost, and
// at the end all is back.
func TestStress(t *testing.T) {
	const size, goroutines, rounds = 3, 16, 500
	var b Bound
	b.Resize(size)
	var inside, most, got, left atomic.Int32
	var wg sync.WaitGroup
	for i := range goroutines {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 2))
			for range rounds {
				gone := make(chan struct{})
				if r.IntN(3) == 0 {
					go close(gone)
				}
				switch {
				case r.IntN(4) == 0:
					if !b.Try() {
						continue
					}
				case b.Acquire(bg, gone) != nil:
					left.Add(1)
					continue
				}
				got.Add(1)
				n := inside.Add(1)
				for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
				}
				runtime.Gosched()
				inside.Add(-1)
				b.Release()
			}
		})
	}
	wg.Wait()
	if n, _ := b.Waiting(); n != 0 || b.Used() != 0 {
		t.Errorf("%d wait and %d are used when all have left", n, b.Used())
	}
	if most.Load() > size || got.Load() == 0 || left.Load() == 0 {
		t.Errorf("%d had one of %d places; %d got one, %d left", most.Load(), size, got.Load(), left.Load())
	}
}

// Many fly together, leave, and start anew where a flight is being broken off: each gets the
// outcome of a flight that was whole, or has left itself.
func TestFlightStress(t *testing.T) {
	var mu sync.Mutex
	var now *Flight[error]
	var flown, broken atomic.Int32
	fly := func(f *Flight[error]) {
		for range 20 {
			runtime.Gosched()
		}
		err := f.Context().Err()
		flown.Add(1)
		if err != nil {
			broken.Add(1)
		}
		mu.Lock()
		if now == f {
			now = nil
		}
		mu.Unlock()
		f.Land(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 3))
			for range 500 {
				mu.Lock()
				var s *Seat
				if now != nil {
					s = now.Join()
				}
				if s == nil {
					now = NewFlight[error](bg)
					s = now.Join()
					f := now
					wg.Go(func() { fly(f) })
				}
				f := now
				mu.Unlock()
				gone := make(chan struct{})
				leaves := r.IntN(2) == 0
				if leaves {
					go close(gone)
				}
				if err, called := f.Wait(s, gone); called == nil && err != nil {
					t.Errorf("who waited to the end got %v", err)
				} else if called != nil && !leaves {
					t.Error("who did not leave was called off")
				}
			}
		})
	}
	wg.Wait()
	if flown.Load() == 0 || broken.Load() == 0 {
		t.Errorf("%d flights, %d broken off: the test tries nothing", flown.Load(), broken.Load())
	}
}

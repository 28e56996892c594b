// A flight: something that is done once while many wait for its outcome, and that ends when
// nobody waits for it any more.

package wait

import (
	"context"
	"sync"
	"time"
)

// Flight is one doing. Whoever starts it keeps it where others find it, under a lock of its own,
// and takes it away before Land; each that waits calls Join under that lock and then Wait.
type Flight[T any] struct {
	// Began is when it was made.
	Began time.Time

	ctx    context.Context
	cancel context.CancelFunc
	landed chan struct{}
	result T // written before landed is closed

	mu        sync.Mutex
	line      Line[struct{}] // those that wait, so that it is known for how long
	abandoned bool
}

// Seat is one wait for a flight's outcome.
type Seat = Place[struct{}]

// NewFlight makes a flight of which nobody knows yet. Its context ends with the given one, when it
// has landed, and when the last that waited has left.
func NewFlight[T any](ctx context.Context) *Flight[T] {
	f := &Flight[T]{Began: time.Now(), landed: make(chan struct{})}
	f.ctx, f.cancel = context.WithCancel(ctx)
	return f
}

// Context is that of the doing.
func (f *Flight[T]) Context() context.Context { return f.ctx }

// Join counts the caller among those that wait, who then calls Wait. Nil: all who waited have
// left and the flight is being broken off; make another in its place.
func (f *Flight[T]) Join() *Seat {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.abandoned {
		return nil
	}
	return f.line.JoinLocked(struct{}{})
}

// Wait waits for the outcome, until gone is closed (ErrGone).
func (f *Flight[T]) Wait(s *Seat, gone <-chan struct{}) (T, error) {
	var err error
	select {
	case <-f.landed:
	case <-gone:
		err = ErrGone
	}
	f.mu.Lock()
	f.line.LeaveLocked(s)
	last := f.line.LenLocked() == 0
	if err != nil {
		select {
		case <-f.landed:
			err = nil // at the same moment
		default:
			f.abandoned = f.abandoned || last
		}
	}
	f.mu.Unlock()
	if err != nil {
		if last {
			f.cancel()
		}
		var none T
		return none, err
	}
	return f.result, nil
}

// Land gives the outcome to all that wait. It is called once.
func (f *Flight[T]) Land(result T) {
	f.result = result
	close(f.landed)
	f.cancel()
}

// Landed is closed when the outcome is there.
func (f *Flight[T]) Landed() <-chan struct{} { return f.landed }

// Result is the outcome, after Landed.
func (f *Flight[T]) Result() T { return f.result }

// Waiting is how many wait and how long the first of them has.
func (f *Flight[T]) Waiting() (n int, longest time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.line.WaitingLocked()
}

// A line: the first to come is served first. Serving is done by whoever makes room, under the
// owner's lock and before the one that waits wakes up: nobody who comes later gets in between,
// and only those are woken that have what they waited for.

package wait

import (
	"context"
	"sync"
	"time"
)

// Line is a queue of waits for something of which a want T is asked. The zero value is ready; the
// owner's lock guards it.
type Line[T any] struct {
	first, last *Place[T]
	n           int
}

// Place is one wait in a line.
type Place[T any] struct {
	Want  T
	Since time.Time

	served     chan struct{}
	prev, next *Place[T]
	in         bool // it stands in the line
}

// Verdict is what becomes of a wait when its line is served.
type Verdict uint8

const (
	Stop  Verdict = iota // it waits on, and so do all behind it
	Skip                 // it waits on, those behind it may be served
	Serve                // it has what it wants
)

// JoinLocked begins a wait at the end of the line.
func (l *Line[T]) JoinLocked(want T) *Place[T] {
	p := &Place[T]{Want: want, Since: time.Now(), served: make(chan struct{}), prev: l.last, in: true}
	if l.last == nil {
		l.first = p
	} else {
		l.last.next = p
	}
	l.last = p
	l.n++
	return p
}

// RejoinLocked begins a wait at the head of the line: for a caller that has been served, and found that
// somebody else was quicker. Its turn is not lost.
func (l *Line[T]) RejoinLocked(want T) *Place[T] {
	p := &Place[T]{Want: want, Since: time.Now(), served: make(chan struct{}), next: l.first, in: true}
	if l.first == nil {
		l.last = p
	} else {
		l.first.prev = p
	}
	l.first = p
	l.n++
	return p
}

// FirstLocked is the first in line; nil: nobody waits.
func (l *Line[T]) FirstLocked() *Place[T] { return l.first }

// ServeFirstLocked serves the first in line. False: nobody waits.
func (l *Line[T]) ServeFirstLocked() bool {
	p := l.first
	if p == nil {
		return false
	}
	l.unlinkLocked(p)
	close(p.served)
	return true
}

// LeaveLocked ends a wait. It reports false when the place has been served: then what was wanted
// is the caller's.
func (l *Line[T]) LeaveLocked(p *Place[T]) bool {
	if !p.in {
		return false
	}
	l.unlinkLocked(p)
	return true
}

// ServeLocked asks about each place, first come first, what becomes of it. What Serve means is
// done by the callback: the place's owner finds it done.
func (l *Line[T]) ServeLocked(what func(p *Place[T]) Verdict) {
	for p := l.first; p != nil; {
		next := p.next
		switch what(p) {
		case Stop:
			return
		case Serve:
			l.unlinkLocked(p)
			close(p.served)
		}
		p = next
	}
}

func (l *Line[T]) unlinkLocked(p *Place[T]) {
	if p.prev == nil {
		l.first = p.next
	} else {
		p.prev.next = p.next
	}
	if p.next == nil {
		l.last = p.prev
	} else {
		p.next.prev = p.prev
	}
	p.prev, p.next, p.in = nil, nil, false
	l.n--
}

// LenLocked is how many wait.
func (l *Line[T]) LenLocked() int { return l.n }

// WaitingLocked is how many wait and how long the first has.
func (l *Line[T]) WaitingLocked() (n int, longest time.Duration) {
	if l.first == nil {
		return 0, 0
	}
	return l.n, time.Since(l.first.Since)
}

// Served is closed when the place has been served.
func (p *Place[T]) Served() <-chan struct{} { return p.served }

// Await waits until the place is served, ctx ends or gone is closed. Nil: what was wanted is the
// caller's, also when the wait was called off at the same moment. After an error the owner serves
// the line: those behind may have waited for this one only. mu is the owner's lock, not held.
func (l *Line[T]) Await(mu sync.Locker, p *Place[T], ctx context.Context, gone <-chan struct{}) error {
	var err error
	select {
	case <-p.served:
		return nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-gone:
		err = ErrGone
	}
	mu.Lock()
	defer mu.Unlock()
	if !l.LeaveLocked(p) {
		return nil
	}
	return err
}

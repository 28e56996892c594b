// A bound: so many places, and a line for those who find none free.

package wait

import (
	"context"
	"sync"
	"time"
)

// Bound counts places that are taken and given back. The zero value has no bound.
type Bound struct {
	mu   sync.Mutex
	size int // 0: no bound
	used int
	line Line[struct{}]
}

// Resize sets the number of places, 0 for no bound. Places that are taken stay taken.
func (b *Bound) Resize(size int) {
	b.mu.Lock()
	b.size = size
	b.serveLocked()
	b.mu.Unlock()
}

// Try takes a place that is free, if nobody waits for it.
func (b *Bound) Try() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.line.LenLocked() > 0 || !b.freeLocked() {
		return false
	}
	b.used++
	return true
}

// Acquire takes a place, and waits for it behind those who came before until ctx ends or gone is
// closed. Nil: the place is the caller's, who gives it back with Release.
func (b *Bound) Acquire(ctx context.Context, gone <-chan struct{}) error {
	b.mu.Lock()
	p := b.line.JoinLocked(struct{}{})
	b.serveLocked()
	b.mu.Unlock()
	return b.line.Await(&b.mu, p, ctx, gone) // all want the same: nobody waited for this one only
}

// Release gives a place back.
func (b *Bound) Release() {
	b.mu.Lock()
	b.used--
	b.serveLocked()
	b.mu.Unlock()
}

// Used is how many places are taken.
func (b *Bound) Used() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// Waiting is how many wait and how long the first has.
func (b *Bound) Waiting() (n int, longest time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.line.WaitingLocked()
}

func (b *Bound) freeLocked() bool { return b.size <= 0 || b.used < b.size }

func (b *Bound) serveLocked() {
	b.line.ServeLocked(func(*Place[struct{}]) Verdict {
		if !b.freeLocked() {
			return Stop
		}
		b.used++
		return Serve
	})
}

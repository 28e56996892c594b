//go:build lockrank && amd64

package lock

import (
	"fmt"
	"slices"
	"sync"
)

// Mutex is a mutex of a rank.
type Mutex[R Rank] struct{ mu sync.Mutex }

// Ranked: order is looked after.
const Ranked = true

// Any is a mutex of whatever rank.
type Any = sync.Locker

// Lock locks m, which must come later in the order than all that the goroutine holds.
func (m *Mutex[R]) Lock() {
	var r R
	take(any(r))
	m.mu.Lock()
}

// Unlock unlocks m.
func (m *Mutex[R]) Unlock() {
	var r R
	drop(any(r))
	m.mu.Unlock()
}

var order = []any{Logins{}, Gate{}, Pool{}, Upstream{}, Server{}, Closes{}, Shard{}, Leaf{}}

// held are the ranks that each goroutine holds, by its address.
var held struct {
	mu sync.Mutex
	by map[uintptr][]any
}

func take(r any) {
	g := goroutine()
	held.mu.Lock()
	defer held.mu.Unlock()
	for _, h := range held.by[g] {
		if slices.Index(order, h) >= slices.Index(order, r) {
			panic(fmt.Sprintf("lock: %T is taken under %T, which comes no earlier in the order", r, h))
		}
	}
	if held.by == nil {
		held.by = make(map[uintptr][]any)
	}
	held.by[g] = append(held.by[g], r)
}

func drop(r any) {
	g := goroutine()
	held.mu.Lock()
	defer held.mu.Unlock()
	i := slices.Index(held.by[g], r)
	if i < 0 {
		panic(fmt.Sprintf("lock: a goroutine unlocks %T and has not locked it", r))
	}
	if held.by[g] = slices.Delete(held.by[g], i, i+1); len(held.by[g]) == 0 {
		delete(held.by, g)
	}
}

// goroutine is the address of the caller's own goroutine. It is another's only when that has ended,
// which then holds nothing.
func goroutine() uintptr

//go:build lockrank && amd64

package lock

import (
	"sync"
	"testing"
)

func TestOrder(t *testing.T) {
	var pool Mutex[Pool]
	var up, other Mutex[Upstream]
	var leaf Mutex[Leaf]
	ok := func(f func()) (ok bool) {
		defer func() { ok = recover() == nil }()
		f()
		return true
	}
	under := func(outer, inner sync.Locker) bool {
		outer.Lock()
		defer outer.Unlock()
		return ok(func() { inner.Lock(); inner.Unlock() })
	}
	for _, x := range []struct {
		name         string
		outer, inner sync.Locker
		want         bool
	}{
		{"in order", &pool, &up, true}, {"in order, not the next", &pool, &leaf, true},
		{"out of order", &up, &pool, false}, {"two of a rank", &up, &other, false}, {"again", &pool, &up, true},
	} {
		if got := under(x.outer, x.inner); got != x.want {
			t.Errorf("%s: passes %v, want %v", x.name, got, x.want)
		}
	}
	pool.Lock()
	done := make(chan bool)
	go func() {
		done <- under(&up, &leaf) && !ok(pool.Unlock) // what another holds is nothing to this one
	}()
	if !<-done {
		t.Error("goroutines are mixed up")
	}
	pool.Unlock()
	if len(held.by) != 0 {
		t.Errorf("%v is held in the end", held.by)
	}
}

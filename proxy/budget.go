// message_buffer: the room for publishes that have come in part.

package proxy

import (
	"context"
	"sync"
)

// budget bounds the bytes of all publishes that are not whole; who comes first is served first.
type budget struct {
	mu    sync.Mutex
	size  int64
	used  int64
	queue []*budgetWait
}

type budgetWait struct {
	n    int64
	done chan struct{}
}

// acquire waits for n bytes. False: ctx ended first, or gone was closed.
func (g *budget) acquire(ctx context.Context, n int64, gone <-chan struct{}) bool {
	g.mu.Lock()
	w := &budgetWait{n: n, done: make(chan struct{})}
	g.queue = append(g.queue, w)
	g.serveLocked()
	g.mu.Unlock()
	select {
	case <-w.done:
		return true
	case <-ctx.Done():
	case <-gone:
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, x := range g.queue {
		if x == w {
			g.queue = append(g.queue[:i], g.queue[i+1:]...)
			g.serveLocked()
			return false
		}
	}
	g.used -= n // it was served meanwhile
	g.serveLocked()
	return false
}

func (g *budget) release(n int64) {
	g.mu.Lock()
	g.used -= n
	g.serveLocked()
	g.mu.Unlock()
}

func (g *budget) resize(n int64) {
	g.mu.Lock()
	g.size = n
	g.serveLocked()
	g.mu.Unlock()
}

func (g *budget) serveLocked() {
	for len(g.queue) > 0 {
		w := g.queue[0]
		if g.used+w.n > g.size && g.used != 0 {
			return
		}
		g.used += w.n
		close(w.done)
		g.queue = g.queue[1:]
	}
}

// try takes n bytes if they are free and nobody waits.
func (g *budget) try(n int64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.queue) == 0 && (g.used+n <= g.size || g.used == 0) {
		g.used += n
		return true
	}
	return false
}

// wanted tells whether somebody waits for room.
func (g *budget) wanted() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.queue) > 0
}

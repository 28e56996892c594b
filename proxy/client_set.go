// The set of clients, in shards: whatever looks at all of them, ten times a second and for every
// statistic, holds up no client that comes or leaves meanwhile for longer than a shard takes.

package proxy

import (
	"slices"
	"sync/atomic"

	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
)

const clientShards = 256

// clientSet holds the clients that are connected.
type clientSet struct {
	n      atomic.Int64
	shards [clientShards]clientShard
}

type clientShard struct {
	mu    lock.Mutex[lock.Shard] // a leaf
	all   []*client              // each at its own at
	ended bool
	gone  uint64 // bytes sent to those that have left
	_     [64]byte
}

func (s *clientSet) shard(c *client) *clientShard { return &s.shards[c.n%clientShards] }

// add takes a client in, unless the set has ended, or own says no.
func (s *clientSet) add(c *client, own func() bool) bool {
	h := s.shard(c)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended || !own() {
		return false
	}
	c.at = int32(len(h.all))
	h.all = append(h.all, c)
	s.n.Add(1)
	return true
}

// remove takes a client out. True: it was the last.
func (s *clientSet) remove(c *client) bool {
	h := s.shard(c)
	h.mu.Lock()
	defer h.mu.Unlock()
	n := len(h.all) - 1
	last := h.all[n]
	h.all[c.at], last.at = last, c.at
	h.all[n] = nil
	if h.all = h.all[:n]; n > 16 && n < cap(h.all)/4 { // a crowd has left
		h.all = slices.Clone(h.all)
	}
	h.gone += uint64(c.out.Written.Load())
	return s.n.Add(-1) == 0
}

func (s *clientSet) len() int { return int(s.n.Load()) }

// appendTo appends those for which which is true (nil: all). It is called with a shard's lock held.
func (s *clientSet) appendTo(to []*client, which func(*client) bool) []*client {
	for i := range s.shards {
		h := &s.shards[i]
		h.mu.Lock()
		for _, c := range h.all {
			if which == nil || which(c) {
				to = append(to, c)
			}
		}
		h.mu.Unlock()
	}
	return to
}

// end lets nobody in any more, and gives those that are there.
func (s *clientSet) end() (all []*client) {
	for i := range s.shards {
		h := &s.shards[i]
		h.mu.Lock()
		h.ended = true
		all = append(all, h.all...)
		h.mu.Unlock()
	}
	return all
}

// written is what has been sent to clients, those that have left included: who is here and who
// has left are one step, so that it only grows.
func (s *clientSet) written() (n uint64) {
	for i := range s.shards {
		h := &s.shards[i]
		h.mu.Lock()
		n += h.gone
		for _, c := range h.all {
			n += uint64(c.out.Written.Load())
		}
		h.mu.Unlock()
	}
	return n
}

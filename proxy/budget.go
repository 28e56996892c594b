// message_buffer: the room for publishes that have come in part. It is charged as bytes come,
// shared between users, and never held up by whoever is slow.

package proxy

import (
	"context"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
	"github.com/amqproxysvc/amqproxysvc/proxy/wait"
)

const (
	// roomStep is the least that is charged at a time where room is scarce.
	roomStep = 64 << 10
	// roomPace is how many bytes a second a publish must gather while others wait for room.
	roomPace = 16 << 10
	// roomPatience is how long the first in line waits before somebody slow is ended for it.
	roomPatience = 500 * time.Millisecond
)

// budget bounds the bytes of all publishes that are not whole. That nobody can be stuck half
// way: whoever has held room for longest may always have one message's worth in all (most), and
// the others, together, leave that much for it. So its publish gets whole, and then the next's.
// What fits is given, whoever waits for more: nobody can hold up others by a want that does not fit.
type budget struct {
	mu    lock.Mutex[lock.Leaf]
	size  int64
	used  int64
	most  int64 // of one message, with its frames
	users map[string]*roomUser
	line  wait.Line[want]
	// oldest of those that hold room; linked by age.
	first, last *hoard
}

// roomUser is what a user's clients hold together. Half of the room is left to other users.
type roomUser struct {
	used  int64
	holds int
	first *hoard // that has held room for longest
}

// hoard is what one client holds.
type hoard struct {
	c        *client
	user     *roomUser
	name     string
	held     int64
	need     int64 // what its publishes have announced
	gathered int64 // bytes of publishes, since it holds any

	// How fast they came, see paceLocked.
	at, seen, pace int64
	in             bool
	waits          *wait.Place[want]
	prev, next     *hoard
}

// want is n bytes more for a client.
type want struct {
	h *hoard
	n int64
}

// resize takes the settings.
func (g *budget) resize(size, message int64) {
	g.mu.Lock()
	g.size, g.most = size, roomOf(message)
	g.serveLocked()
	g.mu.Unlock()
}

// roomOf is the room that a publish with a body of the given size takes at most, see spill.add.
func roomOf(body int64) int64 {
	frames := body/(amqp.FrameMinSize/2-amqp.FrameOverhead) + 3
	return body + frames*amqp.FrameOverhead
}

// scarce reports whether room is to be given in small steps: a quarter of it may be promised for
// what is yet to come, the rest is for what is there.
func (g *budget) scarce() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.used >= g.size/4 || g.size < 16*spillBig
}

// announce notes a publish that may need so much in all; release takes it back.
func (g *budget) announce(h *hoard, need int64) {
	g.mu.Lock()
	h.need += need
	g.mu.Unlock()
}

// try gives n bytes if they are free.
func (g *budget) try(h *hoard, n int64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.fitsLocked(h, n, g.largestLocked) {
		return false
	}
	g.giveLocked(h, n)
	return true
}

// acquire waits for n bytes. False: ctx ended first, or gone was closed.
func (g *budget) acquire(ctx context.Context, h *hoard, n int64, gone <-chan struct{}) bool {
	g.mu.Lock()
	if g.fitsLocked(h, n, g.largestLocked) { // those before it have what fits
		g.giveLocked(h, n)
		g.mu.Unlock()
		return true
	}
	h.waits = g.line.JoinLocked(want{h, n})
	g.mu.Unlock()
	err := g.line.Await(&g.mu, h.waits, ctx, gone)
	g.mu.Lock()
	defer g.mu.Unlock()
	h.waits = nil // it stood in nobody's way
	return err == nil
}

// release gives back the room of a publish, with what it had announced.
func (g *budget) release(h *hoard, n, need int64) {
	g.mu.Lock()
	h.need -= need
	if h.in {
		g.used -= n
		h.held -= n
		h.user.used -= n
		if h.held == 0 {
			g.leaveLocked(h)
		}
	}
	g.serveLocked()
	g.mu.Unlock()
}

// came counts bytes of publishes.
func (g *budget) came(h *hoard, n int64) {
	g.mu.Lock()
	h.gathered += n
	g.mu.Unlock()
}

func (g *budget) giveLocked(h *hoard, n int64) {
	if !h.in {
		g.enterLocked(h)
	}
	g.used += n
	h.held += n
	h.user.used += n
}

// enterLocked makes the client the youngest of those that hold room.
func (g *budget) enterLocked(h *hoard) {
	if g.users == nil {
		g.users = make(map[string]*roomUser)
	}
	u := g.users[h.name]
	if u == nil {
		u = &roomUser{}
		g.users[h.name] = u
	}
	u.holds++
	if u.first == nil {
		u.first = h
	}
	h.user, h.in, h.at, h.seen, h.pace = u, true, 0, h.gathered, -1
	h.prev, h.next = g.last, nil
	if g.last == nil {
		g.first = h
	} else {
		g.last.next = h
	}
	g.last = h
}

func (g *budget) leaveLocked(h *hoard) {
	if h.prev == nil {
		g.first = h.next
	} else {
		h.prev.next = h.next
	}
	if h.next == nil {
		g.last = h.prev
	} else {
		h.next.prev = h.prev
	}
	if u := h.user; u.first == h {
		u.first = h.next
		for u.first != nil && u.first.user != u {
			u.first = u.first.next
		}
	}
	h.prev, h.next, h.in = nil, nil, false
	if h.user.holds--; h.user.holds == 0 {
		delete(g.users, h.name)
	}
}

// fitsLocked reports whether n bytes more are free for a client. What the others hold never comes
// near what the first may still need. largest is largestLocked, or what it has said.
func (g *budget) fitsLocked(h *hoard, n int64, largest func() int64) bool {
	if g.first == nil || g.first == h && h.held+n <= g.most {
		return true
	}
	others := g.used - min(g.first.held, g.most) + n
	if others+g.most > g.size && others+max(largest(), min(h.need, g.most)) > g.size {
		return false
	}
	// The client of a user that has held room for longest is not held up by its share, or all of them might wait
	// for one another.
	u := g.users[h.name]
	return u == nil || u.used+n <= g.size/2 || u.first == h
}

// largestLocked is the most that one of those that hold room may still be promised.
func (g *budget) largestLocked() (most int64) {
	for x := g.first; x != nil && most < g.most; x = x.next {
		most = max(most, x.need)
	}
	return min(most, g.most)
}

func (g *budget) serveLocked() {
	if g.line.LenLocked() == 0 {
		return
	}
	largest := g.largestLocked()
	said := func() int64 { return largest }
	g.line.ServeLocked(func(p *wait.Place[want]) wait.Verdict {
		h, n := p.Want.h, p.Want.n
		if !g.fitsLocked(h, n, said) {
			return wait.Skip
		}
		g.giveLocked(h, n)
		largest = max(largest, min(h.need, g.most)) // it holds room now
		return wait.Serve
	})
}

// wanted reports whether somebody waits for room.
func (g *budget) wanted() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.line.LenLocked() > 0
}

// slowest is the client to be ended for those that wait, or nil: one that gathers less than
// roomPace; after limit, the slowest whatever its pace. Where all that hold room wait for more, the
// one that holds most. A client that is ended frees room only a moment later: it is named once.
func (g *budget) slowest(now int64, limit time.Duration) *client {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.first == nil {
		return nil
	}
	g.paceLocked(now)
	n, longest := g.line.WaitingLocked()
	if n == 0 || longest < roomPatience {
		return nil
	}
	var worst, most *hoard
	stuck := true // all that hold room wait for more
	for h := g.first; h != nil; h = h.next {
		if h.waits != nil {
			if most == nil || h.held > most.held {
				most = h
			}
			stuck = stuck && h.c.phase.Load() == phaseRunning // else it is about to free its own
			continue
		}
		stuck = false
		if h.pace < 0 || !h.c.reading.Load() || h.c.phase.Load() != phaseRunning {
			continue // too new to be judged, or held up by the broker, or ended already
		}
		if worst == nil || h.pace < worst.pace || h.pace == worst.pace && h.held > worst.held {
			worst = h
		}
	}
	switch {
	case worst != nil && (worst.pace < roomPace || longest >= limit):
		return worst.c
	case stuck && most != nil:
		return most.c // they wait for one another, and no time changes that
	case worst == nil && most != nil && longest >= 2*limit && g.first == most:
		return most.c // its publishes do not fit together, and nobody else can go on
	}
	return nil
}

// paceLocked measures how fast publishes come, over a second or more.
func (g *budget) paceLocked(now int64) {
	for h := g.first; h != nil; h = h.next {
		switch past := now - h.at; {
		case h.at == 0 || h.waits != nil || !h.c.reading.Load():
			h.at, h.seen = now, h.gathered // time in line, or behind the broker, does not count
		case past >= int64(time.Second):
			h.pace = (h.gathered - h.seen) * int64(time.Second) / past
			h.at, h.seen = now, h.gathered
		}
	}
}

// Publishes that are not whole when a chunk ends: they are taken out of the run and
// gathered, so that the broker gets every publish whole or not at all.

package proxy

import (
	"encoding/binary"
	"log/slog"
	"sync"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// spill gathers the frames of one publish.
type spill struct {
	p        []byte
	need     int64 // what it may take in all
	reserved int64 // of the message buffer
	seen     int   // of p, when it was last looked at
	last     int   // where the last frame begins, if it is a body; else 0
}

const (
	// spillStep bounds what is allocated before the bytes for it have come.
	spillStep = 4 << 20
	// tailMax is the largest publish that waits in the read buffer for the rest of it.
	tailMax = 48 << 10
)

// Buffers for publishes of up to 128 KiB and of up to 1 MiB, the sizes of most large ones,
// are used again. None is taken for less than an eighth of it.
var (
	spillSmallPool = sync.Pool{New: func() any { return new([spillSmall]byte) }}
	spillBigPool   = sync.Pool{New: func() any { return new([spillBig]byte) }}
)

const (
	spillSmall = 128<<10 + 8<<10
	spillBig   = 1<<20 + 64<<10
)

// leaveTail leaves a publish that is not whole in the read buffer, to be routed anew when
// more has come, if it is the last in the run, nothing is mixed with it and the buffer can
// hold all of it. It returns the place up to which the buffer has been dealt with,
// and how many frames stay.
func (c *client) leaveTail(pos int) (until int, frames uint64) {
	var ch *channel
	for x := range c.chans.all() {
		if x.inRun {
			ch = x
		}
	}
	b := ch.cur.Load()
	size := int64(pos - ch.start)
	if ch.content == wantBody {
		size += int64(ch.remaining) + (int64(ch.remaining)/(amqp.FrameMinSize-amqp.FrameOverhead)+1)*amqp.FrameOverhead
	}
	if size > tailMax {
		return pos, 0
	}
	tail := c.buf[ch.start:pos]
	for at := 0; at < len(tail); {
		f := amqp.Frame(tail[at:])
		if f.Channel() != b.id {
			return pos, 0
		}
		n, _, _ := amqp.Split(tail[at:], 0)
		at += n
	}
	for at := 0; at < len(tail); {
		amqp.Frame(tail[at:]).SetChannel(ch.id)
		n, _, _ := amqp.Split(tail[at:], 0)
		at += n
		frames++
	}
	ch.content, ch.inRun = noContent, false
	c.gathered = 0
	c.e0 = ch.start
	c.rd.Expect(int(size))
	return ch.start, frames
}

// cutOpen takes the frames of publishes that are not whole out of the run.
func (c *client) cutOpen() {
	first := c.e0
	for ch := range c.chans.all() {
		if ch.inRun {
			first = min(first, ch.start)
		}
	}
	tail := c.buf[first:c.e0]
	kept := first
	for len(tail) > 0 {
		n, _, err := amqp.Split(tail, 0)
		if err != nil || n == 0 {
			break // cannot be: a run holds whole frames
		}
		at := c.e0 - len(tail)
		f := amqp.Frame(tail[:n])
		ch := c.ofRun(f)
		if ch != nil && ch.inRun && at >= ch.start {
			if ch.spill == nil {
				ch.spill = &spill{}
				c.spilling++
			}
			ch.spill.add(f)
		} else {
			kept += copy(c.buf[kept:], f)
		}
		tail = tail[n:]
	}
	c.e0 = kept
	for ch := range c.chans.all() {
		ch.inRun = false
	}
	c.gathered = 0
}

// ofRun is the channel whose frame, with the upstream's id in it, stands in the run.
func (c *client) ofRun(f amqp.Frame) *channel {
	id := f.Channel()
	for _, b := range c.run.bs {
		if b.id == id {
			return b.ch
		}
	}
	return nil
}

// reserveAll has the room charged that the publishes outside of the run take, now that the
// client may have to wait for it. What has come of them since is less than one chunk each.
func (c *client) reserveAll() {
	if c.hoard == nil {
		c.hoard = &hoard{c: c, name: c.user}
	}
	came := int64(0)
	for ch := range c.chans.all() {
		sp := ch.spill
		if sp == nil || ch.content != wantBody {
			continue
		}
		came += int64(len(sp.p) - sp.seen)
		sp.seen = len(sp.p)
		if sp.need == 0 {
			sp.need = roomOf(int64(ch.bodySize))
			c.s.budget.announce(c.hoard, sp.need)
		}
		// Room for one chunk more, unless less is to come.
		if next := min(sp.need, int64(len(sp.p))+roomStep); next > sp.reserved && !c.reserve(sp, next) {
			return
		}
	}
	c.s.budget.came(c.hoard, came)
}

// reserve gets a publish a buffer that holds at least so much, and waits for the room it takes.
// False: the client is being closed.
func (c *client) reserve(sp *spill, least int64) bool {
	g := &c.s.budget
	size := sp.next(least, g.scarce())
	n := size - sp.reserved
	if !g.try(c.hoard, n) {
		size = max(sp.next(least, true), int64(cap(sp.p)))
		n = size - sp.reserved
		c.settle()
		// Whoever holds the room must go on sending or give it up, see budget.slowest.
		if !g.acquire(c.env.ctx, c.hoard, n, c.gone) {
			return false // nobody is left to hear why
		}
	}
	sp.reserved = size
	switch {
	case size <= int64(cap(sp.p)):
	case size == spillSmall:
		sp.grow(spillSmallPool.Get().(*[spillSmall]byte)[:0])
	case size == spillBig:
		sp.grow(spillBigPool.Get().(*[spillBig]byte)[:0])
	default:
		sp.grow(make([]byte, 0, size))
	}
	return c.phase.Load() == phaseRunning
}

// next is the size of the next buffer, which holds at least so much: one that is used again and
// room for what is likely to come, or, where room is scarce, little more than has come.
func (sp *spill) next(least int64, scarce bool) int64 {
	size := max(least, int64(cap(sp.p)))
	switch {
	case scarce:
		return min(sp.need, max(size, 2*sp.reserved))
	case sp.need > spillSmall/8 && sp.need <= spillSmall:
		return max(size, spillSmall)
	case sp.need > spillSmall && size <= spillBig:
		return spillBig
	}
	return max(size, min(sp.need, max(spillStep, sp.reserved+sp.reserved/2)))
}

func (sp *spill) grow(next []byte) {
	old := sp.p
	sp.p = append(next, old...)
	recycleSpill(old)
}

// gather adds a frame to a publish that is not in the run. When it was the last, the
// publish is sent.
func (c *client) gather(ch *channel, f amqp.Frame) {
	sp := ch.spill
	sp.add(f)
	if ch.content != noContent {
		return
	}
	c.flushRun()
	b := ch.cur.Load()
	p := c.resplit(b.u, sp.p)
	c.env.n.toUpstreams.Add(uint64(len(p)))
	if err := b.u.sendBig(b, p); err != nil {
		c.log(slog.LevelDebug, "publish not sent", "error", err)
	}
	c.dropSpill(ch)
}

// add appends a frame. Small bodies become one, and empty ones nothing, so that a client
// cannot have a small message take much room.
func (sp *spill) add(f amqp.Frame) {
	if f.Type() != amqp.FrameBody {
		sp.p, sp.last = append(sp.p, f...), 0
		return
	}
	body := f.Payload()
	if len(body) == 0 {
		return
	}
	if sp.last == 0 || len(sp.p)-sp.last+len(body) > amqp.FrameMinSize {
		sp.last = len(sp.p)
		sp.p = append(sp.p, f...)
		return
	}
	sp.p = append(append(sp.p[:len(sp.p)-1], body...), amqp.FrameEnd)
	binary.BigEndian.PutUint32(sp.p[sp.last+3:], uint32(len(sp.p)-sp.last-amqp.FrameOverhead))
}

func (c *client) dropSpill(ch *channel) {
	if sp := ch.spill; sp != nil {
		recycleSpill(sp.p)
		if c.hoard != nil {
			c.s.budget.release(c.hoard, sp.reserved, sp.need)
		}
		ch.spill = nil
		c.spilling--
	}
}

func recycleSpill(p []byte) {
	switch cap(p) {
	case spillSmall:
		spillSmallPool.Put((*[spillSmall]byte)(p[:spillSmall]))
	case spillBig:
		spillBigPool.Put((*[spillBig]byte)(p[:spillBig]))
	}
}

// fits reports whether a method or header, which cannot be cut, is no larger than the upstream
// takes: the brokers of a cluster may differ, or have changed since the client's tune. False:
// the client is being closed.
func (c *client) fits(u *upstream, f amqp.Frame) bool {
	size, most := uint32(len(f.Payload())), u.tune.FrameMax
	if size <= amqp.FrameMinSize || most == 0 || size <= most {
		return true
	}
	c.env.n.firewallCloses.Add(1)
	return c.die(amqp.FrameTooLarge(f.Type(), size, most))
}

// resplit cuts bodies anew when the broker's frame_max is smaller than the client's.
func (c *client) resplit(u *upstream, p []byte) []byte {
	most := u.tune.FrameMax
	if most == 0 || (c.frameMax != 0 && c.frameMax <= most) {
		return p
	}
	var out []byte
	for at := 0; at < len(p); {
		n, _, err := amqp.Split(p[at:], 0)
		if err != nil || n == 0 {
			break // cannot be
		}
		f := amqp.Frame(p[at : at+n])
		if uint32(n) > most && f.Type() == amqp.FrameBody {
			if out == nil {
				out = append(make([]byte, 0, len(p)+len(p)/8), p[:at]...)
			}
			out = amqp.AppendBody(out, f.Channel(), f.Payload(), most)
		} else if out != nil {
			out = append(out, f...)
		}
		at += n
	}
	if out == nil {
		return p
	}
	return out
}

// Publishes that are not whole when a chunk ends: they are taken out of the run and
// gathered, so that the broker gets every publish whole or not at all.

package proxy

import (
	"context"
	"encoding/binary"
	"log/slog"
	"sync"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// spill gathers the frames of one publish.
type spill struct {
	p        []byte
	reserved int64 // of the message buffer
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

// reserveAll asks for the room that the publishes outside of the run take, now that the
// client may have to wait for it. What has come of them so far is less than one chunk each.
func (c *client) reserveAll() {
	for ch := range c.chans.all() {
		if ch.spill == nil || ch.spill.reserved != 0 || ch.content != wantBody {
			continue
		}
		if !c.reserve(ch.spill, ch.bodySize) {
			return
		}
	}
}

// reserve waits for room for a publish with a body of the given size. False: the client is being closed.
func (c *client) reserve(sp *spill, body uint64) bool {
	frames := int64(body)/(amqp.FrameMinSize/2-amqp.FrameOverhead) + 3 // see spill.add
	need := int64(body) + frames*amqp.FrameOverhead
	if !c.s.budget.try(need) {
		c.settle()
		// Whoever holds the room must go on sending or give it up, see client.hoarding.
		ctx, cancel := context.WithTimeout(c.env.ctx, c.env.cfg().WriteTimeout)
		defer cancel()
		if !c.s.budget.acquire(ctx, need, c.gone) {
			select {
			case <-c.gone:
				return false // nobody is left to hear why
			default:
			}
			c.die(amqp.Errorf(amqp.ResourceError, amqp.BasicPublish,
				"the unfinished publishes of all clients fill message_buffer = %d bytes", c.env.cfg().MessageBuffer))
			return false
		}
	}
	sp.reserved = need
	c.hoards.Store(true)
	switch room := min(need, spillStep); {
	case room <= int64(cap(sp.p)):
	case room > spillSmall/8 && room <= spillSmall:
		sp.p = append(spillSmallPool.Get().(*[spillSmall]byte)[:0], sp.p...)
	case room > spillBig/8 && room <= spillBig:
		sp.p = append(spillBigPool.Get().(*[spillBig]byte)[:0], sp.p...)
	default:
		sp.p = append(make([]byte, 0, room), sp.p...)
	}
	return true
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
	if ch.spill != nil {
		c.s.budget.release(ch.spill.reserved)
		switch p := ch.spill.p; cap(p) {
		case spillSmall:
			spillSmallPool.Put((*[spillSmall]byte)(p[:spillSmall]))
		case spillBig:
			spillBigPool.Put((*[spillBig]byte)(p[:spillBig]))
		}
		ch.spill = nil
		if c.spilling--; c.spilling == 0 {
			c.hoards.Store(false)
		}
	}
}

// fits tells whether a method or header, which cannot be cut, is no larger than the upstream
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

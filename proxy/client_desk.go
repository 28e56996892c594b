// What a client's reader works with while it has work.

package proxy

import (
	"sync"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
)

// desk is the part of a client that only its reader needs, and that is empty whenever the client rests: then the client
// has none, and it is somebody else's. Idle clients are most of a crowd, and this is a third of what one would take.
type desk struct {
	rd      amqp.Reader
	took    int   // by tryRead, see receive
	readErr error // of tryRead
	run     run
	room    runRoom
	s0, e0  int // the run is buf[s0:e0]
	buf     []byte
	lately  lateChannel
	did     deeds
	toldAt  int64 // when that was added up last, coarse clock

	barredBy  string       // amid the handshake: its address may not connect, unless it is the server's own; by this setting
	hazardsOf *broker.Info // whose hazards are known
	known     hazards
}

var desks = sync.Pool{New: func() any {
	d := new(desk)
	d.run.init(&d.room)
	return d
}}

// takeDesk is called before the reader does anything after a rest.
func (c *client) takeDesk() {
	if c.desk == nil {
		c.desk = desks.Get().(*desk)
		c.rd.MaxFrame = c.maxFrame()
	}
}

// clearDesk gives the desk of a client that rests back, unless something still lies on it. Its reader is about to wait,
// and may have been woken for nothing: then there is none.
func (c *client) clearDesk() {
	if c.desk != nil && c.rested.Load() && c.rd.Empty() && !c.lately.content && !c.isLate(c.lately.id) && c.did == (deeds{}) {
		c.leaveDesk()
	}
}

// leaveDesk gives the desk back, for a client that rests or has ended.
func (c *client) leaveDesk() {
	d := c.desk
	if d == nil {
		return
	}
	c.desk = nil
	d.rd.Release()
	d.run.reset()
	d.clear()
	desks.Put(d)
}

// clear makes the desk as good as new, but for what its run's slices have grown to. Field by field: a whole one at once
// stands on the stack in between, which that of a client at rest has no room for.
func (d *desk) clear() {
	d.rd = amqp.Reader{}
	d.readErr = nil
	d.buf = nil
	d.lately = lateChannel{}
	d.did = deeds{}
	d.toldAt = 0
	d.barredBy = ""
}

// maxFrame bounds the payload of the client's frames.
func (c *client) maxFrame() uint32 {
	if c.frameMax == 0 {
		return broker.UnboundedFrame
	}
	return c.frameMax
}

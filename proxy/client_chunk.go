// What a client sent in one go: frames are routed, and those that are passed on gather in a
// run that leaves at once.

package proxy

import (
	"errors"
	"log/slog"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// chunk routes all whole frames of what was read. False: the client has ended.
func (c *client) chunk() bool {
	buf := c.rd.Buffered()
	c.buf = buf
	c.s0, c.e0 = 0, 0
	pos, frames := 0, uint64(0)
	alive := true
	t := c.traced.Load()
	if t != nil {
		t.heard()
	}
	for alive {
		if amqp.Frame(buf[pos:]).Method() == amqp.BasicPublish && c.phase.Load() == phaseRunning {
			if until, n := c.wholePublishes(pos); n > 0 {
				pos, frames = until, frames+n
				continue
			}
		}
		n, need, err := amqp.Split(buf[pos:], c.rd.MaxFrame)
		if err != nil {
			var e *amqp.Error
			errors.As(err, &e)
			c.die(e)
			pos = len(buf)
			break
		}
		if n == 0 {
			c.rd.Expect(need)
			break
		}
		f := amqp.Frame(buf[pos : pos+n])
		frames++
		if c.phase.Load() != phaseRunning {
			alive = c.afterClose(f)
		} else if c.route(f) {
			c.keep(f, pos)
		}
		pos += n
	}
	if c.gathered == 1 && c.e0 == pos {
		var left uint64
		pos, left = c.leaveTail(pos)
		frames -= left
	}
	c.flushRun()
	c.rd.Skip(pos)
	c.buf = nil // it goes back when there is nothing to read, and must not be held from here
	if t != nil {
		t.passed(pos)
	}
	c.env.n.framesClients.Add(frames)
	if alive && c.spilling > 0 && c.phase.Load() == phaseRunning {
		c.reserveAll()
	}
	c.out.Flush()
	if c.s.queues.over.Load() {
		c.s.relieve()
	}
	if c.glut {
		c.glut = false
		c.waitRoom(nil) // whoever reads no answers is asked for no more
	}
	return alive
}

// keep puts the frame at buf[pos:] at the end of the run.
func (c *client) keep(f amqp.Frame, pos int) {
	switch d := c.desk; {
	case d.s0 == d.e0:
		d.s0, d.e0 = pos, pos+len(f)
	case d.e0 == pos:
		d.e0 += len(f)
	default:
		d.e0 += copy(d.buf[d.e0:], f)
	}
	if c.begun != nil {
		c.begun.start = c.e0 - len(f)
		c.begun = nil
	}
}

// flushRun sends the run, publishes that are not whole set aside.
func (c *client) flushRun() {
	if c.gathered > 0 {
		c.cutOpen()
	}
	if c.run.u != nil && (c.e0 > c.s0 || len(c.run.prefix) > 0 || len(c.run.closes) > 0) {
		c.run.body = c.resplit(c.run.u, c.buf[c.s0:c.e0])
		c.env.n.toUpstreams.Add(uint64(len(c.run.body) + len(c.run.prefix)))
		if err := c.run.u.send(&c.run, c.gone); err != nil {
			c.log(slog.LevelDebug, "frames not sent", "error", err)
		}
	}
	c.run.reset()
	c.runSeq++
	c.s0 = c.e0
}

// settle lets everything go that waits for the end of the chunk, before the reader waits
// for something itself.
func (c *client) settle() {
	c.flushRun()
	c.out.Flush()
}

// afterClose takes what comes when connection.close was sent or answered. False: the end.
func (c *client) afterClose(f amqp.Frame) bool {
	switch f.Method() {
	case amqp.ConnectionCloseOk:
		return f.Type() != amqp.FrameMethod || f.Channel() != 0
	case amqp.ConnectionClose:
		if f.Type() == amqp.FrameMethod && f.Channel() == 0 {
			c.mu.Lock()
			c.out.SetBufferLocked(amqp.AppendMethod(c.out.BufferLocked(16), 0, amqp.ConnectionCloseOk))
			c.mu.Unlock()
		}
	}
	return true
}

// In-memory connections that behave like TCP where it matters: buffered both ways,
// with deadlines, half close and reset. They work in testing/synctest bubbles,
// where a blocked read or write counts as idle.

package proxytest

import (
	"context"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// memCapacity is what one direction of an in-memory connection holds before a write waits.
const memCapacity = 256 << 10

// Pipe makes the two ends of an in-memory connection. capacity is what each direction
// holds before a write waits, in octets; 0: 256 KiB.
func Pipe(capacity int) (a, b *MemConn) {
	if capacity <= 0 {
		capacity = memCapacity
	}
	ab, ba := newHalf(capacity), newHalf(capacity)
	return &MemConn{in: ba, out: ab, local: "mem:a", remote: "mem:b"},
		&MemConn{in: ab, out: ba, local: "mem:b", remote: "mem:a"}
}

// MemConn is one end of an in-memory connection.
type MemConn struct {
	in, out       *half
	local, remote memAddr
	abort         atomic.Bool // Close resets
}

type memAddr string

func (memAddr) Network() string  { return "mem" }
func (a memAddr) String() string { return string(a) }

// half is one direction.
type half struct {
	mu       sync.Mutex
	changed  *sync.Cond
	buf      []byte
	capacity int
	ended    bool // the writer will write no more
	deaf     bool // the reader will read no more
	reset    bool
	read     deadline
	write    deadline
}

func newHalf(capacity int) *half {
	h := &half{capacity: capacity}
	h.changed = sync.NewCond(&h.mu)
	return h
}

// deadline is guarded by its half's lock.
type deadline struct {
	timer  *time.Timer
	set    int // how often it was set; an old timer's firing counts for nothing
	passed bool
}

func (h *half) setDeadline(d *deadline, t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.set++
	d.passed = false
	if t.IsZero() {
		return
	}
	left := time.Until(t)
	if left <= 0 {
		d.passed = true
		h.changed.Broadcast()
		return
	}
	set := d.set
	d.timer = time.AfterFunc(left, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if d.set == set {
			d.passed = true
			h.changed.Broadcast()
		}
	})
}

// Read implements net.Conn.
func (c *MemConn) Read(p []byte) (int, error) {
	h := c.in
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.reset:
			return 0, c.fail("read", syscall.ECONNRESET)
		case h.deaf:
			return 0, c.fail("read", net.ErrClosed)
		case h.read.passed:
			return 0, c.fail("read", os.ErrDeadlineExceeded)
		case len(p) == 0:
			return 0, nil
		case len(h.buf) > 0:
			n := copy(p, h.buf)
			h.buf = h.buf[n:]
			if len(h.buf) == 0 {
				h.buf = nil
			}
			h.changed.Broadcast()
			return n, nil
		case h.ended:
			return 0, io.EOF
		}
		h.changed.Wait()
	}
}

// Write implements net.Conn.
func (c *MemConn) Write(p []byte) (n int, err error) {
	h := c.out
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.reset:
			return n, c.fail("write", syscall.ECONNRESET)
		case h.ended:
			return n, c.fail("write", net.ErrClosed)
		case h.write.passed:
			return n, c.fail("write", os.ErrDeadlineExceeded)
		case h.deaf:
			return n, c.fail("write", syscall.EPIPE)
		case len(p) == 0:
			return n, nil
		}
		if room := h.capacity - len(h.buf); room > 0 {
			k := min(room, len(p))
			h.buf = append(h.buf, p[:k]...)
			p, n = p[k:], n+k
			h.changed.Broadcast()
			continue
		}
		h.changed.Wait()
	}
}

func (c *MemConn) fail(op string, err error) error {
	return &net.OpError{Op: op, Net: "mem", Source: c.local, Addr: c.remote, Err: err}
}

func (h *half) change(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
	h.changed.Broadcast()
}

// SetLinger has, as with TCP, Close reset the connection where the time is 0.
func (c *MemConn) SetLinger(sec int) error {
	c.abort.Store(sec == 0)
	return nil
}

// Close ends both directions; the peer reads what is on the way and then an end of file.
func (c *MemConn) Close() error {
	if c.abort.Load() {
		c.Reset()
	}
	_ = c.SetDeadline(time.Time{}) // so that no timer is left behind
	var again bool
	c.out.change(func() { c.out.ended = true })
	c.in.change(func() { again, c.in.deaf, c.in.buf = c.in.deaf, true, nil })
	if again {
		return c.fail("close", net.ErrClosed)
	}
	return nil
}

// CloseWrite ends the direction to the peer only.
func (c *MemConn) CloseWrite() error {
	c.out.change(func() { c.out.ended = true })
	return nil
}

// Reset ends both directions at once, as a TCP reset does; what is on the way is lost.
func (c *MemConn) Reset() {
	for _, h := range []*half{c.in, c.out} {
		h.change(func() { h.reset, h.buf = true, nil })
	}
}

// Buffered is how many octets wait to be read at this end.
func (c *MemConn) Buffered() int {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	return len(c.in.buf)
}

// LocalAddr implements net.Conn.
func (c *MemConn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn.
func (c *MemConn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements net.Conn.
func (c *MemConn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (c *MemConn) SetReadDeadline(t time.Time) error {
	c.in.setDeadline(&c.in.read, t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *MemConn) SetWriteDeadline(t time.Time) error {
	c.out.setDeadline(&c.out.write, t)
	return nil
}

// MemListener accepts in-memory connections that its own Dial makes.
type MemListener struct {
	name     memAddr
	capacity int

	mu      sync.Mutex
	changed *sync.Cond
	queue   []*MemConn
	dialed  int
	closed  bool
	refuse  error
}

// ListenMem makes a listener; name is its address (HOST:PORT where somebody parses it),
// capacity that of its connections as for Pipe.
func ListenMem(name string, capacity int) *MemListener {
	l := &MemListener{name: memAddr(name), capacity: capacity}
	l.changed = sync.NewCond(&l.mu)
	return l
}

// Dial connects to the listener. It has the shape of the proxy's dial seam; network and
// address do not matter.
func (l *MemListener) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.refuse != nil {
		err := l.refuse
		if err == nil {
			err = syscall.ECONNREFUSED
		}
		return nil, &net.OpError{Op: "dial", Net: "mem", Addr: l.name, Err: err}
	}
	l.dialed++
	a, b := Pipe(l.capacity)
	a.remote, b.local = l.name, l.name
	a.local = memAddr("127.0.0.1:" + strconv.Itoa(40000+l.dialed))
	b.remote = a.local
	l.queue = append(l.queue, b)
	l.changed.Broadcast()
	return a, nil
}

// Refuse makes every further Dial fail with err; nil: dials succeed again.
func (l *MemListener) Refuse(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refuse = err
}

// Accept implements net.Listener.
func (l *MemListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if l.closed {
			return nil, &net.OpError{Op: "accept", Net: "mem", Addr: l.name, Err: net.ErrClosed}
		}
		if len(l.queue) > 0 {
			c := l.queue[0]
			l.queue = l.queue[1:]
			return c, nil
		}
		l.changed.Wait()
	}
}

// Close implements net.Listener; connections that nobody accepted are reset.
func (l *MemListener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return &net.OpError{Op: "close", Net: "mem", Addr: l.name, Err: net.ErrClosed}
	}
	l.closed = true
	for _, c := range l.queue {
		c.Reset()
	}
	l.queue = nil
	l.changed.Broadcast()
	return nil
}

// Addr implements net.Listener.
func (l *MemListener) Addr() net.Addr { return l.name }

// Abort ends a connection with a reset where it can have one.
func Abort(c net.Conn) {
	switch v := c.(type) {
	case *MemConn:
		v.Reset()
		_ = v.Close()
		return
	case *net.TCPConn:
		v.SetLinger(0) // an error means that the socket is closed already
	case interface{ NetConn() net.Conn }:
		Abort(v.NetConn())
	}
	c.Close() // an error means that it is closed already
}

//go:build unix

// Writing what a socket takes at once.

package proxy

import (
	"net"
	"sync"
	"syscall"
)

// rawConn is the connection's raw form if it can be written to without waiting.
func rawConn(conn net.Conn) syscall.RawConn {
	if t, ok := conn.(*net.TCPConn); ok {
		if raw, err := t.SyscallConn(); err == nil {
			return raw
		}
	}
	return nil
}

// attempt is one write with its outcome; kept for the next, so that none is allocated.
type attempt struct {
	p     net.Buffers
	n     int
	err   error
	write func(fd uintptr) bool
}

var attempts = sync.Pool{New: func() any {
	a := &attempt{}
	a.write = func(fd uintptr) bool {
		for {
			a.n, a.err = a.once(int(fd))
			if a.err != syscall.EINTR {
				return true
			}
		}
	}
	return a
}}

func (a *attempt) once(fd int) (int, error) {
	if len(a.p) == 1 {
		return syscall.Write(fd, a.p[0])
	}
	return writev(fd, a.p)
}

// TryWrite implements outbox.Trier.
func (c *client) TryWrite(p net.Buffers) (n int, err error) {
	a := attempts.Get().(*attempt)
	a.p = p
	failed := c.raw.Write(a.write)
	n, err = max(a.n, 0), a.err
	a.p, a.n, a.err = nil, 0, nil
	attempts.Put(a)
	if failed != nil {
		err = failed
	}
	if err == syscall.EAGAIN {
		err = nil
	}
	return n, err
}

//go:build unix

// Writing what a socket takes at once.

package proxy

import (
	"errors"
	"net"
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

// tryWrite writes what the socket takes at once; n may be anything up to len(p).
func (c *client) tryWrite(p []byte) (n int, err error) {
	failed := c.raw.Write(func(fd uintptr) bool {
		for {
			n, err = syscall.Write(int(fd), p)
			if !errors.Is(err, syscall.EINTR) {
				return true
			}
		}
	})
	if failed != nil {
		err = failed
	}
	if errors.Is(err, syscall.EAGAIN) {
		err = nil
	}
	return max(n, 0), err
}

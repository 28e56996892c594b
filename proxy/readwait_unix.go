//go:build unix

// Reading without a buffer while there is nothing to read.

package proxy

import (
	"io"
	"os"
	"syscall"
)

// receive reads once. While it waits for the client the reader holds no buffer, and at rest no desk: what one
// client has done with, the next that has something to say is read into. Under TLS the socket is
// asked from within, so that no call of it stands on the stack meanwhile.
func (c *client) receive() (n int, err error) {
	raw := c.raw
	if c.under != nil {
		raw = c.under.raw
	}
	if raw == nil {
		return c.rd.Fill(c.conn)
	}
	if c.tryRead == nil {
		c.tryRead = c.tryPlain
		if c.under != nil {
			c.tryRead = c.tryEncrypted
		}
	}
	if err := raw.Read(c.tryRead); err != nil {
		return 0, err
	}
	if c.took > 0 {
		c.rd.Took(c.took)
	}
	return c.took, c.readErr
}

// tryPlain reads what is there. False: nothing is.
func (c *client) tryPlain(fd uintptr) bool {
	c.takeDesk()
	c.took, c.readErr = readNow(int(fd), c.rd.Borrow())
	if c.readErr == syscall.EAGAIN {
		c.rd.Rest()
		c.clearDesk()
		return false
	}
	return true
}

// tryEncrypted is tryPlain under TLS. It may have to read several times for one record, and keeps what is a
// part of one. A client that rests is looked at first: TLS would make its stack grow.
func (c *client) tryEncrypted(fd uintptr) bool {
	if c.under.dry && c.rested.Load() {
		var one [1]byte
		if _, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT); err == syscall.EAGAIN {
			c.clearDesk()
			return false
		}
	}
	c.takeDesk()
	c.under.fd = int(fd)
	c.took, c.readErr = c.conn.Read(c.rd.Borrow())
	c.under.fd = -1
	c.under.dry = c.took == 0
	if c.readErr == syscall.EAGAIN {
		if c.took == 0 {
			c.rd.Rest()
			c.clearDesk()
			return false
		}
		c.readErr = nil
	}
	return true
}

// readNow reads from a socket that does not wait.
func readNow(fd int, p []byte) (n int, err error) {
	for {
		n, err = syscall.Read(fd, p)
		switch {
		case err == syscall.EINTR:
		case err == syscall.EAGAIN: // for TLS a temporary error, after which it goes on
			return 0, err
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

//go:build unix

// Reading without a buffer while there is nothing to read.

package proxy

import (
	"io"
	"os"
	"syscall"
)

// receive reads once. While it waits for the client the reader holds no buffer: what one
// client has done with, the next that has something to say is read into.
func (c *client) receive() (n int, err error) {
	if c.raw == nil {
		return c.rd.Fill(c.conn)
	}
	if c.tryRead == nil {
		c.tryRead = func(fd uintptr) bool {
			for {
				c.took, c.readErr = syscall.Read(int(fd), c.rd.Borrow())
				if c.readErr != syscall.EINTR {
					break
				}
			}
			if c.readErr == syscall.EAGAIN {
				c.rd.Rest()
				return false
			}
			return true
		}
	}
	c.took, c.readErr = 0, nil
	if err := c.raw.Read(c.tryRead); err != nil {
		return 0, err
	}
	switch {
	case c.readErr != nil:
		return 0, os.NewSyscallError("read", c.readErr)
	case c.took == 0:
		return 0, io.EOF
	}
	c.rd.Took(c.took)
	return c.took, nil
}

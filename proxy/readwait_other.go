//go:build !unix

// Where a socket cannot be asked without waiting, it is read into the reader's own buffer.

package proxy

func (c *client) receive() (n int, err error) { return c.rd.Fill(c.conn) }

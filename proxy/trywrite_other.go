//go:build !unix

// Where a socket cannot be written to without waiting, a goroutine writes.

package proxy

import (
	"net"
	"syscall"
)

func rawConn(net.Conn) syscall.RawConn { return nil }

// TryWrite implements outbox.Trier.
func (c *client) TryWrite(net.Buffers) (int, error) { return 0, nil }

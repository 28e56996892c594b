package proxy

import (
	"net"

	"golang.org/x/sys/unix"
)

// quickAck gives a function that has the kernel acknowledge what has been read at once, or nil.
// A peer that sends its answers in several small segments, without TCP_NODELAY, waits
// for that acknowledgement before the second one, and Linux would hold it back for 40 ms. It
// is to be called after each read: the kernel goes back to waiting by itself.
func quickAck(conn net.Conn) func() {
	t, ok := underneath(conn).(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return nil
	}
	set := func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) }
	return func() { _ = raw.Control(set) } // fails on a closed socket only
}

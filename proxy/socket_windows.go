package proxy

import (
	"net"

	"golang.org/x/sys/windows"
)

// sioTCPSetAckFrequency is SIO_TCP_SET_ACK_FREQUENCY of mstcpip.h.
const sioTCPSetAckFrequency = windows.IOC_IN | windows.IOC_VENDOR | 23

// quickAck has each segment acknowledged at once, where Windows would wait for a second one
// or 200 ms: a peer without TCP_NODELAY that sends its answers in several segments waits for
// that. Set once, it stays; there is nothing to do after a read.
func quickAck(conn net.Conn) func() {
	t, ok := underneath(conn).(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return nil
	}
	_ = raw.Control(func(fd uintptr) {
		every, n := byte(1), uint32(0) // a TCP_ACK_FREQUENCY_PARAMETERS
		_ = windows.WSAIoctl(windows.Handle(fd), sioTCPSetAckFrequency, &every, 1, nil, 0, &n, nil, 0)
	})
	return nil
}

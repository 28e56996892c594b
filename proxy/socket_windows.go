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
	_ = raw.Control(func(fd uintptr) { _ = setAckFrequency(windows.Handle(fd), 1) }) // without it answers are slower, no more
	return nil
}

// setAckFrequency has each segments-th one acknowledged without a wait. Systems before Windows 10 1511
// and Wine do not know it.
func setAckFrequency(socket windows.Handle, segments byte) error {
	returned := uint32(0)
	parameters := &segments // a TCP_ACK_FREQUENCY_PARAMETERS is this octet
	return windows.WSAIoctl(socket, sioTCPSetAckFrequency, parameters, 1, nil, 0, &returned, nil, 0)
}

package proxytest

import (
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// DialerFrom makes connections from an address of this machine: each of 127.0.0.0/8 has ports of its own. Which port
// it is, is chosen when it is known where to; else the kernel looks for one that nobody has at all, for most of the time.
func DialerFrom(address string) *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}, Control: func(_, _ string, c syscall.RawConn) (err error) {
		failed := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1) })
		return errors.Join(failed, err)
	}}
}

//go:build !linux

package proxytest

import "net"

// DialerFrom makes connections from an address of this machine.
func DialerFrom(address string) *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
}

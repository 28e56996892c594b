// What a socket is told beyond what package net knows of.

package proxy

import "net"

// underneath is the socket of a connection, that of TLS too.
func underneath(conn net.Conn) net.Conn {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		return t.NetConn()
	}
	return conn
}

// abrupt has a connection end by a reset when it is closed: a peer that still writes hears of
// it at once, where a mere end of the stream would let its first write succeed.
func abrupt(conn net.Conn) {
	if t, ok := underneath(conn).(interface{ SetLinger(sec int) error }); ok {
		_ = t.SetLinger(0) // an error means that it is closed already
	}
}

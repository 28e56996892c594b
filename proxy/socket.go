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

// In a crowd of clients on this machine a socket's receive buffer stays as small as it begins.
// Linux lets it grow to megabytes for whoever sends faster than the broker takes, for each of
// thousands, until the memory that it keeps for all of TCP is spent: then it drops segments, the
// upstreams' first of all, and everybody waits for repeats.
const (
	crowdFrom   = 1000     // clients; for the first ones a larger buffer saves system calls
	crowdBuffer = 64 << 10 // bytes; Linux counts its own part beside it
)

// crowded keeps the receive buffer of a new client small when there are clients many others. One
// from afar keeps its own: there the buffer bounds how fast it can send.
func crowded(sock net.Conn, clients int) {
	if clients < crowdFrom {
		return
	}
	t, ok := sock.(interface{ SetReadBuffer(bytes int) error })
	if from, is := sock.RemoteAddr().(*net.TCPAddr); ok && is && from.IP.IsLoopback() {
		_ = t.SetReadBuffer(crowdBuffer) // an error means that it is closed already
	}
}

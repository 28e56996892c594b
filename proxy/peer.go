// A peer: an accepted socket with what is known of it whatever is spoken over it: its true
// address, whether it is encrypted, and the socket itself, for what only that can do.

package proxy

import (
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"
)

type peer struct {
	lst  *listener
	conn net.Conn // what is spoken over: the socket, or the encryption on it
	sock net.Conn // the socket
	// raw is the socket's, where bytes go over it as they are and it can be read and written
	// without waiting; else nil.
	raw   syscall.RawConn
	under *encrypted // between the socket and TLS; nil: no TLS
	// told is the address that a balancer has told, nil: the socket's is true.
	told atomic.Pointer[net.TCPAddr]
}

// accepted takes in a socket of the listener, on which nothing has been read.
func (p *peer) accepted(sock net.Conn, lst *listener) {
	p.lst, p.conn, p.sock, p.raw = lst, sock, sock, rawConn(sock)
}

// address is the client's own, whatever stands between.
func (p *peer) address() net.Addr {
	if told := p.told.Load(); told != nil {
		return told
	}
	return p.conn.RemoteAddr()
}

// host is the address without the port, or all of one that has none.
func (p *peer) host() string {
	a := p.address()
	if t, ok := a.(*net.TCPAddr); ok {
		return (&net.IPAddr{IP: t.IP, Zone: t.Zone}).String()
	}
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return host
}

// network is what counts as one address: an IPv4 one, or an IPv6 network of one site.
func (p *peer) network() (netip.Prefix, bool) { return networkOf(p.address()) }

func networkOf(addr net.Addr) (netip.Prefix, bool) {
	a, ok := ipOf(addr)
	if !ok {
		return netip.Prefix{}, false
	}
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	return p, err == nil
}

// ipOf is the IP address of a TCP address, an IPv4 one as such.
func ipOf(addr net.Addr) (netip.Addr, bool) {
	t, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}, false
	}
	a, ok := netip.AddrFromSlice(t.IP)
	return a.Unmap(), ok
}

// keepAlive has the kernel look whether the peer is still there.
func (p *peer) keepAlive() {
	if t, ok := p.sock.(*net.TCPConn); ok {
		_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 4})
	}
}

// hangUp closes the connection without waiting: encryption says goodbye first, which a peer
// that reads nothing can hold up for seconds.
func (p *peer) hangUp(spawn func(func())) {
	if p.conn == p.sock {
		_ = p.conn.Close()
		return
	}
	spawn(func() { _ = p.conn.Close() })
}

// loggedIn takes the bound off what a client may send before its login. Its reader calls it.
func (p *peer) loggedIn() {
	if p.under != nil {
		p.under.left = -1
	}
}

// reset ends the connection of a client that broke the rules: what the peer still sends fails at once
// instead of going nowhere. Nothing is said before, and nothing waited for.
func (p *peer) reset() {
	abrupt(p.sock)
	_ = p.sock.Close()
}

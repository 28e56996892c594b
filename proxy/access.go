// Access by address: networks that may connect, and networks that may not. Others are closed
// without a byte.

package proxy

import (
	"log/slog"
	"net"
	"net/netip"
	"slices"
)

// Access is who may connect.
type Access struct {
	// Allow are the networks that may; empty: all. Deny are those of them that may not.
	Allow, Deny []netip.Prefix
}

func (a *Access) open() bool { return len(a.Allow)+len(a.Deny) == 0 }

// admits reports whether an address may connect. One that is no IP address is in no network.
func (a *Access) admits(from net.Addr) bool {
	if a.open() {
		return true
	}
	ip, known := ipOf(from)
	ip = ip.WithZone("")
	has := func(n netip.Prefix) bool { return known && n.Contains(ip) }
	if slices.ContainsFunc(a.Deny, has) {
		return false
	}
	return len(a.Allow) == 0 || slices.ContainsFunc(a.Allow, has)
}

// bars names the setting by which an address may not connect to the listener; "": it may.
func (l *listener) bars(cfg *Config, from net.Addr) string {
	if !cfg.Access.admits(from) {
		return "client.allow, client.deny"
	}
	if a := l.access.Load(); a != nil && !a.admits(from) {
		return "listener.allow, listener.deny"
	}
	return ""
}

func (l *listener) setAccess(a Access) {
	if a.open() {
		l.access.Store(nil)
		return
	}
	l.access.Store(&a)
}

// barred notes a connection that is closed for its address.
func (s *Server) barred(from net.Addr, setting string) {
	s.n.barred.Add(1)
	s.log.Info("client refused: its address may not connect", "address", from.String(), "setting", setting)
}

// maybeOwn reports whether a connection may be the server's own question to itself: it comes from the address
// that it leads to, while one is under way. Which it is shows when it has spoken.
func (s *Server) maybeOwn(sock net.Conn) bool {
	if s.checking.Load() == 0 {
		return false
	}
	from, ok1 := ipOf(sock.RemoteAddr())
	to, ok2 := ipOf(sock.LocalAddr())
	return ok1 && ok2 && from == to
}

// stopsBarred ends a client that was let in only since it might have been the server itself. True: it has ended.
func (c *client) stopsBarred() bool {
	if c.barredBy == "" || c.s.isOwn(c.sock.RemoteAddr()) {
		return false
	}
	c.s.barred(c.sock.RemoteAddr(), c.barredBy)
	return true
}

// mayConnect reports whether the address that a balancer has told may connect.
func (c *client) mayConnect() bool {
	if c.s.isOwn(c.sock.RemoteAddr()) {
		return true
	}
	setting := c.lst.bars(c.env.cfg(), c.address())
	if setting == "" {
		return true
	}
	c.env.n.barred.Add(1)
	c.log(slog.LevelInfo, "client refused: its address may not connect", "setting", setting)
	return false
}

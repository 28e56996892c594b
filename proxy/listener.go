// A listener: an address on which clients are accepted, and what it does with each before the
// client's own goroutine takes over.

package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// listener is a bound one. Its configuration is that of the start, but for what is live.
type listener struct {
	Listener
	ln     net.Listener
	tls    atomic.Pointer[serverTLS] // nil: a plain one, for ever
	shakes tlsCounts
	proxy  atomic.Pointer[ProxyProtocol] // nil: connections are the clients' own, for ever
	heard  proxyCounts
	access atomic.Pointer[Access] // nil: all may connect

	accepted atomic.Uint64
	clients  atomic.Int64 // connected now
}

// sameAs reports whether a listener of the old configuration can go on as one of the new: in
// what it is, not in the certificates that it shows.
func (l *Listener) sameAs(v *Listener) bool {
	return l.Address == v.Address && l.Mode == v.Mode && l.MatchProperties == v.MatchProperties && (l.TLS == nil) == (v.TLS == nil) &&
		(l.Proxy == nil) == (v.Proxy == nil)
}

// renew takes what is live of a new configuration's listeners, into those that are bound and
// into the configuration that stays in force.
func (s *Server) renew(in, next []Listener) []Listener {
	in = slices.Clone(in)
	s.mu.Lock()
	bound := s.listeners
	s.mu.Unlock()
	for i := range in {
		j := i
		if j >= len(next) || !in[i].sameAs(&next[j]) {
			j = slices.IndexFunc(next, func(l Listener) bool { return in[i].sameAs(&l) })
		}
		if j < 0 {
			continue
		}
		in[i].TLS, in[i].Proxy, in[i].Access = next[j].TLS, next[j].Proxy, next[j].Access
		if i >= len(bound) {
			continue
		}
		if in[i].TLS != nil {
			bound[i].setTLS(in[i].TLS, s.isOwn)
		}
		if in[i].Proxy != nil {
			bound[i].proxy.Store(in[i].Proxy)
		}
		bound[i].setAccess(in[i].Access)
	}
	return in
}

// changedListeners names the listeners that a reload cannot change.
func changedListeners(old, next []Listener) (names []string) {
	if len(old) != len(next) {
		return []string{"listeners"}
	}
	for i := range next {
		if !next[i].sameAs(&old[i]) {
			names = append(names, fmt.Sprintf("listener %d", i+1))
		}
	}
	return names
}

// listenConfig leaves TCP keep-alive to client.rest: most clients are gone before it could
// matter, and it is four system calls.
var listenConfig = net.ListenConfig{KeepAlive: -1}

// ListenNetwork is the network to listen on at HOST:PORT: for an IPv4 address that of IPv4
// alone, as 0.0.0.0 would be all IPv6 addresses too in Go's "tcp".
func ListenNetwork(address string) string {
	if a, err := netip.ParseAddrPort(address); err == nil && a.Addr().Is4() {
		return "tcp4"
	}
	return "tcp"
}

// bind binds every listener of the configuration, or none. An inherited one takes the place of
// that with the same index.
func (s *Server) bind(listeners []Listener, inherited []net.Listener) ([]*listener, error) {
	var bound []*listener
	for i, l := range listeners {
		var ln net.Listener
		if i < len(inherited) {
			ln = inherited[i]
		}
		if ln == nil {
			var err error
			if ln, err = listenConfig.Listen(context.Background(), ListenNetwork(l.Address), l.Address); err != nil {
				closeAll(bound)
				return nil, fmt.Errorf("cannot listen on %s: %w", l.Address, err)
			}
		}
		b := &listener{Listener: l, ln: ln}
		if l.TLS != nil {
			b.setTLS(l.TLS, s.isOwn)
		}
		b.proxy.Store(l.Proxy)
		b.setAccess(l.Access)
		bound = append(bound, b)
	}
	return bound, nil
}

// accept takes clients until the listener ends.
func (s *Server) accept(l *listener) {
	for pause := time.Duration(0); ; {
		sock, err := l.ln.Accept()
		if err == nil {
			pause = 0
			s.admit(sock, l)
			continue
		}
		s.mu.Lock()
		on := s.accepting
		s.mu.Unlock()
		if !on {
			return
		}
		if errors.Is(err, net.ErrClosed) {
			s.end(fmt.Errorf("listener %s: %w", l.ln.Addr(), err))
			return
		}
		// Out of descriptors, most often: clients that leave make room.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		s.log.Warn("cannot accept clients", "listener", l.ln.Addr().String(), "error", err, "retry_in", pause)
		select {
		case <-time.After(pause):
		case <-s.ctx.Done():
			return
		}
	}
}

// admit starts a client, if there is a place for it.
func (s *Server) admit(sock net.Conn, l *listener) {
	from, known := networkOf(sock.RemoteAddr())
	told := l.proxy.Load() != nil // then it is not yet known who comes, see hearProxy
	known = known && !told
	barred := ""
	if !told {
		if barred = l.bars(s.cfg(), sock.RemoteAddr()); barred != "" && !s.maybeOwn(sock) {
			s.barred(sock.RemoteAddr(), barred)
			_ = sock.Close()
			return
		}
	}
	s.mu.Lock()
	ups := len(s.upstreams)
	s.mu.Unlock()
	clients := s.clients.len()
	if why := s.limits.begin(from, known, s.cfg().MaxHandshakes, clients+ups); why != "" {
		s.turnedAway(sock.RemoteAddr(), why)
		_ = sock.Close()
		return
	}
	crowded(sock, clients)
	c := &client{s: s, env: &s.env, shaking: true, placed: known, gone: make(chan struct{}), runSeq: 1}
	c.takeDesk()
	c.barredBy = barred
	c.accepted(sock, l)
	if t := l.tls.Load(); t != nil {
		c.encrypt(t)
	}
	c.n = s.n.clientsTotal.Add(1)
	c.started = s.now()
	c.lastRead.Store(c.started)
	c.chans.few = c.few[:0]
	c.out.Init(&c.mu, c.conn, &s.coarse, c.broken)
	c.rd.Init(make([]byte, clientBuffer), handshakeFrame)
	c.rd.MaxBuffer = handshakeFrame + amqp.FrameOverhead // whoever it is, no more before open-ok
	// A client that was accepted just before the listener closed is drained with the others:
	// with socket activation the next process would have served it.
	if !s.clients.add(c, s.owners.add) {
		s.limits.over(from, known)
		_ = sock.Close()
		return
	}
	l.accepted.Add(1)
	l.clients.Add(1)
	go c.serve()
}

// Listeners are the bound listeners, in the order of the configuration.
func (s *Server) Listeners() []net.Listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]net.Listener, len(s.listeners))
	for i, l := range s.listeners {
		all[i] = l.ln
	}
	return all
}

// Addrs are the bound addresses in the order of Config.Listeners.
func (s *Server) Addrs() []net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	addrs := make([]net.Addr, len(s.listeners))
	for i, l := range s.listeners {
		addrs[i] = l.ln.Addr()
	}
	return addrs
}

// closeAll closes listeners.
func closeAll(listeners []*listener) {
	for _, l := range listeners {
		_ = l.ln.Close()
	}
}

// ListenerStats is one listener.
type ListenerStats struct {
	Address string // as bound
	// Clients are those connected now, Accepted all that were.
	Clients  int
	Accepted uint64
	// TLSHandshakes are by how they ended, see TLSResults; nil: a plain listener.
	TLSHandshakes []uint64
	Certificates  []CertificateStats
	// ProxyHeaders are by what came of them, see ProxyResults; nil: a listener without the PROXY protocol.
	ProxyHeaders []uint64
}

// CertificateStats is a certificate that a listener shows.
type CertificateStats struct {
	File     string
	NotAfter time.Time
}

func (s *Server) listenerStats() []ListenerStats {
	s.mu.Lock()
	bound := s.listeners
	s.mu.Unlock()
	all := make([]ListenerStats, 0, len(bound))
	for _, l := range bound {
		st := ListenerStats{Address: l.ln.Addr().String(), Clients: int(l.clients.Load()), Accepted: l.accepted.Load()}
		if t := l.tls.Load(); t != nil {
			for i := range l.shakes {
				st.TLSHandshakes = append(st.TLSHandshakes, l.shakes[i].Load())
			}
			for i := range t.Certificates {
				if leaf := t.Certificates[i].Leaf; leaf != nil && i < len(t.Files) {
					st.Certificates = append(st.Certificates, CertificateStats{t.Files[i], leaf.NotAfter})
				}
			}
		}
		if l.proxy.Load() != nil {
			for i := range l.heard {
				st.ProxyHeaders = append(st.ProxyHeaders, l.heard[i].Load())
			}
		}
		all = append(all, st)
	}
	return all
}

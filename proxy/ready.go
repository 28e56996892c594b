// Questions about the server's health: can the broker be reached, does the proxy answer?

package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
)

// Ready reports whether the broker can be reached, with the reason when not.
func (s *Server) Ready(ctx context.Context) error {
	s.mu.Lock()
	accepting, ups := s.accepting, len(s.upstreams)
	s.mu.Unlock()
	switch {
	case !accepting:
		return errors.New("the proxy is not accepting clients")
	case ups > 0:
		return nil // heartbeats watch over it
	}
	return s.door().Check(ctx)
}

// isOwn reports whether a connection from there is SelfCheck's.
func (s *Server) isOwn(from net.Addr) bool {
	_, own := s.selfChecks.Load(from.String())
	return own
}

// SelfCheck makes a login-free handshake with the server's own first listener and
// reports what is wrong, if anything; a watchdog's question.
func (s *Server) SelfCheck(ctx context.Context) error {
	s.mu.Lock()
	listeners := s.listeners
	s.mu.Unlock()
	if len(listeners) == 0 {
		return errors.New("no listener is bound")
	}
	l := listeners[0]
	addr := l.ln.Addr().String()
	if a, ok := l.ln.Addr().(*net.TCPAddr); ok && a.IP.IsUnspecified() {
		addr = net.JoinHostPort("localhost", fmt.Sprint(a.Port))
	}
	s.checking.Add(1) // before: the server hears of the connection sooner than this side does
	defer s.checking.Add(-1)
	var d net.Dialer
	before := s.n.turnedAway.Load()
	conn, err := d.DialContext(ctx, "tcp", addr)
	if errno := syscall.Errno(0); errors.As(err, &errno) && outOfDescriptors(errno) {
		return nil // the question cannot be asked: clients fill the process, which serves them
	}
	if err != nil {
		return fmt.Errorf("the proxy's own listener: %w", err)
	}
	defer func() { _ = conn.Close() }()
	from := conn.LocalAddr().String()
	s.selfChecks.Store(from, nil)
	defer s.selfChecks.Delete(from)
	if err := greets(ctx, conn, l); err != nil {
		if s.n.turnedAway.Load() != before {
			return nil // it answers, with no place for one more
		}
		return fmt.Errorf("the proxy's own listener %s: %w", addr, err)
	}
	return nil
}

// greets reports what is wrong with the greeting of the server's own listener.
func greets(ctx context.Context, conn net.Conn, l *listener) error {
	if p := l.proxy.Load(); p != nil {
		if _, direct := p.speaks(conn.LocalAddr()); !direct {
			if _, err := conn.Write(ownHeader()); err != nil {
				return err
			}
		}
	}
	if l.tls.Load() != nil {
		// Whether its certificate is for this name is no question of life.
		t := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
		if err := t.HandshakeContext(ctx); err != nil {
			return err
		}
		conn = t
	}
	return broker.Greets(ctx, conn)
}

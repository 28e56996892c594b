// Questions about the server's health: can the broker be reached, does the proxy answer?

package proxy

import (
	"context"
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
	return s.broker.Check(ctx)
}

// SelfCheck makes a login-free handshake with the server's own first listener and
// reports what is wrong, if anything; a watchdog's question.
func (s *Server) SelfCheck(ctx context.Context) error {
	addrs := s.Addrs()
	if len(addrs) == 0 {
		return errors.New("no listener is bound")
	}
	addr := addrs[0].String()
	if a, ok := addrs[0].(*net.TCPAddr); ok && a.IP.IsUnspecified() {
		addr = net.JoinHostPort("localhost", fmt.Sprint(a.Port))
	}
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
	s.selfChecks.Store(conn.LocalAddr().String(), nil)
	defer s.selfChecks.Delete(conn.LocalAddr().String())
	if err := broker.Greets(ctx, conn); err != nil {
		if s.n.turnedAway.Load() != before {
			return nil // it answers, with no place for one more
		}
		return fmt.Errorf("the proxy's own listener %s: %w", addr, err)
	}
	return nil
}

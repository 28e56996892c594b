// Questions about the server's health: can the broker be reached, does the proxy answer?

package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
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
	if d := s.down.Load(); d != nil && s.clock().Before(d.until) {
		return d.err
	}
	cfg := s.cfg()
	ctx, cancel := context.WithTimeout(ctx, cfg.ConnectTimeout)
	defer cancel()
	conn, err := cfg.Dial(ctx, "tcp", cfg.Upstream.Address())
	if err == nil && cfg.Upstream.TLS != nil {
		conn, err = startTLS(ctx, conn, cfg.Upstream)
	}
	if err == nil {
		err = greet(ctx, conn)
		_ = conn.Close()
	}
	if err != nil {
		return fmt.Errorf("the broker at %s cannot be reached: %w", cfg.Upstream.Address(), err)
	}
	return nil
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
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("the proxy's own listener: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if err := greet(ctx, conn); err != nil {
		return fmt.Errorf("the proxy's own listener %s: %w", addr, err)
	}
	return nil
}

// greet sends the protocol header and expects connection.start.
func greet(ctx context.Context, conn net.Conn) error {
	if t, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(t)
	}
	if _, err := conn.Write(amqp.ProtocolHeader[:]); err != nil {
		return err
	}
	rd := amqp.NewReader(4<<10, 1<<20)
	for {
		f, err := rd.Next()
		if err != nil {
			return err
		}
		if f != nil {
			if f.Type() != amqp.FrameMethod || f.Method() != amqp.ConnectionStart {
				return errors.New("it does not answer with connection.start")
			}
			return nil
		}
		if _, err := rd.Fill(conn); err != nil {
			return err
		}
	}
}

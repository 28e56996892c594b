// Package control is the way to a running service for those on its machine: a Unix socket or
// a Windows named pipe, over which HTTP is spoken, and who is at its other end. What can be
// asked there is not its business.
package control

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"
)

// Peer is who is at the other end of a connection.
type Peer struct {
	// Admin: root, an administrator, or the user who runs the service.
	Admin bool
	// Name is for the log: "uid 0".
	Name string
}

// ErrInUse is Listen's error where another process answers.
var ErrInUse = errors.New("another process serves it")

// Server answers on one socket. Make it with New, end it with Close.
type Server struct {
	http    *http.Server
	ln      net.Listener
	bounded *bounded
	adopted bool
	done    chan struct{}
}

const (
	// maxConns bounds the connections held at a time: each is somebody's command.
	maxConns = 32
	// forAdmins are kept beyond it for those who may change something: whoever may only look shuts
	// nobody out who has to end it.
	forAdmins = 8
)

// New binds the socket at a path and has the handler answer there. withPeer puts who asks
// into each connection's context. The socket is bound when it returns.
func New(at string, handler http.Handler, withPeer func(context.Context, Peer) context.Context) (*Server, error) {
	ln, err := listen(at)
	if err != nil {
		return nil, err
	}
	return serving(ln, handler, withPeer), nil
}

// Adopt is New on a socket that another process of the program has bound and is to give up: until Own it is that one's.
func Adopt(ln net.Listener, handler http.Handler, withPeer func(context.Context, Peer) context.Context) *Server {
	s := serving(ln, handler, withPeer)
	s.adopted = true
	return s
}

// Own makes an adopted socket this process's.
func (s *Server) Own() {
	if s.adopted {
		own(s.ln)
	}
}

func serving(ln net.Listener, handler http.Handler, withPeer func(context.Context, Peer) context.Context) *Server {
	b := &bounded{ln, peerOf, make(chan struct{}, maxConns), make(chan struct{}, forAdmins)}
	s := &Server{ln: ln, bounded: b, done: make(chan struct{}), http: &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second, // who does not read holds nobody up for longer
		IdleTimeout:       time.Minute,      // a watch asks every few seconds
		MaxHeaderBytes:    16 << 10,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if b, ok := c.(*boundConn); ok {
				c = b.Conn
			}
			p, err := peerOf(c)
			if err != nil {
				return ctx // and is answered nothing
			}
			return withPeer(ctx, p)
		},
	}}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(b)
	}()
	return s
}

// Listener is the socket.
func (s *Server) Listener() net.Listener { return s.ln }

// Leave ends this process's part, not the socket: another process serves it. Who has come has his answer, or until ctx ends.
func (s *Server) Leave(ctx context.Context) {
	disown(s.ln)
	_ = s.ln.Close()
	<-s.done
	// Not Shutdown: that ends whoever has come and not asked yet. So each goes after his answer.
	s.http.SetKeepAlivesEnabled(false)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for len(s.bounded.held)+len(s.bounded.admins) > 0 && ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	s.Close()
}

// Close ends the socket and its connections.
func (s *Server) Close() {
	_ = s.http.Close()
	<-s.done
}

// bounded closes at once what comes beyond the bound, so that nobody waits unanswered.
type bounded struct {
	net.Listener
	peer   func(net.Conn) (Peer, error)
	held   chan struct{}
	admins chan struct{} // held by administrators beyond held
}

func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case b.held <- struct{}{}:
			return &boundConn{Conn: c, held: b.held, closed: make(chan struct{}, 1)}, nil
		default:
		}
		if p, err := b.peer(c); err == nil && p.Admin {
			select {
			case b.admins <- struct{}{}:
				return &boundConn{Conn: c, held: b.admins, closed: make(chan struct{}, 1)}, nil
			default:
			}
		}
		_ = c.Close()
	}
}

type boundConn struct {
	net.Conn
	held   chan struct{}
	closed chan struct{}
}

func (c *boundConn) Close() error {
	select {
	case c.closed <- struct{}{}:
		<-c.held
	default:
	}
	return c.Conn.Close()
}

// Client is an HTTP client whose every request goes to the socket at the path, whatever host
// its URL names.
func Client(at string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, at) },
	}}
}

// The HTTP connections held at a time: bounded, apart for those of this machine, and with
// those that are not being answered giving way, so that a probe is, however many others hang on.

package admin

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"
)

// maxConns bounds the connections from other machines, and those from this one.
const maxConns = 64

// limitListener accepts what has a place. At the bound the connection gives way that has waited for
// longest: idle, silent from the start, or half way through a request. Where all are being
// answered, the new one is closed.
type limitListener struct {
	net.Listener
	most int

	mu   sync.Mutex
	held [2]map[*limitConn]struct{} // by local
}

func newLimitListener(ln net.Listener, most int) *limitListener {
	return &limitListener{Listener: ln, most: most, held: [2]map[*limitConn]struct{}{{}, {}}}
}

func (l *limitListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if lc := l.place(c); lc != nil {
			return lc, nil
		}
		_ = c.Close()
	}
}

// place holds a connection; nil: there is no place for it.
func (l *limitListener) place(c net.Conn) *limitConn {
	lc := &limitConn{Conn: c, listener: l, waits: time.Now()}
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok && a.IP.IsLoopback() {
		lc.local = 1
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	held := l.held[lc.local]
	if len(held) >= l.most {
		var victim *limitConn
		for h := range held {
			if !h.waits.IsZero() && (victim == nil || h.waits.Before(victim.waits)) {
				victim = h
			}
		}
		if victim == nil {
			return nil
		}
		delete(held, victim)
		_ = victim.Conn.Close() // its reader ends, and with it the rest
	}
	held[lc] = struct{}{}
	return lc
}

type connKey struct{}

// withConn is http.Server's ConnContext.
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// answering keeps a connection's place while its request is being answered.
func answering(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connKey{}).(*limitConn); ok {
			c.set(time.Time{})
			defer func() { c.set(time.Now()) }()
		}
		next.ServeHTTP(w, r)
	})
}

type limitConn struct {
	net.Conn
	listener *limitListener
	local    int       // 1: from this machine
	waits    time.Time // since when it has been waited for; zero: it is being answered
}

func (c *limitConn) set(waits time.Time) {
	c.listener.mu.Lock()
	c.waits = waits
	c.listener.mu.Unlock()
}

func (c *limitConn) Close() error {
	c.listener.mu.Lock()
	delete(c.listener.held[c.local], c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

// The HTTP connections held at a time: bounded, apart for those of this machine, and with
// idle ones giving way, so that a probe is answered however many others hang on.

package admin

import (
	"net"
	"net/http"
	"sync"
	"time"
)

// maxConns bounds the connections from other machines, and those from this one.
const maxConns = 64

// limitListener accepts what has a place. At the bound the connection that has been idle for
// longest gives way; where none is idle, the new one is closed.
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
	lc := &limitConn{Conn: c, listener: l}
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok && a.IP.IsLoopback() {
		lc.local = 1
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	held := l.held[lc.local]
	if len(held) >= l.most {
		var victim *limitConn
		for h := range held {
			if !h.idleSince.IsZero() && (victim == nil || h.idleSince.Before(victim.idleSince)) {
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

// state is http.Server's ConnState.
func (l *limitListener) state(c net.Conn, s http.ConnState) {
	lc, ok := c.(*limitConn)
	if !ok {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	lc.idleSince = time.Time{}
	if s == http.StateIdle {
		lc.idleSince = time.Now()
	}
}

type limitConn struct {
	net.Conn
	listener  *limitListener
	local     int // 1: from this machine
	idleSince time.Time
}

func (c *limitConn) Close() error {
	c.listener.mu.Lock()
	delete(c.listener.held[c.local], c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

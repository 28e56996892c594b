// The HTTP connections held at a time: bounded, apart for those of this machine, and with
// those that are not being answered giving way, so that a probe is, however many others hang on.
// Who finds no place, or loses his before he was answered, is told so (503).

package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxConns bounds the connections from other machines, and those from this one.
	maxConns = 64
	// maxFarewells bounds those that were told that there is no place and have not hung up yet.
	maxFarewells = 128
	// farewellFor is how long they may take.
	farewellFor = time.Second
)

// limitListener accepts what has a place. At the bound a connection gives way: the one that has been idle
// for longest, else the one that has been silent, or half way through its first request, for longest.
// Where all are being answered, the new one does.
type limitListener struct {
	net.Listener
	most int
	told []byte // to who has no place

	mu        sync.Mutex
	held      [2]map[*limitConn]struct{} // by local
	farewells []net.Conn                 // the oldest first
}

func newLimitListener(ln net.Listener, most int) *limitListener {
	text := fmt.Sprintf("%d connections are held already: ask again later\n", most)
	told := fmt.Sprintf("HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\n"+
		"X-Content-Type-Options: nosniff\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
	return &limitListener{Listener: ln, most: most, told: []byte(told), held: [2]map[*limitConn]struct{}{{}, {}}}
}

func (l *limitListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		lc, without := l.place(c)
		if without != nil {
			l.farewell(without)
		}
		if lc != nil {
			return lc, nil
		}
	}
}

// holds reports whether there are connections.
func (l *limitListener) holds() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.held[0])+len(l.held[1]) > 0
}

// place holds a connection; nil: there is no place for it. Without has to be told that it has none.
func (l *limitListener) place(c net.Conn) (lc *limitConn, without net.Conn) {
	lc = &limitConn{Conn: c, listener: l, waits: time.Now()}
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok && a.IP.IsLoopback() {
		lc.local = 1
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	held := l.held[lc.local]
	if len(held) >= l.most {
		var victim *limitConn
		for h := range held {
			if !h.waits.IsZero() && (victim == nil || h.before(victim)) {
				victim = h
			}
		}
		if victim == nil {
			return nil, c
		}
		delete(held, victim)
		if victim.answered {
			_ = victim.Conn.Close() // its reader ends, and with it the rest
		} else {
			victim.left.Store(true)
			without = victim.Conn
		}
	}
	held[lc] = struct{}{}
	return lc, without
}

// farewell tells a connection that there is no place, and waits a moment for its end: closed with a request
// unread it would be reset, and the answer with it. At the bound the oldest has had its moment.
func (l *limitListener) farewell(c net.Conn) {
	_ = c.SetWriteDeadline(time.Now().Add(farewellFor / 10)) // nothing was written before: it does not wait
	_, _ = c.Write(l.told)
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	l.mu.Lock()
	if len(l.farewells) >= maxFarewells {
		_ = l.farewells[0].Close()
		l.farewells = append(l.farewells[:0], l.farewells[1:]...)
	}
	l.farewells = append(l.farewells, c)
	l.mu.Unlock()
	end := time.AfterFunc(farewellFor, func() { _ = c.Close() })
	go func() {
		_, _ = io.Copy(io.Discard, io.LimitReader(c, 64<<10))
		end.Stop()
		_ = c.Close()
		l.mu.Lock()
		defer l.mu.Unlock()
		for i, f := range l.farewells {
			if f == c {
				l.farewells = append(l.farewells[:i], l.farewells[i+1:]...)
				return
			}
		}
	}()
}

type connKey struct{}

// withConn is http.Server's ConnContext.
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// answering keeps a connection's place from when its request is being answered until it is idle.
func answering(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connKey{}).(*limitConn); ok {
			c.set(time.Time{})
			if c.left.Load() {
				panic(http.ErrAbortHandler) // it was told so
			}
		}
		next.ServeHTTP(w, r)
	})
}

// idle is http.Server's ConnState: only then has the answer been sent, not when its handler returns.
func idle(c net.Conn, state http.ConnState) {
	if lc, ok := c.(*limitConn); ok && state == http.StateIdle {
		lc.set(time.Now())
	}
}

type limitConn struct {
	net.Conn
	listener *limitListener
	local    int         // 1: from this machine
	left     atomic.Bool // its place is another's, it is farewell's: the server finds it ended

	// Guarded by the listener's mu.
	waits    time.Time // since when it has been waited for; zero: it is being answered
	answered bool      // it was once
}

// before says which of two that are waited for gives way first: one that was answered loses least.
func (c *limitConn) before(o *limitConn) bool {
	if c.answered != o.answered {
		return c.answered
	}
	return c.waits.Before(o.waits)
}

func (c *limitConn) set(waits time.Time) {
	c.listener.mu.Lock()
	c.waits, c.answered = waits, true
	c.listener.mu.Unlock()
}

var errLeft = errors.New("its place was needed")

func (c *limitConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.left.Load() {
		return 0, errLeft
	}
	return n, err
}

func (c *limitConn) Write(p []byte) (int, error) {
	if c.left.Load() {
		return 0, errLeft
	}
	return c.Conn.Write(p)
}

func (c *limitConn) Close() error {
	c.listener.mu.Lock()
	delete(c.listener.held[c.local], c)
	c.listener.mu.Unlock()
	if c.left.Load() {
		return nil
	}
	return c.Conn.Close()
}

// The HTTP connections held at a time, and the requests answered: bounded, apart for those of this machine, and
// with those that are not being answered giving way, so that a probe is, however many others hang on.
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
	// maxConns bounds the connections from other machines, and those from this one, where the process has as many
	// descriptors as a service has. A crowd that comes back at once takes 64 places within milliseconds, before a
	// probe that has come has asked, or what it has asked was read; with so many it has tenths of a second.
	maxConns = 384
	// maxAnswers bounds the requests of each that are being answered. Health is not counted: it is told in a few
	// octets, and no crowd is to keep a probe from it.
	maxAnswers = 64
	// unreadFor is how long somebody may leave a part of his answer unread before he gives way to others.
	unreadFor = time.Second
	// unreadPart is the largest part: a long answer comes in one write, which a slow link takes long for.
	unreadPart = 16 << 10
	// maxFarewells bounds those that were told that there is no place and have not hung up yet.
	maxFarewells = 128
	// farewellFor is how long they may take.
	farewellFor = time.Second
)

// mostConns is maxConns, or less where there are few descriptors: with the farewells they are not to take all that
// clients leave to everything else, but seven eighths at most, unless that is less than there always were.
func mostConns(spare int) int { return min(max((spare*7/8-maxFarewells)/2, maxAnswers), maxConns) }

// limitListener accepts what has a place. At the bound a connection gives way: the one that has been idle
// for longest, else the one that has been silent, or half way through its first request, for longest, else
// one that does not read its answer. Where all are being answered, the new one does.
type limitListener struct {
	net.Listener
	most int
	born time.Time // what limitConn.writes counts from: the system's clock may be set meanwhile
	told []byte    // to who has no place

	mu        sync.Mutex
	held      [2]map[*limitConn]struct{} // by local
	answers   [2]int                     // what counts under maxAnswers
	farewells []net.Conn                 // the oldest first
}

func newLimitListener(ln net.Listener, most int) *limitListener {
	text := fmt.Sprintf("%d connections are held already: ask again later\n", most)
	told := fmt.Sprintf("HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\n"+
		"X-Content-Type-Options: nosniff\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
	return &limitListener{Listener: ln, most: most, born: time.Now(), told: []byte(told), held: [2]map[*limitConn]struct{}{{}, {}}}
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
		victim := l.victimLocked(lc.local, false)
		if victim == nil {
			return nil, c
		}
		if victim.answered {
			victim.cutLocked()
		} else {
			delete(held, victim)
			victim.left.Store(true)
			without = victim.Conn
		}
	}
	held[lc] = struct{}{}
	return lc, without
}

// victimLocked is who gives way, nil: nobody. Counted: only somebody who counts under maxAnswers will do.
func (l *limitListener) victimLocked(local int, counted bool) (victim *limitConn) {
	now := time.Now()
	best, since := nobody, now
	for h := range l.held[local] {
		if counted && !h.counted {
			continue
		}
		if rank, from := h.rankLocked(now); rank < best || rank == best && rank != nobody && from.Before(since) {
			victim, best, since = h, rank, from
		}
	}
	return victim
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
			has := c.begins(r.URL.Path != "/healthz" && r.URL.Path != "/readyz")
			if c.left.Load() {
				panic(http.ErrAbortHandler) // it was told so
			}
			if !has {
				w.Header().Set("Connection", "close")
				answer(w, http.StatusServiceUnavailable, fmt.Sprintf("%d requests are being answered already: ask again later", maxAnswers))
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// idle is http.Server's ConnState: only then has the answer been sent, not when its handler returns.
func idle(c net.Conn, state http.ConnState) {
	if lc, ok := c.(*limitConn); ok && state == http.StateIdle {
		lc.ends()
	}
}

type limitConn struct {
	net.Conn
	listener *limitListener
	local    int          // 1: from this machine
	left     atomic.Bool  // its place is another's, it is farewell's: the server finds it ended
	writes   atomic.Int64 // since when the part that is being written is not taken, in nanoseconds from born, and one; 0: none is

	// Guarded by the listener's mu.
	waits    time.Time // since when it has been waited for; zero: it is being answered
	answered bool      // it was once, or is
	counted  bool      // its request counts under maxAnswers
}

// rank is how little a connection loses that gives way.
type rank int

const (
	resting rank = iota // it was answered
	silent              // it has not asked, or not to the end
	unread              // it does not read its answer
	nobody              // it is being answered
)

// rankLocked is that, and since when.
func (c *limitConn) rankLocked(now time.Time) (rank, time.Time) {
	if !c.waits.IsZero() {
		if c.answered {
			return resting, c.waits
		}
		return silent, c.waits
	}
	if at := c.writes.Load(); at != 0 {
		if from := c.listener.born.Add(time.Duration(at - 1)); now.Sub(from) >= unreadFor {
			return unread, from
		}
	}
	return nobody, now
}

// begins is called when it has asked. False: no more are answered now, or it has lost its place meanwhile, and nobody
// is to give way to it.
func (c *limitConn) begins(counted bool) bool {
	l := c.listener
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, held := l.held[c.local][c]; !held {
		return false
	}
	c.waits, c.answered = time.Time{}, true
	if !counted {
		return true
	}
	if l.answers[c.local] >= maxAnswers {
		v := l.victimLocked(c.local, true)
		if v == nil {
			return false
		}
		v.cutLocked()
	}
	c.counted = true
	l.answers[c.local]++
	return true
}

// ends is called when its answer has been sent.
func (c *limitConn) ends() {
	c.listener.mu.Lock()
	c.waits = time.Now()
	c.uncountLocked()
	c.listener.mu.Unlock()
}

func (c *limitConn) uncountLocked() {
	if c.counted {
		c.counted = false
		c.listener.answers[c.local]--
	}
}

// cutLocked takes the place of one that was answered, or will not be.
func (c *limitConn) cutLocked() {
	c.leaveLocked()
	_ = c.Conn.Close() // its reader ends, or its writer, and with it the rest
}

func (c *limitConn) leaveLocked() {
	delete(c.listener.held[c.local], c)
	c.uncountLocked()
}

var errLeft = errors.New("its place was needed")

func (c *limitConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.left.Load() {
		return 0, errLeft
	}
	return n, err
}

func (c *limitConn) Write(p []byte) (n int, err error) {
	if c.left.Load() {
		return 0, errLeft
	}
	defer c.writes.Store(0)
	for err == nil && n < len(p) {
		c.writes.Store(int64(time.Since(c.listener.born)) + 1)
		var m int
		m, err = c.Conn.Write(p[n:min(n+unreadPart, len(p))])
		n += m
	}
	return n, err
}

func (c *limitConn) Close() error {
	c.listener.mu.Lock()
	c.leaveLocked()
	c.listener.mu.Unlock()
	if c.left.Load() {
		return nil
	}
	return c.Conn.Close()
}

// At a limit of the broker's on connections (of a user, a vhost, a node) the proxy's own idle ones
// must not be what refuses a client: one is closed, and the login tried once more.

package proxy

import (
	"strings"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// makeRoom closes a connection that is idle, or waits for its vhost to be named, and counts at the
// limit which refused one for p. It waits until the broker has let it go. False: there is none.
func (s *Server) makeRoom(p *pool, e *amqp.Error) bool {
	to := p.to()
	counts := func(x *pool) bool { return x.id.user == p.id.user || x.to().vhost == to.vhost }
	switch { // RabbitMQ: user connection limit, node connection limit; else that of the vhost
	case strings.Contains(e.Text, "user connection limit"):
		counts = func(x *pool) bool { return x.id.user == p.id.user }
	case strings.Contains(e.Text, "node connection limit"):
		counts = func(*pool) bool { return true }
	}
	var oldest *upstream
	var since time.Time
	for _, x := range s.allPools() {
		if x.to().way != to.way || !counts(x) {
			continue
		}
		if u, t := x.oldestIdle(); u != nil && (oldest == nil || t.Before(since)) {
			oldest, since = u, t
		}
	}
	if oldest == nil || !oldest.retireIdle() {
		return false
	}
	oldest.close("the broker's limit of connections is reached")
	timer := time.NewTimer(s.cfg().CloseTimeout)
	defer timer.Stop()
	select {
	case <-oldest.done:
	case <-timer.C:
		return false
	case <-s.ctx.Done():
		return false
	}
	// The broker counts it until it has cleared up, a moment after close-ok.
	timer.Reset(100 * time.Millisecond)
	select {
	case <-timer.C:
	case <-s.ctx.Done():
	}
	return true
}

// awaitIdle waits a moment until an upstream of the pool is idle: what the caller has left is so
// when the broker has closed its channels.
func (p *pool) awaitIdle(gone <-chan struct{}) {
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	for {
		p.mu.Lock()
		for _, u := range p.ups {
			if u.idleLocked() {
				p.mu.Unlock()
				return
			}
		}
		changed := p.changed.WaitLocked()
		p.mu.Unlock()
		select {
		case <-changed:
		case <-timer.C:
			return
		case <-gone:
			return
		}
	}
}

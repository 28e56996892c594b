// At a limit of the broker's on connections (of a user, a vhost, a node) the proxy's own idle ones
// must not be what refuses a client: one is closed, and the login tried once more.

package proxy

import (
	"context"
	"net"
	"strings"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
)

// dialInRoom closes a connection that is idle, or waits for its vhost to be named, and counts at the limit e which
// refused one for p, and dials once more when the broker has let it go. Where there is none, e stays.
// In a vhost where the broker has not let them in (lane VHosts) it may be somebody who has no access there, as RabbitMQ tells of
// its limits before it looks at permissions: for those who are refused then room is not made for long.
func (s *Server) dialInRoom(ctx context.Context, lane broker.Lane, p *pool, props []byte, from *net.TCPAddr, e *amqp.Error) (*upstream, *amqp.Error) {
	to := p.to()
	limit, counts := "vhost "+to.vhost, func(x *pool) bool { return x.id.user == p.id.user || x.to().vhost == to.vhost }
	switch { // RabbitMQ: user connection limit, node connection limit; else that of the vhost
	case strings.Contains(e.Text, "user connection limit"):
		limit, counts = "user "+p.id.user, func(x *pool) bool { return x.id.user == p.id.user }
	case strings.Contains(e.Text, "node connection limit"):
		limit, counts = "node", func(*pool) bool { return true }
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
	if oldest == nil || lane == broker.VHosts && !s.strangers.takeRoom(p.id.user, limit) {
		return nil, e
	}
	var u *upstream
	if s.makeRoom(oldest) {
		u, e = s.dialOpen(ctx, lane, p, props, from)
	}
	if lane == broker.VHosts && verdictOf(e).ruling != refused {
		s.strangers.giveRoom(p.id.user, limit)
	}
	return u, e
}

// makeRoom closes an idle connection, and waits until the broker has let it go. False: it is not idle any more, or does not go.
func (s *Server) makeRoom(u *upstream) bool {
	if !u.retireIdle() {
		return false
	}
	u.close("the broker's limit of connections is reached")
	timer := time.NewTimer(s.cfg().CloseTimeout)
	defer timer.Stop()
	select {
	case <-u.done:
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

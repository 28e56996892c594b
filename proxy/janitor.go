// The janitor: one goroutine that keeps the coarse clock, sends heartbeats, and ends
// what has been silent, stuck, idle or old for too long.

package proxy

import (
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// tick is the resolution of the coarse clock and with it of every timeout here: what a
// peer must not hear too early has one more.
const tick = 100 * time.Millisecond

func (s *Server) janitor() {
	defer s.owners.Done()
	t := time.NewTicker(tick)
	defer t.Stop()
	var clients []*client
	var ups []*upstream
	for i := 0; ; i++ {
		select {
		case <-s.ctx.Done():
			return
		case <-t.C:
		}
		s.coarse.Store(int64(time.Since(s.began)) + 1)
		clients, ups = clients[:0], ups[:0]
		s.mu.Lock()
		for c := range s.clients {
			if c.due() {
				clients = append(clients, c)
			}
		}
		for u := range s.upstreams {
			ups = append(ups, u)
		}
		s.mu.Unlock()
		for _, c := range clients {
			c.tend()
		}
		for _, u := range ups {
			u.tend()
		}
		clear(clients)
		clear(ups)
		if s.rests.Load() > 0 {
			s.giveBack()
		}
		if i%5 == 0 {
			s.tendPools()
			s.gate.pokeIfWaiting() // a login may have come that nobody goes on with
			s.forgive()
		}
	}
}

// giveBack returns memory to the system when a crowd of clients has come to rest: their
// stacks and what their handshakes left would otherwise stay until something else needs it.
func (s *Server) giveBack() {
	const crowd = 256
	rests := s.rests.Load()
	if rests != s.restsSeen {
		s.restsSeen = rests
		return // more may come
	}
	s.rests.Store(0)
	s.restsSeen = 0
	if rests >= crowd {
		go debug.FreeOSMemory()
	}
}

// due tells cheaply whether tend has something to do.
func (c *client) due() bool {
	now := c.s.now()
	if at := c.closeAt.Load(); at != 0 {
		return now >= at
	}
	if c.phase.Load() == phaseHandshake {
		return now-c.started >= int64(c.s.cfg().HandshakeTimeout)
	}
	if c.crowding.Load() {
		return true
	}
	if !c.rested.Load() && now-c.lastRead.Load() >= int64(restAfter) {
		return true
	}
	hb := int64(c.heartbeat)
	if hb != 0 && (now-c.out.LastWrite.Load() >= hb/2 || now-c.lastRead.Load() > 2*hb+int64(tick)) {
		return true
	}
	if c.hoarding(now) {
		return true
	}
	since := c.out.WriteSince.Load()
	return since != 0 && now-since >= int64(c.s.cfg().WriteTimeout)
}

// hoarding tells whether the client holds room for a publish, has sent nothing for half of
// write_timeout, which is how long others wait for room, and others do wait.
func (c *client) hoarding(now int64) bool {
	return c.hoards.Load() && c.reading.Load() &&
		now-c.lastRead.Load() >= int64(c.s.cfg().WriteTimeout)/2 && c.s.budget.wanted()
}

func (c *client) tend() {
	now := c.s.now()
	if at := c.closeAt.Load(); at != 0 {
		if now >= at {
			c.closeSocket()
		}
		return
	}
	if c.phase.Load() == phaseHandshake {
		// Waiting for the broker's verdict is not the client's fault, but bounded all the same.
		// What it has told of itself is still its reader's, which log would read.
		c.s.log.Info("client closed: its handshake took too long", "client", c.n,
			"address", c.conn.RemoteAddr().String(), "handshake_timeout", c.s.cfg().HandshakeTimeout)
		c.closeSocket()
		return
	}
	if c.crowding.Load() {
		c.mu.Lock()
		c.relievedLocked()
		c.mu.Unlock()
	}
	silent := now - c.lastRead.Load()
	if silent >= int64(restAfter) {
		c.rest()
	}
	if since := c.out.WriteSince.Load(); since != 0 && now-since >= int64(c.s.cfg().WriteTimeout) &&
		silent >= int64(c.s.cfg().WriteTimeout) && !c.ownsUpstream() {
		c.log(slog.LevelInfo, "client closed: it takes no data", "write_timeout", c.s.cfg().WriteTimeout)
		c.closeSocket()
		return
	}
	if c.hoarding(now) {
		c.log(slog.LevelInfo, "client closed: it holds room of the message buffer and sends nothing", "silent_for", time.Duration(silent))
		c.shut(amqp.Errorf(amqp.ResourceError, amqp.BasicPublish,
			"a publish came to a halt half way while others wait for message_buffer = %d bytes", c.s.cfg().MessageBuffer), false)
		return
	}
	hb := int64(c.heartbeat)
	if hb == 0 {
		return
	}
	if silent > 2*hb+int64(tick) && c.reading.Load() {
		c.s.n.heartbeatTimeouts.Add(1)
		c.log(slog.LevelInfo, "client closed: no heartbeat", "silent_for", time.Duration(silent), "heartbeat", c.heartbeat)
		c.closeSocket()
		return
	}
	if now-c.out.LastWrite.Load() >= hb/2 {
		c.mu.Lock()
		if c.out.IdleLocked() && c.phase.Load() == phaseRunning {
			c.out.AppendLocked(amqp.Heartbeat)
		}
		c.out.KickLocked() // answers may lie there while the reader waits for the broker
		c.mu.Unlock()
	}
}

// ownsUpstream tells whether the client has a session: then it may be as slow as it likes.
func (c *client) ownsUpstream() bool { return c.hasSession.Load() }

func (u *upstream) tend() {
	now := u.s.now()
	hb := int64(u.heartbeat)
	if hb != 0 {
		if silent := now - u.lastRead.Load(); silent > 2*hb+int64(tick) && !u.halted.Load() {
			u.s.n.heartbeatTimeouts.Add(1)
			u.fail(amqp.Errorf(amqp.ConnectionForced, 0, "the broker has been silent for %v, its heartbeat is %v",
				time.Duration(silent).Round(time.Millisecond), u.heartbeat), true)
			return
		}
		if now-u.out.LastWrite.Load() >= hb/2 {
			u.mu.Lock()
			if u.out.IdleLocked() && u.failed == nil {
				u.out.AppendLocked(amqp.Heartbeat)
				u.out.KickLocked()
			}
			u.mu.Unlock()
		}
	}
	u.answerOverdue(now)
}

// A broker that leaves closesLate channels unanswered for lateAfter does not keep up with
// clients that come and go: their closes are not waited for, so new channels must be.
const (
	closesLate = 64
	lateAfter  = 2 * tick
)

// answerOverdue gives close-ok to clients whose channel.close the broker does not answer,
// and ends crossed closes that no broker will answer any more; their ids stay unused.
func (u *upstream) answerOverdue(now int64) {
	if u.closingN.Load() == 0 {
		u.late.Store(0)
		return
	}
	limit := int64(u.s.cfg().CloseTimeout)
	late := int32(0)
	var overdue, crossed []*binding
	u.mu.Lock()
	t := u.table.Load()
	for i := range *t {
		b := (*t)[i].Load()
		if b == nil || b.state == bOpen {
			continue
		}
		if now-b.closedAt >= int64(lateAfter) {
			late++
		}
		if now-b.closedAt < limit {
			continue
		}
		if !b.silent {
			b.silent = true
			overdue = append(overdue, b)
		} else if b.ticket != nil {
			u.pool.closes.finish(b.ticket) // nobody needs to wait for it any more
		}
		if b.state == bCrossed {
			b.state = bFree
			u.setLocked(b.id, nil)
			u.closingN.Add(-1)
			if u.failed == nil { // else fail has counted it
				u.s.n.bindings.Add(-1)
			}
			if b.ticket != nil {
				u.pool.closes.finish(b.ticket)
			}
			crossed = append(crossed, b)
		}
	}
	u.mu.Unlock()
	u.late.Store(late)
	for _, b := range overdue {
		if b.ch.c.closeAnswered(b) {
			b.ch.c.wake()
		}
	}
	for range crossed {
		u.pool.lose(u)
	}
}

func (s *Server) tendPools() {
	now := s.clock()
	for _, p := range s.allPools() {
		if !p.tend(now) {
			continue
		}
		l := &s.logins
		l.mu.Lock()
		// A client may have come for it meanwhile: poolOf counts under the same lock.
		p.mu.Lock()
		still := p.emptyLocked()
		p.mu.Unlock()
		if still {
			if p.account.pools[p.id.vhost] == p {
				delete(p.account.pools, p.id.vhost)
			}
			for i, x := range s.orphans {
				if x == p {
					s.orphans = append(s.orphans[:i], s.orphans[i+1:]...)
					break
				}
			}
			s.tidyLocked(p.account)
		}
		l.mu.Unlock()
	}
}

// Alarms: connection.blocked reaches those who publish, unblocked each of them once.

package proxy

import "github.com/amqproxysvc/amqproxysvc/proxy/amqp"

// alarm takes the broker's connection.blocked.
func (u *upstream) alarm(reason string) {
	u.mu.Lock()
	u.blockedReason = reason
	u.blocked.Store(true)
	u.mu.Unlock()
	u.s.log.Warn("broker blocks publishers", "upstream", u.n, "user", u.account.key.user,
		"vhost", u.vhost(), "reason", reason)
	if t := u.table.Load(); t != nil {
		for i := range *t {
			if b := (*t)[i].Load(); b != nil && b.ch.c.pubs.Load() {
				b.ch.c.tellBlocked(u)
			}
		}
	}
}

func (u *upstream) alarmOver() {
	u.mu.Lock()
	u.blocked.Store(false)
	told := u.blockedTold
	u.blockedTold = nil
	u.mu.Unlock()
	u.s.log.Info("broker no longer blocks publishers", "upstream", u.n)
	for c := range told {
		c.tellUnblocked(u)
	}
}

// tellBlocked sends connection.blocked once for this alarm, to a client that can hear it.
func (c *client) tellBlocked(u *upstream) {
	if !c.caps.blocked {
		return
	}
	c.mu.Lock()
	if c.blockedBy != nil || c.phase.Load() != phaseRunning {
		c.mu.Unlock()
		return
	}
	c.blockedBy = u
	c.mu.Unlock()

	u.mu.Lock()
	reason := u.blockedReason
	on := u.blocked.Load() && u.failed == nil
	if on {
		if u.blockedTold == nil {
			u.blockedTold = make(map[*client]struct{})
		}
		u.blockedTold[c] = struct{}{}
	}
	u.mu.Unlock()

	c.mu.Lock()
	defer c.mu.Unlock()
	if !on {
		c.blockedBy = nil
		return
	}
	if c.blockedBy != u {
		return // over already: neither is said
	}
	c.blockedSaid = true
	start := len(c.out.BufferLocked(300))
	p := amqp.BeginMethod(c.out.BufferLocked(300), 0, amqp.ConnectionBlocked)
	c.out.SetBufferLocked(amqp.EndMethod(amqp.AppendShortStr(p, reason), start))
	c.out.KickLocked()
}

func (c *client) tellUnblocked(u *upstream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.blockedBy != u {
		return
	}
	c.blockedBy = nil
	if c.blockedSaid && c.phase.Load() == phaseRunning {
		c.out.SetBufferLocked(amqp.AppendMethod(c.out.BufferLocked(16), 0, amqp.ConnectionUnblocked))
		c.out.KickLocked()
	}
	c.blockedSaid = false
}

// forget takes a client that has left off the list of those to be told.
func (u *upstream) forget(c *client) {
	u.mu.Lock()
	delete(u.blockedTold, c)
	u.mu.Unlock()
}

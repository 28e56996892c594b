// Alarms: connection.blocked reaches those who publish, unblocked each of them once.

package proxy

// alarm takes the broker's connection.blocked.
func (u *upstream) alarm(reason string) {
	u.mu.Lock()
	u.blockedReason = reason
	u.blocked.Store(true)
	u.mu.Unlock()
	u.env.log.Warn("broker blocks publishers", "upstream", u.n, "user", u.account.login.user,
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
	u.env.log.Info("broker no longer blocks publishers", "upstream", u.n)
	for c := range told {
		c.tellUnblocked(u)
	}
}

// forget takes a client that has left off the list of those to be told.
func (u *upstream) forget(c *client) {
	u.mu.Lock()
	delete(u.blockedTold, c)
	u.mu.Unlock()
}

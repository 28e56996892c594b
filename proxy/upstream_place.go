// An upstream as its pool sees it: whose it is, idle or retired. All of it is guarded by pool.mu.

package proxy

import "slices"

func (u *upstream) idleLocked() bool { return u.load == 0 && u.owner.Load() == nil && !u.retired }

// unusedLocked reports whether nobody would miss the upstream: no channel is there, and its owner, if it has one, gets
// another when it needs it.
func (u *upstream) unusedLocked() bool {
	return u.load == 0 && (u.owner.Load() == nil || !u.precious.Load())
}

// retireIdle retires an upstream that is idle still. False: somebody has it now.
func (u *upstream) retireIdle() bool {
	u.pool.mu.Lock()
	defer u.pool.mu.Unlock()
	if !u.idleLocked() {
		return false
	}
	u.retired = true
	return true
}

// retire lets no new channels or sessions onto the upstream.
func (u *upstream) retire() {
	u.pool.mu.Lock()
	u.retired = true
	u.pool.mu.Unlock()
}

// turnToReaders reports whether the upstream is one for readers, which it becomes when the
// caller's channel is the only one there and there is no other for readers.
func (u *upstream) turnToReaders() bool {
	p := u.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if u.load == 1 && !slices.ContainsFunc(p.ups, func(x *upstream) bool { return x != u && x.lane == laneRead && p.roomLocked(x) }) {
		u.lane = laneRead
	}
	return u.lane != lanePublish
}

// soleTenant is the client that has the upstream for itself: the session's owner, or,
// when somebody's queue is crowded, the only client bound here. Nil: several, or nobody crowded.
func (u *upstream) soleTenant() *client {
	if c := u.owner.Load(); c != nil {
		return c
	}
	if u.crowded.Load() == 0 {
		return nil
	}
	return u.onlyTenant()
}

// isFor reports whether the client has the upstream for itself.
func (u *upstream) isFor(c *client) bool {
	if owner := u.owner.Load(); owner != nil {
		return owner == c
	}
	return u.onlyTenant() == c
}

// onlyTenant is the only client bound here, or nil.
func (u *upstream) onlyTenant() *client {
	var sole *client
	t := u.table.Load()
	if t == nil {
		return nil
	}
	for i := range *t {
		b := (*t)[i].Load()
		if b == nil || b.ch == nobody || b.ch.c == sole {
			continue
		}
		if sole != nil {
			return nil
		}
		sole = b.ch.c
	}
	return sole
}

// giveTo makes the client the owner of an upstream that nobody has. False: it has ended.
func (u *upstream) giveTo(c *client) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.failed != nil || u.closing {
		return false
	}
	u.owner.Store(c)
	return true
}

// isRabbitMQ reports whether the broker says that it is RabbitMQ.
func (u *upstream) isRabbitMQ() bool { return u.link.Info.Product == "RabbitMQ" }

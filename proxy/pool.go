// A pool: the upstreams of one identity. It gives channels a place, opens upstreams one
// at a time, and retires them. Nothing is dialled under its lock.

package proxy

import (
	"bytes"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
	"github.com/amqproxysvc/amqproxysvc/proxy/wait"
)

// identity names what an upstream may be reused by; the secret is its account's.
type identity struct{ user, vhost string }

type pool struct {
	s       *Server
	env     *env
	id      identity
	account *account
	closes  pendingCloses
	// standing is the broker's verdict on the identity.
	standing standing
	// info is that of the newest connection to where its vhost is.
	info atomic.Pointer[broker.Info]

	logins, reused atomic.Uint64 // see PoolStats

	mu        lock.Mutex[lock.Pool] // guards all below and the pool's part of its upstreams
	ups       []*upstream
	opening   int // upstreams that are being opened
	clients   int
	waiting   int  // channels that wait for a place
	entering  int  // clients that wait for login
	forgotten bool // the broker refused it: no new logins
	login     *loginFlight
	asking    int // logins under way, those that nobody waits for any more among them
	dialling  *loginFlight
	changed   wait.Signal // a place may have come free
	narrowTo  int64       // until when no more are opened than are needed, coarse clock
}

// try gives a channel a place that is there, on upstream u if that is not nil and has one (but with pool.spread: where the fewest are).
// False: there is none.
func (p *pool) try(u *upstream, l lane) (place, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tryLocked(u, l)
}

func (p *pool) tryLocked(u *upstream, l lane) (place, bool) {
	if spread := p.env.cfg().spread(); spread > 1 {
		return p.trySpreadLocked(l, spread)
	}
	if u != nil && p.fitsLocked(u, l) {
		return u.placeLocked(l), true
	}
	for _, u := range p.ups {
		if p.fitsLocked(u, l) {
			return u.placeLocked(l), true
		}
	}
	return place{}, false
}

func (p *pool) fitsLocked(u *upstream, l lane) bool {
	if !p.roomLocked(u) {
		return false
	}
	if u.lane == laneNone {
		return true
	}
	if l == laneNone {
		// A channel that only declares sits with the publishers; while these are blocked, with the readers.
		if u.lane == lanePublish {
			return !u.blocked.Load()
		}
		return p.publishersBlockedLocked()
	}
	return u.lane == l
}

// roomLocked reports whether a shared upstream takes a channel more, whatever its lane.
func (p *pool) roomLocked(u *upstream) bool {
	// Channels that are being closed carry no client any more, but have their id until the
	// broker's close-ok: a distant broker has many on their way.
	return !u.session && u.owner.Load() == nil && !u.retired && !u.suspect.Load() && u.crowded.Load() == 0 &&
		u.load-int(u.closingN.Load()) < p.env.cfg().MaxChannels && u.load+u.lost < int(u.ids.limit) && u.seatFor(u.load+u.lost)
}

// tryAnyLane takes a place beside readers or publishers, where no upstream more can be had:
// the user's limit of connections is reached, say, or the password has been changed.
func (p *pool) tryAnyLane() (place, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, u := range p.ups {
		if p.roomLocked(u) {
			return u.placeLocked(laneNone), true
		}
	}
	return place{}, false
}

func (p *pool) publishersBlockedLocked() bool {
	for _, u := range p.ups {
		if u.lane == lanePublish && u.blocked.Load() {
			return true
		}
	}
	return false
}

// acquire is try, opening an upstream or waiting for a place when there is none, until gone is closed.
func (p *pool) acquire(l lane, gone <-chan struct{}) (place, *amqp.Error) {
	cfg := p.env.cfg()
	timeout := cfg.WaitTimeout + cfg.ConnectTimeout + cfg.Hold
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	came := time.Now()
	for {
		if pl, ok := p.try(nil, l); ok {
			return pl, nil
		}
		if p.s.gate.full(p) {
			if pl, ok := p.narrow(l); ok {
				return pl, nil
			}
			// Publishers and readers on one connection are better than a wait.
			if pl, ok := p.tryAnyLane(); ok {
				return pl, nil
			}
		}
		p.mu.Lock()
		// Once more, in one step with the look for a dial under way: it may just have ended.
		if pl, ok := p.tryLocked(nil, l); ok {
			p.mu.Unlock()
			return pl, nil
		}
		f := p.dialling
		if f == nil {
			f = p.dialLocked((*pool).dialShared)
		}
		changed := p.changed.WaitLocked()
		p.waiting++
		p.mu.Unlock()
		select {
		case <-f.Landed():
			p.noLongerWaiting()
		case <-changed:
			p.noLongerWaiting()
		case <-gone:
			p.noLongerWaiting()
			return place{}, errGone
		case <-timer.C:
			p.noLongerWaiting()
			return place{}, amqp.Errorf(amqp.ConnectionForced, 0, "no place on a connection to the broker within %v", timeout)
		}
		select {
		case <-f.Landed():
			v := f.Result()
			if v.ruling == accepted {
				continue
			}
			if pl, ok := p.tryAnyLane(); ok {
				return pl, nil
			}
			if v.again(came, f.Began) {
				continue
			}
			return place{}, v.words
		default:
		}
	}
}

func (p *pool) noLongerWaiting() {
	p.mu.Lock()
	p.waiting--
	p.mu.Unlock()
}

var errGone = amqp.Errorf(amqp.ConnectionForced, 0, "the client is gone")

// dialLocked begins a dial that others may wait for.
func (p *pool) dialLocked(dial func(*pool, *loginFlight)) *loginFlight {
	f := wait.NewFlight[verdict](p.env.ctx)
	p.dialling = f
	p.env.spawn(func() { dial(p, f) })
	return f
}

// dialShared opens one more shared upstream.
func (p *pool) dialShared(f *loginFlight) {
	u, err := p.s.openUpstream(p, nil, nil, nil, false)
	p.mu.Lock()
	if err == nil {
		p.addLocked(u)
	} else {
		p.narrowLocked()
	}
	p.dialling = nil
	f.Land(verdictOf(err)) // before the others are woken: they look for an error
	p.changed.FireLocked()
	p.mu.Unlock()
}

// addLocked takes an upstream that the broker has just accepted.
func (p *pool) addLocked(u *upstream) {
	u.berth.arrivedLocked()
	p.ups = append(p.ups, u)
	p.heard(nil)
	u.idleFrom = p.env.clock()
	// Reload sets before it retires: what it has not found here is seen to be stale now.
	u.retired = u.stale(p)
	p.info.Store(u.link.Info)
	u.start(p)
	p.changed.FireLocked()
}

// remove takes out an upstream that has ended.
func (p *pool) remove(u *upstream) {
	p.mu.Lock()
	if i := slices.Index(p.ups, u); i >= 0 {
		p.ups = slices.Delete(p.ups, i, i+1)
	}
	p.changed.FireLocked()
	p.mu.Unlock()
}

// idleSession gives a client an upstream that was a session and is free, with the same
// client-properties if match says so. One that told the broker an address is for clients of that.
func (p *pool) idleSession(c *client, match bool) *upstream {
	from := c.tells()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, u := range p.ups {
		if u.session && u.owner.Load() == nil && u.load == 0 && !u.retired && !u.suspect.Load() &&
			(!match || bytes.Equal(u.props, c.props)) && speaksFor(u.from, from) && u.giveTo(c) {
			return u
		}
	}
	return nil
}

// speaksFor reports whether a connection that was made for one client may serve another: nil is nobody.
func speaksFor(told, client *net.TCPAddr) bool {
	if told == nil || client == nil {
		return told == client
	}
	return told.IP.Equal(client.IP)
}

// giveBack ends a session; the upstream may serve another one.
func (p *pool) giveBack(u *upstream) {
	p.mu.Lock()
	u.owner.Store(nil)
	u.idleFrom = p.env.clock()
	end := u.retired && u.load == 0
	p.changed.FireLocked()
	p.mu.Unlock()
	if end {
		u.close("retired")
	}
	p.s.gate.idle(p)
}

func (p *pool) leave() {
	p.mu.Lock()
	p.clients--
	forgotten := p.forgotten
	p.mu.Unlock()
	if forgotten {
		p.leaveForgotten()
	}
}

// tend retires what is old and closes what is idle. empty: nothing is left of the pool.
func (p *pool) tend(now time.Time) (empty bool) {
	cfg := p.env.cfg()
	var ends []*upstream
	p.mu.Lock()
	idle := p.idleTimeoutLocked()
	for _, u := range p.ups {
		if cfg.MaxLifetime > 0 && now.Sub(u.opened) >= u.lifetime(cfg.MaxLifetime) {
			u.retired = true
		}
		if u.unusedLocked() && (u.retired || u.owner.Load() == nil && now.Sub(u.idleFrom) >= idle) {
			u.retired = true
			ends = append(ends, u)
		}
	}
	empty = p.emptyLocked()
	if p.waiting > 0 {
		p.changed.FireLocked() // a crowded upstream may have room again, which nobody tells
	}
	p.mu.Unlock()
	for _, u := range ends {
		u.closeUnused("idle or old")
	}
	return empty
}

func (p *pool) emptyLocked() bool {
	return len(p.ups) == 0 && p.clients == 0 && p.asking == 0 && p.dialling == nil && !p.standing.isRechecking()
}

// oldestIdle is the upstream that has been idle longest and since when, or nil.
func (p *pool) oldestIdle() (oldest *upstream, since time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, u := range p.ups {
		if u.idleLocked() && (oldest == nil || u.idleFrom.Before(since)) {
			oldest, since = u, u.idleFrom
		}
	}
	return oldest, since
}

// evict closes an upstream that is idle: a former session, or for a new one any.
func (p *pool) evict(session bool) {
	p.mu.Lock()
	i := slices.IndexFunc(p.ups, func(u *upstream) bool { return (session || u.session) && u.idleLocked() })
	var u *upstream
	if i >= 0 {
		u = p.ups[i]
		u.retired = true
	}
	p.mu.Unlock()
	if u != nil {
		u.close("its place is needed")
	}
}

// arrives counts an upstream that is about to be opened, unless there are as many as bound
// (0: none) says, those being opened included.
func (p *pool) arrives(bound int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if bound > 0 && len(p.ups)+p.opening >= bound {
		return false
	}
	p.opening++
	return true
}

// retireStale has those that lead to where the broker is no more end with their last channel.
func (p *pool) retireStale() {
	p.mu.Lock()
	for _, u := range p.ups {
		u.retired = u.retired || u.stale(p)
	}
	p.mu.Unlock()
}

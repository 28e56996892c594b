// How a pool comes by its upstreams: the first login, the recheck behind later ones, the refusal.

package proxy

import (
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// firstLogin opens the pool's first upstream, on the connection that verified the account if it is there.
func (p *pool) firstLogin(f *flight) {
	u, err := p.openSpare(nil)
	if u == nil && err == nil {
		u, err = p.s.openUpstream(p, nil, false)
	}
	p.mu.Lock()
	if err == nil {
		p.addLocked(u)
	}
	f.err = err
	p.login = nil
	p.mu.Unlock()
	if err != nil && refuses(err) {
		p.s.forget(p, err)
	}
	close(f.done)
}

// openSpare opens the vhost on the account's spare connection, see takeSpare. Nil and nil: there is none that works.
func (p *pool) openSpare(props []byte) (*upstream, *amqp.Error) {
	if !p.arrives(p.env.cfg().MaxUpstreamsPerIdentity) {
		return nil, nil
	}
	u := p.s.takeSpare(p.account, props)
	if u == nil {
		p.stayedAway()
		return nil, nil
	}
	err := u.open(p.s.ctx, p.id.vhost)
	if err == nil {
		u.arriving = true
		return u, nil
	}
	p.stayedAway()
	u.link.Close()
	p.s.gate.give()
	if answered(err) && !limitReached(err) {
		return nil, err
	}
	return nil, nil // at a limit there may be room to be made; or it may have died while it waited: dial anew
}

func (p *pool) usable() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.usableLocked()
}

func (p *pool) usableLocked() bool {
	for _, u := range p.ups {
		if !u.retired && !u.suspect.Load() {
			return true
		}
	}
	return false
}

// recheckFor is how long, beyond auth_ttl, an identity is served that could not be verified
// anew: for want of a place or a broker, or because that throttles. Then its logins wait for the verdict.
const recheckFor = 10 * time.Minute

// overdueLocked tells whether the identity has gone unverified for too long to be served on.
func (p *pool) overdueLocked() bool {
	return p.env.now()-p.verified > int64(p.env.cfg().AuthTTL+recheckFor)
}

// recheckDueLocked tells whether the caller shall spawn a recheck behind its login.
func (p *pool) recheckDueLocked() bool {
	now := p.env.now()
	if p.rechecking || now-p.verified <= int64(p.env.cfg().AuthTTL) || now < p.recheckFrom {
		return false
	}
	p.rechecking = true
	return true
}

// recheckFirst is a recheck that logins wait for.
func (p *pool) recheckFirst(f *flight) {
	err := p.recheck()
	p.mu.Lock()
	f.err = err
	p.login = nil
	p.mu.Unlock()
	close(f.done)
}

// recheck verifies the identity anew, behind a login that was served already. The error is why it is not.
func (p *pool) recheck() *amqp.Error {
	u, err := p.s.openUpstream(p, nil, true)
	if err != nil && refuses(err) {
		p.mu.Lock()
		p.rechecking = false
		p.mu.Unlock()
		p.env.log.Warn("identity refused by the broker, no longer served", "user", p.id.user, "vhost", p.id.vhost,
			"code", err.Code, "reason", err.Text)
		p.s.forget(p, err)
		return err
	}
	spare, told := false, false
	p.mu.Lock()
	p.rechecking = false
	switch {
	case err != nil && limitReached(err):
		p.recheckedLocked() // told after user and secret were found right
		err = nil
	case err != nil:
		p.recheckFrom = p.env.now() + int64(p.env.cfg().RetryDelay)
		told, p.recheckFailed = !p.recheckFailed, true
	case p.usableLocked():
		p.arrivedLocked(u)
		p.recheckedLocked()
		u.start(p)
		spare = true
	default:
		p.addLocked(u) // the place for it was made by closing the last one
	}
	left := time.Duration(p.verified) + p.env.cfg().AuthTTL + recheckFor - time.Duration(p.env.now())
	p.mu.Unlock()
	if err != nil && p.s.ctx.Err() == nil {
		p.env.n.rechecksFailed.Add(1)
		if told {
			p.env.log.Warn("identity could not be verified anew, served from its last login for now", "user", p.id.user,
				"vhost", p.id.vhost, "code", err.Code, "reason", err.Text, "at_most", max(0, left).Round(time.Second))
		}
	}
	if spare {
		u.close("verified")
	}
	return err
}

// recheckedLocked notes that the broker has accepted user and secret.
func (p *pool) recheckedLocked() {
	p.recheckFailed, p.recheckFrom = false, 0
	p.verified = p.env.now()
	p.account.verified.Store(p.verified)
}

// forget is called when the broker refuses the identity: who is connected stays, nobody
// new comes in unless the broker accepts them.
func (p *pool) forget() {
	p.mu.Lock()
	p.forgotten, p.verified = true, 0
	p.mu.Unlock()
	p.leaveForgotten()
}

// leaveForgotten ends what is idle of a forgotten pool whose last client has left. Until
// then its clients need the upstreams: the broker opens no others for them.
func (p *pool) leaveForgotten() {
	var ends []*upstream
	p.mu.Lock()
	if p.forgotten && p.clients == 0 {
		for _, u := range p.ups {
			u.retired = true
			if u.load == 0 && u.owner.Load() == nil {
				ends = append(ends, u)
			}
		}
	}
	p.mu.Unlock()
	for _, u := range ends {
		u.close("the broker refuses its identity now")
	}
}

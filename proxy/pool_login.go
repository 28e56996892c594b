// How a pool comes by its upstreams: the first login, the recheck behind later ones, the refusal.

package proxy

import (
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
	if answered(err) {
		return nil, err
	}
	return nil, nil // it may have died while it waited: dial anew
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

// recheck verifies the identity anew, behind a login that was served already.
func (p *pool) recheck() {
	u, err := p.s.openUpstream(p, nil, true)
	spare := false
	p.mu.Lock()
	p.rechecking = false
	switch {
	case err != nil:
	case p.usableLocked():
		p.arrivedLocked(u)
		p.verified = p.env.now()
		p.account.verified.Store(p.verified)
		u.start(p)
		spare = true
	default:
		p.addLocked(u) // the place for it was made by closing the last one
	}
	p.mu.Unlock()
	switch {
	case spare:
		u.close("verified")
	case err == nil:
	case refuses(err):
		p.env.log.Warn("identity refused by the broker, no longer served", "user", p.id.user, "vhost", p.id.vhost,
			"code", err.Code, "reason", err.Text)
		p.s.forget(p, err)
	}
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

// The verdict on an identity, and what it does: the first login, the recheck behind later ones, the refusal.

package proxy

import (
	"net"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/wait"
)

// firstLogin opens the pool's first upstream, on the connection that verified the account if it is there.
func (p *pool) firstLogin(gone <-chan struct{}) *amqp.Error {
	u, err := p.openSpare(nil, nil)
	if u == nil && err == nil {
		u, err = p.s.openUpstream(p, gone, nil, nil, false)
	}
	if err == nil {
		p.mu.Lock()
		p.addLocked(u)
		p.mu.Unlock()
	}
	return err
}

// openSpare opens the vhost on the account's spare connection, see takeSpare. Nil and nil: there is none that works.
func (p *pool) openSpare(props []byte, from *net.TCPAddr) (*upstream, *amqp.Error) {
	u := p.s.takeSpare(p, props, from)
	if u == nil {
		return nil, nil
	}
	err := p.s.saidOfVHost(p, u.to, u.open(p.s.ctx))
	if err == nil {
		if u.berth.p == nil && !u.berth.join(p) { // it is accepted now, and has to wait for a place
			p.s.leaveVHost(p, u)
			u.berth.leave()
			return nil, nil
		}
		return u, nil
	}
	u.drop()
	if v := p.heard(err); v.ruling == refused || v.ruling == throttled {
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

// admitted is the verdict on the identity: open-ok may be sent when it is nil. A client that is a
// session from its start has its own upstream then.
func (c *client) admitted() *amqp.Error {
	p := c.pool
	came := time.Now()
	for {
		if p.standing.trust(p.env.now(), p.env.cfg().AuthTTL) >= stale && c.served() {
			p.recheckBehind()
			p.env.n.reuseHits.Add(1)
			p.reused.Add(1)
			c.reused = true
			return nil
		}
		e, again := c.asksVHost(came)
		if !again {
			return e
		}
	}
}

// asksVHost is the broker's verdict on the identity. Whoever is the first of it in a vhost asks in turn,
// since there may be as many names of vhosts as somebody can think of, and is not asked again what
// the broker has just refused. again: come back, for what others were told.
func (c *client) asksVHost(came time.Time) (e *amqp.Error, again bool) {
	p := c.pool
	known := p.known()
	if !known {
		if e := c.s.strangers.refusal(p.loginID()); e != nil {
			return e, false
		}
	}
	gone, stop := c.watch()
	defer stop()
	if !known {
		t, none := c.s.strangersTurn(c, gone, p.id.user+inSomeVHost)
		if none != nil {
			return none, false
		}
		if e := c.s.strangers.refusal(p.loginID()); e != nil || p.known() { // it was, while it waited
			t.leave(false)
			return e, e == nil
		}
		defer func() {
			r := p.verdictOf(e).ruling
			t.leave(e == errGone || r == refused || r == full && p.s.strangers.roomSpent(p.id.user))
		}()
	}
	if c.isSession {
		return c.openOwn(gone), false
	}
	f, seat := p.flight()
	asked := time.Now()
	defer p.hasEntered()
	if f == nil { // one has landed since the caller looked
		return nil, true
	}
	defer func() { p.env.n.waits.observe(time.Since(asked)) }()
	v, err := f.Wait(seat, gone)
	if err != nil {
		return errGone, false
	}
	return v.words, v.again(came, f.Began)
}

// known reports whether the broker has accepted the identity, now or before.
func (p *pool) known() bool {
	return p.standing.trust(p.env.now(), p.env.cfg().AuthTTL) != untrusted || p.s.strangers.known(p.loginID())
}

// loginID is the identity's among the strangers.
func (p *pool) loginID() loginID { return p.s.strangers.id(p.account.login, p.id.vhost) }

// served reports whether an upstream stands that the client can use at once.
func (c *client) served() bool {
	if !c.isSession {
		return c.pool.usable()
	}
	u := c.idleSession()
	if u == nil {
		return false
	}
	c.session = u
	c.hasSession.Store(true)
	return true
}

// openOwn opens the upstream of a client that is a session from its start, and has not gone.
func (c *client) openOwn(gone <-chan struct{}) *amqp.Error {
	u, e := c.pool.openSpare(c.props, c.tells())
	switch {
	case u != nil:
		c.adopt(u)
	case e == nil:
		u, e = c.openSession(gone)
	}
	c.session = u
	return e
}

// hasEntered ends the wait for a flight.
func (p *pool) hasEntered() {
	p.mu.Lock()
	p.entering--
	p.mu.Unlock()
}

// flight is the login that many wait for, begun where there is none; the caller counts as one of them, and has a seat. Nil: there
// is no need, the pool serves whoever comes. When all who wait have gone, its place in the line is given up.
func (p *pool) flight() (*loginFlight, *wait.Seat) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.entering++
	if p.login != nil {
		if seat := p.login.Join(); seat != nil {
			return p.login, seat
		}
	}
	ask := p.firstLogin
	if p.usableLocked() {
		switch t := p.standing.trust(p.env.now(), p.env.cfg().AuthTTL); {
		case t >= stale:
			return nil, nil
		case t != untrusted:
			ask = p.recheck
		}
	}
	f := wait.NewFlight[verdict](p.env.ctx)
	seat := f.Join()
	p.login = f
	p.asking++
	p.env.spawn(func() {
		v := p.verdictOf(ask(f.Context().Done()))
		p.mu.Lock()
		p.asking--
		if p.login == f {
			p.login = nil
		}
		p.mu.Unlock()
		f.Land(v)
	})
	return f, seat
}

// verdictOf reads the outcome of a login of the pool. Where the secret that the broker refuses is one that the
// proxy keeps, no client is to blame: they have proved who they are, and what stands serves them for now.
func (p *pool) verdictOf(e *amqp.Error) verdict {
	v := verdictOf(e)
	if v.ofSecret() && p.account.login.stored() != nil {
		v.ruling = throttled
	}
	return v
}

// heard takes the broker's word on the identity, whoever asked for it. Any lock may be held for an
// acceptance, nil.
func (p *pool) heard(e *amqp.Error) verdict {
	v := p.verdictOf(e)
	was := p.standing.trust(p.env.now(), p.env.cfg().AuthTTL) != untrusted
	revoked := p.standing.hear(v, p.env.now())
	switch v.ruling {
	case accepted, full:
		if p.atJudge() {
			p.account.standing.renew(p.env.now())
		}
		if v.ruling == accepted && !was {
			p.s.strangers.accept(p.loginID())
		}
	case refused:
		if !v.ofSecret() {
			p.s.strangers.refuseVHost(p.loginID(), v.words)
		}
		if revoked {
			p.env.log.Warn("identity refused by the broker, no longer served", "user", p.id.user, "vhost", p.id.vhost,
				"code", e.Code, "reason", e.Text)
		}
		p.s.forget(p, v)
	}
	return v
}

// recheckBehind has the identity verified anew, if it is time, behind a login that was served.
func (p *pool) recheckBehind() {
	if p.standing.recheckDue(p.env.now(), p.env.cfg().AuthTTL) {
		p.env.spawn(func() { _ = p.recheck(nil) })
	}
}

// recheck verifies the identity anew; closing gone ends the wait for a place. The error is why it is not.
func (p *pool) recheck(gone <-chan struct{}) *amqp.Error {
	u, err := p.s.openUpstream(p, gone, nil, nil, true)
	v := p.verdictOf(err)
	now, cfg := p.env.now(), p.env.cfg()
	spare := false
	p.mu.Lock()
	switch {
	case v.ruling != accepted:
	case p.usableLocked():
		spare = true
		u.berth.arrivedLocked()
		p.heard(nil)
		u.start(p)
	default:
		p.addLocked(u) // the place for it was made by closing the last one
	}
	tell, left := p.standing.rechecked(v, now+int64(cfg.RetryDelay), now, cfg.AuthTTL)
	p.mu.Unlock()
	switch {
	case spare:
		u.close("verified")
	case v.ruling == full:
		return nil // told after user and secret were found right
	case v.ruling == throttled, v.ruling == away:
		p.env.n.rechecksFailed.Add(1)
		if tell {
			p.env.log.Warn("identity could not be verified anew, served from its last login for now", "user", p.id.user,
				"vhost", p.id.vhost, "code", err.Code, "reason", err.Text, "at_most", left.Round(time.Second))
		}
	}
	return err
}

// forget is called when the broker refuses the identity: clients that are connected stay, nobody
// new comes in unless the broker accepts them.
func (p *pool) forget() {
	p.mu.Lock()
	p.forgotten = true
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

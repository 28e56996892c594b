// Logins: which user and secret the broker has accepted, for which vhosts, and since when.
// One login to the broker at a time for each; whoever comes meanwhile waits for its verdict.

package proxy

import (
	"bytes"
	"context"
	"errors"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
	"github.com/amqproxysvc/amqproxysvc/proxy/wait"
)

// account is a login that the broker is asked about; its pools are its vhosts.
type account struct {
	login login
	// info is that of the newest handshake of this account.
	info atomic.Pointer[broker.Info]
	// props are the client-properties of the newest client that had other ones.
	props atomic.Pointer[[]byte]
	// standing is the broker's verdict on user and secret.
	standing standing
	logins   atomic.Int32 // of clients; and once more when its secret was accepted before
	// by is the broker that has accepted user and secret; nil: none has.
	by atomic.Pointer[way]

	// Guarded by Server.logins.
	refs   int // clients
	flight *loginFlight
	spare  *upstream // logged in, no vhost opened
	pools  map[string]*pool
}

// loginFlight is one login that many may wait for, and the verdict on it.
type loginFlight = wait.Flight[verdict]

// again reports whether a client that came at the given time shall try once more after a flight that began
// then has failed: it was under way when they came, and they have waited for less than half of it,
// for a place or the broker.
func (v verdict) again(came, began time.Time) bool {
	return v.ruling == away && v.words.Code == amqp.ConnectionForced && time.Since(came) < time.Since(began)/2
}

// servedLocked reports whether the account may be believed without asking the broker
// first: it was accepted within auth_ttl, or a connection of its own still stands, whose pool
// then has it verified again behind the login, unless that has failed for too long.
func (a *account) servedLocked(now int64, ttl time.Duration) bool {
	switch a.standing.trust(now, ttl) {
	case fresh:
		return true
	case stale:
		for _, p := range a.pools {
			if p.usable() && p.atJudge() {
				return true
			}
		}
	}
	return false
}

// logins holds the accounts.
type logins struct {
	mu       lock.Mutex[lock.Logins]
	accounts map[login]*account
}

// authenticate is the verdict on user and secret, before a vhost is named: known from a
// login that the broker accepted, otherwise asked now. The account counts the caller.
func (s *Server) authenticate(c *client, who login, props []byte) (*account, *amqp.Error) {
	l := &s.logins
	came := time.Now()
	id := loginID{}
	var t *turn // a stranger's
	var gone <-chan struct{}
	for {
		l.mu.Lock()
		a := l.accounts[who]
		if a != nil && a.servedLocked(s.now(), s.cfg().AuthTTL) {
			a.refs++
			a.logins.Add(1)
			l.mu.Unlock()
			if t != nil {
				t.leave(false)
			}
			return a, nil
		}
		if gone == nil {
			l.mu.Unlock()
			id = s.strangers.id(who)
			c.props = bytes.Clone(c.props) // what is read now comes into the same buffer
			var stop func()
			gone, stop = c.watch()
			defer stop()
			continue
		}
		if e := s.strangers.refusal(id); e != nil {
			l.mu.Unlock()
			if t != nil {
				t.leave(true)
			}
			return nil, e
		}
		known := who.stored() != nil || s.strangers.known(id)
		var f *loginFlight
		if a != nil {
			f = a.flight
		}
		var seat *wait.Seat
		if f != nil {
			seat = f.Join()
		}
		if seat == nil { // nobody asks, or nobody waited for it any more
			if !known && t == nil {
				l.mu.Unlock()
				var e *amqp.Error
				if t, e = s.strangersTurn(c, gone, who.user); e != nil {
					return nil, e
				}
				continue
			}
			if a == nil {
				a = &account{login: who, pools: make(map[string]*pool)}
				l.accounts[who] = a
			}
			f = wait.NewFlight[verdict](s.ctx)
			a.flight = f
			seat = f.Join()
			mine := t
			t = nil
			s.spawn(func() { s.verify(a, f, id, known, mine, props) })
		}
		l.mu.Unlock()
		v, err := f.Wait(seat, gone)
		if err != nil {
			v = verdictOf(errGone)
		}
		if v.ruling != accepted && !v.again(came, f.Began) {
			if t != nil {
				t.leave(err != nil)
			}
			return nil, v.words
		}
	}
}

// proven reports whether a login is no stranger's: the proxy has found it right, or the broker has before.
func (s *Server) proven(who login) bool {
	return who.stored() != nil || s.strangers.known(s.strangers.id(who))
}

// knownIn reports whether the broker has accepted the account in a vhost, now or before.
func (s *Server) knownIn(a *account, vhost string) bool {
	s.logins.mu.Lock()
	p := a.pools[vhost]
	s.logins.mu.Unlock()
	if p != nil {
		return p.known()
	}
	return s.strangers.known(s.strangers.id(a.login, vhost))
}

// strangersTurn waits until a stranger may ask the broker.
func (s *Server) strangersTurn(c *client, gone <-chan struct{}, user string) (*turn, *amqp.Error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.cfg().WaitTimeout)
	defer cancel()
	t, err := s.strangers.enter(ctx, gone, hostOf(c.address()), user)
	switch {
	case err == nil:
		return t, nil
	case s.ctx.Err() != nil:
		return nil, errStopping
	case errors.Is(err, wait.ErrGone):
		return nil, errGone
	}
	return nil, amqp.Errorf(amqp.ConnectionForced, 0, "too many logins from this address were refused lately, try again later")
}

// verify logs in to the broker and keeps the connection for the vhost to be named. What a
// stranger is asked ends when nobody waits for it any more, evicts nobody's connection, and is
// counted at the bound only once the broker has accepted it.
func (s *Server) verify(a *account, f *loginFlight, id loginID, known bool, t *turn, props []byte) {
	if !known && props != nil && !broker.Announces(props, broker.FailureClose) {
		props = nil // the broker would keep its verdict back for seconds
	}
	u, by, e := s.askJudges(a, func(w *way, first bool) (*upstream, *amqp.Error) {
		ctx := s.ctx
		if !known {
			ctx = f.Context()
		}
		if !first {
			ctx = broker.AtOnce(ctx)
		}
		if known {
			return s.logIn(ctx, w, a.login, props, f)
		}
		return s.dial(ctx, broker.Strangers, w, a.login, props, nil)
	}, known)
	v := verdictOf(e)
	var info *broker.Info
	switch {
	case v.ruling == accepted:
		info = u.link.Info
		s.accepted(a, id)
		if !known {
			if u.berth = s.gate.try(); u.berth == nil {
				u.link.Close() // the vhost is opened on another one, when there is a place
				u = nil
			}
		}
	case v.ofSecret():
		s.strangers.refuse(id, e)
	}
	if t != nil {
		t.leave(e == errGone || v.ofSecret())
	}
	l := &s.logins
	l.mu.Lock()
	if a.flight == f {
		a.flight = nil
	}
	if v.ruling == accepted && s.ctx.Err() != nil {
		v = verdictOf(errStopping)
	}
	moved := u != nil && u.stale(nil)
	if u != nil && (v.ruling != accepted || moved) {
		u.drop() // those that wait ask the new broker
		u = nil
	}
	if u != nil {
		if a.spare != nil {
			a.spare.drop()
		}
		u.link.Wait()
		a.spare, u.account = u, a
	}
	if !moved && l.accounts[a.login] == a {
		a.standing.hear(v, s.now())
		if v.ruling == accepted {
			a.by.Store(by)
			a.info.Store(info)
		}
	}
	if v.ruling != accepted || moved {
		s.tidyLocked(a) // else whoever waits takes it, or dropSpare looks
	}
	l.mu.Unlock()
	f.Land(v)
	if v.ruling == accepted {
		// Whoever logged in may never name a vhost.
		time.AfterFunc(s.cfg().HandshakeTimeout, func() { s.dropSpare(a, u) })
	}
}

// logIn is the first half of an upstream's handshake, with its place at the bound.
func (s *Server) logIn(ctx context.Context, w *way, who login, props []byte, f *loginFlight) (*upstream, *amqp.Error) {
	b, err := s.gate.take(&placeWanted{clients: func() int { n, _ := f.Waiting(); return n }, gone: f.Context().Done()})
	if err != nil {
		return nil, err
	}
	u, err := s.dial(ctx, broker.Known, w, who, props, nil)
	if err != nil {
		b.leave()
		return nil, err
	}
	u.berth = b
	return u, nil
}

func (s *Server) dropSpare(a *account, u *upstream) {
	l := &s.logins
	l.mu.Lock()
	defer l.mu.Unlock()
	if u != nil && a.spare == u {
		a.spare = nil
		u.drop()
	}
	s.tidyLocked(a)
}

// dropSpares closes at most n connections that wait for their vhost to be named.
func (s *Server) dropSpares(n int) {
	l := &s.logins
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.accounts {
		if a.spare != nil && n > 0 {
			a.spare.drop()
			a.spare = nil
			s.tidyLocked(a)
			n--
		}
	}
}

// drop closes a connection on which nobody serves yet.
func (u *upstream) drop() {
	u.link.Close()
	u.berth.leave()
}

// takeSpare takes the spare connection of the pool's account, with a place in the pool where that is known at the broker, if
// it was opened with the given client-properties, nil meaning the proxy's own, and for nobody.
func (s *Server) takeSpare(p *pool, props []byte, from *net.TCPAddr) *upstream {
	a := p.account
	l := &s.logins
	l.mu.Lock()
	defer l.mu.Unlock()
	u, to := a.spare, p.to()
	if u == nil || u.to.way != to.way || p.known() && !u.berth.join(p) {
		return nil
	}
	a.spare, u.to = nil, to
	if from != nil || u.own != (props == nil) || (props != nil && !bytes.Equal(u.props, props)) {
		u.drop() // it must not be what a limit of the broker's is reached by
		return nil
	}
	return u
}

// tidyLocked forgets an account of which nothing is left.
func (s *Server) tidyLocked(a *account) {
	if a.refs == 0 && len(a.pools) == 0 && a.flight == nil && a.spare == nil && s.logins.accounts[a.login] == a {
		delete(s.logins.accounts, a.login)
	}
}

// distrust has the accounts asked for anew that a broker has accepted which is gone, or another one now.
func (s *Server) distrust(gone []*way) {
	l := &s.logins
	l.mu.Lock()
	for _, a := range l.accounts {
		if slices.Contains(gone, a.by.Load()) {
			a.standing.withdraw()
			a.by.Store(nil)
		}
	}
	l.mu.Unlock()
	s.strangers.forget()
}

func (s *Server) leaveAccount(a *account) {
	l := &s.logins
	l.mu.Lock()
	a.refs--
	s.tidyLocked(a)
	l.mu.Unlock()
}

// poolOf is the account's pool for a vhost; it counts the caller as a client.
func (s *Server) poolOf(a *account, vhost string) *pool {
	l := &s.logins
	l.mu.Lock()
	defer l.mu.Unlock()
	p := a.pools[vhost]
	if p == nil {
		p = &pool{s: s, env: &s.env, id: identity{a.login.user, vhost}, account: a}
		if l.accounts[a.login] == a {
			a.pools[vhost] = p
		} else {
			// Refused since the client's login: it may go on if the broker lets it, but
			// nobody after it, and what it opens goes with it.
			p.forgotten = true
			s.orphans = append(s.orphans, p)
		}
	}
	p.mu.Lock()
	p.clients++
	p.mu.Unlock()
	return p
}

// forget takes a pool that the broker refuses out of reach of new logins.
func (s *Server) forget(p *pool, v verdict) {
	l := &s.logins
	l.mu.Lock()
	a := p.account
	var all []*pool
	if v.ofSecret() {
		a.standing.hear(v, s.now())
		s.strangers.refuse(s.strangers.id(a.login), v.words)
		for _, x := range a.pools {
			all = append(all, x)
		}
		clear(a.pools)
		if l.accounts[a.login] == a {
			delete(l.accounts, a.login)
		}
	} else {
		if a.pools[p.id.vhost] == p { // else it is forgotten already
			all = append(all, p)
			delete(a.pools, p.id.vhost)
		}
	}
	s.orphans = append(s.orphans, all...)
	l.mu.Unlock()
	for _, x := range all {
		x.forget()
	}
}

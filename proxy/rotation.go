// Passwords that change at each login: no login finds the connection of the one before. What such
// an identity opens is kept for a moment only, and the log says once why pooling does nothing.

package proxy

import (
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
)

const (
	// onceFor is how long an idle upstream is kept of an identity that logged in once.
	onceFor = 10 * time.Second
	// A user with more than secretsFree new secrets within secretsWithin has passwords that rotate.
	secretsFree   = 8
	secretsWithin = time.Minute
	// rotationTold is how long the log is silent about a user it has told of.
	rotationTold = time.Hour
	// rotatingMost is how many users are watched at a time.
	rotatingMost = 1 << 10
)

// rotation counts the secrets that the broker has accepted of each user for the first time.
type rotation struct {
	mu    lock.Mutex[lock.Leaf] // a leaf
	users map[string]*rotating
}

type rotating struct {
	n     int
	since time.Time
	told  time.Time
}

// add counts a secret that is new. True: the log shall tell.
func (r *rotation) add(user string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	u := r.users[user]
	if u == nil {
		if len(r.users) >= rotatingMost {
			for name, u := range r.users {
				if now.Sub(u.since) > secretsWithin && now.Sub(u.told) > rotationTold {
					delete(r.users, name)
				}
			}
			if len(r.users) >= rotatingMost {
				return false
			}
		}
		if r.users == nil {
			r.users = make(map[string]*rotating)
		}
		u = &rotating{since: now}
		r.users[user] = u
	}
	if now.Sub(u.since) > secretsWithin {
		u.n, u.since = 0, now
	}
	u.n++
	if u.n <= secretsFree || !u.told.IsZero() && now.Sub(u.told) < rotationTold {
		return false
	}
	u.told = now
	return true
}

// rotates reports whether the log has told of a user lately.
func (r *rotation) rotates(user string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	u := r.users[user]
	return u != nil && !u.told.IsZero() && time.Since(u.told) < rotationTold
}

// accepted notes that the broker has accepted a login.
func (s *Server) accepted(a *account, id loginID) {
	if s.strangers.accept(id) {
		a.logins.Add(1) // it has come before, and comes again
		return
	}
	if !s.rotation.add(a.login.user) {
		return
	}
	remedy := "let the application keep its password or token until shortly before it expires"
	if _, signed := parsePairName(a.login.user); signed {
		remedy = "its name is that of an AccessKey of Alibaba Cloud, whose passwords are signed anew at each login: " +
			"keep the key in a [[user]] with provider = alibaba, which lets in what is signed with it, " +
			"or create a static username and password for the instance and let the application use these"
	}
	s.log.Warn("a user's password changes at each login, so that no connection to the broker can be reused",
		"user", a.login.user, "passwords", secretsFree+1, "within", secretsWithin, "remedy", remedy)
}

// idleTimeoutLocked is how long an upstream of the pool is kept when it is idle.
func (p *pool) idleTimeoutLocked() time.Duration {
	keep := p.env.cfg().IdleTimeout
	if p.clients == 0 && p.account.logins.Load() <= 1 && p.account.login.stored() == nil {
		return min(keep, onceFor)
	}
	return keep
}

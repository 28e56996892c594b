// Verdicts: what the broker's answer to a login means, and what is known of a login over time.
// RabbitMQ and others have one code for a wrong password, a limit and a throttle; only the texts differ.

package proxy

import (
	"strings"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
)

// ruling is what the broker decided.
type ruling uint8

const (
	accepted  ruling = iota // it has user and secret, and the vhost where one was named
	refused                 // it will not have this user, secret or vhost
	full                    // a limit of its on numbers is reached: user and secret were found right
	throttled               // it has had too many logins of whomever, or its words are not known
	away                    // it said nothing: it cannot be reached, or there is no place for the connection
	calledOff               // nobody waits for its answer any more
	rulings
)

func (r ruling) String() string {
	return [rulings]string{"accepted", "refused", "full", "throttled", "away", "called off"}[r]
}

// verdict is a ruling with its words, which are what a client hears; nil: it was accepted.
type verdict struct {
	ruling
	words *amqp.Error
}

// verdictOf reads the outcome of a login. Only what RabbitMQ and LavinMQ say of a user, secret or
// vhost is a refusal: anything else passes, and is no reason to forget whom the broker has accepted.
func verdictOf(e *amqp.Error) verdict {
	r := away
	switch {
	case e == nil:
		r = accepted
	case e == errGone, e == errStopping:
		r = calledOff
	case e.Code == amqp.AccessRefused && !tooMany(e.Text), e.Code == amqp.NotAllowed && ofVHost(e.Text):
		r = refused
	case e.Code == amqp.NotAllowed && atLimit(e.Text):
		r = full
	case e.Code == amqp.AccessRefused, e.Code == amqp.NotAllowed:
		r = throttled
	}
	return verdict{r, e}
}

// ofSecret reports whether the broker has refused user and secret, and not only a vhost.
func (v verdict) ofSecret() bool { return v.ruling == refused && v.words.Code == amqp.AccessRefused }

// ofVHost reads the refusal of a vhost.
// RabbitMQ: vhost X not found, access to vhost 'X' refused for user 'Y'.
// LavinMQ: vhost not found, 'Y' doesn't have access to 'X'.
func ofVHost(t string) bool {
	return strings.Contains(t, "vhost") && strings.HasSuffix(t, "not found") ||
		strings.Contains(t, "access to vhost '") && strings.Contains(t, "' refused for user '") && strings.HasSuffix(t, "'") ||
		strings.Contains(t, "' doesn't have access to '") && strings.HasSuffix(t, "'")
}

// tooMany reads a throttle. What RabbitMQ says of a wrong password is not looked into: the words
// may be those of a user's name.
func tooMany(t string) bool {
	if strings.Contains(t, "Login was refused") || strings.Contains(t, "user '") {
		return false
	}
	t = strings.ToLower(t)
	for _, words := range []string{"too many requests", "throttl", "limit exceeded"} {
		if strings.Contains(t, words) {
			return true
		}
	}
	return false
}

// atLimit reads a limit on numbers, of connections or channels.
func atLimit(t string) bool {
	return strings.HasSuffix(t, "is reached") || strings.Contains(t, "has reached the maximum allowed")
}

// trust is how far a login is believed without asking the broker first.
type trust uint8

const (
	untrusted trust = iota // the broker has not accepted it, or no longer
	overdue                // it has, too long ago
	stale                  // it is served while a connection of its own stands, and verified anew behind that
	fresh                  // it is believed
)

// recheckFor is how long, beyond auth_ttl, a login is stale: it could not be verified anew for
// want of a place or a broker, or because that throttles.
const recheckFor = 10 * time.Minute

// standing is what is known of a login over time: of a user and secret (an account's), or of these
// with a vhost (a pool's). Times are the coarse clock's.
type standing struct {
	mu       lock.Mutex[lock.Leaf] // a leaf
	last     verdict
	heard    int64 // when that came; 0: nobody has asked
	accepted int64 // when the broker last accepted it; 0: never, or it is refused since
	// While it is verified anew, and while it cannot be: when to try next, and whether the log has told.
	rechecking  bool
	recheckFrom int64
	told        bool
}

// hear takes a verdict. True: the login was accepted until now and is not any more.
func (s *standing) hear(v verdict, now int64) (revoked bool) {
	if v.ruling == calledOff {
		return false // it says nothing of the login
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.heard = v, now
	switch {
	case v.ruling == accepted, v.ruling == full && s.accepted != 0:
		// At a limit RabbitMQ has not looked at the vhost's permissions. Else whoever fills a limit himself would be
		// refused what stands and is his; there each operation is the broker's to judge, and it ends with max_lifetime.
		s.acceptLocked(now)
	case v.ruling == refused:
		revoked = s.accepted != 0
		s.accepted = 0
	}
	return revoked
}

func (s *standing) acceptLocked(now int64) { s.accepted, s.recheckFrom, s.told = now, 0, false }

// renew is for what was accepted as a part of something else that the broker accepts now: it is
// believed for as long again.
func (s *standing) renew(now int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.accepted != 0 {
		s.acceptLocked(now)
	}
}

// withdraw is for a broker that is another one now.
func (s *standing) withdraw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accepted = 0
}

// trust is how far the login is believed.
func (s *standing) trust(now int64, ttl time.Duration) trust {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch age := now - s.accepted; {
	case s.accepted == 0:
		return untrusted
	case age <= int64(ttl):
		return fresh
	case age <= int64(ttl+recheckFor):
		return stale
	}
	return overdue
}

// recheckDue reports whether the caller is to verify the login anew, and then to call rechecked.
func (s *standing) recheckDue(now int64, ttl time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rechecking || now-s.accepted <= int64(ttl) || now < s.recheckFrom {
		return false
	}
	s.rechecking = true
	return true
}

// rechecked ends that. again is when to try next if it could not be verified; then tell says
// whether the log shall, and left for how long the login is still served.
func (s *standing) rechecked(v verdict, again, now int64, ttl time.Duration) (tell bool, left time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rechecking = false
	if v.ruling < throttled {
		return false, 0
	}
	tell = !s.told && v.ruling != calledOff
	s.told, s.recheckFrom = true, again
	return tell, max(0, time.Duration(s.accepted-now)+ttl+recheckFor)
}

// latest is the last verdict and when it came; 0: nobody has asked.
func (s *standing) latest() (verdict, int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last, s.heard
}

// isRechecking reports whether somebody verifies the login anew.
func (s *standing) isRechecking() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rechecking
}

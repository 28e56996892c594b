// Who is kept to connections of its own: clients whose methods closed a shared one, and users
// whose limits at the broker are known.

package proxy

import (
	"strconv"
	"strings"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// offender is what a client whose method closed a shared connection is remembered by, not by a
// name, which it chooses. Host "": all clients of the user.
type offender struct{ host, user string }

// offenceTime is how long it is served by sessions only.
const offenceTime = 10 * time.Minute

// accountOffences is how much a user's clients may do before all of them are: a close that
// names its method counts one, and one that does not, so that its sender is a guess, two.
const accountOffences = 4

// offences of a user, who has clients at several addresses or hides among others.
type offences struct {
	n     int
	until int64 // coarse clock
}

func (c *client) offender() offender {
	return offender{c.host(), c.user}
}

// hasOffended reports whether the client, or one like it, must have a session.
func (s *Server) hasOffended(c *client) bool {
	if s.offences.Load() == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now() < s.offenders[c.offender()] || s.now() < s.offenders[offender{user: c.user}]
}

// offends remembers a client that has closed a shared upstream: from its next channel on it has
// an upstream of its own.
func (s *Server) offends(c *client, weight int) {
	until := s.now() + int64(offenceTime)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.offenders[c.offender()] = until
	of := s.accountOffences[c.user]
	if s.now() >= of.until {
		of.n = 0
	}
	of.n, of.until = of.n+weight, until
	s.accountOffences[c.user] = of
	if of.n >= accountOffences {
		s.offenders[offender{user: c.user}] = until
	}
	s.offences.Store(int32(len(s.offenders)))
}

// blame remembers the client whose method the broker named in its connection.close, the last that
// sent it here; where it named none, the last that sent anything. It also learns what the broker's
// text tells of limits.
func (u *upstream) blame(e *amqp.Error) {
	if e.Code == amqp.ConnectionForced || e.Code == amqp.ReplySuccess {
		return
	}
	s := u.s
	attrs := []any{"upstream", u.n, "user", u.account.login.user, "vhost", u.vhost(),
		"code", e.Code, "reason", e.Text, "method", e.Method.String()}
	if n, ok := channelLimit(e); ok {
		s.mu.Lock()
		s.channelLimits[userAt{u.account.login.user, u.to.way.name}] = learned{n, s.now() + int64(offenceTime)}
		s.limited.Store(true)
		s.mu.Unlock()
	}
	c := u.owner.Load()
	if denies(e) {
		u.to.way.transients.settle(denied, e, s.now()+int64(offenceTime))
	}
	if c == nil && denies(e) {
		c = u.senders[amqp.QueueDeclare.Index()].Load() // from now on nobody is hit by it: no offence
	} else if c == nil {
		weight := 1
		if c = u.senders[e.Method.Index()].Load(); e.Method.Index() == 0 {
			weight = 2
			u.mu.Lock()
			c = u.sentLast
			u.mu.Unlock()
		}
		if c != nil {
			s.offends(c, weight)
		}
	} else {
		u.blamed.Store(true) // one line is enough for what concerns one client
	}
	if c != nil {
		attrs = append(attrs, "client", c.n, "address", c.address().String(), "name", c.name())
	}
	s.log.Error("broker closed a connection for an error of a client", attrs...)
}

// userAt is a user of a broker, which has its own limits.
type userAt struct{ user, broker string }

// learned is a limit that the broker told of, believed until a time: it may be changed
// there, and users come and go.
type learned struct {
	n     int
	until int64 // coarse clock
}

// forgive forgets offenders and limits whose time is over.
func (s *Server) forgive() {
	if s.offences.Load() == 0 && !s.limited.Load() {
		return
	}
	s.mu.Lock()
	for of, l := range s.channelLimits {
		if s.now() >= l.until {
			delete(s.channelLimits, of)
		}
	}
	s.limited.Store(len(s.channelLimits) > 0)
	for o, until := range s.offenders {
		if s.now() >= until {
			delete(s.offenders, o)
		}
	}
	for user, of := range s.accountOffences {
		if s.now() >= of.until {
			delete(s.accountOffences, user)
		}
	}
	s.offences.Store(int32(len(s.offenders)))
	s.mu.Unlock()
}

// channelLimit reads the number of channels that a user may have out of RabbitMQ's text
// "... has reached the maximum allowed user limit of (10)"; there is no other way to learn it.
func channelLimit(e *amqp.Error) (n int, ok bool) {
	if e.Code != amqp.NotAllowed || !strings.Contains(e.Text, "number of channels opened for user") {
		return 0, false
	}
	digits := strings.TrimRight(e.Text, ") \n")
	i := len(digits)
	for i > 0 && digits[i-1] >= '0' && digits[i-1] <= '9' {
		i--
	}
	n, err := strconv.Atoi(digits[i:])
	return n, err == nil
}

// atChannelLimit reports whether one more channel may be more than the broker lets the user
// have: it is then opened on a connection of its own, so that a refusal hits nobody else.
func (s *Server) atChannelLimit(p *pool) bool {
	if !s.limited.Load() {
		return false
	}
	way := p.to().way
	s.mu.Lock()
	limit, ok := s.channelLimits[userAt{p.id.user, way.name}]
	s.mu.Unlock()
	if !ok || s.now() >= limit.until {
		return false
	}
	load := 0
	for _, x := range s.allPools() {
		if x.id.user == p.id.user && x.to().way == way {
			load += x.stats().Channels
		}
	}
	return load >= limit.n
}

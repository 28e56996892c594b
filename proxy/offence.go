// Who is kept to connections of its own: clients whose methods closed a shared one, and users
// whose limits at the broker are known.

package proxy

import (
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// offender is what a client whose method closed a shared connection is remembered by.
type offender struct{ host, user, name string }

// offenceTime is how long it is served by sessions only.
const offenceTime = 10 * time.Minute

func (c *client) offender() offender {
	host, _, err := net.SplitHostPort(c.conn.RemoteAddr().String())
	if err != nil {
		host = c.conn.RemoteAddr().String()
	}
	return offender{host, c.user, c.name()}
}

// hasOffended tells whether the client, or one like it, must have a session.
func (s *Server) hasOffended(c *client) bool {
	if s.offences.Load() == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	until, ok := s.offenders[c.offender()]
	return ok && s.now() < until
}

// blame remembers the client whose method the broker named in its connection.close, the
// last that sent it here, and what the broker's text tells of limits.
func (u *upstream) blame(e *amqp.Error) {
	if e.Code == amqp.ConnectionForced || e.Code == amqp.ReplySuccess {
		return
	}
	s := u.s
	attrs := []any{"upstream", u.n, "user", u.account.key.user, "vhost", u.vhost(),
		"code", e.Code, "reason", e.Text, "method", e.Method.String()}
	if n, ok := channelLimit(e); ok {
		s.mu.Lock()
		s.channelLimits[u.account.key.user] = learned{n, s.now() + int64(offenceTime)}
		s.limited.Store(true)
		s.mu.Unlock()
	}
	if i := e.Method.Index(); i != 0 && u.owner.Load() == nil {
		if c := u.senders[i].Load(); c != nil {
			s.mu.Lock()
			s.offenders[c.offender()] = s.now() + int64(offenceTime)
			s.offences.Store(int32(len(s.offenders)))
			s.mu.Unlock()
			attrs = append(attrs, "client", c.n, "address", c.conn.RemoteAddr().String(), "name", c.name())
		}
	}
	s.log.Error("broker closed a connection for an error of a client", attrs...)
}

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
	for user, l := range s.channelLimits {
		if s.now() >= l.until {
			delete(s.channelLimits, user)
		}
	}
	s.limited.Store(len(s.channelLimits) > 0)
	for o, until := range s.offenders {
		if s.now() >= until {
			delete(s.offenders, o)
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

// atChannelLimit tells whether one more channel may be more than the broker lets the user
// have: it is then opened on a connection of its own, so that a refusal hits nobody else.
func (s *Server) atChannelLimit(p *pool) bool {
	if !s.limited.Load() {
		return false
	}
	s.mu.Lock()
	limit, ok := s.channelLimits[p.id.user]
	s.mu.Unlock()
	if !ok || s.now() >= limit.until {
		return false
	}
	load := 0
	for _, x := range s.allPools() {
		if x.id.user == p.id.user {
			load += x.stats().Channels
		}
	}
	return load >= limit.n
}

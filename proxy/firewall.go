// The firewall: what would close a whole connection at the broker is answered here, in
// the broker's stead, and reaches only the client that sent it. What depends on things the
// proxy cannot see goes through a session, where it can hurt nobody else.

package proxy

import (
	"bytes"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// admit judges a method by itself: is it known, and may a client send it on this channel?
// Codes and texts are RabbitMQ's; for an unknown method RabbitMQ only cuts the connection.
func (c *client) admit(m amqp.Method, spec *amqp.Spec, f amqp.Frame) *amqp.Error {
	onChannel0 := f.Channel() == 0
	switch {
	case len(f) < amqp.FrameOverhead+4:
		return amqp.Errorf(amqp.FrameError, 0, "type 1, %d octets of payload: unknown_frame", len(f.Payload()))
	case m.Index() == 0:
		return amqp.Errorf(amqp.CommandInvalid, m, "%s", m)
	case onChannel0 && m != amqp.ConnectionClose && m != amqp.ConnectionUpdateSecret:
		return amqp.Errorf(amqp.ChannelError, m, "unexpected method in connection state running")
	case !onChannel0 && (!spec.Client || m.Class() == amqp.ClassConnection):
		return amqp.Errorf(amqp.CommandInvalid, m, "unimplemented method")
	}
	return nil
}

// pastClose tells whether a frame that came behind the client's own channel.close is to be
// swallowed, as the broker does while it closes: another thread of the application may
// have been publishing. Only what asks for no answer, and only for a moment.
func (c *client) pastClose(id uint16, m amqp.Method) bool {
	if c.lately.id != id || time.Since(c.lately.at) > closeGrace {
		return false
	}
	switch m {
	case amqp.BasicPublish:
		c.lately.content = true
		return true
	case amqp.BasicAck, amqp.BasicNack, amqp.BasicReject:
		return true
	}
	return false
}

// ownHazard tells whether a method that is in order by itself may yet be a hard error at
// the broker, for what its queue or exchange is. Such a method is sent by sessions only.
func ownHazard(m amqp.Method, f amqp.Frame, bits byte) bool {
	switch m {
	case amqp.ExchangeDeclare: // RabbitMQ 3: 503 for a type it does not know
		a := amqp.ReadArgs(f)
		a.Short()
		a.Str()
		switch string(a.Str()) {
		case "direct", "fanout", "topic", "headers":
			return false
		}
		return bits&1 == 0
	case amqp.QueueDelete: // 540 for if-unused and if-empty on a quorum queue
		return bits&3 != 0
	case amqp.QueueDeclare: // 541 for a reply-to address that is none, and for values these cannot take
		a := amqp.ReadArgs(f)
		a.Short()
		return bytes.HasPrefix(a.Str(), []byte("amq.rabbitmq.reply-to.")) || hasField(f, "hsb", "x-max-age", "x-queue-master-locator")
	case amqp.BasicConsume: // 541 likewise
		return hasField(f, "hssb", "x-stream-offset", "x-stream-filter", "x-credit")
	}
	return false
}

// hasField tells whether the arguments table behind the fields has one of the names.
func hasField(f amqp.Frame, fields string, names ...string) bool {
	a := amqp.ReadArgs(f)
	for _, k := range fields {
		switch k {
		case 'h':
			a.Short()
		case 's':
			a.Str()
		case 'b':
			a.Octet()
		}
	}
	table := a.LongStr()
	if len(table) == 0 {
		return false
	}
	for _, name := range names {
		if _, _, ok := amqp.Lookup(table, name); ok {
			return true
		}
	}
	return false
}

// badReplyTo tells whether a publish goes to a direct reply-to address that cannot be one:
// RabbitMQ closes the connection with 541 over it.
func badReplyTo(f amqp.Frame) bool {
	a := amqp.ReadArgs(f)
	a.Short()
	return len(a.Str()) == 0 && amqp.BadReplyTo(a.Str())
}

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

// lateError logs a soft error for a channel whose close was answered before the broker's word.
func (s *Server) lateError(u *upstream, ch *channel, e *amqp.Error) {
	s.n.lateErrors.Add(1)
	c := ch.c
	s.log.Warn("late error for a channel that was closed already", "client", c.n,
		"address", c.conn.RemoteAddr().String(), "name", c.name(), "user", c.user, "vhost", u.vhost(),
		"upstream", u.n, "code", e.Code, "reason", e.Text, "method", e.Method.String())
}

// awaitCommit waits, bounded, until the broker has answered the channel's tx.commit:
// RabbitMQ takes anything amid a commit for a hard error.
func (c *client) awaitCommit(b *binding) {
	c.settle()
	timer := time.NewTimer(c.s.cfg().WriteTimeout)
	defer timer.Stop()
	u := b.u
	for {
		u.mu.Lock()
		pending := b.commits.Load() > 0 && b.state == bOpen && u.failed == nil
		answered := u.answeredLocked()
		u.mu.Unlock()
		if !pending {
			return
		}
		select {
		case <-answered:
		case <-u.done:
			return
		case <-c.gone:
			return
		case <-timer.C:
			return
		}
	}
}

// The firewall: what would close a whole connection at the broker is answered here, in
// the broker's stead, and reaches only the client that sent it.

package proxy

import (
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// admit judges a method by itself: is it known, and may a client send it here?
func (c *client) admit(m amqp.Method, spec *amqp.Spec, f amqp.Frame) *amqp.Error {
	if m.Index() == 0 {
		if len(f) < amqp.FrameOverhead+4 {
			return amqp.Errorf(amqp.FrameError, 0, "method frame of %d octets, at least 4 are needed", len(f.Payload()))
		}
		return amqp.Errorf(amqp.CommandInvalid, m, "%s", m)
	}
	if !spec.Client {
		return amqp.Errorf(amqp.CommandInvalid, m, "%s is for servers to send", spec.Name)
	}
	if onChannel0 := m.Class() == amqp.ClassConnection; onChannel0 != (f.Channel() == 0) {
		return amqp.Errorf(amqp.CommandInvalid, m, "%s on channel %d", spec.Name, f.Channel())
	}
	return nil
}

// blame finds the client whose method the broker named in its connection.close.
func (u *upstream) blame(e *amqp.Error) {
	if e.Code == amqp.ConnectionForced || e.Code == amqp.ReplySuccess {
		return
	}
	u.s.log.Error("broker closed a connection for a client's error", "upstream", u.n,
		"user", u.account.key.user, "vhost", u.vhost(), "code", e.Code, "reason", e.Text, "method", e.Method.String())
}

// lateError logs a soft error for a channel whose close was answered before the broker's word.
func (s *Server) lateError(u *upstream, ch *channel, e *amqp.Error) {
	s.n.lateErrors.Add(1)
	c := ch.c
	s.log.Warn("late error for a channel that was closed already", "client", c.n,
		"address", c.conn.RemoteAddr().String(), "name", c.name, "user", c.user, "vhost", u.vhost(),
		"upstream", u.n, "code", e.Code, "reason", e.Text, "method", e.Method.String())
}

// awaitCalls waits, bounded, until the broker has answered what the channel asked.
func (c *client) awaitCalls(b *binding) {
	c.settle()
	deadline := time.Now().Add(c.s.cfg().WriteTimeout)
	for b.commits.Load() > 0 && time.Now().Before(deadline) {
		u := b.u
		u.mu.Lock()
		answered := u.answeredLocked()
		u.mu.Unlock()
		if b.commits.Load() == 0 {
			return
		}
		timer := time.NewTimer(time.Until(deadline))
		select {
		case <-answered:
		case <-u.done:
		case <-c.gone:
		case <-timer.C:
		}
		timer.Stop()
		select {
		case <-u.done:
			return
		case <-c.gone:
			return
		default:
		}
	}
}

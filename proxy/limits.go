// The bound on clients: a place for each under max_clients, and the wait for one.

package proxy

import (
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// placeLocked gives a client its place under max_clients. False: there is none now.
func (s *Server) placeLocked(c *client) bool {
	if most := s.cfg().MaxClients; most > 0 && s.held >= most {
		return false
	}
	c.held = true
	s.held++
	return true
}

// wakeWaitingLocked has those who wait for a place look again.
func (s *Server) wakeWaitingLocked() {
	if s.left != nil {
		close(s.left)
		s.left = nil
	}
}

// waitPlace waits, at most wait_timeout, for a place under max_clients.
func (s *Server) waitPlace(c *client) *amqp.Error {
	timer := time.NewTimer(s.cfg().WaitTimeout)
	defer timer.Stop()
	for {
		s.mu.Lock()
		if c.held || s.placeLocked(c) {
			s.mu.Unlock()
			return nil
		}
		if s.left == nil {
			s.left = make(chan struct{})
		}
		left := s.left
		s.mu.Unlock()
		select {
		case <-left:
		case <-c.gone:
			return errGone
		case <-timer.C:
			return amqp.Errorf(amqp.ConnectionForced, 0, "no place for another client: max_clients = %d are connected",
				s.cfg().MaxClients)
		}
	}
}

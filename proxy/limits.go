// The bounds on clients: how many may be connected, how many amid their handshake, and how many
// sockets the process can have.

package proxy

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
	"github.com/amqproxysvc/amqproxysvc/proxy/wait"
)

// limits are the server's. Strangers hold no place under max_clients, however long the broker takes to refuse them: it
// is taken, and waited for in turn, when a client has said who it is and that is known to be right.
type limits struct {
	clients wait.Bound // max_clients
	sockets int        // that clients and upstreams may have together; 0: no bound

	mu         lock.Mutex[lock.Leaf] // a leaf
	handshakes int                   // under way
	from       map[netip.Prefix]int
	logged     time.Time
}

// spareSockets are left of the process's descriptors for broker connections on their way,
// metrics, the self-check and files.
func spareSockets(all int) int { return min(max(all/8, 32), 1024) }

// SpareSockets is how many descriptors clients and connections to the broker leave to everything else.
func SpareSockets() int {
	if all := descriptors(); all > 0 {
		return spareSockets(all)
	}
	return 1024 // none is known to be short
}

// begin counts a handshake. Not "": there is no place for it, for this reason. An address may have
// half of the places, so that others can log in beside it.
func (l *limits) begin(from netip.Prefix, known bool, most, sockets int) (why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.sockets > 0 && sockets >= l.sockets:
		return "descriptors"
	case most > 0 && l.handshakes >= most:
		return "max_handshakes"
	case known && !l.placeLocked(from, most):
		return "max_handshakes of one address"
	}
	l.handshakes++
	return ""
}

// place counts a handshake, which is counted already, as one of an address that has become known.
func (l *limits) place(from netip.Prefix, most int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.placeLocked(from, most)
}

func (l *limits) placeLocked(from netip.Prefix, most int) bool {
	if most > 0 && l.from[from] >= (most+1)/2 {
		return false
	}
	if l.from == nil {
		l.from = make(map[netip.Prefix]int)
	}
	l.from[from]++
	return true
}

// over ends the count of a handshake.
func (l *limits) over(from netip.Prefix, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.handshakes--
	if known {
		if l.from[from]--; l.from[from] == 0 {
			delete(l.from, from)
		}
	}
}

// turnedAway notes a client for which there was no place, at most once a second.
func (s *Server) turnedAway(from net.Addr, why string) {
	s.n.turnedAway.Add(1)
	l := &s.limits
	l.mu.Lock()
	say := time.Since(l.logged) >= time.Second
	if say {
		l.logged = time.Now()
	}
	under := l.handshakes
	l.mu.Unlock()
	if say {
		s.log.Warn("clients turned away: no place for their handshake", "setting", why, "address", from.String(),
			"max_handshakes", s.cfg().MaxHandshakes, "handshakes", under, "turned_away", s.n.turnedAway.Load())
	}
}

// handshakeOver gives the client's place among the handshakes to others. Its reader calls it.
func (c *client) handshakeOver() {
	if !c.shaking {
		return
	}
	c.shaking = false
	from, known := c.network()
	c.s.limits.over(from, known && c.placed)
}

// waitPlace waits, at most wait_timeout, for a place under max_clients. Who hangs up meanwhile gives up its turn.
func (s *Server) waitPlace(c *client) *amqp.Error {
	if s.limits.clients.Try() {
		c.held = true
		return nil
	}
	if c.account == nil {
		c.props = bytes.Clone(c.props) // what is read now comes into the same buffer
	}
	gone, stop := c.watch()
	defer stop()
	ctx, cancel := context.WithTimeout(s.ctx, s.cfg().WaitTimeout)
	defer cancel()
	came := time.Now()
	err := s.limits.clients.Acquire(ctx, gone)
	s.n.waits.observe(time.Since(came))
	switch {
	case err == nil:
		c.held = true
		return nil
	case errors.Is(err, wait.ErrGone):
		return errGone
	case s.ctx.Err() != nil:
		return errStopping
	}
	return amqp.Errorf(amqp.ConnectionForced, 0, "no place for another client: max_clients = %d are connected",
		s.cfg().MaxClients)
}

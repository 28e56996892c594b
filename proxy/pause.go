// Pauses: an administrator has logins, opens and the first frames of channels wait, while the broker is
// restarted, say, or definitions move to another. Nobody is cut; what is bound goes on.

package proxy

import (
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
	"github.com/amqproxysvc/amqproxysvc/proxy/wait"
)

// pauses are those in force.
type pauses struct {
	n       atomic.Int32 // len(on)
	waiting atomic.Int32 // clients that wait for their end
	mu      lock.Mutex[lock.Leaf]
	on      map[paused]*pause
	over    wait.Signal // one has ended
}

// paused is what is: one vhost, or all.
type paused struct {
	vhost string
	all   bool
}

type pause struct {
	PauseInfo
	end *time.Timer // nil: it ends when it is told to
}

// PauseInfo is one pause.
type PauseInfo struct {
	VHost string // where not All
	All   bool
	Since time.Time
	Until time.Time // zero: until Resume
}

// Pause begins a pause of a vhost, or of all, at most for a time that is not 0. Connections to the broker take
// no new channels and end with their last; it says how many those are. A pause that is on is given the new end.
func (s *Server) Pause(vhost string, all bool, most time.Duration) int {
	key := paused{vhost, all}
	p := &pause{PauseInfo: PauseInfo{VHost: vhost, All: all, Since: time.Now()}}
	m := &s.pauses
	m.mu.Lock()
	if old := m.on[key]; old != nil {
		p.Since = old.Since
		if old.end != nil {
			old.end.Stop()
		}
	} else {
		m.n.Add(1)
	}
	if m.on == nil {
		m.on = make(map[paused]*pause)
	}
	m.on[key] = p
	if most > 0 {
		p.Until = time.Now().Add(most)
		p.end = time.AfterFunc(most, func() {
			if m.remove(key, p) {
				s.log.Warn("a pause has ended by itself", "vhost", vhost, "all", all, "after", most)
			}
		})
	}
	m.mu.Unlock()
	return s.retire(func(pool *pool) bool { return all || pool.id.vhost == vhost }, 0)
}

// Resume ends a pause. False: there is none of this vhost, or of all.
func (s *Server) Resume(vhost string, all bool) bool { return s.pauses.remove(paused{vhost, all}, nil) }

// Pauses are those in force, that of all first.
func (s *Server) Pauses() (all []PauseInfo) {
	m := &s.pauses
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.on {
		all = append(all, p.PauseInfo)
	}
	slices.SortFunc(all, func(a, b PauseInfo) int {
		if a.All {
			return -1 // there is one
		}
		if b.All {
			return 1
		}
		return strings.Compare(a.VHost, b.VHost)
	})
	return all
}

// remove ends a pause, where one is given that one.
func (m *pauses) remove(key paused, only *pause) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.on[key]
	if p == nil || only != nil && p != only {
		return false
	}
	if p.end != nil {
		p.end.Stop()
	}
	delete(m.on, key)
	m.n.Add(-1)
	m.over.FireLocked()
	return true
}

// wait returns when what is asked for is not paused, or gone is closed, or the server ends.
func (m *pauses) wait(server <-chan struct{}, vhost string, named bool, gone <-chan struct{}) *amqp.Error {
	m.waiting.Add(1)
	defer m.waiting.Add(-1)
	for {
		m.mu.Lock()
		is := m.on[paused{all: true}] != nil || named && m.on[paused{vhost: vhost}] != nil
		over := m.over.WaitLocked()
		m.mu.Unlock()
		if !is {
			return nil
		}
		select {
		case <-over:
		case <-gone:
			return errGone
		case <-server:
			return errStopping
		}
	}
}

// awaitResume is the wait of a client amid its handshake, whose time it is not. False: the client has gone.
func (c *client) awaitResume(vhost string, named bool) bool {
	m := &c.s.pauses
	if m.n.Load() == 0 || c.s.isOwn(c.sock.RemoteAddr()) { // the watchdog asks whether the proxy answers
		return true
	}
	c.paused.Store(true)
	c.waitsFrom.Store(c.env.now())
	gone, stop := c.watch()
	e := m.wait(c.env.ctx.Done(), vhost, named, gone)
	stop()
	c.granted.Add(c.env.now() - c.waitsFrom.Load())
	c.waitsFrom.Store(0)
	c.paused.Store(false)
	return e == nil
}

// awaitResumed is the wait of a client that is logged in, before a channel of it is bound.
func (c *client) awaitResumed() *amqp.Error {
	m := &c.s.pauses
	if m.n.Load() == 0 {
		return nil
	}
	c.settle()
	c.waitsFrom.Store(c.env.now())
	defer c.waitsFrom.Store(0)
	return m.wait(c.env.ctx.Done(), c.pool.id.vhost, true, c.gone)
}

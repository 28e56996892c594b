// Deprecated features of RabbitMQ that its operator may deny, as newer versions do by themselves:
// what uses one is then a hard error for the whole connection. The one that applications use without
// knowing is a queue that is neither durable nor exclusive.

package proxy

import (
	"strings"
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
	"github.com/amqproxysvc/amqproxysvc/proxy/wait"
)

// permission is what is known of a feature.
type permission = int32

const (
	unasked permission = iota
	permitted
	denied
)

// transients is whether the broker lets queues be transient and not exclusive. It is learned
// from its answers, and forgotten when it may have been started anew.
type transients struct {
	is atomic.Int32 // permission; written under mu

	mu     lock.Mutex[lock.Leaf] // a leaf
	words  *amqp.Error
	until  int64       // the denial is believed, coarse clock
	asked  int64       // when somebody went to ask
	answer wait.Signal // it is known
	asking bool
}

func (t *transients) settle(v permission, words *amqp.Error, until int64) {
	if v == permitted && t.is.Load() == permitted {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.is.Store(v)
	t.words, t.until = words, until
	t.asking = false
	t.answer.FireLocked()
}

// forget is for a broker that may have been started anew, with other settings.
func (t *transients) forget() {
	t.mu.Lock()
	t.is.CompareAndSwap(permitted, unasked)
	t.mu.Unlock()
}

// denial is what the broker said when it denied the feature, or nil.
func (t *transients) denial(now int64) *amqp.Error {
	if t.is.Load() != denied {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if now >= t.until {
		t.is.CompareAndSwap(denied, unasked) // it may be permitted by now: somebody asks again
		return nil
	}
	return t.words
}

// ask has one client at a time ask. Not nil: another one does, and its answer closes the channel.
func (t *transients) ask(now int64, patience time.Duration) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.is.Load() != unasked { // it came meanwhile
		known := make(chan struct{})
		close(known)
		return known
	}
	if t.asking && now-t.asked < int64(patience) {
		return t.answer.WaitLocked()
	}
	t.asking, t.asked = true, now
	return nil
}

// denies reports whether the broker closed a connection for a transient queue.
func denies(e *amqp.Error) bool {
	return e.Code == amqp.InternalError && strings.Contains(e.Text, "`transient_nonexcl_queues`")
}

// isTransient reports whether a queue.declare is of a queue that is neither durable nor exclusive.
func isTransient(bits byte) bool {
	const passive, durable, exclusive = 1, 2, 4
	return bits&(passive|durable|exclusive) == 0
}

// transient has the declaration of a transient queue go where its refusal hurts nobody else, as long
// as it is not known to be permitted. True: it is to be passed on.
func (c *client) transient(ch *channel, f amqp.Frame, wait bool) bool {
	t := &c.pool.to().way.transients
	for t.is.Load() != permitted {
		if words := t.denial(c.env.now()); words != nil {
			c.env.n.firewallCloses.Add(1)
			return c.die(words)
		}
		if !c.hazards().deprecated {
			return true // it can be denied there too, which its first refusal tells
		}
		b := ch.cur.Load()
		if c.session != nil && (b == nil || b.u == c.session) {
			return true
		}
		patience := c.env.cfg().ConnectTimeout
		if answer := t.ask(c.env.now(), patience); answer != nil {
			c.settle()
			timer := time.NewTimer(patience)
			select {
			case <-answer:
			case <-timer.C:
			case <-c.gone:
				timer.Stop()
				return false
			}
			timer.Stop()
			continue
		}
		return c.apart(ch, f, wait) // one asks for all
	}
	return true
}

// apart has a declaration go over an upstream of the client's own, in mode shared too. True: it
// is to be passed on.
func (c *client) apart(ch *channel, f amqp.Frame, wait bool) bool {
	if c.session == nil {
		if e := c.becomeSession(); e != nil {
			c.die(e)
			return false
		}
	}
	if c.move(c.session, ch); ch.cur.Load() != nil {
		c.detour(ch, amqp.QueueDeclare, f, wait)
		return false
	}
	return true
}

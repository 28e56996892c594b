// Declarations rewritten by a route, for a broker that lets queues be declared otherwise than applications do: newer versions
// of RabbitMQ deny transient queues, and have no mirrored ones. What belongs to one client stays as it declares it.

package proxy

import (
	"bytes"
	"sync/atomic"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
)

// The bits of queue.declare.
const (
	declarePassive    = 1
	declareDurable    = 2
	declareExclusive  = 4
	declareAutoDelete = 8
)

// rewrites counts what is rewritten, and knows what the log has told of.
type rewrites struct {
	n    atomic.Uint64
	mu   lock.Mutex[lock.Leaf]
	told map[rewritten]struct{}
}

type rewritten struct{ vhost, queue string }

// toldMost bounds rewrites.told; then the log tells anew.
const toldMost = 1000

// rewriting is the route of the client's vhost if it rewrites declarations, or nil.
func (c *client) rewriting() *route {
	w := c.s.ways.Load()
	if !w.rewrite {
		return nil
	}
	r := w.route(c.pool.id.vhost)
	if r == nil || !r.Durable && r.QueueType == "" {
		return nil
	}
	return r
}

// isKept reports whether a queue.declare, whose arguments are in order, is of a queue that is there for others than
// its client: named, neither exclusive nor auto-delete. bits is where its bits are.
func isKept(f amqp.Frame) (bits *byte, ok bool) {
	args := f.Args()
	n := int(args[2])
	bits = &args[3+n]
	return bits, n > 0 && *bits&(declarePassive|declareExclusive|declareAutoDelete) == 0
}

// rewrite makes the queue of a declaration durable where the route says so, in place, and notes what is rewritten.
func (c *client) rewrite(f amqp.Frame) {
	r := c.rewriting()
	if r == nil {
		return
	}
	if _, e := amqp.QueueDeclare.Spec().CheckArgs(f.Args()); e != nil {
		return
	}
	bits, kept := isKept(f)
	if !kept {
		return
	}
	durable := r.Durable && *bits&declareDurable == 0
	if durable {
		*bits |= declareDurable
	}
	typed := r.takesType(f)
	if !durable && !typed {
		return
	}
	m := &c.s.rewrites
	m.n.Add(1)
	args := f.Args()
	what := rewritten{c.pool.id.vhost, string(args[3 : 3+int(args[2])])}
	m.mu.Lock()
	_, told := m.told[what]
	if !told {
		if m.told == nil || len(m.told) >= toldMost {
			m.told = make(map[rewritten]struct{})
		}
		m.told[what] = struct{}{}
	}
	m.mu.Unlock()
	if told {
		return
	}
	attrs := []any{"client", c.n, "address", c.address().String(), "user", c.user, "vhost", what.vhost, "name", c.name(), "queue", what.queue}
	if durable {
		attrs = append(attrs, "durable", true)
	}
	if typed {
		attrs = append(attrs, "queue_type", r.QueueType)
	}
	c.env.log.Info("a queue is declared otherwise than its client does", attrs...)
}

// takesType reports whether a declaration is given the route's type of queue: it is durable, says no type itself, and has no
// argument that only a classic queue takes.
func (r *route) takesType(f amqp.Frame) bool {
	bits, kept := isKept(f)
	if r.QueueType == "" || !kept || *bits&declareDurable == 0 {
		return false
	}
	table := argumentsOf(f)
	for _, name := range []string{"x-queue-type", "x-max-priority", "x-queue-mode", "x-queue-version", masterLocator} {
		if _, _, there := amqp.Lookup(table, name); there && (name == "x-queue-type" || r.QueueType != "classic") {
			return false
		}
	}
	return true
}

// typed is a declaration with the type of queue that the route gives it, or nil where it gives none.
func (c *client) typed(f amqp.Frame) amqp.Frame {
	r := c.rewriting()
	if r == nil || !r.takesType(f) {
		return nil
	}
	args := f.Args()
	table := amqp.AppendStringField(bytes.Clone(argumentsOf(f)), "x-queue-type", r.QueueType)
	out := amqp.BeginMethod(nil, f.Channel(), amqp.QueueDeclare)
	out = append(out, args[:4+int(args[2])]...)
	return amqp.EndMethod(amqp.AppendLongStr(out, table), 0)
}

// argumentsOf is the table of a declaration, from the inside.
func argumentsOf(f amqp.Frame) []byte {
	a := amqp.ReadArgs(f)
	a.Short()
	a.Str()
	a.Octet()
	return a.LongStr()
}

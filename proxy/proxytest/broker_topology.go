// Exchanges and queues of the stand-in broker, declared, bound, purged and deleted.

package proxytest

import (
	"slices"
	"strings"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// topology handles the methods of the classes exchange and queue.
func (ch *brokerChannel) topology(m amqp.Method, a *amqp.Args, bits byte, wait bool) *amqp.Error {
	a.Short()
	switch m {
	case amqp.QueueDeclare:
		return ch.declareQueue(a, bits, wait)
	case amqp.QueueBind, amqp.QueueUnbind:
		return ch.bindQueue(m, a, wait)
	case amqp.QueuePurge:
		q, err := ch.queue(m, string(a.Str()))
		if err != nil {
			return err
		}
		n := len(q.ready)
		q.ready = nil
		if wait {
			ch.send(amqp.QueuePurgeOk, n)
		}
	case amqp.QueueDelete:
		return ch.deleteQueue(a, bits, wait)
	case amqp.ExchangeDeclare:
		return ch.declareExchange(a, bits, wait)
	case amqp.ExchangeDelete:
		return ch.deleteExchange(a, bits, wait)
	case amqp.ExchangeBind, amqp.ExchangeUnbind:
		return ch.bindExchange(m, a, wait)
	default:
		return amqp.Errorf(amqp.NotImplemented, m, "unexpected method %v", m)
	}
	return nil
}

func (ch *brokerChannel) declareQueue(a *amqp.Args, bits byte, wait bool) *amqp.Error {
	const m = amqp.QueueDeclare
	v := ch.c.vhost
	name := string(a.Str())
	a.Octet()
	args := string(a.LongStr())
	if bits&Passive != 0 {
		q, err := ch.queue(m, name)
		if err != nil {
			return err
		}
		name = q.name
	} else if name == "" {
		name = v.b.newNameLocked("amq.gen-standin")
	} else if strings.HasPrefix(name, "amq.") && v.queues[name] == nil {
		return amqp.Errorf(amqp.AccessRefused, m, "queue name '%s' contains reserved prefix 'amq.*'", name)
	}
	q := v.queues[name]
	want := bits & (Durable | Exclusive | AutoDelete)
	if q != nil && bits&Passive == 0 {
		if _, err := ch.queue(m, name); err != nil {
			return err
		}
		for bit, field := range map[byte]string{Durable: "durable", Exclusive: "exclusive", AutoDelete: "auto_delete"} {
			if (q.bits^want)&bit != 0 {
				return ch.inequivalent(m, field, "queue", name, want&bit != 0, q.bits&bit != 0)
			}
		}
		if q.args != args {
			return amqp.Errorf(amqp.PreconditionFailed, m, "inequivalent arg for queue '%s' in vhost '%s'", name, v.name)
		}
	}
	if q == nil {
		q = &queue{v: v, name: name, bits: want, args: args}
		if want&Exclusive != 0 {
			q.owner = ch.c
			ch.c.exclusive[q] = struct{}{}
		}
		v.queues[name] = q
	}
	*ch.last() = name
	if wait {
		ch.send(amqp.QueueDeclareOk, name, len(q.ready), len(q.consumers))
	}
	return nil
}

func (ch *brokerChannel) inequivalent(m amqp.Method, field, kind, name string, got, is bool) *amqp.Error {
	return amqp.Errorf(amqp.PreconditionFailed, m, "inequivalent arg '%s' for %s '%s' in vhost '%s': received '%v' but current is '%v'",
		field, kind, name, ch.c.vhost.name, got, is)
}

func (ch *brokerChannel) deleteQueue(a *amqp.Args, bits byte, wait bool) *amqp.Error {
	const m = amqp.QueueDelete
	name := string(a.Str())
	n := 0
	q, err := ch.queue(m, name)
	switch {
	case err != nil && (err.Code != amqp.NotFound || name == ""):
		return err
	case err != nil: // RabbitMQ: a queue that is not there is deleted
	case bits&1 != 0 && len(q.consumers) > 0:
		return amqp.Errorf(amqp.PreconditionFailed, m, "queue '%s' in vhost '%s' in use", q.name, q.v.name)
	case bits&2 != 0 && len(q.ready) > 0:
		return amqp.Errorf(amqp.PreconditionFailed, m, "queue '%s' in vhost '%s' is not empty", q.name, q.v.name)
	default:
		n = len(q.ready)
		q.deleteLocked()
	}
	if wait {
		ch.send(amqp.QueueDeleteOk, n)
	}
	return nil
}

func (ch *brokerChannel) exchange(m amqp.Method, name string) (*exchange, *amqp.Error) {
	if x := ch.c.vhost.exchanges[name]; x != nil {
		return x, nil
	}
	return nil, amqp.Errorf(amqp.NotFound, m, "no exchange '%s' in vhost '%s'", name, ch.c.vhost.name)
}

func (ch *brokerChannel) bindQueue(m amqp.Method, a *amqp.Args, wait bool) *amqp.Error {
	queueName, exchangeName, key := string(a.Str()), string(a.Str()), string(a.Str())
	q, err := ch.queue(m, queueName)
	if err != nil {
		return err
	}
	x, err := ch.exchange(m, exchangeName)
	if err != nil {
		return err
	}
	if x.name == "" {
		return amqp.Errorf(amqp.AccessRefused, m, "operation not permitted on the default exchange")
	}
	x.change(m == amqp.QueueBind, binding{key: key, queue: q})
	if m == amqp.QueueUnbind {
		ch.send(amqp.QueueUnbindOk)
	} else if wait {
		ch.send(amqp.QueueBindOk)
	}
	return nil
}

func (ch *brokerChannel) bindExchange(m amqp.Method, a *amqp.Args, wait bool) *amqp.Error {
	to, err := ch.exchange(m, string(a.Str()))
	if err != nil {
		return err
	}
	from, err := ch.exchange(m, string(a.Str()))
	if err != nil {
		return err
	}
	from.change(m == amqp.ExchangeBind, binding{key: string(a.Str()), to: to})
	if wait {
		reply := amqp.ExchangeBindOk
		if m == amqp.ExchangeUnbind {
			reply = amqp.ExchangeUnbindOk
		}
		ch.send(reply)
	}
	return nil
}

// change adds a binding once, or removes it.
func (x *exchange) change(add bool, b binding) {
	i := slices.Index(x.bindings, b)
	switch {
	case add && i < 0:
		x.bindings = append(x.bindings, b)
	case !add && i >= 0:
		x.bindings = slices.Delete(x.bindings, i, i+1)
	}
}

func (ch *brokerChannel) declareExchange(a *amqp.Args, bits byte, wait bool) *amqp.Error {
	const m = amqp.ExchangeDeclare
	v := ch.c.vhost
	name, kind := string(a.Str()), string(a.Str())
	want := bits &^ (Passive | 1<<4)
	x := v.exchanges[name]
	switch {
	case bits&Passive != 0:
		if _, err := ch.exchange(m, name); err != nil {
			return err
		}
	case !slices.Contains([]string{"direct", "fanout", "topic", "headers"}, kind):
		return amqp.Errorf(amqp.CommandInvalid, m, "unknown exchange type '%s'", kind)
	case x == nil && strings.HasPrefix(name, "amq."):
		return amqp.Errorf(amqp.AccessRefused, m, "exchange name '%s' contains reserved prefix 'amq.*'", name)
	case x == nil:
		v.exchanges[name] = &exchange{name: name, kind: kind, bits: want}
	case x.kind != kind:
		return amqp.Errorf(amqp.PreconditionFailed, m, "inequivalent arg 'type' for exchange '%s' in vhost '%s': received '%s' but current is '%s'", name, v.name, kind, x.kind)
	case x.bits != want:
		return ch.inequivalent(m, "durable", "exchange", name, want&Durable != 0, x.bits&Durable != 0)
	}
	if wait {
		ch.send(amqp.ExchangeDeclareOk)
	}
	return nil
}

func (ch *brokerChannel) deleteExchange(a *amqp.Args, bits byte, wait bool) *amqp.Error {
	const m = amqp.ExchangeDelete
	v := ch.c.vhost
	name := string(a.Str())
	x := v.exchanges[name]
	switch {
	case name == "" || strings.HasPrefix(name, "amq."):
		return amqp.Errorf(amqp.AccessRefused, m, "exchange name '%s' contains reserved prefix 'amq.*'", name)
	case x != nil && bits&1 != 0 && len(x.bindings) > 0:
		return amqp.Errorf(amqp.PreconditionFailed, m, "exchange '%s' in vhost '%s' in use", name, v.name)
	case x != nil:
		delete(v.exchanges, name)
		v.unbind(func(b binding) bool { return b.to == x })
	}
	if wait {
		ch.send(amqp.ExchangeDeleteOk)
	}
	return nil
}

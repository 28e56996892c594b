// Exchanges, queues and messages of the stand-in broker. All under the broker's lock.

package proxytest

import (
	"slices"
	"strings"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

type vhost struct {
	b         *Broker
	name      string
	queues    map[string]*queue
	exchanges map[string]*exchange
}

func newVHost(b *Broker, name string) *vhost {
	v := &vhost{b: b, name: name, queues: map[string]*queue{}, exchanges: map[string]*exchange{}}
	for name, kind := range map[string]string{"": "direct", "amq.direct": "direct", "amq.fanout": "fanout", "amq.topic": "topic",
		"amq.headers": "headers", "amq.match": "headers"} {
		v.exchanges[name] = &exchange{name: name, kind: kind, bits: Durable}
	}
	return v
}

// exchange is one of the types direct, fanout and topic; headers matches nothing.
type exchange struct {
	name, kind string
	bits       byte // as in exchange.declare, without passive and no-wait
	bindings   []binding
}

// binding leads from an exchange to a queue or to another exchange.
type binding struct {
	key   string
	queue *queue
	to    *exchange
}

// message is one as it was published; header is the payload of its content header.
type message struct {
	exchange, key string
	header, body  []byte
	redelivered   bool
}

// queue is a classic queue without limits, priorities and time to live.
type queue struct {
	v         *vhost
	name      string
	bits      byte // as in queue.declare, without passive and no-wait
	args      string
	owner     *BrokerConn // of an exclusive queue
	ready     []*message
	consumers []*consumer // who is next comes first
	consumed  bool        // has had a consumer: auto-delete may happen
	deleted   bool
}

// consumer takes messages from a queue to a channel.
type consumer struct {
	tag       string
	key       string // under which its channel has it: the tag, where it is the only one
	ch        *brokerChannel
	q         *queue
	noAck     bool
	exclusive bool
	prefetch  int // 0: no bound
	unacked   int
}

// route finds the queues for a message, each once.
func (v *vhost) route(x *exchange, key string) []*queue {
	if x.name == "" {
		if q := v.queues[key]; q != nil {
			return []*queue{q}
		}
		return nil
	}
	var queues []*queue
	seen := map[*exchange]bool{}
	var visit func(x *exchange)
	visit = func(x *exchange) {
		if seen[x] {
			return
		}
		seen[x] = true
		for _, b := range x.bindings {
			if !x.matches(b.key, key) {
				continue
			}
			if b.to != nil {
				visit(b.to)
			} else if !slices.Contains(queues, b.queue) {
				queues = append(queues, b.queue)
			}
		}
	}
	visit(x)
	return queues
}

func (x *exchange) matches(pattern, key string) bool {
	switch x.kind {
	case "fanout":
		return true
	case "topic":
		return topicMatches(strings.Split(pattern, "."), strings.Split(key, "."))
	case "direct":
		return pattern == key
	}
	return false
}

// topicMatches: * stands for one word, # for any number of them.
func topicMatches(pattern, words []string) bool {
	if len(pattern) == 0 {
		return len(words) == 0
	}
	if pattern[0] == "#" {
		return topicMatches(pattern[1:], words) || len(words) > 0 && topicMatches(pattern, words[1:])
	}
	return len(words) > 0 && (pattern[0] == "*" || pattern[0] == words[0]) && topicMatches(pattern[1:], words[1:])
}

func (v *vhost) unbind(match func(binding) bool) {
	for _, x := range v.exchanges {
		x.bindings = slices.DeleteFunc(x.bindings, match)
	}
}

// pushLocked appends a message.
func (q *queue) pushLocked(m *message) {
	q.ready = append(q.ready, m)
	q.pumpLocked()
}

// backLocked gives messages back to the front, in the order given.
func (q *queue) backLocked(ms []*message) {
	for _, m := range ms {
		m.redelivered = true
	}
	if q.deleted {
		return
	}
	q.ready = append(ms[:len(ms):len(ms)], q.ready...)
	q.pumpLocked()
}

// popLocked takes the first message.
func (q *queue) popLocked() *message {
	m := q.ready[0]
	q.ready[0] = nil
	q.ready = q.ready[1:]
	return m
}

// pumpLocked delivers while there are messages and a consumer that may have one.
func (q *queue) pumpLocked() {
	for len(q.ready) > 0 {
		i := slices.IndexFunc(q.consumers, (*consumer).hasRoom)
		if i < 0 {
			return
		}
		c := q.consumers[i]
		q.consumers = append(slices.Delete(q.consumers, i, i+1), c)
		c.ch.deliverLocked(c, q.popLocked())
	}
}

func (c *consumer) hasRoom() bool {
	if c.ch.paused {
		return false
	}
	return c.noAck || (c.prefetch == 0 || c.unacked < c.prefetch) &&
		(c.ch.prefetch == 0 || len(c.ch.unacked) < c.ch.prefetch)
}

// removeLocked ends a consumer; an auto-delete queue goes with its last one.
func (q *queue) removeLocked(c *consumer) {
	q.consumers = slices.DeleteFunc(q.consumers, func(o *consumer) bool { return o == c })
	if q.bits&AutoDelete != 0 && q.consumed && len(q.consumers) == 0 {
		q.deleteLocked()
	}
}

// deleteLocked ends a queue and tells its consumers that can be told.
func (q *queue) deleteLocked() {
	if q.deleted {
		return
	}
	q.deleted = true
	delete(q.v.queues, q.name)
	q.v.unbind(func(b binding) bool { return b.queue == q })
	if q.owner != nil {
		delete(q.owner.exclusive, q)
	}
	for _, c := range q.consumers {
		delete(c.ch.consumers, c.key)
		if c.ch.c.state == connOpen && c.ch.c.can("consumer_cancel_notify") {
			c.ch.c.Send(Method(c.ch.id, amqp.BasicCancel, c.tag, 1))
		}
	}
	q.consumers, q.ready = nil, nil
}

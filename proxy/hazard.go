// Hazards: what a broker may take for a hard error although it is in order by itself. One table
// for each product and version, learned from connection.start. What is known to be refused is
// answered in the broker's stead; what may be, goes through an upstream of the client's own.

package proxy

import (
	"bytes"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
)

// hazards are those of one broker.
type hazards struct {
	// rabbit: what RabbitMQ refuses it refuses. Another broker may be able to do it, so it is asked,
	// over an upstream of the client's own; and what RabbitMQ bears it may not.
	rabbit bool
	// types: an exchange type that it does not know is a hard error, up to RabbitMQ 3.
	types bool
	// replyTo: so is a publish to a direct reply-to address that is none, before RabbitMQ 4.3.
	replyTo bool
	// replyToText: so may be a reply_to that is not UTF-8, into a stream, since then.
	replyToText bool
	// deprecated: it may be told to refuse deprecated features, and newer versions are by default.
	deprecated bool
}

// masterLocator is an argument of queues that RabbitMQ 4.3 takes for a hard error by default.
const masterLocator = "x-queue-master-locator"

// hazardsOf goes by product and version.
func hazardsOf(info *broker.Info) hazards {
	if info.Product != "RabbitMQ" {
		return hazards{types: true}
	}
	return hazards{
		rabbit:      true,
		types:       !info.AtLeast(4, 0),
		replyTo:     !info.AtLeast(4, 3),
		replyToText: info.AtLeast(4, 3),
		deprecated:  info.AtLeast(4, 3),
	}
}

func (c *client) hazards() hazards {
	if info := c.brokerInfo(); info != c.hazardsOf {
		c.hazardsOf, c.known = info, hazardsOf(info)
	}
	return c.known
}

// mayFail reports whether a method that is in order by itself may yet be a hard error at
// the broker, for what its queue or exchange is. Such a method is sent by sessions only.
func (h hazards) mayFail(m amqp.Method, f amqp.Frame, bits byte) bool {
	switch m {
	case amqp.ExchangeDeclare:
		a := amqp.ReadArgs(f)
		a.Short()
		a.Str()
		switch string(a.Str()) {
		case "direct", "fanout", "topic", "headers":
			return false
		}
		return h.types && bits&1 == 0
	case amqp.QueueDelete: // 540 for if-unused and if-empty on a quorum queue
		return bits&3 != 0
	case amqp.QueueDeclare: // 541 for a reply-to address that is none, and for values these cannot take
		a := amqp.ReadArgs(f)
		a.Short()
		const replyTo = "amq.rabbitmq.reply-to"
		if name := a.Str(); bytes.HasPrefix(name, []byte(replyTo)) && len(name) > len(replyTo) {
			return true
		}
		if !h.rabbit {
			a.Octet()
			args := a.LongStr()
			_, dead, _ := amqp.Lookup(args, "x-dead-letter-exchange")
			if !amqp.IsUTF8(dead) || amqp.LateTimes(args) {
				return true
			}
		}
		return hasField(f, "hsb", "x-max-age", masterLocator)
	case amqp.BasicConsume: // 541 likewise
		return hasField(f, "hssb", "x-stream-offset", "x-stream-filter", "x-credit")
	case amqp.AccessRequest, amqp.BasicRecoverAsync:
		return !h.rabbit // LavinMQ takes their arguments for the next frame
	}
	return false
}

// asks goes to ask a broker that is not RabbitMQ what RabbitMQ answers with e: on an upstream of the
// client's own, and where there can be none the channel alone is closed. False: it is not to be sent.
func (c *client) asks(ch *channel, e *amqp.Error) bool {
	switch c.own(ch, e.Method) {
	case placed:
		return true
	case barred:
		return c.refuseChannel(ch, e.Code, e.Method, "%s is sent on a connection of the client's own only, and this channel shares one: set pool_mode to session",
			e.Words())
	}
	return false
}

// hasField reports whether the arguments table behind the fields has one of the names.
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

// badReplyTo reports whether a publish goes to a direct reply-to address that cannot be one.
func badReplyTo(f amqp.Frame) bool {
	a := amqp.ReadArgs(f)
	a.Short()
	return len(a.Str()) == 0 && amqp.BadReplyTo(a.Str())
}

// bearable reports whether the broker bears a content header that CheckContentHeader has passed.
func (c *client) bearable(ch *channel, header []byte) bool {
	odd := amqp.HeaderOdd(header)
	if odd == 0 {
		return true
	}
	h := c.hazards()
	switch {
	case odd&amqp.OddRoutes != 0 && h.replyTo:
		return c.refuse(amqp.SyntaxError, amqp.BasicPublish, "content header: CC or BCC has a reply-to address that is none")
	case odd&amqp.OddReplyTo != 0 && h.replyToText && !c.alone(ch): // other queues than streams bear it
		return c.refuse(amqp.InternalError, 0, "content header: reply_to is not UTF-8 and this channel shares a connection: set pool_mode to session")
	case odd&amqp.OddFlags != 0 && !h.rabbit:
		return c.refuse(amqp.FrameError, amqp.BasicPublish, "content header: invalid property flags")
	}
	return true
}

// alone reports whether the channel is on an upstream of the client's own, where what fails hard fails for it alone.
func (c *client) alone(ch *channel) bool {
	b := ch.cur.Load()
	return b != nil && b.u.owner.Load() == c
}

// acksNothing reports whether an ack of all deliveries, in a transaction, finds none, which brokers
// other than RabbitMQ do not bear.
func (c *client) acksNothing(ch *channel, f amqp.Frame) bool {
	a := amqp.ReadArgs(f)
	if a.LongLong() != 0 || c.hazards().rabbit {
		return false
	}
	return !ch.ledger.Unsettled(ch.broker())
}

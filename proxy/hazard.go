// Hazards: methods that are in order by themselves and may yet be hard errors at the broker,
// for what their queue or exchange is. They go through a session, where they hurt nobody else.

package proxy

import (
	"bytes"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

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

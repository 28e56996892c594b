// The hazards that lie in what a method asks for, not in how it is encoded.

package hazard

import (
	"fmt"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

func methodCases() []hazard {
	var cs []hazard
	open := chanOpen(1)
	add := func(name string, send ...[]byte) {
		cs = append(cs, hazard{name, [][]byte{open}, cat(send...)})
	}
	with := func(name string, setup [][]byte, send ...[]byte) {
		cs = append(cs, hazard{name, append([][]byte{open}, setup...), cat(send...)})
	}
	l := func(f ...[]byte) [][]byte { return f }
	q := func() string { return fmt.Sprintf("hz.m%d", len(cs)) }
	classic := func(name string) []byte { return declare(1, name, durable, expires) }
	quorum := func(name string) []byte { return declare(1, name, durable, typed("quorum"), expires) }
	stream := func(name string) []byte { return declare(1, name, durable, typed("stream")) }
	drop := func(name string, bits byte) []byte {
		return method(1, amqp.QueueDelete, short(0), str(name), octet(bits))
	}
	get := func(name string, bits byte) []byte {
		return method(1, amqp.BasicGet, short(0), str(name), octet(bits))
	}
	purge := func(name string) []byte { return method(1, amqp.QueuePurge, short(0), str(name), octet(0)) }
	qos := func(size uint32, n uint16, global byte) []byte {
		return method(1, amqp.BasicQos, long(size), short(n), octet(global))
	}
	xdecl := func(name, kind string, bits byte, args ...[]byte) []byte {
		return method(1, amqp.ExchangeDeclare, short(0), str(name), str(kind), octet(bits), table(args...))
	}
	ack := func(tag uint64, bits byte) []byte { return method(1, amqp.BasicAck, longlong(tag), octet(bits)) }
	txSelect, confirm := method(1, amqp.TxSelect), method(1, amqp.ConfirmSelect, octet(0))
	commit := method(1, amqp.TxCommit)

	// What RabbitMQ does not implement.
	add("publish immediate", publish(1, "", "hz.none", 2), header(1, 3), body(1, "abc"))
	add("publish immediate and mandatory", publish(1, "", "hz.none", 3), header(1, 0))
	add("publish immediate, no body yet", publish(1, "", "hz.none", 2))
	add("publish immediate to a missing exchange", publish(1, "hz.missing", "x", 2), header(1, 0))
	add("qos prefetch_size 1", qos(1, 0, 0))
	add("qos prefetch_size 2^32-1 global", qos(1<<32-1, 0, 1))
	add("qos global", qos(0, 10, 1))
	add("channel.flow inactive", method(1, amqp.ChannelFlow, octet(0)))
	add("channel.flow active", method(1, amqp.ChannelFlow, octet(1)))
	add("recover requeue=false", method(1, amqp.BasicRecover, octet(0)))
	add("recover requeue=true", method(1, amqp.BasicRecover, octet(1)))
	add("recover-async requeue=false", method(1, amqp.BasicRecoverAsync, octet(0)))
	add("recover-async requeue=true", method(1, amqp.BasicRecoverAsync, octet(1)))
	add("access.request", method(1, amqp.AccessRequest, str("/data"), octet(31)))

	// Consumers.
	n := q()
	with("consumer tag twice", l(classic(n), consume(1, n, "t", 0)), consume(1, n, "t", 0))
	n = q()
	with("consumer tag twice, no-wait", l(classic(n), consume(1, n, "t", 8)), consume(1, n, "t", 8))
	n = q()
	with("consumer tag twice at once", l(classic(n)), consume(1, n, "t", 0), consume(1, n, "t", 0))
	n = q()
	with("consumer tag twice, the first cancelled", l(classic(n), consume(1, n, "t", 0)), method(1, amqp.BasicCancel, str("t"), octet(0)), consume(1, n, "t", 0))
	n = q()
	with("consumer tag twice, the first cancelled by cancel-ok", l(classic(n), consume(1, n, "t", 0)), method(1, amqp.BasicCancelOk, str("t")), consume(1, n, "t", 0))
	n = q()
	with("consumer tag twice after its queue was deleted", l(classic(n), consume(1, n, "t", 0)), drop(n, 0), consume(1, "hz.missing", "t", 0))
	n = q()
	with("consumer tag twice on a missing queue", l(classic(n), consume(1, n, "t", 0)), consume(1, "hz.missing", "t", 0))
	n = q()
	with("empty consumer tags", l(classic(n), consume(1, n, "", 0)), consume(1, n, "", 0))
	n = q()
	with("a tag on two channels", l(classic(n), consume(1, n, "t", 0), chanOpen(2)), consume(2, n, "t", 0))
	n = q()
	with("a server-made tag again", l(classic(n)), consume(1, n, "amq.ctag-x", 0), consume(1, n, "amq.ctag-x", 0))
	with("reply-to consumer", nil, consume(1, "amq.rabbitmq.reply-to", "r", 2))
	with("reply-to consumer with acks", nil, consume(1, "amq.rabbitmq.reply-to", "r", 0))
	with("reply-to consumer twice", l(consume(1, "amq.rabbitmq.reply-to", "r", 2)), consume(1, "amq.rabbitmq.reply-to", "s", 2))
	with("reply-to consumer twice with one tag", l(consume(1, "amq.rabbitmq.reply-to", "r", 2)), consume(1, "amq.rabbitmq.reply-to", "r", 2))
	n = q()
	with("reply-to consumer's tag on a queue", l(classic(n), consume(1, "amq.rabbitmq.reply-to", "r", 2)), consume(1, n, "r", 2))
	n = q()
	with("a queue consumer's tag for reply-to", l(classic(n), consume(1, n, "r", 2)), consume(1, "amq.rabbitmq.reply-to", "r", 2))
	n = q()
	with("exclusive consumer on a consumed queue", l(classic(n), consume(1, n, "t", 0)), consume(1, n, "u", 4))
	n = q()
	with("consume x-priority a string", l(classic(n)), consume(1, n, "t", 0, strField("x-priority", "z")))
	n = q()
	with("consume x-priority 2^40", l(classic(n)), consume(1, n, "t", 0, field("x-priority", "l\x00\x00\x01\x00\x00\x00\x00\x00")))
	n = q()
	with("consume x-cancel-on-ha-failover a string", l(classic(n)), consume(1, n, "t", 0, strField("x-cancel-on-ha-failover", "z")))
	n = q()
	with("consume x-credit junk", l(classic(n)), consume(1, n, "t", 0, strField("x-credit", "z")))
	n = q()
	with("consume x-credit an empty table", l(classic(n)), consume(1, n, "t", 0, amqp.AppendTableField(nil, "x-credit", nil)))
	add("consume of no queue", consume(1, "", "t", 0))
	add("get of no queue", get("", 0))
	add("purge of no queue", purge(""))
	add("delete of no queue", drop("", 0))
	add("bind of no queue", method(1, amqp.QueueBind, short(0), str(""), str("amq.direct"), str("k"), octet(0), table()))
	add("consume of a missing queue", consume(1, "hz.missing", "t", 0))
	add("publish reply-to without a consumer", publish(1, "", "hz.none", 0), props(1, 0, 1<<9, str("amq.rabbitmq.reply-to")))
	add("publish to amq.rabbitmq.reply-to", message(1, "", "amq.rabbitmq.reply-to", "x"))
	add("publish to amq.rabbitmq.reply-to.junk", message(1, "", "amq.rabbitmq.reply-to.junk", "x"))
	add("publish to amq.rabbitmq.reply-to.g1h2AA==.junk", message(1, "", "amq.rabbitmq.reply-to.g1h2AA==.junk", "x"))
	add("declare amq.rabbitmq.reply-to passive", declare(1, "amq.rabbitmq.reply-to", 1))
	add("declare amq.rabbitmq.reply-to", declare(1, "amq.rabbitmq.reply-to", 0))
	add("declare amq.rabbitmq.reply-to.junk passive", declare(1, "amq.rabbitmq.reply-to.junk", 1))
	add("declare amq.rabbitmq.reply-to.junk", declare(1, "amq.rabbitmq.reply-to.junk", 0))
	add("declare amq.rabbitmq.reply-to.a.b passive", declare(1, "amq.rabbitmq.reply-to.g2dkAA1ub25vZGVAbm9ob3N0AAAAAQAAAAAA.key", 1))
	add("get amq.rabbitmq.reply-to", get("amq.rabbitmq.reply-to", 1))
	add("delete amq.rabbitmq.reply-to.junk", drop("amq.rabbitmq.reply-to.junk", 0))
	add("bind amq.rabbitmq.reply-to", method(1, amqp.QueueBind, short(0), str("amq.rabbitmq.reply-to"), str("amq.direct"), str("k"), octet(0), table()))
	add("consume amq.rabbitmq.reply-to.junk", consume(1, "amq.rabbitmq.reply-to.junk", "t", 2))

	// Acknowledgements.
	add("ack of an unknown tag", ack(5, 0))
	add("ack of everything, nothing there", ack(0, 1))
	add("ack of tag 0", ack(0, 0))
	add("nack of an unknown tag", method(1, amqp.BasicNack, longlong(5), octet(0)))
	add("nack of everything", method(1, amqp.BasicNack, longlong(0), octet(1)))
	add("reject of an unknown tag", method(1, amqp.BasicReject, longlong(5), octet(0)))
	add("ack of tag 2^64-1, multiple", ack(1<<64-1, 1))
	n = q()
	with("ack twice", l(classic(n)), message(1, "", n, "a"), get(n, 0), ack(1, 0), ack(1, 0))
	n = q()
	with("ack of a no-ack get", l(classic(n)), message(1, "", n, "a"), get(n, 1), ack(1, 0))

	// Transactions and confirms.
	add("commit without a tx", commit)
	add("rollback without a tx", method(1, amqp.TxRollback))
	with("confirm on a tx channel", l(txSelect), confirm)
	with("confirm, no-wait, on a tx channel", l(txSelect), method(1, amqp.ConfirmSelect, octet(1)))
	with("tx on a confirm channel", l(confirm), txSelect)
	with("tx twice", l(txSelect), txSelect)
	with("confirm twice", l(confirm), confirm)
	n = q()
	with("a method behind an unanswered commit, classic queue", l(classic(n), txSelect), cat(persistent(1, n, 50)...), commit, declare(1, n, 1))
	n = q()
	with("a method behind an unanswered commit, quorum queue", l(quorum(n), txSelect), cat(persistent(1, n, 50)...), commit, declare(1, n, 1))
	n = q()
	with("a publish behind an unanswered commit, quorum queue", l(quorum(n), txSelect), cat(persistent(1, n, 50)...), commit, cat(persistent(1, n, 1)...))
	n = q()
	with("a commit behind an unanswered commit, quorum queue", l(quorum(n), txSelect), cat(persistent(1, n, 50)...), commit, commit)
	n = q()
	with("channel.close behind an unanswered commit, quorum queue", l(quorum(n), txSelect), cat(persistent(1, n, 50)...), commit, method(1, amqp.ChannelClose, short(200), str(""), long(0)))
	n = q()
	with("tx, publish to a missing exchange, commit", l(txSelect), message(1, "hz.missing", n, "a"), commit)

	// Exchanges.
	add("exchange of an unknown type", xdecl("hz.e", "nonsense", 0))
	add("exchange of an empty type", xdecl("hz.e", "", 0))
	add("exchange of an unknown type, passive", xdecl("hz.e", "nonsense", 1))
	add("exchange of an unknown type, there already", xdecl("amq.direct", "nonsense", 0))
	add("exchange of a long unknown type", xdecl("hz.e", string(make([]byte, 200)), 0))
	add("exchange of a plugin's type", xdecl("hz.e", "x-consistent-hash", xAutoDelete))
	add("exchange of type x-delayed-message", xdecl("hz.e", "x-delayed-message", xAutoDelete))
	add("exchange of type system", xdecl("hz.e", "system", 0))
	add("exchange amq.something", xdecl("amq.hz", "direct", 0))
	add("the default exchange", xdecl("", "direct", 0))
	add("the default exchange, passive", xdecl("", "direct", 1))
	add("an exchange redeclared with another type", xdecl("amq.direct", "fanout", durable))
	add("alternate-exchange a number", xdecl("hz.ae1", "direct", xAutoDelete, intField("alternate-exchange", 3)))
	add("alternate-exchange a table", xdecl("hz.ae2", "direct", xAutoDelete, amqp.AppendTableField(nil, "alternate-exchange", nil)))
	add("alternate-exchange of bad UTF-8", xdecl("hz.ae3", "direct", xAutoDelete, strField("alternate-exchange", "\xff")))
	add("delete the default exchange", method(1, amqp.ExchangeDelete, short(0), str(""), octet(0)))
	add("delete amq.direct", method(1, amqp.ExchangeDelete, short(0), str("amq.direct"), octet(0)))
	add("delete a missing exchange", method(1, amqp.ExchangeDelete, short(0), str("hz.missing"), octet(0)))
	add("bind the default exchange", method(1, amqp.ExchangeBind, short(0), str(""), str("amq.direct"), str("k"), octet(0), table()))
	add("bind a missing exchange", method(1, amqp.ExchangeBind, short(0), str("hz.missing"), str("amq.direct"), str("k"), octet(0), table()))
	add("publish to a missing exchange", message(1, "hz.missing", "k", "x"))
	add("publish to a missing exchange, mandatory", publish(1, "hz.missing", "k", 1), header(1, 0))
	add("publish to an internal exchange", message(1, "amq.rabbitmq.trace", "k", "x"))
	add("headers binding x-match junk", bindHeaders(1, strField("x-match", "junk")))
	add("headers binding x-match a number", bindHeaders(1, intField("x-match", 1)))
	add("headers binding x-match missing", bindHeaders(1))

	// Queues.
	for _, a := range []struct {
		name string
		arg  []byte
	}{
		{"x-expires 0", intField("x-expires", 0)},
		{"x-expires a string", strField("x-expires", "z")},
		{"x-expires 2^50", field("x-expires", "l\x00\x04\x00\x00\x00\x00\x00\x00")},
		{"x-message-ttl -1", intField("x-message-ttl", -1)},
		{"x-message-ttl 2^50", field("x-message-ttl", "l\x00\x04\x00\x00\x00\x00\x00\x00")},
		{"x-message-ttl a float", field("x-message-ttl", "d\x3f\xf0\x00\x00\x00\x00\x00\x00")},
		{"x-max-priority 256", intField("x-max-priority", 256)},
		{"x-max-priority 2^31-1", intField("x-max-priority", 1<<31-1)},
		{"x-max-priority -1", intField("x-max-priority", -1)},
		{"x-max-priority a string", strField("x-max-priority", "z")},
		{"x-max-priority unsigned", field("x-max-priority", "B\xff")},
		{"x-max-length -1", intField("x-max-length", -1)},
		{"x-max-length-bytes a string", strField("x-max-length-bytes", "z")},
		{"x-overflow junk", strField("x-overflow", "junk")},
		{"x-overflow a number", intField("x-overflow", 1)},
		{"x-overflow reject-publish-dlx", strField("x-overflow", "reject-publish-dlx")},
		{"x-queue-mode junk", strField("x-queue-mode", "junk")},
		{"x-queue-version 9", intField("x-queue-version", 9)},
		{"x-queue-version a string", strField("x-queue-version", "z")},
		{"x-queue-master-locator junk", strField("x-queue-master-locator", "junk")},
		{"x-queue-master-locator a number", intField("x-queue-master-locator", 1)},
		{"x-queue-leader-locator junk", strField("x-queue-leader-locator", "junk")},
		{"x-queue-leader-locator a number", intField("x-queue-leader-locator", 1)},
		{"x-single-active-consumer a string", strField("x-single-active-consumer", "z")},
		{"x-dead-letter-exchange a number", intField("x-dead-letter-exchange", 1)},
		{"x-dead-letter-exchange of bad UTF-8", strField("x-dead-letter-exchange", "\xff")},
		{"x-dead-letter-routing-key alone", strField("x-dead-letter-routing-key", "z")},
		{"x-dead-letter-strategy junk", strField("x-dead-letter-strategy", "z")},
		{"x-queue-type junk", typed("junk")},
		{"x-queue-type a number", intField("x-queue-type", 1)},
		{"x-queue-type empty", typed("")},
		{"x-queue-type a module", typed("rabbit_stream_queue")},
		{"x-queue-type mqtt qos0", typed("rabbit_mqtt_qos0_queue")},
		{"x-queue-type volatile", typed("rabbit_volatile_queue")},
		{"x-quorum-initial-group-size -1", intField("x-quorum-initial-group-size", -1)},
		{"x-quorum-initial-group-size a string", strField("x-quorum-initial-group-size", "z")},
		{"x-delivery-limit a string", strField("x-delivery-limit", "z")},
		{"x-max-in-memory-length -1", intField("x-max-in-memory-length", -1)},
		{"x-max-age junk", strField("x-max-age", "junk")},
		{"x-max-age a number", intField("x-max-age", 1)},
		{"x-initial-cluster-size -1", intField("x-initial-cluster-size", -1)},
		{"x-initial-cluster-size a string", strField("x-initial-cluster-size", "z")},
		{"x-stream-max-segment-size-bytes -1", intField("x-stream-max-segment-size-bytes", -1)},
		{"x-stream-max-segment-size-bytes 0", intField("x-stream-max-segment-size-bytes", 0)},
		{"x-stream-max-segment-size-bytes 2^50", field("x-stream-max-segment-size-bytes", "l\x00\x04\x00\x00\x00\x00\x00\x00")},
		{"x-stream-filter-size-bytes 1", intField("x-stream-filter-size-bytes", 1)},
		{"x-stream-filter-size-bytes a string", strField("x-stream-filter-size-bytes", "z")},
		{"x-quorum-target-group-size -1", intField("x-quorum-target-group-size", -1)},
		{"x-queue-type twice", cat(typed("classic"), typed("stream"))},
	} {
		for _, kind := range []string{"classic", "quorum", "stream"} {
			name := fmt.Sprintf("declare %s with %s", kind, a.name)
			if kind == "classic" {
				add(name, declare(1, q(), durable, a.arg))
			} else if string(a.arg[1:8]) != "x-queue" || string(a.arg[1:13]) != "x-queue-type" {
				add(name, declare(1, q(), durable, typed(kind), a.arg))
			}
		}
	}
	for _, kind := range []string{"quorum", "stream"} {
		add("declare "+kind+" not durable", declare(1, q(), 0, typed(kind)))
		add("declare "+kind+" exclusive", declare(1, q(), durable|exclusive, typed(kind)))
		add("declare "+kind+" auto-delete", declare(1, q(), durable|autoDelete, typed(kind)))
		add("declare "+kind+" without a name", declare(1, "", durable, typed(kind)))
	}
	add("declare amq.something", declare(1, "amq.hz", 0))
	add("declare a missing queue passive", declare(1, "hz.missing", 1))
	add("declare no name passive", declare(1, "", 1))
	n = q()
	with("declare again with other arguments", l(classic(n)), declare(1, n, durable))
	n = q()
	with("declare passive with x-queue-type junk", l(classic(n)), declare(1, n, 1, typed("junk")))
	n = q()
	with("redeclare a classic queue as quorum", l(classic(n)), declare(1, n, durable, typed("quorum"), expires))
	for _, kind := range []string{"classic", "quorum", "stream"} {
		declared := map[string]func(string) []byte{"classic": classic, "quorum": quorum, "stream": stream}[kind]
		on := func(name string, setup func(string) [][]byte, send func(string) []byte) {
			n := q()
			s := l(declared(n))
			if setup != nil {
				s = append(s, setup(n)...)
			}
			with(kind+" queue: "+name, s, send(n))
		}
		on("purge", nil, func(n string) []byte { return purge(n) })
		on("get", nil, func(n string) []byte { return get(n, 0) })
		on("get no-ack", nil, func(n string) []byte { return get(n, 1) })
		on("delete if-unused", nil, func(n string) []byte { return drop(n, 1) })
		on("delete if-empty", nil, func(n string) []byte { return drop(n, 2) })
		on("delete if-unused, in use", func(n string) [][]byte { return l(qos(0, 1, 0), consume(1, n, "t", 0)) }, func(n string) []byte { return drop(n, 1) })
		on("delete if-empty, not empty", nil, func(n string) []byte { return cat(message(1, "", n, "x"), drop(n, 2)) })
		on("delete", nil, func(n string) []byte { return drop(n, 0) })
		on("consume", nil, func(n string) []byte { return consume(1, n, "t", 0) })
		on("consume no-ack", func(n string) [][]byte { return l(qos(0, 10, 0)) }, func(n string) []byte { return consume(1, n, "t", 2) })
		on("consume no-ack without qos", nil, func(n string) []byte { return consume(1, n, "t", 2) })
		on("consume exclusive", func(n string) [][]byte { return l(qos(0, 10, 0)) }, func(n string) []byte { return consume(1, n, "t", 4) })
		on("consume with global qos", func(n string) [][]byte { return l(qos(0, 10, 1)) }, func(n string) []byte { return consume(1, n, "t", 0) })
		on("consume with global qos and own qos", func(n string) [][]byte { return l(qos(0, 10, 1), qos(0, 10, 0)) }, func(n string) []byte { return consume(1, n, "t", 0) })
		on("global qos after consume", func(n string) [][]byte { return l(qos(0, 10, 0), consume(1, n, "t", 0)) }, func(n string) []byte { return qos(0, 10, 1) })
		on("global qos after global qos and consume refused", func(n string) [][]byte { return l(qos(0, 10, 1), qos(0, 0, 1), qos(0, 10, 0)) }, func(n string) []byte { return consume(1, n, "t", 0) })
		on("consume x-priority", func(n string) [][]byte { return l(qos(0, 10, 0)) }, func(n string) []byte { return consume(1, n, "t", 0, intField("x-priority", 5)) })
		on("consume x-stream-offset junk", func(n string) [][]byte { return l(qos(0, 10, 0)) }, func(n string) []byte { return consume(1, n, "t", 0, strField("x-stream-offset", "junk")) })
		on("consume x-stream-offset a table", func(n string) [][]byte { return l(qos(0, 10, 0)) }, func(n string) []byte {
			return consume(1, n, "t", 0, amqp.AppendTableField(nil, "x-stream-offset", nil))
		})
		on("consume x-stream-offset -5", func(n string) [][]byte { return l(qos(0, 10, 0)) }, func(n string) []byte { return consume(1, n, "t", 0, intField("x-stream-offset", -5)) })
		on("consume x-stream-filter a number", func(n string) [][]byte { return l(qos(0, 10, 0)) }, func(n string) []byte { return consume(1, n, "t", 0, intField("x-stream-filter", 5)) })
		on("nack requeue a delivery", func(n string) [][]byte { return l(qos(0, 10, 0)) }, func(n string) []byte {
			return cat(message(1, "", n, "x"), consume(1, n, "t", 0, strField("x-stream-offset", "first")), method(1, amqp.BasicNack, longlong(0), octet(3)))
		})
		on("recover a delivery", func(n string) [][]byte { return l(qos(0, 10, 0)) }, func(n string) []byte {
			return cat(message(1, "", n, "x"), consume(1, n, "t", 0, strField("x-stream-offset", "first")), method(1, amqp.BasicRecover, octet(1)))
		})
		on("publish with x-stream-filter-value a table", nil, func(n string) []byte {
			return cat(publish(1, "", n, 0), props(1, 0, 1<<13, table(amqp.AppendTableField(nil, "x-stream-filter-value", nil))))
		})
		on("publish of odd headers", nil, func(n string) []byte {
			return cat(publish(1, "", n, 0), props(1, 1, 1<<13, table(field("v", "V"), field("D", "D\xff\xff\xff\xff\xff"), strField("\xff", "\xff"), field("T", "T\xff\xff\xff\xff\xff\xff\xff\xff"))), body(1, "x"))
		})
		on("publish of bad UTF-8 properties", nil, func(n string) []byte {
			return cat(publish(1, "", n, 0), props(1, 1, 1<<15|1<<10|1<<7|1<<5, str("\xff"), str("\xff"), str("\xff"), str("\xff")), body(1, "x"))
		})
		on("transaction with an ack", func(n string) [][]byte { return l(txSelect) }, func(n string) []byte {
			return cat(message(1, "", n, "x"), commit)
		})
	}
	return cs
}

func persistent(ch uint16, queue string, n int) (fs [][]byte) {
	for range n {
		fs = append(fs, publish(ch, "", queue, 0), props(ch, 3, 1<<12, octet(2)), body(ch, "abc"))
	}
	return fs
}

func bindHeaders(ch uint16, args ...[]byte) []byte {
	q := fmt.Sprintf("hz.b%d", len(cat(args...)))
	return cat(declare(ch, q, durable, expires),
		method(ch, amqp.QueueBind, short(0), str(q), str("amq.headers"), str(""), octet(0), table(args...)))
}

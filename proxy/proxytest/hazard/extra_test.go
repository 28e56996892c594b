// More hazards that lie in what is asked for: names, headers and reply addresses that
// a broker takes apart only later.

package hazard

import (
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

func extraCases() []hazard {
	var cs []hazard
	open := chanOpen(1)
	add := func(name string, send ...[]byte) {
		cs = append(cs, hazard{name, [][]byte{open}, cat(send...)})
	}
	with := func(name string, setup [][]byte, send ...[]byte) {
		cs = append(cs, hazard{name, append([][]byte{open}, setup...), cat(send...)})
	}
	l := func(f ...[]byte) [][]byte { return f }
	q := func() string { return fmt.Sprintf("hz.x%d", len(cs)) }

	// Headers of one odd field each, into each type of queue.
	fields := []struct{ name, f string }{
		{"void", "V"}, {"decimal", "D\x02\x00\x00\x00\x01"}, {"timestamp 2^64-1", "T\xff\xff\xff\xff\xff\xff\xff\xff"},
		{"timestamp", "T\x00\x00\x00\x00\x00\x00\x00\x01"}, {"bool 7", "t\x07"}, {"float", "f\x3f\x80\x00\x00"}, {"bytes", "x\x00\x00\x00\x01\xff"},
		{"array", "A\x00\x00\x00\x02t\x01"}, {"array of mixed", "A\x00\x00\x00\x03t\x01V"}, {"empty array", "A\x00\x00\x00\x00"},
		{"table", "F\x00\x00\x00\x04\x01at\x01"}, {"empty table", "F\x00\x00\x00\x00"}, {"string of bad UTF-8", "S\x00\x00\x00\x01\xff"},
		{"unsigned byte", "B\xff"}, {"unsigned short", "u\xff\xff"}, {"unsigned int", "i\xff\xff\xff\xff"}, {"short", "s\xff\xff"}, {"byte", "b\xff"}, {"L", "L\xff\xff\xff\xff\xff\xff\xff\xff"},
		{"array of tables", "A\x00\x00\x00\x09F\x00\x00\x00\x04\x01at\x01"},
		{"array of decimals", "A\x00\x00\x00\x06D\x02\x00\x00\x00\x01"},
	}
	for _, kind := range []string{"classic", "quorum", "stream"} {
		for _, f := range fields {
			n := q()
			with(kind+" queue, header: "+f.name, l(declare(1, n, durable, typed(kind))), publish(1, "", n, 0), props(1, 1, 1<<13, table(field("a", f.f))), body(1, "x"))
			n = q()
			with(kind+" queue, x-header: "+f.name, l(declare(1, n, durable, typed(kind))), publish(1, "", n, 0), props(1, 1, 1<<13, table(field("x-a", f.f))), body(1, "x"))
		}
		for _, f := range []struct{ name, f string }{{"empty name", "\x00V"}, {"bad UTF-8 name", "\x01\xffV"}, {"bad UTF-8 name, string", "\x01\xffS\x00\x00\x00\x01a"}, {"name of 255", "\xff" + strings.Repeat("a", 255) + "t\x01"}, {"name twice", "\x01at\x01\x01at\x00"}} {
			n := q()
			with(kind+" queue, header of "+f.name, l(declare(1, n, durable, typed(kind))), publish(1, "", n, 0), props(1, 1, 1<<13, amqp.AppendLongStr(nil, f.f)), body(1, "x"))
		}
		odd := map[int][]byte{15: str("\xff"), 14: str("\xff"), 10: str("\xff"), 9: str("\xff"), 7: str("\xff"), 6: longlong(1<<64 - 1), 5: str("\xff"), 3: str("\xff"), 2: str("\xff"), 11: octet(255), 12: octet(9)}
		for _, bit := range slices.Sorted(maps.Keys(odd)) {
			n, p := q(), odd[bit]
			with(fmt.Sprintf("%s queue, odd property bit %d", kind, bit), l(declare(1, n, durable, typed(kind))), publish(1, "", n, 0), props(1, 1, 1<<bit, p), body(1, "x"))
		}
		for _, h := range []string{"x-stream-filter-value", "CC", "x-death", "x-delivery-count", "x-first-death-queue", "x-opt-delivery-time", "x-exchange", "x-routing-key", "x-message-ttl", "x-delay", "x-stream-offset"} {
			for _, f := range []struct{ name, f string }{{"table", "F\x00\x00\x00\x00"}, {"number", "I\x00\x00\x00\x01"}, {"void", "V"}, {"empty array", "A\x00\x00\x00\x00"}, {"array of a number", "A\x00\x00\x00\x05I\x00\x00\x00\x01"}} {
				n := q()
				with(fmt.Sprintf("%s queue, header %s a %s", kind, h, f.name), l(declare(1, n, durable, typed(kind))), publish(1, "", n, 0), props(1, 1, 1<<13, table(field(h, f.f))), body(1, "x"))
			}
		}
		for _, nm := range []struct{ name, n string }{{"255 octets", strings.Repeat("n", 200) + fmt.Sprintf("%055d", len(cs))}, {"é", "hz.é" + q()}, {"/", "hz./../" + q()}, {"a NUL", "hz.\x00" + q()}, {"a blank", "hz. " + q()}, {"quotes", "hz.'\"" + q()}, {"255 octets of é", strings.Repeat("é", 120) + q()}, {"surrogates", "hz.\xed\xa0\x80" + q()}} {
			add(kind+" queue named with "+nm.name, declare(1, nm.n, durable, typed(kind)), method(1, amqp.QueueDelete, short(0), str(nm.n), octet(0)))
		}
	}
	for _, off := range []struct{ name, f string }{{"first", "S\x00\x00\x00\x05first"}, {"an interval 1h", "S\x00\x00\x00\x021h"}, {"an interval 7D", "S\x00\x00\x00\x027D"}, {"an interval 1x", "S\x00\x00\x00\x021x"}, {"an empty string", "S\x00\x00\x00\x00"}, {"a timestamp", "T\x00\x00\x00\x00\x00\x00\x00\x01"}, {"a timestamp 2^64-1", "T\xff\xff\xff\xff\xff\xff\xff\xff"}, {"void", "V"}, {"a bool", "t\x01"}, {"a double", "d\x3f\xf0\x00\x00\x00\x00\x00\x00"}, {"l", "l\x00\x00\x00\x00\x00\x00\x00\x01"}, {"a byte", "b\x01"}, {"an array", "A\x00\x00\x00\x00"}, {"bytes", "x\x00\x00\x00\x01a"}, {"-5", "I\xff\xff\xff\xfb"}, {"2^62", "l\x40\x00\x00\x00\x00\x00\x00\x00"}} {
		n := q()
		with("stream consume from "+off.name, l(declare(1, n, durable, typed("stream")), method(1, amqp.BasicQos, long(0), short(10), octet(0))), consume(1, n, "t", 0, field("x-stream-offset", off.f)))
	}
	for _, f := range []struct{ name, f string }{{"a string", "S\x00\x00\x00\x01a"}, {"void", "V"}, {"a table", "F\x00\x00\x00\x00"}, {"an array of numbers", "A\x00\x00\x00\x05I\x00\x00\x00\x01"}, {"an array of strings", "A\x00\x00\x00\x06S\x00\x00\x00\x01a"}, {"an array of mixed", "A\x00\x00\x00\x07S\x00\x00\x00\x01aV"}} {
		n := q()
		with("stream consume, x-stream-filter "+f.name, l(declare(1, n, durable, typed("stream")), method(1, amqp.BasicQos, long(0), short(10), octet(0))), consume(1, n, "t", 0, field("x-stream-filter", f.f)))
		n = q()
		with("stream consume, x-stream-match-unfiltered "+f.name, l(declare(1, n, durable, typed("stream")), method(1, amqp.BasicQos, long(0), short(10), octet(0))), consume(1, n, "t", 0, field("x-stream-match-unfiltered", f.f)))
	}
	for _, age := range []string{"", "1", "1h", "1x", "h", "-1h", "1h1m", "99999999999999999999Y"} {
		add("stream with x-max-age "+age, declare(1, q(), durable, typed("stream"), strField("x-max-age", age)))
	}
	for _, v := range []string{"", "min-masters", "client-local", "random", "junk"} {
		add("classic with x-queue-master-locator "+v, declare(1, q(), durable, strField("x-queue-master-locator", v)))
	}
	// x-credit of 3.10 and basic.credit.
	xc := func(f ...[]byte) []byte { return amqp.AppendTableField(nil, "x-credit", cat(f...)) }
	n := q()
	with("consume x-credit whole", l(declare(1, n, durable)), consume(1, n, "t", 0, xc(field("credit", "l\x00\x00\x00\x00\x00\x00\x00\x05"), field("drain", "t\x00"))))
	n = q()
	with("consume x-credit of strings", l(declare(1, n, durable)), consume(1, n, "t", 0, xc(strField("credit", "a"), strField("drain", "b"))))
	for _, tail := range [][]byte{cat(str("t"), long(5), octet(0)), cat(str("t"), long(5))} {
		n = q()
		with(fmt.Sprintf("basic.credit of %d octets", len(tail)), l(declare(1, n, durable), consume(1, n, "t", 0)), method(1, 60<<16|200, tail))
	}
	add("basic.credit of an unknown consumer", method(1, 60<<16|200, str("t"), long(5), octet(0)))
	add("basic.credit-ok 60.201", method(1, 60<<16|201, long(0)))
	add("basic.credit-drained 60.202", method(1, 60<<16|202, str(""), long(0)))

	// Direct reply-to.
	b64 := func(b string) string { return base64.StdEncoding.EncodeToString([]byte(b)) }
	keys := []struct{ name, k string }{
		{"of no key", "amq.rabbitmq.reply-to."}, {"of one dot", "amq.rabbitmq.reply-to.."}, {"of an empty pid", "amq.rabbitmq.reply-to..x"},
		{"of bad base64", "amq.rabbitmq.reply-to.!!!!.x"}, {"of three parts", "amq.rabbitmq.reply-to.a.b.c"},
		{"of a term that is no pid", "amq.rabbitmq.reply-to." + b64("\x83j") + ".x"},
		{"of an atom", "amq.rabbitmq.reply-to." + b64("\x83w\x02ok") + ".x"},
		{"of garbage", "amq.rabbitmq.reply-to." + b64("garbage") + ".x"},
		{"of a pid elsewhere", "amq.rabbitmq.reply-to." + b64("\x83Xw\x0bnode@nohost\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00") + ".x"},
		{"of an old pid", "amq.rabbitmq.reply-to." + b64("\x83gd\x00\x0bnode@nohost\x00\x00\x00\x01\x00\x00\x00\x00\x00") + ".x"},
		{"of a pid cut off", "amq.rabbitmq.reply-to." + b64("\x83Xw\x0bnode@nohost\x00\x00") + ".x"},
		{"without a dot", "amq.rabbitmq.reply-toX"},
	}
	for _, k := range keys {
		add("publish to reply-to "+k.name, message(1, "", k.k, "x"))
		add("declare reply-to "+k.name, declare(1, k.k, 1))
		with("CC reply-to "+k.name, nil, publish(1, "", "hz.none", 0), props(1, 1, 1<<13, table(append(field("CC", "A"), longstr("S"+string(longstr(k.k)))...))), body(1, "x"))
		with("reply-to property "+k.name, nil, publish(1, "", "hz.none", 0), props(1, 1, 1<<9, str(k.k)), body(1, "x"))
		add("mandatory publish to reply-to "+k.name, publish(1, "", k.k, 1), header(1, 0))
		add("publish by a topic exchange to reply-to "+k.name, message(1, "amq.topic", k.k, "x"))
	}
	with("reply-to with a consumer", l(consume(1, "amq.rabbitmq.reply-to", "r", 2)), publish(1, "", "hz.none", 0), props(1, 1, 1<<9, str("amq.rabbitmq.reply-to")), body(1, "x"))

	// Exchanges and bindings.
	for _, x := range []string{"amq.topic", "amq.headers", "amq.fanout", "amq.match"} {
		for _, k := range []string{"", "\xff", strings.Repeat("a.", 127), "#", "*", "a..b", "."} {
			n := q()
			with(fmt.Sprintf("bind %s with key %q", x, k), l(declare(1, n, durable, expires)), method(1, amqp.QueueBind, short(0), str(n), str(x), str(k), octet(0), table()))
			with(fmt.Sprintf("publish %s with key %q", x, k), nil, message(1, x, k, "x"))
		}
	}
	n = q()
	with("a headers binding of every type, then a publish", l(declare(1, n, durable, expires),
		method(1, amqp.QueueBind, short(0), str(n), str("amq.headers"), str(""), octet(0), table(strField("x-match", "any"), field("a", "V"), field("b", "t\x01"), field("c", "A\x00\x00\x00\x00"), field("d", "F\x00\x00\x00\x00")))),
		publish(1, "amq.headers", "", 0), props(1, 1, 1<<13, table(field("a", "V"), field("b", "S\x00\x00\x00\x00"), field("c", "F\x00\x00\x00\x00"), field("d", "A\x00\x00\x00\x00"))), body(1, "x"))
	add("exchange named with 255 octets", method(1, amqp.ExchangeDeclare, short(0), str(strings.Repeat("x", 255)), str("direct"), octet(xAutoDelete), table()))
	add("exchange named \\r\\n", method(1, amqp.ExchangeDeclare, short(0), str("\r\n"), str("direct"), octet(xAutoDelete), table()))
	add("publish to an exchange of 255 octets", message(1, strings.Repeat("z", 255), strings.Repeat("y", 255), "x"))
	add("soft error with a long name", declare(1, strings.Repeat("q", 255), 1))
	add("unbind what is not bound", method(1, amqp.QueueUnbind, short(0), str("hz.missing"), str("amq.direct"), str("k"), table()))
	add("bind to a missing queue", method(1, amqp.QueueBind, short(0), str("hz.missing"), str("amq.direct"), str("k"), octet(0), table()))
	add("exchange.unbind what is not bound", method(1, amqp.ExchangeUnbind, short(0), str("amq.direct"), str("amq.fanout"), str("k"), octet(0), table()))
	add("exchange bound to itself", method(1, amqp.ExchangeBind, short(0), str("amq.direct"), str("amq.direct"), str("k"), octet(0), table()),
		method(1, amqp.ExchangeUnbind, short(0), str("amq.direct"), str("amq.direct"), str("k"), octet(0), table()))

	// Server-sent content methods with their content.
	add("basic.return with content from a client", method(1, amqp.BasicReturn, short(0), str(""), str(""), str("")), header(1, 0))
	add("basic.deliver with content from a client", method(1, amqp.BasicDeliver, serverArgs(amqp.BasicDeliver)), header(1, 0))
	add("basic.get-ok with content from a client", method(1, amqp.BasicGetOk, serverArgs(amqp.BasicGetOk)), header(1, 0))
	add("bad UTF-8: basic.get queue", method(1, amqp.BasicGet, short(0), str("\xff"), octet(0)))
	add("bad UTF-8: queue.purge", method(1, amqp.QueuePurge, short(0), str("\xff"), octet(0)))
	add("bad UTF-8: queue.delete", method(1, amqp.QueueDelete, short(0), str("\xff"), octet(0)))
	add("bad UTF-8: queue.bind key", method(1, amqp.QueueBind, short(0), str("hz.x"), str("amq.direct"), str("\xff"), octet(0), table()))
	add("bad UTF-8: queue.unbind", method(1, amqp.QueueUnbind, short(0), str("hz.x"), str("amq.direct"), str("\xff"), table()))
	add("bad UTF-8: exchange.bind", method(1, amqp.ExchangeBind, short(0), str("hz.x"), str("amq.direct"), str("\xff"), octet(0), table()))
	add("bad UTF-8: basic.consume queue", consume(1, "\xff", "", 0))
	add("bad UTF-8: basic.cancel-ok", method(1, amqp.BasicCancelOk, str("\xff")))
	add("bad UTF-8: connection.open vhost again", method(0, amqp.ConnectionOpen, str("\xff"), str(""), octet(0)))
	add("bad UTF-8: update-secret reason", method(0, amqp.ConnectionUpdateSecret, longstr("x"), str("\xff")))
	return cs
}

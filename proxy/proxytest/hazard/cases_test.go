// The hazards of one connection: raw frames that close it at the broker, or might.

package hazard

import (
	"fmt"
	"math"
	"strings"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// hazard is one case: setup is sent frame by frame, each answered, then send at once.
type hazard struct {
	name  string
	setup [][]byte
	send  []byte
}

// expires makes queues of tests vanish by themselves.
var expires = intField("x-expires", 120_000)

// The bits of queue.declare, and that of exchange.declare that differs.
const durable, exclusive, autoDelete, xAutoDelete = 2, 4, 8, 4

func typed(kind string) []byte { return strField("x-queue-type", kind) }

func firewallCases() []hazard {
	var cs []hazard
	open := chanOpen(1)
	add := func(name string, send ...[]byte) {
		cs = append(cs, hazard{name, [][]byte{open}, cat(send...)})
	}
	with := func(name string, setup [][]byte, send ...[]byte) {
		cs = append(cs, hazard{name, append([][]byte{open}, setup...), cat(send...)})
	}
	fresh := func(name string, send ...[]byte) {
		cs = append(cs, hazard{name, nil, cat(send...)})
	}
	l := func(f ...[]byte) [][]byte { return f }

	// Frames.
	for _, typ := range []byte{0, 4, 5, 7, 9, 255} {
		add(fmt.Sprintf("frame type %d on channel 1", typ), frame(typ, 1, octet(1, 2)))
		add(fmt.Sprintf("frame type %d on channel 0", typ), frame(typ, 0, octet(1, 2)))
	}
	fresh("frame type 9 on an unopened channel", frame(9, 5, octet(1, 2)))
	bad := publish(1, "", "x", 0)
	bad[len(bad)-1] = 0xCD
	add("wrong frame end", bad)
	add("payload of frame_max", publish(1, "", "hz.none", 0), header(1, 131072), frame(3, 1, make([]byte, 131072)))
	add("payload of frame_max+1", publish(1, "", "hz.none", 0), header(1, 131073), frame(3, 1, make([]byte, 131073)))
	add("header of a frame over frame_max alone", octet(3, 0, 1, 0x7f, 0, 0, 0))
	add("protocol header amid traffic", amqp.ProtocolHeader[:], octet(0, 0, 0, 0))
	add("heartbeat on channel 1", frame(8, 1))
	fresh("heartbeat on an unopened channel", frame(8, 5))
	add("heartbeat with a payload on channel 0", frame(8, 0, octet(1)))
	add("heartbeat with a payload on channel 1", frame(8, 1, octet(1)))
	for n := range 4 {
		add(fmt.Sprintf("method frame of %d octets on channel 1", n), frame(1, 1, make([]byte, n)))
		add(fmt.Sprintf("method frame of %d octets on channel 0", n), frame(1, 0, make([]byte, n)))
	}

	// Content.
	add("content header on channel 0", header(0, 3))
	add("content body on channel 0", body(0, "abc"))
	add("content header without a method", header(1, 3))
	add("content body without a method", body(1, "abc"))
	add("empty content body without a method", body(1, ""))
	add("content body after a body of size 0", publish(1, "", "hz.none", 0), header(1, 0), body(1, ""))
	add("content body after a whole body", message(1, "", "hz.none", "abc"), body(1, "d"))
	add("content body beyond the announced size", publish(1, "", "hz.none", 0), header(1, 3), body(1, "abcd"))
	add("empty body frames amid a body", publish(1, "", "hz.none", 0), header(1, 3), body(1, ""), body(1, "abc"))
	crumbs := cat(publish(1, "", "hz.crumbs", 0), header(1, 12000))
	for range 12000 {
		crumbs = append(crumbs, body(1, "x")...)
	}
	with("a body in frames of one octet", l(declare(1, "hz.crumbs", durable, expires)), crumbs, method(1, amqp.BasicGet, short(0), str("hz.crumbs"), octet(1)))
	add("second content header", publish(1, "", "hz.none", 0), header(1, 3), header(1, 3))
	add("body instead of a content header", publish(1, "", "hz.none", 0), body(1, "abc"))
	add("a method instead of a content header", publish(1, "", "hz.none", 0), declare(1, "hz.x", 1))
	add("a publish instead of a content header", publish(1, "", "hz.none", 0), publish(1, "", "hz.none", 0))
	add("a method amid a body", publish(1, "", "hz.none", 0), header(1, 3), body(1, "a"), declare(1, "hz.x", 1))
	add("channel.close instead of a content header", publish(1, "", "hz.none", 0), method(1, amqp.ChannelClose, short(200), str(""), long(0)))
	add("channel.close amid a body", publish(1, "", "hz.none", 0), header(1, 3), method(1, amqp.ChannelClose, short(200), str(""), long(0)))
	add("a heartbeat on channel 1 amid a body", publish(1, "", "hz.none", 0), header(1, 3), frame(8, 1))
	add("content header of class 50", publish(1, "", "hz.none", 0), frame(2, 1, short(50), short(0), longlong(3), short(0)))
	add("content header of weight 1", publish(1, "", "hz.none", 0), frame(2, 1, short(60), short(1), longlong(3), short(0)), body(1, "abc"))
	add("content header of 0 octets", publish(1, "", "hz.none", 0), frame(2, 1))
	add("content header of 11 octets", publish(1, "", "hz.none", 0), frame(2, 1, short(60), short(0), make([]byte, 7)))
	add("content header of 12 octets, no flags", publish(1, "", "hz.none", 0), frame(2, 1, short(60), short(0), longlong(3)), body(1, "abc"))
	add("content header of 13 octets", publish(1, "", "hz.none", 0), frame(2, 1, short(60), short(0), longlong(3), octet(0)), body(1, "abc"))
	add("content header of 0 octets without a method", frame(2, 1))
	add("body size 2^63", publish(1, "", "hz.none", 0), header(1, 1<<63))
	add("body size 512 MiB + 1", publish(1, "", "hz.none", 0), header(1, 512<<20+1))
	add("body size 128 MiB + 1", publish(1, "", "hz.none", 0), header(1, 128<<20+1))
	add("body size 20 MiB", publish(1, "", "hz.none", 0), header(1, 20<<20))

	// Channels.
	fresh("channel.open on channel_max", chanOpen(2047))
	fresh("channel.open over channel_max", chanOpen(2048))
	fresh("channel.open far over channel_max", chanOpen(65535))
	fresh("queue.declare over channel_max", declare(3000, "hz.x", 1))
	fresh("body over channel_max", body(3000, "x"))
	add("second channel.open", open)
	fresh("queue.declare on an unopened channel", declare(5, "hz.x", 1))
	fresh("basic.publish on an unopened channel", publish(5, "", "x", 0))
	fresh("a whole publish on an unopened channel", message(5, "", "x", "abc"))
	fresh("basic.ack on an unopened channel", method(5, amqp.BasicAck, longlong(1), octet(0)))
	fresh("channel.close on an unopened channel", method(5, amqp.ChannelClose, short(200), str(""), long(0)))
	fresh("channel.close-ok on an unopened channel", method(5, amqp.ChannelCloseOk))
	fresh("channel.flow on an unopened channel", method(5, amqp.ChannelFlow, octet(1)))
	fresh("content header on an unopened channel", header(5, 3))
	fresh("content body on an unopened channel", body(5, "abc"))
	fresh("garbled method on an unopened channel", frame(1, 5, short(50), short(10), octet(1)))
	fresh("unknown method on an unopened channel", method(5, 50<<16|99))
	fresh("channel.open with trailing octets", method(1, amqp.ChannelOpen, str(""), octet(0)))
	with("any method on a closed channel", l(method(1, amqp.ChannelClose, short(200), str(""), long(0))), declare(1, "hz.x", 1))
	with("channel.close twice", l(method(1, amqp.ChannelClose, short(200), str(""), long(0))), method(1, amqp.ChannelClose, short(200), str(""), long(0)))
	add("two channel.close at once", method(1, amqp.ChannelClose, short(200), str(""), long(0)), method(1, amqp.ChannelClose, short(200), str(""), long(0)))
	add("channel.close and channel.open at once", method(1, amqp.ChannelClose, short(200), str(""), long(0)), open)
	add("channel.close and a declare at once", method(1, amqp.ChannelClose, short(200), str(""), long(0)), declare(1, "hz.x", 1))
	add("channel.close-ok that nobody asked for", method(1, amqp.ChannelCloseOk))
	add("channel.close of code 0 and no text", method(1, amqp.ChannelClose, short(0), str(""), long(0)))
	add("soft error, then frames, then reopen without close-ok", declare(1, "hz.missing", 1), open)

	// Connection class after open, class channel on 0.
	add("connection.start-ok again", method(0, amqp.ConnectionStartOk, table(), str("PLAIN"), longstr("\x00a\x00b"), str("en_US")))
	add("connection.secure-ok", method(0, amqp.ConnectionSecureOk, longstr("")))
	add("connection.tune-ok again", method(0, amqp.ConnectionTuneOk, short(0), long(0), short(0)))
	add("connection.open again", method(0, amqp.ConnectionOpen, str("/"), str(""), octet(0)))
	add("connection.close-ok that nobody asked for", method(0, amqp.ConnectionCloseOk))
	add("connection.close with trailing octets", method(0, amqp.ConnectionClose, short(200), str(""), long(0), octet(0)))
	add("connection.close cut off", method(0, amqp.ConnectionClose, short(200)))
	add("connection.update-secret", method(0, amqp.ConnectionUpdateSecret, longstr("x"), str("why")))
	add("connection.update-secret cut off", method(0, amqp.ConnectionUpdateSecret, long(9)))
	add("unknown method 10.99 on channel 0", method(0, 10<<16|99))
	add("unknown class 11 on channel 0", method(0, 11<<16|10))
	for _, m := range []amqp.Method{amqp.ConnectionStart, amqp.ConnectionSecure, amqp.ConnectionTune, amqp.ConnectionOpenOk, amqp.ConnectionBlocked, amqp.ConnectionUnblocked, amqp.ConnectionUpdateSecretOk} {
		add(m.String()+" from a client", method(0, m, serverArgs(m)))
	}
	for _, m := range []amqp.Method{amqp.ConnectionStartOk, amqp.ConnectionOpen, amqp.ConnectionClose, amqp.ConnectionCloseOk, amqp.ConnectionBlocked, amqp.ConnectionUpdateSecret, amqp.ConnectionTuneOk} {
		add(m.String()+" on channel 1", method(1, m, serverArgs(m)))
	}
	fresh("connection.close on an unopened channel", method(5, amqp.ConnectionClose, short(200), str(""), long(0)))
	for _, m := range []amqp.Method{amqp.ChannelOpen, amqp.ChannelClose, amqp.ChannelCloseOk, amqp.ChannelFlow, amqp.QueueDeclare, amqp.BasicPublish, amqp.BasicAck, amqp.ConfirmSelect, amqp.TxSelect} {
		add(m.String()+" on channel 0", method(0, m, serverArgs(m)))
	}

	// Unknown methods, and those only a server sends.
	for _, m := range []amqp.Method{20<<16 | 99, 30<<16 | 99, 40<<16 | 99, 50<<16 | 99, 60<<16 | 99, 60<<16 | 200, 85<<16 | 99, 90<<16 | 99, 10<<16 | 99, 11<<16 | 10, 70<<16 | 10, 80<<16 | 10, 95<<16 | 10, 0, 0xFFFFFFFF, 110<<16 | 10} {
		add(fmt.Sprintf("unknown method %d.%d", m.Class(), m.ID()), method(1, m))
	}
	for _, m := range allMethods() {
		s := m.Spec()
		if s.Server && !s.Client && m.Class() != amqp.ClassConnection {
			add(s.Name+" from a client", method(1, m, serverArgs(m)))
		}
	}
	add("channel.flow-ok that nobody asked for", method(1, amqp.ChannelFlowOk, octet(1)))
	add("channel.flow-ok inactive", method(1, amqp.ChannelFlowOk, octet(0)))
	add("basic.cancel-ok of an unknown consumer", method(1, amqp.BasicCancelOk, str("none")))
	add("basic.cancel of an unknown consumer", method(1, amqp.BasicCancel, str("none"), octet(0)))

	// Arguments cut off, and with octets left over: every method a client sends.
	for _, m := range allMethods() {
		s := m.Spec()
		if !s.Client || m.Class() == amqp.ClassConnection {
			continue
		}
		args := serverArgs(m)
		add("trailing octet: "+s.Name, method(1, m, args, octet(0)))
		add("trailing 9 octets: "+s.Name, method(1, m, args, make([]byte, 9)))
		for cut := 1; cut <= len(args) && cut <= 3; cut++ {
			add(fmt.Sprintf("cut off by %d: %s", cut, s.Name), method(1, m, args[:len(args)-cut]))
		}
		if len(args) > 4 {
			add("cut off to nothing: "+s.Name, method(1, m))
		}
	}
	add("unused bits set: basic.ack", method(1, amqp.BasicAck, longlong(0), octet(0xFE)))
	add("unused bits set: queue.declare", declare(1, "hz.x", 0xE1))
	add("unused bits set: basic.publish", publish(1, "", "hz.none", 0xFC), header(1, 0))
	add("unused bits set: basic.qos", method(1, amqp.BasicQos, long(0), short(5), octet(0xFE)))
	add("reserved ticket set: queue.declare", method(1, amqp.QueueDeclare, short(77), str("hz.x"), octet(1), table()))
	add("reserved string set: channel.open on 2", method(2, amqp.ChannelOpen, str("junk")))

	// Malformed UTF-8 in short strings.
	evil := "a\xffb"
	add("bad UTF-8: queue.declare queue", declare(1, evil, 1))
	add("bad UTF-8: exchange.declare exchange", method(1, amqp.ExchangeDeclare, short(0), str(evil), str("direct"), octet(1), table()))
	add("bad UTF-8: exchange.declare type", method(1, amqp.ExchangeDeclare, short(0), str("hz.x"), str(evil), octet(0), table()))
	add("bad UTF-8: basic.publish exchange", publish(1, evil, "x", 0), header(1, 0))
	add("bad UTF-8: basic.publish routing key", publish(1, "", evil, 0), header(1, 0))
	add("bad UTF-8: basic.consume tag", consume(1, "hz.x", evil, 0))
	add("bad UTF-8: basic.cancel tag", method(1, amqp.BasicCancel, str(evil), octet(0)))
	add("bad UTF-8: channel.close text", method(1, amqp.ChannelClose, short(200), str(evil), long(0)))
	add("bad UTF-8: connection.close text", method(0, amqp.ConnectionClose, short(200), str(evil), long(0)))
	add("bad UTF-8: channel.open", method(2, amqp.ChannelOpen, str(evil)))
	add("bad UTF-8: access.request", method(1, amqp.AccessRequest, str(evil), octet(0)))
	add("surrogate in UTF-8: queue.declare queue", declare(1, "a\xed\xa0\x80b", 1))
	add("overlong UTF-8: queue.declare queue", declare(1, "a\xc0\x80b", 1))
	add("cut UTF-8: queue.declare queue", declare(1, "a\xe2\x82", 1))
	add("beyond U+10FFFF: queue.declare queue", declare(1, "a\xf4\x90\x80\x80", 1))
	add("noncharacter U+FFFE: queue.declare queue", declare(1, "a\xef\xbf\xbe", 1))
	add("BOM: queue.declare queue", declare(1, "\xef\xbb\xbfa", 1))
	add("NUL: queue.declare queue", declare(1, "a\x00b", 1))
	add("CR LF: queue.declare queue", declare(1, "a\r\nb", 1))

	// Tables.
	nest := func(depth int) []byte {
		var t []byte
		for range depth {
			t = amqp.AppendTableField(nil, "a", t)
		}
		return t
	}
	nestArray := func(depth int) []byte {
		var t []byte
		for range depth {
			t = append([]byte{'A'}, amqp.AppendLongStr(nil, t)...)
		}
		return append(str("a"), t...)
	}
	nan64 := longlong(math.Float64bits(math.NaN()))
	inf64 := longlong(math.Float64bits(math.Inf(1)))
	nan32 := long(math.Float32bits(float32(math.NaN())))
	inf32 := long(math.Float32bits(float32(math.Inf(-1))))
	tables := []struct {
		name string
		t    []byte
	}{
		{"unknown type Z", field("a", "Z")},
		{"unknown type U", field("a", "U\x00\x01")},
		{"unknown type 0", field("a", "\x00")},
		{"name cut off", octet(9, 'a')},
		{"no value", str("a")},
		{"value cut off", field("a", "I\x00")},
		{"string longer than the table", field("a", "S\x00\x00\x00\x09x")},
		{"string of 4 GiB", field("a", "S\xff\xff\xff\xffx")},
		{"array with garbage", append(field("a", "A"), longstr("Zzz")...)},
		{"array cut off", append(field("a", "A"), longstr("I\x00")...)},
		{"table in it with garbage", amqp.AppendTableField(nil, "a", []byte("\x01bZ"))},
		{"double NaN", append(field("a", "d"), nan64...)},
		{"double infinity", append(field("a", "d"), inf64...)},
		{"float NaN", append(field("a", "f"), nan32...)},
		{"float infinity", append(field("a", "f"), inf32...)},
		{"NaN in an array", append(field("a", "A"), longstr("d"+string(nan64))...)},
		{"name of bad UTF-8", field(evil, "V")},
		{"string of bad UTF-8", strField("a", evil)},
		{"empty name", field("", "V")},
		{"a name twice", cat(intField("a", 1), intField("a", 2))},
		{"every type", cat(field("a", "t\x01"), field("b", "b\x01"), field("c", "B\x01"), field("d", "s\x00\x01"), field("e", "u\x00\x01"),
			field("f", "I\x00\x00\x00\x01"), field("g", "i\x00\x00\x00\x01"), field("h", "l\x00\x00\x00\x00\x00\x00\x00\x01"), field("i", "L\x00\x00\x00\x00\x00\x00\x00\x01"),
			field("j", "f\x3f\x80\x00\x00"), field("k", "d\x3f\xf0\x00\x00\x00\x00\x00\x00"), field("l", "D\x02\x00\x00\x00\x01"), field("m", "T\x00\x00\x00\x00\x00\x00\x00\x01"),
			field("n", "V"), field("o", "x\x00\x00\x00\x01\xff"), strField("p", "s"), field("q", "A\x00\x00\x00\x02t\x05"), field("r", "F\x00\x00\x00\x00"), field("s", "t\x07"))},
		{"64 tables deep", nest(64)},
		{"65 tables deep", nest(65)},
		{"1000 tables deep", nest(1000)},
		{"10000 tables deep", nest(10000)},
		{"66 arrays deep", nestArray(66)},
		{"10000 arrays deep", nestArray(10000)},
	}
	for _, t := range tables {
		add("table in exchange.declare: "+t.name, method(1, amqp.ExchangeDeclare, short(0), str("hz.t"+fmt.Sprint(len(cs))), str("direct"), octet(xAutoDelete), amqp.AppendLongStr(nil, t.t)))
		add("headers: "+t.name, publish(1, "", "hz.none", 0), props(1, 3, 1<<13, amqp.AppendLongStr(nil, t.t)), body(1, "abc"))
		q := fmt.Sprintf("hz.h%d", len(cs))
		with("headers, into a queue: "+t.name, l(declare(1, q, durable, expires)),
			publish(1, "", q, 0), props(1, 3, 1<<13, amqp.AppendLongStr(nil, t.t)), body(1, "abc"),
			method(1, amqp.BasicGet, short(0), str(q), octet(1)))
		with("table in queue.bind: "+t.name, l(declare(1, q, durable, expires)),
			method(1, amqp.QueueBind, short(0), str(q), str("amq.direct"), str("k"), octet(0), amqp.AppendLongStr(nil, t.t)))
	}
	add("table in basic.consume: double NaN", consume(1, "hz.x", "", 0, append(field("a", "d"), nan64...)))
	add("table in queue.declare passive: double NaN", declare(1, "hz.x", 1, append(field("a", "d"), nan64...)))
	add("table in client-properties again", method(0, amqp.ConnectionStartOk, longstr("\x01aZ"), str("PLAIN"), longstr("\x00a\x00b"), str("en_US")))

	// Properties.
	ps := func(name string, size uint64, flags uint16, p ...[]byte) {
		b := [][]byte{publish(1, "", "hz.none", 0), props(1, size, flags, p...)}
		if size > 0 {
			b = append(b, body(1, strings.Repeat("x", int(size))))
		}
		add("properties: "+name, b...)
		q := fmt.Sprintf("hz.p%d", len(cs))
		b[0] = publish(1, "", q, 0)
		b = append(b, method(1, amqp.BasicGet, short(0), str(q), octet(1)))
		with("properties, into a queue: "+name, l(declare(1, q, durable, expires)), b...)
	}
	ps("flag bit 0 (continuation)", 3, 1, short(0))
	ps("flag bit 0 alone", 3, 1)
	ps("flag bit 1", 3, 2)
	ps("flag bits 0 and 1", 3, 3)
	ps("content-type cut off", 3, 1<<15, octet(9, 'a'))
	ps("content-type missing", 3, 1<<15)
	ps("octets left over", 3, 0, octet(1, 2, 3))
	ps("octets left over after a property", 3, 1<<15, str("a"), octet(1, 2, 3))
	ps("headers cut off", 3, 1<<13, octet(0, 0, 0, 9))
	ps("headers length cut off", 3, 1<<13, octet(0, 0))
	ps("timestamp cut off", 3, 1<<6, octet(0, 0))
	ps("bad UTF-8 in content-type", 3, 1<<15, str(evil))
	ps("bad UTF-8 in message-id", 3, 1<<7, str(evil))
	ps("bad UTF-8 in correlation-id", 3, 1<<10, str(evil))
	ps("bad UTF-8 in reply-to", 3, 1<<9, str(evil))
	ps("delivery-mode 0", 3, 1<<12, octet(0))
	ps("delivery-mode 3", 3, 1<<12, octet(3))
	ps("priority 255", 3, 1<<11, octet(255))
	ps("expiration not a number", 3, 1<<8, str("abc"))
	ps("expiration empty", 3, 1<<8, str(""))
	ps("expiration -1", 3, 1<<8, str("-1"))
	ps("expiration huge", 3, 1<<8, str("99999999999999999999"))
	ps("expiration with a blank", 3, 1<<8, str("100 "))
	ps("user-id of another", 3, 1<<4, str("nobody"))
	ps("cluster-id", 3, 1<<2, str("c"))
	ps("timestamp 2^64-1", 3, 1<<6, longlong(math.MaxUint64))
	ps("CC not an array", 3, 1<<13, table(strField("CC", "hz.none")))
	ps("CC of numbers", 3, 1<<13, table(append(field("CC", "A"), longstr("I\x00\x00\x00\x01")...)))
	ps("CC of bad UTF-8", 3, 1<<13, table(append(field("CC", "A"), longstr("S\x00\x00\x00\x01\xff")...)))
	ps("BCC a table", 3, 1<<13, table(amqp.AppendTableField(nil, "BCC", nil)))
	ps("CC twice", 3, 1<<13, table(append(field("CC", "A"), longstr("")...), append(field("CC", "A"), longstr("")...)))
	ps("x-death a string", 3, 1<<13, table(strField("x-death", "junk")))
	ps("x-death an array of numbers", 3, 1<<13, table(append(field("x-death", "A"), longstr("I\x00\x00\x00\x01")...)))
	ps("x-death an array of empty tables", 3, 1<<13, table(append(field("x-death", "A"), longstr("F\x00\x00\x00\x00")...)))
	ps("x-delivery-count a string", 3, 1<<13, table(strField("x-delivery-count", "junk")))
	ps("x-stream-filter-value a number", 3, 1<<13, table(intField("x-stream-filter-value", 1)))
	ps("x-basic-deliver junk", 3, 1<<13, table(strField("x-routing-key", "junk")))
	ps("x-opt-forwarding and x-opt- annotations of odd types", 3, 1<<13, table(strField("x-opt-delivery-time", "z"), field("x-opt-b", "V")))

	return append(append(cs, methodCases()...), extraCases()...)
}

// allMethods is every method in the table.
func allMethods() (all []amqp.Method) {
	for c := amqp.Method(10); c <= 90; c += 5 {
		for m := amqp.Method(10); m <= 120; m++ {
			if id := c<<16 | m; id.Index() != 0 {
				all = append(all, id)
			}
		}
	}
	return all
}

// serverArgs is a set of arguments that decodes, made of empty fields.
func serverArgs(m amqp.Method) (b []byte) {
	for _, c := range m.Spec().Args {
		switch c {
		case 'b', 'o', 'O', 's':
			b = append(b, 0)
		case 'h':
			b = append(b, 0, 0)
		case 'l', 'S', 'T':
			b = append(b, 0, 0, 0, 0)
		case 'q':
			b = append(b, make([]byte, 8)...)
		}
	}
	return b
}

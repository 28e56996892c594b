// Direct reply-to addresses: what RabbitMQ 3.10 and 4.0 answer with 541 is bad, what they
// take or ignore is not.

package amqp

import (
	"encoding/base64"
	"testing"
)

func TestBadReplyTo(t *testing.T) {
	at := func(pid string) string { return replyTo + base64.StdEncoding.EncodeToString([]byte(pid)) + ".key" }
	good := []string{
		"", "a", "amq.rabbitmq.reply-to", replyTo, replyTo + ".", replyTo + "..key", replyTo + "a.b.c", replyTo + "junk", "amq.rabbitmq.reply-toX.y",
		at("\x83Xw\x0bnode@nohost\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00"),
		at("\x83Xs\x0bnode@nohost\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00"),
		at("\x83Xd\x00\x0bnode@nohost\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00"),
		at("\x83gd\x00\x0bnode@nohost\x00\x00\x00\x01\x00\x00\x00\x00\x00"),
	}
	bad := []string{
		replyTo + "!!!!.x", replyTo + "g1h2AA==.junk", replyTo + "AA.x",
		at(""[:0] + "garbage"), at("\x83"), at("\x83j"), at("\x83w\x02ok"), at("\x83X"), at("\x83Xw"), at("\x83Xd\x00"),
		at("\x83Xw\x0bnode@nohost\x00\x00"),
		at("\x83Xw\x0bnode@nohost\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
		at("\x83gw\xffnode@nohost\x00\x00\x00\x01\x00\x00\x00\x00\x00"),
		at("\x83Xd\xff\xffnode@nohost\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00"),
	}
	route := func(header, key string) []byte {
		array := append([]byte{'S', 0, 0, 0, 1, 'q', 'V', 'S'}, AppendLongStr(nil, key)...)
		table := append(AppendStringField(nil, "a", "b"), AppendShortStr(nil, header)...)
		return contentHeader(1, 1<<13, AppendLongStr(nil, append(append(table, 'A'), AppendLongStr(nil, array)...)))
	}
	for want, names := range map[bool][]string{false: good, true: bad} {
		for _, n := range names {
			if got := BadReplyTo([]byte(n)); got != want {
				t.Errorf("%q: bad %v, want %v", n, got, want)
			}
			for _, h := range []string{"CC", "BCC"} {
				if got := HeaderOdd(route(h, n))&OddRoutes != 0; got != want {
					t.Errorf("%q in %s: bad %v, want %v", n, h, got, want)
				}
			}
			if err := HeaderOdd(route("cc", n)); err != 0 {
				t.Errorf("%q in a header of no meaning: %v", n, err)
			}
		}
	}
}

func FuzzBadReplyTo(f *testing.F) {
	f.Add([]byte(replyTo + "g1h3C25vZGVAbm9ob3N0AAAAAQAAAAAAAAAA.x"))
	f.Add([]byte(replyTo + "g2dkAAtub2RlQG5vaG9zdAAAAAEAAAAAAA==.x"))
	f.Fuzz(func(t *testing.T, b []byte) { BadReplyTo(b); BadReplyTo(append([]byte(replyTo), b...)) })
}

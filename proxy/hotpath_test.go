// What a message costs in the proxy alone, without sockets: benchmarks of the ways of
// publishes, acks, confirms and deliveries. Each reads 64 KiB at a time, as a busy socket gives.

package proxy

import (
	"bytes"
	"testing"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// forClient feeds messages from the client's side and reports what one of them costs.
func forClient(b *testing.B, c *client, messages int, in []byte) {
	src := bytes.NewReader(in)
	feed := func() {
		src.Reset(in)
		for src.Len() > 0 {
			if _, err := c.rd.Fill(src); err != nil || !c.chunk() {
				b.Fatal("the client has ended", err)
			}
		}
	}
	feed()
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		feed()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(messages), "ns/msg")
}

func BenchmarkPublish(b *testing.B) {
	plain := proxytest.PublishBytes(1, "", "queue", make([]byte, 100), 0)
	const messages = 2000
	for name, one := range map[string][]byte{
		"100B":       plain,
		"10kB":       proxytest.PublishBytes(1, "", "queue", make([]byte, 10_000), 0),
		"properties": publishWith(1, "events", "orders.created.eu", propertiesOfTest(), make([]byte, 100)),
	} {
		b.Run(name, func(b *testing.B) {
			c, _, _ := halves(b)
			forClient(b, c, messages, bytes.Repeat(one, messages))
		})
	}
	b.Run("one by one", func(b *testing.B) {
		c, _, _ := halves(b)
		forClient(b, c, 1, plain)
	})
	b.Run("two keys", func(b *testing.B) {
		c, _, _ := halves(b)
		two := append(append([]byte(nil), plain...), proxytest.PublishBytes(1, "amq.topic", "another.key", make([]byte, 100), 0)...)
		forClient(b, c, messages, bytes.Repeat(two, messages/2))
	})
	b.Run("two channels", func(b *testing.B) {
		c, _, _ := halves(b)
		feedClient(b, c, proxytest.Method(2, amqp.ChannelOpen, ""))
		two := append(append([]byte(nil), plain...), proxytest.PublishBytes(2, "", "queue", make([]byte, 100), 0)...)
		forClient(b, c, messages, bytes.Repeat(two, messages/2))
	})
}

func BenchmarkAck(b *testing.B) {
	c, _, _ := halves(b)
	feedClient(b, c, proxytest.PublishBytes(1, "", "queue", []byte("x"), 0)) // binds the channel
	const messages = 2000
	forClient(b, c, messages, bytes.Repeat(proxytest.Method(1, amqp.BasicAck, 1, 0), messages))
}

// forUpstream feeds messages from the broker's side; the client's queue goes nowhere.
func forUpstream(b *testing.B, one []byte) {
	c, u, _ := halves(b)
	feedClient(b, c, proxytest.PublishBytes(1, "", "queue", []byte("x"), 0)) // binds the channel
	c.raw = nil
	c.out.Init(&c.mu, &sinkConn{}, &c.s.coarse, nil)
	const messages = 2000
	in := bytes.Repeat(one, messages)
	src := bytes.NewReader(in)
	var d delivery
	feed := func() {
		src.Reset(in)
		for src.Len() > 0 {
			if _, err := u.rd.Fill(src); err != nil {
				b.Fatal(err)
			}
			if e := u.chunk(&d); e != nil {
				b.Fatal(e)
			}
			c.mu.Lock()
			c.out.DropLocked()
			c.mu.Unlock()
		}
	}
	feed()
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		feed()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/messages, "ns/msg")
}

func BenchmarkConfirm(b *testing.B) { forUpstream(b, proxytest.Method(1, amqp.BasicAck, 1, 0)) }

func BenchmarkDeliver(b *testing.B) {
	one := append(proxytest.Method(1, amqp.BasicDeliver, "ctag", 1, 0, "", "queue"), proxytest.Header(1, 100)...)
	forUpstream(b, append(one, proxytest.Body(1, make([]byte, 100))...))
}

// propertiesOfTest are flags and properties as a usual library sends them: a content type, a
// delivery mode, a header, a message id.
func propertiesOfTest() []byte {
	p := []byte{1<<7 | 1<<5 | 1<<4, 1 << 7}
	p = amqp.AppendShortStr(p, "application/json")
	p = amqp.AppendLongStr(p, amqp.AppendStringField(nil, "x-trace", "4bf92f3577b34da6a3ce929d0e0e4736"))
	p = append(p, 2)
	return amqp.AppendShortStr(p, "0af7651916cd43dd8448eb211c80319c")
}

// publishWith is a publish whose content header ends in the given flags and properties.
func publishWith(id uint16, exchange, key string, properties, body []byte) []byte {
	p := proxytest.Method(id, amqp.BasicPublish, 0, exchange, key, 0)
	head := []byte{0, amqp.ClassBasic, 0, 0, 0, 0, 0, 0, 0, 0, byte(len(body) >> 8), byte(len(body))}
	p = amqp.AppendFrame(p, amqp.FrameHeader, id, append(head, properties...))
	return amqp.AppendBody(p, id, body, 131072)
}

package proxy

import (
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// What may be a hard error and has no state of its channel goes round over a connection of the
// client's own, from a channel that cannot move: its answer is heard on that channel, which goes on.
func TestDetour(t *testing.T) {
	const noWait = 1 << 4
	declare := func(bits int) []byte {
		return proxytest.Method(1, amqp.ExchangeDeclare, 0, "x", "x-delayed-message", bits, nil)
	}
	for _, bits := range []int{durable, durable | noWait} {
		for _, refused := range []uint16{0, amqp.PreconditionFailed, amqp.CommandInvalid} {
			withScript(t, 0, nil, func(r *rig) {
				c, p := r.pair(proxytest.ClientConfig{})
				bystander := r.client(proxytest.ClientConfig{})
				r.must(c.Confirm(1))
				r.must(c.Publish(1, "", "q", nil))
				id := p.OpenChannel()
				p.Expect(amqp.ConfirmSelect)
				p.SendMethod(id, amqp.ConfirmSelectOk)
				p.ExpectContent(amqp.BasicPublish)
				p.SendMethod(id, amqp.BasicAck, 1, 0)
				r.must(c.WaitConfirms(1))
				r.must(bystander.Publish(1, "", "q", nil))
				p.OpenChannel()
				p.ExpectContent(amqp.BasicPublish)
				r.must(c.Send(declare(bits), proxytest.PublishBytes(1, "x", "q", nil, 0)))
				own := r.sc.AcceptOpen()
				on := own.OpenChannel()
				own.ExpectOn(on, amqp.ExchangeDeclare)
				waits := func() { // the publish behind it
					r.t.Helper()
					time.Sleep(time.Second)
					if n := proxytest.Count(r.sc.Records(), amqp.BasicPublish); n != 2 {
						t.Fatalf("%d publishes have arrived, want the first two\n%s", n, r.sc.Log())
					}
				}
				arrives := func(n int) {
					r.t.Helper()
					r.sc.Wait("a publish", func(rs []proxytest.Record) bool { return proxytest.Count(rs, amqp.BasicPublish) == n })
				}
				waits()
				switch {
				case refused == amqp.CommandInvalid:
					own.Send(proxytest.CloseBytes(0, refused, "COMMAND_INVALID - unknown exchange type", amqp.ExchangeDeclare))
					e, err := c.Closed(0)
					r.must(err)
					r.hears(e, refused, "unknown exchange type")
					own.Close()
					_ = c.Hangup()
					p.ExpectOn(id, amqp.ChannelClose)
					p.SendMethod(id, amqp.ChannelCloseOk)
				case refused != 0:
					if bits&noWait != 0 {
						own.ExpectOn(on, amqp.ChannelClose)
					}
					own.Send(proxytest.CloseBytes(on, refused, "PRECONDITION_FAILED - inequivalent", amqp.ExchangeDeclare))
					own.ExpectOn(on, amqp.ChannelCloseOk)
					if bits&noWait != 0 {
						own.SendMethod(on, amqp.ChannelCloseOk)
					}
					e, err := c.Closed(1)
					r.must(err)
					r.hears(e, refused, "inequivalent")
					p.ExpectOn(id, amqp.ChannelClose)
					p.SendMethod(id, amqp.ChannelCloseOk)
					waits()
					r.must(c.OpenChannel(1))
				default:
					if bits&noWait == 0 {
						own.SendMethod(on, amqp.ExchangeDeclareOk)
						_, err := c.Expect(amqp.ExchangeDeclareOk)
						r.must(err)
					}
					own.ExpectOn(on, amqp.ChannelClose)
					own.SendMethod(on, amqp.ChannelCloseOk)
					arrives(3)
					p.SendMethod(id, amqp.BasicAck, 2, 1)
					_, err := c.Expect(amqp.BasicAck)
					r.must(err)
				}
				before := proxytest.Count(r.sc.Records(), amqp.BasicPublish)
				r.must(bystander.Publish(1, "", "q", nil))
				arrives(before + 1)
				_ = c.Hangup()
				_ = bystander.Hangup()
			})
		}
	}
}

package proxy

import (
	"testing"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// From RabbitMQ 4.3 on a reply_to that is not UTF-8 may be a hard error, in a stream: where others
// share the connection it is refused, by oneself it is the broker's to judge, and before 4.3 it is in order.
func TestReplyToThatIsNoText(t *testing.T) {
	for _, c := range []struct {
		mode    PoolMode
		version string
		refused bool
	}{
		{PoolAuto, "4.3.0", true}, {PoolShared, "4.3.0", true}, {PoolSession, "4.3.0", false},
		{PoolAuto, "4.0.0", false}, {PoolShared, "3.10.8", false},
	} {
		bc := proxytest.BrokerConfig{Properties: proxytest.RabbitMQProperties(c.version)}
		withBroker(t, bc, func(cfg *Config) { cfg.Listeners[0].Mode = c.mode }, func(r *rig) {
			bystander, odd := stuck(r, proxytest.ClientConfig{}), stuck(r, proxytest.ClientConfig{})
			header := []byte{amqp.FrameHeader, 0, 1, 0, 0, 0, 16, 0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x02, 0, 1, 0xff, amqp.FrameEnd}
			r.must(odd.SendMethod(1, amqp.BasicPublish, 0, "", "q", 0))
			r.must(odd.Send(header))
			if c.refused {
				e, err := odd.Closed(0)
				r.must(err)
				r.hears(e, amqp.InternalError, "reply_to is not UTF-8")
			} else {
				_, err := odd.Await(1, amqp.BasicAck)
				r.must(err)
				r.must(odd.Close())
			}
			r.must(bystander.Publish(1, "", "nowhere", nil))
			r.must(bystander.WaitConfirms(1))
			r.must(bystander.Close())
		})
	}
}

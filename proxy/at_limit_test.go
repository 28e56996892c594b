package proxy

import (
	"testing"
	"testing/synctest"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// A connection that the proxy keeps idle for one user does not refuse another one at a limit of
// the broker's; one that is in use does.
func TestIdleConnectionGivesUpItsPlace(t *testing.T) {
	for _, mode := range []PoolMode{PoolAuto, PoolSession, PoolShared} {
		withBroker(t, proxytest.BrokerConfig{Users: map[string]string{"a": "a", "b": "b"}}, func(c *Config) { c.Listeners[0].Mode = mode }, func(r *rig) {
			r.b.SetLimit(1)
			a := r.client(proxytest.ClientConfig{User: "a", Password: "a"})
			_, err := a.DeclareQueue(1, "q", 0)
			r.must(err)
			_, err = r.login(proxytest.ClientConfig{User: "b", Password: "b"})
			r.hears(err, amqp.NotAllowed, "connection limit (1) is reached")
			_, err = a.DeclareQueue(1, "q", 0)
			r.must(err) // in use: it stays
			r.must(a.Close())
			synctest.Wait() // until its channel is closed at the broker the connection is not idle
			b := r.client(proxytest.ClientConfig{User: "b", Password: "b"})
			_, err = b.DeclareQueue(1, "q", 0)
			r.must(err)
			r.must(b.Close())
		})
	}
}

// At a limit of one the only client's session takes the place of the connection that it leaves.
func TestSessionAtALimitOfOne(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		r.b.SetLimit(1)
		c := r.client(proxytest.ClientConfig{})
		r.must(c.Qos(1, 1))
		_, err := c.DeclareQueue(1, "x", proxytest.Exclusive)
		r.must(err)
		r.must(c.Close())
		d := r.client(proxytest.ClientConfig{})
		_, err = d.DeclareQueue(1, "y", 0)
		r.must(err)
		_, err = d.Consume(1, "y", "t", false)
		r.must(err)
		r.must(d.Close())
	})
}

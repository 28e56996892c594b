package proxy

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// denial is what RabbitMQ 4.3 says of a transient queue when it is told to refuse them.
var denial = &amqp.Error{Code: amqp.InternalError, Text: "INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated.\n" +
	"By default, this feature is not permitted anymore."}

// denying is a stand-in of a RabbitMQ that denies transient queues while deny is true.
func denying(version string, deny *atomic.Bool) proxytest.BrokerConfig {
	return proxytest.BrokerConfig{
		Properties: proxytest.RabbitMQProperties(version),
		Intercept: func(c *proxytest.BrokerConn, f amqp.Frame) bool {
			if deny.Load() && f.Type() == amqp.FrameMethod && f.Method() == amqp.QueueDeclare {
				a := amqp.ReadArgs(f)
				a.Short()
				a.Str()
				if isTransient(a.Octet()) {
					c.Send(amqp.AppendClose(nil, 0, denial))
					return true
				}
			}
			return f.Type() == amqp.FrameMethod && f.Method() == amqp.ConnectionCloseOk && deny.Load()
		},
	}
}

const durable = 2

// Where RabbitMQ denies transient queues, who declares one hears that alone: from the first on where
// the version may deny them, from the second on where it did not say so.
func TestDeniedFeature(t *testing.T) {
	for _, mode := range []PoolMode{PoolAuto, PoolShared} {
		for version, mayFall := range map[string]int{"4.3.6": 0, "3.12.1": 1} {
			for _, cannotMove := range []bool{false, true} {
				var deny atomic.Bool
				deny.Store(true)
				withBroker(t, denying(version, &deny), func(c *Config) { c.Listeners[0].Mode = mode }, func(r *rig) {
					fell := 0
					bystander := stuck(r, proxytest.ClientConfig{})
					for range 5 {
						c := r.client(proxytest.ClientConfig{})
						if cannotMove {
							_ = c.Hangup()
							c = stuck(r, proxytest.ClientConfig{})
						}
						_, err := c.DeclareQueue(1, "q", 0)
						r.hears(err, amqp.InternalError, "transient_nonexcl_queues")
						_ = c.Hangup()
						if err := bystander.Publish(1, "", "nowhere", nil); err == nil {
							err = bystander.WaitConfirms(1)
							if err == nil {
								continue
							}
						}
						fell++
						_ = bystander.Hangup()
						bystander = stuck(r, proxytest.ClientConfig{})
					}
					if fell != mayFall {
						t.Errorf("mode %s, RabbitMQ %s: %d bystanders fell, want %d", mode, version, fell, mayFall)
					}
					c := stuck(r, proxytest.ClientConfig{})
					_, err := c.DeclareQueue(1, "kept", durable)
					r.must(err)
					if n := r.s.Stats().Pools[0].Sessions; n != 0 {
						t.Errorf("%d clients have connections of their own, who have done nothing wrong", n)
					}
					// It may be permitted again.
					deny.Store(false)
					time.Sleep(offenceTime + time.Second)
					_, err = c.DeclareQueue(1, "q", 0)
					r.must(err)
					r.must(c.Close())
					_ = bystander.Hangup()
				})
			}
		}
	}
}

// A queue that names where its master is to be is 541 by RabbitMQ 4.3's defaults, and with a value that it
// does not know by 3.10: for its client alone, in mode shared too.
func TestMasterLocator(t *testing.T) {
	const locator = "x-queue-master-locator"
	said := &amqp.Error{Code: amqp.InternalError, Method: amqp.QueueDeclare, Text: "INTERNAL_ERROR - Feature `queue_master_locator` is deprecated."}
	for _, mode := range []PoolMode{PoolAuto, PoolShared} {
		for _, version := range []string{"3.10.8", "4.3.6"} {
			for _, cannotMove := range []bool{false, true} {
				bc := proxytest.BrokerConfig{
					Properties: proxytest.RabbitMQProperties(version),
					Intercept: func(c *proxytest.BrokerConn, f amqp.Frame) bool {
						if f.Type() == amqp.FrameMethod && f.Method() == amqp.QueueDeclare && hasField(f, "hsb", locator) {
							c.Send(amqp.AppendClose(nil, 0, said))
							return true
						}
						return f.Type() == amqp.FrameMethod && f.Method() == amqp.ConnectionCloseOk
					},
				}
				withBroker(t, bc, func(c *Config) { c.Listeners[0].Mode = mode }, func(r *rig) {
					bystander := stuck(r, proxytest.ClientConfig{})
					for range 3 {
						c := r.client(proxytest.ClientConfig{})
						if cannotMove {
							_ = c.Hangup()
							c = stuck(r, proxytest.ClientConfig{})
						}
						err := c.Call(proxytest.Method(1, amqp.QueueDeclare, 0, "q", durable,
							amqp.AppendStringField(nil, locator, "min-masters")), amqp.QueueDeclareOk)
						r.hears(err, amqp.InternalError, "queue_master_locator")
						_ = c.Hangup()
						if err := errors.Join(bystander.Publish(1, "", "nowhere", nil), bystander.WaitConfirms(1)); err != nil {
							t.Fatalf("mode %s, RabbitMQ %s: a bystander heard %v", mode, version, err)
						}
					}
					_ = bystander.Hangup()
				})
			}
		}
	}
}

// Where it permits them, one client has asked for all, and they share.
func TestPermittedFeature(t *testing.T) {
	for _, mode := range []PoolMode{PoolAuto, PoolShared} {
		var deny atomic.Bool
		withBroker(t, denying("4.3.6", &deny), func(c *Config) { c.Listeners[0].Mode = mode }, func(r *rig) {
			first := r.client(proxytest.ClientConfig{})
			_, err := first.DeclareQueue(1, "q", 0)
			r.must(err)
			opened := r.b.Counts().Opened
			for range 5 {
				c := r.client(proxytest.ClientConfig{})
				_, err := c.DeclareQueue(1, "q", 0)
				r.must(err)
				defer func() { _ = c.Hangup() }()
			}
			if n := r.b.Counts().Opened - opened; n > 1 {
				t.Errorf("mode %s: %d more connections were opened for five clients", mode, n)
			}
			r.must(first.Close())
		})
	}
}

// Many that come before the answer wait for it, and none asks beside the first.
func TestFeatureIsAskedForOnce(t *testing.T) {
	var deny atomic.Bool
	withBroker(t, denying("4.3.6", &deny), nil, func(r *rig) {
		var cs []*proxytest.Client
		for range 20 {
			cs = append(cs, r.client(proxytest.ClientConfig{}))
		}
		for _, c := range cs {
			r.must(c.SendMethod(1, amqp.QueueDeclare, 0, "q", 0, nil))
		}
		for _, c := range cs {
			_, err := c.Await(1, amqp.QueueDeclareOk)
			r.must(err)
		}
		if n := r.b.Counts().Opened; n > 2 {
			t.Errorf("%d connections for 20 clients", n)
		}
		for _, c := range cs {
			r.must(c.Close())
		}
	})
}

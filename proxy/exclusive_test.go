package proxy

import (
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// tryOn has the client try all that a queue can be asked for, on channels of their own, and
// wants the same refusal for each.
func tryOn(r *rig, c *proxytest.Client, queue string, code uint16) {
	r.t.Helper()
	on := uint16(100)
	for _, method := range [][]byte{
		proxytest.Method(on, amqp.BasicGet, 0, queue, 1),
		proxytest.Method(on, amqp.BasicConsume, 0, queue, "spy", 2, nil),
		proxytest.Method(on, amqp.QueueBind, 0, queue, "amq.direct", "key", 0, nil),
		proxytest.Method(on, amqp.QueuePurge, 0, queue, 0),
		proxytest.Method(on, amqp.QueueDelete, 0, queue, 0),
		proxytest.Method(on, amqp.QueueDeclare, 0, queue, proxytest.Passive, nil),
	} {
		if code == amqp.NotFound && amqp.Frame(method).Method() == amqp.QueueDelete {
			continue // RabbitMQ deletes what is not there
		}
		r.must(c.OpenChannel(on))
		r.must(c.Send(method))
		e, err := c.Closed(on)
		r.must(err)
		if e.Code != code {
			r.t.Errorf("%s: %v, want %d", proxytest.Describe(method), e, code)
		}
	}
}

// stuck is a client whose channel 1 can move no more.
func stuck(r *rig, cfg proxytest.ClientConfig) *proxytest.Client {
	r.t.Helper()
	c := r.client(cfg)
	r.must(c.Confirm(1))
	r.must(c.Publish(1, "", "nowhere", nil))
	r.must(c.WaitConfirms(1))
	return c
}

// An exclusive queue is never declared where others could reach it: on a channel that cannot
// move away from them it is refused, and only the channel ends.
func TestNoExclusiveQueueAmongOthers(t *testing.T) {
	for _, mode := range []PoolMode{PoolAuto, PoolShared} {
		for _, bits := range []int{proxytest.Exclusive, proxytest.Exclusive | 1<<4} {
			withBroker(t, proxytest.BrokerConfig{}, func(c *Config) { c.Listeners[0].Mode = mode }, func(r *rig) {
				a, b := stuck(r, proxytest.ClientConfig{}), stuck(r, proxytest.ClientConfig{})
				_, err := b.DeclareQueue(1, "canary", 0)
				r.must(err)
				r.must(a.SendMethod(1, amqp.QueueDeclare, 0, "private", bits, nil))
				e, err := a.Closed(1)
				r.must(err)
				r.hears(e, amqp.PreconditionFailed, "exclusive", "pool_mode")
				if e.Method != amqp.QueueDeclare {
					t.Errorf("the method named is %v", e.Method)
				}
				if n := r.b.Messages("/", "private"); n != -1 {
					t.Errorf("mode %s: the queue was declared", mode)
				}
				tryOn(r, b, "private", amqp.NotFound)
				r.must(b.Publish(1, "", "canary", nil))
				r.must(b.WaitConfirms(1))
				r.must(a.OpenChannel(1)) // the client lives on
				_, err = a.DeclareQueue(1, "other", 0)
				r.must(err)
				r.must(a.Close())
				r.must(b.Close())
			})
		}
	}
}

// A client that is alone on its upstream keeps it when it declares an exclusive queue there:
// nobody else comes, others hear 405, and the queue ends with its owner.
func TestSoleTenantDeclaresAnExclusiveQueue(t *testing.T) {
	for _, crash := range []bool{false, true} {
		withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
			a := stuck(r, proxytest.ClientConfig{})
			opened := r.b.Counts().Opened
			_, err := a.DeclareQueue(1, "private", proxytest.Exclusive)
			r.must(err)
			if n := r.b.Counts().Opened; n != opened {
				t.Error("a connection was opened for it")
			}
			r.must(a.Publish(1, "", "private", []byte("mine")))
			r.must(a.WaitConfirms(1))
			b := stuck(r, proxytest.ClientConfig{})
			tryOn(r, b, "private", amqp.ResourceLocked)
			r.must(a.OpenChannel(2)) // all of its channels reach it
			m, err := a.Get(2, "private", true)
			r.must(err)
			if string(m.Body) != "mine" {
				t.Errorf("got %q", m.Body)
			}
			if crash {
				a.Abort()
				time.Sleep(time.Second)
			} else {
				r.must(a.Close())
			}
			tryOn(r, b, "private", amqp.NotFound)
			r.must(b.Close())
		})
	}
}

// A place that is promised to another client counts as taken.
func TestPromisedPlaceKeepsAnUpstreamShared(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		a := stuck(r, proxytest.ClientConfig{})
		p := r.s.allPools()[0]
		at, ok := p.try(nil, lanePublish)
		if !ok {
			t.Fatal("no place")
		}
		_, err := a.DeclareQueue(1, "private", proxytest.Exclusive)
		r.hears(err, amqp.PreconditionFailed, "exclusive")
		at.leave()
		at.leave() // once
		r.must(a.Close())
	})
}

// Mode shared has no connection for one client: exclusive queues are refused there.
func TestNoExclusiveQueueInModeShared(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, func(c *Config) { c.Listeners[0].Mode = PoolShared }, func(r *rig) {
		a := r.client(proxytest.ClientConfig{})
		_, err := a.DeclareQueue(1, "private", proxytest.Exclusive)
		r.hears(err, amqp.PreconditionFailed, "exclusive", "pool_mode")
		r.must(a.OpenChannel(2))
		_, err = a.DeclareQueue(2, "common", 0)
		r.must(err)
		r.must(a.Close())
	})
}

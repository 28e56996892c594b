package proxy

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// Who reads where nobody publishes needs a second connection. When the broker gives none,
// the client works on the one there is, and the broker is asked once, not over and over.
func TestNoSecondConnection(t *testing.T) {
	for name, refuse := range map[string]func(*rig){
		"password changed":   func(r *rig) { r.b.SetUser("guest", "new") },
		"broker unreachable": func(r *rig) { r.to.Refuse(errors.New("connection refused")) },
	} {
		t.Run(name, func(t *testing.T) {
			withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
				c := r.client(proxytest.ClientConfig{})
				_, err := c.DeclareQueue(1, "q", 0)
				r.must(err)
				r.must(c.Confirm(1))
				r.must(c.Publish(1, "", "q", []byte("first")))
				r.must(c.WaitConfirms(1))
				refuse(r)
				before, began := r.b.Counts(), time.Now()
				r.must(c.OpenChannel(2))
				r.must(c.Qos(2, 10))
				_, err = c.Consume(2, "q", "t", false)
				r.must(err)
				m, err := c.Delivery(2)
				r.must(err)
				r.must(c.Ack(2, m.Tag, false))
				if took := time.Since(began); took > time.Second {
					t.Errorf("the consumer was served only after %v", took)
				}
				if n := r.b.Counts().Refused - before.Refused; n > 1 {
					t.Errorf("the broker was asked %d times", n)
				}
			})
		})
	}
}

// Without any connection the client hears why, at once.
func TestNoConnection(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, func(c *Config) { c.MaxChannels = 1 }, func(r *rig) {
		c := r.client(proxytest.ClientConfig{})
		_, err := c.DeclareQueue(1, "q", 0)
		r.must(err)
		r.b.SetUser("guest", "new")
		before, began := r.b.Counts(), time.Now()
		r.must(c.OpenChannel(2))
		_, err = c.DeclareQueue(2, "q", 0)
		r.hears(err, amqp.AccessRefused, "ACCESS_REFUSED - Login was refused")
		if took := time.Since(began); took > time.Second {
			t.Errorf("the client heard it only after %v", took)
		}
		synctest.Wait()
		if n := r.b.Counts().Refused - before.Refused; n != 1 {
			t.Errorf("the broker was asked %d times, want once", n)
		}
	})
}

// At max_upstreams publishers and readers share what there is, without a wait.
func TestOneUpstreamForBoth(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, func(c *Config) { c.MaxUpstreams = 1 }, func(r *rig) {
		c := r.client(proxytest.ClientConfig{})
		_, err := c.DeclareQueue(1, "q", 0)
		r.must(err)
		r.must(c.Confirm(1))
		r.must(c.Publish(1, "", "q", []byte("first")))
		r.must(c.WaitConfirms(1))
		began := time.Now()
		r.must(c.OpenChannel(2))
		_, err = c.Get(2, "q", true)
		r.must(err)
		if took := time.Since(began); took > time.Second {
			t.Errorf("the reader was served only after %v", took)
		}
		if n := r.b.Counts().Opened; n != 1 {
			t.Errorf("the broker sees %d connections, want 1", n)
		}
	})
}

// Whoever comes when another has long waited for a place has the whole of wait_timeout too.
func TestEveryoneWaitsTheWholeTime(t *testing.T) {
	for _, running := range []bool{false, true} {
		withScript(t, 0, func(c *Config) { c.Listeners[0].Mode, c.MaxUpstreams, c.MaxChannels = PoolShared, 1, 1 }, func(r *rig) {
			busy, p := r.pair(proxytest.ClientConfig{})
			user := "b"
			var clients [2]*proxytest.Client
			if running {
				user = "guest"
				clients = [2]*proxytest.Client{r.client(proxytest.ClientConfig{}), r.client(proxytest.ClientConfig{})}
			}
			r.must(busy.Publish(1, "", "q", nil))
			p.OpenChannel()
			if !running {
				go func() { // who they are, and whether the vhost is there, is asked beyond the bound; then they wait for a place
					q := r.sc.Accept()
					q.Start()
					q.Send(amqp.AppendTune(nil, amqp.ConnectionTune, proxytest.DefaultTune))
					r.sc.AcceptOpen()
				}()
			}
			took := make(chan time.Duration)
			for i := range 2 {
				go func() {
					time.Sleep(time.Duration(i) * 4 * time.Second)
					began := time.Now()
					var err error
					if running {
						_, err = clients[i].DeclareQueue(1, "q", 0)
					} else {
						_, err = r.login(proxytest.ClientConfig{User: user, Password: user})
					}
					r.hears(err, amqp.ConnectionForced, "no connection to the broker is free")
					took <- time.Since(began)
				}()
			}
			for range 2 {
				if d := <-took; d < 5*time.Second {
					t.Errorf("running %v: refused after %v, wait_timeout is 5 s", running, d)
				}
			}
			_ = busy.Hangup()
		})
	}
}

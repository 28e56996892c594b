package proxy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// An exclusive queue is its client's alone, on all its channels, and gone when its close
// is answered, or soon after its crash.
func TestExclusiveQueues(t *testing.T) {
	for _, mode := range []PoolMode{PoolAuto, PoolSession} {
		for _, crash := range []bool{false, true} {
			withBroker(t, proxytest.BrokerConfig{}, func(c *Config) { c.Listeners[0].Mode = mode }, func(r *rig) {
				canary := r.client(proxytest.ClientConfig{})
				_, err := canary.DeclareQueue(1, "canary", 0)
				r.must(err)
				a := r.client(proxytest.ClientConfig{})
				_, err = a.DeclareQueue(1, "mine", proxytest.Exclusive)
				r.must(err)
				r.must(a.OpenChannel(2))
				r.must(a.Publish(2, "", "mine", []byte("x")))
				m, err := a.Get(2, "mine", true)
				r.must(err)
				if string(m.Body) != "x" {
					t.Errorf("got %q", m.Body)
				}
				b := r.client(proxytest.ClientConfig{})
				_, err = b.DeclareQueue(1, "mine", proxytest.Passive)
				r.hears(err, amqp.ResourceLocked)
				if crash {
					a.Abort()
					time.Sleep(time.Second)
				} else {
					r.must(a.Close())
				}
				if n := r.b.Messages("/", "mine"); n != -1 {
					t.Errorf("mode %s, crash %v: the queue is still there", mode, crash)
				}
				r.must(canary.Publish(1, "", "canary", nil))
				_, err = canary.QueueLength(1, "canary")
				r.must(err)
				r.must(canary.Close())
				r.must(b.Close())
			})
		}
	}
}

// In session mode nothing distinguishes the proxy: the client's own name is at the broker,
// and the connection serves the next client like it.
func TestSessionMode(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, func(c *Config) { c.Listeners[0].Mode, c.Listeners[0].MatchProperties = PoolSession, true }, func(r *rig) {
		for range 3 {
			for _, name := range []string{"alpha", "beta"} {
				c := r.client(proxytest.ClientConfig{Name: name})
				_, err := c.DeclareQueue(1, "q", 0)
				r.must(err)
				if names := r.b.Connections(); !slices.Contains(names, name) {
					t.Errorf("the broker knows %q, want %q among them", names, name)
				}
				r.must(c.Close())
				time.Sleep(100 * time.Millisecond)
			}
		}
		if n := r.b.Counts().Opened; n != 2 {
			t.Errorf("%d connections were opened for two kinds of clients, want 2", n)
		}
		// A broker's close ends the one client whose connection it is.
		a, b := r.client(proxytest.ClientConfig{Name: "alpha"}), r.client(proxytest.ClientConfig{Name: "beta"})
		synctest.Wait()
		r.b.CloseConnections(320, "CONNECTION_FORCED - operator")
		for _, c := range []*proxytest.Client{a, b} {
			e, err := c.Closed(0)
			r.must(err)
			r.hears(e, 320, "operator")
			_ = c.Hangup()
		}
	})
}

// In mode auto a consumer without bound gets a connection of its own, which goes back.
func TestUnboundedConsumerGetsASession(t *testing.T) {
	for name, consume := range map[string]func(*rig, *proxytest.Client) error{
		"no ack":      func(r *rig, c *proxytest.Client) error { _, err := c.Consume(1, "q", "t", true); return err },
		"no prefetch": func(r *rig, c *proxytest.Client) error { _, err := c.Consume(1, "q", "t", false); return err },
		"large prefetch": func(r *rig, c *proxytest.Client) error {
			r.must(c.Qos(1, 1001))
			_, err := c.Consume(1, "q", "t", false)
			return err
		},
	} {
		withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
			other := r.client(proxytest.ClientConfig{})
			_, err := other.DeclareQueue(1, "q", 0)
			r.must(err)
			r.must(other.Publish(1, "", "q", []byte("x")))
			c := r.client(proxytest.ClientConfig{Name: "reader"})
			r.must(consume(r, c))
			m, err := c.Delivery(1)
			r.must(err)
			if string(m.Body) != "x" || !slices.Contains(r.b.Connections(), "reader") {
				t.Errorf("%s: got %q over connections %q", name, m.Body, r.b.Connections())
			}
			if name != "no ack" { // there it would be an error, whose close crosses the client's
				r.must(c.Ack(1, m.Tag, false))
			}
			r.must(c.Close())
			again := r.client(proxytest.ClientConfig{Name: "reader 2"})
			opened := r.b.Counts().Opened
			r.must(consume(r, again))
			if n := r.b.Counts().Opened; n != opened {
				t.Errorf("%s: the second reader opened a connection of its own", name)
			}
			r.must(again.Close())
			r.must(other.Close())
		})
	}
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) { // with a bound, it shares
		for i := range 3 {
			c := r.client(proxytest.ClientConfig{Name: fmt.Sprint(i)})
			_, err := c.DeclareQueue(1, "q", 0)
			r.must(err)
			r.must(c.Qos(1, 10))
			_, err = c.Consume(1, "q", "t", false)
			r.must(err)
			defer func() { _ = c.Close() }()
		}
		if n := r.b.Counts().Opened; n > 2 {
			t.Errorf("three bounded consumers have %d connections", n)
		}
	})
}

// A secret can be renewed on a session, and only there.
func TestUpdateSecret(t *testing.T) {
	token := "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln"
	withBroker(t, proxytest.BrokerConfig{Users: map[string]string{"guest": "guest", "token": token}}, nil, func(r *rig) {
		c := r.client(proxytest.ClientConfig{User: "token", Password: token})
		r.must(c.Call(proxytest.Method(0, amqp.ConnectionUpdateSecret, "new", "because"), amqp.ConnectionUpdateSecretOk))
		r.must(c.Close())
		d := r.client(proxytest.ClientConfig{})
		r.must(d.Confirm(1))
		r.must(d.Publish(1, "", "q", nil)) // its channel can move no more
		r.hears(d.Call(proxytest.Method(0, amqp.ConnectionUpdateSecret, "new", "because"), amqp.ConnectionUpdateSecretOk),
			amqp.NotAllowed, "pool_mode")
		_ = d.Hangup()
		if strings.Contains(r.log(), token) || strings.Contains(r.log(), "guest:guest") {
			t.Error("a secret is in the log")
		}
	})
}

// Read your writes: publish and disconnect; connect and get finds it.
func TestReadYourWrites(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		r.must(c.Publish(1, "", "q", []byte("x")))
		id := p.OpenChannel()
		p.ExpectContent(amqp.BasicPublish)
		r.must(c.Close()) // answered, though the broker has said nothing
		p.ExpectOn(id, amqp.ChannelClose)
		d := r.client(proxytest.ClientConfig{})
		r.must(d.Send(proxytest.Method(1, amqp.BasicGet, 0, "q", 1)))
		p.ExpectNothing(time.Second)
		p.SendMethod(id, amqp.ChannelCloseOk)
		p.OpenChannel()
		p.Expect(amqp.BasicGet)
		_ = d.Hangup()
	})
}

// closesUnderWay has the client open, publish on and close n channels, whose closes the broker
// leaves without an answer; it gives their ids there.
func closesUnderWay(r *rig, c *proxytest.Client, p *proxytest.Peer, n int) []uint16 {
	r.t.Helper()
	ids := make([]uint16, n)
	for i := range ids {
		ch := uint16(i + 2)
		r.must(c.OpenChannel(ch))
		r.must(c.Publish(ch, "", "q", nil))
		r.must(c.CloseChannel(ch))
		ids[i] = p.OpenChannel()
		p.ExpectContent(amqp.BasicPublish)
		p.ExpectOn(ids[i], amqp.ChannelClose)
	}
	return ids
}

// A broker that falls behind with closes that nobody waits for gets no new channels until it
// has caught up.
func TestBrokerFallsBehindWithCloses(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		ids := closesUnderWay(r, c, p, closesLate)
		time.Sleep(lateAfter + 2*tick)
		r.must(c.Publish(1, "", "q", nil))
		p.ExpectNothing(time.Second)
		for _, id := range ids {
			p.SendMethod(id, amqp.ChannelCloseOk)
		}
		p.OpenChannel()
		p.ExpectContent(amqp.BasicPublish)
		_ = c.Hangup()
	})
}

// However fast a client comes and goes, only so many closes are under way, before any of them is
// late; and only those of the same upstream are waited for.
func TestClosesUnderWayAreBounded(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		ids := closesUnderWay(r, c, p, closesMost)
		r.must(c.Publish(1, "", "q", nil))
		p.ExpectNothing(lateAfter / 2)
		for _, id := range ids {
			p.SendMethod(id, amqp.ChannelCloseOk)
		}
		p.OpenChannel()
		p.ExpectContent(amqp.BasicPublish)
		if st := r.s.Stats(); st.HeldBehindCloses != 1 || st.HeldTime != lateAfter/2 {
			t.Errorf("%d waits of %v are counted, want one of %v", st.HeldBehindCloses, st.HeldTime, lateAfter/2)
		}
		_ = c.Hangup()
	})
}

// The wait for quiet closes leaves time for a new connection within two heartbeats.
func TestReadYourWritesIsBounded(t *testing.T) {
	withScript(t, 0, func(c *Config) { c.CloseTimeout, c.ConnectTimeout, c.Heartbeat = time.Hour, 70*time.Second, 0 }, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		r.must(c.Publish(1, "", "q", []byte("x")))
		id := p.OpenChannel()
		p.ExpectContent(amqp.BasicPublish)
		r.must(c.Close())
		p.ExpectOn(id, amqp.ChannelClose)
		d := r.client(proxytest.ClientConfig{})
		began := time.Now()
		r.must(d.Send(proxytest.Method(1, amqp.BasicGet, 0, "q", 1)))
		time.Sleep(45 * time.Second)
		q := r.sc.AcceptOpen() // readers have connections of their own
		q.OpenChannel()
		if took, want := time.Since(began), 2*time.Minute-70*time.Second; took < want-time.Second || took > want+time.Second {
			t.Errorf("the reader waited %v for a close that is never answered, want %v", took, want)
		}
		_ = d.Hangup()
	})
}

// A close is answered at once only when the channel is quiet.
func TestQuietClose(t *testing.T) {
	for name, tc := range map[string]struct {
		fast  bool
		do    func(r *rig, c *proxytest.Client, p *proxytest.Peer)
		quiet bool
	}{
		"published":         {true, func(r *rig, c *proxytest.Client, p *proxytest.Peer) { r.must(c.Publish(1, "", "q", nil)) }, true},
		"fast_close is off": {false, func(r *rig, c *proxytest.Client, p *proxytest.Peer) { r.must(c.Publish(1, "", "q", nil)) }, false},
		"unconfirmed publish": {true, func(r *rig, c *proxytest.Client, p *proxytest.Peer) {
			r.must(c.Confirm(1))
			r.must(c.Publish(1, "", "q", nil))
		}, false},
		"call unanswered": {true, func(r *rig, c *proxytest.Client, p *proxytest.Peer) {
			r.must(c.SendMethod(1, amqp.QueueDeclare, 0, "q", 0, nil))
		}, false},
		"mandatory publish": {true, func(r *rig, c *proxytest.Client, p *proxytest.Peer) {
			r.must(c.Send(proxytest.Method(1, amqp.BasicPublish, 0, "", "q", 1), proxytest.Header(1, 0)))
		}, false},
		"unacked message": {true, func(r *rig, c *proxytest.Client, p *proxytest.Peer) {
			r.must(c.SendMethod(1, amqp.BasicGet, 0, "q", 0))
			id := p.OpenChannel()
			p.Expect(amqp.BasicGet)
			p.Send(proxytest.Method(id, amqp.BasicGetOk, 1, 0, "", "q", 0), proxytest.Header(id, 0))
			_, err := c.Await(1, amqp.BasicGetOk)
			r.must(err)
		}, false},
		"acked message": {true, func(r *rig, c *proxytest.Client, p *proxytest.Peer) {
			r.must(c.SendMethod(1, amqp.BasicGet, 0, "q", 0))
			id := p.OpenChannel()
			p.Expect(amqp.BasicGet)
			p.Send(proxytest.Method(id, amqp.BasicGetOk, 1, 0, "", "q", 0), proxytest.Header(id, 0))
			_, err := c.Await(1, amqp.BasicGetOk)
			r.must(err)
			r.must(c.Ack(1, 1, false))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			withScript(t, 0, func(c *Config) { c.FastClose = tc.fast }, func(r *rig) {
				c, p := r.pair(proxytest.ClientConfig{})
				tc.do(r, c, p)
				r.must(c.SendMethod(1, amqp.ChannelClose, 200, "", 0, 0))
				r.sc.Wait("channel.close", func(rs []proxytest.Record) bool { return proxytest.Count(rs, amqp.ChannelClose) == 1 })
				in := readRaw(c.Conn())
				time.Sleep(100 * time.Millisecond)
				if n := in.count(isMethod(amqp.ChannelCloseOk)); (n == 1) != tc.quiet {
					t.Errorf("answered at once: %v, want %v", n == 1, tc.quiet)
				}
				time.Sleep(6 * time.Second) // the broker never answers: bounded all the same
				if n := in.count(isMethod(amqp.ChannelCloseOk)); n != 1 {
					t.Errorf("%d close-ok came in close_timeout, want 1", n)
				}
				_ = c.Hangup()
			})
		})
	}
}

// A channel that moves names the queue it declared last, with or without awaiting the
// answer, the broker's name for it included.
func TestMovedChannelKnowsItsLastQueue(t *testing.T) {
	const noWait = 1 << 4
	for _, tc := range []struct {
		declare, want string
	}{{"b", "b"}, {"", "amq.gen-1"}} {
		withScript(t, 0, nil, func(r *rig) {
			c, p := r.pair(proxytest.ClientConfig{})
			r.must(c.SendMethod(1, amqp.QueueDeclare, 0, "a", 0, nil))
			id := p.OpenChannel()
			p.Expect(amqp.QueueDeclare)
			// The second declaration follows before the first is answered.
			r.must(c.SendMethod(1, amqp.QueueDeclare, 0, tc.declare, noWait, nil))
			p.Expect(amqp.QueueDeclare)
			p.SendMethod(id, amqp.QueueDeclareOk, "a", 0, 0)
			_, err := c.Await(1, amqp.QueueDeclareOk)
			r.must(err)
			r.must(c.SendMethod(1, amqp.BasicConsume, 0, "", "t", 2, nil)) // no-ack: a session
			if tc.declare == "" {
				p.SendMethod(id, amqp.QueueDeclareOk, tc.want, 0, 0)
			}
			q := r.sc.AcceptOpen()
			p.ExpectOn(id, amqp.ChannelClose)
			p.SendMethod(id, amqp.ChannelCloseOk)
			q.OpenChannel()
			a := amqp.ReadArgs(q.Expect(amqp.BasicConsume))
			a.Short()
			if name := string(a.Str()); name != tc.want {
				t.Errorf("the consumer is of queue %q, want %q", name, tc.want)
			}
			_ = c.Hangup()
		})
	}
}

// A channel that the broker closes while it waits to move goes nowhere.
func TestChannelClosedWhileItMoves(t *testing.T) {
	const noWait = 1 << 4
	withScript(t, 4<<10, nil, func(r *rig) {
		done := make(chan *proxytest.Client)
		go func() {
			c, err := r.login(proxytest.ClientConfig{})
			if err != nil {
				t.Error(err)
			}
			done <- c
		}()
		p := r.sc.Accept()
		p.OpenTuned(amqp.Tune{ChannelMax: 100, FrameMax: 131072})
		a := <-done
		r.must(a.OpenChannel(1))
		d := r.client(proxytest.ClientConfig{})
		c := r.client(proxytest.ClientConfig{})
		r.must(c.SendMethod(1, amqp.QueueDeclare, 0, "missing", 1|noWait, nil))
		id := p.OpenChannel()
		p.Expect(amqp.QueueDeclare)
		p.Hold()
		small := proxytest.PublishBytes(1, "", "q", make([]byte, 20_000), 0)
		r.must(a.Send(small)) // its reader writes, and waits
		synctest.Wait()
		for range 20 {
			r.must(d.Send(small)) // this one fills the queue
			synctest.Wait()
		}
		r.must(c.Send(proxytest.Method(1, amqp.QueueDeclare, 0, "other", noWait, nil), proxytest.Method(1, amqp.BasicGet, 0, "q", 1)))
		synctest.Wait() // the get is to go where readers are
		p.Send(proxytest.CloseBytes(id, 404, "NOT_FOUND - no queue 'missing'", amqp.QueueDeclare))
		synctest.Wait()
		p.Read()
		e, err := c.Closed(1)
		r.must(err)
		r.hears(e, 404, "missing")
		synctest.Wait()
		if n := r.sc.Accepted(); n != 1 {
			t.Errorf("%d connections, want 1: the closed channel has moved", n)
		}
		_ = a.Hangup()
		_ = d.Hangup()
		_ = c.Hangup()
		r.sc.Wait("two closes", func(rs []proxytest.Record) bool { return proxytest.Count(rs, amqp.ChannelClose) == 2 })
	})
}

// The name that the broker gives a consumer is that consumer's, whatever was asked before.
func TestConsumersAreNamedInOrder(t *testing.T) {
	withScript(t, 0, func(c *Config) { c.Listeners[0].Mode = PoolShared }, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		r.must(c.Send(proxytest.Method(1, amqp.BasicConsume, 0, "q", "t", 0, nil), proxytest.Method(1, amqp.BasicCancel, "t", 0),
			proxytest.Method(1, amqp.BasicConsume, 0, "q", "", 0, nil)))
		id := p.OpenChannel()
		p.Expect(amqp.BasicConsume)
		p.Expect(amqp.BasicCancel)
		p.Expect(amqp.BasicConsume)
		p.SendMethod(id, amqp.BasicConsumeOk, "t")
		p.SendMethod(id, amqp.BasicCancelOk, "t")
		p.SendMethod(id, amqp.BasicConsumeOk, "amq.ctag-1")
		synctest.Wait()
		r.must(c.SendMethod(1, amqp.BasicConsume, 0, "q", "t", 0, nil)) // its tag is free again
		p.Expect(amqp.BasicConsume)
		p.SendMethod(id, amqp.BasicConsumeOk, "t")
		synctest.Wait()
		r.must(c.SendMethod(1, amqp.BasicConsume, 0, "q", "amq.ctag-1", 0, nil)) // this one's is not
		e, err := c.Closed(0)
		r.must(err)
		r.hears(e, amqp.NotAllowed, "attempt to reuse consumer tag 'amq.ctag-1'")
		_ = c.Hangup()
	})
}

// A client that needs a connection of its own gets one at the bound too, if all that is in
// use is what it gives up for it.
func TestSessionAtTheBound(t *testing.T) {
	for _, setting := range []string{"max_upstreams", "max_upstreams_per_identity"} {
		for _, declared := range []bool{false, true} {
			withBroker(t, proxytest.BrokerConfig{}, func(c *Config) {
				if setting == "max_upstreams" {
					c.MaxUpstreams = 1
				} else {
					c.MaxUpstreamsPerIdentity = 1
				}
			}, func(r *rig) {
				c := r.client(proxytest.ClientConfig{})
				if declared {
					_, err := c.DeclareQueue(1, "q", 0)
					r.must(err)
				}
				began := time.Now()
				_, err := c.DeclareQueue(1, "mine", proxytest.Exclusive)
				if err != nil || time.Since(began) > time.Second {
					t.Errorf("%s = 1, declared %v: got %v after %v", setting, declared, err, time.Since(began))
				}
				_ = c.Close()
			})
		}
	}
}

// A channel that acks where there is nothing to settle hears what the broker says of it: it
// does not move away from that.
func TestAckKeepsAChannelWhereItIs(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		r.must(c.Send(
			proxytest.Method(1, amqp.BasicNack, 7, 0),
			proxytest.Method(1, amqp.BasicConsume, 0, "q", "t", 2, nil)))
		id := p.OpenChannel()
		p.ExpectOn(id, amqp.BasicNack)
		own := r.sc.AcceptOpen() // for the consumer, who needs one
		p.ExpectOn(id, amqp.BasicConsume)
		p.Send(proxytest.CloseBytes(id, 406, "PRECONDITION_FAILED - unknown delivery tag 7", amqp.BasicNack))
		p.ExpectOn(id, amqp.ChannelCloseOk)
		e, err := c.Closed(1)
		r.must(err)
		r.hears(e, 406, "unknown delivery tag")
		own.ExpectNothing(time.Second)
		r.must(c.Close())
	})
}

// What the broker says to a declaration without an answer is heard although the channel
// moves right behind it: to a session, or from the publishers to the readers.
func TestRefusedBeforeItMoves(t *testing.T) {
	for name, next := range map[string][]byte{
		"session": proxytest.Method(1, amqp.BasicConsume, 0, "q", "t", 2, nil),
		"readers": proxytest.Method(1, amqp.BasicGet, 0, "q", 0),
	} {
		withScript(t, 0, nil, func(r *rig) {
			c, p := r.pair(proxytest.ClientConfig{})
			other := r.client(proxytest.ClientConfig{})
			r.must(other.Publish(1, "", "q", nil)) // the upstream stays one of publishers
			p.OpenChannel()
			p.ExpectContent(amqp.BasicPublish)
			r.must(c.Send(proxytest.Method(1, amqp.QueueBind, 0, "q", "missing", "", 1, nil), next))
			id := p.OpenChannel()
			p.ExpectOn(id, amqp.QueueBind)
			if name == "session" {
				r.sc.AcceptOpen()
			}
			p.ExpectOn(id, amqp.ChannelClose)
			p.Send(proxytest.CloseBytes(id, 404, "NOT_FOUND - no exchange 'missing'", amqp.QueueBind))
			p.ExpectOn(id, amqp.ChannelCloseOk)
			p.SendMethod(id, amqp.ChannelCloseOk)
			e, err := c.Closed(1)
			r.must(err)
			r.hears(e, 404, "missing")
			// The number is free again.
			r.must(c.OpenChannel(1))
			r.must(c.Close())
		})
	}
}

// A channel that has published moves to the session when the broker has taken all of it,
// and hears what the broker refused.
func TestPublisherMoves(t *testing.T) {
	declare := proxytest.Method(1, amqp.QueueDeclare, 0, "mine", proxytest.Exclusive, nil)
	for _, refused := range []bool{false, true} {
		withScript(t, 0, nil, func(r *rig) {
			c, p := r.pair(proxytest.ClientConfig{})
			r.must(c.Publish(1, "amq.direct", "q", []byte("x")))
			id := p.OpenChannel()
			p.ExpectContent(amqp.BasicPublish)
			r.must(c.Send(declare))
			q := r.sc.AcceptOpen()
			p.ExpectOn(id, amqp.ChannelClose)
			if refused {
				p.Send(proxytest.CloseBytes(id, 404, "NOT_FOUND - no exchange", amqp.BasicPublish))
				p.ExpectOn(id, amqp.ChannelCloseOk)
				p.SendMethod(id, amqp.ChannelCloseOk)
				e, err := c.Closed(1)
				r.must(err)
				r.hears(e, 404, "no exchange")
			} else {
				q.ExpectNothing(time.Second)
				p.SendMethod(id, amqp.ChannelCloseOk)
				on := q.OpenChannel()
				q.ExpectOn(on, amqp.QueueDeclare)
			}
			_ = c.Hangup()
		})
	}
}

// Channels that move together are waited for together: one round trip, however many.
func TestPublishersMoveTogether(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		var ids []uint16
		for ch := uint16(1); ch <= 3; ch++ {
			if ch > 1 {
				r.must(c.OpenChannel(ch))
			}
			r.must(c.Publish(ch, "", "q", nil))
			ids = append(ids, p.OpenChannel())
			p.ExpectContent(amqp.BasicPublish)
		}
		r.must(c.Send(proxytest.Method(1, amqp.QueueDeclare, 0, "mine", proxytest.Exclusive, nil)))
		q := r.sc.AcceptOpen()
		r.sc.Wait("three closes", func(rs []proxytest.Record) bool { return proxytest.Count(rs, amqp.ChannelClose) == 3 })
		q.ExpectNothing(time.Second)
		for _, id := range ids {
			p.SendMethod(id, amqp.ChannelCloseOk)
		}
		on := q.OpenChannel()
		q.ExpectOn(on, amqp.QueueDeclare)
		_ = c.Hangup()
	})
}

package proxy

import (
	"strings"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// queueMethods are the methods that may rely on the queue declared last.
var queueMethods = map[amqp.Method][]byte{
	amqp.BasicGet:     proxytest.Method(1, amqp.BasicGet, 0, "", 0),
	amqp.BasicConsume: append(amqp.AppendQos(nil, 1, 10, false), proxytest.Method(1, amqp.BasicConsume, 0, "", "t", 0, nil)...),
	amqp.QueueBind:    proxytest.Method(1, amqp.QueueBind, 0, "", "amq.direct", "key", 0, nil),
	amqp.QueueUnbind:  proxytest.Method(1, amqp.QueueUnbind, 0, "", "amq.direct", "key", nil),
	amqp.QueuePurge:   proxytest.Method(1, amqp.QueuePurge, 0, "", 0),
	amqp.QueueDelete:  proxytest.Method(1, amqp.QueueDelete, 0, "", 0),
}

func queueOf(f amqp.Frame) string {
	a := amqp.ReadArgs(f)
	a.Short()
	return string(a.Str())
}

// A broker may remember the queue declared last per connection: a method without a queue
// name never reaches one, it would be another client's queue there.
func TestNoQueueNameIsLeftToTheBroker(t *testing.T) {
	for m, method := range queueMethods {
		for _, mode := range []PoolMode{PoolAuto, PoolShared, PoolSession} {
			set := func(c *Config) { c.Listeners[0].Mode = mode }
			withScript(t, 0, set, func(r *rig) { // nothing was declared
				c, p := r.pair(proxytest.ClientConfig{})
				other := c
				if mode != PoolSession {
					other = r.client(proxytest.ClientConfig{})
				} else {
					r.must(c.OpenChannel(2))
				}
				on := uint16(1)
				if other == c {
					on = 2
				}
				r.must(other.SendMethod(on, amqp.QueueDeclare, 0, "another's", 0, nil))
				id := p.OpenChannel()
				p.Expect(amqp.QueueDeclare)
				p.SendMethod(id, amqp.QueueDeclareOk, "another's", 0, 0)
				_, err := other.Await(on, amqp.QueueDeclareOk)
				r.must(err)
				r.must(c.Send(method))
				e, err := c.Closed(1)
				r.must(err)
				r.hears(e, amqp.NotFound, "NOT_FOUND - no previously declared queue")
				if e.Method != m {
					t.Errorf("%v: the method named is %v", m, e.Method)
				}
				time.Sleep(time.Second)
				if n := proxytest.Count(r.sc.Records(), m); n != 0 {
					t.Errorf("%v in mode %s: the broker was asked\n%s", m, mode, r.sc.Log())
				}
				_ = c.Hangup()
				if other != c {
					_ = other.Hangup()
				}
			})
			for _, early := range []bool{false, true} {
				withScript(t, 0, set, func(r *rig) {
					c, p := r.pair(proxytest.ClientConfig{})
					declare := proxytest.Method(1, amqp.QueueDeclare, 0, "", 0, nil)
					if early {
						r.must(c.Send(declare, method)) // the name is not known yet
					} else {
						r.must(c.Send(declare))
					}
					id := p.OpenChannel()
					p.Expect(amqp.QueueDeclare)
					if early {
						time.Sleep(time.Second)
						if proxytest.Count(r.sc.Records(), m) != 0 {
							t.Errorf("%v does not wait for the name", m)
						}
					}
					p.SendMethod(id, amqp.QueueDeclareOk, "amq.gen-1", 0, 0)
					_, err := c.Await(1, amqp.QueueDeclareOk)
					r.must(err)
					if !early {
						r.must(c.Send(method))
					}
					r.sc.Wait("the method", func(rs []proxytest.Record) bool { return proxytest.Count(rs, m) == 1 })
					for _, rec := range r.sc.Records() {
						if f := rec.Frame; f.Type() == amqp.FrameMethod && f.Method() == m && queueOf(f) != "amq.gen-1" {
							t.Errorf("%v in mode %s: the queue is %q, want the one declared last", m, mode, queueOf(f))
						}
					}
					_ = c.Hangup()
				})
			}
		}
	}
}

// A declaration that the broker refuses takes what relies on it along.
func TestQueueNameOfARefusedDeclaration(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		r.must(c.Send(proxytest.Method(1, amqp.QueueDeclare, 0, "q", 0, nil), proxytest.Method(1, amqp.QueuePurge, 0, "", 0)))
		id := p.OpenChannel()
		p.Expect(amqp.QueueDeclare)
		p.Send(proxytest.CloseBytes(id, 406, "PRECONDITION_FAILED - inequivalent arg", amqp.QueueDeclare))
		p.ExpectOn(id, amqp.ChannelCloseOk)
		e, err := c.Closed(1)
		r.must(err)
		r.hears(e, 406, "inequivalent")
		p.ExpectNothing(time.Second)
		r.must(c.OpenChannel(1))
		r.must(c.Close())
	})
}

// What a client declares without a name and without an answer has a name all the same: the
// broker is asked for it, and the client hears nothing.
func TestQueueNamedByTheBrokerWithoutAnswer(t *testing.T) {
	const noWait = 1 << 4
	withScript(t, 0, nil, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		r.must(c.Send(proxytest.Method(1, amqp.QueueDeclare, 0, "", noWait, nil), proxytest.Method(1, amqp.QueuePurge, 0, "", 0)))
		id := p.OpenChannel()
		if f := p.Expect(amqp.QueueDeclare); f.Args()[3]&noWait != 0 {
			t.Error("the broker is asked for no answer")
		}
		p.ExpectNothing(time.Second)
		p.SendMethod(id, amqp.QueueDeclareOk, "amq.gen-1", 0, 0)
		if name := queueOf(p.Expect(amqp.QueuePurge)); name != "amq.gen-1" {
			t.Errorf("queue %q is purged", name)
		}
		p.SendMethod(id, amqp.QueuePurgeOk, 7)
		if f, err := c.Next(); err != nil || f.Method() != amqp.QueuePurgeOk {
			t.Errorf("the client hears %s, %v, want purge-ok alone", proxytest.Describe(f), err)
		}
		_ = c.Hangup()
	})
}

// A broker that never answers a declaration is not waited for without end.
func TestQueueNameThatNeverComes(t *testing.T) {
	withScript(t, 0, func(c *Config) { c.WriteTimeout = 3 * time.Second }, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		r.must(c.Send(proxytest.Method(1, amqp.QueueDeclare, 0, "", 0, nil), proxytest.Method(1, amqp.QueuePurge, 0, "", 0)))
		p.OpenChannel()
		p.Expect(amqp.QueueDeclare)
		e, err := c.Closed(0)
		r.must(err)
		r.hears(e, amqp.ConnectionForced, "queue.declare")
		_ = c.Hangup()
	})
}

// What the broker says to a publish before a refusal of the proxy's own is heard, and not the refusal.
func TestRefusalComesBehindTheBrokersWord(t *testing.T) {
	for _, refused := range []bool{false, true} {
		withScript(t, 0, nil, func(r *rig) {
			c, p := r.pair(proxytest.ClientConfig{})
			r.must(c.Publish(1, "missing", "q", nil))
			r.must(c.SendMethod(1, amqp.QueueDelete, 0, "", 0))
			id := p.OpenChannel()
			p.ExpectContent(amqp.BasicPublish)
			p.ExpectOn(id, amqp.BasicQos)
			want := "no previously declared queue"
			if refused {
				want = "no exchange"
				p.Send(amqp.AppendClose(nil, id, amqp.Errorf(amqp.NotFound, amqp.BasicPublish, "no exchange 'missing' in vhost '/'")))
				p.ExpectOn(id, amqp.ChannelCloseOk)
			} else {
				p.SendMethod(id, amqp.BasicQosOk)
				p.ExpectOn(id, amqp.ChannelClose)
			}
			e, err := c.Closed(1)
			r.must(err)
			if !strings.Contains(e.Text, want) {
				t.Errorf("the client hears %q, want %q", e.Text, want)
			}
			_ = c.Hangup()
		})
	}
}

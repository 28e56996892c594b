// How connections end. A client's: as RabbitMQ's would, by a reset where the client broke the
// rules or gave no sign of life, so that its next write fails, and else by an end of file.

package proxy

import (
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

func TestEndsOfClients(t *testing.T) {
	deaf := proxytest.ClientConfig{Properties: amqp.AppendTableField(nil, "capabilities", nil), Password: "wrong"}
	for _, x := range []struct {
		name  string
		reset bool
		make  func(r *rig) *proxytest.Client
		wait  time.Duration
	}{
		{"no heartbeat", true, func(r *rig) *proxytest.Client {
			return r.client(proxytest.ClientConfig{Heartbeat: 1})
		}, 3 * time.Second},
		{"no protocol header", true, func(r *rig) *proxytest.Client {
			return r.connect(proxytest.ClientConfig{})
		}, 11 * time.Second},
		{"half a handshake", true, func(r *rig) *proxytest.Client {
			c := r.connect(proxytest.ClientConfig{})
			r.must(c.Send(amqp.ProtocolHeader[:]))
			_, err := c.Await(0, amqp.ConnectionStart)
			r.must(err)
			return c
		}, 11 * time.Second},
		{"no answer to connection.close", true, func(r *rig) *proxytest.Client {
			c := r.client(proxytest.ClientConfig{})
			r.must(c.SendMethod(0, amqp.ConnectionOpenOk, ""))
			_, err := c.Await(0, amqp.ConnectionClose)
			var e *amqp.Error
			if err != nil && !errors.As(err, &e) {
				r.t.Fatal(err)
			}
			return c
		}, 2 * time.Second},
		{"refused without a word", true, func(r *rig) *proxytest.Client {
			c := r.connect(deaf)
			if err := c.Handshake(); !errors.Is(err, syscall.ECONNRESET) {
				r.t.Errorf("the refused client hears %v", err)
			}
			return c
		}, 2 * time.Second},
		{"its own connection.close, and the socket left open", false, func(r *rig) *proxytest.Client {
			c := r.client(proxytest.ClientConfig{})
			r.must(c.SendMethod(0, amqp.ConnectionClose, 200, "", 0, 0))
			_, err := c.Await(0, amqp.ConnectionCloseOk)
			r.must(err)
			return c
		}, 2 * time.Second},
		{"connection.close amid the handshake", false, func(r *rig) *proxytest.Client {
			c := r.connect(proxytest.ClientConfig{})
			r.must(c.Send(amqp.ProtocolHeader[:]))
			_, err := c.Await(0, amqp.ConnectionStart)
			r.must(err)
			r.must(c.SendMethod(0, amqp.ConnectionClose, 200, "", 0, 0))
			_, err = c.Await(0, amqp.ConnectionCloseOk)
			r.must(err)
			return c
		}, 2 * time.Second},
		{"an answer to connection.close", false, func(r *rig) *proxytest.Client {
			c := r.client(proxytest.ClientConfig{})
			r.must(c.SendMethod(0, amqp.ConnectionOpenOk, ""))
			_, err := c.Await(0, amqp.ConnectionClose)
			var e *amqp.Error
			if err != nil && !errors.As(err, &e) {
				r.t.Fatal(err)
			}
			r.must(c.SendMethod(0, amqp.ConnectionCloseOk))
			return c
		}, 2 * time.Second},
	} {
		t.Run(x.name, func(t *testing.T) {
			withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
				c := x.make(r)
				time.Sleep(x.wait)
				_, err := c.Conn().Read(make([]byte, 1))
				if want := map[bool]error{true: syscall.ECONNRESET, false: io.EOF}[x.reset]; !errors.Is(err, want) {
					t.Errorf("the client reads %v, want %v", err, want)
				}
				_ = c.Hangup()
			})
		})
	}
}

// LavinMQ answers connection.close before it deletes the exclusive queues: the owner's client
// hears close-ok when they are gone.
func TestExclusiveQueuesAreGoneAtCloseOk(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{Flavour: proxytest.LavinMQ}, nil, func(r *rig) {
		next := r.client(proxytest.ClientConfig{})
		for i := range 5 {
			c := r.client(proxytest.ClientConfig{})
			_, err := c.DeclareQueue(1, "x", proxytest.Exclusive)
			r.must(err)
			began := time.Now()
			r.must(c.Close())
			if took := time.Since(began); took > endGrace {
				t.Errorf("the close took %v", took)
			}
			r.must(next.OpenChannel(uint16(i + 2)))
			if _, err := next.DeclareQueue(uint16(i+2), "x", 0); err != nil {
				t.Fatalf("right after its owner's close-ok: %v", err)
			}
			r.must(next.Call(proxytest.Method(uint16(i+2), amqp.QueueDelete, 0, "x", 0), amqp.QueueDeleteOk))
		}
		r.must(next.Close())
	})
	// A broker that leaves the socket open costs no more than a moment, RabbitMQ nothing.
	for product, most := range map[string]time.Duration{"": 0, "Other": endGrace} {
		withScript(t, 0, nil, func(r *rig) {
			r.sc.Product = product
			c, p := r.pair(proxytest.ClientConfig{})
			r.must(c.SendMethod(1, amqp.QueueDeclare, 0, "x", 4, nil))
			q := r.sc.AcceptOpen()
			id := q.OpenChannel()
			q.Expect(amqp.QueueDeclare)
			q.SendMethod(id, amqp.QueueDeclareOk, "x", 0, 0)
			_, err := c.Await(1, amqp.QueueDeclareOk)
			r.must(err)
			r.must(c.SendMethod(0, amqp.ConnectionClose, 200, "", 0, 0))
			q.Expect(amqp.ChannelClose)
			q.SendMethod(id, amqp.ChannelCloseOk)
			q.Expect(amqp.ConnectionClose)
			began := time.Now()
			q.SendMethod(0, amqp.ConnectionCloseOk)
			_, err = c.Await(0, amqp.ConnectionCloseOk)
			r.must(err)
			if took := time.Since(began); took > most {
				t.Errorf("%q: close-ok came after %v, want %v", product, took, most)
			}
			_ = c.Hangup()
			_ = p
		})
	}
}

// The end of an upstream has one line: lost, where the broker ended it, and else closed.
func TestAnUpstreamsEndHasOneLine(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		_, p := r.pair(proxytest.ClientConfig{})
		p.Cut()
		synctest.Wait()
		if l := r.log(); strings.Count(l, `msg="upstream lost"`) != 1 || strings.Contains(l, `msg="upstream closed"`) {
			t.Errorf("logged\n%s", l)
		}
	})
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		_ = r.client(proxytest.ClientConfig{}).Hangup()
		time.Sleep(r.s.cfg().IdleTimeout + time.Minute)
		if l := r.log(); strings.Count(l, `msg="upstream closed"`) != 1 || strings.Contains(l, `msg="upstream lost"`) {
			t.Errorf("logged\n%s", l)
		}
	})
}

// The janitor may come again before the reader of a client that it ended has left.
func TestTheEndOfAHandshakeIsSaidOnce(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		_ = r.connect(proxytest.ClientConfig{})
		synctest.Wait()
		all := r.s.clients.appendTo(nil, func(*client) bool { return true })
		time.Sleep(r.s.cfg().HandshakeTimeout + time.Second)
		for _, c := range all {
			c.tend()
		}
		if n := strings.Count(r.log(), "its handshake took too long"); len(all) != 1 || n != 1 {
			t.Errorf("%d clients, said %d times:\n%s", len(all), n, r.log())
		}
	})
}

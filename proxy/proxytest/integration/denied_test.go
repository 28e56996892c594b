// RabbitMQ 4.3 that refuses a deprecated feature, as its operator may tell it to and newer
// versions are to do by themselves: what uses it is a hard error, which is the user's alone.

//go:build linux

package integration

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	wire "github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// A route makes of the plain declares of applications that were written for older versions what 4.3 takes.
func rewritten(t *testing.T, b *rabbit.Broker) {
	p := startProxy(t, true, b.URL(), "[[route]]\nvhost = \"*\"\ndurable = true\nqueue_type = \"quorum\"\n")
	c, err := proxytest.Dial(proxytest.ClientConfig{Addr: p.addr, Timeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Abort() })
	err = errors.Join(c.OpenChannel(1), c.Confirm(1))
	for range 2 { // the second is of a queue that is there
		if err == nil {
			_, err = c.DeclareQueue(1, "rewritten", 0)
		}
	}
	if err == nil {
		err = errors.Join(c.Publish(1, "", "rewritten", []byte("x")), c.WaitConfirms(1))
	}
	if err == nil {
		_, err = c.DeclareQueue(1, "own", proxytest.Exclusive)
	}
	if err != nil {
		t.Fatal(err)
	}
	out, err := b.Eval(`[{amqqueue:is_durable(Q), amqqueue:get_type(Q)} || Q <- rabbit_amqqueue:list(), element(4, amqqueue:get_name(Q)) =:= <<"rewritten">>].`)
	if err != nil || out != "[{true, rabbit_quorum_queue}]" {
		t.Errorf("the queue is %s, %v; want durable and of type quorum", out, err)
	}
	if n := p.metric(t, "amqproxysvc_declares_rewritten_total"); n != 2 {
		t.Errorf("%v declares are counted, want 2", n)
	}
	t.Logf("FIGURE RabbitMQ %s with transient queues denied, a route with durable and queue_type: a transient declare makes %s", rabbit.V43, out)
}

// A plain declare of a transient queue ends its client's connection in the broker's words, and
// nobody else's, not even the first time; nor is anybody kept apart for it.
func TestDeniedTransientQueues(t *testing.T) {
	if err := rabbit.Available(rabbit.V43); err != nil {
		rabbit.Skip(t, err)
	}
	b, err := rabbit.Start(rabbit.V43, rabbit.WithSettings("deprecated_features.permit.transient_nonexcl_queues = false\n"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)

	if !straight {
		t.Run("rewritten", func(t *testing.T) { rewritten(t, b) })
	}
	const tenants, offenders = 10, 6
	words := map[string]string{} // the broker's
	for _, via := range []string{"straight", "auto", "shared", "session"} {
		t.Run(via, func(t *testing.T) {
			addr := b.Addr()
			if via != "straight" {
				addr = startProxy(t, true, b.URL(), fmt.Sprintf("[[listener]]\npool_mode = %q\n", via)).addr
			}
			connect := func() *proxytest.Client {
				t.Helper()
				c, err := proxytest.Dial(proxytest.ClientConfig{Addr: addr, Timeout: patience})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Abort() })
				if err := c.OpenChannel(1); err != nil {
					t.Fatal(err)
				}
				return c
			}
			work := func(c *proxytest.Client) error {
				return errors.Join(c.Publish(1, "", "kept", []byte("x")), c.WaitConfirms(1))
			}
			var at []*proxytest.Client
			for range tenants {
				c := connect()
				_, err := c.DeclareQueue(1, "kept", proxytest.Durable)
				if err := errors.Join(err, c.Confirm(1), work(c)); err != nil {
					t.Fatal(err)
				}
				at = append(at, c)
			}
			closed := 0
			for i := range offenders {
				c := connect()
				if i%2 == 1 { // one whose channel cannot move
					if err := errors.Join(c.Confirm(1), work(c)); err != nil {
						t.Fatal(err)
					}
				}
				feature, bits, args := "`transient_nonexcl_queues`", 0, []byte(nil)
				if i >= offenders-2 { // what 4.3 denies by itself
					feature, bits, args = "`queue_master_locator`", proxytest.Durable, wire.AppendStringField(nil, "x-queue-master-locator", "min-masters")
				}
				err := c.Call(proxytest.Method(1, wire.QueueDeclare, 0, "passing", bits, args), wire.QueueDeclareOk)
				var e *wire.Error
				if !errors.As(err, &e) || e.Code != wire.InternalError || !strings.Contains(e.Text, feature) {
					t.Fatalf("a declare with %s: %v, want 541 with the broker's words", feature, err)
				}
				if words[feature] == "" {
					words[feature] = e.Text
				}
				if e.Text != words[feature] {
					t.Errorf("said %q, straight %q", e.Text, words[feature])
				}
				for i, c := range at {
					if c == nil {
						continue
					}
					if err := work(c); err != nil {
						t.Errorf("tenant %d: %v", i, err)
						closed++
						at[i] = nil
					}
				}
			}
			t.Logf("FIGURE RabbitMQ %s with transient queues and master locators denied, %s: %d declares of such closed %d of %d other tenants",
				rabbit.V43, via, offenders, closed, tenants)
			// What is allowed still is, and those who have declared one are not kept apart.
			c := connect()
			if _, err := c.DeclareQueue(1, "kept", proxytest.Durable); err != nil {
				t.Error(err)
			}
			if via == "auto" || via == "shared" {
				// The tenants', and those of two who have asked. Others' ends take the broker a moment.
				eventually(t, "those of offenders are gone", func() error {
					if n := connections(t, b, 0); n > 3 {
						return fmt.Errorf("%d connections at the broker for %d clients", n, tenants+1)
					}
					return nil
				})
			}
		})
	}
}

// Exclusive queues: nobody else's, all their owner's, and gone with it: before its close
// is answered, or soon after its crash.

//go:build linux

package integration

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	wire "github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// raw connects a raw client with its channel 1 open.
func raw(t testing.TB, cfg proxytest.ClientConfig) *proxytest.Client {
	t.Helper()
	c, err := rawErr(cfg)
	if err != nil {
		t.Fatalf("%s: connect: %v", cfg.Name, err)
	}
	t.Cleanup(func() { c.Hangup() })
	return c
}

func rawErr(cfg proxytest.ClientConfig) (*proxytest.Client, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = patience
	}
	c, err := proxytest.Dial(cfg)
	if err != nil {
		return nil, err
	}
	if err := c.OpenChannel(1); err != nil {
		c.Abort()
		return nil, fmt.Errorf("channel.open: %w", err)
	}
	return c, nil
}

// verdict is what a client heard as the tests compare it: code, text and method.
func verdict(err error) string {
	var e *wire.Error
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &e) && e.Method != 0:
		return fmt.Sprintf("%d %s, by %v", e.Code, e.Text, e.Method)
	case errors.As(err, &e):
		return fmt.Sprintf("%d %s", e.Code, e.Text)
	}
	return err.Error()
}

// compare runs a script straight and through the proxy, on every broker, and wants the
// same transcript of both.
func compare(t *testing.T, settings string, script func(t *testing.T, tg *target) []string) {
	for _, v := range versions(t) {
		t.Run(string(v), func(t *testing.T) {
			b := rabbit.Get(t, v)
			var want []string
			t.Run("straight", func(t *testing.T) {
				want = script(t, &target{via: "straight", addr: b.Addr(), broker: b})
				for _, line := range want {
					t.Log(line)
				}
			})
			if straight {
				return
			}
			t.Run("proxy", func(t *testing.T) {
				p := startProxy(t, true, b.URL(), settings)
				bird := proxytest.NewCanary(t, proxytest.ClientConfig{Addr: p.addr, Timeout: patience})
				bird.Sing()
				got := script(t, &target{via: "proxy", addr: p.addr, broker: b, proxy: p})
				for i := range max(len(got), len(want)) {
					switch {
					case i >= len(got):
						t.Errorf("straight only: %s", want[i])
					case i >= len(want):
						t.Errorf("through the proxy only: %s", got[i])
					case got[i] != want[i]:
						t.Errorf("straight: %s\nthrough the proxy: %s", want[i], got[i])
					}
				}
				bird.Sing()
				canary(t, p.addr)
			})
		})
	}
}

// Everybody else is told 405, whatever they try, in the broker's words.
func TestExclusiveQueueOfAnother(t *testing.T) {
	compare(t, "", func(t *testing.T, tg *target) (heard []string) {
		owner := raw(t, proxytest.ClientConfig{Addr: tg.addr, Name: "owner"})
		const q = "exclusive-of-another"
		if _, err := owner.DeclareQueue(1, q, proxytest.Exclusive); err != nil {
			t.Fatalf("declare: %v", err)
		}
		if err := owner.Publish(1, "", q, []byte("mine")); err != nil {
			t.Fatal(err)
		}
		other := raw(t, proxytest.ClientConfig{Addr: tg.addr, Name: "other"})
		for i, try := range []struct {
			what string
			do   func(ch uint16) error
		}{
			{"declare", func(ch uint16) error { _, err := other.DeclareQueue(ch, q, 0); return err }},
			{"declare exclusive", func(ch uint16) error { _, err := other.DeclareQueue(ch, q, proxytest.Exclusive); return err }},
			{"declare passive", func(ch uint16) error { _, err := other.QueueLength(ch, q); return err }},
			{"get", func(ch uint16) error { _, err := other.Get(ch, q, true); return err }},
			{"consume with a prefetch", func(ch uint16) error {
				if err := other.Qos(ch, 10); err != nil {
					return err
				}
				_, err := other.Consume(ch, q, "t", false)
				return err
			}},
			{"consume no-ack", func(ch uint16) error { _, err := other.Consume(ch, q, "t", true); return err }},
			{"purge", func(ch uint16) error {
				return other.Call(proxytest.Method(ch, wire.QueuePurge, 0, q, 0), wire.QueuePurgeOk)
			}},
			{"bind", func(ch uint16) error {
				return other.Call(proxytest.Method(ch, wire.QueueBind, 0, q, "amq.fanout", "", 0, nil), wire.QueueBindOk)
			}},
			{"delete", func(ch uint16) error { return other.DeleteQueue(ch, q) }},
		} {
			ch := uint16(10 + i)
			if err := other.OpenChannel(ch); err != nil {
				t.Fatalf("%s: channel.open: %v", try.what, err)
			}
			heard = append(heard, try.what+": "+verdict(try.do(ch)))
		}
		if m, err := owner.Get(1, q, true); err != nil || string(m.Body) != "mine" {
			t.Errorf("the owner gets %v, %v", m, err)
		}
		if err := owner.Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
		// 4.3 keeps its metadata in Khepri, where the queue's end is seen a little after
		// close-ok; straight too.
		for ch := uint16(100); ; ch++ {
			err := other.OpenChannel(ch)
			if err == nil {
				_, err = other.DeclareQueue(ch, q, proxytest.Exclusive)
			}
			if err == nil {
				break
			}
			var e *wire.Error
			if tg.broker.Version != rabbit.V43 || ch == 200 || !errors.As(err, &e) || e.Code != wire.ResourceLocked {
				t.Errorf("after the owner's close another declares it: %v", err)
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if err := other.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		return heard
	})
}

// The queue serves every channel of its client: opened before or after, fresh or in use.
func TestExclusiveQueueOnAllChannels(t *testing.T) {
	each(t, "", func(t *testing.T, tg *target) {
		for _, named := range []string{"exclusive-on-all-channels", ""} {
			c := raw(t, proxytest.ClientConfig{Addr: tg.addr, Name: "owner"})
			must := func(what string, err error) {
				t.Helper()
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
			}
			for ch := uint16(2); ch <= 5; ch++ {
				must("open", c.OpenChannel(ch))
			}
			must("qos", c.Qos(3, 5))
			must("confirm", c.Confirm(4))
			if _, err := c.DeclareQueue(5, "", proxytest.AutoDelete); err != nil {
				t.Fatal(err)
			}
			q, err := c.DeclareQueue(1, named, proxytest.Exclusive)
			must("declare", err)
			must("open", c.OpenChannel(6))
			for ch := uint16(1); ch <= 6; ch++ {
				if ch != 4 {
					must("confirm", c.Confirm(ch))
				}
				body := fmt.Appendf(nil, "by %d", ch)
				must("publish", c.Publish(ch, "", q, body))
				must("confirm of a publish", c.WaitConfirms(ch))
				if n, err := c.QueueLength(ch, q); err != nil || n != 1 {
					t.Fatalf("channel %d: %d messages, %v", ch, n, err)
				}
				m, err := c.Get(ch, q, true)
				if err != nil || string(m.Body) != string(body) {
					t.Fatalf("channel %d: got %v, %v", ch, m, err)
				}
				must("publish", c.Publish(ch, "", q, body))
				tag, err := c.Consume(ch, q, "", false)
				must("consume", err)
				d, err := c.Delivery(ch)
				if err != nil || string(d.Body) != string(body) {
					t.Fatalf("channel %d: delivered %v, %v", ch, d, err)
				}
				must("ack", c.Ack(ch, d.Tag, false))
				must("cancel", c.Cancel(ch, tag))
			}
			must("close", c.Close())
		}
		canary(t, tg.addr)
	})
}

// After close-ok the queue is gone: asked at once, straight at the broker and by another
// client on the same way.
func TestExclusiveQueueGoneAfterClose(t *testing.T) {
	rounds := count(30, 300)
	each(t, "", func(t *testing.T, tg *target) {
		direct := raw(t, proxytest.ClientConfig{Addr: tg.broker.Addr(), Name: "observer"})
		beside := raw(t, proxytest.ClientConfig{Addr: tg.addr, Name: "beside"})
		for i := range rounds {
			q := fmt.Sprintf("exclusive-closed-%d", i)
			c := raw(t, proxytest.ClientConfig{Addr: tg.addr, Name: "owner"})
			if _, err := c.DeclareQueue(1, q, proxytest.Exclusive); err != nil {
				t.Fatalf("declare: %v", err)
			}
			if i%3 == 1 { // with a consumer and messages on their way
				if _, err := c.Consume(1, q, "t", i%2 == 0); err != nil {
					t.Fatal(err)
				}
				for range 10 {
					if err := c.Publish(1, "", q, make([]byte, 1000)); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := c.Close(); err != nil {
				t.Fatalf("close: %v", err)
			}
			for _, o := range []*proxytest.Client{direct, beside} {
				_, err := o.QueueLength(1, q)
				for asked := 0; tg.broker.Version == rabbit.V43 && !notFound(err) && asked < 100; asked++ {
					time.Sleep(20 * time.Millisecond) // Khepri shows it a little late, straight too
					if err = o.OpenChannel(1); err == nil {
						_, err = o.QueueLength(1, q)
					}
				}
				if !notFound(err) {
					t.Fatalf("round %d: right after close-ok: %v, want 404", i, verdict(err))
				}
				if err := o.OpenChannel(1); err != nil {
					t.Fatal(err)
				}
			}
		}
		canary(t, tg.addr)
	})
}

func notFound(err error) bool {
	var e *wire.Error
	return errors.As(err, &e) && e.Code == wire.NotFound
}

// A crash takes the queue with it within a second.
func TestExclusiveQueueGoneAfterCrash(t *testing.T) {
	rounds := count(10, 100)
	each(t, "", func(t *testing.T, tg *target) {
		direct := raw(t, proxytest.ClientConfig{Addr: tg.broker.Addr(), Name: "observer"})
		var took []time.Duration
		for i := range rounds {
			q := fmt.Sprintf("exclusive-crashed-%d", i)
			c := raw(t, proxytest.ClientConfig{Addr: tg.addr, Name: "owner"})
			if _, err := c.DeclareQueue(1, q, proxytest.Exclusive); err != nil {
				t.Fatalf("declare: %v", err)
			}
			if i%2 == 1 {
				if _, err := c.Consume(1, q, "t", true); err != nil {
					t.Fatal(err)
				}
			}
			at := time.Now()
			if i%3 == 0 {
				c.Hangup()
			} else {
				c.Abort()
			}
			eventually(t, "the queue is gone", func() error {
				_, err := direct.QueueLength(1, q)
				if err == nil {
					return errors.New("it is there")
				}
				if openErr := direct.OpenChannel(1); openErr != nil {
					t.Fatal(openErr)
				}
				var e *wire.Error
				if !errors.As(err, &e) || (e.Code != wire.NotFound && e.Code != wire.ResourceLocked) {
					t.Fatalf("%v", err)
				}
				if e.Code == wire.NotFound {
					return nil
				}
				return err
			})
			took = append(took, time.Since(at))
		}
		slices.Sort(took)
		worst := took[len(took)-1]
		t.Logf("FIGURE %s, RabbitMQ %s: an exclusive queue is gone %v after its owner's crash, %v at worst",
			tg.via, tg.broker.Version, took[len(took)/2].Round(time.Millisecond), worst.Round(time.Millisecond))
		if worst > time.Second+raceSlack {
			t.Errorf("gone only after %v", worst)
		}
		canary(t, tg.addr)
	})
}

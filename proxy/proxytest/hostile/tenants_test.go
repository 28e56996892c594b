//go:build linux

// Tenants: who may log in, and means harm.

package hostile

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// announce is a publish of which the content is still to come.
func announce(channel uint16, size uint64) []byte {
	return append(proxytest.Method(channel, amqp.BasicPublish, 0, "", "nowhere", 0), proxytest.Header(channel, size)...)
}

// Announcing bodies and sending them octet by octet holds up nobody's publishes.
func TestTricklers(t *testing.T) {
	r := start(t, setup{settings: "[client]\nmax_message_size = \"64MiB\"\nmessage_buffer = \"128MiB\"\n[pool]\nidle_timeout = \"1s\"\n"})
	promise(t, r.under(time.Duration(count(10, 60))*time.Second, limits{ratio: 10, spared: []string{attacker}}, func(ctx context.Context) {
		crowd(ctx, 1<<30, 12, func(ctx context.Context, _ int) {
			c, err := login(r.addr, attacker)
			if err != nil {
				rest(ctx, 100*time.Millisecond)
				return
			}
			defer c.Abort()
			err = c.Send(announce(1, 64<<20))
			for err == nil && ctx.Err() == nil {
				err = c.Send(proxytest.Body(1, []byte{1}))
				rest(ctx, 500*time.Millisecond)
			}
		})
	}))
}

// Publishes that lack their end are bounded and hold up nobody.
func TestHalfPublishes(t *testing.T) {
	const room = 64 << 20
	r := start(t, setup{settings: "[client]\nmax_message_size = \"16MiB\"\nmessage_buffer = \"64MiB\"\n[pool]\nidle_timeout = \"1s\"\n"})
	clients, channels := count(10, 60), count(100, 300)
	promise(t, r.under(time.Duration(count(8, 40))*time.Second, limits{ratio: 10, spared: []string{attacker}, most: 2*room + clients<<20}, func(ctx context.Context) {
		crowd(ctx, clients, clients, func(ctx context.Context, _ int) {
			c, err := login(r.addr, attacker)
			if err != nil {
				return
			}
			defer c.Abort()
			for ch := 2; ch <= channels && ctx.Err() == nil; ch++ {
				id := uint16(ch)
				b := append(proxytest.Method(id, amqp.ChannelOpen, ""), announce(id, 41000)...)
				if c.Send(append(b, proxytest.Body(id, make([]byte, 40000))...)) != nil {
					return
				}
			}
			<-ctx.Done()
		})
	}))
}

// Consumers that do not read cost their queue and no more, in sum too, and it is given back.
func TestSlowReaders(t *testing.T) {
	const queue = 1 << 20
	n := count(40, 400)
	r := start(t, setup{settings: "[client]\nclient_queue = \"1MiB\"\n[pool]\nidle_timeout = \"1s\"\n"})
	promise(t, r.under(time.Duration(count(8, 40))*time.Second, limits{ratio: 10, spared: []string{attacker}, most: 2*n*queue + 64<<20}, func(ctx context.Context) {
		crowd(ctx, n, n, func(ctx context.Context, i int) {
			c, err := login(r.addr, attacker)
			if err != nil {
				return
			}
			defer c.Abort()
			q, err := c.DeclareQueue(1, fmt.Sprint("slow", i), proxytest.AutoDelete)
			for k := 0; k < 60 && err == nil; k++ {
				err = c.Publish(1, "", q, make([]byte, 100<<10))
			}
			if err == nil {
				err = c.Qos(1, 1000)
			}
			if err != nil {
				return
			}
			c.SendMethod(1, amqp.BasicConsume, 0, q, "", 0, nil)
			<-ctx.Done()
		})
	}))
}

// Requests whose answers nobody reads, and channels that come and go without waiting.
func TestFloods(t *testing.T) {
	for _, k := range []struct {
		name  string
		frame func(n int) []byte
	}{
		{"channels", func(n int) []byte {
			id := uint16(2 + n%400)
			b := append(proxytest.Method(id, amqp.ChannelOpen, ""), proxytest.PublishBytes(id, "", "nowhere", []byte("x"), 0)...)
			return append(b, proxytest.Method(id, amqp.ChannelClose, 200, "", 0, 0)...)
		}},
		{"get", func(int) []byte { return proxytest.Method(1, amqp.BasicGet, 0, "flood", 1) }},
		{"qos", func(n int) []byte { return proxytest.Method(1, amqp.BasicQos, 0, n%100, 0) }},
		{"passive", func(int) []byte {
			return proxytest.Method(1, amqp.QueueDeclare, 0, "flood", proxytest.Passive, nil)
		}},
		{"publish", func(int) []byte { return proxytest.PublishBytes(1, "", "nowhere", make([]byte, 1000), 0) }},
	} {
		if !wanted(t, k.name, "channels", "get") {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			r := start(t, setup{settings: "[pool]\nidle_timeout = \"1s\"\n"})
			var b []byte
			for n := range 400 {
				b = append(b, k.frame(n)...)
			}
			promise(t, r.under(time.Duration(count(6, 20))*time.Second, limits{ratio: 20, spared: []string{attacker}, most: 256 << 20}, func(ctx context.Context) {
				crowd(ctx, 4, 4, func(ctx context.Context, _ int) {
					c, err := login(r.addr, attacker)
					if err != nil {
						return
					}
					defer c.Abort()
					defer context.AfterFunc(ctx, c.Abort)()
					if _, err := c.DeclareQueue(1, "flood", proxytest.Durable); err != nil {
						return
					}
					for ctx.Err() == nil && c.Send(b) == nil {
					}
				})
			}))
		})
	}
}

// An exclusive queue is its owner's alone, declared first or on a channel that cannot move.
func TestExclusiveIsOnesOwn(t *testing.T) {
	for _, mode := range []string{"auto", "session", "shared"} {
		t.Run(mode, func(t *testing.T) {
			r := start(t, setup{settings: fmt.Sprintf("[[listener]]\npool_mode = %q\n", mode)})
			promise(t, func() error {
				for _, stuck := range []bool{false, true} {
					a, err := login(r.addr, attacker)
					if err != nil {
						return err
					}
					defer a.Abort()
					b, err := login(r.addr, attacker)
					if err != nil {
						return err
					}
					defer b.Abort()
					for _, c := range []*proxytest.Client{a, b} {
						if !stuck {
							break
						}
						if err := c.Confirm(1); err != nil {
							return err
						}
						if err := errors.Join(c.Publish(1, "", "nowhere", []byte("x")), c.WaitConfirms(1)); err != nil {
							return err
						}
					}
					q := fmt.Sprint("own", stuck)
					if _, err := a.DeclareQueue(1, q, proxytest.Exclusive); err != nil {
						var e *amqp.Error
						if (stuck || mode == "shared") && errors.As(err, &e) && !amqp.IsHard(e.Code) {
							continue // refused, and told so
						}
						return err
					}
					if err := a.Publish(1, "", q, []byte("secret")); err != nil {
						return err
					}
					m, err := b.Get(1, q, true)
					var e *amqp.Error
					if !errors.As(err, &e) || e.Code != amqp.ResourceLocked {
						return fmt.Errorf("another client's get from an exclusive queue (channel stuck: %v): %v, %w, want 405", stuck, m, err)
					}
				}
				return nil
			}())
		})
	}
}

// Who makes hard errors again and again, under another name each time, cuts its
// neighbours at most once.
func TestHardErrorsAgain(t *testing.T) {
	r := start(t, setup{})
	ctx, cancel := context.WithCancel(context.Background())
	cuts := 0
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			c, err := login(r.addr, attacker)
			if err != nil {
				continue
			}
			err = c.Confirm(1)
			for err == nil && ctx.Err() == nil {
				if err = c.Publish(1, "", "nowhere", []byte("song")); err == nil {
					err = c.WaitConfirms(1)
				}
				rest(ctx, 5*time.Millisecond)
			}
			if err != nil {
				cuts++
			}
			c.Abort()
		}
	})
	for i := range count(10, 40) {
		c, err := proxytest.Dial(proxytest.ClientConfig{Addr: r.addr, User: attacker, Password: users()[attacker], Name: fmt.Sprint("worker ", i), Timeout: patience})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(c.OpenChannel(1), c.Confirm(1), c.Publish(1, "", "nowhere", []byte("x")), c.WaitConfirms(1)); err != nil {
			t.Fatal(err)
		}
		var e *amqp.Error
		err = c.Call(proxytest.Method(1, amqp.ExchangeDeclare, 0, "x", "bogus", 0, nil), amqp.ExchangeDeclareOk)
		if !errors.As(err, &e) || e.Code != amqp.CommandInvalid {
			t.Errorf("unknown exchange type: %v, want 503", err)
		}
		c.Abort()
		rest(ctx, 50*time.Millisecond)
	}
	cancel()
	wg.Wait()
	t.Logf("FIGURE %s: a neighbour was cut %d times by %d hard errors of one client", t.Name(), cuts, count(10, 40))
	var err error
	if cuts > 1 {
		err = fmt.Errorf("a neighbour was cut %d times, once is promised", cuts)
	}
	promise(t, err)
}

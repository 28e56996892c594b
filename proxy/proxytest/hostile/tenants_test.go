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
		crowd(ctx, 1<<30, 12, func(ctx context.Context, i int) { byName("tricklers")(ctx, r.addr, i) })
	}))
}

// Publishes that lack their end are bounded and hold up nobody.
func TestHalfPublishes(t *testing.T) {
	const room = 64 << 20
	r := start(t, setup{settings: "[client]\nmax_message_size = \"16MiB\"\nmessage_buffer = \"64MiB\"\n[pool]\nidle_timeout = \"1s\"\n"})
	clients := count(10, 60)
	promise(t, r.under(time.Duration(count(8, 40))*time.Second, limits{ratio: 10, spared: []string{attacker}, most: 2*room + clients<<20}, func(ctx context.Context) {
		crowd(ctx, clients, clients, func(ctx context.Context, i int) { byName("half publishes")(ctx, r.addr, i) })
	}))
}

// Consumers that do not read cost their queue and no more, in sum too, and it is given back.
func TestSlowReaders(t *testing.T) {
	const queue = 1 << 20
	n := count(40, 400)
	r := start(t, setup{settings: "[client]\nclient_queue = \"1MiB\"\n[pool]\nidle_timeout = \"1s\"\n"})
	promise(t, r.under(time.Duration(count(8, 40))*time.Second, limits{ratio: 10, spared: []string{attacker}, most: 2*n*queue + 64<<20}, func(ctx context.Context) {
		crowd(ctx, n, n, func(ctx context.Context, i int) { byName("slow readers")(ctx, r.addr, i) })
	}))
}

// Requests whose answers nobody reads, and channels that come and go without waiting.
func TestFloods(t *testing.T) {
	for _, k := range floods {
		if !wanted(t, k.name, "channels", "get") {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			r := start(t, setup{settings: "[pool]\nidle_timeout = \"1s\"\n"})
			promise(t, r.under(time.Duration(count(6, 20))*time.Second, limits{ratio: 20, spared: []string{attacker}, most: 256 << 20}, func(ctx context.Context) {
				crowd(ctx, 4, 4, func(ctx context.Context, i int) { k.one(ctx, r.addr, i) })
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

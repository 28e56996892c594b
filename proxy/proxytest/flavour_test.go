// What a client hears of a broker that is no RabbitMQ: each case straight, where it shows
// that the stand-in is what it stands for, and through the proxy in every mode, where the
// answer must be the same and a canary of the same identity must not notice.

package proxytest_test

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// way is how a case's clients reach the broker.
type way struct {
	t    *testing.T
	b    *proxytest.Broker
	s    *proxy.Server // nil straight
	via  string
	dial proxytest.ClientConfig
}

const straight = "straight"

// ways runs a case straight and through, in a bubble whose clock is the test's.
func ways(t *testing.T, bc proxytest.BrokerConfig, change func(*proxy.Config), f func(w *way) error) {
	for _, via := range []string{straight, string(proxy.PoolAuto), string(proxy.PoolSession), string(proxy.PoolShared)} {
		t.Run(via, func(t *testing.T) {
			var err error
			synctest.Test(t, func(t *testing.T) { err = one(t, bc, change, via, f) })
			if err != nil {
				t.Error(err)
			}
		})
	}
}

func one(t *testing.T, bc proxytest.BrokerConfig, change func(*proxy.Config), via string, f func(w *way) error) error {
	to := proxytest.ListenMem("broker:5672", 0)
	bc.Listener = to
	b, err := proxytest.NewBroker(bc)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	w := &way{t: t, b: b, via: via}
	w.dial = proxytest.ClientConfig{Addr: "broker:5672", Dial: to.Dial, Timeout: 30 * time.Second}
	if via != straight {
		cfg := proxy.DefaultConfig()
		cfg.Listeners[0].Mode = proxy.PoolMode(via)
		cfg.Upstream = proxy.Upstream{Host: "broker", Port: 5672}
		cfg.Dial = to.Dial
		cfg.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
		if change != nil {
			change(&cfg)
		}
		if w.s, err = proxy.New(cfg); err != nil {
			t.Fatal(err)
		}
		in := proxytest.ListenMem("127.0.0.1:5673", 0)
		if err := w.s.Start([]net.Listener{in}); err != nil {
			t.Fatal(err)
		}
		defer w.s.Close()
		w.dial.Addr, w.dial.Dial = "127.0.0.1:5673", in.Dial
	}
	return f(w)
}

// client is a client with channel 1 open; it ends with the bubble.
func (w *way) client() (*proxytest.Client, error) {
	c, err := proxytest.Dial(w.dial)
	if err != nil {
		return nil, fmt.Errorf("login: %w", err)
	}
	if err := c.OpenChannel(1); err != nil {
		c.Abort()
		return nil, fmt.Errorf("channel.open: %w", err)
	}
	return c, nil
}

// canary is a client of the same identity that publishes with a confirm.
type canary struct {
	c     *proxytest.Client
	queue string
}

func (w *way) canary() (*canary, error) {
	c, err := w.client()
	if err != nil {
		return nil, err
	}
	k := &canary{c, "canary"}
	if _, err := c.DeclareQueue(1, k.queue, proxytest.Durable); err != nil {
		return nil, err
	}
	return k, errors.Join(c.Confirm(1), k.sing())
}

func (k *canary) sing() error {
	if err := k.c.Publish(1, "", k.queue, []byte("song")); err != nil {
		return fmt.Errorf("canary: %w", err)
	}
	if err := k.c.WaitConfirms(1); err != nil {
		return fmt.Errorf("canary: %w", err)
	}
	if f, err := k.c.NextWithin(time.Millisecond); err == nil {
		return fmt.Errorf("canary disturbed by %s", proxytest.Describe(f))
	}
	return nil
}

// The empty queue name is the queue that this client declared last, whoever else declares.
func TestLavinLastQueue(t *testing.T) {
	ways(t, proxytest.BrokerConfig{Flavour: proxytest.LavinMQ}, nil, func(w *way) error {
		a, err := w.client()
		if err != nil {
			return err
		}
		defer a.Abort()
		b, err := w.client()
		if err != nil {
			return err
		}
		defer b.Abort()
		for _, step := range []struct {
			name string
			do   func(*proxytest.Client) error
			want [2]int // messages in qa and qb afterwards, -1: gone
		}{
			{"purge", func(c *proxytest.Client) error {
				return c.Call(proxytest.Method(1, amqp.QueuePurge, 0, "", 0), amqp.QueuePurgeOk)
			}, [2]int{0, 1}},
			{"get", func(c *proxytest.Client) error {
				if _, err := c.Get(1, "", true); err != nil && !errors.Is(err, proxytest.ErrEmpty) {
					return err
				}
				return nil
			}, [2]int{0, 1}},
			{"delete", func(c *proxytest.Client) error { return c.DeleteQueue(1, "") }, [2]int{-1, 1}},
		} {
			for c, q := range map[*proxytest.Client]string{a: "qa", b: "qb"} {
				if _, err := c.DeclareQueue(1, q, proxytest.Durable); err != nil {
					return err
				}
				if err := errors.Join(c.Call(proxytest.Method(1, amqp.QueuePurge, 0, q, 0), amqp.QueuePurgeOk), c.Publish(1, "", q, []byte(q))); err != nil {
					return err
				}
			}
			// In this order: b's queue is the connection's last one where both share it.
			if _, err := a.DeclareQueue(1, "qa", proxytest.Durable); err != nil {
				return err
			}
			if _, err := b.DeclareQueue(1, "qb", proxytest.Durable); err != nil {
				return err
			}
			if err := step.do(a); err != nil {
				return fmt.Errorf("%s: %w", step.name, err)
			}
			if got := [2]int{w.b.Messages("/", "qa"), w.b.Messages("/", "qb")}; got != step.want {
				return fmt.Errorf("after %s of the empty name qa and qb hold %v, want %v", step.name, got, step.want)
			}
		}
		return nil
	})
}

// A soft error whose text is too long leaves a connection that answers nothing any more:
// that of the client who made it, and nobody else for longer than 15 s.
func TestLavinLongText(t *testing.T) {
	ways(t, proxytest.BrokerConfig{Flavour: proxytest.LavinMQ}, nil, func(w *way) error {
		x, err := w.client()
		if err != nil {
			return err
		}
		defer x.Abort()
		if err := x.Publish(1, string(make([]byte, 250)), "", []byte("x")); err != nil {
			return err
		}
		time.Sleep(100 * time.Millisecond)
		began := time.Now()
		for i := range 4 {
			c, err := w.canary()
			var e *amqp.Error
			if i == 0 && w.s != nil && errors.As(err, &e) && e.Code == amqp.ConnectionForced && time.Since(began) <= 15*time.Second {
				began = time.Now()
				continue // who came onto the mute connection is told in time; nobody comes there after that
			}
			if err != nil {
				return fmt.Errorf("%v after the text that was too long: %w", time.Since(began), err)
			}
			defer c.c.Abort()
			if took := time.Since(began); took > 15*time.Second {
				return fmt.Errorf("a new client was served %v after the text that was too long", took)
			}
			time.Sleep(5 * time.Second)
			began = time.Now()
		}
		return nil
	})
}

// What is a hard error at LavinMQ alone is heard by the client that made it.
func TestLavinHardErrors(t *testing.T) {
	table := func(b ...byte) []byte { return b }
	late := append([]byte("\x01tT"), 0x40, 0, 0, 0, 0, 0, 0, 0)
	long := amqp.AppendStringField(nil, "x-dead-letter-exchange", "\xff\xfe")
	for name, frames := range map[string][][]byte{
		"access.request":         {proxytest.Method(1, amqp.AccessRequest, "/data", 31)},
		"recover-async":          {proxytest.Method(1, amqp.BasicRecoverAsync, 1)},
		"ack of nothing in tx":   {proxytest.Method(1, amqp.TxSelect), proxytest.Method(1, amqp.BasicAck, 0, 1)},
		"time beyond time":       {proxytest.Method(1, amqp.QueueDeclare, 0, "qt", proxytest.Durable, table(late...))},
		"dead letter exchange":   {proxytest.Method(1, amqp.QueueDeclare, 0, "qd", proxytest.Durable, long)},
		"exchange not UTF-8":     {proxytest.PublishBytes(1, "\xff\xfe", "k", []byte("x"), 0)},
		"property flags 0 and 1": {proxytest.Method(1, amqp.BasicPublish, 0, "", "none", 0), proxytest.HeaderWith(1, 0, 3, nil)},
	} {
		t.Run(name, func(t *testing.T) {
			ways(t, proxytest.BrokerConfig{Flavour: proxytest.LavinMQ}, nil, func(w *way) error {
				k, err := w.canary()
				if err != nil {
					return err
				}
				defer k.c.Abort()
				x, err := w.client()
				if err != nil {
					return err
				}
				defer x.Abort()
				if err := x.Send(frames...); err != nil {
					return err
				}
				time.Sleep(time.Second)
				return errors.Join(k.sing(), k.sing())
			})
		})
	}
}

// What LavinMQ can do and RabbitMQ cannot: a client hears the same through the proxy, or
// in mode shared at most the end of its channel.
func TestLavinAbilities(t *testing.T) {
	type cas struct {
		name string
		do   func(c *proxytest.Client) error
	}
	declare := func(c *proxytest.Client) error {
		_, err := c.DeclareQueue(1, "q", proxytest.Durable)
		return err
	}
	for _, k := range []cas{
		{"immediate", func(c *proxytest.Client) error {
			if err := c.Send(proxytest.Method(1, amqp.BasicPublish, 0, "", "q", 2), proxytest.Header(1, 0)); err != nil {
				return err
			}
			m, err := c.Return(1)
			if err == nil && m.Code != 313 {
				err = fmt.Errorf("returned with %d, want 313", m.Code)
			}
			return err
		}},
		{"flow", func(c *proxytest.Client) error {
			return c.Call(proxytest.Method(1, amqp.ChannelFlow, 0), amqp.ChannelFlowOk)
		}},
		{"recover", func(c *proxytest.Client) error {
			return c.Call(proxytest.Method(1, amqp.BasicRecover, 0), amqp.BasicRecoverOk)
		}},
		{"tag twice", func(c *proxytest.Client) error {
			_, err := c.Consume(1, "q", "t", true)
			if err == nil {
				_, err = c.Consume(1, "q", "t", true)
			}
			return err
		}},
		{"prefetch size", func(c *proxytest.Client) error {
			err := c.Call(proxytest.Method(1, amqp.BasicQos, 1000, 1, 0), amqp.BasicQosOk)
			var e *amqp.Error
			if !errors.As(err, &e) || e.Code != amqp.NotImplemented {
				return fmt.Errorf("qos with a size: %w, want 540", err)
			}
			return c.OpenChannel(1) // the channel alone was closed
		}},
	} {
		t.Run(k.name, func(t *testing.T) {
			ways(t, proxytest.BrokerConfig{Flavour: proxytest.LavinMQ}, nil, func(w *way) error {
				bird, err := w.canary()
				if err != nil {
					return err
				}
				defer bird.c.Abort()
				c, err := w.client()
				if err != nil {
					return err
				}
				defer c.Abort()
				if err := declare(c); err != nil {
					return err
				}
				if err := k.do(c); err != nil {
					// On a shared connection it may be refused, but on the channel alone.
					if w.via != string(proxy.PoolShared) || c.OpenChannel(2) != nil {
						return err
					}
				}
				return bird.sing()
			})
		})
	}
}

// Tables nested deeper than the proxy allows never reach LavinMQ, which itself ends over
// some thousands; less deep ones do.
func TestLavinDeepTable(t *testing.T) {
	nested := func(n int) (table []byte) {
		for range n {
			table = amqp.AppendTableField(nil, "t", table)
		}
		return table
	}
	ways(t, proxytest.BrokerConfig{Flavour: proxytest.LavinMQ}, nil, func(w *way) error {
		for n, good := range map[int]bool{60: true, 120: true, 200: w.via == straight} {
			c, err := w.client()
			if err != nil {
				return err
			}
			defer c.Abort()
			err = c.Call(proxytest.Method(1, amqp.QueueDeclare, 0, fmt.Sprint("deep", n), proxytest.Durable, nested(n)), amqp.QueueDeclareOk)
			var e *amqp.Error
			if good != (err == nil) || !good && (!errors.As(err, &e) || e.Code != amqp.SyntaxError) {
				return fmt.Errorf("a table nested %d deep: %w", n, err)
			}
		}
		return nil
	})
}

// The broker's words about a login are the words that a client hears.
func TestLavinRefusals(t *testing.T) {
	ways(t, proxytest.BrokerConfig{Flavour: proxytest.LavinMQ}, nil, func(w *way) error {
		var errs []error
		for _, r := range []struct{ password, vhost, want string }{
			{"wrong", "/", "403 ACCESS_REFUSED - "},
			{"", "none", "530 NOT_ALLOWED - vhost not found"},
		} {
			cfg := w.dial
			cfg.Password, cfg.VHost = r.password, r.vhost
			if _, err := proxytest.Dial(cfg); err == nil || err.Error() != r.want {
				errs = append(errs, fmt.Errorf("login refused with %q, want %q", fmt.Sprint(err), r.want))
			}
		}
		return errors.Join(errs...)
	})
}

// LavinMQ's exclusive queues go after close-ok; they have gone when the client hears it.
func TestLavinExclusiveGone(t *testing.T) {
	ways(t, proxytest.BrokerConfig{Flavour: proxytest.LavinMQ}, nil, func(w *way) error {
		for i := range 20 {
			a, err := w.client()
			if err != nil {
				return err
			}
			b, err := w.client()
			if err != nil {
				return err
			}
			if _, err := a.DeclareQueue(1, "ex", proxytest.Exclusive); err != nil {
				if w.via == string(proxy.PoolShared) {
					return refusedForSharing(err)
				}
				return err
			}
			if err := a.Close(); err != nil {
				return err
			}
			if w.via == straight {
				time.Sleep(10 * time.Millisecond) // straight it is a race
			}
			_, err = b.DeclareQueue(1, "ex", proxytest.Exclusive)
			if err == nil {
				err = b.DeleteQueue(1, "ex")
			}
			if err != nil {
				return fmt.Errorf("round %d: %w", i, err)
			}
			b.Abort()
			time.Sleep(time.Second)
		}
		return nil
	})
}

// refusedForSharing: mode shared has no exclusive queues, and says so.
func refusedForSharing(err error) error {
	var e *amqp.Error
	if errors.As(err, &e) && e.Code == amqp.PreconditionFailed && strings.Contains(e.Text, "pool_mode") {
		return nil
	}
	return err
}

const instance, keyID, secret = "amqp-cn-1", "LTAI1", "s3cret"

func alibaba() proxytest.BrokerConfig {
	return proxytest.BrokerConfig{Flavour: proxytest.Alibaba, AccessKeys: map[string]string{keyID: secret}}
}

// A password that is a signature of now is accepted, an old or a wrong one is not.
func TestAlibabaSignature(t *testing.T) {
	ways(t, alibaba(), nil, func(w *way) error {
		var errs []error
		for _, l := range []struct {
			secret string
			age    time.Duration
			good   bool
		}{{secret, 0, true}, {secret, 10 * time.Minute, true}, {secret, time.Hour, false}, {"other", 0, false}} {
			cfg := w.dial
			cfg.User, cfg.Password = proxytest.Sign(instance, keyID, l.secret, time.Now().Add(-l.age))
			c, err := proxytest.Dial(cfg)
			if err == nil {
				c.Abort()
			}
			var e *amqp.Error
			if l.good != (err == nil) || !l.good && (!errors.As(err, &e) || e.Code != amqp.AccessRefused) {
				errs = append(errs, fmt.Errorf("secret %q, %v old: %w", l.secret, l.age, err))
			}
		}
		return errors.Join(errs...)
	})
}

// A throttle is no verdict: a throttled request closes its channel alone, and the next
// login finds what stood before.
func TestAlibabaThrottle(t *testing.T) {
	ways(t, alibaba(), nil, func(w *way) error {
		k, err := w.canary()
		if err != nil {
			return err
		}
		defer k.c.Abort()
		c, err := w.client()
		if err != nil {
			return err
		}
		defer c.Abort()
		w.b.Throttle(1)
		var e *amqp.Error
		if _, err := c.DeclareQueue(1, "q", proxytest.Durable); !errors.As(err, &e) || e.Code != amqp.NotAllowed {
			return fmt.Errorf("throttled declare: %w, want 530", err)
		}
		if err := c.OpenChannel(1); err != nil {
			return fmt.Errorf("the channel after the throttled one: %w", err)
		}
		if err := k.sing(); err != nil {
			return err
		}
		// The same told to a login that needs a connection of its own.
		for w.b.Counts().Refused == 0 {
			w.b.Throttle(1)
			d, err := proxytest.Dial(w.dial)
			if err != nil && (!errors.As(err, &e) || e.Code != amqp.NotAllowed) {
				return fmt.Errorf("throttled login: %w, want 530", err)
			}
			if err == nil {
				defer d.Abort()
				if w.via != straight {
					if err := d.OpenChannel(1); err != nil {
						return err
					}
					if _, err := d.DeclareQueue(1, "", proxytest.Exclusive); err != nil {
						break // 530 on the channel, in whatever way it got there
					}
				}
			}
			if len(w.b.Connections()) > 20 {
				break
			}
		}
		w.b.Throttle(0)
		opened := w.b.Counts().Opened
		if _, err := w.client(); err != nil {
			return fmt.Errorf("login after the throttle: %w", err)
		}
		if w.via == string(proxy.PoolAuto) || w.via == string(proxy.PoolShared) {
			if now := w.b.Counts().Opened; now != opened {
				return fmt.Errorf("the throttle made the next login open a connection: %d, before %d", now, opened)
			}
		}
		return k.sing()
	})
}

// The broker's few channels a connection do not bound the clients.
func TestAlibabaFewChannels(t *testing.T) {
	ways(t, alibaba(), nil, func(w *way) error {
		for range 150 {
			c, err := w.client()
			if err != nil {
				return err
			}
			defer c.Abort()
			if _, err := c.DeclareQueue(1, "q", proxytest.Durable); err != nil {
				return err
			}
		}
		if n := len(w.b.Connections()); w.via == string(proxy.PoolShared) && n > 4 {
			return fmt.Errorf("150 channels took %d connections of 64 channels each", n)
		}
		return nil
	})
}

// 504 ends the clients of the connection that it came on; the next ones are served at once.
func TestAlibabaChannelNotFound(t *testing.T) {
	ways(t, alibaba(), nil, func(w *way) error {
		c, err := w.client()
		if err != nil {
			return err
		}
		defer c.Abort()
		if _, err := c.DeclareQueue(1, "q", proxytest.Durable); err != nil {
			return err
		}
		w.b.LoseChannels()
		var e *amqp.Error
		if _, err := c.DeclareQueue(1, "q", proxytest.Durable); !errors.As(err, &e) || e.Code != amqp.ChannelError {
			return fmt.Errorf("on a channel that the broker lost: %w, want 504", err)
		}
		k, err := w.canary()
		if err != nil {
			return err
		}
		defer k.c.Abort()
		return k.sing()
	})
}

// 200 logins with a signature each do not leave 200 connections standing.
func TestAlibabaRotatingPasswords(t *testing.T) {
	ways(t, alibaba(), nil, func(w *way) error {
		for range 200 {
			cfg := w.dial
			cfg.User, cfg.Password = proxytest.Sign(instance, keyID, secret, time.Now())
			c, err := proxytest.Dial(cfg)
			if err != nil {
				return err
			}
			if err := c.OpenChannel(1); err != nil {
				return err
			}
			if err := c.Close(); err != nil {
				return err
			}
			time.Sleep(250 * time.Millisecond)
		}
		time.Sleep(15 * time.Second)
		if n := w.b.Counts().Open; n > 2 {
			return fmt.Errorf("%d connections stand 15 s after 200 logins with a password each", n)
		}
		return nil
	})
}

// A node that goes ends the clients on it, with the broker's words, and nobody else.
func TestManagedNodeSevered(t *testing.T) {
	ways(t, proxytest.BrokerConfig{Flavour: proxytest.Managed}, func(c *proxy.Config) { c.MaxChannels = 2 }, func(w *way) error {
		var clients []*proxytest.Client
		for range 12 {
			c, err := w.client()
			if err != nil {
				return err
			}
			defer c.Abort()
			if _, err := c.DeclareQueue(1, "q", proxytest.Durable); err != nil {
				return err
			}
			clients = append(clients, c)
		}
		before := w.b.Nodes()
		if before[0] == 0 || before[1] == 0 || before[2] == 0 {
			return fmt.Errorf("connections per node %v, want some on each", before)
		}
		w.b.Sever(1)
		time.Sleep(100 * time.Millisecond)
		gone := 0
		for _, c := range clients {
			_, err := c.DeclareQueue(1, "q", proxytest.Durable)
			var e *amqp.Error
			switch {
			case err == nil:
			case errors.As(err, &e) && e.Code == amqp.ConnectionForced:
				gone++
			default:
				return fmt.Errorf("a client of the severed node hears %w, want 320", err)
			}
		}
		if want := len(clients) / 3; gone < 1 || gone > want+2 {
			return fmt.Errorf("%d of %d clients were on the severed node, connections were %v", gone, len(clients), before)
		}
		for range 6 {
			c, err := w.client()
			if err != nil {
				return fmt.Errorf("with a node away: %w", err)
			}
			defer c.Abort()
		}
		if n := w.b.Nodes()[1]; n != 0 {
			return fmt.Errorf("%d connections at a node that is away", n)
		}
		w.b.Return(1)
		return nil
	})
}

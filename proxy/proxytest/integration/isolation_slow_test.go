// Consumers that stop reading, in front of long queues: nobody else notices, the proxy's
// memory does not grow, and nothing is missing when they read again.

//go:build linux

package integration

import (
	"context"
	bits "encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

const (
	slowBody = 16 << 10 // bytes of a message
	slowGrow = 64 << 20 // how much more memory the proxy may take
	songs    = 200      // for one percentile
)

// singer is a canary that is timed: publish, confirm, get.
type singer struct {
	pub, get *proxytest.Client
	queue    string
}

func newSinger(t *testing.T, addr, queue string) *singer {
	s := &singer{raw(t, proxytest.ClientConfig{Addr: addr}), raw(t, proxytest.ClientConfig{Addr: addr}), queue}
	if _, err := s.pub.DeclareQueue(1, queue, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.pub.Confirm(1); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *singer) sing(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	if err := s.pub.Publish(1, "", s.queue, []byte("song")); err != nil {
		t.Fatalf("canary: publish: %v", err)
	}
	if err := s.pub.WaitConfirms(1); err != nil {
		t.Fatalf("canary: confirm: %v", err)
	}
	if _, err := s.get.Get(1, s.queue, true); err != nil {
		t.Fatalf("canary: get: %v", err)
	}
	return time.Since(began)
}

func (s *singer) leave() {
	s.pub.DeleteQueue(1, s.queue)
	s.pub.Close()
	s.get.Close()
}

func p99(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)*99/100]
}

// fanOut fills n queues, each with messages that are numbered.
func (o *observer) fanOut(n, messages int) (queues []string) {
	o.t.Helper()
	exchange := strings.NewReplacer("/", ".", "#", ".").Replace(o.t.Name())
	if err := o.ch.ExchangeDeclare(exchange, "fanout", false, true, false, false, nil); err != nil {
		o.t.Fatal(err)
	}
	for i := range n {
		q := o.queue(fmt.Sprintf("stalled-%d", i))
		if err := o.ch.QueueBind(q, "", exchange, false, nil); err != nil {
			o.t.Fatal(err)
		}
		queues = append(queues, q)
	}
	ch, err := o.conn.Channel()
	if err != nil {
		o.t.Fatal(err)
	}
	defer ch.Close()
	if err := ch.Confirm(false); err != nil {
		o.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*patience)
	defer cancel()
	var pending []*amqp.DeferredConfirmation
	for i := range messages {
		body := make([]byte, slowBody)
		bits.BigEndian.PutUint64(body, uint64(i))
		c, err := ch.PublishWithDeferredConfirmWithContext(ctx, exchange, "", false, false, amqp.Publishing{Body: body})
		if err != nil {
			o.t.Fatal(err)
		}
		if pending = append(pending, c); len(pending) > 500 || i == messages-1 {
			for _, c := range pending {
				if ok, err := c.WaitContext(ctx); !ok || err != nil {
					o.t.Fatalf("a message was not confirmed: %v", err)
				}
			}
			pending = pending[:0]
		}
	}
	return queues
}

// left is how many messages are ready in the queues.
func (o *observer) left(queues []string) (n int) {
	o.t.Helper()
	for _, q := range queues {
		state, err := o.ch.QueueDeclarePassive(q, true, false, false, false, nil)
		if err != nil {
			o.t.Fatal(err)
		}
		n += state.Messages
	}
	return n
}

// stall starts a no-ack consumer that reads no further than its consume-ok.
func stall(t *testing.T, addr, queue string) *proxytest.Client {
	t.Helper()
	c := raw(t, proxytest.ClientConfig{Addr: addr, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err == nil {
			err = conn.(*net.TCPConn).SetReadBuffer(64 << 10)
		}
		return conn, err
	}})
	if _, err := c.Consume(1, queue, "stalled", true); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestStalledConsumers(t *testing.T) {
	size := count(60<<20, 300<<20)
	messages := size / slowBody
	for _, consumers := range []int{1, 20} {
		t.Run(fmt.Sprint(consumers), func(t *testing.T) {
			for _, v := range versions(t) {
				t.Run(string(v), func(t *testing.T) {
					b := rabbit.Get(t, v)
					var normal time.Duration // the canary's p99 straight, when all is quiet
					t.Run("straight", func(t *testing.T) {
						normal = stalled(t, &target{via: "straight", addr: b.Addr(), broker: b}, consumers, messages)
					})
					if straight {
						return
					}
					t.Run("proxy", func(t *testing.T) {
						p := startProxy(t, false, b.URL(), "")
						through := stalled(t, &target{via: "proxy", addr: p.addr, broker: b, proxy: p}, consumers, messages)
						t.Logf("canary's p99 with all of them standing: %v straight, %v through the proxy", normal, through)
						canary(t, p.addr)
					})
				})
			}
		})
	}
}

// stalled is the case itself; it returns the canary's p99 beside the stalled consumers.
func stalled(t *testing.T, tg *target, consumers, messages int) (with time.Duration) {
	o := observe(t, tg.broker)
	queues := o.fanOut(consumers, messages)
	bird := newSinger(t, tg.addr, "singer."+tg.via)
	defer bird.leave()
	for range songs / 4 {
		bird.sing(t) // warm
	}
	// A second proxy without any stalled consumer tells what is the machine's noise: the
	// songs are sung in turns.
	beside := bird
	if tg.proxy != nil {
		q := startProxy(t, false, tg.broker.URL(), "")
		beside = newSinger(t, q.addr, "singer.beside")
		defer beside.leave()
	}
	var alone []time.Duration
	for range songs {
		alone = append(alone, bird.sing(t))
	}
	without := p99(alone)

	var base, most int64
	watch := func() {
		if tg.proxy != nil {
			most = max(most, tg.proxy.memory(t))
		}
	}
	if tg.proxy != nil {
		base = tg.proxy.memory(t)
	}
	var held []*proxytest.Client
	for _, q := range queues {
		held = append(held, stall(t, tg.addr, q))
	}
	// They stand when nothing leaves the queues any more.
	last, since := -1, time.Now()
	eventually(t, "all consumers stand", func() error {
		watch()
		n := o.left(queues)
		if n != last {
			last, since = n, time.Now()
		}
		if time.Since(since) < 500*time.Millisecond {
			return fmt.Errorf("%d messages are left", n)
		}
		return nil
	})
	if last == 0 {
		t.Fatalf("all of %d MB is on its way: the consumers do not stand", consumers*messages*slowBody>>20)
	}
	var control time.Duration
	for attempt := range 3 {
		var mine, other []time.Duration
		for range songs {
			mine = append(mine, bird.sing(t))
			other = append(other, beside.sing(t))
		}
		watch()
		with, control = p99(mine), p99(other)
		if with <= 2*max(without, control) {
			break
		}
		t.Logf("attempt %d: p99 %v with, %v before, %v beside", attempt, with, without, control)
	}
	if with > 2*max(without, control) && tg.proxy != nil { // what the broker itself does is a figure
		t.Errorf("the canary's p99 is %v beside %d stalled consumers, %v without them (%v on a proxy without them)", with, consumers, without, control)
	}

	// They read again, and get everything, in order.
	began := time.Now()
	var readers sync.WaitGroup
	var done atomic.Int32
	for i, c := range held {
		readers.Go(func() {
			defer done.Add(1)
			for n := range messages {
				m, err := c.Delivery(1)
				if err != nil {
					t.Errorf("consumer %d, message %d of %d: %v", i, n, messages, err)
					return
				}
				if got := bits.BigEndian.Uint64(m.Body); len(m.Body) != slowBody || got != uint64(n) {
					t.Errorf("consumer %d got message %d (%d bytes), want %d", i, got, len(m.Body), n)
					return
				}
			}
		})
	}
	for done.Load() < int32(len(held)) {
		watch()
		bird.sing(t)
	}
	readers.Wait()
	took := time.Since(began)
	for _, c := range held {
		if err := c.Cancel(1, "stalled"); err != nil {
			t.Errorf("cancel: %v", err)
		}
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	for _, q := range queues {
		o.empty(q)
	}
	if grown := most - base; grown > slowGrow {
		t.Errorf("the proxy grew by %d MB, want at most %d", grown>>20, slowGrow>>20)
	}
	grew := ""
	if tg.proxy != nil {
		grew = fmt.Sprintf(", %v on a proxy without them; the proxy grew by %.1f MB", control.Round(10*time.Microsecond), float64(most-base)/(1<<20))
	}
	t.Logf("FIGURE %s, RabbitMQ %s, %d stalled no-ack consumers of %d MB each: canary's p99 %v beside them, %v before%s; all read in %v",
		tg.via, tg.broker.Version, consumers, messages*slowBody>>20, with.Round(10*time.Microsecond), without.Round(10*time.Microsecond),
		grew, took.Round(10*time.Millisecond))
	return with
}

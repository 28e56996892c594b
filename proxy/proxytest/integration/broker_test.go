// The tests' own look at the broker, never through the proxy: filling and emptying
// queues, answering calls, counting connections.

//go:build linux

package integration

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// observer is a connection straight to the broker.
type observer struct {
	t    testing.TB
	conn *amqp.Connection
	ch   *amqp.Channel
}

func observe(t testing.TB, b *rabbit.Broker) *observer {
	t.Helper()
	conn, err := dial(b.Addr(), amqp.Config{})
	if err != nil {
		t.Fatalf("straight to the broker: %v", err)
	}
	t.Cleanup(func() { conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return &observer{t, conn, ch}
}

// dial connects as guest with amqp091-go.
func dial(addr string, cfg amqp.Config) (*amqp.Connection, error) {
	if cfg.Dial == nil {
		cfg.Dial = amqp.DefaultDial(patience)
	}
	if cfg.Heartbeat == 0 {
		cfg.Heartbeat = 10 * time.Second
	}
	if cfg.SASL == nil {
		cfg.SASL = []amqp.Authentication{&amqp.PlainAuth{Username: "guest", Password: "guest"}}
	}
	return amqp.DialConfig("amqp://"+addr+"/", cfg)
}

// queue declares an empty durable queue that is deleted when the test ends.
func (o *observer) queue(name string) string {
	o.t.Helper()
	name = strings.NewReplacer("/", ".", "#", ".").Replace(o.t.Name()) + "." + name
	if _, err := o.ch.QueueDeclare(name, true, false, false, false, nil); err != nil {
		o.t.Fatal(err)
	}
	if _, err := o.ch.QueuePurge(name, false); err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() { o.ch.QueueDelete(name, false, false, false) })
	return name
}

// fill publishes the numbers 0 to n-1 and waits until the broker has them.
func (o *observer) fill(queue string, n int) {
	o.t.Helper()
	ch, err := o.conn.Channel()
	if err != nil {
		o.t.Fatal(err)
	}
	defer ch.Close()
	if err := ch.Confirm(false); err != nil {
		o.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var last *amqp.DeferredConfirmation
	for i := range n {
		last, err = ch.PublishWithDeferredConfirmWithContext(ctx, "", queue, false, false,
			amqp.Publishing{Body: []byte(strconv.Itoa(i))})
		if err != nil {
			o.t.Fatal(err)
		}
	}
	if ok, err := last.WaitContext(ctx); !ok || err != nil {
		o.t.Fatalf("the last of %d was not confirmed: %v", n, err)
	}
}

// drain takes all of a queue, which must hold exactly the numbers 0 to n-1 in order.
func (o *observer) drain(queue string, n int) {
	o.t.Helper()
	for i, body := range o.take(queue, n) {
		if strings.TrimSuffix(body, "\n") != strconv.Itoa(i) { // amqp-publish sends the line's end too
			o.t.Fatalf("message %d of %d in the queue is %q", i, n, body)
		}
	}
}

// drainAny takes all of a queue, which must hold each of the numbers 0 to n-1 once. In
// what order messages of different connections come nobody promises: a close that the
// proxy answers at once is one that the broker has yet to see.
func (o *observer) drainAny(queue string, n int) {
	o.t.Helper()
	seen := map[string]bool{}
	for _, body := range o.take(queue, n) {
		body = strings.TrimSuffix(body, "\n")
		if i, err := strconv.Atoi(body); err != nil || i < 0 || i >= n || seen[body] {
			o.t.Fatalf("%q is in the queue, twice or unlooked for", body)
		}
		seen[body] = true
	}
}

// take removes n messages, which must be all that there are or come within patience.
func (o *observer) take(queue string, n int) []string {
	o.t.Helper()
	bodies := o.collect(queue, n)
	if len(bodies) > n {
		o.t.Fatalf("message %d, %q, is one too many", n, bodies[n])
	}
	o.empty(queue)
	return bodies
}

// rest removes what there is. An unconfirmed message may still be on its way from the
// broker's socket to the queue when its publisher has already heard of its end, so more
// may be there than the queue said when it was asked.
func (o *observer) rest(queue string) []string {
	o.t.Helper()
	var bodies []string
	for {
		q, err := o.ch.QueueDeclarePassive(queue, true, false, false, false, nil)
		if err != nil {
			o.t.Fatal(err)
		}
		if q.Messages == 0 && q.Consumers == 0 {
			return bodies
		}
		bodies = append(bodies, o.collect(queue, q.Messages)...)
	}
}

// collect consumes until n messages came, and returns what was delivered until the
// consumer was gone: n or more.
func (o *observer) collect(queue string, n int) []string {
	o.t.Helper()
	ch, err := o.conn.Channel()
	if err != nil {
		o.t.Fatal(err)
	}
	defer ch.Close()
	deliveries, err := ch.Consume(queue, "take", true, false, false, false, nil)
	if err != nil {
		o.t.Fatal(err)
	}
	bodies := make([]string, 0, n)
	late := time.NewTimer(patience)
	defer late.Stop()
	for len(bodies) < n {
		select {
		case d := <-deliveries:
			bodies = append(bodies, string(d.Body))
		case <-late.C:
			o.t.Fatalf("only %d of %d messages came", len(bodies), n)
		}
	}
	// With the consumer gone whatever was too much is in the queue or was delivered.
	if err := ch.Cancel("take", false); err != nil {
		o.t.Fatal(err)
	}
	for d := range deliveries {
		bodies = append(bodies, string(d.Body))
	}
	return bodies
}

// empty checks that nothing is left in a queue that has no consumer, as soon as it has none.
func (o *observer) empty(queue string) {
	o.t.Helper()
	eventually(o.t, "the consumer of "+queue+" is gone", func() error {
		q, err := o.ch.QueueDeclarePassive(queue, true, false, false, false, nil)
		if err != nil {
			o.t.Fatal(err)
		}
		if q.Consumers > 0 {
			return fmt.Errorf("%d consumers", q.Consumers)
		}
		if q.Messages > 0 {
			o.t.Fatalf("%d messages are left in %s", q.Messages, queue)
		}
		return nil
	})
}

// answer serves calls: the answer to X is "answer to X".
func (o *observer) answer(queue string) {
	o.t.Helper()
	ch, err := o.conn.Channel()
	if err != nil {
		o.t.Fatal(err)
	}
	calls, err := ch.Consume(queue, "", true, false, false, false, nil)
	if err != nil {
		o.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for c := range calls {
			err := ch.PublishWithContext(context.Background(), "", c.ReplyTo, false, false, amqp.Publishing{
				ContentType: c.ContentType, ContentEncoding: c.ContentEncoding, Headers: c.Headers,
				CorrelationId: c.CorrelationId, Body: append([]byte("answer to "), c.Body...),
			})
			if err != nil {
				return
			}
		}
	}()
	o.t.Cleanup(func() { ch.Close(); <-done })
}

// connections is how many connections the broker has, those of observers left out.
func connections(t testing.TB, b *rabbit.Broker, observers int) int {
	t.Helper()
	out, err := b.Eval("length(rabbit_networking:connections()).")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(out)
	if err != nil {
		t.Fatal(err)
	}
	return n - observers
}

// The broker runs out of memory: those who publish are told, once, and told when it is
// over; those who read, ack and get go on.

//go:build linux

package integration

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	wire "github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// alarm raises or ends the memory alarm.
func alarm(t testing.TB, b *rabbit.Broker, on bool) {
	t.Helper()
	if b.Version != rabbit.V310 {
		// In its root directory it cannot measure its memory, and runs without the monitor.
		expr := "rabbit_alarm:clear_alarm({resource_limit, memory, node()})."
		if on {
			expr = "rabbit_alarm:set_alarm({{resource_limit, memory, node()}, []})."
		}
		if _, err := b.Eval(expr); err != nil {
			t.Fatal(err)
		}
	} else {
		mark := "4GB"
		if on {
			mark = "10MB"
		}
		if _, err := b.Ctl("set_vm_memory_high_watermark", "absolute", mark); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the alarm changes", func() error {
		out, err := b.Eval("rabbit_alarm:get_alarms().")
		if err != nil {
			return err
		}
		if (out != "[]") != on {
			return errors.New(out)
		}
		return nil
	})
}

// blocked waits for connection.blocked and returns its reason.
func blocked(c *proxytest.Client) (string, error) {
	f, err := c.Await(0, wire.ConnectionBlocked)
	if err != nil {
		return "", err
	}
	a := wire.ReadArgs(f)
	return string(a.Str()), nil
}

// silentFor tells that a client hears nothing at all for a while.
func silentFor(c *proxytest.Client, d time.Duration) error {
	f, err := c.NextWithin(d)
	switch {
	case err == nil:
		return errors.New("heard " + proxytest.Describe(f))
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil
	}
	return err
}

func TestMemoryAlarm(t *testing.T) {
	const messages = 200
	each(t, "", func(t *testing.T, tg *target) {
		o := observe(t, tg.broker)
		full, got, in := o.queue("consumed"), o.queue("got"), o.queue("in")
		o.fill(full, messages)
		o.fill(got, messages)
		client := func(name string) *proxytest.Client {
			return raw(t, proxytest.ClientConfig{Addr: tg.addr, Name: name})
		}
		must := func(what string, err error) {
			t.Helper()
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		confirmed := func(who string, c *proxytest.Client) {
			t.Helper()
			must(who+": publish", c.Publish(1, "", in, []byte("x")))
			must(who+": confirm of it", c.WaitConfirms(1))
		}
		publisher, consumer, getter, idle, late := client("publisher"), client("consumer"), client("getter"), client("idle"), client("late, connected before")
		// One that does not know of connection.blocked is not told.
		old := raw(t, proxytest.ClientConfig{Addr: tg.addr, Properties: wire.AppendStringField(nil, "product", "old")})
		sent := 0
		for _, c := range []*proxytest.Client{publisher, late, old} {
			must("confirm", c.Confirm(1))
		}
		confirmed("publisher", publisher)
		confirmed("old", old)
		sent += 2
		must("qos", consumer.Qos(1, 10))

		t.Cleanup(func() { alarm(t, tg.broker, false) })
		alarm(t, tg.broker, true)

		// RabbitMQ tells it when it publishes next.
		must("publish", publisher.Publish(1, "", in, []byte("x")))
		reason, err := blocked(publisher)
		must("the publisher is told", err)
		t.Logf("blocked: %s", reason)

		// Publishers that come late: with their connection from before, and with a new one.
		fresh := client("late, connected after")
		must("confirm", fresh.Confirm(1))
		for who, c := range map[string]*proxytest.Client{"late": late, "fresh": fresh} {
			must(who+": publish", c.Publish(1, "", in, []byte("x")))
			why, err := blocked(c)
			must(who+" is told", err)
			if why != reason {
				t.Errorf("%s is told %q, the first was told %q", who, why, reason)
			}
		}
		sent += 3

		// More than the prefetch come, so the acks reach the broker.
		_, err = consumer.Consume(1, full, "t", false)
		must("consume", err)
		for i := range messages {
			m, err := consumer.Delivery(1)
			must(fmt.Sprintf("delivery %d in the alarm", i), err)
			must("ack", consumer.Ack(1, m.Tag, false))
		}
		for i := range messages {
			m, err := getter.Get(1, got, false)
			must(fmt.Sprintf("get %d in the alarm", i), err)
			must("ack", getter.Ack(1, m.Tag, false))
		}
		// New readers come in too.
		reader := client("reader, connected after")
		if _, err := reader.Get(1, got, true); !errors.Is(err, proxytest.ErrEmpty) {
			t.Errorf("a reader that came late: %v, want an empty queue", err)
		}
		must("its close", reader.Close())
		must("the consumer's cancel", consumer.Cancel(1, "t"))
		o.empty(full)
		o.empty(got)
		for who, c := range map[string]*proxytest.Client{"consumer": consumer, "getter": getter, "idle": idle, "old": old} {
			must(who, silentFor(c, 50*time.Millisecond))
		}
		for who, c := range map[string]*proxytest.Client{"publisher": publisher, "late": late, "fresh": fresh} {
			must(who+" once blocked", silentFor(c, 50*time.Millisecond))
		}

		alarm(t, tg.broker, false)
		for who, c := range map[string]*proxytest.Client{"publisher": publisher, "late": late, "fresh": fresh} {
			if _, err := c.Await(0, wire.ConnectionUnblocked); err != nil {
				t.Fatalf("%s is not told that it is over: %v", who, err)
			}
			must(who+": confirm of what it published in the alarm", c.WaitConfirms(1))
			confirmed(who, c)
			sent++
		}
		confirmed("old", old)
		sent++
		for who, c := range map[string]*proxytest.Client{"publisher": publisher, "late": late, "fresh": fresh,
			"consumer": consumer, "getter": getter, "idle": idle, "old": old} {
			must(who+" after it", silentFor(c, 50*time.Millisecond))
			must(who+": close", c.Close())
		}
		if n := len(o.take(in, sent)); n != sent {
			t.Errorf("%d messages came in, want %d", n, sent)
		}

		// A second alarm is told anew, and ends as well when the publisher leaves meanwhile.
		again, leaves := client("again"), client("leaves")
		for _, c := range []*proxytest.Client{again, leaves} {
			must("confirm", c.Confirm(1))
			confirmed("again", c)
		}
		alarm(t, tg.broker, true)
		for _, c := range []*proxytest.Client{again, leaves} {
			must("publish", c.Publish(1, "", in, []byte("x")))
			_, err := blocked(c)
			must("told of the second alarm", err)
		}
		leaves.Abort()
		alarm(t, tg.broker, false)
		_, err = again.Await(0, wire.ConnectionUnblocked)
		must("told of the second alarm's end", err)
		must("confirm of what it published in the second alarm", again.WaitConfirms(1))
		confirmed("again", again)
		must("again after it", silentFor(again, 50*time.Millisecond))
		must("close", again.Close())
		canary(t, tg.addr)
	})
}

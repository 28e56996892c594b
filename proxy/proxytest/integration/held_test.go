// Many clients at once: how many connections the broker sees, what each costs the proxy.

//go:build linux

package integration

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// hold connects n clients with a channel that has been used, side by side.
func hold(t *testing.T, addr string, n int) (held []*proxytest.Client) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	next := make(chan int, n)
	for i := range n {
		next <- i
	}
	close(next)
	for range 8 {
		wg.Go(func() {
			for i := range next {
				c, err := proxytest.Dial(proxytest.ClientConfig{Addr: addr, Name: fmt.Sprintf("held %d", i), Timeout: patience})
				if err == nil {
					err = use(c)
				}
				mu.Lock()
				if err != nil {
					t.Errorf("client %d: %v", i, err)
				} else {
					held = append(held, c)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return held
}

// use opens a channel and publishes a message that no queue takes.
func use(c *proxytest.Client) error {
	if err := c.OpenChannel(1); err != nil {
		return err
	}
	if err := c.Confirm(1); err != nil {
		return err
	}
	if err := c.Publish(1, "", "nobody", []byte("one")); err != nil {
		return err
	}
	return c.WaitConfirms(1)
}

func TestHeldClients(t *testing.T) {
	const clients = 2000
	const perClient = 8 << 10
	through(t, func(t *testing.T, b *rabbit.Broker) {
		p := startProxy(t, false, b.URL(), "")
		canary(t, p.addr)
		base, before := p.usage(t), p.memory(t)
		began := time.Now()
		held := hold(t, p.addr, clients)
		took := time.Since(began)
		if len(held) != clients {
			t.Fatalf("%d of %d clients held", len(held), clients)
		}
		upstreams := connections(t, b, 0)
		if upstreams > 10 {
			t.Errorf("the broker sees %d connections, want at most 10", upstreams)
		}
		if n := int(p.metric(t, "amqproxy_client_connections")); n != clients {
			t.Errorf("the proxy counts %d clients, want %d", n, clients)
		}
		// A client that has just spoken still has its buffers and its stack; once it rests
		// they are given back, which takes seconds.
		fresh := (p.memory(t) - before) / clients
		each := fresh
		for deadline := time.Now().Add(patience); each > perClient && time.Now().Before(deadline); {
			time.Sleep(100 * time.Millisecond)
			each = (p.memory(t) - before) / clients
		}
		if each > perClient {
			t.Errorf("%d bytes of memory for each client, want at most %d", each, perClient)
		}
		t.Logf("FIGURE RabbitMQ %s: %d clients held with a used channel: %d upstreams, %d bytes resident for each at rest, %d at first, %d goroutines in all, connected in %v",
			b.Version, clients, upstreams, each, fresh, p.usage(t).goroutines, took.Round(10*time.Millisecond))
		for _, c := range held {
			c.Abort()
		}
		p.returnsTo(t, usage{base.goroutines + 2*upstreams, base.descriptors + upstreams})
		canary(t, p.addr)
	})
}

// Hours of mixed traffic with faults: `make soak SOAKTIME=8h`.

//go:build linux

package integration

import (
	"math/rand/v2"
	"os"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/relay"
)

// TestSoak lets every client library and ten publishers work in rounds, each ended by a
// fault of the path or the broker. No confirmed message may be lost, every round's canary
// must sing, and the proxy must hold at the end what it held after the first round.
func TestSoak(t *testing.T) {
	span := 20 * time.Second
	if s := os.Getenv("SOAKTIME"); s != "" && os.Getenv("SOAK") != "" {
		var err error
		if span, err = time.ParseDuration(s); err != nil {
			t.Fatalf("SOAKTIME: %v", err)
		}
	}
	through(t, func(t *testing.T, b *rabbit.Broker) {
		path, err := relay.New(b.Addr(), 0)
		if err != nil {
			t.Fatal(err)
		}
		defer path.Close()
		p := startProxy(t, true, "amqp://"+path.Addr(), "[upstream]\nheartbeat = \"2s\"\nretry_delay = \"100ms\"\n")
		faults := []struct {
			name string
			make func() error
		}{
			{"none", func() error { return nil }},
			{"path cut", func() error { path.Cut(); return nil }},
			{"path silent", func() error { path.Stall(true); return nil }},
			{"connections closed by the broker", func() error {
				_, err := b.Eval(`[rabbit_networking:close_connection(P, "soak") || P <- rabbit_networking:connections()], ok.`)
				return err
			}},
		}
		var base usage
		rounds, confirmed := 0, 0
		for end := time.Now().Add(span / 2); rounds < 2 || time.Now().Before(end); rounds++ {
			fault := faults[rand.IntN(len(faults))]
			o := observe(t, b)
			l := startLoad(t, p.addr, queues(o, publishers))
			c := &clients[rand.IntN(len(clients))]
			q := o.queue("short")
			c.run(t, "short", portOf(p.addr), q, 50)
			o.drainAny(q, 50)
			l.underway(t, 1000)
			if err := fault.make(); err != nil {
				t.Fatal(err)
			}
			if fault.name == "none" {
				l.stop()
			}
			ends := l.wait(t)
			path.Stall(false)
			path.Cut() // what was held back must not come in late
			eventually(t, "the next client is served after: "+fault.name, func() error {
				conn, err := dial(p.addr, amqp.Config{})
				if err != nil {
					return err
				}
				return conn.Close()
			})
			canary(t, p.addr)
			n, _ := nothingLost(t, observe(t, b), ends)
			confirmed += n
			if rounds == 0 {
				base = p.usage(t)
			}
			p.returnsTo(t, base)
			t.Logf("round %d: %s; %d confirmed, %+v, %d kB resident", rounds, fault.name, n, p.usage(t), p.memory(t)>>10)
		}
		t.Logf("FIGURE RabbitMQ %s: soaked for %v: %d rounds, %d confirmed messages, none lost, %d kB resident", b.Version, span/2, rounds, confirmed, p.memory(t)>>10)
	})
}

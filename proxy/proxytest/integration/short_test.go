// What the proxy exists for: PHP, one message per connection, to a broker behind TLS and
// a round trip of 50 ms.

//go:build linux

package integration

import (
	"fmt"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/relay"
)

func TestShortConnectionsOverALongPath(t *testing.T) {
	const oneWay = 25 * time.Millisecond
	const messages = 2000
	// The median through the proxy is at most this part of the straight one: 0.3 to 1.4 ms of 470
	// on a quiet machine. One that waited for the path once would take a ninth.
	const part = 40
	through(t, func(t *testing.T, b *rabbit.Broker) {
		path, err := relay.New(b.TLSAddr(), oneWay)
		if err != nil {
			t.Fatal(err)
		}
		defer path.Close()
		port := portOf(path.Addr())
		for _, c := range clients[:2] { // php-amqp, php-amqplib
			t.Run(c.name, func(t *testing.T) {
				o := observe(t, b)
				q := o.queue("q")

				tls := c
				tls.env = []string{"AMQP_CACERT=" + b.CAFile}
				const few = 10
				direct := tls.run(t, "short", port, q, few)
				o.drain(q, few)

				p := startProxy(t, false, "amqps://localhost:"+port, fmt.Sprintf("[tls]\nca_file = %q\n", b.CAFile))
				before := path.Total()
				r := c.run(t, "short", portOf(p.addr), q, messages)
				upstreams := connections(t, b, 1)
				o.drainAny(q, messages)
				first, rest := r.MS[0], r.MS[1:]
				t.Logf("FIGURE RabbitMQ %s, %s, one message per connection over TLS and %v: straight p50 %.0f ms; through the proxy p50 %.2f ms, p99 %.2f ms (the first %.0f ms), %d upstreams, %d of %d messages there",
					b.Version, c.name, 2*oneWay, percentile(direct.MS, 50), percentile(rest, 50), percentile(rest, 99), first, upstreams, messages, messages)
				if got, straight := percentile(rest, 50), percentile(direct.MS, 50); got > straight/part {
					t.Errorf("p50 is %.2f ms, want at most 1/%d of the straight one's %.0f ms", got, part, straight)
				}
				// Nor does one wait for what those before it left at the broker: that is on its way for as long.
				if held := p.metric(t, "amqproxysvc_held_behind_closes_total"); held > messages/100 {
					t.Errorf("%v of %d waited for a channel to come back, want %d at most", held, messages, messages/100)
				}
				if opened := path.Total() - before; upstreams != 1 || opened != 1 {
					t.Errorf("%d connections at the broker, %d opened, want 1", upstreams, opened)
				}
			})
		}
	})
}

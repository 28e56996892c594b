//go:build linux

// Crowds of one kind, ten thousand with FULL=1, and what the process takes for them beside the documented sum.

package hostile

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

func TestCrowds(t *testing.T) {
	const (
		mib         = 1 << 20
		program     = 40 * mib
		forClient   = 256 << 10
		forUpstream = 1 * mib
	)
	n := count(500, 10000)
	for _, k := range []struct {
		name     string
		settings string
		bounds   int // the sum's part that does not depend on who is there
		before   func(straight *proxytest.Client) error
		member   string
	}{
		{
			name:     "handshakes",
			member:   "a handshake",
			settings: "handshake_timeout = \"60s\"\n",
			bounds:   2 * n * 16 << 10,
		},
		{
			name:     "slow readers",
			member:   "a slow reader",
			settings: "message_buffer = \"16MiB\"\nmax_message_size = \"8MiB\"\nclient_queues = \"64MiB\"\nclient_queue = \"2MiB\"\n",
			bounds:   16*mib + 64*mib,
			before: func(straight *proxytest.Client) error {
				body := make([]byte, 100<<10) // of which the kernel's buffers take some
				for i := range n {
					q, err := straight.DeclareQueue(1, fmt.Sprint("slow-", i), 0)
					for range count(6, 2) {
						if err == nil {
							err = straight.Publish(1, "", q, body)
						}
					}
					if err != nil {
						return err
					}
				}
				return nil
			},
		},
		{
			name:     "half publishes",
			member:   "half a publish",
			settings: "message_buffer = \"64MiB\"\nmax_message_size = \"16MiB\"\nclient_queues = \"16MiB\"\nclient_queue = \"2MiB\"\n",
			bounds:   64*mib + 16*mib,
		},
	} {
		t.Run(k.name, func(t *testing.T) {
			r := start(t, setup{settings: fmt.Sprintf("[client]\nmax_handshakes = %d\n", 2*n) + k.settings + "[pool]\nidle_timeout = \"1s\"\n"})
			r.rests()
			r.crowd = n
			if k.before != nil {
				straight, err := login(r.broker, attacker)
				if err == nil {
					defer straight.Abort()
					err = k.before(straight)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			var wg sync.WaitGroup
			wg.Go(func() { apart{Kind: k.member, N: n, Side: n, Again: true}.run(ctx, t, r.addr) })
			resident, clients, upstreams, ended, there := 0, 0.0, 0.0, 0.0, 0
			look := func() error {
				m, err := r.metrics()
				if err != nil {
					return err
				}
				u, err := r.usage()
				if err != nil {
					return err
				}
				resident = max(resident, u.rss)
				clients, upstreams = max(clients, m["amqproxysvc_clients"]), max(upstreams, m["amqproxysvc_upstreams"])
				ended = m["amqproxysvc_slow_client_closes_total"]
				if there = max(there, u.descriptors-r.base.descriptors); there < n*9/10 { // some are ended, and on their way back
					return fmt.Errorf("%d of %d are there", there, n)
				}
				if k.name == "slow readers" && ended == 0 {
					return fmt.Errorf("%d are there, and not so much waits for them that one is ended", there)
				}
				return nil
			}
			if err := within(time.Duration(count(1, 5))*patience, look); err != nil {
				t.Fatalf("the crowd does not come: %v", err)
			}
			inUse := 0
			for range 5 {
				live, _, err := r.heap(http.Client{Timeout: patience})
				if err == nil {
					err = look()
				}
				if err != nil {
					t.Fatal(err)
				}
				inUse = max(inUse, live)
			}
			cancel()
			wg.Wait()
			if k.name == "handshakes" {
				clients = 0 // theirs is in the bounds
			}
			sum := program + k.bounds + int(clients)*forClient + int(upstreams)*forUpstream
			t.Logf("FIGURE %s: %d there: %d MiB in use and %d resident, the sum is %d MiB (%v clients, %v upstreams, %v slow ones ended)", t.Name(), there,
				inUse/mib, resident/mib, sum/mib, clients, upstreams, ended)
			var errs []error
			if inUse > sum || resident > 2*sum {
				errs = append(errs, fmt.Errorf("%d MiB are in use and %d resident, the sum is %d", inUse/mib, resident/mib, sum/mib))
			}
			errs = append(errs, r.returns())
			promise(t, errors.Join(errs...))
		})
	}
}

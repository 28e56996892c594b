//go:build linux

// Crowds of one kind, ten thousand with FULL=1, and what the process takes for them beside the documented sum.

package hostile

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
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
		one      func(ctx context.Context, addr string, i int)
	}{
		{
			name:     "handshakes",
			settings: fmt.Sprintf("max_handshakes = %d\nhandshake_timeout = \"60s\"\n", 2*n),
			bounds:   2 * n * 16 << 10,
			one: func(ctx context.Context, addr string, i int) {
				from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i%4))}} // an address has half of the places
				if c, err := from.DialContext(ctx, "tcp", addr); err == nil {
					b := append(slices.Clone(amqp.ProtocolHeader[:]), startOk("u9", "x", 7800)...)
					c.Write(b[:len(b)-1])
					hold(ctx, c)
				}
			},
		},
		{
			name:     "slow readers",
			settings: "message_buffer = \"16MiB\"\nmax_message_size = \"8MiB\"\nclient_queues = \"64MiB\"\nclient_queue = \"2MiB\"\n",
			bounds:   16*mib + 64*mib,
			before: func(straight *proxytest.Client) error {
				body := make([]byte, 100<<10) // of which the kernel's buffers take some
				for i := range n {
					q, err := straight.DeclareQueue(1, fmt.Sprint("slow-", i), 0)
					for range count(6, 3) {
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
			one: func(ctx context.Context, addr string, i int) {
				c, err := proxytest.Dial(proxytest.ClientConfig{Addr: addr, User: attacker, Password: users()[attacker], Timeout: patience, Dial: narrow})
				if err != nil {
					return
				}
				defer c.Abort()
				defer context.AfterFunc(ctx, c.Abort)()
				if c.OpenChannel(1) == nil && c.Qos(1, 10) == nil && c.SendMethod(1, amqp.BasicConsume, 0, fmt.Sprint("slow-", i), "", 0, nil) == nil {
					<-ctx.Done() // it does not read, nor does it hear that it is ended
				}
			},
		},
		{
			name:     "half publishes",
			settings: "message_buffer = \"64MiB\"\nmax_message_size = \"16MiB\"\nclient_queues = \"16MiB\"\nclient_queue = \"2MiB\"\n",
			bounds:   64*mib + 16*mib,
			one: func(ctx context.Context, addr string, i int) {
				c, err := login(addr, attacker)
				if err != nil {
					return
				}
				defer c.Abort()
				defer context.AfterFunc(ctx, c.Abort)()
				if c.Send(append(announce(1, 41000), proxytest.Body(1, make([]byte, 40000))...)) == nil {
					hold(ctx, c.Conn()) // who is ended comes back
				}
			},
		},
	} {
		t.Run(k.name, func(t *testing.T) {
			r := start(t, setup{settings: "[client]\n" + k.settings + "[pool]\nidle_timeout = \"1s\"\n"})
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
			wg.Go(func() {
				crowd(ctx, n, n, func(ctx context.Context, i int) {
					for ctx.Err() == nil {
						k.one(ctx, r.addr, i)
						rest(ctx, 50*time.Millisecond)
					}
				})
			})
			resident, clients, upstreams, there := 0, 0.0, 0.0, 0
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
				if there = max(there, u.descriptors-r.base.descriptors); there < n*9/10 { // some are ended, and on their way back
					return fmt.Errorf("%d of %d are there", there, n)
				}
				return nil
			}
			r.eventually("the crowd is there", look)
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
			t.Logf("FIGURE %s: %d there: %d MiB in use and %d resident, the sum is %d MiB (%v clients, %v upstreams)", t.Name(), there,
				inUse/mib, resident/mib, sum/mib, clients, upstreams)
			var errs []error
			if inUse > sum || resident > 2*sum {
				errs = append(errs, fmt.Errorf("%d MiB are in use and %d resident, the sum is %d", inUse/mib, resident/mib, sum/mib))
			}
			errs = append(errs, r.returns())
			promise(t, errors.Join(errs...))
		})
	}
}

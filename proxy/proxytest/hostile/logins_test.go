//go:build linux

// How long logins of others take beside strangers who try passwords, through the proxy and straight at the
// broker under the same attack; and what the proxy's threads had of the cores meanwhile.

package hostile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// logins are those of others for a time.
type logins struct {
	took   []time.Duration
	failed []error
}

func (l logins) String() string {
	r := func(q float64) time.Duration { return p(l.took, q).Round(100 * time.Microsecond) }
	return fmt.Sprintf("n=%d p50=%v p90=%v p99=%v max=%v failed %d", len(l.took), r(.5), r(.9), r(.99), r(1), len(l.failed))
}

// logIn has four clients log in ten times a second each until the context ends.
func logIn(ctx context.Context, addr string) (l logins) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			rest(ctx, time.Duration(i)*25*time.Millisecond)
			for ctx.Err() == nil {
				began := time.Now()
				c, err := login(addr, victim)
				took := time.Since(began)
				if err == nil {
					err = c.Close()
				}
				mu.Lock()
				if err != nil {
					l.failed = append(l.failed, fmt.Errorf("after %v: %w", time.Since(began).Round(time.Millisecond), err))
				} else {
					l.took = append(l.took, took)
				}
				mu.Unlock()
				rest(ctx, 100*time.Millisecond)
			}
		})
	}
	wg.Wait()
	return l
}

// Twelve thousand strangers in eight seconds, and again for as long as it takes.
func TestLoginsBesideStrangers(t *testing.T) {
	if !full && os.Getenv("LOGINS") == "" {
		t.Skip("measures for minutes: FULL=1")
	}
	const rate = 12000 / 8
	length := 24 * time.Second
	for _, k := range guessers[:2] {
		for _, rabbitmq := range []bool{false, true} {
			name := k.name + " before a stand-in"
			if rabbitmq {
				name = k.name + " before RabbitMQ"
			}
			t.Run(name, func(t *testing.T) {
				at := ""
				if rabbitmq {
					at = realBroker(t, rabbit.V310).Addr()
				}
				r := start(t, setup{broker: at, settings: "[pool]\nidle_timeout = \"1s\"\nauth_ttl = \"1s\"\n"})
				if err := once(r.addr, victim); err != nil { // the broker has accepted the user before
					t.Fatal(err)
				}
				beside := func(addr string, attacked string) (l logins) {
					ctx, cancel := context.WithTimeout(t.Context(), length)
					defer cancel()
					ran, waited := r.onCores()
					var wg sync.WaitGroup
					came := 0
					if attacked != "" {
						wg.Go(func() { came = apart{Kind: k.name, N: 1 << 30, Side: 400, Rate: rate}.run(ctx, t, attacked) })
					}
					if attacked == r.addr {
						wg.Go(func() { r.save(fmt.Sprintf("profile?seconds=%d", length/time.Second-2), ".cpu") })
					}
					l = logIn(ctx, addr)
					wg.Wait()
					if attacked == r.addr {
						r.save("mutex", ".mutex")
						r.save("block", ".block")
					}
					ranNow, waitedNow := r.onCores()
					t.Logf("FIGURE %s: logins at %s, %d strangers at %s in %v: %v; the proxy's threads ran for %v and waited for a core for %v", t.Name(),
						r.called(addr), came, r.called(attacked), length, l, (ranNow - ran).Round(time.Millisecond), (waitedNow - waited).Round(time.Millisecond))
					return l
				}
				straight := beside(r.broker, "")
				straightLoud := beside(r.broker, r.broker)
				rest(t.Context(), 3*time.Second) // what is left of it in the broker
				quiet := beside(r.addr, "")
				loud := beside(r.addr, r.addr)
				var err error
				if n := len(loud.failed) + len(quiet.failed); n > 0 {
					err = fmt.Errorf("%d logins failed, the first ones: %w", n, errors.Join(slices.Concat(quiet.failed, loud.failed)[:min(n, 5)]...))
				}
				t.Logf("FIGURE %s: p99 through the proxy %.1f x quiet, straight under the same %.1f x quiet", t.Name(),
					float64(p(loud.took, .99))/float64(p(quiet.took, .99)), float64(p(straightLoud.took, .99))/float64(p(straight.took, .99)))
				promise(t, err)
			})
		}
	}
}

// called is what an address is of.
func (r *rig) called(addr string) string {
	switch addr {
	case r.addr:
		return "the proxy"
	case r.broker:
		return "the broker"
	}
	return "nobody"
}

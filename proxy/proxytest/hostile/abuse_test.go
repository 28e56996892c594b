//go:build linux

// Everything at once: tenants at random, strangers, guessers, hoarders, floods and what else attacks, while the broker and
// the path to it fail in turn, for as long as ABUSETIME says. `make abuse` runs it.

package hostile

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/relay"
)

// abuser is an attack with as many side by side as leave a slow machine something for the tenants.
type abuser struct {
	attack
	side int
}

func abusers(r *rig) (all []abuser) {
	with := func(side int, attacks ...attack) {
		for _, a := range attacks {
			all = append(all, abuser{a, side})
		}
	}
	with(60, strangers...)
	with(8, guessers...)
	with(6, hoarders...)
	with(1, floods...)
	with(40, attack{"half requests to the HTTP port", func(ctx context.Context, _ string, _ int) {
		if c, err := dial(r.http); err == nil {
			fmt.Fprintf(c, "GET /metrics HTTP/1.1\r\nHost: ")
			hold(ctx, c)
		}
	}})
	with(2, attack{"hard errors", func(ctx context.Context, addr string, i int) {
		c, err := proxytest.Dial(proxytest.ClientConfig{Addr: addr, User: attacker, Password: users()[attacker], Name: fmt.Sprint("worker ", i), Timeout: patience})
		if err != nil {
			return
		}
		defer c.Abort()
		if errors.Join(c.OpenChannel(1), c.Confirm(1), c.Publish(1, "", "nowhere", []byte("x")), c.WaitConfirms(1)) == nil {
			c.Call(proxytest.Method(1, amqp.ExchangeDeclare, 0, "x", "bogus", 0, nil), amqp.ExchangeDeclareOk)
		}
		rest(ctx, 200*time.Millisecond)
	}})
	with(15, attack{"exclusive queues", func(ctx context.Context, addr string, _ int) {
		c, err := login(addr, attacker)
		if err != nil {
			return
		}
		defer c.Abort()
		defer context.AfterFunc(ctx, c.Abort)()
		if _, err := c.DeclareQueue(1, "", proxytest.Exclusive); err == nil {
			hold(ctx, c.Conn())
		}
	}})
	return all
}

// TestAbuse: no confirmed message lost, none to a stranger, no race, and at the end nothing is held.
func TestAbuse(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv("ABUSETIME"))
	if err != nil {
		t.Skip("`make abuse` runs it, for ABUSETIME")
	}
	b := realBroker(t, rabbit.V310)
	path, err := relay.New(b.Addr(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer path.Close()
	r := start(t, setup{race: true, broker: path.Addr(), settings: "[upstream]\nheartbeat = \"5s\"\nretry_delay = \"100ms\"\n" +
		"[client]\nhandshake_timeout = \"5s\"\nclose_timeout = \"2s\"\nmessage_buffer = \"64MiB\"\nmax_message_size = \"16MiB\"\nclient_queues = \"32MiB\"\nclient_queue = \"1MiB\"\n" +
		"[pool]\nidle_timeout = \"2s\"\nauth_ttl = \"2s\"\n"})
	r.rests()
	r.crowd = 2000

	faults := []struct {
		name       string
		begin, end func() error
	}{
		{"path cut", func() error { path.Cut(); return nil }, nil},
		{"path silent", func() error { path.Stall(true); return nil }, func() error { path.Stall(false); return nil }},
		{"connections closed by the broker", func() error {
			_, err := b.Eval(`[rabbit_networking:close_connection(P, "abuse") || P <- rabbit_networking:connections()], ok.`)
			return err
		}, nil},
		{"broker frozen", b.Pause, b.Resume},
		{"memory alarm", func() error {
			_, err := b.Eval(`rabbit_alarm:set_alarm({{resource_limit, memory, node()}, []}).`)
			return err
		}, func() error {
			_, err := b.Eval(`rabbit_alarm:clear_alarm({resource_limit, memory, node()}).`)
			return err
		}},
	}
	made, came := make(map[string]int), make(map[string]int)
	var mu sync.Mutex
	var broken error
	note := func(of map[string]int, name string) {
		mu.Lock()
		of[name]++
		mu.Unlock()
	}
	began := time.Now()
	err = fuzz(t, r, b.Addr(), length, true, func(ctx context.Context) {
		var wg sync.WaitGroup
		for range 2 { // attacks at a time
			wg.Go(func() {
				for ctx.Err() == nil {
					all := abusers(r)
					rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
					for _, a := range all {
						short, cancel := context.WithTimeout(ctx, time.Duration(3+rand.IntN(10))*time.Second)
						crowd(short, 1<<30, a.side, func(ctx context.Context, i int) {
							note(came, a.name)
							a.one(ctx, r.addr, i)
							rest(ctx, 20*time.Millisecond)
						})
						cancel()
					}
				}
			})
		}
		wg.Go(func() {
			for told := 0; ctx.Err() == nil; {
				rest(ctx, time.Duration(1+rand.IntN(8))*time.Second)
				f := faults[rand.IntN(len(faults))]
				if f.begin() != nil { // whoever asks the broker for it may be cut as well
					note(made, "not made")
					continue
				}
				if f.end != nil {
					rest(ctx, time.Duration(200+rand.IntN(3000))*time.Millisecond)
					if err := within(patience, f.end); err != nil {
						broken = fmt.Errorf("the fault %q does not end: %w", f.name, err)
						return
					}
				}
				note(made, f.name)
				if minutes := int(time.Since(began) / (5 * time.Minute)); minutes > told {
					told = minutes
					mu.Lock()
					t.Logf("after %v: %v faults, attacks %v, %d MiB resident", time.Since(began).Round(time.Second), made, came, rss(r.cmd.Process.Pid)>>20)
					mu.Unlock()
				}
			}
		})
		wg.Wait()
	})
	sum := func(of map[string]int) (n int) {
		for _, k := range of {
			n += k
		}
		return n
	}
	t.Logf("FIGURE %s: %v, %d faults %v, %d attackers %v, at the end %d MiB resident", t.Name(), time.Since(began).Round(time.Second),
		sum(made), made, sum(came), came, rss(r.cmd.Process.Pid)>>20)
	if broken == nil && (sum(made) == 0 || slices.ContainsFunc(abusers(r), func(a abuser) bool { return length > 10*time.Minute && came[a.name] == 0 })) {
		broken = errors.New("not everything was tried")
	}
	promise(t, errors.Join(err, broken, r.returns()))
}

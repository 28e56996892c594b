// The wait for a place at max_upstreams.

package proxy

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/wait"
)

// gateOf is a proxy's gate with the given bounds.
func gateOf(t testing.TB, most, perIdentity int) (*gate, *Config) {
	cfg := DefaultConfig()
	cfg.MaxUpstreams, cfg.MaxUpstreamsPerIdentity = most, perIdentity
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
	return &s.gate, &cfg
}

// takers wait for places, in order; each tells its number when it has one.
func takers(t *testing.T, g *gate, p *pool, from, n int, got chan int) {
	for i := range n {
		go func() {
			if _, e := g.take(&placeWanted{p: p}); e != nil {
				t.Errorf("taker %d: %v", from+i, e)
			}
			got <- from + i
		}()
		synctest.Wait()
	}
}

// A place goes to who came first, one wakes for one place, and nobody overtakes.
func TestGateServesInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, cfg := gateOf(t, 2, 0)
		got := make(chan int, 8)
		takers(t, g, nil, 0, 2, got)
		<-got
		<-got
		takers(t, g, nil, 2, 4, got)
		time.Sleep(time.Second)
		if n, longest := g.waiting(); n != 4 || longest != time.Second {
			t.Errorf("%d wait, the first for %v; want 4, 1s", n, longest)
		}
		if g.try() != nil {
			t.Error("there was a place with none free")
		}
		for want := 2; want < 4; want++ {
			g.give(nil)
			if g.try() != nil {
				t.Error("who only tries overtook those who wait")
			}
			synctest.Wait()
			if len(got) != 1 || <-got != want {
				t.Errorf("for the place came %d more, want taker %d alone", len(got), want)
			}
		}
		more := *cfg
		more.MaxUpstreams = 4
		g.s.setConfig(more) // those who wait come before who only tries, here too
		synctest.Wait()
		if len(got) != 2 || <-got+<-got != 4+5 {
			t.Error("a bound that was raised served not both that waited")
		}
		if n, _ := g.waiting(); n != 0 || g.used != 4 || g.waiters.Load() != 0 {
			t.Errorf("%d wait, %d used", n, g.used)
		}
	})
}

// Who waits for his own identity's bound holds up nobody of another, and a wait ends.
func TestGateByIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, cfg := gateOf(t, 0, 1)
		a, b := &pool{s: g.s, env: g.env}, &pool{s: g.s, env: g.env}
		got := make(chan int, 8)
		takers(t, g, a, 0, 1, got)
		<-got
		waited := make(chan *amqp.Error, 1)
		began := time.Now()
		go func() { _, e := g.take(&placeWanted{p: a}); waited <- e }()
		synctest.Wait()
		takers(t, g, b, 1, 1, got)
		if len(got) != 1 {
			t.Error("one identity's bound holds up another")
		}
		if _, e := g.take(&placeWanted{p: a, beyond: true}); e != nil {
			t.Errorf("beyond the bound: %v", e)
		}
		a.waiting = 3
		if n, _ := g.waiting(); n != 3 {
			t.Errorf("%d clients wait, want the 3 that share the connection", n)
		}
		if e := <-waited; e == nil || !strings.Contains(e.Text, "max_upstreams_per_identity = 1 ") || time.Since(began) != cfg.WaitTimeout {
			t.Errorf("heard %v after %v, want a refusal after wait_timeout", e, time.Since(began))
		}
		if n, _ := g.waiting(); n != 0 || g.used != 3 || a.opening != 2 || b.opening != 1 {
			t.Errorf("%d wait, %d used, %d and %d of the two", n, g.used, a.opening, b.opening)
		}
	})
}

// Whoever comes, leaves and gives back, the places that are free are those's who came first and can use them: as if
// everybody who waits were looked at each time.
func TestGateServesAsIfAllWereLookedAt(t *testing.T) {
	type waiter struct {
		place  *wait.Place[*placeWanted]
		p      *pool
		beyond bool
		served bool
	}
	for seed := range uint64(20) {
		const most, perIdentity = 6, 2
		g, _ := gateOf(t, most, perIdentity)
		rnd := rand.New(rand.NewPCG(seed, 0))
		pools := []*pool{nil}
		for range 4 {
			pools = append(pools, &pool{s: g.s, env: g.env})
		}
		var line, have []*waiter
		used, of := 0, map[*pool]int{}
		serve := func() {
			line = slices.DeleteFunc(line, func(w *waiter) bool {
				if used == most || w.p != nil && !w.beyond && of[w.p] >= perIdentity {
					return false
				}
				used++
				of[w.p]++
				w.served = true
				have = append(have, w)
				return true
			})
		}
		for step := range 500 {
			switch n := rnd.IntN(5); {
			case n < 2 && len(line) < 30:
				w := &waiter{p: pools[rnd.IntN(len(pools))]}
				w.beyond = w.p != nil && rnd.IntN(8) == 0
				g.mu.Lock()
				w.place = g.joinLocked(&placeWanted{p: w.p, beyond: w.beyond, look: make(chan struct{}, 1)})
				g.mu.Unlock()
				line = append(line, w)
			case n == 2 && len(line) > 0:
				i := rnd.IntN(len(line))
				if !g.leave(line[i].place) {
					t.Fatalf("seed %d, step %d: the place that is left has been served", seed, step)
				}
				line = slices.Delete(line, i, i+1)
			case n > 2 && len(have) > 0:
				i := rnd.IntN(len(have))
				w := have[i]
				(&berth{g: g, p: w.p, opening: w.p != nil}).leave()
				used--
				of[w.p]--
				have = slices.Delete(have, i, i+1)
			}
			serve()
			for _, w := range append(slices.Clone(line), have...) {
				select {
				case <-w.place.Served():
					if !w.served {
						t.Fatalf("seed %d, step %d: one is served who is not to be", seed, step)
					}
				default:
					if w.served {
						t.Fatalf("seed %d, step %d: one waits who has a place", seed, step)
					}
				}
			}
			if g.used != used || int(g.waiters.Load()) != len(line) {
				t.Fatalf("seed %d, step %d: %d used and %d wait, want %d and %d", seed, step, g.used, g.waiters.Load(), used, len(line))
			}
		}
		for _, w := range line {
			g.leave(w.place)
		}
		if len(g.rows)+len(g.order) != 0 {
			t.Errorf("seed %d: %d rows are left when nobody waits", seed, len(g.rows)+len(g.order))
		}
	}
}

// A berth is given back once, and in all that it counts in.
func TestBerthIsLeftOnce(t *testing.T) {
	g, _ := gateOf(t, 3, 1)
	p := &pool{s: g.s, env: g.env}
	spare := g.try() // a login whose vhost is not named yet
	if spare == nil || !spare.join(p) || g.used != 1 || p.opening != 1 {
		t.Fatalf("%d used, %d on their way", g.used, p.opening)
	}
	other := g.try()
	if other.join(p) {
		t.Error("a place beyond the pool's bound")
	}
	for range 2 {
		spare.leave()
		if g.used != 1 || p.opening != 0 {
			t.Errorf("after one has left %d are used, %d on their way", g.used, p.opening)
		}
	}
	if !other.join(p) {
		t.Error("there is no place in the pool")
	}
	p.mu.Lock()
	other.arrivedLocked()
	p.mu.Unlock()
	other.leave()
	if g.used != 0 || p.opening != 0 {
		t.Errorf("in the end %d are used, %d on their way", g.used, p.opening)
	}
}

// Clients that share a login count each, whether it is the broker's word on their password that
// waits for a place or their vhost.
func TestWaitingIsCountedInClients(t *testing.T) {
	for _, known := range []bool{false, true} {
		users := map[string]string{"guest": "guest", "b": "b"}
		withBroker(t, proxytest.BrokerConfig{Users: users}, func(c *Config) {
			c.Listeners[0].Mode, c.MaxUpstreams, c.IdleTimeout, c.AuthTTL = PoolShared, 1, time.Second, time.Second
		}, func(r *rig) {
			b := proxytest.ClientConfig{User: "b", Password: "b"}
			if known {
				c, err := r.login(b)
				r.must(err)
				_ = c.Hangup()
				time.Sleep(time.Minute) // nothing stands for it, and it is to be asked anew
			}
			busy := r.client(proxytest.ClientConfig{})
			r.must(busy.Publish(1, "", "q", nil))
			synctest.Wait() // its connection is not idle now
			type login struct {
				c   *proxytest.Client
				err error
			}
			in := make(chan login, 3)
			for range 3 {
				go func() {
					c, err := r.login(b)
					in <- login{c, err}
				}()
			}
			time.Sleep(time.Second)
			if st := r.s.Stats(); st.Waiting != 3 || st.LongestWait <= 0 {
				t.Errorf("known %v: %d clients wait, for %v at most; want 3", known, st.Waiting, st.LongestWait)
			}
			_ = busy.Hangup()
			for range 3 {
				l := <-in
				r.must(l.err)
				_ = l.c.Hangup()
			}
			synctest.Wait()
			if st := r.s.Stats(); st.Waiting != 0 {
				t.Errorf("known %v: %d clients wait, want none", known, st.Waiting)
			}
		})
	}
}

// BenchmarkGate is what it costs one who comes, who leaves, and who has something idle, while others wait: for any
// place, each for a place of his own, or all for one and the same.
func BenchmarkGate(b *testing.B) {
	for _, n := range []int{1, 1000, 10_000} {
		for _, c := range []struct {
			name              string
			most, perIdentity int
			pools             int
		}{{"max_upstreams", 1, 0, n}, {"one pool", 0, 1, 1}, {"a pool each", 0, 1, n}} {
			begin := func(b *testing.B) (*gate, *pool) {
				g, _ := gateOf(b, c.most, c.perIdentity)
				pools := make([]*pool, c.pools)
				for i := range pools {
					pools[i] = &pool{s: g.s, env: g.env, id: identity{user: fmt.Sprint(i), vhost: "/"}}
					if c.most == 0 {
						g.joinLocked(&placeWanted{p: pools[i], look: make(chan struct{}, 1)})
					}
				}
				if c.most > 0 {
					g.joinLocked(&placeWanted{look: make(chan struct{}, 1)})
				}
				for i := range n {
					g.joinLocked(&placeWanted{p: pools[i%len(pools)], session: true, look: make(chan struct{}, 1)})
				}
				if w := g.waiters.Load(); int(w) != n {
					b.Fatalf("%d wait, want %d", w, n)
				}
				return g, pools[0]
			}
			b.Run(fmt.Sprintf("%s/%d/join and leave", c.name, n), func(b *testing.B) {
				g, p := begin(b)
				for b.Loop() {
					g.mu.Lock()
					place := g.joinLocked(&placeWanted{p: p, session: true, look: make(chan struct{}, 1)})
					g.mu.Unlock()
					g.leave(place)
				}
			})
			b.Run(fmt.Sprintf("%s/%d/idle", c.name, n), func(b *testing.B) {
				g, p := begin(b)
				for b.Loop() {
					g.idle(p)
				}
			})
		}
	}
}

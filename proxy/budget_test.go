package proxy

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// hoardOf is a client's that has announced 100 octets.
func hoardOf(user string) *hoard { return &hoard{c: &client{}, name: user, need: 100} }

// Smaller wants pass a large one that does not fit, however long that has waited; what is given back goes to
// those who wait.
func TestRoomIsGivenInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &budget{}
		g.resize(1000, 10)
		g.most = 100
		keeper, big := hoardOf("a"), hoardOf("b")
		if !g.try(keeper, 100) || !g.try(hoardOf("c"), 450) || !g.try(hoardOf("d"), 400) {
			t.Fatal("what fits is not given")
		}
		served := make(chan string, 4)
		ask := func(ctx context.Context, name string, h *hoard, n int64) {
			go func() {
				if g.acquire(ctx, h, n, nil) {
					served <- name
				}
			}()
			synctest.Wait()
		}
		short, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		ask(short, "big", big, 200)
		small := hoardOf("e")
		if !g.try(small, 50) {
			t.Error("a small want that fits waits behind a large one that does not")
		}
		g.release(small, 50, 0)
		ask(t.Context(), "second", hoardOf("f"), 60)
		time.Sleep(4 * time.Second)
		if !g.try(small, 20) {
			t.Error("a large want that does not fit holds up a small one in the end")
		}
		g.release(small, 20, 0)
		if len(served) != 0 {
			t.Fatalf("%s was served without room", <-served)
		}
		time.Sleep(2 * time.Second) // the large one gives up
		g.release(keeper, 100, 0)
		if got := <-served; got != "second" {
			t.Errorf("served %q", got)
		}
		gone := make(chan struct{})
		close(gone)
		if g.acquire(t.Context(), hoardOf("g"), 5000, gone) {
			t.Error("room was given to a client that is gone")
		}
	})
}

// Who holds room, and wants much more, gets it beside any number of small publishes that come and go and leave no gap:
// it is the one that has held room for longest in the end.
func TestALargeWantIsNotStarved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &budget{}
		g.resize(400, 10)
		g.most = 100
		ctx, cancel := context.WithCancel(t.Context())
		var small sync.WaitGroup
		for i := range 40 {
			small.Go(func() {
				for ctx.Err() == nil {
					h := &hoard{c: &client{}, name: fmt.Sprint(i), need: 10}
					if !g.acquire(ctx, h, 10, nil) {
						return
					}
					time.Sleep(time.Duration(1+i%7) * time.Millisecond)
					g.release(h, 10, 10)
				}
			})
		}
		time.Sleep(50 * time.Millisecond)
		large := hoardOf("large")
		if !g.acquire(ctx, large, 10, nil) {
			t.Fatal("it holds no room")
		}
		waits, gaveUp := context.WithTimeout(ctx, time.Second)
		defer gaveUp()
		if !g.acquire(waits, large, 90, nil) {
			t.Error("it was passed for ever")
		}
		cancel()
		small.Wait()
	})
}

// One user's clients leave half of the room to others, and the first to hold room never waits.
func TestRoomIsShared(t *testing.T) {
	g := &budget{}
	g.resize(1000, 10)
	g.most = 100
	first, second := hoardOf("a"), hoardOf("a")
	if !g.try(first, 50) || !g.try(second, 450) {
		t.Fatal("half of the room is not a user's to have")
	}
	if g.try(second, 1) {
		t.Error("a user has more than half")
	}
	if !g.try(hoardOf("b"), 400) {
		t.Error("the other half is not another user's to have")
	}
	if g.try(hoardOf("c"), 51) {
		t.Error("what the first may still need is given away")
	}
	if !g.try(hoardOf("c"), 50) || !g.try(first, 50) || g.used != 1000 {
		t.Errorf("room is left unused: %d of 1000", g.used)
	}
	g.release(first, 100, 100)
	if !g.try(second, 100) || g.used > 1000 {
		t.Errorf("the second, now first of its user, has no room; %d used", g.used)
	}
}

// However publishes meet in a buffer that holds few of them, each gets its room in the end, and
// there is never more in use than there is.
func TestNobodyIsStuckHalfWay(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			g := &budget{}
			g.resize(400_000, 100_000)
			over := func() {
				g.mu.Lock()
				defer g.mu.Unlock()
				if g.used > g.size {
					t.Errorf("%d of %d in use", g.used, g.size)
				}
			}
			var wg sync.WaitGroup
			for i := range 20 {
				wg.Go(func() {
					r := rand.New(rand.NewPCG(seed, uint64(i)))
					h := &hoard{c: &client{}, name: fmt.Sprint(i % 3)}
					for range 10 {
						need := roomOf(1 + r.Int64N(100_000))
						g.announce(h, need)
						held := int64(0)
						for held < need {
							n := min(need-held, 1+r.Int64N(20_000))
							if !g.try(h, n) && !g.acquire(t.Context(), h, n, nil) {
								t.Error("no room")
								return
							}
							held += n
							over()
							time.Sleep(time.Duration(r.IntN(5)) * time.Millisecond)
						}
						g.release(h, held, need)
					}
				})
			}
			wg.Wait()
			if g.used != 0 || g.first != nil || len(g.users) != 0 || g.wanted() {
				t.Errorf("%d in use at the end, by %d users", g.used, len(g.users))
			}
		})
	}
}

// trickle announces a large publish and goes on with an octet every five seconds, until it is ended.
func trickle(c *proxytest.Client, announced uint64, begin int) {
	p := append(proxytest.Method(1, amqp.BasicPublish, 0, "", "q", 0), proxytest.Header(1, announced)...)
	for ; begin > 0; begin -= 100_000 {
		p = append(p, proxytest.Body(1, make([]byte, min(begin, 100_000)))...)
	}
	for {
		if c.Send(p) != nil {
			return
		}
		p = proxytest.Body(1, []byte("x"))
		time.Sleep(5 * time.Second)
	}
}

// Who announces much and sends little holds up nobody; who has sent much and then sends little is
// ended for those that wait, within a second.
func TestTricklersHoldUpNobody(t *testing.T) {
	for _, test := range []struct {
		name  string
		begin int // what each trickler sends at once
		users int
		ended bool
	}{
		{"announced", 1, 1, false},
		{"half sent by one user", 800_000, 1, true},
		{"half sent by three", 800_000, 3, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			withScript(t, 0, func(c *Config) { c.MaxMessageSize, c.MessageBuffer = 1<<20, 8<<20 }, func(r *rig) {
				victim, p := r.pair(proxytest.ClientConfig{User: "victim", Password: "p"})
				r.must(victim.Publish(1, "", "q", nil))
				p.OpenChannel()
				p.ExpectContent(amqp.BasicPublish)
				var tricklers []*proxytest.Client
				var wg sync.WaitGroup
				defer wg.Wait()
				defer func() {
					for _, c := range append(tricklers, victim) {
						_ = c.Hangup()
					}
				}()
				for i := range 12 {
					user := fmt.Sprint("hog", i%test.users)
					var c *proxytest.Client
					if i < test.users {
						c, _ = r.pair(proxytest.ClientConfig{User: user, Password: "p"})
					} else {
						c = r.client(proxytest.ClientConfig{User: user, Password: "p"})
					}
					tricklers = append(tricklers, c)
					wg.Go(func() { trickle(c, 1<<20, test.begin) })
				}
				time.Sleep(12 * time.Second)
				var worst time.Duration
				for range 10 {
					whole := proxytest.PublishBytes(1, "", "q", bytes.Repeat([]byte("v"), 300<<10), 131072)
					began := time.Now()
					r.must(victim.Send(whole[:100<<10]))
					synctest.Wait()
					r.must(victim.Send(whole[100<<10:]))
					p.ExpectContent(amqp.BasicPublish)
					worst = max(worst, time.Since(began))
				}
				if worst > time.Second {
					t.Errorf("a publish took %v", worst)
				}
				if n := r.s.Stats().SlowPublishCloses; (n > 0) != test.ended {
					t.Errorf("%d clients were ended, want some: %v", n, test.ended)
				}
			})
		})
	}
}

// Clients that each gather more than one message and have all come to wait for one another are
// ended until the others can go on, also when they have hung up, which nobody reads then.
func TestWhoWaitForOneAnotherAreEnded(t *testing.T) {
	users := map[string]string{"hog0": "p", "hog1": "p", "victim": "p"}
	withBroker(t, proxytest.BrokerConfig{Users: users}, func(c *Config) { c.MaxMessageSize, c.MessageBuffer = 1<<20, 8<<20 }, func(r *rig) {
		victim := r.client(proxytest.ClientConfig{User: "victim", Password: "p"})
		r.must(victim.Confirm(1))
		var wg sync.WaitGroup
		var hogs []*proxytest.Client
		for i := range 6 {
			c := r.client(proxytest.ClientConfig{User: fmt.Sprint("hog", i%2), Password: "p"})
			hogs = append(hogs, c)
			wg.Go(func() {
				for ch := uint16(2); ch < 62; ch++ {
					p := append(proxytest.Method(ch, amqp.ChannelOpen, ""), proxytest.Method(ch, amqp.BasicPublish, 0, "", "q", 0)...)
					p = append(append(p, proxytest.Header(ch, 110_000)...), proxytest.Body(ch, make([]byte, 100_000))...)
					if c.Send(p) != nil {
						return
					}
				}
			})
		}
		time.Sleep(5 * time.Second)
		for _, c := range hogs {
			_ = c.Hangup()
		}
		wg.Wait()
		began := time.Now()
		whole := proxytest.PublishBytes(1, "", "q", make([]byte, 300<<10), 131072)
		r.must(victim.Send(whole[:100<<10]))
		synctest.Wait()
		r.must(victim.Send(whole[100<<10:]))
		if _, err := victim.Await(1, amqp.BasicAck); err != nil {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		time.Sleep(15 * time.Second)
		r.s.budget.mu.Lock()
		used := r.s.budget.used
		r.s.budget.mu.Unlock()
		if n := r.s.Stats().Clients; n != 1 || used != 0 {
			t.Errorf("%d clients are left and %d bytes in use, long after the others have hung up", n, used)
		}
		_ = victim.Hangup()
	})
}

// BenchmarkRoom is what it costs one who asks in vain and hangs up, and one who gives back a little, while others hold the room
// and wait for more: clients of one user, who have their share, or users, who have all there is.
func BenchmarkRoom(b *testing.B) {
	gone := make(chan struct{})
	close(gone)
	for _, n := range []int{10, 1000, 10_000} {
		for _, users := range []int{1, n} {
			g := &budget{}
			g.resize(1<<30, 1<<20)
			all := g.size / 2
			if users > 1 {
				all = g.size
			}
			var hoards []*hoard
			for i := range n {
				h := hoardOf(fmt.Sprint(i % users))
				h.need = g.most
				hoards = append(hoards, h)
				if i == 0 {
					g.giveLocked(h, g.most)
				} else {
					g.giveLocked(h, (all-g.most)/int64(n-1))
				}
			}
			for _, h := range hoards[1:] {
				h.waits = g.line.JoinLocked(want{h, roomStep})
			}
			b.Run(fmt.Sprintf("%d users/%d/ask", users, n), func(b *testing.B) {
				h := hoardOf("0")
				for b.Loop() {
					if g.acquire(b.Context(), h, g.size/2, gone) {
						b.Fatal("there was room")
					}
				}
			})
			b.Run(fmt.Sprintf("%d users/%d/give back", users, n), func(b *testing.B) {
				h := hoards[n-1]
				for b.Loop() {
					g.release(h, 1, 0)
					g.mu.Lock()
					g.giveLocked(h, 1)
					g.mu.Unlock()
				}
			})
			if w := g.line.LenLocked(); w != n-1 {
				b.Fatalf("%d wait, want %d", w, n-1)
			}
		}
	}
}

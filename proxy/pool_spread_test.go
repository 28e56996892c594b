package proxy

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

func spread(n int) func(*Config) { return func(c *Config) { c.Spread = n } }

// loads are the channels of each upstream.
func (r *rig) loads() (loads []int) {
	synctest.Wait()
	for _, p := range r.s.allPools() {
		p.mu.Lock()
		for _, u := range p.ups {
			if !u.retired {
				loads = append(loads, u.load)
			}
		}
		p.mu.Unlock()
	}
	return loads
}

// With spread channels share connections only when there are so many, and evenly then.
func TestSpreadBeforePacking(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, spread(10), func(r *rig) {
		var all []*proxytest.Client
		done := make(chan error, 30)
		for range 30 {
			c, err := r.login(proxytest.ClientConfig{})
			r.must(err)
			all = append(all, c)
		}
		for _, c := range all {
			go func() {
				err := c.OpenChannel(1)
				if err == nil {
					err = c.Publish(1, "", "nowhere", []byte("x"))
				}
				done <- err
			}()
		}
		for range all {
			r.must(<-done)
		}
		loads := r.loads()
		if len(loads) != 10 {
			t.Fatalf("%d connections: %v", len(loads), loads)
		}
		for _, n := range loads {
			if n != 3 {
				t.Errorf("channels are spread as %v", loads)
				break
			}
		}
		for _, c := range all {
			r.must(c.Close())
		}
		// One after the other they take turns.
		before := map[uint64]uint64{}
		for _, u := range r.s.ListUpstreams() {
			before[u.ID] = u.Out
		}
		for range 100 {
			c := r.client(proxytest.ClientConfig{})
			r.must(c.Publish(1, "", "nowhere", make([]byte, 1000)))
			r.must(c.Close())
			synctest.Wait()
		}
		for _, u := range r.s.ListUpstreams() {
			if sent := u.Out - before[u.ID]; sent < 8000 || sent > 13000 {
				t.Errorf("upstream %d carried %d octets of some 100000", u.ID, sent)
			}
		}
	})
}

// With spread each connection carries its share of the messages, within a fifth, of clients that stay and of clients that
// come for one message.
func TestSpreadOfMessages(t *testing.T) {
	sent := map[*proxytest.BrokerConn]int{} // guarded by the broker's lock, and read when all is quiet
	withBroker(t, proxytest.BrokerConfig{Intercept: func(c *proxytest.BrokerConn, f amqp.Frame) bool {
		if f.Type() == amqp.FrameMethod && f.Method() == amqp.BasicPublish {
			sent[c]++
		}
		return false
	}}, spread(10), func(r *rig) {
		share := func(name string, messages int, work func()) {
			clear(sent)
			work()
			synctest.Wait()
			var shares []int
			sum := 0
			for _, n := range sent {
				shares, sum = append(shares, n), sum+n
			}
			slices.Sort(shares)
			t.Logf("%s: %d messages over %d connections: %v", name, sum, len(shares), shares)
			if sum != messages || len(shares) != 10 || shares[0] < messages/10*8/10 || shares[9] > messages/10*12/10 {
				t.Errorf("%s: %d messages of %d, by connection %v; want %d each, a fifth less or more", name, sum, messages, shares, messages/10)
			}
		}
		var stay []*proxytest.Client
		for range 50 {
			c := r.client(proxytest.ClientConfig{})
			r.must(c.Confirm(1))
			r.must(c.Publish(1, "", "nowhere", []byte("x")))
			r.must(c.WaitConfirms(1))
			stay = append(stay, c)
		}
		synctest.Wait()
		share("50 clients that stay", 50*40, func() {
			for range 40 {
				for _, c := range stay {
					r.must(c.Publish(1, "", "nowhere", []byte("x")))
					r.must(c.WaitConfirms(1))
				}
			}
		})
		for _, c := range stay {
			r.must(c.Close())
		}
		synctest.Wait()
		for _, at := range []int{1, 8, 25} {
			share(fmt.Sprintf("%d clients at a time that come for one message", at), 1000, func() {
				done := make(chan error, at)
				for i := range at {
					hold := time.Duration(1+i%7) * time.Millisecond // else one that runs may starve the others
					go func() {
						for range 1000 / at {
							c, err := r.login(proxytest.ClientConfig{})
							if err == nil {
								err = errors.Join(c.OpenChannel(1), c.Confirm(1), c.Publish(1, "", "nowhere", []byte("x")), c.WaitConfirms(1))
								time.Sleep(hold)
								err = errors.Join(err, c.Close())
							}
							if err != nil {
								done <- err
								return
							}
						}
						done <- nil
					}()
				}
				for range at {
					r.must(<-done)
				}
			})
		}
	})
}

// Clients that come one after the other never wait for a further connection, and get it all the same.
func TestSpreadBehind(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, spread(4), func(r *rig) {
		for range 10 {
			c := r.client(proxytest.ClientConfig{})
			r.must(c.Publish(1, "", "nowhere", nil))
			r.must(c.Close())
			synctest.Wait()
		}
		if loads := r.loads(); len(loads) != 4 {
			t.Errorf("connections are %v, want 4", loads)
		}
	})
}

// Where a bound leaves no place for as many, channels share what there is, and are not held up.
func TestSpreadAtABound(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"the identity's": func(c *Config) { c.Spread, c.MaxUpstreamsPerIdentity = 10, 4 },
		"all":            func(c *Config) { c.Spread, c.MaxUpstreams = 10, 2 },
		"the broker's":   spread(10),
	} {
		t.Run(name, func(t *testing.T) {
			withBroker(t, proxytest.BrokerConfig{}, change, func(r *rig) {
				if name == "the broker's" {
					r.b.SetLimit(2)
				}
				began := time.Now()
				var all []*proxytest.Client
				for i := range 12 {
					c := r.client(proxytest.ClientConfig{})
					r.must(c.Publish(1, "", fmt.Sprint("nowhere", i), nil))
					all = append(all, c)
				}
				if loads := r.loads(); len(loads) != 2 {
					t.Errorf("connections are %v, want 2", loads)
				}
				if took := time.Since(began); took > time.Second {
					t.Errorf("12 clients took %v", took)
				}
				if n := r.b.Counts().Refused; n > 3 {
					t.Errorf("the broker refused %d connections", n)
				}
				for _, c := range all {
					r.must(c.Close())
				}
			})
		})
	}
}

// A node that comes back gets its share, and nobody is cut for it.
func TestRebalance(t *testing.T) {
	addresses := []string{"a:5672", "b:5672", "c:5672"}
	withNodes(t, addresses, func(c *Config, _ *nodes) { c.Spread = 6 }, func(r *rig, n *nodes) {
		come := func(k int) (all []*proxytest.Client) {
			for range k {
				c := r.client(proxytest.ClientConfig{})
				r.must(c.Publish(1, "", "nowhere", nil))
				all = append(all, c)
			}
			return all
		}
		all := come(6)
		for _, a := range addresses {
			if got := n.open(a); got != 2 {
				t.Errorf("%d connections at %s, want 2", got, a)
			}
		}
		n.stop("c:5672")
		synctest.Wait()
		more := come(2)
		if a, b := n.open("a:5672"), n.open("b:5672"); a != 3 || b != 3 {
			t.Errorf("%d and %d connections at the two that are left", a, b)
		}
		n.start(r.t, "c:5672")
		time.Sleep(10 * time.Second)
		alive := 0
		for _, c := range append(all, more...) {
			if err := c.Publish(1, "", "nowhere", nil); err == nil {
				if _, err := c.DeclareQueue(1, "q", 0); err == nil {
					alive++
				}
			}
			_ = c.Close()
		}
		if alive != 6 {
			t.Errorf("%d of the 6 clients at the other nodes are served", alive)
		}
		synctest.Wait()
		last := come(6)
		for _, a := range addresses {
			if got := n.open(a); got != 2 {
				t.Errorf("%d connections at %s after its return, want 2", got, a)
			}
		}
		for _, c := range last {
			r.must(c.Close())
		}
	})
}

package proxy

import (
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

var listed = map[string]string{"app": "secret-of-app", "a": "x", "b": "x"}

// The lists tell who is there, what he has, and where.
func TestLists(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{Users: listed}, nil, func(r *rig) {
		silent := r.connect(proxytest.ClientConfig{}) // has said nothing yet
		a := r.client(proxytest.ClientConfig{User: "app", Password: "secret-of-app", Name: "shop"})
		r.must(a.Publish(1, "", "nowhere", nil))
		r.must(a.OpenChannel(2))
		_, err := a.DeclareQueue(2, "q", 0)
		r.must(err)
		b := r.client(proxytest.ClientConfig{User: "app", Password: "secret-of-app"})
		_, err = b.DeclareQueue(1, "own", proxytest.Exclusive)
		r.must(err)
		time.Sleep(3 * time.Second)
		synctest.Wait()

		clients := r.s.ListClients()
		if len(clients) != 3 {
			t.Fatalf("%d clients are listed, want 3: %+v", len(clients), clients)
		}
		if c := clients[0]; c.State != ClientConnecting || c.User != "" || c.ID != 1 || c.Age < 3*time.Second {
			t.Errorf("who has said nothing is %+v", c)
		}
		c := clients[1]
		if c.State != ClientRunning || c.User != "app" || c.VHost != "/" || c.Name != "shop" || c.Channels != 2 || c.Bound != 2 ||
			c.Session || c.In == 0 || c.Out == 0 || c.Idle < 3*time.Second || c.Idle > c.Age || len(c.Upstreams) != 1 {
			t.Errorf("the first client is %+v", c)
		}
		own := clients[2]
		if !own.Session || own.Channels != 1 || len(own.Upstreams) != 1 {
			t.Errorf("the second client is %+v, want a session", own)
		}

		ups := r.s.ListUpstreams()
		i := slices.IndexFunc(ups, func(u UpstreamInfo) bool { return u.ID == c.Upstreams[0] })
		j := slices.IndexFunc(ups, func(u UpstreamInfo) bool { return u.Client == own.ID })
		if i < 0 || j < 0 || i == j {
			t.Fatalf("the upstreams are %+v", ups)
		}
		if u := ups[i]; u.State != UpstreamShared || u.User != "app" || u.VHost != "/" || u.Channels != 2 || u.Lane != "publish" || u.In == 0 || u.Out == 0 {
			t.Errorf("the shared upstream is %+v", u)
		}
		if u := ups[j]; u.State != UpstreamSession || u.ID != own.Upstreams[0] {
			t.Errorf("the session is %+v", u)
		}

		pools := r.s.Stats().Pools
		if len(pools) != 1 || pools[0].Clients != 2 || pools[0].Logins != 2 || pools[0].Reused != 1 {
			t.Errorf("the pools are %+v, want 2 clients and 1 of 2 logins served by what was there", pools)
		}

		r.must(silent.Hangup())
		r.must(a.Close())
		r.must(b.Close())
		synctest.Wait()
		if left := r.s.ListClients(); len(left) != 0 {
			t.Errorf("%+v are listed when all have left", left)
		}
	})
}

// Whom the administrator closes hears so; nobody else hears anything.
func TestKick(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{Users: listed}, nil, func(r *rig) {
		a := r.client(proxytest.ClientConfig{User: "a", Password: "x"})
		a2 := r.client(proxytest.ClientConfig{User: "a", Password: "x"})
		b := r.client(proxytest.ClientConfig{User: "b", Password: "x"})
		for _, none := range []int{r.s.Kick(99, ""), r.s.Kick(0, "nobody"), r.s.Kick(0, "")} {
			if none != 0 {
				t.Errorf("%d were closed, want none", none)
			}
		}
		if n := r.s.Kick(3, ""); n != 1 {
			t.Errorf("%d were closed by ID, want 1", n)
		}
		_, err := b.Expect(amqp.ChannelOpenOk)
		r.hears(err, amqp.ConnectionForced, "CONNECTION_FORCED - closed by the administrator")
		r.must(a2.Publish(1, "", "nowhere", nil))
		r.must(a2.OpenChannel(2)) // still served
		if n := r.s.Kick(0, "a"); n != 2 {
			t.Errorf("%d were closed by user, want 2", n)
		}
		for _, c := range []*proxytest.Client{a, a2} {
			_, err := c.Expect(amqp.ChannelOpenOk)
			r.hears(err, amqp.ConnectionForced, "closed by the administrator")
		}
		for _, c := range []*proxytest.Client{a, a2, b} {
			_ = c.Hangup()
		}
	})
}

// BenchmarkListClients is what a look at 10,000 clients costs.
func BenchmarkListClients(b *testing.B) {
	s, err := New(DefaultConfig())
	if err != nil {
		b.Fatal(err)
	}
	s.coarse.Store(1)
	conn, _ := net.Pipe()
	for n := range uint64(10_000) {
		c := &client{s: s, env: &s.env, n: n}
		c.accepted(conn, nil)
		c.phase.Store(phaseRunning)
		s.clients.add(c, func() bool { return true })
	}
	for b.Loop() {
		if n := len(s.ListClients()); n != 10_000 {
			b.Fatal(n)
		}
	}
}

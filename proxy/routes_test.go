package proxy

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

func TestMatches(t *testing.T) {
	for _, x := range []struct {
		pattern, text string
		want          bool
	}{
		{"shop", "shop", true}, {"shop", "shop2", false}, {"shop", "sho", false}, {"shop*", "shop", true}, {"shop*", "shop/a", true},
		{"*shop", "a/shop", true}, {"*shop", "a/shops", false}, {"*", "", true}, {"*", "/", true}, {"?", "/", true}, {"?", "", false},
		{"?", "é", true}, {"a?c", "aéc", true}, {"a*b*c", "a1b2b3c", true}, {"a*b*c", "a1b2b3", false}, {"**", "x", true}, {"", "", true}, {"", "x", false},
		{"*ab", "aab", true}, {"a*é", "aaéé", true}, {"/", "/", true},
	} {
		if got := matches(x.pattern, x.text, true); got != x.want {
			t.Errorf("%q matches %q: %v", x.pattern, x.text, got)
		}
	}
}

// blueGreen has vhosts of a pattern at a second broker.
func blueGreen(routes ...Route) func(*Config, *nodes) {
	return func(c *Config, n *nodes) {
		c.Others = nil
		c.Brokers = []Broker{{Name: "green", Upstream: Upstream{Host: "green", Port: 5672}}}
		c.Routes = routes
		n.b["blue:5672"].AddVHost("shop")
		n.b["green:5672"].AddVHost("shop")
		n.b["green:5672"].AddVHost("shop-v2")
	}
}

var bothBrokers = []string{"blue:5672", "green:5672"}

// A vhost is where its route says, under its name there; clients hear the name that they have for it, and limits, lists
// and metrics go by that.
func TestARouteToAnotherBroker(t *testing.T) {
	withNodes(t, bothBrokers, blueGreen(Route{VHost: "shop", ToVHost: "shop-v2", Broker: "green"}, Route{VHost: "lost?", ToVHost: "nowhere", Broker: "green"}), func(r *rig, n *nodes) {
		shop := r.client(proxytest.ClientConfig{VHost: "shop"})
		_, err := shop.DeclareQueue(1, "q", 0)
		r.must(err)
		r.must(shop.Publish(1, "", "q", []byte("x")))
		n1, err := shop.QueueLength(1, "q")
		r.must(err)
		if green := n.b["green:5672"].Messages("shop-v2", "q"); green != 1 || n1 != 1 {
			t.Errorf("%d messages are at the route's broker, the client is told of %d", green, n1)
		}
		_, err = shop.DeclareQueue(1, "missing", proxytest.Passive)
		r.hears(err, amqp.NotFound, "no queue 'missing' in vhost 'shop'")
		other := r.client(proxytest.ClientConfig{})
		_, err = other.DeclareQueue(1, "q", 0)
		r.must(err)
		if blue := n.b["blue:5672"].Messages("/", "q"); blue != 0 {
			t.Errorf("what no route names is not at the first broker: %d", blue)
		}
		_, err = r.login(proxytest.ClientConfig{VHost: "lost1"})
		r.hears(err, amqp.NotAllowed, "vhost lost1 not found")
		named := false
		for _, p := range r.s.Stats().Pools {
			named = named || p.VHost == "shop" && p.Upstreams == 1
			if strings.Contains(p.VHost, "v2") {
				t.Errorf("a pool is named as at the broker: %+v", p)
			}
		}
		if !named {
			t.Errorf("no pool is named as by its clients: %+v", r.s.Stats().Pools)
		}
		brokers := map[string]string{}
		for _, x := range r.s.Stats().Targets {
			brokers[x.Address] = x.Broker
		}
		if len(brokers) != 2 || brokers["green:5672"] != "green" || brokers["blue:5672"] != "" {
			t.Errorf("the targets are of %v", brokers)
		}
		r.must(shop.Close())
		r.must(other.Close())
	})
}

// After a reload what comes goes the new way, that of clients too which are connected and have nothing at the old one; what
// is there ends with its last channel, and nobody is cut.
func TestARouteThatChanges(t *testing.T) {
	for _, mode := range []PoolMode{PoolAuto, PoolSession} {
		withNodes(t, bothBrokers, func(c *Config, n *nodes) { blueGreen()(c, n); c.Listeners[0].Mode = mode }, func(r *rig, n *nodes) {
			blue, green := n.b["blue:5672"], n.b["green:5672"]
			bound := r.client(proxytest.ClientConfig{VHost: "shop"})
			r.must(bound.Confirm(1))
			_, err := bound.DeclareQueue(1, "q", 0)
			r.must(err)
			idle := r.client(proxytest.ClientConfig{VHost: "shop"})
			synctest.Wait()
			r.reload(func(c *Config) { c.Routes = []Route{{VHost: "shop", Broker: "green"}} })
			_, err = idle.DeclareQueue(1, "mine", 0)
			r.must(err)
			late := r.client(proxytest.ClientConfig{VHost: "shop"})
			_, err = late.DeclareQueue(1, "theirs", 0)
			r.must(err)
			if green.Messages("shop", "mine") != 0 || green.Messages("shop", "theirs") != 0 || blue.Messages("shop", "mine") != -1 {
				t.Errorf("mode %s: a queue is not at the new broker", mode)
			}
			r.must(bound.Publish(1, "", "q", []byte("x"))) // its channel is where it was
			r.must(bound.WaitConfirms(1))
			if blue.Messages("shop", "q") != 1 {
				t.Errorf("mode %s: what was bound has moved", mode)
			}
			r.must(bound.CloseChannel(1))
			r.must(bound.OpenChannel(2))
			_, err = bound.DeclareQueue(2, "again", 0)
			r.must(err)
			if green.Messages("shop", "again") != 0 {
				t.Errorf("mode %s: a new channel is not at the new broker", mode)
			}
			if !r.eventually(5*time.Second, func() bool { return blue.Counts().Open == 0 }) {
				t.Errorf("mode %s: %d connections are left at the old broker", mode, blue.Counts().Open)
			}
			for _, c := range []*proxytest.Client{bound, idle, late} {
				r.must(c.Close())
			}
		})
	}
}

// The broker of a vhost judges user and secret too; its refusal is of the vhost, and concerns no other one.
func TestAUserWhomTheRoutesBrokerRefuses(t *testing.T) {
	withNodes(t, bothBrokers, blueGreen(Route{VHost: "shop", Broker: "green"}), func(r *rig, n *nodes) {
		n.b["green:5672"].RemoveUser("guest")
		other := r.client(proxytest.ClientConfig{})
		_, err := r.login(proxytest.ClientConfig{VHost: "shop"})
		r.hears(err, amqp.NotAllowed, "access to vhost 'shop' refused for user 'guest'")
		logins := n.b["blue:5672"].Counts().Logins
		next := r.client(proxytest.ClientConfig{})
		if got := n.b["blue:5672"].Counts().Logins; got != logins {
			t.Errorf("user and secret are asked for anew: %d logins, before %d", got, logins)
		}
		n.b["green:5672"].SetUser("guest", "guest")
		time.Sleep(2 * time.Second)
		shop := r.client(proxytest.ClientConfig{VHost: "shop"})
		for _, c := range []*proxytest.Client{other, next, shop} {
			r.must(c.Close())
		}
	})
}

// A user whom only the broker of a route has is let in by that one, and served in its vhosts.
func TestAUserOfARoutesBrokerAlone(t *testing.T) {
	withNodes(t, bothBrokers, blueGreen(Route{VHost: "shop", Broker: "green"}), func(r *rig, n *nodes) {
		blue := n.b["blue:5672"]
		n.b["green:5672"].SetUser("only", "o")
		only := proxytest.ClientConfig{User: "only", Password: "o", VHost: "shop"}
		c := r.client(only)
		_, err := c.DeclareQueue(1, "q", 0)
		r.must(err)
		if n.b["green:5672"].Messages("shop", "q") != 0 {
			t.Error("the queue is not at the route's broker")
		}
		refused := blue.Counts().Refused
		r.must(r.client(only).Close())
		if got := blue.Counts().Refused; got != refused || refused != 1 {
			t.Errorf("the first broker has refused the user %d times, then %d times; want once", refused, got)
		}
		_, err = r.login(proxytest.ClientConfig{User: "only", Password: "o"})
		r.hears(err, amqp.NotAllowed, "access to vhost '/' refused for user 'only'")
		_, err = r.login(proxytest.ClientConfig{User: "only", Password: "wrong", VHost: "shop"})
		r.hears(err, amqp.AccessRefused, "using authentication mechanism PLAIN")
		r.must(r.client(only).Close()) // which concerns no right one
		r.must(r.client(proxytest.ClientConfig{}).Close())

		// While their broker is away they hear that, and not that their password is wrong.
		n.stop("green:5672")
		_ = c.Hangup()
		time.Sleep(r.s.cfg().AuthTTL + recheckFor + time.Minute)
		_, err = r.login(only)
		r.hears(err, amqp.ConnectionForced, "the broker cannot be reached")
		_, err = r.login(proxytest.ClientConfig{User: "only", Password: "wrong", VHost: "shop"})
		r.hears(err, amqp.AccessRefused, "using authentication mechanism PLAIN")
		n.start(r.t, "green:5672")
		n.b["green:5672"].SetUser("only", "o")
		n.b["green:5672"].AddVHost("shop")
		time.Sleep(2 * time.Second)
		r.must(r.client(only).Close())

		r.reload(func(c *Config) { c.Routes = nil })
		_, err = r.login(only)
		r.hears(err, amqp.AccessRefused, "using authentication mechanism PLAIN")
	})
}

// Passwords that are wrong everywhere are asked at one broker after the other: while the second one is slow, no more of
// them are at it than its lane has turns, and none of them holds a turn at the first, where who is new comes in at once.
func TestGuessesAtASlowBroker(t *testing.T) {
	var atGreen atomic.Int32
	var slow chan struct{}
	withNodes(t, bothBrokers, func(c *Config, n *nodes) {
		blueGreen(Route{VHost: "shop", Broker: "green"})(c, n)
		n.b["blue:5672"].SetUser("new", "n")
		slow = make(chan struct{})
		dial := c.Dial
		c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if address == "green:5672" {
				atGreen.Add(1)
				defer atGreen.Add(-1)
				select {
				case <-slow:
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}
			return dial(ctx, network, address)
		}
	}, func(r *rig, n *nodes) {
		const guesses = 2 * broker.StrangersAtATime
		done := make(chan error, guesses)
		for i := range guesses {
			go func() {
				_, err := r.login(proxytest.ClientConfig{User: fmt.Sprint("u", i), Password: "wrong"})
				done <- err
			}()
		}
		synctest.Wait()
		if at := atGreen.Load(); at != broker.StrangersAtATime {
			t.Errorf("%d are asked about at the slow broker at a time, want %d", at, broker.StrangersAtATime)
		}
		if refused := n.b["blue:5672"].Counts().Refused; refused != guesses {
			t.Errorf("the first broker has judged %d of %d", refused, guesses)
		}
		began := time.Now()
		r.must(r.client(proxytest.ClientConfig{User: "new", Password: "n"}).Close())
		if took := time.Since(began); took > 0 {
			t.Errorf("who is new waited %v for the slow broker", took)
		}
		close(slow)
		for range guesses {
			r.hears(<-done, amqp.AccessRefused, "using authentication mechanism PLAIN")
		}
	})
}

// Where a route is for all vhosts, its broker judges user and secret, and the first one may be away.
func TestARouteForAll(t *testing.T) {
	withNodes(t, bothBrokers, blueGreen(Route{VHost: "*", Broker: "green"}), func(r *rig, n *nodes) {
		n.stop("blue:5672")
		c := r.client(proxytest.ClientConfig{VHost: "shop"})
		_, err := c.DeclareQueue(1, "q", 0)
		r.must(err)
		if err := r.s.Ready(bg); err != nil {
			t.Errorf("not ready: %v", err)
		}
		if s := r.s.Stats(); !s.BrokerUp {
			t.Errorf("the broker is told to be away: %s", s.BrokerReason)
		}
		if got := n.b["blue:5672"].Counts().Accepted; got != 0 {
			t.Errorf("the first broker was asked %d times", got)
		}
		r.must(c.Close())
	})
}

// A broker that routes lead to and that is away is a matter of its vhosts; it is waited for with hold.
func TestARoutesBrokerThatIsAway(t *testing.T) {
	withNodes(t, bothBrokers, func(c *Config, n *nodes) {
		blueGreen(Route{VHost: "shop", Broker: "green"})(c, n)
	}, func(r *rig, n *nodes) {
		n.stop("green:5672")
		_, err := r.login(proxytest.ClientConfig{VHost: "shop"})
		r.hears(err, amqp.ConnectionForced, "the broker cannot be reached")
		c := r.client(proxytest.ClientConfig{})
		_, err = c.DeclareQueue(1, "q", 0)
		r.must(err)
		if s := r.s.Stats(); !s.BrokerUp || len(s.Brokers) != 1 || s.Brokers[0].Up || s.Brokers[0].Name != "green" || s.Brokers[0].Reason == "" || s.Brokers[0].AwaySince.IsZero() {
			t.Errorf("told: the first broker is up: %v; the others: %+v", s.BrokerUp, s.Brokers)
		}
		n.start(r.t, "green:5672")
		time.Sleep(2 * time.Second)
		check := r.connect(proxytest.ClientConfig{}) // the watchdog's, which has it looked for
		r.s.checking.Add(1)
		r.s.selfChecks.Store(check.Conn().LocalAddr().String(), nil)
		r.must(check.Start())
		r.must(check.Hangup())
		synctest.Wait()
		r.s.checking.Add(-1)
		if s := r.s.Stats(); len(s.Brokers) != 1 || !s.Brokers[0].Up {
			t.Errorf("when it is back: %+v", s.Brokers)
		}
		r.must(c.Close())
	})
}

// A broker that is taken out at a reload is left by all.
func TestABrokerThatIsTakenOut(t *testing.T) {
	withNodes(t, bothBrokers, blueGreen(Route{VHost: "*", Broker: "green"}), func(r *rig, n *nodes) {
		c := r.client(proxytest.ClientConfig{VHost: "shop"})
		_, err := c.DeclareQueue(1, "q", 0)
		r.must(err)
		r.reload(func(c *Config) { c.Brokers, c.Routes = nil, nil })
		d := r.client(proxytest.ClientConfig{VHost: "shop"})
		_, err = d.DeclareQueue(1, "q", 0)
		r.must(err)
		if n.b["blue:5672"].Messages("shop", "q") != 0 {
			t.Error("what comes is not at the first broker")
		}
		r.must(c.Close())
		r.must(d.Close())
		if !r.eventually(5*time.Second, func() bool { return n.b["green:5672"].Counts().Open == 0 }) {
			t.Error("connections to a broker that was taken out are left")
		}
	})
}

// Blue and green under a pause: who has nothing at the broker waits and goes on at the other, in mode session too, and nobody
// is cut.
func TestPauseAndAnotherRoute(t *testing.T) {
	for _, mode := range []PoolMode{PoolAuto, PoolSession} {
		withNodes(t, bothBrokers, func(c *Config, n *nodes) { blueGreen()(c, n); c.Listeners[0].Mode = mode }, func(r *rig, n *nodes) {
			idle := r.client(proxytest.ClientConfig{VHost: "shop"})
			_, err := idle.DeclareQueue(1, "q", 0)
			r.must(err)
			r.must(idle.CloseChannel(1))
			r.s.Pause("shop", false, 0)
			if !r.eventually(5*time.Second, func() bool { return n.b["blue:5672"].Counts().Open == 0 }) {
				t.Errorf("mode %s: %d connections are left amid the pause", mode, n.b["blue:5672"].Counts().Open)
			}
			done := make(chan error, 1)
			go func() {
				err := idle.OpenChannel(1)
				if err == nil {
					_, err = idle.DeclareQueue(1, "q", 0)
				}
				done <- err
			}()
			n.stop("blue:5672")
			time.Sleep(20 * time.Second)
			r.reload(func(c *Config) { c.Routes = []Route{{VHost: "*", Broker: "green"}} })
			r.s.Resume("shop", false)
			r.must(<-done)
			if n.b["green:5672"].Messages("shop", "q") != 0 {
				t.Errorf("mode %s: it did not go on at the other broker", mode)
			}
			r.must(idle.Close())
		})
	}
}

// The end of a session's connection is no matter of its client where nothing of it is there; what would be missed is told.
func TestASessionThatIsLost(t *testing.T) {
	withNodes(t, []string{"a:5672", "b:5672"}, func(c *Config, _ *nodes) {
		c.Balance = BalanceOrder
		c.Listeners[0].Mode = PoolSession
	}, func(r *rig, n *nodes) {
		idle := r.client(proxytest.ClientConfig{})
		used := r.client(proxytest.ClientConfig{})
		_, err := used.DeclareQueue(1, "q", 0)
		r.must(err)
		r.must(used.CloseChannel(1))
		bound := r.client(proxytest.ClientConfig{})
		_, err = bound.DeclareQueue(1, "q", 0)
		r.must(err)
		owner := r.client(proxytest.ClientConfig{})
		_, err = owner.DeclareQueue(1, "mine", proxytest.Exclusive)
		r.must(err)
		r.must(owner.CloseChannel(1))
		synctest.Wait()
		n.stop("a:5672")
		synctest.Wait()
		for name, c := range map[string]*proxytest.Client{"a channel": bound, "an exclusive queue": owner} {
			_, err := c.Await(1, amqp.ChannelCloseOk)
			r.hears(err, amqp.ConnectionForced, "maintenance mode")
			if err == nil {
				t.Errorf("who had %s there was not told", name)
			}
			_ = c.Hangup()
		}
		for _, c := range []*proxytest.Client{idle, used} {
			r.must(c.OpenChannel(2))
			_, err := c.DeclareQueue(2, "q", 0)
			r.must(err)
			r.must(c.Close())
		}
		if n.b["b:5672"].Messages("/", "q") != 0 {
			t.Error("they did not go on at the other node")
		}
	})
}

// What one broker tells of a user's channels is no limit at another.
func TestAChannelLimitIsOfItsBroker(t *testing.T) {
	withNodes(t, bothBrokers, blueGreen(Route{VHost: "shop", Broker: "green"}), func(r *rig, n *nodes) {
		first := r.client(proxytest.ClientConfig{})
		_, err := first.DeclareQueue(1, "own", proxytest.Exclusive) // so that nobody else is blamed
		r.must(err)
		synctest.Wait()
		n.b["blue:5672"].CloseConnections(amqp.NotAllowed, "NOT_ALLOWED - number of channels opened for user 'guest' has reached the maximum allowed user limit of (1)")
		synctest.Wait() // the end of the shared one, which carries nothing, too
		_, err = first.Await(1, amqp.ChannelCloseOk)
		r.hears(err, amqp.NotAllowed, "maximum allowed user limit")
		_ = first.Hangup()
		for vhost, want := range map[string]int{"/": 1, "shop": 0} {
			c := r.client(proxytest.ClientConfig{VHost: vhost})
			_, err := c.DeclareQueue(1, "q", 0)
			r.must(err)
			r.must(c.OpenChannel(2))
			_, err = c.DeclareQueue(2, "q", 0)
			r.must(err)
			for _, p := range r.s.Stats().Pools {
				if p.VHost == vhost && p.Sessions != want {
					t.Errorf("in vhost %s the second channel is on one of %d connections of its client's own, want %d", vhost, p.Sessions, want)
				}
			}
			r.must(c.Close())
		}
	})
}

// Brokers are told of a user's new secret one after the other: what one has accepted is not the other's yet.
func TestASecretThatOneOfTwoBrokersHas(t *testing.T) {
	withNodes(t, bothBrokers, func(c *Config, n *nodes) {
		blueGreen(Route{VHost: "shop", Broker: "green"})(c, n)
		c.Users = []User{user(t, "shop", "local", "prod-shop", "s3cr3t")}
		for _, b := range n.b {
			b.SetUser("prod-shop", "s3cr3t")
		}
	}, func(r *rig, n *nodes) {
		atGreen := asShop
		atGreen.VHost = "shop"
		come := func() {
			r.t.Helper()
			for _, p := range r.s.allPools() {
				p.retireAll()
			}
			for _, as := range []proxytest.ClientConfig{asShop, atGreen} {
				c := r.client(as)
				_, err := c.DeclareQueue(1, "q", 0)
				r.must(err)
				r.must(c.Close())
			}
			synctest.Wait()
		}
		come()
		r.reload(func(c *Config) { c.Users = []User{user(t, "shop", "local", "prod-shop", "n3w")} })
		n.b["blue:5672"].SetUser("prod-shop", "n3w")
		for range 3 {
			come()
		}
		n.b["green:5672"].SetUser("prod-shop", "n3w")
		come()
		come()
		if n := strings.Count(r.log(), "the broker has accepted the new secret"); n != 2 || !strings.Contains(r.log(), "broker=green") {
			t.Errorf("the log tells %d times of the new secret's acceptance, want once for each broker:\n%s", n, r.log())
		}
		if strings.Contains(r.log(), "the broker refuses the secret") {
			t.Errorf("the log tells of a refusal:\n%s", r.log())
		}
	})
}

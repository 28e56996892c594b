package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// cluster is a Broker before several stand-in ones, by address.
type cluster struct {
	t   *testing.T
	b   *Broker
	cfg Config

	mu    sync.Mutex
	at    map[string]*proxytest.MemListener
	deaf  map[string]bool // addresses whose packets are dropped
	dials map[string]int
	names map[string][]netip.Addr
	logs  strings.Builder
}

func (c *cluster) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.logs.Write(p)
}

func (c *cluster) log() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.logs.String()
}

func (c *cluster) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c.mu.Lock()
	c.dials[address]++
	ln, deaf := c.at[address], c.deaf[address]
	c.mu.Unlock()
	if deaf {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if ln == nil {
		return nil, syscall.ECONNREFUSED
	}
	return ln.Dial(ctx, network, address)
}

func (c *cluster) lookup(_ context.Context, host string) ([]netip.Addr, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a := c.names[host]; a != nil {
		return a, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func (c *cluster) drop(address string, deaf bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deaf[address] = deaf
}

func (c *cluster) dialled(address string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dials[address]
}

// withCluster is a test of a Broker before stand-in ones at addresses, which are its targets unless
// change says otherwise. Its Tend is called as the proxy does.
func withCluster(t *testing.T, addresses []string, change func(*cluster), test func(*cluster)) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{t: t, at: map[string]*proxytest.MemListener{}, deaf: map[string]bool{}, dials: map[string]int{}, names: map[string][]netip.Addr{}}
		c.cfg = Config{ConnectTimeout: 5 * time.Second, RetryDelay: time.Second, WaitTimeout: 5 * time.Second, Dial: c.dial}
		for _, a := range addresses {
			c.at[a] = proxytest.ListenMem(a, 0)
			proxytest.StartBroker(t, proxytest.BrokerConfig{Listener: c.at[a]})
			host, _, _ := net.SplitHostPort(a)
			c.cfg.Targets = append(c.cfg.Targets, Target{Host: host, Port: 5672})
		}
		if change != nil {
			change(c)
		}
		ctx, stop := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		c.b = New(ctx, slog.New(slog.NewTextHandler(io.Writer(c), nil)), func(f func()) { wg.Go(f) }, c.cfg)
		wg.Go(func() {
			for ctx.Err() == nil {
				c.b.Tend()
				time.Sleep(500 * time.Millisecond)
			}
		})
		test(c)
		stop()
		c.b.Close()
		wg.Wait()
		time.Sleep(greetedFor)
		for _, s := range c.b.Targets() {
			if s.Links != 0 {
				t.Errorf("%d links are counted at %s when all are closed", s.Links, s.Address)
			}
		}
	})
}

// login is one that stands until the test closes it, and how long it took.
func (c *cluster) login() (*Link, time.Duration) {
	c.t.Helper()
	began := time.Now()
	k, err := c.b.Login(ctx, Known, Credential{User: "guest", Secret: NewSecret("guest")}, props())
	if err != nil {
		c.t.Fatalf("login: %v\n%s", err, c.log())
	}
	return k, time.Since(began)
}

// A first target that answers nothing costs one connect_timeout, once; a probe finds it back.
func TestADeadFirstTargetCostsOnce(t *testing.T) {
	withCluster(t, []string{"a:5672", "b:5672"}, func(c *cluster) { c.cfg.InOrder = true }, func(c *cluster) {
		c.drop("a:5672", true)
		waits := 0
		for range 120 {
			k, took := c.login()
			if k.Target.Host != "b" {
				t.Fatalf("logged in at %s", k.Target.Host)
			}
			if took > 0 {
				waits++
				if took > 5*time.Second {
					t.Errorf("a login took %v", took)
				}
			}
			k.Close()
			time.Sleep(500 * time.Millisecond)
		}
		if waits != 1 {
			t.Errorf("%d logins of a minute had to wait, want the first", waits)
		}
		if n := c.dialled("a:5672"); n < 3 || n > 8 { // 1, 2, 4, 8, 16 s apart or so, beside 5 s each
			t.Errorf("%d dials to the dead one in a minute", n)
		}
		if c.b.Down() != nil {
			t.Error("one target is away, but not the broker")
		}
		if s := c.b.Targets()[0]; s.Up || s.Outs != [reasons]uint64{1, 0} || !strings.Contains(s.Reason, "no answer within connect_timeout = 5s") {
			t.Errorf("the dead target is told as %+v", s)
		}
		c.drop("a:5672", false)
		time.Sleep(mostProbe + mostProbe/4)
		k, took := c.login()
		if k.Target.Host != "a" || took > 0 {
			t.Errorf("after its return: at %s after %v", k.Target.Host, took)
		}
		k.Close()
		if log := c.log(); strings.Count(log, `msg="broker out of rotation" address=a:5672`) < 1 || strings.Count(log, `msg="broker back in rotation" address=a:5672`) != 1 {
			t.Errorf("logged\n%s", log)
		}
	})
}

// New connections go where the fewest are.
func TestSpread(t *testing.T) {
	withCluster(t, []string{"a:5672", "b:5672", "c:5672"}, nil, func(c *cluster) {
		var all []*Link
		for range 30 {
			k, _ := c.login()
			all = append(all, k)
		}
		for _, s := range c.b.Targets() {
			if s.Links != 10 {
				t.Errorf("%d of 30 at %s", s.Links, s.Address)
			}
		}
		all = slices.DeleteFunc(all, func(k *Link) bool {
			if k.Target.Host == "b" {
				k.Close()
				return true
			}
			return false
		})
		for range 10 {
			k, _ := c.login()
			if all = append(all, k); k.Target.Host != "b" {
				t.Errorf("a connection goes to %s, where more are", k.Target.Host)
			}
		}
		for _, k := range all {
			k.Close()
		}
	})
	// One connection each of many proxies: not all at the first.
	seen := map[string]bool{}
	for range 40 {
		withCluster(t, []string{"a:5672", "b:5672", "c:5672"}, nil, func(c *cluster) {
			k, _ := c.login()
			seen[k.Target.Host] = true
			k.Close()
		})
	}
	if len(seen) != 3 {
		t.Errorf("the first connections of 40 go to %v alone", seen)
	}
}

// A broker that says it goes away is not asked until a probe finds it back; one that closes a
// connection for another reason is.
func TestDrainTakesOutOfRotation(t *testing.T) {
	withCluster(t, []string{"a:5672", "b:5672"}, func(c *cluster) { c.cfg.InOrder = true }, func(c *cluster) {
		k, _ := c.login()
		k.Leaving(amqp.Errorf(amqp.ConnectionForced, 0, "Closed via management plugin"))
		k.Leaving(amqp.Errorf(amqp.NotAllowed, 0, "shutdown"))
		if !c.b.Targets()[0].Up {
			t.Error("a connection was closed by hand, and its broker is out of rotation")
		}
		_ = c.at["a:5672"].Close()
		for range 100 { // as many connections hear it
			k.Leaving(amqp.Errorf(amqp.ConnectionForced, 0, "CONNECTION_FORCED - Node was put into maintenance mode"))
		}
		k.Close()
		next, took := c.login()
		if next.Target.Host != "b" || took > 0 || c.dialled("a:5672") != 1 {
			t.Errorf("the next connection goes to %s after %v and %d dials", next.Target.Host, took, c.dialled("a:5672"))
		}
		next.Close()
		if s := c.b.Targets()[0]; s.Outs != [reasons]uint64{0, 1} || !strings.Contains(s.Reason, "maintenance mode") {
			t.Errorf("told as %+v", s)
		}
		c.mu.Lock()
		c.at["a:5672"] = proxytest.ListenMem("a:5672", 0)
		c.mu.Unlock()
		proxytest.StartBroker(c.t, proxytest.BrokerConfig{Listener: c.at["a:5672"]})
		time.Sleep(2 * time.Second)
		if k, _ := c.login(); k.Target.Host != "a" {
			t.Errorf("2 s after its return connections go to %s", k.Target.Host)
		} else {
			k.Close()
		}
	})
}

// When none can be reached the error names each with its reason, for the operator; all are asked
// again after retry_delay, whatever their probes.
func TestNoneOfSeveral(t *testing.T) {
	withCluster(t, []string{"a:5672", "b:5672"}, func(c *cluster) { c.cfg.InOrder = true }, func(c *cluster) {
		_ = c.at["a:5672"].Close()
		c.drop("b:5672", true)
		_, err := c.b.Login(ctx, Known, Credential{User: "guest", Secret: NewSecret("guest")}, props())
		want := "no broker can be reached: a:5672: connection refused; b:5672: no answer within connect_timeout = 5s"
		var un *Unreachable
		if !errors.As(err, &un) || err.Error() != want || un.ForClients() != "the broker cannot be reached" {
			t.Errorf("heard %v\nclients hear %q\nwant %s", err, un.ForClients(), want)
		}
		for range 60 {
			time.Sleep(time.Second)
			_, _ = c.b.Login(ctx, Known, Credential{User: "guest", Secret: NewSecret("guest")}, props())
		}
		if _, reason, away := c.b.Away(); !away || !strings.Contains(reason, "a:5672: connection refused; b:5672: no answer") {
			t.Errorf("away %v: %s", away, reason)
		}
		if n := strings.Count(c.log(), `msg="broker cannot be reached" error="no broker can be reached: a:5672`); n < 2 || n > 10 {
			t.Errorf("told %d times\n%s", n, c.log())
		}
		c.drop("b:5672", false)
		time.Sleep(6 * time.Second) // a dial may be under way
		k, took := c.login()
		if took > 0 {
			t.Errorf("took %v", took)
		}
		k.Close()
		if _, _, away := c.b.Away(); away {
			t.Error("away, and greeted")
		}
	})
}

// A caller whose own time is up says nothing of the targets that are not asked any more.
func TestACallersOwnEndIsNoVerdict(t *testing.T) {
	withCluster(t, []string{"a:5672", "b:5672"}, func(c *cluster) { c.cfg.InOrder = true }, func(c *cluster) {
		c.drop("a:5672", true)
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if err := c.b.Check(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("heard %v", err)
		}
		for _, s := range c.b.Targets() {
			if !s.Up {
				t.Errorf("%s is out of rotation: %s", s.Address, s.Reason)
			}
		}
	})
}

func addrs(texts ...string) (all []netip.Addr) {
	for _, text := range texts {
		all = append(all, netip.MustParseAddr(text))
	}
	return all
}

// Each address of a name is a target. When the name changes new connections follow, and those to
// an address that is gone are told apart; an address that one answer lacks is not gone.
func TestNames(t *testing.T) {
	v4 := []string{"10.0.0.1:5672", "10.0.0.2:5672", "10.0.0.3:5672"}
	withCluster(t, v4, func(c *cluster) {
		c.cfg.Targets = []Target{{Host: "broker", Port: 5672}}
		c.cfg.Lookup, c.cfg.DNSRefresh = c.lookup, 30*time.Second
		c.names["broker"] = addrs("10.0.0.1", "10.0.0.2")
	}, func(c *cluster) {
		a, _ := c.login()
		b, _ := c.login()
		for _, k := range []*Link{a, b} {
			k.Stand()
		}
		if a.Target.IP == b.Target.IP || a.Target.Host != "broker" {
			t.Errorf("two connections go to %s and %s", a.Target.Address(), b.Target.Address())
		}
		c.mu.Lock()
		c.names["broker"] = addrs("10.0.0.2")
		c.mu.Unlock()
		time.Sleep(31 * time.Second)
		c.mu.Lock()
		c.names["broker"] = addrs("10.0.0.2", "10.0.0.1") // a part of the answer was left out
		c.mu.Unlock()
		time.Sleep(31 * time.Second)
		if a.Moved() || b.Moved() {
			t.Error("one answer lacked an address, and it counts as gone")
		}
		c.mu.Lock()
		c.names["broker"] = addrs("10.0.0.3", "10.0.0.2")
		c.mu.Unlock()
		time.Sleep(40 * time.Second)
		first := netip.MustParseAddr("10.0.0.1")
		if a.Moved() != (a.Target.IP == first) || b.Moved() != (b.Target.IP == first) {
			t.Errorf("moved: %s %v, %s %v", a.Target.IP, a.Moved(), b.Target.IP, b.Moved())
		}
		k, _ := c.login()
		if k.Target.Address() != "10.0.0.3:5672" {
			t.Errorf("the next goes to %s", k.Target.Address())
		}
		k.Close()
		for _, k := range []*Link{a, b} {
			k.End(false)
			_ = k.Conn.Close()
		}
		if log := c.log(); !strings.Contains(log, `msg="broker's addresses changed" name=broker added=[10.0.0.3] removed=[]`) ||
			!strings.Contains(log, `added=[] removed=[10.0.0.1]`) {
			t.Errorf("logged\n%s", log)
		}
		// A name server that does not answer changes nothing.
		c.mu.Lock()
		delete(c.names, "broker")
		c.mu.Unlock()
		time.Sleep(2 * time.Minute)
		k, _ = c.login()
		k.Close()
	})
}

// A name with one address, or one of each family, is dialled by its name, as ever.
func TestANameWithOneAddress(t *testing.T) {
	for _, all := range [][]netip.Addr{addrs("10.0.0.1"), addrs("::1", "127.0.0.1"), nil} {
		withCluster(t, []string{"broker:5672"}, func(c *cluster) {
			c.cfg.Lookup, c.cfg.DNSRefresh, c.names["broker"] = c.lookup, 30*time.Second, all
		}, func(c *cluster) {
			k, _ := c.login()
			if k.Target.Address() != "broker:5672" || len(c.b.Targets()) != 1 {
				t.Errorf("%v: dialled %s of %+v", all, k.Target.Address(), c.b.Targets())
			}
			k.Close()
		})
	}
	for want, all := range map[string][]netip.Addr{
		"[10.0.0.1 10.0.0.2]":           addrs("fd00::1", "10.0.0.1", "10.0.0.2"),
		"[fd00::1 fd00::2]":             addrs("fd00::1", "fd00::2", "10.0.0.1", "10.0.0.2"),
		"[10.0.0.1 10.0.0.2 10.0.0.3]":  addrs("10.0.0.1", "10.0.0.2", "::ffff:10.0.0.3", "10.0.0.1"),
		"[10.0.0.1 10.0.0.2 10.0.0.30]": addrs("10.0.0.1", "fd00::1", "10.0.0.2", "fd00::2", "10.0.0.30"),
	} {
		var a addresses
		a.heard(all)
		if got := fmt.Sprint(a.each()); got != want {
			t.Errorf("%v: %s, want %s", all, got, want)
		}
	}
}

// A list that grows or shrinks keeps what is known of the targets that stay.
func TestSetSeveral(t *testing.T) {
	withCluster(t, []string{"a:5672", "b:5672"}, nil, func(c *cluster) {
		k, _ := c.login()
		more := c.cfg
		more.Targets = append(slices.Clone(c.cfg.Targets), Target{Host: "c", Port: 5672})
		if left := c.b.Set(more); left != LeftNone || k.Moved() {
			t.Errorf("one more: left %v, moved %v", left, k.Moved())
		}
		less := c.cfg
		less.Targets = slices.DeleteFunc(slices.Clone(c.cfg.Targets), func(x Target) bool { return x.Host == k.Target.Host })
		if left := c.b.Set(less); left != LeftSome || !k.Moved() {
			t.Errorf("one less: left %v, moved %v", left, k.Moved())
		}
		k.Close()
		if left := c.b.Set(c.cfg); left != LeftNone {
			t.Errorf("back again: left %v", left)
		}
	})
}

// With hold a login waits for a broker that is away, and no longer.
func TestHold(t *testing.T) {
	withBroker(t, func(r *rig) {
		r.cfg.Hold = 30 * time.Second
		r.b.Set(r.cfg)
		r.to.Refuse(syscall.ECONNREFUSED)
		began := time.Now()
		done := r.login(Known, "u")
		time.Sleep(10 * time.Second)
		r.to.Refuse(nil)
		r.sc.AcceptOpen()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 12*time.Second {
			t.Errorf("served after %v", took)
		}
		r.to.Refuse(syscall.ECONNREFUSED)
		time.Sleep(2 * time.Second)
		began = time.Now()
		var un *Unreachable
		if err := <-r.login(Known, "u"); !errors.As(err, &un) {
			t.Errorf("heard %v", err)
		}
		if took := time.Since(began); took < 30*time.Second || took > 32*time.Second {
			t.Errorf("refused after %v", took)
		}
		if n := r.dials(); n < 20 || n > 60 {
			t.Errorf("%d dials in 40 s of absence", n)
		}
		// Who waits takes no turn from others.
		var all []<-chan error
		for range StrangersAtATime + 1 {
			all = append(all, r.login(Strangers, "stranger"))
		}
		synctest.Wait()
		if n := len(r.b.turns[Strangers]); n != 0 {
			t.Errorf("%d turns are taken by those who wait", n)
		}
		for _, done := range all {
			if err := <-done; err == nil {
				t.Error("logged in at nobody")
			}
		}
	})
}

// A list of brokers that are not of one cluster is told, once; nodes of a cluster without a name of its own have each another.
func TestBrokersOfTwoClusters(t *testing.T) {
	for name, told := range map[string]int{"orders": 1, "rabbit@other": 0} {
		t.Run(name, func(t *testing.T) { twoClusters(t, name, told) })
	}
}

func twoClusters(t *testing.T, name string, told int) {
	withCluster(t, []string{"a:5672", "b:5672"}, func(c *cluster) {
		c.at["c:5672"] = proxytest.ListenMem("c:5672", 0)
		proxytest.StartBroker(c.t, proxytest.BrokerConfig{Listener: c.at["c:5672"], Properties: amqp.AppendStringField(nil, "cluster_name", name)})
	}, func(c *cluster) {
		ask := func() {
			for range 3 {
				a, _ := c.login()
				b, _ := c.login()
				a.Close()
				b.Close()
			}
		}
		ask()
		if strings.Contains(c.log(), "one cluster") {
			t.Errorf("logged\n%s", c.log())
		}
		more := c.cfg
		more.Targets = append(more.Targets[1:2:2], Target{Host: "c", Port: 5672})
		c.b.Set(more)
		ask()
		if n := strings.Count(c.log(), `msg="brokers are not of one cluster"`); n != told {
			t.Errorf("told %d times, want %d\n%s", n, told, c.log())
		}
	})
}

// A name server that does not answer holds a dial up for a moment only.
func TestASilentNameServer(t *testing.T) {
	withCluster(t, []string{"broker:5672"}, func(c *cluster) {
		c.cfg.DNSRefresh = 30 * time.Second
		c.cfg.Lookup = func(ctx context.Context, _ string) ([]netip.Addr, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
	}, func(c *cluster) {
		for range 3 {
			k, took := c.login()
			if took > time.Second {
				t.Errorf("a login took %v", took)
			}
			k.Close()
		}
	})
}

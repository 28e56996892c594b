package proxy

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// nodes are the brokers of a proxy that has several, by address.
type nodes struct {
	mu    sync.Mutex
	at    map[string]*proxytest.MemListener
	b     map[string]*proxytest.Broker
	names map[string][]netip.Addr
}

func (n *nodes) dial(ctx context.Context, network, address string) (net.Conn, error) {
	n.mu.Lock()
	host, port, _ := net.SplitHostPort(address)
	if known := n.names[host]; known != nil { // a name is dialled as the system does
		address = net.JoinHostPort(known[0].String(), port)
	}
	ln := n.at[address]
	n.mu.Unlock()
	if ln == nil {
		return nil, syscall.ECONNREFUSED
	}
	conn, err := ln.Dial(ctx, network, address)
	if at, e := netip.ParseAddrPort(address); err == nil && e == nil {
		conn = atAddress{conn, net.TCPAddrFromAddrPort(at)}
	}
	return conn, err
}

// atAddress is a connection to an IP address.
type atAddress struct {
	net.Conn
	at net.Addr
}

func (c atAddress) RemoteAddr() net.Addr { return c.at }

func (n *nodes) lookup(_ context.Context, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.names[host], nil
}

// start has a broker at the address.
func (n *nodes) start(t *testing.T, address string) {
	ln := proxytest.ListenMem(address, 0)
	b := proxytest.StartBroker(t, proxytest.BrokerConfig{Listener: ln})
	n.mu.Lock()
	n.at[address], n.b[address] = ln, b
	n.mu.Unlock()
}

// stop ends the broker at the address as one that is drained and stopped.
func (n *nodes) stop(address string) {
	n.mu.Lock()
	ln, b := n.at[address], n.b[address]
	delete(n.at, address)
	n.mu.Unlock()
	_ = ln.Close()
	b.CloseConnections(amqp.ConnectionForced, "CONNECTION_FORCED - Node was put into maintenance mode")
}

// open is how many connections the broker at the address has.
func (n *nodes) open(address string) int {
	synctest.Wait()
	return n.b[address].Counts().Open
}

// withNodes is a test of a proxy before brokers at addresses.
func withNodes(t *testing.T, addresses []string, change func(*Config, *nodes), test func(*rig, *nodes)) {
	synctest.Test(t, func(t *testing.T) {
		n := &nodes{at: map[string]*proxytest.MemListener{}, b: map[string]*proxytest.Broker{}, names: map[string][]netip.Addr{}}
		r := &rig{t: t, to: proxytest.ListenMem("broker:5672", 0)}
		var all []Upstream
		for _, a := range addresses {
			n.start(t, a)
			host, _, _ := net.SplitHostPort(a)
			all = append(all, Upstream{Host: host, Port: 5672})
		}
		r.start(func(c *Config) {
			c.Dial, c.Upstream, c.Others = n.dial, all[0], all[1:]
			if change != nil {
				change(c, n)
			}
		})
		test(r, n)
		r.settled()
	})
}

// A drained node's words are heard by who has a channel there, and by nobody else; what comes goes
// to the others at once.
func TestDrainOfANode(t *testing.T) {
	withNodes(t, []string{"a:5672", "b:5672"}, func(c *Config, _ *nodes) { c.Balance = BalanceOrder }, func(r *rig, n *nodes) {
		bound := r.client(proxytest.ClientConfig{})
		r.must(bound.Publish(1, "", "nowhere", []byte("x")))
		idle := r.client(proxytest.ClientConfig{})
		left := r.client(proxytest.ClientConfig{})
		r.must(left.Publish(1, "", "nowhere", []byte("x")))
		r.must(left.CloseChannel(1))
		synctest.Wait()
		if a, b := n.open("a:5672"), n.open("b:5672"); a != 1 || b != 0 {
			t.Fatalf("%d and %d connections before", a, b)
		}
		began := time.Now()
		n.stop("a:5672")
		_, err := bound.Await(1, amqp.ChannelCloseOk)
		r.hears(err, amqp.ConnectionForced, "maintenance mode")
		for _, c := range []*proxytest.Client{idle, left} {
			if f, err := c.NextWithin(time.Second); err == nil {
				t.Errorf("a client without a channel there heard %s", proxytest.Describe(f))
			}
		}
		r.must(idle.Publish(1, "", "nowhere", []byte("y"))) // its first frame for a broker
		r.must(left.OpenChannel(2))
		_, err = left.DeclareQueue(2, "q", 0)
		r.must(err)
		next := r.client(proxytest.ClientConfig{})
		r.must(next.Publish(1, "", "nowhere", nil))
		if took := time.Since(began); took > 4*time.Second {
			t.Errorf("took %v", took)
		}
		if b := n.open("b:5672"); b != 1 {
			t.Errorf("%d connections at the other", b)
		}
		if s := r.s.Stats(); !s.BrokerUp || s.Targets[0].Up || !s.Targets[1].Up || s.Targets[1].Links != 1 {
			t.Errorf("told as %v, %+v", s.BrokerUp, s.Targets)
		}
		if err := r.s.Ready(bg); err != nil {
			t.Errorf("not ready: %v", err)
		}
		for _, c := range []*proxytest.Client{idle, left, next} {
			r.must(c.Close())
		}
		_ = bound.Hangup()
	})
}

// When a name leads elsewhere, its connections end with their last channel, and nobody is cut.
func TestANameThatChanges(t *testing.T) {
	withNodes(t, []string{"10.0.0.1:5672", "10.0.0.2:5672", "10.0.0.3:5672"}, func(c *Config, n *nodes) {
		c.Upstream, c.Others, c.Lookup = Upstream{Host: "broker", Port: 5672}, nil, n.lookup
		n.names["broker"] = []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")}
	}, func(r *rig, n *nodes) {
		c := r.client(proxytest.ClientConfig{})
		r.must(c.Confirm(1))
		r.must(c.Publish(1, "", "nowhere", []byte("x")))
		synctest.Wait()
		n.mu.Lock()
		n.names["broker"] = []netip.Addr{netip.MustParseAddr("10.0.0.3")}
		n.mu.Unlock()
		time.Sleep(40 * time.Second) // dns_refresh and 10 s
		d := r.client(proxytest.ClientConfig{})
		r.must(d.Publish(1, "", "nowhere", []byte("x")))
		if got := n.open("10.0.0.3:5672"); got != 1 {
			t.Errorf("%d connections at the new address", got)
		}
		r.must(c.Publish(1, "", "nowhere", []byte("y"))) // it has not been cut
		r.must(c.Close())
		if !r.eventually(2*time.Second, func() bool { return n.open("10.0.0.1:5672")+n.open("10.0.0.2:5672") == 0 }) {
			t.Error("a connection to an old address is left when its last channel is gone")
		}
		r.must(d.Close())
		if s := r.s.Stats().Targets; len(s) != 1 || s[0].Address != "broker:5672" {
			t.Errorf("targets are %+v", s)
		}
	})
}

// When a name leads elsewhere, whatever carries nothing is at the new address within dns_refresh and ten seconds, and what
// carries something goes there channel by channel; nobody hears of it.
func TestANameThatChangesUnderWork(t *testing.T) {
	withNodes(t, []string{"10.0.0.1:5672", "10.0.0.2:5672", "10.0.0.3:5672"}, func(c *Config, n *nodes) {
		c.Upstream, c.Others, c.Lookup, c.Spread = Upstream{Host: "broker", Port: 5672}, nil, n.lookup, 4
		n.names["broker"] = []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")}
	}, func(r *rig, n *nodes) {
		var work, hold []*proxytest.Client
		use := func(c *proxytest.Client) {
			r.t.Helper()
			r.must(c.Publish(1, "", "nowhere", []byte("x")))
			r.must(c.WaitConfirms(1))
		}
		for range 6 {
			work, hold = append(work, r.client(proxytest.ClientConfig{})), append(hold, r.client(proxytest.ClientConfig{}))
		}
		for _, c := range append(work, hold...) {
			r.must(c.Confirm(1))
			use(c)
		}
		synctest.Wait()
		old := func() int { return n.open("10.0.0.1:5672") + n.open("10.0.0.2:5672") }
		if at := old(); at != 4 {
			t.Errorf("%d connections before, want 4", at)
		}
		n.mu.Lock()
		n.names["broker"] = []netip.Addr{netip.MustParseAddr("10.0.0.3")}
		n.mu.Unlock()
		began := time.Now()
		anew := func(c *proxytest.Client) {
			r.t.Helper()
			r.must(c.CloseChannel(1))
			r.must(c.OpenChannel(1))
			r.must(c.Confirm(1))
			use(c)
		}
		for time.Since(began) < r.s.cfg().DNSRefresh+10*time.Second {
			time.Sleep(time.Second)
			for _, c := range work {
				anew(c)
			}
			for _, c := range hold {
				use(c)
			}
		}
		accepted := n.b["10.0.0.1:5672"].Counts().Accepted + n.b["10.0.0.2:5672"].Counts().Accepted
		for _, c := range append(work, hold...) {
			anew(c)
		}
		if got := n.b["10.0.0.1:5672"].Counts().Accepted + n.b["10.0.0.2:5672"].Counts().Accepted; got != accepted {
			t.Errorf("%d connections were opened to an old address", got-accepted)
		}
		if !r.eventually(2*time.Second, func() bool { return old() == 0 }) {
			t.Errorf("%d connections to old addresses are left when nothing holds them", old())
		}
		if at := n.open("10.0.0.3:5672"); at != 4 {
			t.Errorf("%d connections at the new address, want 4", at)
		}
		for _, c := range append(work, hold...) {
			use(c)
			r.must(c.Close())
		}
	})
}

// A list that grows at a reload takes nothing from those that are connected; one that shrinks
// retires what leads to what is gone.
func TestReloadOfAList(t *testing.T) {
	withNodes(t, []string{"a:5672", "b:5672"}, func(c *Config, _ *nodes) { c.Balance = BalanceOrder }, func(r *rig, n *nodes) {
		c := r.client(proxytest.ClientConfig{})
		r.must(c.Publish(1, "", "nowhere", []byte("x")))
		cfg := *r.s.cfg()
		cfg.Others = append(cfg.Others[:1:1], Upstream{Host: "c", Port: 5672})
		if _, err := r.s.Reload(cfg); err != nil {
			t.Fatal(err)
		}
		d := r.client(proxytest.ClientConfig{})
		r.must(d.Publish(1, "", "nowhere", []byte("x")))
		if a, b := n.open("a:5672"), n.open("b:5672"); a != 1 || b != 0 {
			t.Errorf("%d and %d connections after one more", a, b)
		}
		cfg.Upstream, cfg.Others = cfg.Others[0], cfg.Others[1:]
		if _, err := r.s.Reload(cfg); err != nil {
			t.Fatal(err)
		}
		e := r.client(proxytest.ClientConfig{})
		r.must(e.Publish(1, "", "nowhere", []byte("x")))
		if a, b := n.open("a:5672"), n.open("b:5672"); a != 1 || b != 1 {
			t.Errorf("%d and %d connections after one less", a, b)
		}
		for _, x := range []*proxytest.Client{c, d, e} {
			r.must(x.Close())
		}
		if !r.eventually(2*time.Second, func() bool { return n.open("a:5672") == 0 }) {
			t.Error("what leads to the target that left is not retired")
		}
		if strings.Contains(r.log(), "cannot be reached") {
			t.Errorf("logged\n%s", r.log())
		}
	})
}

// retireAll has all connections of the pool take no more.
func (p *pool) retireAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, u := range p.ups {
		u.retired = true
	}
}

// A name of one address that leads to another one before it is looked up again: who comes is served there, by
// one connection, and the address of before is gone.
func TestANameThatMovesUnseen(t *testing.T) {
	withNodes(t, []string{"10.0.0.1:5672", "10.0.0.2:5672"}, func(c *Config, n *nodes) {
		n.names["broker"] = []netip.Addr{netip.MustParseAddr("10.0.0.1")}
		c.Upstream, c.Others = Upstream{Host: "broker", Port: 5672}, nil
		c.Lookup, c.DNSRefresh = n.lookup, 10*time.Minute
	}, func(r *rig, n *nodes) {
		c := r.client(proxytest.ClientConfig{})
		r.must(c.Publish(1, "", "nowhere", []byte("x")))
		n.mu.Lock()
		n.names["broker"] = []netip.Addr{netip.MustParseAddr("10.0.0.2")}
		n.mu.Unlock()
		n.stop("10.0.0.1:5672")
		time.Sleep(2 * time.Second)
		for range 3 {
			d := r.client(proxytest.ClientConfig{})
			r.must(d.Publish(1, "", "nowhere", []byte("y")))
			r.must(d.Close())
		}
		if got := n.b["10.0.0.2:5672"].Counts().Accepted; got > 2 {
			t.Errorf("the broker saw %d connections, want one for logins, and perhaps the greeted one", got)
		}
		time.Sleep(2 * time.Second)
		if all := r.s.door().Targets(); len(all) != 1 {
			t.Errorf("targets are %+v, want the one that the name leads to", all)
		}
	})
}

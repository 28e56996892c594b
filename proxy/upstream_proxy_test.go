package proxy

import (
	"context"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/pires/go-proxyproto"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// heardListener is a broker that asks for the PROXY protocol, and keeps what it is told.
type heardListener struct {
	net.Listener
	t     *testing.T
	mu    *sync.Mutex
	heard *[]string
}

func (l heardListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	h, err := readProxyHeader(c)
	if err != nil {
		l.t.Errorf("the broker hears %v", err)
		return c, nil
	}
	said := "nobody"
	if h.Command == proxyproto.PROXY {
		said = h.SourceAddr.String()
	}
	l.mu.Lock()
	*l.heard = append(*l.heard, said)
	l.mu.Unlock()
	return c, nil
}

// ownAddr is a connection of this machine to somewhere.
type ownAddr struct {
	fixedAddr
	own net.Addr
}

func (c ownAddr) LocalAddr() net.Addr { return c.own }

// A session's connection tells the broker its client's address and serves clients of that only,
// all others tell the proxy's own.
func TestTheBrokerIsToldTheAddress(t *testing.T) {
	for _, version := range []string{"v1", "v2"} {
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			var heard []string
			from := net.Addr(tcpAddr("192.0.2.1:1"))
			r := &rig{t: t, to: proxytest.ListenMem("broker:5672", 0)}
			r.wrap = func(l net.Listener) net.Listener { return fromListener{l, &from} }
			r.b = proxytest.StartBroker(t, proxytest.BrokerConfig{Listener: heardListener{r.to, t, &mu, &heard}})
			r.start(func(cfg *Config) {
				cfg.ProxyProtocol = version
				dial := cfg.Dial
				cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
					conn, err := dial(ctx, network, address)
					return ownAddr{fixedAddr{conn, tcpAddr("10.0.0.5:5672")}, tcpAddr("10.0.0.9:99")}, err
				}
			})
			const own = "10.0.0.9:99"
			says := func(want ...string) {
				t.Helper()
				synctest.Wait()
				mu.Lock()
				defer mu.Unlock()
				if !slices.Equal(heard, want) {
					t.Errorf("%s: the broker has heard %q, want %q", version, heard, want)
				}
			}
			// An exclusive queue takes a connection of one's own, for a channel that can move.
			session := func(c *proxytest.Client) {
				t.Helper()
				r.must(c.OpenChannel(2))
				_, err := c.DeclareQueue(2, "", proxytest.Exclusive)
				r.must(err)
			}
			other := r.client(proxytest.ClientConfig{})
			r.must(other.Publish(1, "", "q", nil))
			says(own)
			a := r.client(proxytest.ClientConfig{})
			session(a)
			says(own, "192.0.2.1:1")
			from = tcpAddr("[2001:db8::1]:2")
			b := r.client(proxytest.ClientConfig{})
			session(b)
			says(own, "192.0.2.1:1", "[2001:db8::1]:2")
			for _, c := range []*proxytest.Client{a, b, other} {
				r.must(c.Close())
			}
		})
	}
}

// An idle session is reused by clients of its address, not by others.
func TestASessionsAddress(t *testing.T) {
	one, again, other := tcpAddr("192.0.2.1:1"), tcpAddr("192.0.2.1:2"), tcpAddr("192.0.2.2:1")
	for _, c := range []struct {
		told, client *net.TCPAddr
		want         bool
	}{{one, again, true}, {one, other, false}, {one, nil, false}, {nil, one, false}, {nil, nil, true}} {
		if got := speaksFor(c.told, c.client); got != c.want {
			t.Errorf("told %v, for %v: %v", c.told, c.client, got)
		}
	}
}

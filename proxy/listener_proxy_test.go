package proxy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

func tcpAddr(s string) *net.TCPAddr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }

// fromListener has connections come from an address of the test's choice.
type fromListener struct {
	net.Listener
	from *net.Addr
}

func (l fromListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return fixedAddr{c, *l.from}, nil
}

// withBalancer is a test of a proxy behind the balancer 10.0.0.1; connections come from *from.
func withBalancer(t *testing.T, change func(*Config), test func(r *rig, from *net.Addr)) {
	synctest.Test(t, func(t *testing.T) {
		from := net.Addr(tcpAddr("10.0.0.1:7"))
		r := &rig{t: t, to: proxytest.ListenMem("broker:5672", 0)}
		r.wrap = func(l net.Listener) net.Listener { return fromListener{l, &from} }
		r.b = proxytest.StartBroker(t, proxytest.BrokerConfig{Listener: r.to})
		r.start(func(cfg *Config) {
			cfg.Listeners[0].Proxy = &ProxyProtocol{From: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Direct: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
			if change != nil {
				change(cfg)
			}
		})
		test(r, &from)
		r.settled()
		if r.s.limits.mu.Lock(); len(r.s.limits.from) != 0 || r.s.limits.handshakes != 0 {
			t.Errorf("after all: %d handshakes, by address %v", r.s.limits.handshakes, r.s.limits.from)
		}
		r.s.limits.mu.Unlock()
	})
}

// headerOf is what a balancer sends before a client's first octet.
func headerOf(version byte, client string) []byte {
	h := proxyproto.HeaderProxyFromAddrs(version, tcpAddr(client), tcpAddr("192.0.2.99:5672"))
	if strings.HasPrefix(client, "[") {
		h = proxyproto.HeaderProxyFromAddrs(version, tcpAddr(client), tcpAddr("[2001:db8::99]:5672"))
	}
	b, err := h.Format()
	if err != nil {
		panic(err)
	}
	return b
}

// said is a connection that has sent this.
func (r *rig) said(b []byte) net.Conn {
	r.t.Helper()
	c := r.socket()
	_, err := c.Write(b)
	r.must(err)
	return c
}

// The address that a balancer tells is the client's everywhere; TLS comes after it.
func TestProxyProtocol(t *testing.T) {
	var ca *proxytest.Certs
	for _, secure := range []bool{false, true} {
		for version := byte(1); version <= 2; version++ {
			for _, client := range []string{"192.0.2.1:1234", "[2001:db8::1]:1234"} {
				t.Run(fmt.Sprint(secure, version, client), func(t *testing.T) {
					withBalancer(t, func(cfg *Config) {
						if secure {
							ca = newCerts(t)
							cfg.Listeners[0].TLS = serverOf(t, ca, "localhost")
						}
					}, func(r *rig, _ *net.Addr) {
						cfg := proxytest.ClientConfig{Dial: func(context.Context, string, string) (net.Conn, error) {
							return r.said(headerOf(version, client)), nil
						}}
						if secure {
							cfg.TLS = ca.Client()
						}
						c, err := proxytest.Dial(cfg)
						r.must(err)
						if l := r.s.ListClients(); len(l) != 1 || l[0].Address != client {
							t.Errorf("the list of clients is %+v", l)
						}
						r.must(c.Send(proxytest.Method(0, amqp.ConnectionOpenOk, ""))) // what is no client's: a line of the log
						_, _ = c.Expect(amqp.ConnectionClose)
						synctest.Wait()
						if !strings.Contains(r.log(), "address="+client) && !strings.Contains(r.log(), `address="`+client) || strings.Contains(r.log(), "address=10.0.0.1") {
							t.Errorf("logged\n%s", r.log())
						}
						_ = c.Hangup()
						if n := r.s.Stats().Listeners[0].ProxyHeaders; n[proxyOK] != 1 {
							t.Errorf("headers: %v", n)
						}
					})
				})
			}
		}
	}
}

// Who may tell, and who need not.
func TestWhoSpeaksPROXY(t *testing.T) {
	hello := append(headerOf(2, "192.0.2.1:1234"), amqp.ProtocolHeader[:]...)
	for _, c := range []struct {
		from   string
		sent   []byte
		result int
		start  bool
		line   string
	}{
		{"10.0.0.1:7", hello, proxyOK, true, ""},
		{"127.0.0.1:7", amqp.ProtocolHeader[:], proxyDirect, true, ""},
		{"192.0.2.7:7", hello, proxyUntrusted, false, "no PROXY header from a trusted address"},
		{"192.0.2.7:7", nil, proxyUntrusted, false, "no PROXY header from a trusted address"},
		{"127.0.0.1:7", hello, proxyDirect, false, "it sent a PROXY header, which listener.proxy_protocol takes"},
		{"10.0.0.1:7", amqp.ProtocolHeader[:], proxyMalformed, false, "it is AMQP"},
		{"10.0.0.1:7", append(ownHeader(), amqp.ProtocolHeader[:]...), proxyLocal, true, ""},
		{"10.0.0.1:7", append([]byte("PROXY UNKNOWN\r\n"), amqp.ProtocolHeader[:]...), proxyLocal, true, ""},
	} {
		withBalancer(t, nil, func(r *rig, from *net.Addr) {
			*from = tcpAddr(c.from)
			conn := r.said(c.sent)
			b := make([]byte, 100)
			n, _ := conn.Read(b)
			if started := n > 4 && b[0] == amqp.FrameMethod; started != c.start {
				t.Errorf("%s sends %q and hears %q", c.from, c.sent, b[:n])
			}
			if !c.start && c.result != proxyDirect && n > 0 {
				t.Errorf("%s sends %q, which is refused, and hears %q", c.from, c.sent, b[:n])
			}
			_ = conn.Close()
			synctest.Wait()
			if n := r.s.Stats().Listeners[0].ProxyHeaders; n[c.result] != 1 {
				t.Errorf("%s sends %q: %v, want one %s", c.from, c.sent, n, ProxyResults[c.result])
			}
			if c.line != "" && strings.Count(r.log(), c.line) != 1 {
				t.Errorf("%s sends %q, logged\n%s", c.from, c.sent, r.log())
			}
		})
	}
}

// A header is read to its end and no further, however it comes, and nothing else is taken for one.
func TestReadProxyHeader(t *testing.T) {
	long := func(n int) []byte {
		h := proxyproto.HeaderProxyFromAddrs(2, tcpAddr("192.0.2.1:1"), tcpAddr("192.0.2.2:2"))
		_ = h.SetTLVs([]proxyproto.TLV{{Type: proxyproto.PP2_TYPE_NOOP, Value: make([]byte, n)}})
		b, err := h.Format()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	const next = "AMQP"
	for _, h := range [][]byte{
		headerOf(1, "192.0.2.1:1"), headerOf(2, "192.0.2.1:1"), headerOf(1, "[2001:db8::1]:1"), headerOf(2, "[2001:db8::1]:1"),
		ownHeader(), []byte("PROXY UNKNOWN\r\n"), []byte("PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n"), long(4000),
	} {
		for name, by := range map[string]func(io.Reader) io.Reader{"at once": func(r io.Reader) io.Reader { return r }, "by octets": iotest.OneByteReader, "in halves": iotest.HalfReader} {
			in := bytes.NewReader(append(bytes.Clone(h), next...))
			if _, err := readProxyHeader(by(in)); err != nil {
				t.Errorf("%.40q %s: %v", h, name, err)
			}
			if left, _ := io.ReadAll(in); string(left) != next {
				t.Errorf("%.40q %s: %q is left", h, name, left)
			}
		}
		for n := range len(h) {
			if _, err := readProxyHeader(bytes.NewReader(h[:n])); err == nil {
				t.Errorf("%d octets of %.40q are a header", n, h)
			}
		}
	}
	v2 := headerOf(2, "192.0.2.1:1")
	change := func(i int, b byte) []byte { c := bytes.Clone(v2); c[i] = b; return c }
	for _, bad := range [][]byte{
		[]byte("GET / HTTP/1.1\r\n\r\n"), amqp.ProtocolHeader[:], {0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 0, 0, 0, 0, 0},
		[]byte("PROXY TCP4 1.1.1.1 1.1.1.1 1 65536\r\n"), []byte("PROXY TCP4 1.1.1 1.1.1.1 1 1\r\n"), []byte("PROXY TCP6 1.1.1.1 1.1.1.1 1 1\r\n"),
		[]byte("PROXY  TCP4 1.1.1.1 1.1.1.1 1 1\r\n"), []byte("PROXY TCP4 1.1.1.1 1.1.1.1 1 1\n"), []byte("PROXY " + strings.Repeat("x", 120) + "\r\n"),
		[]byte("PROXYTCP4 1.1.1.1 1.1.1.1 1 1\r\n"), change(12, 0x31), change(12, 0x22), change(13, 0x13), change(13, 0xff), change(15, 11), change(11, 'x'), long(4090), change(14, 0xff),
	} {
		in := bytes.NewReader(append(bytes.Clone(bad), make([]byte, 70000)...))
		if h, err := readProxyHeader(in); err == nil {
			t.Errorf("%.40q is the header %v", bad, h)
		}
		if took := 70000 + len(bad) - in.Len(); took > proxyHeaderMost+16 {
			t.Errorf("of %.40q %d octets are read", bad, took)
		}
	}
}

// The share of an address among the handshakes is the clients', not the balancer's.
func TestHandshakesBehindABalancer(t *testing.T) {
	withBalancer(t, func(cfg *Config) { cfg.MaxHandshakes = 4 }, func(r *rig, _ *net.Addr) {
		turned := func() uint64 { synctest.Wait(); return r.s.Stats().TurnedAway }
		one := []net.Conn{r.said(headerOf(1, "192.0.2.1:1")), r.said(headerOf(1, "192.0.2.1:2"))}
		if turned() != 0 {
			t.Error("two of four are turned away")
		}
		third := r.said(headerOf(2, "192.0.2.1:3"))
		if turned() != 1 {
			t.Error("an address has more than half")
		}
		other := r.said(headerOf(2, "192.0.2.2:1"))
		if turned() != 1 {
			t.Error("another address has no place")
		}
		for _, c := range append(one, third, other) {
			_ = c.Close()
		}
	})
}

// One octet at a time is tolerated, but not for ever.
func TestSlowProxyHeader(t *testing.T) {
	withBalancer(t, nil, func(r *rig, _ *net.Addr) {
		began := time.Now()
		c := r.said([]byte("PROXY TCP4 "))
		for {
			time.Sleep(time.Second)
			if _, err := c.Write([]byte("1")); err != nil {
				break
			}
		}
		if took := time.Since(began); took > r.s.cfg().HandshakeTimeout+3*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// A reload may change whom is believed, from the next connection on.
func TestProxyFromIsLive(t *testing.T) {
	withBalancer(t, nil, func(r *rig, from *net.Addr) {
		conf := *r.s.cfg()
		conf.Listeners = []Listener{conf.Listeners[0]}
		conf.Listeners[0].Proxy = &ProxyProtocol{From: []netip.Prefix{netip.MustParsePrefix("172.16.0.0/12")}}
		if need, err := r.s.Reload(conf); err != nil || len(need) > 0 {
			t.Fatal(need, err)
		}
		_, _ = r.said(headerOf(1, "192.0.2.1:1")).Read(make([]byte, 1))
		*from = tcpAddr("172.16.0.1:1")
		c := r.said(append(headerOf(1, "192.0.2.1:1"), amqp.ProtocolHeader[:]...))
		_, err := c.Read(make([]byte, 1))
		r.must(err)
		_ = c.Close()
		if n := r.s.Stats().Listeners[0].ProxyHeaders; n[proxyUntrusted] != 1 || n[proxyOK] != 1 {
			t.Errorf("%v", n)
		}
		conf.Listeners[0].Proxy = nil
		if need, err := r.s.Reload(conf); err != nil || len(need) != 1 {
			t.Errorf("without the protocol: %v, %v", need, err)
		}
	})
}

// The watchdog's question is answered though its address is trusted by nobody.
func TestSelfCheckBehindABalancer(t *testing.T) {
	for _, direct := range []string{"192.0.2.0/24", "127.0.0.0/8"} {
		cfg := DefaultConfig()
		cfg.Listeners = []Listener{{Address: "127.0.0.1:0", Mode: PoolAuto, Proxy: &ProxyProtocol{
			From: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Direct: []netip.Prefix{netip.MustParsePrefix(direct)}}}}
		cfg.Logger = slog.New(slog.DiscardHandler)
		s, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Start(nil); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if err := s.SelfCheck(t.Context()); err != nil {
				t.Errorf("direct from %s: %v", direct, err)
			}
		}
		_ = s.Close()
	}
}

// A user whom a broker takes from its own machine only is refused where he comes from another,
// in the words of a wrong password; a broker that is elsewhere judges by itself.
func TestLoopbackUsers(t *testing.T) {
	for _, c := range []struct {
		broker, client, user string
		users                []string
		in                   bool
	}{
		{"127.0.0.1:5672", "192.0.2.1:1", "guest", []string{"guest"}, false},
		{"[::1]:5672", "[2001:db8::1]:1", "guest", []string{"admin", "guest"}, false},
		{"127.0.0.1:5672", "127.0.0.1:1", "guest", []string{"guest"}, true},
		{"127.0.0.1:5672", "[::1]:1", "guest", []string{"guest"}, true},
		{"127.0.0.1:5672", "192.0.2.1:1", "guest", []string{"shop"}, true},
		{"127.0.0.1:5672", "192.0.2.1:1", "guest", nil, true},
		{"10.0.0.5:5672", "192.0.2.1:1", "guest", []string{"guest"}, true},
	} {
		withBalancer(t, func(cfg *Config) {
			cfg.LoopbackUsers = c.users
			cfg.Listeners[0].Proxy = nil
			dial := cfg.Dial
			cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := dial(ctx, network, address)
				return fixedAddr{conn, tcpAddr(c.broker)}, err
			}
		}, func(r *rig, from *net.Addr) {
			*from = tcpAddr(c.client)
			cc, err := r.login(proxytest.ClientConfig{User: c.user})
			if c.in {
				r.must(err)
				_ = cc.Hangup()
				return
			}
			r.hears(err, amqp.AccessRefused, "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker logfile.")
			if !strings.Contains(r.log(), "setting=client.loopback_users") {
				t.Errorf("logged\n%s", r.log())
			}
		})
	}
}

// The time that the kernel's wait with acknowledgements costs, on real sockets.

package proxy

import (
	"context"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// LavinMQ sends without TCP_NODELAY and each answer by itself: the second waits in its
// kernel until the first has been acknowledged, 40 ms and more if nobody hurries the proxy's.
func TestAnswersAreAcknowledgedAtOnce(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("other systems are told otherwise, or not at all")
	}
	t.Run("plain", func(t *testing.T) { acknowledged(t, nil) })
	certs, err := proxytest.NewCerts()
	if err != nil {
		t.Fatal(err)
	}
	t.Run("TLS", func(t *testing.T) { acknowledged(t, certs) })
}

func acknowledged(t *testing.T, certs *proxytest.Certs) {
	bc := proxytest.BrokerConfig{Flavour: proxytest.LavinMQ}
	cfg := DefaultConfig()
	if certs != nil {
		bc.TLS = certs.Server()
		cfg.Upstream = Upstream{Host: "localhost", Port: 5671, TLS: certs.Client()}
	}
	b := proxytest.StartBroker(t, bc)
	cfg.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, b.Addr())
	}
	cfg.Logger = slog.New(slog.DiscardHandler)
	cfg.Listeners[0].Address = "127.0.0.1:0"
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(nil); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	connects := func(addr string) (fastest, median time.Duration) {
		var took []time.Duration
		for range 60 {
			begin := time.Now()
			cc := proxytest.ClientConfig{Addr: addr}
			if addr == b.Addr() && certs != nil {
				cc.TLS = certs.Client()
			}
			c, err := proxytest.Dial(cc)
			if err != nil {
				t.Fatal(err)
			}
			if err = c.OpenChannel(1); err == nil {
				_, err = c.DeclareQueue(1, "q", 0)
			}
			if err == nil {
				err = c.Confirm(1)
			}
			if err == nil {
				err = c.Publish(1, "", "q", []byte("x"))
			}
			if err == nil {
				err = c.WaitConfirms(1)
			}
			if err == nil {
				_, err = c.Get(1, "q", true)
			}
			if err == nil {
				err = c.Close()
			}
			if err != nil {
				t.Fatal(err)
			}
			_ = c.Hangup()
			took = append(took, time.Since(begin))
		}
		took = took[len(took)/2:] // the kernel has left the phase in which it is quick by itself
		slices.Sort(took)
		return took[0], took[len(took)/2]
	}
	_, straight := connects(b.Addr())
	fastest, through := connects(s.Addrs()[0].String())
	t.Logf("FIGURE connect, declare, publish, confirm, get, close before LavinMQ: p50 %v straight, %v through", straight, through)
	if fastest >= 40*time.Millisecond {
		t.Errorf("the fastest of 30 took %v", fastest)
	}
}

// bufferedSocket is a socket that remembers what receive buffer it was told.
type bufferedSocket struct {
	net.Conn
	from net.Addr
	told int
}

func (b *bufferedSocket) RemoteAddr() net.Addr          { return b.from }
func (b *bufferedSocket) SetReadBuffer(bytes int) error { b.told = bytes; return nil }

func TestCrowdedSockets(t *testing.T) {
	near, near6 := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 7)}, &net.TCPAddr{IP: net.IPv6loopback}
	far := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}
	for _, c := range []struct {
		from    net.Addr
		clients int
		want    int
	}{
		{near, 0, 0},
		{near, crowdFrom - 1, 0},
		{near, crowdFrom, crowdBuffer},
		{near6, 10_000, crowdBuffer},
		{far, 10_000, 0},
		{&net.UnixAddr{Name: "x"}, 10_000, 0},
	} {
		b := &bufferedSocket{from: c.from}
		if crowded(b, c.clients); b.told != c.want {
			t.Errorf("%v beside %d clients: a receive buffer of %d bytes, want %d", c.from, c.clients, b.told, c.want)
		}
	}
}

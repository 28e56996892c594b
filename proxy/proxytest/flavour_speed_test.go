// Short connections before a broker without TCP_NODELAY, over real sockets.

package proxytest_test

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// A short client that waits for answers takes as long before a broker that writes each
// answer by itself without TCP_NODELAY as before one that does not: an upstream that has
// been in use for a while must not make it wait for delayed acknowledgements (40 ms). The
// control takes turns with it on the same machine.
func TestLavinShortConnections(t *testing.T) {
	through := func(flavour proxytest.Flavour) (straight, proxied string) {
		b := proxytest.StartBroker(t, proxytest.BrokerConfig{Flavour: flavour})
		host, port, err := net.SplitHostPort(b.Addr())
		if err != nil {
			t.Fatal(err)
		}
		cfg := proxy.DefaultConfig()
		cfg.Listeners[0].Address = "127.0.0.1:0"
		cfg.Upstream.Host = host
		if cfg.Upstream.Port, err = strconv.Atoi(port); err != nil {
			t.Fatal(err)
		}
		cfg.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
		s, err := proxy.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Start(nil); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return b.Addr(), s.Addrs()[0].String()
	}
	short := func(addr string) time.Duration {
		began := time.Now()
		c, err := proxytest.Dial(proxytest.ClientConfig{Addr: addr})
		if err != nil {
			t.Fatal(err)
		}
		if err = errors.Join(c.OpenChannel(1), c.Confirm(1)); err == nil {
			_, err = c.DeclareQueue(1, "q", proxytest.Durable)
		}
		if err == nil {
			err = errors.Join(c.Publish(1, "", "q", []byte("x")), c.WaitConfirms(1))
		}
		if err == nil {
			_, err = c.Get(1, "q", true)
		}
		if err = errors.Join(err, c.Close()); err != nil {
			t.Fatal(err)
		}
		return time.Since(began)
	}
	_, control := through("")
	straight, proxied := through(proxytest.LavinMQ)
	addrs := []string{control, proxied, straight}
	var took [3][]time.Duration
	for range 60 {
		for i, addr := range addrs {
			took[i] = append(took[i], short(addr))
		}
	}
	p50 := func(ds []time.Duration) time.Duration { slices.Sort(ds); return ds[len(ds)/2] }
	quick, lavin := p50(took[0]), p50(took[1])
	t.Logf("FIGURE p50 of a short connection through the proxy: %v, straight %v; through it before a broker with TCP_NODELAY %v",
		lavin, p50(took[2]), quick)
	if lavin > 3*quick+10*time.Millisecond {
		t.Errorf("p50 %v, with TCP_NODELAY %v", lavin, quick)
	}
}

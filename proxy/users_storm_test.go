package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
	"github.com/amqproxysvc/amqproxysvc/proxy/hash"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// A storm of wrong passwords from one address, 5,000 a second: what the logins of others take, and what the
// broker sees of it. With FULL=1 only, since it says something on a quiet machine alone.
func TestStormOfWrongPasswords(t *testing.T) {
	if os.Getenv("FULL") == "" {
		t.Skip("measures for ten seconds: with FULL=1 only")
	}
	b := proxytest.StartBroker(t, proxytest.BrokerConfig{Users: map[string]string{"prod": "s3cr3t"}})
	host, port, _ := net.SplitHostPort(b.Addr())
	cfg := DefaultConfig()
	cfg.Listeners[0].Address, cfg.Logger = "127.0.0.1:0", slog.New(slog.DiscardHandler)
	cfg.Upstream.Host = host
	_, _ = fmt.Sscan(port, &cfg.Upstream.Port)
	sends := Password{"prod", broker.NewSecret("s3cr3t")}
	for _, name := range []string{"shop", "till"} {
		h, err := hash.Parse(hash.New("of " + name))
		if err != nil {
			t.Fatal(err)
		}
		cfg.Users = append(cfg.Users, User{Name: name, Password: h, Broker: sends})
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(nil); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	at := s.Addrs()[0].String()
	from := func(ip string) func(context.Context, string, string) (net.Conn, error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
		return d.DialContext
	}
	logins := func(during time.Duration, fresh bool) (p50, p99 time.Duration, failed int) {
		var took []time.Duration
		for end := time.Now().Add(during); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if fresh { // as if its password had never been seen: a hash each time
				s.strangers.forget()
			}
			began := time.Now()
			c, err := proxytest.Dial(proxytest.ClientConfig{Addr: at, Dial: from("127.0.0.2"), User: "till", Password: "of till"})
			if err != nil {
				failed++
				continue
			}
			took = append(took, time.Since(began))
			_ = c.Close()
		}
		slices.Sort(took)
		if len(took) == 0 {
			return 0, 0, failed
		}
		return took[len(took)/2], took[len(took)*99/100], failed
	}
	tell := func(when string) {
		p50, p99, failed := logins(3*time.Second, false)
		f50, f99, ffailed := logins(3*time.Second, true)
		t.Logf("%s: known password p50 %v p99 %v, %d failed; a hash each time p50 %v p99 %v, %d failed", when,
			p50.Round(time.Microsecond), p99.Round(time.Microsecond), failed, f50.Round(time.Microsecond), f99.Round(time.Microsecond), ffailed)
	}
	tell("quiet")
	seen, refused := b.Counts().Accepted, s.Stats().LocalRefused
	var tried atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	began := time.Now()
	for i := range 500 { // each ten a second
		wg.Add(1)
		go func() {
			defer wg.Done()
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				tried.Add(1)
				c, err := proxytest.Connect(proxytest.ClientConfig{Addr: at, Dial: from("127.0.0.1"), User: "shop", Password: fmt.Sprint("wrong ", i, n), Timeout: 300 * time.Millisecond})
				if err == nil {
					_ = c.Start()
					c.Abort()
				}
			}
		}()
	}
	tell("amid the storm")
	close(stop)
	took := time.Since(began)
	wg.Wait()
	st := s.Stats()
	t.Logf("%.0f wrong logins a second were tried; %d refused after a look, %d turned away; the broker has seen %d connections",
		float64(tried.Load())/took.Seconds(), st.LocalRefused-refused, st.TurnedAway, b.Counts().Accepted-seen)
	if n := b.Counts().Refused; n != 0 {
		t.Errorf("the broker has seen %d wrong passwords", n)
	}
}

package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

func TestAccess(t *testing.T) {
	networks := func(all ...string) (p []netip.Prefix) {
		for _, n := range all {
			p = append(p, netip.MustParsePrefix(n))
		}
		return p
	}
	for _, c := range []struct {
		allow, deny []netip.Prefix
		from        string
		want        bool
	}{
		{nil, nil, "192.0.2.1", true},
		{networks("10.0.0.0/8"), nil, "10.1.2.3", true}, {networks("10.0.0.0/8"), nil, "192.0.2.1", false}, {networks("10.0.0.0/8"), nil, "::ffff:10.1.2.3", true},
		{nil, networks("10.0.0.0/8"), "10.1.2.3", false}, {nil, networks("10.0.0.0/8"), "::ffff:10.1.2.3", false}, {nil, networks("10.0.0.0/8"), "192.0.2.1", true},
		{networks("10.0.0.0/8"), networks("10.9.0.0/16"), "10.9.1.1", false}, {networks("10.0.0.0/8"), networks("10.9.0.0/16"), "10.8.1.1", true},
		{networks("2001:db8::/32", "10.0.0.0/8"), nil, "2001:db8::1", true}, {networks("2001:db8::/32"), nil, "2001:db9::1", false},
		{networks("fe80::/10"), nil, "fe80::1%eth0", true}, {networks("::/0"), nil, "10.1.2.3", false}, {networks("::/0"), nil, "pipe", false}, {nil, networks("::/0"), "pipe", true},
	} {
		var from net.Addr = &net.UnixAddr{Name: c.from}
		if a, err := netip.ParseAddr(c.from); err == nil {
			from = &net.TCPAddr{IP: a.AsSlice(), Zone: a.Zone(), Port: 5}
		}
		a := Access{c.allow, c.deny}
		if got := a.admits(from); got != c.want {
			t.Errorf("allow %v, deny %v: %s may connect: %v, want %v", c.allow, c.deny, c.from, got, c.want)
		}
	}
}

// Whoever may not connect is closed without a byte; it is live; and the watchdog's question is answered all the same.
func TestBarred(t *testing.T) {
	for name, bar := range map[string]func(*Config){
		"client.deny":    func(c *Config) { c.Access.Deny = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} },
		"listener.allow": func(c *Config) { c.Listeners[0].Access.Allow = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} },
	} {
		t.Run(name, func(t *testing.T) {
			fromLoopback(t, nil, func(r *rig) {
				stays := r.client(proxytest.ClientConfig{})
				open := *r.s.cfg()
				shut := open
				shut.Listeners = append([]Listener(nil), open.Listeners...)
				bar(&shut)
				_, err := r.s.Reload(shut)
				r.must(err)
				c := r.connect(proxytest.ClientConfig{})
				if f, err := c.NextWithin(time.Second); err == nil {
					t.Errorf("it was sent %v", f)
				}
				if st := r.s.Stats(); st.Barred != 1 || st.Clients != 1 {
					t.Errorf("%d are barred, %d clients there; want 1, 1", st.Barred, st.Clients)
				}
				if !strings.Contains(r.log(), "client refused: its address may not connect") || !strings.Contains(r.log(), "setting=\""+strings.SplitN(name, ".", 2)[0]+".allow") {
					t.Errorf("the log does not tell it")
				}
				_, err = stays.DeclareQueue(1, "q", 0)
				r.must(err)
				_, err = r.s.Reload(open)
				r.must(err)
				r.must(r.client(proxytest.ClientConfig{}).Close())
				r.must(stays.Close())
			})
		})
	}
}

// The server's question to itself is answered on a listener where its own address may not connect; others from there are closed
// before they are answered.
func TestSelfCheckWhereBarred(t *testing.T) {
	cfg := configured(func(c *Config) {
		c.Listeners[0].Address = "127.0.0.1:0"
		c.Upstream = Upstream{Host: "127.0.0.1", Port: 1}
		c.Access.Allow = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	})
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(nil); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(bg, 20*time.Second)
	defer cancel()
	if err := s.SelfCheck(ctx); err != nil {
		t.Error(err)
	}
	s.checking.Add(1) // as if one were under way
	defer s.checking.Add(-1)
	c, err := net.Dial("tcp", s.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write(amqp.ProtocolHeader[:])
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("another connection from there: %d octets, %v", n, err)
	}
	if n := s.Stats().Barred; n != 1 {
		t.Errorf("%d are barred, want 1", n)
	}
}

// Behind a balancer it is the client's own address that counts.
func TestBarredBehindBalancer(t *testing.T) {
	withBalancer(t, func(c *Config) {
		c.Listeners[0].Access.Deny = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("10.0.0.0/8")}
	}, func(r *rig, _ *net.Addr) {
		for from, want := range map[string]bool{"192.0.2.7:5": false, "198.51.100.7:5": true, "[2001:db8::1]:5": true} {
			c := r.said(append(headerOf(2, from), amqp.ProtocolHeader[:]...))
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			n, err := c.Read(make([]byte, 8))
			if (n > 0) != want || !want && errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("from %s it reads %d octets, %v; served %v is wanted", from, n, err, want)
			}
			_ = c.Close()
		}
		if n := r.s.Stats().Barred; n != 1 {
			t.Errorf("%d are barred, want 1", n)
		}
	})
}

package proxy

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// fromLoopback is a test of a proxy before the stand-in broker, which clients reach from 127.0.0.1.
func fromLoopback(t *testing.T, change func(*Config), test func(*rig)) {
	synctest.Test(t, func(t *testing.T) {
		from := net.Addr(tcpAddr("127.0.0.1:7"))
		r := &rig{t: t, to: proxytest.ListenMem("broker:5672", 0)}
		r.wrap = func(l net.Listener) net.Listener { return fromListener{l, &from} }
		r.b = proxytest.StartBroker(t, proxytest.BrokerConfig{Listener: r.to, VHosts: []string{"/", "other"}})
		r.start(change)
		test(r)
		r.settled()
	})
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, text string
		want          bool
	}{
		{"*", "", true}, {"*", "x", true}, {"a", "a", true}, {"a", "ab", false}, {"a*", "a", true}, {"a*", "ab", true}, {"a*", "ba", false},
		{"*a", "ba", true}, {"*a", "ab", false}, {"a*b", "ab", true}, {"a*b", "axb", true}, {"a*b", "a", false}, {"a*a", "a", false},
		{"a*b*c", "a-b-c", true}, {"a*b*c", "abbc", true}, {"a*b*c", "acb", false}, {"**", "x", true}, {"", "", true}, {"", "x", false},
		{"*:5671", "[::]:5671", true}, {"a?", "ab", false}, {"[a]", "[a]", true},
	} {
		if got := matches(c.pattern, c.text, false); got != c.want {
			t.Errorf("matches(%q, %q) = %v", c.pattern, c.text, got)
		}
	}
}

func TestRates(t *testing.T) {
	for text, want := range map[string]Rate{"200/s": {200, time.Second}, "30/m": {30, time.Minute}, "10/h": {10, time.Hour}, "1000000/s": {1_000_000, time.Second}} {
		if got, ok := ParseRate(text); !ok || got != want || got.String() != text {
			t.Errorf("%s is %v, %v", text, got, ok)
		}
	}
	for _, text := range []string{"", "0/s", "-1/s", "1.5/s", "1000001/s", "99999999999999999999/s", "5", "5/", "5/d", "/s", "5/s/s", " 5/s"} {
		if got, ok := ParseRate(text); ok {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}

// The most specific limit that matches is in force, alone; one that raises an alarm stands beside it.
func TestMostSpecificLimit(t *testing.T) {
	rules := newQuotaRules([]Limit{
		{By: ByUser, Match: "*", MaxClients: 1},
		{By: ByUser, Match: "batch-*", MaxClients: 2},
		{By: ByUser, Match: "batch-1", MaxClients: 3},
		{By: ByUser, Match: "*-1", MaxClients: 4},
		{By: ByUser, Match: "batch-1*", MaxClients: 5},
		{By: ByUser, Match: "*", MaxClients: 6, Alarm: true},
		{By: ByUser, Match: "admin", MaxClients: 0},
		{By: ByAddress, Match: "*", MaxClients: 10},
		{By: ByAddress, Match: "10.0.0.0/8", MaxClients: 11},
		{By: ByAddress, Match: "10.1.0.0/16", MaxClients: 12},
		{By: ByAddress, Match: "10.1.2.3", MaxClients: 13},
		{By: ByAddress, Match: "2001:db8::/32", MaxClients: 14},
		{By: ByAddress, Match: "2001:db8:1:2::/64", MaxClients: 15},
		{By: ByAddress, Match: "2001:db8:1:3::9", MaxClients: 16},
		{By: ByListener, Match: "*:5671", MaxClients: 20},
	})
	for _, c := range []struct {
		by             int
		name           string
		enforce, alarm int // -1: none
	}{
		{byUser, "x", 1, 6}, {byUser, "batch-2", 2, 6}, {byUser, "batch-1", 3, 6}, {byUser, "c-1", 4, 6}, {byUser, "batch-12", 5, 6}, {byUser, "admin", 0, 6},
		{byUser, "", 1, 6}, {byVHost, "x", -1, -1},
		{byAddress, "192.0.2.1", 10, -1}, {byAddress, "10.9.9.9", 11, -1}, {byAddress, "10.1.9.9", 12, -1}, {byAddress, "10.1.2.3", 13, -1},
		{byAddress, "2001:db8:9::/64", 14, -1}, {byAddress, "2001:db8:1:2::/64", 15, -1}, {byAddress, "2001:db8:1:3::/64", 16, -1}, {byAddress, "2001:db9::/64", 10, -1},
		{byAddress, "pipe", 10, -1},
		{byListener, "0.0.0.0:5671", 20, -1}, {byListener, "[::]:5671", 20, -1}, {byListener, "127.0.0.1:5673", -1, -1},
	} {
		is := rules.of(c.by, c.name)
		most := func(r *quotaRule) int {
			if r == nil {
				return -1
			}
			return r.MaxClients
		}
		if most(is.enforce) != c.enforce || most(is.alarm) != c.alarm {
			t.Errorf("%s %q: %d and an alarm at %d, want %d and %d", LimitBys[c.by], c.name, most(is.enforce), most(is.alarm), c.enforce, c.alarm)
		}
	}
}

func TestBadLimits(t *testing.T) {
	for _, c := range []struct {
		limit Limit
		want  string
	}{
		{Limit{By: "color", Match: "*"}, `limit.by is "color"`},
		{Limit{By: ByUser}, `limit.match is ""`},
		{Limit{By: ByAddress, Match: "10.0.0.0/33"}, `limit.match is "10.0.0.0/33"`},
		{Limit{By: ByAddress, Match: "host"}, `limit.match is "host"`},
		{Limit{By: ByAddress, Match: "2001:db8::/65"}, "of /64 or wider"},
		{Limit{By: ByAddress, Match: "::ffff:10.0.0.0/104"}, "limit.match"},
		{Limit{By: ByAddress, Match: "*", MaxUpstreams: 1}, "limit.max_upstreams is for limits by user or vhost"},
		{Limit{By: ByListener, Match: "*", MaxUpstreams: 1}, "limit.max_upstreams is for limits by user or vhost"},
		{Limit{By: ByUser, Match: "*", MaxClients: -1}, "limit.max_clients is -1"},
		{Limit{By: ByUser, Match: "*", DataRate: 1}, "limit.data_rate is 1"},
		{Limit{By: ByUser, Match: "*", ConnectRate: Rate{5, time.Millisecond}}, "limit.connect_rate"},
	} {
		p := ValidateLimits([]Limit{c.limit})
		if len(p) != 1 || !strings.Contains(p[0], c.want) || !strings.HasPrefix(p[0], "limit 1 (") {
			t.Errorf("%+v: %q, want a line with %q", c.limit, p, c.want)
		}
	}
	twice := []Limit{{By: ByUser, Match: "*"}, {By: ByUser, Match: "*", Alarm: true}, {By: ByUser, Match: "*", MaxClients: 1}}
	if p := ValidateLimits(twice); len(p) != 1 || !strings.Contains(p[0], "limit 3 (user *): limit.by, limit.match and limit.action are those of limit 1 too") {
		t.Errorf("the same twice: %q", p)
	}
	if p := ValidateLimits(make([]Limit, LimitsMost+1)); len(p) == 0 || !strings.Contains(p[0], "allowed are 1000") {
		t.Errorf("too many: %.200q", p)
	}
}

// A limit on clients is told where RabbitMQ tells its own, in its words, and counts nobody who was refused.
func TestMaxClientsOfEach(t *testing.T) {
	for by, text := range map[LimitBy]string{
		ByUser:     "NOT_ALLOWED - connection refused for user 'guest': user connection limit (2) is reached",
		ByVHost:    "NOT_ALLOWED - access to vhost '/' refused for user 'guest': connection limit (2) is reached",
		ByAddress:  "NOT_ALLOWED - connection refused for user 'guest': address connection limit (2) is reached",
		ByListener: "NOT_ALLOWED - connection refused for user 'guest': listener connection limit (2) is reached",
	} {
		t.Run(string(by), func(t *testing.T) {
			fromLoopback(t, func(c *Config) { c.Limits = []Limit{{By: by, Match: "*", MaxClients: 2}} }, func(r *rig) {
				r.b.SetUser("b", "b")
				var all [2]*proxytest.Client
				for i := range all {
					all[i] = r.client(proxytest.ClientConfig{})
				}
				for range 2 {
					_, err := r.login(proxytest.ClientConfig{})
					var e *amqp.Error
					if !errors.As(err, &e) || e.Code != amqp.NotAllowed || e.Text != text || e.Method != amqp.ConnectionOpen {
						t.Fatalf("got %+v, want 530 %q of connection.open", err, text)
					}
				}
				if by == ByUser || by == ByVHost { // another has his own
					c := r.client(proxytest.ClientConfig{User: "b", Password: "b", VHost: "other"})
					r.must(c.Close())
				}
				r.must(all[0].Close())
				synctest.Wait()
				c := r.client(proxytest.ClientConfig{})
				st := r.s.Stats()
				if len(st.Limits) != 1 || st.Limits[0] != (LimitStats{string(by), "max_clients", [3]uint64{limitRefused: 2}}) {
					t.Errorf("the counts are %+v", st.Limits)
				}
				_, keys, total := r.s.ListLimits(1, func(LimitBy, string) bool { return true })
				if len(keys) != 1 || keys[0].Clients != 2 || keys[0].Refused != 2 || total < 1 {
					t.Errorf("the list is %+v of %d", keys, total)
				}
				time.Sleep(tick)
				synctest.Wait()
				if n := strings.Count(r.log(), `msg="limit reached"`); n != 1 || !strings.Contains(r.log(), "limit=max_clients "+string(by)+"=") {
					t.Errorf("the log tells %d times", n)
				}
				r.must(c.Close())
				r.must(all[1].Close())
			})
		})
	}
}

// Who names a vhost that he may not enter uses up none of its limits, however long the broker takes to say so; who
// may, counts.
func TestLimitsOfAVHostAreItsOwn(t *testing.T) {
	withScript(t, 0, func(c *Config) {
		c.Limits = []Limit{{By: ByVHost, Match: "shop", MaxClients: 2, ConnectRate: Rate{3, time.Second}}}
	}, func(r *rig) {
		own := proxytest.ClientConfig{User: "own", Password: "o", VHost: "shop"}
		first, _ := r.pair(own)
		foreign := make(chan error, 4)
		var asked []*proxytest.Peer
		for i := range cap(foreign) {
			go func() {
				_, err := r.login(proxytest.ClientConfig{User: fmt.Sprint("foreign", i), Password: "f", VHost: "shop"})
				foreign <- err
			}()
			p := r.sc.Accept()
			p.Start()
			p.Send(amqp.AppendTune(nil, amqp.ConnectionTune, proxytest.DefaultTune))
			p.Expect(amqp.ConnectionTuneOk)
			p.Expect(amqp.ConnectionOpen)
			asked = append(asked, p)
		}
		came := time.Now()
		second := r.client(own)
		if took := time.Since(came); took > 0 {
			t.Errorf("who belongs there waited %v for those who do not", took)
		}
		_, err := r.login(own)
		r.hears(err, amqp.NotAllowed, "connection limit (2) is reached")
		for _, p := range asked[1:] {
			p.Send(proxytest.CloseBytes(0, amqp.NotAllowed, "NOT_ALLOWED - access to vhost 'shop' refused for user 'f'", 0))
			r.hears(<-foreign, amqp.NotAllowed, "access to vhost 'shop' refused")
		}
		asked[0].SendMethod(0, amqp.ConnectionOpenOk, "") // and this one may
		r.hears(<-foreign, amqp.NotAllowed, "connection limit (2) is reached")
		r.must(second.Close())
		r.must(first.Close())
	})
}

// Nor does he hold a place among its connections to the broker until the broker has let him in: neither with the one on
// which his password was found right, nor with another.
func TestPlacesOfAVHostAreItsOwn(t *testing.T) {
	for _, spare := range []bool{true, false} {
		t.Run(fmt.Sprint("with a spare one: ", spare), func(t *testing.T) {
			withScript(t, 0, func(c *Config) {
				c.Limits = []Limit{{By: ByVHost, Match: "shop", MaxUpstreams: 1}}
				c.IdleTimeout = time.Second
			}, func(r *rig) {
				own := proxytest.ClientConfig{User: "own", Password: "o", VHost: "shop"}
				c, p := r.pair(own)
				r.must(c.Close())
				p.Expect(amqp.ConnectionClose) // it is idle
				p.SendMethod(0, amqp.ConnectionCloseOk)
				p.Close()
				synctest.Wait()
				if !spare { // he is in another vhost, and so has none
					r.pair(proxytest.ClientConfig{User: "foreign", Password: "f", VHost: "his"})
				}
				foreign := make(chan error, 1)
				go func() {
					_, err := r.login(proxytest.ClientConfig{User: "foreign", Password: "f", VHost: "shop"})
					foreign <- err
				}()
				asked := r.sc.Accept()
				asked.Start()
				asked.Send(amqp.AppendTune(nil, amqp.ConnectionTune, proxytest.DefaultTune))
				asked.Expect(amqp.ConnectionTuneOk)
				asked.Expect(amqp.ConnectionOpen)
				came := time.Now()
				c, _ = r.pair(own)
				if took := time.Since(came); took > 0 {
					t.Errorf("who belongs there waited %v for a place", took)
				}
				asked.Send(proxytest.CloseBytes(0, amqp.NotAllowed, "NOT_ALLOWED - access to vhost 'shop' refused for user 'foreign'", 0))
				r.hears(<-foreign, amqp.NotAllowed, "access to vhost 'shop' refused")
				r.must(c.Close())
			})
		})
	}
}

// An alarm refuses nobody.
func TestLimitsAsAlarms(t *testing.T) {
	fromLoopback(t, func(c *Config) {
		c.Limits = []Limit{{By: ByUser, Match: "*", MaxClients: 2, MaxUpstreams: 1, ConnectRate: Rate{1, time.Second}, DataRate: DataRateLeast, Alarm: true}}
		c.Listeners[0].Mode = PoolSession
	}, func(r *rig) {
		began := time.Now()
		var all []*proxytest.Client
		for range 5 {
			c := r.client(proxytest.ClientConfig{})
			_, err := c.DeclareQueue(1, "q", 0)
			r.must(err)
			all = append(all, c)
		}
		for range 20 {
			r.must(all[0].Publish(1, "", "q", make([]byte, 60<<10)))
		}
		for _, c := range all {
			r.must(c.Close())
		}
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("it took %v", took)
		}
		want := []LimitStats{
			{"user", "max_clients", [3]uint64{limitAlarm: 3}}, {"user", "max_upstreams", [3]uint64{limitAlarm: 4}},
			{"user", "connect_rate", [3]uint64{limitAlarm: 4}}, {"user", "data_rate", [3]uint64{limitAlarm: 1}},
		}
		if got := r.s.Stats().Limits; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("the counts are %v, want %v", got, want)
		}
	})
}

// A reload counts those that are there, raises and lowers what is allowed, and cuts nobody.
func TestLimitsChange(t *testing.T) {
	fromLoopback(t, nil, func(r *rig) {
		limit := func(limits ...Limit) {
			cfg := *r.s.cfg()
			cfg.Limits = limits
			_, err := r.s.Reload(cfg)
			r.must(err)
		}
		refused := func() {
			t.Helper()
			_, err := r.login(proxytest.ClientConfig{})
			r.hears(err, amqp.NotAllowed, "is reached")
		}
		a, b := r.client(proxytest.ClientConfig{}), r.client(proxytest.ClientConfig{})
		limit(Limit{By: ByUser, Match: "*", MaxClients: 2})
		refused()
		limit(Limit{By: ByUser, Match: "*", MaxClients: 3})
		c := r.client(proxytest.ClientConfig{})
		refused()
		limit(Limit{By: ByUser, Match: "*", MaxClients: 1}, Limit{By: ByAddress, Match: "*", MaxClients: 3})
		refused()
		r.must(b.Close())
		synctest.Wait()
		refused()
		limit(Limit{By: ByAddress, Match: "127.0.0.0/8", MaxClients: 3})
		b = r.client(proxytest.ClientConfig{})
		refused()
		limit()
		for range 3 {
			d := r.client(proxytest.ClientConfig{})
			r.must(d.Close())
		}
		limit(Limit{By: ByUser, Match: "guest", MaxClients: 3})
		refused()
		limit(Limit{By: ByUser, Match: "guest", MaxClients: 3}, Limit{By: ByUser, Match: "*", MaxClients: 1})
		refused()
		for _, c := range []*proxytest.Client{a, b, c} {
			_, err := c.DeclareQueue(1, "q", 0) // nobody was cut
			r.must(err)
			r.must(c.Close())
		}
	})
}

// A reload amid a login counts it all the same.
func TestLimitsChangeAmidLogin(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		p, done := r.loginUntilOpen(proxytest.ClientConfig{})
		cfg := *r.s.cfg()
		cfg.Limits = []Limit{{By: ByUser, Match: "*", MaxClients: 1}}
		_, err := r.s.Reload(cfg)
		r.must(err)
		p.Send(amqp.AppendMethod(nil, 0, amqp.ConnectionOpenOk, 0))
		c := <-done
		_, err = r.login(proxytest.ClientConfig{})
		r.hears(err, amqp.NotAllowed, "user connection limit (1) is reached")
		_ = c.Hangup()
	})
}

// At max_upstreams of a user channels share what there is, and who needs one of his own waits for it.
func TestMaxUpstreamsOfEach(t *testing.T) {
	for _, by := range []LimitBy{ByUser, ByVHost} {
		fromLoopback(t, func(c *Config) {
			c.Limits = []Limit{{By: by, Match: "*", MaxUpstreams: 1}}
			c.WaitTimeout = 2 * time.Second
		}, func(r *rig) {
			c := r.client(proxytest.ClientConfig{})
			_, err := c.DeclareQueue(1, "q", 0)
			r.must(err)
			r.must(c.Confirm(1))
			r.must(c.Publish(1, "", "q", []byte("first")))
			r.must(c.WaitConfirms(1))
			began := time.Now()
			r.must(c.OpenChannel(2))
			_, err = c.Get(2, "q", true) // a reader, beside the publisher
			r.must(err)
			if took := time.Since(began); took > time.Second {
				t.Errorf("by %s: the reader was served only after %v", by, took)
			}
			if n := r.b.Counts().Opened; n != 1 {
				t.Errorf("by %s: the broker sees %d connections, want 1", by, n)
			}
			d := r.client(proxytest.ClientConfig{})
			_, err = d.Consume(1, "q", "t", false) // without a prefetch: it needs a session
			r.hears(err, amqp.ConnectionForced, fmt.Sprintf("limit.max_upstreams of %s '%s' = 1 are in use", by, map[LimitBy]string{ByUser: "guest", ByVHost: "/"}[by]))
			got := r.s.Stats().Limits
			if len(got) != 1 || got[0].Limit != "max_upstreams" || got[0].Done[limitRefused] != 1 || got[0].Done[limitDelayed] == 0 {
				t.Errorf("by %s: the counts are %+v", by, got)
			}
			_ = d.Hangup()
			r.must(c.Close())
		})
	}
}

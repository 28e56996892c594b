package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
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
		if got := glob(c.pattern, c.text); got != c.want {
			t.Errorf("glob(%q, %q) = %v", c.pattern, c.text, got)
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

// Logins above the rate wait, first come first served; the rate holds within 5 %, and nobody is refused who waits less than
// wait_timeout. Others' handshakes have their places meanwhile.
func TestConnectRate(t *testing.T) {
	fromLoopback(t, func(c *Config) {
		c.Limits = []Limit{{By: ByUser, Match: "guest", ConnectRate: Rate{200, time.Second}}}
		c.MaxHandshakes = 400 // half of them for one address
	}, func(r *rig) {
		r.b.SetUser("other", "o")
		r.must(r.client(proxytest.ClientConfig{}).Close()) // it is known
		time.Sleep(time.Second)
		const n = 1000
		began := time.Now()
		took := make(chan time.Duration, n)
		for i := range n { // twice the rate
			go func() {
				time.Sleep(time.Duration(i) * 2500 * time.Microsecond)
				c, err := r.login(proxytest.ClientConfig{})
				if err != nil {
					t.Error(err)
					took <- 0
					return
				}
				took <- time.Since(began)
				_ = c.Close()
			}()
		}
		time.Sleep(2 * time.Second) // 400 wait
		if st := r.s.Stats(); st.Waiting < 350 || st.LongestWait < 900*time.Millisecond {
			t.Errorf("%d wait, the longest %v; want about 400, for a second or two", st.Waiting, st.LongestWait)
		}
		other := time.Now()
		r.must(r.client(proxytest.ClientConfig{User: "other", Password: "o"}).Close())
		if d := time.Since(other); d > 50*time.Millisecond {
			t.Errorf("another user waited %v", d)
		}
		last := time.Duration(0)
		for range n {
			last = max(last, <-took)
		}
		if rate := n / last.Seconds(); rate < 190 || rate > 210 {
			t.Errorf("%d logins in %v: %.1f/s, want 200 and no more than 5 %% off", n, last, rate)
		}
		st := r.s.Stats().Limits[0]
		if st.Done[limitRefused] != 0 || st.Done[limitDelayed] < 900 {
			t.Errorf("the counts are %+v", st)
		}
	})
}

// Who has waited for wait_timeout is refused with 530; who hangs up leaves the line at once, and his turn is the next one's.
func TestConnectRateRefuses(t *testing.T) {
	fromLoopback(t, func(c *Config) {
		c.Limits = []Limit{{By: ByVHost, Match: "*", ConnectRate: Rate{6, time.Minute}}}
		c.WaitTimeout, c.HandshakeTimeout = 15*time.Second, 2*time.Second
	}, func(r *rig) {
		r.must(r.client(proxytest.ClientConfig{}).Close())
		left := r.connect(proxytest.ClientConfig{})
		go func() { _ = left.Handshake() }()
		time.Sleep(time.Second)
		synctest.Wait()
		type end struct {
			who  int
			took time.Duration
			err  error
		}
		ends := make(chan end, 2)
		for i := range 2 {
			go func() {
				began := time.Now()
				c, err := r.login(proxytest.ClientConfig{})
				ends <- end{i, time.Since(began), err}
				if err == nil {
					_ = c.Close()
				}
			}()
			synctest.Wait()
		}
		if n, _ := r.s.quotas.loginsWaiting(); n != 3 {
			t.Errorf("%d wait, want 3", n)
		}
		time.Sleep(time.Second)
		_ = left.Hangup()
		synctest.Wait()
		if n, _ := r.s.quotas.loginsWaiting(); n != 2 {
			t.Errorf("%d wait when one has hung up, want 2", n)
		}
		first, second := <-ends, <-ends
		if first.who != 0 || first.err != nil || first.took < 8*time.Second || first.took > 9100*time.Millisecond {
			t.Errorf("the first: %+v, want to be let in when 10 s are over", first)
		}
		r.hears(second.err, amqp.NotAllowed, "NOT_ALLOWED - access to vhost '/' refused for user 'guest': connection rate limit (6/m) is reached")
		if second.took < 15*time.Second || second.took > 15100*time.Millisecond {
			t.Errorf("the second was refused after %v, want 15 s", second.took)
		}
	})
}

// So many wait, and no more; new limits let in who waits for the old ones; the end of the proxy ends a wait.
func TestConnectRateWaiters(t *testing.T) {
	fromLoopback(t, func(c *Config) {
		c.Limits = []Limit{{By: ByUser, Match: "*", ConnectRate: Rate{1, time.Hour}}}
		c.WaitTimeout = time.Hour
	}, func(r *rig) {
		r.must(r.client(proxytest.ClientConfig{}).Close())
		q := &r.s.quotas
		q.mu.Lock()
		q.waiting += loginsWaitMost
		q.mu.Unlock()
		_, err := r.login(proxytest.ClientConfig{})
		r.hears(err, amqp.NotAllowed, "user connection rate limit (1/h) is reached")
		q.mu.Lock()
		q.waiting -= loginsWaitMost
		q.mu.Unlock()
		came := make(chan *proxytest.Client, 2)
		begin := func() {
			go func() {
				c := r.connect(proxytest.ClientConfig{Timeout: time.Hour})
				if c.Handshake() != nil {
					c = nil
				}
				came <- c
			}()
			time.Sleep(20 * time.Minute)
			synctest.Wait()
		}
		begin()
		cfg := *r.s.cfg()
		cfg.Limits = nil
		_, err = r.s.Reload(cfg)
		r.must(err)
		synctest.Wait()
		select {
		case c := <-came:
			r.must(c.Close())
		default:
			t.Fatal("the login waits for a limit that is gone")
		}
		cfg.Limits = []Limit{{By: ByUser, Match: "*", ConnectRate: Rate{1, time.Hour}}}
		_, err = r.s.Reload(cfg)
		r.must(err)
		time.Sleep(time.Hour) // for the turn of the first
		r.must(r.client(proxytest.ClientConfig{}).Close())
		begin()
		r.must(r.s.Shutdown(context.Background()))
		if c := <-came; c != nil {
			t.Error("a login was let in at the end")
		}
	})
}

// All clients of a user send no faster than the rate together; a heartbeat of theirs is not missed for it, and their close is heard.
func TestDataRate(t *testing.T) {
	fromLoopback(t, func(c *Config) {
		c.Limits = []Limit{{By: ByUser, Match: "*", DataRate: 1 << 20}}
	}, func(r *rig) {
		began := time.Now()
		const each = 100
		ends := make(chan error, 2)
		for range 2 {
			go func() {
				c, err := r.login(proxytest.ClientConfig{})
				if err == nil {
					err = c.OpenChannel(1)
				}
				for i := 0; err == nil && i < each; i++ {
					err = c.Publish(1, "", "q", make([]byte, 100<<10))
				}
				if err == nil {
					err = c.Close()
				}
				ends <- err
			}()
		}
		for range 2 {
			r.must(<-ends)
		}
		rate := 2 * each * (100 << 10) / time.Since(began).Seconds() / (1 << 20)
		if rate < 0.95 || rate > 1.05 {
			t.Errorf("%.2f MiB/s, want 1 and no more than 5 %% off", rate)
		}
		if st := r.s.Stats().Limits[0]; st.Limit != "data_rate" || st.Done[limitDelayed] == 0 || st.Done[limitRefused] != 0 {
			t.Errorf("the counts are %+v", st)
		}
	})
}

// A rate that is taken away counts no more at once, one that is new at once.
func TestDataRateChanges(t *testing.T) {
	fromLoopback(t, nil, func(r *rig) {
		c := r.client(proxytest.ClientConfig{Timeout: 10 * time.Minute})
		_, err := c.DeclareQueue(1, "q", 0)
		r.must(err)
		r.must(c.Confirm(1))
		send := func() time.Duration {
			began := time.Now()
			for range 30 {
				r.must(c.Publish(1, "", "q", make([]byte, 100<<10)))
				r.must(c.WaitConfirms(1))
			}
			return time.Since(began)
		}
		if took := send(); took > 100*time.Millisecond {
			t.Errorf("without a rate it took %v", took)
		}
		cfg := *r.s.cfg()
		cfg.Limits = []Limit{{By: ByAddress, Match: "*", DataRate: 1 << 20}}
		_, err = r.s.Reload(cfg)
		r.must(err)
		if took := send(); took < 2*time.Second {
			t.Errorf("at 1 MiB/s 3 MB took %v", took)
		}
		cfg.Limits[0] = Limit{By: ByAddress, Match: "*", DataRate: 1 << 30}
		cfg.Limits = append([]Limit(nil), cfg.Limits...)
		_, err = r.s.Reload(cfg)
		r.must(err)
		if took := send(); took > 2*time.Second {
			t.Errorf("at 1 GiB/s it took %v", took)
		}
		r.must(c.Close())
	})
}

// Whoever comes and goes leaves a trace that is bounded: a million addresses (with FULL=1) take no more than the first 100,000.
func TestManyAddresses(t *testing.T) {
	s, err := New(configured(func(c *Config) {
		c.Limits = []Limit{{By: ByAddress, Match: "*", MaxClients: 5, ConnectRate: Rate{1, time.Minute}}}
	}))
	if err != nil {
		t.Fatal(err)
	}
	q := &s.quotas
	rules := q.rules.Load()
	heap := func() uint64 {
		runtime.GC()
		runtime.GC() // what is pooled goes at the second
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	come := func(from, to int) {
		for i := from; i < to; i++ {
			name := netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(i >> 16), byte(i >> 8), byte(i)}), 64).String()
			q.mu.Lock()
			k := q.keyLocked(rules, byAddress, name)
			q.useLocked(k)
			k.clients++
			_, _ = q.turnLocked(k)
			k.clients--
			q.leaveLocked(k)
			q.mu.Unlock()
		}
	}
	many := 250_000
	if os.Getenv("FULL") != "" {
		many = 1_000_000
	}
	before := heap()
	come(0, quotaKeysMost)
	full := heap() - before
	come(quotaKeysMost, many)
	all := heap() - before
	t.Logf("100,000 addresses take %d bytes, %d %d: %d for each that is remembered", full, many, all, full/quotaKeysMost)
	if n := len(q.of[byAddress]); n != quotaKeysMost {
		t.Errorf("%d are remembered, want %d", n, quotaKeysMost)
	}
	if all > full+full/2 {
		t.Errorf("100,000 addresses take %d bytes, %d %d", full, many, all)
	}
	if len(q.say) == 0 {
		t.Error("nobody is told that some are forgotten")
	}
	runtime.KeepAlive(s)
}

// Whoever looks at a full table holds up logins for a moment only.
func BenchmarkListLimits(b *testing.B) {
	s, err := New(configured(func(c *Config) { c.Limits = []Limit{{By: ByAddress, Match: "*", MaxClients: 5}} }))
	if err != nil {
		b.Fatal(err)
	}
	q := &s.quotas
	for i := range quotaKeysMost {
		q.mu.Lock()
		q.keyLocked(q.rules.Load(), byAddress, netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String())
		q.mu.Unlock()
	}
	for b.Loop() {
		if _, keys, _ := s.ListLimits(100, func(LimitBy, string) bool { return true }); len(keys) != 100 {
			b.Fatal(len(keys))
		}
	}
}

// configured is the default configuration, changed.
func configured(change func(*Config)) Config {
	c := DefaultConfig()
	change(&c)
	return c
}

// Who is at no limit any more is forgotten in time.
func TestQuotasAreForgotten(t *testing.T) {
	fromLoopback(t, func(c *Config) { c.Limits = []Limit{{By: ByUser, Match: "*", MaxClients: 5}} }, func(r *rig) {
		stays, goes := r.client(proxytest.ClientConfig{}), r.client(proxytest.ClientConfig{})
		r.must(goes.Close())
		count := func() int {
			r.s.quotas.mu.Lock()
			defer r.s.quotas.mu.Unlock()
			return len(r.s.quotas.of[byUser])
		}
		time.Sleep(2 * quotaKeepsFor)
		if n := count(); n != 1 {
			t.Errorf("%d are remembered while a client is there, want 1", n)
		}
		r.must(stays.Close())
		time.Sleep(quotaKeepsFor / 2)
		if n := count(); n != 1 {
			t.Errorf("%d are remembered soon after, want 1", n)
		}
		time.Sleep(quotaKeepsFor)
		if n := count(); n != 0 {
			t.Errorf("%d are remembered long after, want none", n)
		}
	})
}

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

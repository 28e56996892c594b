package proxy

import (
	"strings"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// An identity that cannot be verified anew for want of a place is served on for ten minutes beyond
// auth_ttl, which is counted, and told once; then its logins wait for the verdict.
func TestRecheckWithoutAPlace(t *testing.T) {
	for _, mode := range []PoolMode{PoolAuto, PoolShared} {
		withBroker(t, proxytest.BrokerConfig{}, func(c *Config) {
			c.MaxUpstreams, c.MaxLifetime, c.Listeners[0].Mode = 1, 0, mode
		}, func(r *rig) {
			held := r.client(proxytest.ClientConfig{})
			_, err := held.DeclareQueue(1, "q", 0)
			r.must(err)
			in := readRaw(held.Conn())
			r.b.SetUser("guest", "new")
			began := time.Now()
			failed, until := 0, time.Duration(0)
			for ; time.Since(began) < 15*time.Minute; time.Sleep(20 * time.Second) {
				r.must(held.Send(amqp.Heartbeat))
				c, err := r.login(proxytest.ClientConfig{})
				if err == nil {
					_ = c.Close()
					continue
				}
				r.hears(err, amqp.ConnectionForced, "max_upstreams = 1")
				if failed++; failed == 1 {
					until = time.Since(began)
				}
			}
			if bound := DefaultConfig().AuthTTL + recheckFor; until < bound || until > bound+time.Minute {
				t.Errorf("a revoked secret was served for %v, want %v", until, bound)
			}
			if n := r.s.Stats().RechecksFailed; n < 10 {
				t.Errorf("%d rechecks are counted as failed", n)
			}
			if n := strings.Count(r.log(), "could not be verified anew"); n != 1 {
				t.Errorf("the log tells of it %d times, want once", n)
			}
			if p := r.s.Stats().Pools[0]; p.Verdict != "away" || !strings.Contains(p.Reason, "max_upstreams = 1") || time.Since(p.Heard) > recheckFor {
				t.Errorf("the pool tells of the verdict %q, %q, heard %v ago", p.Verdict, p.Reason, time.Since(p.Heard))
			}
			if in.count(isMethod(amqp.ConnectionClose)) != 0 {
				t.Error("who was connected has been closed")
			}
			_ = held.Hangup() // its connection is what the place can be had from
			time.Sleep(time.Second)
			_, err = r.login(proxytest.ClientConfig{})
			r.hears(err, amqp.AccessRefused)
			c, err := r.login(proxytest.ClientConfig{Password: "new"})
			r.must(err)
			_ = c.Close()
		})
	}
}

// A limit of the broker's is told after user and secret were found right: they count as verified.
func TestRecheckAtALimit(t *testing.T) {
	withScript(t, 0, func(c *Config) { c.MaxLifetime, c.Heartbeat = 0, 0 }, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		r.must(c.SendMethod(1, amqp.QueueDeclare, 0, "q", 0, nil))
		p.OpenChannel()
		p.Expect(amqp.QueueDeclare)
		p.SendMethod(1, amqp.QueueDeclareOk, "q", 0, 0)
		time.Sleep(31 * time.Second)
		d, err := r.login(proxytest.ClientConfig{})
		r.must(err)
		q := r.sc.Accept()
		q.Start()
		q.Send(amqp.AppendTune(nil, amqp.ConnectionTune, proxytest.DefaultTune))
		q.Expect(amqp.ConnectionTuneOk)
		q.Expect(amqp.ConnectionOpen)
		q.Send(proxytest.CloseBytes(0, amqp.NotAllowed, "NOT_ALLOWED - connection refused for user 'guest': user connection limit (1) is reached", amqp.ConnectionOpen))
		time.Sleep(time.Second)
		if n := r.s.Stats().RechecksFailed; n != 0 {
			t.Errorf("%d rechecks are counted as failed", n)
		}
		e, err := r.login(proxytest.ClientConfig{})
		r.must(err)
		q.Close()
		time.Sleep(time.Second)
		if n := r.sc.Accepted(); n != 2 {
			t.Errorf("%d connections to the broker: it was asked again within auth_ttl", n)
		}
		for _, x := range []*proxytest.Client{c, d, e} {
			_ = x.Hangup()
		}
	})
}

// At a limit the broker has not looked at the vhost's permissions. Who has lost his is served by what stands until there is
// room to ask, and else for max_lifetime: then there is nothing that he could be served by.
func TestPermissionAtALimit(t *testing.T) {
	for _, room := range []bool{false, true} {
		withBroker(t, proxytest.BrokerConfig{Users: map[string]string{"a": "a", "b": "b"}}, nil, func(r *rig) {
			var held [2]*proxytest.Client
			for i, user := range []string{"a", "b"} {
				held[i] = r.client(proxytest.ClientConfig{User: user, Password: user})
				_, err := held[i].DeclareQueue(1, "q", 0)
				r.must(err)
			}
			in := readRaw(held[0].Conn())
			readRaw(held[1].Conn())
			r.b.SetLimit(2)
			r.b.SetAccess("a")
			began, roomFrom := time.Now(), time.Duration(0)
			says, until := "connection limit (2) is reached", time.Hour
			var err error
			for ; err == nil && time.Since(began) < 2*time.Hour; time.Sleep(20 * time.Second) {
				for _, h := range held {
					if h != nil {
						r.must(h.Send(amqp.Heartbeat))
					}
				}
				var c *proxytest.Client
				if c, err = r.login(proxytest.ClientConfig{User: "a", Password: "a"}); err == nil {
					_ = c.Close()
				}
				if room && roomFrom == 0 && time.Since(began) > 30*time.Minute {
					_ = held[1].Hangup()
					held[1], roomFrom = nil, time.Since(began)
					says, until = "access to vhost '/' refused for user 'a'", roomFrom+time.Minute
				}
			}
			r.hears(err, amqp.NotAllowed, says)
			if took := time.Since(began); took > until+time.Minute || took < until-6*time.Minute {
				t.Errorf("room %v: served for %v, want %v", room, took, until)
			}
			if in.count(isMethod(amqp.ConnectionClose)) != 0 {
				t.Error("who was connected has been closed")
			}
			for _, h := range held {
				if h != nil {
					_ = h.Hangup()
				}
			}
		})
	}
}

package proxy

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

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

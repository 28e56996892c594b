package proxy

import (
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

func held(hold time.Duration) func(*Config) { return func(c *Config) { c.Hold = hold } }

// With hold a broker that is away for ten seconds is a pause: for those who come, for those who
// are amid their login, and for channels of which nothing is at the broker yet. It is longer than
// handshake_timeout lets a client take for itself.
func TestHoldIsAPause(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, held(time.Minute), func(r *rig) {
		idle := r.client(proxytest.ClientConfig{})
		r.to.Refuse(syscall.ECONNREFUSED)
		r.b.Cut()
		synctest.Wait()
		began := time.Now()
		logins, frames := make(chan error, 3), make(chan error, 1)
		for range 3 {
			go func() {
				c, err := r.login(proxytest.ClientConfig{})
				if err == nil {
					err = c.OpenChannel(1)
				}
				if err == nil {
					_, err = c.DeclareQueue(1, "q", 0)
				}
				if err == nil {
					err = c.Close()
				}
				logins <- err
			}()
		}
		go func() {
			_, err := idle.DeclareQueue(1, "p", 0)
			frames <- err
		}()
		time.Sleep(20 * time.Second)
		waits := 0
		for _, c := range r.s.ListClients() {
			if c.Waiting > 15*time.Second {
				waits++
			}
		}
		if waits != 4 {
			t.Errorf("%d of 4 are told to wait", waits)
		}
		if err := r.s.Ready(bg); err == nil {
			t.Error("ready without a broker")
		}
		r.to.Refuse(nil)
		for range 3 {
			r.must(<-logins)
		}
		r.must(<-frames)
		if took := time.Since(began); took < 20*time.Second || took > 22*time.Second {
			t.Errorf("took %v", took)
		}
		if n := r.s.Stats().LoginsFailed; n != 0 {
			t.Errorf("%d logins count as failed", n)
		}
		r.must(idle.Close())
	})
}

// It is no longer than hold, and who takes long by itself is ended as ever.
func TestHoldHasAnEnd(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, held(5*time.Second), func(r *rig) {
		r.to.Refuse(syscall.ECONNREFUSED)
		began := time.Now()
		_, err := r.login(proxytest.ClientConfig{})
		r.notGreeted(err)
		if took := time.Since(began); took < 5*time.Second || took > 7*time.Second {
			t.Errorf("refused after %v", took)
		}
		r.to.Refuse(nil)
		time.Sleep(2 * time.Second)
		slow := r.connect(proxytest.ClientConfig{})
		began = time.Now()
		if _, err := slow.Next(); err == nil {
			t.Error("a client that says nothing is greeted")
		}
		if took := time.Since(began); took > 11*time.Second {
			t.Errorf("a client that says nothing is ended after %v", took)
		}
		_ = slow.Hangup()
	})
}

// A client that hangs up while it waits leaves at once.
func TestHangsUpWhileHeld(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, held(time.Minute), func(r *rig) {
		r.to.Refuse(syscall.ECONNREFUSED)
		c := r.connect(proxytest.ClientConfig{})
		go func() { _ = c.Handshake() }()
		time.Sleep(10 * time.Second)
		c.Abort()
		synctest.Wait()
		if n := r.s.Stats().Clients; n != 0 {
			t.Errorf("%d clients are left", n)
		}
	})
}

// With pool.spread a connection more than channels need is not waited for: a channel shares one that is there.
func TestSpreadDoesNotHold(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, func(c *Config) { c.Hold, c.Spread = time.Minute, 4 }, func(r *rig) {
		a := r.client(proxytest.ClientConfig{})
		r.must(a.Publish(1, "", "nowhere", []byte("x")))
		r.to.Refuse(syscall.ECONNREFUSED)
		began := time.Now()
		r.must(a.OpenChannel(2))
		_, err := a.DeclareQueue(2, "q", 0)
		r.must(err)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it waited for %v", took)
		}
		r.to.Refuse(nil)
		r.must(a.Close())
	})
}

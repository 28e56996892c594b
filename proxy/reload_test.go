package proxy

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// A connection to the old broker that was still being opened when the reload came is used
// up like those that stood.
func TestReloadAmidALogin(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		p, done := r.loginUntilOpen(proxytest.ClientConfig{})
		cfg := *r.s.cfg()
		cfg.Upstream.Port = 5999
		if _, err := r.s.Reload(cfg); err != nil {
			t.Fatal(err)
		}
		p.SendMethod(0, amqp.ConnectionOpenOk, "")
		c := <-done
		r.must(c.OpenChannel(1))
		r.must(c.Publish(1, "", "q", nil))
		r.sc.AcceptOpen().OpenChannel() // and not on the old broker's
		p.Expect(amqp.ConnectionClose)
		_ = c.Hangup()
	})
}

// Nor is a user trusted whom only the old broker has accepted.
func TestReloadAmidAVerdict(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		c := r.connect(proxytest.ClientConfig{})
		done := make(chan error, 1)
		go func() { done <- c.Start() }()
		p := r.sc.Accept()
		p.Start()
		cfg := *r.s.cfg()
		cfg.Upstream.Port = 5999
		if _, err := r.s.Reload(cfg); err != nil {
			t.Fatal(err)
		}
		p.Send(amqp.AppendTune(nil, amqp.ConnectionTune, proxytest.DefaultTune))
		q := r.sc.Accept()
		q.Start()
		q.Send(proxytest.CloseBytes(0, amqp.AccessRefused, "ACCESS_REFUSED - no", 0))
		r.hears(<-done, amqp.AccessRefused, "ACCESS_REFUSED")
		_ = c.Hangup()
	})
}

// That the old broker could not be reached says nothing of the new one.
func TestReloadAwayFromADeadBroker(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		old := r.connect(proxytest.ClientConfig{})
		done := make(chan error, 1)
		go func() { done <- old.Start() }()
		p := r.sc.Accept()
		cfg := *r.s.cfg()
		cfg.Upstream.Port = 5999
		if _, err := r.s.Reload(cfg); err != nil {
			t.Fatal(err)
		}
		p.Close()
		r.notGreeted(<-done)
		c := r.connect(proxytest.ClientConfig{})
		go func() { done <- c.Start() }()
		q := r.sc.Accept()
		q.Start()
		q.Send(amqp.AppendTune(nil, amqp.ConnectionTune, proxytest.DefaultTune))
		r.must(<-done)
		_ = c.Hangup()
		_ = old.Hangup()
	})
}

// Who waits for a place under max_clients is served when a reload makes one.
func TestReloadMakesRoomForClients(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, func(c *Config) { c.MaxClients = 1 }, func(r *rig) {
		a := r.client(proxytest.ClientConfig{})
		done := make(chan error, 1)
		go func() {
			b, err := r.login(proxytest.ClientConfig{})
			if err == nil {
				err = b.Close()
			}
			done <- err
		}()
		time.Sleep(time.Second)
		cfg := *r.s.cfg()
		cfg.MaxClients = 2
		began := time.Now()
		if _, err := r.s.Reload(cfg); err != nil {
			t.Fatal(err)
		}
		r.must(<-done)
		if took := time.Since(began); took > time.Second {
			t.Errorf("it was served after %v", took)
		}
		r.must(a.Close())
	})
}

// Two listeners that fail at once end the server.
func TestListenersFailTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(DefaultConfig())
		if err != nil {
			t.Fatal(err)
		}
		first := errors.New("first")
		s.spawn(func() {
			s.end(first)
			s.end(errors.New("second"))
		})
		<-s.Done()
		if s.Err() != first {
			t.Errorf("got %v", s.Err())
		}
	})
}

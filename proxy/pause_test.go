package proxy

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// While all is paused logins and first frames wait, however long it takes, and nobody is cut; what is bound
// goes on, and connections that carry nothing are closed.
func TestPause(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		at := r.client(proxytest.ClientConfig{})
		_, err := at.DeclareQueue(1, "q", 0)
		r.must(err)
		unbound := r.client(proxytest.ClientConfig{})
		if n := r.s.Pause("", true, 0); n != 1 {
			t.Errorf("%d upstreams end with their last channel, want 1", n)
		}
		type result struct {
			c   *proxytest.Client
			err error
		}
		came := make(chan result, 1)
		go func() {
			c := r.connect(proxytest.ClientConfig{Timeout: time.Hour})
			came <- result{c, c.Handshake()}
		}()
		declared := make(chan error, 1)
		r.must(unbound.Send(proxytest.Method(1, amqp.QueueDeclare, 0, "q2", 0, "")))
		go func() {
			_, err := unbound.NextWithin(time.Hour)
			declared <- err
		}()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		select {
		case x := <-came:
			t.Fatal("the login did not wait: ", x.err)
		case err := <-declared:
			t.Fatal("the first frame did not wait: ", err)
		default:
		}
		if n := r.s.pauses.waiting.Load(); n != 2 {
			t.Errorf("%d wait, want 2", n)
		}
		waits := 0
		for _, c := range r.s.ListClients() {
			if c.State == ClientWaiting || c.State == ClientConnecting && c.Waiting > 0 {
				waits++
			}
		}
		if waits != 2 {
			t.Errorf("of %+v %d wait, want 2", r.s.ListClients(), waits)
		}
		_, err = at.DeclareQueue(1, "q3", 0) // its channel is at the broker
		r.must(err)
		if !r.s.Resume("", true) || r.s.Resume("", true) {
			t.Error("it was resumed not once")
		}
		x := <-came
		r.must(x.err)
		r.must(<-declared)
		r.must(x.c.OpenChannel(1))
		_, err = x.c.DeclareQueue(1, "q4", 0)
		r.must(err)
		if n := r.s.pauses.waiting.Load(); n != 0 {
			t.Errorf("%d wait, want none", n)
		}
		for _, c := range []*proxytest.Client{at, unbound, x.c} {
			r.must(c.Close())
		}
	})
}

// A pause of a vhost is for its clients alone, and ends by itself where it is told so; who hangs up
// meanwhile is let go.
func TestPauseOfVHost(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{VHosts: []string{"/", "shop"}}, nil, func(r *rig) {
		r.s.Pause("shop", false, time.Minute)
		other := r.client(proxytest.ClientConfig{})
		_, err := other.DeclareQueue(1, "q", 0)
		r.must(err)
		left := r.connect(proxytest.ClientConfig{VHost: "shop"})
		go func() { _ = left.Handshake() }()
		time.Sleep(time.Second)
		synctest.Wait()
		if n := r.s.pauses.waiting.Load(); n != 1 {
			t.Errorf("%d wait, want 1", n)
		}
		_ = left.Hangup()
		synctest.Wait()
		if n := r.s.pauses.waiting.Load(); n != 0 {
			t.Errorf("%d wait when it has hung up, want none", n)
		}
		if all := r.s.Pauses(); len(all) != 1 || all[0].VHost != "shop" || all[0].Until.Sub(all[0].Since) != time.Minute {
			t.Errorf("the pauses are %+v", all)
		}
		began := time.Now()
		c := r.client(proxytest.ClientConfig{VHost: "shop"})
		if took := time.Since(began); took < 58*time.Second || len(r.s.Pauses()) != 0 {
			t.Errorf("the login took %v, want a minute; the pauses are %+v", took, r.s.Pauses())
		}
		r.must(c.Close())
		r.must(other.Close())
	})
}

// The end of the proxy ends a pause.
func TestShutdownAmidPause(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		c := r.client(proxytest.ClientConfig{})
		r.s.Pause("", true, time.Hour)
		r.must(c.Send(proxytest.Method(1, amqp.QueueDeclare, 0, "q", 0, "")))
		go func() { _, _ = r.login(proxytest.ClientConfig{}) }()
		synctest.Wait()
		done := make(chan error, 1)
		go func() { done <- r.s.Shutdown(context.Background()) }()
		r.must(<-done)
	})
}

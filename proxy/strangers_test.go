package proxy

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// Strangers who hang up leave no dial behind, however many come, and somebody the broker has
// accepted before does not wait behind them.
func TestStrangersWhoHangUp(t *testing.T) {
	withScript(t, 0, func(c *Config) { c.IdleTimeout, c.AuthTTL = time.Second, time.Second }, func(r *rig) {
		known, p := r.pair(proxytest.ClientConfig{User: "known", Password: "good"})
		r.must(known.Close())
		time.Sleep(5 * time.Second) // its upstream and account are gone
		_ = p
		var all []*proxytest.Client
		for i := range 3 * broker.StrangersAtATime {
			c := r.connect(proxytest.ClientConfig{User: fmt.Sprint("u", i), Password: "wrong"})
			go func() { _ = c.Start() }()
			all = append(all, c)
		}
		synctest.Wait()
		if n := r.sc.Accepted(); n > 1+broker.StrangersAtATime {
			t.Errorf("%d dials at a time for strangers, want at most %d", n-1, broker.StrangersAtATime)
		}
		done := make(chan error, 1)
		before := r.sc.Accepted()
		go func() {
			_, err := r.login(proxytest.ClientConfig{User: "known", Password: "good"})
			done <- err
		}()
		synctest.Wait()
		if n := r.sc.Accepted(); n != before+1 {
			t.Errorf("%d dials for the user that is known, want one at once", n-before)
		}
		for _, c := range all {
			c.Abort()
		}
		synctest.Wait()
		r.s.logins.mu.Lock()
		left := len(r.s.logins.accounts)
		r.s.logins.mu.Unlock()
		if left != 1 {
			t.Errorf("%d logins are under way when the strangers have gone, want the known user's", left)
		}
		for range before {
			r.sc.Accept() // the first, and the strangers'
		}
		_ = done
	})
}

// Who fails again and again is asked one at a time with a pause; others from there are not.
func TestFailuresCostTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStrangers()
		ctx := context.Background()
		enter := func(host, user string, within time.Duration) (*turn, error) {
			c, cancel := context.WithTimeout(ctx, within)
			defer cancel()
			return s.enter(c, nil, host, user)
		}
		for range failuresFree {
			tn, err := enter("a", "u", 0)
			if err != nil {
				t.Fatal(err)
			}
			tn.leave(true)
		}
		tn, err := enter("a", "u", time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := enter("a", "u", 400*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a second one at a time: %v", err)
		}
		began := time.Now()
		tn.leave(true)
		tn, err = enter("a", "u", time.Second)
		if took := time.Since(began); err != nil || took != failurePause {
			t.Errorf("the next came after %v (%v), want the pause of %v", took, err, failurePause)
		}
		tn.leave(false)
		for _, src := range [][2]string{{"a", "other"}, {"b", "u"}} {
			tn, err := enter(src[0], src[1], 0)
			if err != nil {
				t.Errorf("%v pays for another: %v", src, err)
				continue
			}
			tn.leave(false)
		}
		time.Sleep(failuresFor + time.Second)
		for range 3 { // at once
			tn, err := enter("a", "u", 0)
			if err != nil {
				t.Fatalf("a minute later: %v", err)
			}
			defer tn.leave(false)
		}
		for i := range 3 * sourcesMost {
			tn := &turn{s: s, where: [2]source{{host: "c", user: fmt.Sprint(i)}, {host: "c", any: true}}}
			tn.leave(true)
		}
		if n := len(s.sources); n > sourcesMost+1 {
			t.Errorf("%d sources are remembered", n)
		}
		if f := s.sources[source{host: "c", any: true}]; f == nil || f.n < hostFailuresFree {
			t.Error("the host that tries many users is forgotten")
		}
	})
}

// The broker is not asked again about what it has just refused, and is soon after.
func TestRefusedIsRemembered(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		r.b.SetUser("u", "right")
		for range 5 {
			_, err := r.login(proxytest.ClientConfig{User: "u", Password: "wrong"})
			r.hears(err, amqp.AccessRefused, "Login was refused using authentication mechanism PLAIN")
		}
		if n := r.b.Counts().Refused; n != 1 {
			t.Errorf("the broker was asked %d times, want once", n)
		}
		c, err := r.login(proxytest.ClientConfig{User: "u", Password: "right"})
		r.must(err)
		_ = c.Close()
		r.b.SetUser("u", "wrong")
		time.Sleep(refusedFor + tick)
		c, err = r.login(proxytest.ClientConfig{User: "u", Password: "wrong"})
		r.must(err)
		_ = c.Close()
	})
}

// A wrong password takes nobody's connection away.
func TestStrangersEvictNobody(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, func(c *Config) { c.MaxUpstreams = 1 }, func(r *rig) {
		r.must(r.client(proxytest.ClientConfig{}).Close())
		synctest.Wait()
		for i := range 3 {
			_, err := r.login(proxytest.ClientConfig{User: "guest", Password: fmt.Sprint("wrong", i)})
			r.hears(err, amqp.AccessRefused)
		}
		if n := r.s.Stats().Upstreams; n != 1 {
			t.Errorf("%d upstreams stand, the idle one was taken for a stranger", n)
		}
		r.b.SetUser("new", "new")
		c, err := r.login(proxytest.ClientConfig{User: "new", Password: "new"})
		r.must(err) // once accepted it gets the place
		_ = c.Close()
	})
}

// The hash stands for one credential only, and nobody known is forgotten by few others.
func TestWhoIsKnown(t *testing.T) {
	s := newStrangers()
	who := func(user, secret string) login {
		w, _ := brokerDecides{}.identify(nil, claim{"PLAIN", user, broker.NewSecret(secret)})
		return w
	}
	a := s.id(who("u", "p"))
	if a == s.id(who("up", "")) || a == s.id(who("u", "p"), "/") || a == newStrangers().id(who("u", "p")) {
		t.Error("two credentials, one id")
	}
	if s.known(a) || s.accept(a) || !s.accept(a) || !s.known(a) {
		t.Error("accepted is not known")
	}
	for i := range acceptedMost / 2 {
		s.accept(s.id(who(fmt.Sprint(i), "")))
	}
	if !s.known(a) {
		t.Error("forgotten by others")
	}
	if n := len(s.accepted) + len(s.before); n > acceptedMost {
		t.Errorf("%d are remembered", n)
	}
	s.refuse(a, errGone)
	if s.known(a) || s.refusal(a) != errGone {
		t.Error("refused is known still")
	}
	s.forget()
	if s.refusal(a) != nil {
		t.Error("another broker refused it")
	}
}

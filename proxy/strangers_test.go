package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
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

// Nor do those who name any vhosts and hang up, and that counts as a failure: who does not wait for the answer is
// not asked sooner than who does.
func TestVHostsWhoHangUp(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		stays, _ := r.pair(proxytest.ClientConfig{})
		var all []*proxytest.Client
		for i := range 3 * broker.VHostsAtATime {
			c := r.connect(proxytest.ClientConfig{VHost: fmt.Sprint("v", i)})
			go func() { _ = c.Handshake() }()
			all = append(all, c)
		}
		synctest.Wait()
		if n := r.sc.Accepted() - 1; n != broker.VHostsAtATime {
			t.Errorf("%d dials at a time for vhosts, want %d", n, broker.VHostsAtATime)
		}
		for _, c := range all {
			c.Abort()
		}
		synctest.Wait()
		r.s.strangers.mu.Lock()
		failed := 0
		for src, f := range r.s.strangers.sources {
			if !src.any {
				failed += f.n
			}
		}
		r.s.strangers.mu.Unlock()
		if failed != len(all) {
			t.Errorf("%d failures are counted of %d who hung up", failed, len(all))
		}
		before := r.sc.Accepted()
		done := make(chan error, 1)
		go func() {
			c, err := r.login(proxytest.ClientConfig{VHost: "other"})
			if err == nil {
				err = c.Close()
			}
			done <- err
		}()
		synctest.Wait()
		if n := r.sc.Accepted() - before; n != 1 {
			t.Errorf("%d dials for who waits for a vhost behind those who have gone, want one at once", n)
		}
		for range before - 1 {
			r.sc.Accept() // of those who have gone
		}
		r.sc.AcceptOpen()
		r.must(<-done)
		r.must(stays.Close())
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

// A vhost that is looked at without a place is left as a client ought to leave: the broker logs whoever only hangs up.
func TestAVHostIsLeftWithAClose(t *testing.T) {
	var closes atomic.Int32
	withBroker(t, proxytest.BrokerConfig{VHosts: []string{"/", "other"}, Intercept: func(_ *proxytest.BrokerConn, f amqp.Frame) bool {
		if f.Type() == amqp.FrameMethod && f.Method() == amqp.ConnectionClose {
			closes.Add(1)
		}
		return false
	}}, func(c *Config) { c.MaxUpstreams = 1 }, func(r *rig) {
		stays := r.client(proxytest.ClientConfig{})
		_, err := stays.DeclareQueue(1, "q", 0)
		r.must(err)
		entered := make(chan error, 1)
		go func() {
			c, err := r.login(proxytest.ClientConfig{VHost: "other"})
			if err == nil {
				err = c.Close()
			}
			entered <- err
		}()
		synctest.Wait()
		if n := r.b.Counts(); n.Opened != 2 || n.Open != 1 || closes.Load() != 1 {
			t.Errorf("the broker has seen %d connections, of which %d are open, and %d closes; want 2, 1, 1", n.Opened, n.Open, closes.Load())
		}
		r.must(stays.Close())
		r.must(<-entered)
	})
}

// What is remembered of those who fail is bounded, however often they fail and however long the names are that they think of.
func TestFailuresAreBounded(t *testing.T) {
	s := newStrangers()
	tn, err := s.enter(t.Context(), nil, "host", strings.Repeat("n", 4000))
	if err != nil {
		t.Fatal(err)
	}
	tn.leave(true)
	for src := range s.sources {
		if len(src.user) > longestName {
			t.Errorf("a name of %d octets is kept whole", len(src.user))
		}
	}
	for i := range 2 * sourcesMost {
		tn := &turn{s: s, where: [2]source{{host: fmt.Sprint(i), user: "u"}, {host: fmt.Sprint(i), any: true}}}
		tn.leave(true)
		for _, src := range tn.where {
			if f := s.sources[src]; f != nil {
				f.n = hostFailuresFree // each of them too often
			}
		}
		if n := len(s.sources); n > sourcesMost+1 {
			t.Fatalf("%d sources are remembered, at most %d", n, sourcesMost)
		}
	}
}

// However many vhosts a user may enter, a broker that does not answer a goodbye sees no more connections beyond
// max_upstreams than the lane has turns.
func TestVHostsThatAreLeftSlowly(t *testing.T) {
	vhosts := []string{"/"}
	for i := range 2 * broker.VHostsAtATime {
		vhosts = append(vhosts, fmt.Sprint("v", i))
	}
	var answers atomic.Bool
	withBroker(t, proxytest.BrokerConfig{VHosts: vhosts, Intercept: func(_ *proxytest.BrokerConn, f amqp.Frame) bool {
		return !answers.Load() && f.Type() == amqp.FrameMethod && f.Method() == amqp.ConnectionClose
	}}, func(c *Config) { c.MaxUpstreams = 1 }, func(r *rig) {
		stays := r.client(proxytest.ClientConfig{})
		_, err := stays.DeclareQueue(1, "q", 0)
		r.must(err)
		done := make(chan error, len(vhosts)-1)
		for _, v := range vhosts[1:] {
			go func() {
				c, err := r.login(proxytest.ClientConfig{VHost: v})
				if err == nil {
					err = c.Close()
				}
				done <- err
			}()
		}
		synctest.Wait()
		if n := r.b.Counts().Open; n > 1+broker.VHostsAtATime {
			t.Errorf("the broker sees %d connections, want at most the one of max_upstreams and %d", n, broker.VHostsAtATime)
		}
		answers.Store(true)
		r.must(stays.Close())
		for range vhosts[1:] { // one place for all of them: some hear that none came free in time
			<-done
		}
	})
}

// A user may name any number of vhosts that are not there: the broker is asked about one twice, about
// many one after another and with a pause, nobody's connection is closed for them, and nobody waits.
func TestVHostsThatAreNotThere(t *testing.T) {
	for _, mode := range []PoolMode{PoolAuto, PoolSession} {
		t.Run(string(mode), func(t *testing.T) { vhostsThatAreNotThere(t, mode) })
	}
}

func vhostsThatAreNotThere(t *testing.T, mode PoolMode) {
	synctest.Test(t, func(t *testing.T) {
		from := net.Addr(tcpAddr("127.0.0.9:7")) // all of them
		r := &rig{t: t, to: proxytest.ListenMem("broker:5672", 0)}
		r.wrap = func(l net.Listener) net.Listener { return fromListener{l, &from} }
		r.b = proxytest.StartBroker(t, proxytest.BrokerConfig{Listener: r.to, VHosts: []string{"/", "other"}})
		r.start(func(c *Config) {
			c.MaxUpstreams = 2
			c.Listeners[0].Mode = mode
		})
		r.b.SetUser("victim", "v")
		r.must(r.client(proxytest.ClientConfig{User: "victim", Password: "v"}).Close())
		stays := r.client(proxytest.ClientConfig{}) // the user whose vhosts these are
		synctest.Wait()
		before := r.b.Counts().Refused
		for range 5 {
			_, err := r.login(proxytest.ClientConfig{VHost: "nowhere"})
			r.hears(err, amqp.NotAllowed, "vhost nowhere not found")
		}
		if n := r.b.Counts().Refused - before; n != 2 {
			t.Errorf("the broker was asked %d times about one vhost, want twice", n)
		}
		for i := range failuresFree {
			_, err := r.login(proxytest.ClientConfig{VHost: fmt.Sprint("no", i)})
			r.hears(err, amqp.NotAllowed, "not found")
		}
		before = r.b.Counts().Refused
		began := time.Now()
		const n = 6
		done := make(chan error, n)
		for i := range n {
			go func() {
				_, err := r.login(proxytest.ClientConfig{VHost: fmt.Sprint("none", i)})
				done <- err
			}()
		}
		synctest.Wait()
		if asked := r.b.Counts().Refused - before; asked > 1 {
			t.Errorf("the broker was asked about %d vhosts at once, want one at a time", asked)
		}
		if l := r.log(); strings.Contains(l, "its place is needed") {
			t.Errorf("a connection was closed for a vhost that is not there:\n%s", l)
		}
		// Who is known does not wait, nor another user in a vhost that is new to them.
		for _, cfg := range []proxytest.ClientConfig{{}, {User: "victim", Password: "v"}, {User: "victim", Password: "v", VHost: "other"}} {
			c, err := r.login(cfg)
			r.must(err)
			if took := time.Since(began); took >= failurePause {
				t.Errorf("%s@%s waited for %v", cfg.User, cfg.VHost, took)
			}
			_ = c.Close()
		}
		for range n {
			r.hears(<-done, amqp.NotAllowed, "not found")
		}
		if took := time.Since(began); took < (n-1)*failurePause {
			t.Errorf("%d vhosts took %v, want a pause of %v between them", n, took, failurePause)
		}
		r.must(stays.OpenChannel(2))
		_, err := r.login(proxytest.ClientConfig{VHost: "made"})
		r.hears(err, amqp.NotAllowed, "vhost made not found")
		r.b.AddVHost("made")
		made := r.client(proxytest.ClientConfig{VHost: "made"}) // at once
		r.must(made.Close())
		r.b.AddVHost("none1")
		time.Sleep(refusedFor + tick + failurePause)
		c, err := r.login(proxytest.ClientConfig{VHost: "none1"})
		r.must(err) // it has been made meanwhile
		_ = c.Close()
		_ = stays.Close()
		r.settled()
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

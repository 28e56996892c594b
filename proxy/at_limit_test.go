package proxy

import (
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// A connection that the proxy keeps idle for one user does not refuse another one at a limit of
// the broker's; one that is in use does.
func TestIdleConnectionGivesUpItsPlace(t *testing.T) {
	for _, mode := range []PoolMode{PoolAuto, PoolSession, PoolShared} {
		withBroker(t, proxytest.BrokerConfig{Users: map[string]string{"a": "a", "b": "b"}}, func(c *Config) { c.Listeners[0].Mode = mode }, func(r *rig) {
			r.b.SetLimit(1)
			a := r.client(proxytest.ClientConfig{User: "a", Password: "a"})
			_, err := a.DeclareQueue(1, "q", 0)
			r.must(err)
			_, err = r.login(proxytest.ClientConfig{User: "b", Password: "b"})
			r.hears(err, amqp.NotAllowed, "connection limit (1) is reached")
			_, err = a.DeclareQueue(1, "q", 0)
			r.must(err) // in use: it stays
			r.must(a.Close())
			synctest.Wait() // until its channel is closed at the broker the connection is not idle
			b := r.client(proxytest.ClientConfig{User: "b", Password: "b"})
			_, err = b.DeclareQueue(1, "q", 0)
			r.must(err)
			r.must(b.Close())
		})
	}
}

// At a limit of one the only client's session takes the place of the connection that it leaves.
func TestSessionAtALimitOfOne(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		r.b.SetLimit(1)
		c := r.client(proxytest.ClientConfig{})
		r.must(c.Qos(1, 1))
		_, err := c.DeclareQueue(1, "x", proxytest.Exclusive)
		r.must(err)
		r.must(c.Close())
		d := r.client(proxytest.ClientConfig{})
		_, err = d.DeclareQueue(1, "y", 0)
		r.must(err)
		_, err = d.Consume(1, "y", "t", false)
		r.must(err)
		r.must(d.Close())
	})
}

// limited is a broker with room for one connection, and users of whom only a and b have access to "/".
func limited(t *testing.T, strangers int, test func(r *rig, stands func(), evicted func() int)) {
	cfg := proxytest.BrokerConfig{Users: map[string]string{"a": "a", "b": "b"}, VHosts: []string{"/", "own"}, Access: map[string][]string{}}
	for i := range strangers {
		name := fmt.Sprint("x", i)
		cfg.Users[name], cfg.Access[name] = name, []string{"own"}
	}
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, to: proxytest.ListenMem("broker:5672", 0)}
		cfg.Listener = r.to
		r.b = proxytest.StartBroker(t, cfg)
		from := net.Addr(tcpAddr("127.0.0.1:7")) // one address
		r.wrap = func(l net.Listener) net.Listener { return fromListener{l, &from} }
		r.start(nil)
		r.b.SetLimit(1)
		stands := func() { // an idle connection of a's, again
			r.must(r.client(proxytest.ClientConfig{User: "a", Password: "a"}).Close())
			synctest.Wait()
		}
		stands()
		test(r, stands, func() int { return r.b.Counts().Opened - 1 })
		r.settled()
	})
}

// However often somebody without access asks for a vhost that is full, few idle connections of it are closed for
// that; and who has access, and comes for the first time, gets in beside it.
func TestRoomIsNotMadeForStrangers(t *testing.T) {
	limited(t, 1, func(r *rig, stands func(), evicted func() int) {
		x := proxytest.ClientConfig{User: "x0", Password: "x0"}
		for range 20 {
			_, err := r.login(x)
			r.hears(err, amqp.NotAllowed, "for user 'x0'")
			stands()
			time.Sleep(refusedFor + tick)
		}
		if n := evicted(); n != roomForUser {
			t.Errorf("%d connections were closed for who has no access, want %d", n, roomForUser)
		}
		came := time.Now()
		for range failuresFree {
			_, err := r.login(x)
			r.hears(err, amqp.NotAllowed, "for user 'x0'")
		}
		if took := time.Since(came); took < (failuresFree-1)*failurePause {
			t.Errorf("the broker was asked %d times within %v", failuresFree, took)
		}
		r.must(r.client(proxytest.ClientConfig{User: "b", Password: "b"}).Close())
	})
}

// Nor are many closed for many of them. Nobody new gets room there for the rest of the minute; who is known does.
func TestRoomAtALimitIsBounded(t *testing.T) {
	limited(t, roomAtLimit+5, func(r *rig, stands func(), evicted func() int) {
		came := time.Now()
		for i := range roomAtLimit + 5 {
			name := fmt.Sprint("x", i)
			_, err := r.login(proxytest.ClientConfig{User: name, Password: name})
			r.hears(err, amqp.NotAllowed, "for user '"+name+"'")
			stands()
		}
		if n := evicted(); n != roomAtLimit {
			t.Errorf("%d connections were closed for those who have no access, want %d", n, roomAtLimit)
		}
		b := proxytest.ClientConfig{User: "b", Password: "b"}
		_, err := r.login(b)
		r.hears(err, amqp.NotAllowed, "connection limit (1) is reached")
		time.Sleep(failuresFor - time.Since(came) + time.Second)
		r.must(r.client(b).Close())
		synctest.Wait()
		stands() // in b's place
		_, err = r.login(proxytest.ClientConfig{User: "x0", Password: "x0"})
		r.hears(err, amqp.NotAllowed, "access to vhost '/' refused for user 'x0'")
		stands()
		r.s.strangers.mu.Lock()
		defer r.s.strangers.mu.Unlock()
		if n := r.s.strangers.roomLocked("at vhost /"); n != 1 {
			t.Errorf("%d connections are counted that made room for who was refused, want the last one", n)
		}
	})
}

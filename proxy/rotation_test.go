package proxy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// 1,000 logins of a user with a password each do not leave 1,000 connections, and the log says once why.
func TestRotatingPasswords(t *testing.T) {
	for _, mode := range []PoolMode{PoolAuto, PoolShared, PoolSession} {
		keys := map[string]string{"key": "secret"}
		withBroker(t, proxytest.BrokerConfig{Flavour: proxytest.Alibaba, AccessKeys: keys}, func(c *Config) {
			c.Listeners[0].Mode = mode
		}, func(r *rig) {
			var user string
			for range 1000 {
				var password string
				user, password = proxytest.Sign("instance", "key", "secret", time.Now())
				c := r.client(proxytest.ClientConfig{User: user, Password: password})
				r.must(c.Close())
				time.Sleep(50 * time.Millisecond)
			}
			time.Sleep(15 * time.Second)
			t.Logf("mode %s: %d connections stand", mode, r.b.Counts().Open)
			if n := r.b.Counts().Open; n > 20 {
				t.Errorf("mode %s: %d connections stand 15 s after 1,000 logins with a password each, want at most 20", mode, n)
			}
			if n := strings.Count(r.log(), "password changes at each login"); n != 1 {
				t.Errorf("the log tells of it %d times, want once", n)
			}
			if !strings.Contains(r.log(), "AccessKey of Alibaba Cloud") {
				t.Error("the log does not name the remedy for a signed password")
			}
		})
	}
}

// Who logs in again, even after a while, has idle_timeout.
func TestKeptForWhoComesAgain(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		for i, want := range []int{0, 1, 1} {
			c := r.client(proxytest.ClientConfig{})
			r.must(c.Close())
			time.Sleep(time.Minute)
			if n := r.s.Stats().Upstreams; n != want {
				t.Errorf("%d upstreams a minute after login %d, want %d", n, i+1, want)
			}
		}
		held := r.client(proxytest.ClientConfig{User: "guest"})
		time.Sleep(time.Second)
		_ = held.Close()
	})
}

func TestRotationWarnsOnce(t *testing.T) {
	var r rotation
	told := 0
	for range 100 {
		if r.add("u") {
			told++
		}
	}
	if told != 1 {
		t.Errorf("told %d times, want once", told)
	}
	for i := range 2 * rotatingMost {
		r.add(fmt.Sprint("x", i))
	}
	if len(r.users) > rotatingMost {
		t.Errorf("%d users are watched, want at most %d", len(r.users), rotatingMost)
	}
}

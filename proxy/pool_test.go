package proxy

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

func TestVerdictsComeWhereTheBrokerGivesThem(t *testing.T) {
	bc := proxytest.BrokerConfig{Users: map[string]string{"guest": "guest", "bob": "x"}, Access: map[string][]string{"bob": {}}}
	withBroker(t, bc, nil, func(r *rig) {
		c := r.connect(proxytest.ClientConfig{Password: "wrong"})
		r.hears(c.Start(), amqp.AccessRefused, "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN")
		_ = c.Hangup()

		c = r.connect(proxytest.ClientConfig{Password: "wrong", Properties: amqp.AppendStringField(nil, "product", "old")})
		if err := c.Start(); err == nil || strings.Contains(err.Error(), "403") {
			t.Errorf("a client without authentication_failure_close got %v, want the end of the connection", err)
		}
		_ = c.Hangup()

		for vhost, words := range map[string]string{"nowhere": "vhost nowhere not found", "/": "access to vhost '/' refused for user 'bob'"} {
			c = r.connect(proxytest.ClientConfig{User: "bob", Password: "x", VHost: vhost})
			r.must(c.Start())
			r.must(c.TuneOk())
			r.hears(c.Open(), amqp.NotAllowed, words)
			_ = c.Hangup()
		}
	})
}

// Many logins of one identity at once are one login to the broker.
func TestSingleFlight(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		var wg sync.WaitGroup
		for range 40 {
			wg.Go(func() {
				if c, err := r.login(proxytest.ClientConfig{}); err != nil {
					t.Error(err)
				} else {
					_ = c.Close()
				}
			})
		}
		wg.Wait()
		if n := r.b.Counts(); n.Accepted != 1 || n.Opened != 1 {
			t.Errorf("the broker saw %d connections, %d opened; want 1 and 1\n%s", n.Accepted, n.Opened, r.log())
		}
	})
}

// A changed password is refused after at most auth_ttl and one login more.
func TestRevokedSecretIsRefused(t *testing.T) {
	for _, bound := range []int{0, 1} { // the upstream that verifies anew needs no place
		testRevokedSecret(t, bound)
	}
}

func testRevokedSecret(t *testing.T, bound int) {
	withBroker(t, proxytest.BrokerConfig{}, func(c *Config) { c.MaxUpstreamsPerIdentity = bound }, func(r *rig) {
		held := r.client(proxytest.ClientConfig{})
		_, err := held.DeclareQueue(1, "q", 0)
		r.must(err)
		r.b.SetUser("guest", "new")
		c, err := r.login(proxytest.ClientConfig{})
		r.must(err)
		_ = c.Close()
		time.Sleep(31 * time.Second)
		c, err = r.login(proxytest.ClientConfig{})
		r.must(err)
		_ = c.Close()
		synctest.Wait()
		_, err = r.login(proxytest.ClientConfig{})
		r.hears(err, amqp.AccessRefused)
		c, err = r.login(proxytest.ClientConfig{Password: "new"})
		r.must(err)
		_ = c.Close()
		// Who was connected stays, and may open channels as it could before.
		r.must(held.OpenChannel(2))
		_, err = held.DeclareQueue(2, "q", 0)
		r.must(err)
		r.must(held.Close())
		r.eventually(10*time.Second, func() bool { return r.s.Stats().Identities == 1 })
		if n := r.s.Stats().Identities; n != 1 {
			t.Errorf("%d identities are kept, want the new one alone", n)
		}
	})
}

// Refused logins leave nothing behind.
func TestRefusedIdentitiesAreForgotten(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		for i := range 20 {
			_, err := r.login(proxytest.ClientConfig{User: fmt.Sprint("u", i)})
			r.hears(err, amqp.AccessRefused)
			_, err = r.login(proxytest.ClientConfig{VHost: fmt.Sprint("v", i)})
			r.hears(err, amqp.NotAllowed)
		}
		time.Sleep(12 * time.Second)
		r.s.logins.mu.Lock()
		defer r.s.logins.mu.Unlock()
		if n := len(r.s.logins.accounts) + len(r.s.orphans); n != 0 {
			t.Errorf("%d accounts and pools are left", n)
		}
	})
}

// What is there in a broker's stead sends no verdict that a client could hear.
func TestAnotherServerInTheBrokersStead(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		done := make(chan error, 1)
		go func() {
			_, err := r.login(proxytest.ClientConfig{})
			done <- err
		}()
		p := r.sc.Accept()
		p.ExpectHeader()
		p.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
		r.notGreeted(<-done)
		if l := r.log(); !strings.Contains(l, "it answers in HTTP: that is no AMQP port") {
			t.Errorf("the log does not say what is there:\n%s", l)
		}
		if st := r.s.Stats(); st.BrokerUp || !strings.Contains(st.BrokerReason, "HTTP") {
			t.Errorf("the broker is up: %v, %q", st.BrokerUp, st.BrokerReason)
		}
	})
}

func TestBrokerDown(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		r.to.Refuse(fmt.Errorf("connection refused"))
		_, err := r.login(proxytest.ClientConfig{})
		r.notGreeted(err)
		if l := r.log(); !strings.Contains(l, "address=broker:5672") || !strings.Contains(l, "connection refused") {
			t.Errorf("the log does not say where and why:\n%s", l)
		}
		r.to.Refuse(nil)
		begin := time.Now()
		_, err = r.login(proxytest.ClientConfig{})
		r.notGreeted(err)
		if took := time.Since(begin); took > 100*time.Millisecond {
			t.Errorf("failing fast took %v", took)
		}
		time.Sleep(1100 * time.Millisecond)
		c, err := r.login(proxytest.ClientConfig{})
		r.must(err)
		_ = c.Close()
	})
}

// A broker that accepts and says nothing: the end within connect_timeout, and the log says why.
func TestSilentBroker(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		begin := time.Now()
		_, err := r.login(proxytest.ClientConfig{})
		r.notGreeted(err)
		if !strings.Contains(r.log(), "no answer within connect_timeout") {
			t.Error("the log does not say why")
		}
		if took := time.Since(begin); took > 5500*time.Millisecond {
			t.Errorf("it took %v, want about 5 s", took)
		}
	})
}

func TestIdleAndOldUpstreamsEnd(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		r.must(r.client(proxytest.ClientConfig{}).Close())
		r.must(r.client(proxytest.ClientConfig{}).Close()) // who comes again may come once more
		time.Sleep(299 * time.Second)
		if n := r.s.Stats().Upstreams; n != 1 {
			t.Fatalf("%d upstreams before idle_timeout, want 1", n)
		}
		time.Sleep(3 * time.Second)
		if n, open := r.s.Stats().Upstreams, r.b.Counts().Open; n != 0 || open != 0 {
			t.Fatalf("%d upstreams after idle_timeout, %d at the broker, want none", n, open)
		}
		// An old one ends when its last channel does.
		c := r.client(proxytest.ClientConfig{})
		_, err := c.DeclareQueue(1, "q", 0)
		r.must(err)
		time.Sleep(time.Hour + time.Second)
		if n := r.b.Counts().Open; n != 1 {
			t.Fatalf("%d connections at the broker after max_lifetime with a channel open, want 1", n)
		}
		d := r.client(proxytest.ClientConfig{})
		_, err = d.DeclareQueue(1, "q", 0)
		r.must(err)
		if n := r.b.Counts().Open; n != 2 {
			t.Errorf("%d connections at the broker, want a fresh one beside the old", n)
		}
		r.must(c.CloseChannel(1))
		if !r.eventually(2*time.Second, func() bool { return r.b.Counts().Open == 1 }) {
			t.Error("the old upstream stays though its last channel is closed")
		}
		r.must(c.Close())
		r.must(d.Close())
	})
}

func TestBounds(t *testing.T) {
	for _, setting := range []string{"max_upstreams", "max_upstreams_per_identity"} {
		withBroker(t, proxytest.BrokerConfig{}, func(c *Config) {
			c.Listeners[0].Mode = PoolSession
			if setting == "max_upstreams" {
				c.MaxUpstreams = 2
			} else {
				c.MaxUpstreamsPerIdentity = 2
			}
		}, func(r *rig) {
			var wg sync.WaitGroup
			var served, refused atomic.Int32
			var most int
			begin := time.Now()
			for i := range 10 {
				wg.Go(func() {
					c, err := r.login(proxytest.ClientConfig{Name: fmt.Sprint(i)})
					if err != nil {
						refused.Add(1)
						r.hears(err, amqp.ConnectionForced, "no connection to the broker is free: "+setting+" = 2 are in use")
						return
					}
					served.Add(1)
					time.Sleep(8 * time.Second)
					_ = c.Close()
				})
			}
			stop, watched := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(watched)
				for {
					select {
					case <-stop:
						return
					case <-time.After(50 * time.Millisecond):
						most = max(most, r.b.Counts().Open)
					}
				}
			}()
			wg.Wait()
			close(stop)
			<-watched
			if most > 2 {
				t.Errorf("%s: the broker saw %d connections at once, want at most 2", setting, most)
			}
			if served.Load() != 2 || refused.Load() != 8 {
				t.Errorf("%s: %d served, %d refused in %v; want 2 and 8", setting, served.Load(), refused.Load(), time.Since(begin))
			}
			// With a place free again, whoever comes is served at once, an idle one is evicted.
			c, err := r.login(proxytest.ClientConfig{User: "guest", Name: "later"})
			r.must(err)
			_ = c.Close()
		})
	}
}

// With one place in all, identities take turns: the idle one makes room.
func TestIdleUpstreamIsEvicted(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{Users: map[string]string{"a": "a", "b": "b"}}, func(c *Config) { c.MaxUpstreams = 1 }, func(r *rig) {
		for range 6 {
			for _, user := range []string{"a", "b"} {
				begin := time.Now()
				c := r.client(proxytest.ClientConfig{User: user, Password: user})
				_, err := c.DeclareQueue(1, "q", 0)
				r.must(err)
				r.must(c.Close())
				if took := time.Since(begin); took > time.Second {
					t.Errorf("%s waited %v", user, took)
				}
			}
		}
		// A login that never names a vhost keeps its place for a moment only.
		time.Sleep(40 * time.Second) // nobody is trusted unasked any more
		c := r.connect(proxytest.ClientConfig{User: "a", Password: "a"})
		r.must(r.connect(proxytest.ClientConfig{User: "b", Password: "b"}).Start())
		r.must(c.Start())
		r.must(c.TuneOk())
		r.must(c.Open())
		_ = c.Close()
		time.Sleep(11 * time.Second) // the other one's handshake ends
	})
}

func TestMaxClients(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, func(c *Config) { c.MaxClients = 1 }, func(r *rig) {
		a := r.client(proxytest.ClientConfig{})
		_, err := r.login(proxytest.ClientConfig{})
		r.hears(err, amqp.ConnectionForced, "max_clients = 1")
		done := make(chan error)
		go func() {
			c, err := r.login(proxytest.ClientConfig{})
			if err == nil {
				_ = c.Close()
			}
			done <- err
		}()
		time.Sleep(2 * time.Second)
		r.must(a.Close())
		r.must(<-done)
	})
}

// Logins that end before they name a vhost leave no connection and no place behind,
// and one that died while it waited is not an outage.
func TestSpareLogins(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, func(c *Config) { c.AuthTTL = time.Second }, func(r *rig) {
		for range 4 {
			c := r.connect(proxytest.ClientConfig{})
			r.must(c.Start())
			_ = c.Hangup()
			time.Sleep(1200 * time.Millisecond)
		}
		if !r.eventually(15*time.Second, func() bool {
			r.s.gate.mu.Lock()
			defer r.s.gate.mu.Unlock()
			return r.s.gate.used == 0
		}) {
			t.Errorf("%d connections to the broker are counted with nobody there", r.s.gate.used)
		}
		c := r.connect(proxytest.ClientConfig{})
		r.must(c.Start())
		synctest.Wait()
		r.b.Cut()
		r.must(c.TuneOk())
		r.must(c.Open())
		_ = c.Close()

		time.Sleep(30 * time.Second)
		r.b.Cut()
		time.Sleep(time.Second)
		r.must(r.connect(proxytest.ClientConfig{}).Start()) // Close finds a spare one
	})
}

// A lane is taken also by the channel that comes back to an idle upstream it knows.
func TestLaneIsTakenAnew(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		c := r.client(proxytest.ClientConfig{})
		_, err := c.DeclareQueue(1, "q", 0)
		r.must(err)
		r.must(c.Publish(1, "", "q", []byte("1")))
		r.must(c.CloseChannel(1))
		time.Sleep(time.Second)
		r.must(c.OpenChannel(1))
		r.must(c.Publish(1, "", "q", []byte("2")))
		synctest.Wait()
		d := r.client(proxytest.ClientConfig{})
		_, err = d.Get(1, "q", true)
		r.must(err)
		lanes := map[lane]int{}
		for _, p := range r.s.allPools() {
			p.mu.Lock()
			for _, u := range p.ups {
				lanes[u.lane]++
			}
			p.mu.Unlock()
		}
		if lanes[lanePublish] != 1 || lanes[laneRead] != 1 {
			t.Errorf("upstreams by lane: %v, want a publishing and a reading one", lanes)
		}
		r.must(c.Close())
		r.must(d.Close())
	})
}

// Ids that can never be used again make an upstream full, and no reader spin.
func TestLostIDsFillAnUpstream(t *testing.T) {
	withScript(t, 0, func(c *Config) { c.Heartbeat = 0 }, func(r *rig) {
		done := make(chan *proxytest.Client)
		go func() {
			c, err := r.login(proxytest.ClientConfig{})
			if err != nil {
				t.Error(err)
			}
			done <- c
		}()
		p := r.sc.Accept()
		tune := amqp.Tune{ChannelMax: 1, FrameMax: 131072}
		p.OpenTuned(tune)
		c := <-done
		r.must(c.OpenChannel(1))
		r.must(c.Confirm(1))
		r.must(c.Publish(1, "", "q", nil)) // never confirmed: its close is not quiet
		p.Expect(amqp.ChannelOpen)
		r.must(c.SendMethod(1, amqp.ChannelClose, 200, "", 0, 0))
		r.sc.Wait("channel.close", func(rs []proxytest.Record) bool { return proxytest.Count(rs, amqp.ChannelClose) == 1 })
		p.Send(proxytest.CloseBytes(1, 404, "NOT_FOUND", 0)) // crosses; close-ok never comes
		_, err := c.Await(1, amqp.ChannelCloseOk)
		if err != nil {
			_, err = c.Await(1, amqp.ChannelCloseOk)
		}
		r.must(err)
		time.Sleep(10 * time.Second)
		r.must(c.OpenChannel(1))
		r.must(c.Publish(1, "", "q", nil))
		q := r.sc.Accept()
		q.OpenTuned(tune)
		if q.OpenChannel() != 1 {
			t.Error("the channel went elsewhere")
		}
		_ = c.Hangup()
	})
}

// A session that ends with no channel open makes room at the bound at once.
func TestIdleSessionMakesRoom(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{Users: map[string]string{"a": "a", "b": "b"}}, func(c *Config) {
		c.Listeners[0].Mode, c.MaxUpstreams = PoolSession, 1
	}, func(r *rig) {
		a := r.client(proxytest.ClientConfig{User: "a", Password: "a"})
		done := make(chan error)
		go func() {
			b, err := r.login(proxytest.ClientConfig{User: "b", Password: "b"})
			if err == nil {
				err = b.Close()
			}
			done <- err
		}()
		time.Sleep(time.Second)
		began := time.Now()
		r.must(a.Close())
		r.must(<-done)
		if took := time.Since(began); took > time.Second {
			t.Errorf("it was served after %v", took)
		}
	})
}

// A login that was accepted before its user was refused leaves nothing behind when it
// goes on to name its vhost.
func TestForgottenAmidALogin(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, func(c *Config) { c.IdleTimeout = 10 * time.Second }, func(r *rig) {
		a := r.client(proxytest.ClientConfig{})
		b := r.connect(proxytest.ClientConfig{})
		r.must(b.Start())
		r.s.forget(r.s.allPools()[0], verdictOf(amqp.Errorf(amqp.AccessRefused, 0, "for a moment")))
		r.must(b.TuneOk())
		r.must(b.Open())
		if n := r.s.Stats().Identities; n != 2 {
			t.Errorf("%d pools are known with a client in each of two", n)
		}
		r.must(a.Close())
		r.must(b.Close())
		time.Sleep(11 * time.Second)
		if st := r.s.Stats(); st.Upstreams != 0 || st.Identities != 0 {
			t.Errorf("%d upstreams and %d identities are left", st.Upstreams, st.Identities)
		}
	})
}

// One user whose login the broker never answers is no outage for the others.
func TestOneHangingLoginIsNoOutage(t *testing.T) {
	for _, atOpen := range []bool{false, true} {
		withScript(t, 0, nil, func(r *rig) {
			done := make(chan error, 1)
			go func() {
				_, err := r.login(proxytest.ClientConfig{User: "a"})
				done <- err
			}()
			p := r.sc.Accept()
			p.Start()
			if atOpen {
				p.Send(amqp.AppendTune(nil, amqp.ConnectionTune, proxytest.DefaultTune))
				time.Sleep(time.Second)
				p.Close() // the spare connection: the vhost is asked for on another one
				p = r.sc.Accept()
				p.Start()
				p.Send(amqp.AppendTune(nil, amqp.ConnectionTune, proxytest.DefaultTune))
			}
			r.hears(<-done, amqp.ConnectionForced, "no answer within connect_timeout")
			c, _ := r.pair(proxytest.ClientConfig{User: "b"})
			_ = c.Hangup()
		})
	}
}

// A broker that dies amid a login has not refused it: it said that it would say so.
func TestBrokerDiesAmidALogin(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		done := make(chan error, 1)
		go func() {
			_, err := r.login(proxytest.ClientConfig{})
			done <- err
		}()
		for range 2 { // that which greeted may have died while it waited for the login
			p := r.sc.Accept()
			p.Start()
			p.Close()
		}
		r.hears(<-done, amqp.ConnectionForced, "closed the connection during the handshake")
	})
}

// Whoever waits for a place gets that of a login that came up meanwhile and names no vhost.
func TestUnusedLoginMakesRoom(t *testing.T) {
	withScript(t, 0, func(c *Config) { c.MaxUpstreams = 1 }, func(r *rig) {
		a := r.connect(proxytest.ClientConfig{})
		started, served := make(chan error), make(chan error)
		go func() { started <- a.Start() }()
		p := r.sc.Accept()
		p.Start()
		go func() {
			b, err := r.login(proxytest.ClientConfig{User: "b", Password: "b"})
			if err == nil {
				err = b.Close()
			}
			served <- err
		}()
		synctest.Wait()
		p.Send(amqp.AppendTune(nil, amqp.ConnectionTune, proxytest.DefaultTune))
		r.must(<-started)
		began := time.Now()
		q := r.sc.Accept() // who it is is asked beyond the bound
		q.Start()
		q.Send(amqp.AppendTune(nil, amqp.ConnectionTune, proxytest.DefaultTune))
		r.sc.AcceptOpen() // likewise, whether the vhost is there
		r.sc.AcceptOpen() // in the place of the unused login
		r.must(<-served)
		if took := time.Since(began); took > time.Second {
			t.Errorf("it was served after %v", took)
		}
		_ = a.Hangup()
	})
}

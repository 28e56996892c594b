package proxy

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
	"github.com/amqproxysvc/amqproxysvc/proxy/hash"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// hashOf is RabbitMQ's hash of a password, which costs nothing.
func hashOf(t *testing.T, password string) hash.Hash {
	t.Helper()
	sum := sha256.Sum256([]byte("salt" + password))
	h, err := hash.Parse(base64.StdEncoding.EncodeToString(append([]byte("salt"), sum[:]...)))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func user(t *testing.T, name, password, at, secret string, vhosts ...string) User {
	return User{Name: name, Password: hashOf(t, password), VHosts: vhosts, Broker: Password{at, broker.NewSecret(secret)}}
}

// withUsers is withBroker with shop, known to the broker as prod-shop.
func withUsers(t *testing.T, bc proxytest.BrokerConfig, change func(*Config), test func(*rig)) {
	bc.Users = map[string]string{"guest": "guest", "prod-shop": "s3cr3t"}
	withBroker(t, bc, func(c *Config) {
		c.Users = []User{user(t, "shop", "local", "prod-shop", "s3cr3t")}
		if change != nil {
			change(c)
		}
	}, test)
}

var asShop = proxytest.ClientConfig{User: "shop", Password: "local"}

// reload changes the configuration in force.
func (r *rig) reload(change func(*Config)) {
	r.t.Helper()
	cfg := *r.s.cfg()
	change(&cfg)
	_, err := r.s.Reload(cfg)
	r.must(err)
}

// An application that knows no secret of the broker's is served; what it sends never reaches the broker.
func TestUsersOfTheProxy(t *testing.T) {
	withUsers(t, proxytest.BrokerConfig{VHosts: []string{"/", "shop"}}, nil, func(r *rig) {
		for _, mechanism := range []string{"PLAIN", "AMQPLAIN"} {
			in := asShop
			in.Mechanism = mechanism
			c := r.client(in)
			_, err := c.DeclareQueue(1, "q", 0)
			r.must(err)
			r.must(c.Close())
			for _, wrong := range [][2]string{{"shop", "s3cr3t"}, {"shop", ""}, {"shop", "Local"}, {"prod-shop", "local"}} {
				in.User, in.Password = wrong[0], wrong[1]
				if wrong[1] == "" {
					in.Password = " "
				}
				_, err := r.login(in)
				r.hears(err, amqp.AccessRefused, "ACCESS_REFUSED - Login was refused using authentication mechanism "+mechanism+". For details see the broker logfile.")
			}
		}
		if n := r.b.Counts(); n.Logins != 1 || n.Refused != 1 { // prod-shop's wrong password, asked once
			t.Errorf("the broker has seen %d logins and refused %d, want one each", n.Logins, n.Refused)
		}
		if st := r.s.Stats(); st.LocalOK != 2 || st.LocalRefused != 6 {
			t.Errorf("%d logins were found right and %d wrong, want 2 and 6", st.LocalOK, st.LocalRefused)
		}
		// The name at the broker is a user of the broker's like others, unless all others are refused.
		c, err := r.login(proxytest.ClientConfig{User: "prod-shop", Password: "s3cr3t"})
		r.must(err)
		r.must(c.Close())
		if pools := r.s.Stats().Pools; len(pools) != 2 {
			t.Errorf("pools are %+v, want the kept user's and the other's", pools)
		}
		r.reload(func(c *Config) { c.UnknownUsers = UnknownRefuse })
		asked := r.b.Counts().Accepted
		for _, name := range []string{"prod-shop", "nobody"} {
			_, err = r.login(proxytest.ClientConfig{User: name, Password: "s3cr3t"})
			r.hears(err, amqp.AccessRefused, "Login was refused using authentication mechanism PLAIN")
		}
		if n := r.b.Counts().Accepted; n != asked {
			t.Errorf("the broker was asked about users that are refused here (%d connections)", n-asked)
		}
		synctest.Wait() // who is refused may hear it before it is in the log
		if !strings.Contains(r.log(), "user=nobody") {
			t.Errorf("the log does not tell who was refused:\n%s", r.log())
		}
		for _, secret := range []string{"s3cr3t", "local", hashOf(t, "local").Reveal()} {
			if strings.Contains(r.log(), secret) {
				t.Errorf("the log has the secret %q", secret)
			}
		}
	})
}

func TestVHostsOfAUser(t *testing.T) {
	withUsers(t, proxytest.BrokerConfig{VHosts: []string{"/", "shop", "other"}}, func(c *Config) { c.Users[0].VHosts = []string{"shop", "gone"} }, func(r *rig) {
		in := asShop
		in.VHost = "shop"
		c := r.client(in)
		asked := r.b.Counts().Accepted
		for _, vhost := range []string{"/", "other", "nonesuch"} {
			in.VHost = vhost
			_, err := r.login(in)
			r.hears(err, amqp.NotAllowed, fmt.Sprintf("NOT_ALLOWED - access to vhost '%s' refused for user 'shop'", vhost))
		}
		if n := r.b.Counts().Accepted; n != asked {
			t.Errorf("%d connections for vhosts that are refused here", n-asked)
		}
		in.VHost = "gone"
		_, err := r.login(in)
		r.hears(err, amqp.NotAllowed, "gone")
		// A reload counts for who opens a vhost next.
		r.reload(func(c *Config) { c.Users = []User{user(t, "shop", "local", "prod-shop", "s3cr3t")} })
		in.VHost = "other"
		d := r.client(in)
		r.must(c.Close())
		r.must(d.Close())
	})
}

// A new secret is used for the next connection; what stands goes on, whichever of broker and
// file is changed first, and whoever logs in is served.
func TestSecretsAreRotated(t *testing.T) {
	for _, fileFirst := range []bool{true, false} {
		t.Run(fmt.Sprint("file first: ", fileFirst), func(t *testing.T) {
			withUsers(t, proxytest.BrokerConfig{}, func(c *Config) { c.AuthTTL = time.Second }, func(r *rig) {
				c := r.client(asShop)
				_, err := c.DeclareQueue(1, "q", 0)
				r.must(err)
				file := func() {
					r.reload(func(c *Config) { c.Users = []User{user(t, "shop", "local", "prod-shop", "n3w")} })
				}
				first, second := file, func() { r.b.SetUser("prod-shop", "n3w") }
				if !fileFirst {
					first, second = second, first
				}
				session := func() {
					x := r.client(asShop)
					_, err := x.DeclareQueue(1, "own", proxytest.Exclusive)
					r.must(err)
					r.must(x.Close())
				}
				session()
				first()
				for range 30 { // rechecks are due meanwhile
					time.Sleep(200 * time.Millisecond)
					r.must(r.client(asShop).Close())
					if fileFirst {
						session()
					}
				}
				second()
				for range 30 {
					time.Sleep(200 * time.Millisecond)
					r.must(r.client(asShop).Close())
				}
				session()
				_, err = c.DeclareQueue(1, "q", 0)
				r.must(err)
				r.must(c.Close())
				const accepted = "the broker has accepted the new secret"
				if n := strings.Count(r.log(), accepted); n != 1 {
					t.Errorf("the log tells %d times of the new secret's acceptance", n)
				}
				if n := strings.Count(r.log(), "the broker refuses the secret kept for a user"); fileFirst && n != 0 || n > 1 {
					t.Errorf("the log tells %d times of a refusal", n)
				}
				// The old one is not tried any more.
				refused := r.b.Counts().Refused
				r.b.SetUser("prod-shop", "s3cr3t")
				time.Sleep(2 * time.Second)
				for _, p := range r.s.allPools() {
					p.retireAll()
				}
				synctest.Wait()
				_, err = r.login(asShop)
				r.hears(err, amqp.AccessRefused, "using authentication mechanism PLAIN")
				if n := r.b.Counts().Refused - refused; n < 1 {
					t.Errorf("the broker refused %d logins", n)
				}
				if n := strings.Count(r.log(), "the broker refuses the secret kept for a user"); n == 0 {
					t.Error("the log does not tell that the broker refuses the secret")
				}
			})
		})
	}
}

// The broker may be told of a new password at any moment: after it has refused that, and before it is sent
// the one before. And the file may be read between the two.
func TestASecretThatChangesAmidALogin(t *testing.T) {
	s, err := New(DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	before, now := Password{"u", broker.NewSecret("old")}, Password{"u", broker.NewSecret("new")}
	taken := func(p Provider) *stored {
		return &stored{now: now, at: map[string]*storedAt{"": {took: p}}}
	}
	for name, c := range map[string]struct {
		c     *stored
		turns string // what the broker takes, at each login
		sends string
	}{
		"told between":    {taken(before), "old new new", "new old new"},
		"told before":     {taken(before), "new", "new"},
		"not told":        {taken(before), "old old", "new old"},
		"neither":         {taken(before), "x x x", "new old new"},
		"nothing to fall": {&stored{now: now}, "x", "new"},
	} {
		turns, sent := strings.Fields(c.turns), []string{}
		_, err := s.loginStored(c.c, "", func(ask askFunc) (*broker.Link, error) {
			k, _ := ask(bg)
			takes := turns[len(sent)]
			sent = append(sent, k.Secret.Reveal())
			if k.Secret.Reveal() != takes {
				return nil, broker.RefusedLogin("PLAIN")
			}
			return &broker.Link{}, nil
		})
		if got := strings.Join(sent, " "); got != c.sends || (err == nil) != (sent[len(sent)-1] == turns[len(sent)-1]) {
			t.Errorf("%s: the broker was sent %s and the outcome is %v, want %s", name, got, err, c.sends)
		}
		if err == nil && sent[len(sent)-1] == "new" && c.c.other("", now) != nil {
			t.Errorf("%s: the one before is kept when the new one is accepted", name)
		}
	}
	// A reload between reading the secret and its refusal.
	c := taken(before)
	c.now = before
	n := 0
	if _, err := s.loginStored(c, "", func(ask askFunc) (*broker.Link, error) {
		k, _ := ask(bg)
		if n++; n == 1 {
			c.renew(now)
		}
		if k.Secret.Reveal() == "old" {
			return nil, broker.RefusedLogin("PLAIN")
		}
		return &broker.Link{}, nil
	}); err != nil || n != 2 {
		t.Errorf("after a reload amid the login: %v, %d logins", err, n)
	}
}

// Another name at the broker is another account: its connections are not shared with those of before.
func TestAnotherAccountAtTheBroker(t *testing.T) {
	withUsers(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		r.b.SetUser("other", "o")
		before := r.client(asShop)
		r.reload(func(c *Config) { c.Users = []User{user(t, "shop", "local", "other", "o")} })
		after := r.client(asShop)
		for _, c := range []*proxytest.Client{before, after} {
			_, err := c.DeclareQueue(1, "q", 0)
			r.must(err)
		}
		if n := r.b.Counts().Logins; n != 2 {
			t.Errorf("%d logins at the broker, want one for each account", n)
		}
		r.reload(func(c *Config) { c.Users = nil })
		_, err := r.login(asShop)
		r.hears(err, amqp.AccessRefused) // the broker knows no shop
		r.must(before.Close())
		r.must(after.Close())
	})
}

// Wrong passwords cost their own address and user, and one that is right waits for none of them.
func TestWrongPasswordsOfUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		from := net.Addr(tcpAddr("192.0.2.1:7"))
		r := &rig{t: t, to: proxytest.ListenMem("broker:5672", 0)}
		r.wrap = func(l net.Listener) net.Listener { return fromListener{l, &from} }
		r.b = proxytest.StartBroker(t, proxytest.BrokerConfig{Listener: r.to, Users: map[string]string{"prod-shop": "s3cr3t"}})
		r.start(func(c *Config) {
			c.Users = []User{user(t, "shop", "local", "prod-shop", "s3cr3t"), user(t, "till", "t", "prod-shop", "s3cr3t")}
		})
		r.must(r.client(asShop).Close())
		fail := func(i int) {
			_, err := r.login(proxytest.ClientConfig{User: "shop", Password: fmt.Sprint("wrong", i)})
			r.hears(err, amqp.AccessRefused)
		}
		began := time.Now()
		for i := range failuresFree {
			fail(i)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("%d wrong passwords took %v", failuresFree, took)
		}
		began = time.Now()
		for i := range 4 {
			fail(100 + i)
		}
		if took := time.Since(began); took < 3*failurePause {
			t.Errorf("wrong passwords beyond that took %v, want a pause of %v for each", took, failurePause)
		}
		began = time.Now()
		r.must(r.client(asShop).Close()) // it was found right before
		r.must(r.client(proxytest.ClientConfig{User: "till", Password: "t"}).Close())
		from = tcpAddr("192.0.2.2:7")
		fail(200)
		if took := time.Since(began); took > 0 {
			t.Errorf("others waited %v", took)
		}
		if n := r.b.Counts().Refused; n != 0 {
			t.Errorf("the broker saw %d wrong passwords", n)
		}
		r.settled()
	})
}

// At most two hashes are computed at a time; who comes first is served first, and who hangs up is
// not waited for.
func TestTwoHashesAtATime(t *testing.T) {
	withUsers(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		for range hashesAtATime {
			r.must(r.s.hashing.Acquire(context.Background(), nil))
		}
		done := make(chan error, 1)
		c := r.connect(asShop)
		go func() { done <- c.Handshake() }()
		gone := r.connect(asShop)
		go func() { _ = gone.Handshake() }()
		synctest.Wait()
		if n, _ := r.s.hashing.Waiting(); n != 2 {
			t.Fatalf("%d wait for a place among the hashes, want 2", n)
		}
		gone.Abort()
		synctest.Wait()
		if n, _ := r.s.hashing.Waiting(); n != 1 {
			t.Errorf("%d wait when one has hung up, want 1", n)
		}
		r.s.hashing.Release()
		r.must(<-done)
		r.must(c.Close())
		r.must(r.client(asShop).Close()) // known: no hash is computed, whatever waits
		r.must(r.s.hashing.Acquire(context.Background(), nil))
		r.must(r.client(asShop).Close())
		_, err := r.login(proxytest.ClientConfig{User: "shop", Password: "wrong"})
		r.hears(err, amqp.ConnectionForced, "too many logins")
		for range hashesAtATime {
			r.s.hashing.Release()
		}
	})
}

// A name that is none costs a hash, always the same one.
func TestUnknownUsersCostAsMuch(t *testing.T) {
	cfg := DefaultConfig()
	cfg.UnknownUsers = UnknownRefuse
	for i := range 8 {
		cfg.Users = append(cfg.Users, user(t, fmt.Sprint("u", i), fmt.Sprint("p", i), "x", "y"))
	}
	cfg.Users = append(cfg.Users, User{Name: "none", Broker: Password{}})
	d := newDirectory(&cfg, nil)
	seen := map[string]bool{}
	for i := range 200 {
		name := fmt.Sprint("nobody", i)
		h := d.decoy([]byte("key"), name)
		if h.IsZero() || h != d.decoy([]byte("key"), name) {
			t.Fatalf("%s: the hash that is computed is none, or another one each time", name)
		}
		seen[h.Reveal()] = true
	}
	if len(seen) != 8 {
		t.Errorf("%d of 8 hashes are computed for unknown users", len(seen))
	}
	// Whoever guesses the password of the decoy is not let in by it.
	withBroker(t, proxytest.BrokerConfig{}, func(c *Config) {
		c.UnknownUsers, c.Users = UnknownRefuse, []User{user(t, "shop", "local", "guest", "guest"), {Name: "none", Broker: Password{}}}
	}, func(r *rig) {
		for _, name := range []string{"nobody", "none"} {
			for range 2 {
				_, err := r.login(proxytest.ClientConfig{User: name, Password: "local"})
				r.hears(err, amqp.AccessRefused)
			}
		}
	})
}

// update-secret of a user of the proxy's is answered here: the broker knows another secret.
func TestUpdateSecretOfAUser(t *testing.T) {
	withUsers(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		c := r.client(asShop)
		r.must(c.Call(proxytest.Method(0, amqp.ConnectionUpdateSecret, "a new one", "because"), amqp.ConnectionUpdateSecretOk))
		_, err := c.DeclareQueue(1, "q", 0)
		r.must(err)
		if ups := r.s.Stats().Upstreams; ups != 1 {
			t.Errorf("%d connections to the broker, want the shared one", ups)
		}
		r.must(c.Close())
	})
}

func TestUsersThatAreWrong(t *testing.T) {
	for want, users := range map[string][]User{
		"has no name":             {{Broker: Password{}}},
		"the name of one before":  {user(t, "a", "p", "x", "y"), user(t, "a", "q", "x", "y")},
		"nothing that the broker": {{Name: "a"}},
	} {
		cfg := DefaultConfig()
		cfg.Users = users
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	cfg := DefaultConfig()
	cfg.UnknownUsers = "perhaps"
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), `"broker" or "refuse"`) {
		t.Errorf("unknown_users is taken: %v", err)
	}
}

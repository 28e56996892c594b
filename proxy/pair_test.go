package proxy

import (
	"encoding/base64"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// The pairs of TestPairsOfAnAccessKey, and what is nearly one.
func TestPairIsSigned(t *testing.T) {
	const ms = 1700000000000
	const name, proof = "MDphbXFwLWNuLTE6TFRBSTV0", "MTgwOTg5NjA5NjVEQUE3MzZBODkxRjY2NUFENTQyOTRBQTkwQzkxOToxNzAwMDAwMDAwMDAw"
	key := AccessKey{"amqp-cn-1", "LTAI5t", broker.NewSecret("s3cr3t"), broker.Secret{}}
	temporary := key
	temporary.Token = broker.NewSecret("CAISstsToken==")
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	plain, _ := base64.StdEncoding.DecodeString(proof)
	hex, _, _ := strings.Cut(string(plain), ":")
	other := key
	other.Secret = broker.NewSecret("s3cr3T")
	for _, c := range []struct {
		what, user, secret string
		key                AccessKey
		right              bool
	}{
		{"as the cloud's library makes it", name, proof, key, true},
		{"another secret", name, proof, other, false},
		{"another time, not signed", name, b64(hex + ":1700000000001"), key, false},
		{"lower case", name, b64(strings.ToLower(hex) + ":1700000000000"), key, false},
		{"a sign", name, b64(hex + ":+1700000000000"), key, false},
		{"a zero in front", name, b64(hex + ":01700000000000"), key, false},
		{"a tail", name, b64(string(plain) + ":"), key, false},
		{"no time", name, b64(hex), key, false},
		{"no number", name, b64(hex + ":now"), key, false},
		{"too large a number", name, b64(hex + ":99999999999999999999"), key, false},
		{"nothing signed", name, b64(":1700000000000"), key, false},
		{"nothing", name, "", key, false},
		{"no base64", name, "%" + proof, key, false},
		{"a token that the key has not", b64("0:amqp-cn-1:LTAI5t:CAISstsToken=="), proof, key, false},
		{"the token", b64("0:amqp-cn-1:LTAI5t:CAISstsToken=="), proof, temporary, true},
		{"no token", name, proof, temporary, false},
		{"another token", b64("0:amqp-cn-1:LTAI5t:CAISstsToken="), proof, temporary, false},
	} {
		n, ok := parsePairName(c.user)
		if !ok || n.account != key.Account() {
			t.Errorf("%s: the name is %+v, %v", c.what, n, ok)
		}
		right, off := n.signedBy(c.key, broker.NewSecret(c.secret), time.UnixMilli(ms).Add(-3*time.Minute))
		if right != c.right || right && off != 3*time.Minute {
			t.Errorf("%s: %v, %v off", c.what, right, off)
		}
	}
	for _, user := range []string{"", "MD", "guest", "MDguest", b64("2:amqp-cn-1:LTAI5t"), b64("0:amqp-cn-1"), b64("0::LTAI5t"), b64("0:amqp-cn-1:"), "%" + name, strings.TrimRight(b64("0:a:b"), "=")} {
		if n, ok := parsePairName(user); ok {
			t.Errorf("%q is taken for the name of a pair: %+v", user, n)
		}
	}
}

// The proxy knows the key with which an application signs its own pairs: all its logins are of one user and share a
// connection, wrong ones are refused here in RabbitMQ's words, others are the broker's to decide about.
func TestPairsOfApplications(t *testing.T) {
	const instance, id, secret = "amqp-cn-1", "LTAI5t", "s3cr3t"
	key := AccessKey{Instance: instance, ID: id, Secret: broker.NewSecret(secret)}
	keys := map[string]string{id: secret, "LTAIother": "0ther"}
	refused := "ACCESS_REFUSED - Login was refused using authentication mechanism "
	synctest.Test(t, func(t *testing.T) {
		from := net.Addr(tcpAddr("10.0.0.9:7")) // all of them
		r := &rig{t: t, to: proxytest.ListenMem("broker:5672", 0)}
		r.wrap = func(l net.Listener) net.Listener { return fromListener{l, &from} }
		r.b = proxytest.StartBroker(t, proxytest.BrokerConfig{Listener: r.to, Flavour: proxytest.Alibaba, AccessKeys: keys, VHosts: []string{"/", "shop"}})
		r.start(func(c *Config) {
			c.AuthTTL = time.Hour
			c.Users = []User{{Name: "app", VHosts: []string{"/"}, Broker: key}, {Name: "later", Password: hashOf(t, "local"), Broker: key}}
		})
		signed := func(id, secret string, off time.Duration) proxytest.ClientConfig {
			user, password := proxytest.Sign(instance, id, secret, time.Now().Add(off))
			return proxytest.ClientConfig{User: user, Password: password}
		}
		passwords := make(map[string]bool)
		for i := range 200 {
			in := signed(id, secret, time.Duration(i%29-14)*time.Minute)
			in.Mechanism = []string{"PLAIN", "AMQPLAIN"}[i%2]
			passwords[in.Password] = true
			c := r.client(in)
			r.must(c.Publish(1, "", "q", nil))
			r.must(c.Close())
			time.Sleep(101 * time.Millisecond)
		}
		if n := r.b.Counts().Logins; n != 1 || len(passwords) != 200 {
			t.Errorf("%d logins at the broker for 200 with %d pairs, want one", n, len(passwords))
		}
		if st := r.s.Stats(); len(st.Pools) != 1 || st.Pools[0].User != "app" || st.LocalOK != 200 {
			t.Errorf("pools are %+v, %d logins were found right; want all in that of the first user with the key", st.Pools, st.LocalOK)
		}
		in := signed(id, secret, 0)
		in.VHost = "shop"
		_, err := r.login(in)
		r.hears(err, amqp.NotAllowed, "access to vhost 'shop' refused for user 'app'")

		seen := r.b.Counts()
		for i, wrong := range []proxytest.ClientConfig{signed(id, "s3cr3T", 0), signed(id, secret, pairAge+time.Second), signed(id, secret, -pairAge-time.Second), {User: in.User, Password: secret}} {
			for _, mechanism := range []string{"PLAIN", "AMQPLAIN"} {
				wrong.Mechanism = mechanism
				began := time.Now()
				_, err := r.login(wrong)
				r.hears(err, amqp.AccessRefused, refused+mechanism+". For details see the broker logfile.")
				if waited := time.Since(began); waited > 0 {
					t.Errorf("wrong pair %d took %v: the first ten cost nothing", i, waited)
				}
			}
		}
		if now := r.b.Counts(); now != seen {
			t.Errorf("the broker has seen something of wrong pairs: %+v, before %+v", now, seen)
		}
		if n := strings.Count(r.log(), "signed at another time"); n != 4 {
			t.Errorf("the log tells %d times of a clock that is off, want 4:\n%s", n, r.log())
		}

		// Who guesses waits; who has the key does not, from the same address neither.
		for range failuresFree {
			_, err := r.login(signed(id, "gu3ssed", 0))
			r.hears(err, amqp.AccessRefused, refused)
		}
		done := make(chan time.Duration)
		began := time.Now()
		for range 4 {
			go func() {
				_, _ = r.login(signed(id, "gu3ssed", 0))
				done <- time.Since(began)
			}()
		}
		r.must(r.client(signed(id, secret, 0)).Close())
		if waited := time.Since(began); waited > 0 {
			t.Errorf("with the key it took %v, while others guess", waited)
		}
		var last time.Duration
		for range 4 {
			last = <-done
		}
		if last < 3*failurePause {
			t.Errorf("four guesses took %v, want %v between them", last, failurePause)
		}

		// A key that the proxy has not.
		before := r.b.Counts().Logins
		r.must(r.client(signed("LTAIother", "0ther", 0)).Close())
		if n := r.b.Counts().Logins - before; n != 1 {
			t.Errorf("%d logins at the broker for a key that it alone knows", n)
		}
		r.reload(func(c *Config) { c.UnknownUsers = UnknownRefuse })
		accepted := r.b.Counts().Accepted
		for _, unknown := range []proxytest.ClientConfig{signed("LTAIother", "0ther", 0), signed("LTAInone", "", 0)} {
			_, err = r.login(unknown)
			r.hears(err, amqp.AccessRefused, refused+"PLAIN. For details see the broker logfile.")
		}
		r.must(r.client(signed(id, secret, 0)).Close())
		if n := r.b.Counts().Accepted - accepted; n != 0 {
			t.Errorf("%d connections to the broker for users that are refused", n)
		}
		for _, s := range []string{secret, "gu3ssed", "0ther"} {
			if strings.Contains(r.log(), s) {
				t.Errorf("the log has the secret %q", s)
			}
		}
	})
}

// The name of a temporary key holds its token, a secret: who the client is, is the key.
func TestTokenInANameIsNotShown(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{Flavour: proxytest.Alibaba, AccessKeys: map[string]string{"STS.x": "s3cr3t"}}, nil, func(r *rig) {
		name, password := proxytest.Sign("amqp-cn-1", "STS.x", "s3cr3t", time.Now())
		var secret string
		for _, token := range []string{"CAISaaaa", "CAISbbbb"} { // another one each hour
			secret = base64.StdEncoding.EncodeToString([]byte("0:amqp-cn-1:STS.x:" + token))
			c := r.client(proxytest.ClientConfig{User: secret, Password: password})
			r.must(c.Publish(1, "", "q", nil))
			_, err := r.login(proxytest.ClientConfig{User: secret, Password: "wrong"})
			r.hears(err, amqp.AccessRefused, "Login was refused")
			defer func() { _ = c.Close() }()
		}
		for _, p := range r.s.Stats().Pools {
			if p.User != name {
				t.Errorf("a pool is of %q, want %q", p.User, name)
			}
		}
		if n := r.b.Counts().Logins; n != 2 {
			t.Errorf("%d logins at the broker, want one for each token", n)
		}
		if !strings.Contains(r.log(), name) || strings.Contains(r.log(), secret[:28]) {
			t.Errorf("the log does not name the user, or shows the token:\n%s", r.log())
		}
	})
}

func TestCheckLoginOfAPair(t *testing.T) {
	cfg := DefaultConfig()
	cfg.UnknownUsers = UnknownRefuse
	cfg.Users = []User{{Name: "app", Broker: AccessKey{Instance: "i", ID: "LTAI5t", Secret: broker.NewSecret("s3cr3t")}}}
	for _, c := range []struct {
		id, secret string
		off        time.Duration
		want       string
	}{
		{"LTAI5t", "s3cr3t", 0, ""},
		{"LTAI5t", "s3cr3T", 0, `the pair is not signed with the AccessKey of user "app"`},
		{"LTAI5t", "s3cr3t", time.Hour, "the pair was signed at another time"},
		{"LTAIother", "s3cr3t", 0, "no user of that name"},
	} {
		user, password := proxytest.Sign("i", c.id, c.secret, time.Now().Add(c.off))
		kept, _, err := CheckLogin(t.Context(), cfg, user, broker.NewSecret(password), nil, false)
		if c.want == "" && (err != nil || !kept) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s, %s, %v: %v, %v, want %q", c.id, c.secret, c.off, kept, err, c.want)
		}
	}
}

package proxy

import (
	"strings"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// Pairs are those that the cloud's own client library makes of the same key at the same moment.
func TestPairsOfAnAccessKey(t *testing.T) {
	for _, c := range []struct {
		key        AccessKey
		ms         int64
		user, pass string
	}{
		{AccessKey{"amqp-cn-1", "LTAI5t", broker.NewSecret("s3cr3t"), broker.Secret{}}, 1700000000000,
			"MDphbXFwLWNuLTE6TFRBSTV0", "MTgwOTg5NjA5NjVEQUE3MzZBODkxRjY2NUFENTQyOTRBQTkwQzkxOToxNzAwMDAwMDAwMDAw"},
		{AccessKey{"1880770869023420", "LTAIbackup", broker.NewSecret("aVeryLongAccessKeySecret0123456789"), broker.NewSecret("CAISstsToken==")}, 1612345678901,
			"MDoxODgwNzcwODY5MDIzNDIwOkxUQUliYWNrdXA6Q0FJU3N0c1Rva2VuPT0=", "MDlBOTA1ODFEOEZGRUQ4RTdERkQ2QzJBMjMzMjUxQjI1NkVERDVCOToxNjEyMzQ1Njc4OTAx"},
	} {
		got := c.key.at(time.UnixMilli(c.ms))
		if got.User != c.user || got.Secret.Reveal() != c.pass {
			t.Errorf("%s: %s and %s, want %s and %s", c.key.ID, got.User, got.Secret.Reveal(), c.user, c.pass)
		}
	}
}

// Clients of one user share connections, though the broker is sent another pair at each dial; a changed
// key counts for the next.
func TestAccessKey(t *testing.T) {
	key := AccessKey{Instance: "amqp-cn-1", ID: "LTAI5t", Secret: broker.NewSecret("s3cr3t")}
	withBroker(t, proxytest.BrokerConfig{Flavour: proxytest.Alibaba, AccessKeys: map[string]string{"LTAI5t": "s3cr3t"}}, func(c *Config) {
		c.Users = []User{{Name: "shop", Password: hashOf(t, "local"), Broker: key}}
	}, func(r *rig) {
		var all []*proxytest.Client
		for range 20 {
			c := r.client(asShop)
			r.must(c.Publish(1, "", "q", nil))
			all = append(all, c)
			time.Sleep(time.Second)
		}
		if n := r.b.Counts().Logins; n != 1 {
			t.Errorf("%d logins at the broker for 20 clients, want one", n)
		}
		time.Sleep(time.Hour) // the first pair is out of date
		own := r.client(asShop)
		_, err := own.DeclareQueue(1, "own", proxytest.Exclusive)
		r.must(err)
		r.must(own.Close())
		if n := r.b.Counts().Logins; n < 2 {
			t.Errorf("%d logins at the broker, want one more for a connection of its own", n)
		}
		// The wrong key, which the one before stands in for as long as it is good.
		wrong := key
		wrong.Secret = broker.NewSecret("n3w")
		r.reload(func(c *Config) { c.Users = []User{{Name: "shop", Password: hashOf(t, "local"), Broker: wrong}} })
		for _, p := range r.s.allPools() {
			p.retireAll()
		}
		r.must(r.client(asShop).Close())
		for _, c := range all {
			_ = c.Close()
		}
		for _, secret := range []string{"s3cr3t", "n3w"} {
			if strings.Contains(r.log(), secret) {
				t.Errorf("the log has the secret %q", secret)
			}
		}
	})
}

// The broker is shown the proxy's certificate where a user is to be proved by it.
func TestCertificateForTheBroker(t *testing.T) {
	withScript(t, 0, func(c *Config) {
		c.Users = []User{{Name: "shop", Password: hashOf(t, "local"), Broker: Certificate{"prod-shop"}}}
	}, func(r *rig) {
		// A broker that does not offer it.
		c := r.connect(asShop)
		done := make(chan error, 1)
		go func() { done <- c.Start() }()
		p := r.sc.Accept()
		p.ExpectHeader()
		p.Send(amqp.AppendStart(nil, proxytest.RabbitMQProperties("3.10.8"), "PLAIN AMQPLAIN", "en_US"))
		r.hears(<-done, amqp.AccessRefused, "Login was refused using authentication mechanism PLAIN. For details see the broker logfile.")
		_ = c.Hangup()
		if !strings.Contains(r.log(), "the broker offers PLAIN AMQPLAIN") {
			t.Errorf("the log does not tell why:\n%s", r.log())
		}
		time.Sleep(2 * refusedFor)
		c = r.connect(asShop)
		go func() { done <- c.Start() }()
		p = r.sc.Accept()
		p.ExpectHeader()
		p.Send(amqp.AppendStart(nil, proxytest.RabbitMQProperties("3.10.8"), "PLAIN EXTERNAL", "en_US"))
		f := p.Expect(amqp.ConnectionStartOk)
		a := amqp.ReadArgs(f)
		a.LongStr()
		if mechanism, response := string(a.Str()), a.LongStr(); mechanism != "EXTERNAL" || len(response) != 0 {
			t.Errorf("the broker is sent %s %q", mechanism, response)
		}
		p.Send(amqp.AppendTune(nil, amqp.ConnectionTune, proxytest.DefaultTune))
		r.must(<-done)
		_ = c.Hangup()
	})
}

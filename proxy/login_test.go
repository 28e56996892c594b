package proxy

import (
	"context"
	"fmt"
	"io"
	"testing"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// kept is an authenticator that decides itself, and a provider of passwords that change: what a
// client sends, who it is, and what the broker is sent are three things.
type kept struct {
	passwords map[string]string // of the proxy's own users
	pairs     map[string]*pairs
}

func (kept) mechanisms(*client) string { return mechanisms }

func (k kept) identify(_ *client, c claim) (login, *amqp.Error) {
	if k.passwords[c.user] == "" || c.secret != broker.NewSecret(k.passwords[c.user]) {
		return login{}, broker.RefusedLogin(c.mechanism)
	}
	return login{principal{c.user}, k.pairs[c.user]}, nil
}

// pairs has each dial log in with a user of its own.
type pairs struct {
	b     *proxytest.Broker
	name  string
	dials int
}

func (p *pairs) next(context.Context) (broker.Credential, error) {
	p.dials++
	c := broker.Credential{User: fmt.Sprint(p.name, p.dials), Secret: broker.NewSecret(fmt.Sprint("secret", p.dials))}
	p.b.SetUser(c.User, c.Secret.Reveal())
	return c, nil
}

func (p *pairs) digest(w io.Writer) { _, _ = io.WriteString(w, p.name) }
func (p *pairs) renewed() bool      { return false }

// Clients of one principal share connections though the broker is sent another secret at each dial;
// those of another do not; and a wrong password never reaches the broker.
func TestThreeThingsOfALogin(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		k := kept{map[string]string{"shop": "a", "till": "b"}, map[string]*pairs{}}
		for user := range k.passwords {
			k.pairs[user] = &pairs{b: r.b, name: user + "-at-broker-"}
		}
		r.s.auth = k
		_, err := r.login(proxytest.ClientConfig{User: "shop", Password: "b"})
		r.hears(err, amqp.AccessRefused, "using authentication mechanism PLAIN")
		if n := r.s.Stats().UpstreamsTotal; n != 0 || k.pairs["shop"].dials != 0 {
			t.Errorf("%d connections to the broker for a wrong password", n)
		}
		var all []*proxytest.Client
		for range 3 {
			for user, password := range k.passwords {
				c := r.client(proxytest.ClientConfig{User: user, Password: password})
				_, err := c.DeclareQueue(1, user, 0)
				r.must(err)
				all = append(all, c)
			}
		}
		for _, p := range r.s.Stats().Pools {
			if k.pairs[p.User] == nil || p.Upstreams != 1 || p.Channels != 3 || k.pairs[p.User].dials != 1 {
				t.Errorf("pool %+v: want one upstream for three clients, of the principal", p)
			}
		}
		// A connection more is another dial, with another secret.
		shop := r.client(proxytest.ClientConfig{User: "shop", Password: "a"})
		_, err = shop.DeclareQueue(1, "own", proxytest.Exclusive)
		r.must(err)
		if n := k.pairs["shop"].dials; n != 2 {
			t.Errorf("the credentials were asked for %d times, want once for each dial", n)
		}
		all = append(all, shop)
		for _, c := range all {
			r.must(c.Close())
		}
	})
}

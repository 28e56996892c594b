package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// withCertificates is a test of a proxy whose listener takes names from certificates; certs has one of
// the authority for each common name that is asked for.
func withCertificates(t *testing.T, by ExternalUser, users func(*testing.T) []User, test func(r *rig, login func(cn, mechanism, user, password string) (*proxytest.Client, error))) {
	var ca *proxytest.Certs
	withTLS(t, func() *ServerTLS {
		ca = newCerts(t)
		s := serverOf(t, ca, "localhost")
		s.ClientCert, s.ClientCAs, s.External = ClientCertOptional, ca.Pool, by
		return s
	}, func(r *rig) {
		r.b.SetUser("prod-shop", "s3cr3t")
		r.reload(func(c *Config) { c.Users = users(t) })
		test(r, func(cn, mechanism, user, password string) (*proxytest.Client, error) {
			cfg := ca.Client()
			if cn != "" {
				pair := issued(t, ca, x509.Certificate{Subject: pkix.Name{CommonName: cn, Organization: []string{"Acme"}}, DNSNames: []string{cn + ".example", "other.example"}})
				cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
			}
			return r.login(proxytest.ClientConfig{TLS: cfg, Mechanism: mechanism, User: user, Password: password})
		})
	})
}

// A certificate lets its user in, and nobody else; the mechanism is not there for clients without one.
func TestExternal(t *testing.T) {
	withCertificates(t, ExternalCN, func(t *testing.T) []User {
		certified := user(t, "shop", "local", "prod-shop", "s3cr3t")
		certified.Password, certified.Certificate = User{}.Password, "till-7"
		return []User{certified, user(t, "named", "local", "prod-shop", "s3cr3t")}
	}, func(r *rig, login func(cn, mechanism, user, password string) (*proxytest.Client, error)) {
		for cn, who := range map[string]string{"till-7": "shop", "named": "named"} {
			c, err := login(cn, "EXTERNAL", "whatever it says", "of itself")
			r.must(err)
			if l := r.s.ListClients(); len(l) != 1 || l[0].User != who {
				r.t.Errorf("the certificate of %s logs in as %+v, want %s", cn, l, who)
			}
			if !strings.Contains(c.Mechanisms, "EXTERNAL") {
				r.t.Errorf("%s is offered %q", cn, c.Mechanisms)
			}
			r.must(c.OpenChannel(1))
			_, err = c.DeclareQueue(1, "q", 0)
			r.must(err)
			r.must(c.Close())
			synctest.Wait() // it is off the list
		}
		// Without a certificate there is no such mechanism, and one that names nobody lets nobody in; "shop" names
		// nobody, since that user's certificate is another one.
		for _, cn := range []string{"", "stranger", "shop"} {
			_, err := login(cn, "EXTERNAL", "shop", "local")
			r.hears(err, amqp.AccessRefused, "ACCESS_REFUSED - Login was refused using authentication mechanism EXTERNAL. For details see the broker logfile.")
			c, err := login(cn, "PLAIN", "named", "local")
			r.must(err)
			if offered := strings.Contains(c.Mechanisms, "EXTERNAL"); offered != (cn != "") {
				r.t.Errorf("%q is offered %q", cn, c.Mechanisms)
			}
			r.must(c.Close())
		}
		// A user without a hash has no password.
		_, err := login("", "PLAIN", "shop", "local")
		r.hears(err, amqp.AccessRefused, "using authentication mechanism PLAIN")
		// A password is as good as it was for who has a certificate.
		c, err := login("till-7", "PLAIN", "named", "local")
		r.must(err)
		r.must(c.Close())
	})
}

// Where no listener takes names from certificates, there is no such mechanism.
func TestExternalThatIsOff(t *testing.T) {
	withCertificates(t, ExternalOff, func(t *testing.T) []User { return []User{user(t, "shop", "local", "prod-shop", "s3cr3t")} },
		func(r *rig, login func(cn, mechanism, user, password string) (*proxytest.Client, error)) {
			_, err := login("shop", "EXTERNAL", "shop", "local")
			r.hears(err, amqp.CommandInvalid, "unknown authentication mechanism 'EXTERNAL'")
		})
}

// What RabbitMQ says of a certificate that is not taken: the broker refuses the secret kept here.
func TestExternalIsRefused(t *testing.T) {
	withCertificates(t, ExternalCN, func(t *testing.T) []User {
		return []User{{Name: "shop", Certificate: "till-7", Broker: Password{"prod-shop", broker.NewSecret("wrong")}}}
	}, func(r *rig, login func(cn, mechanism, user, password string) (*proxytest.Client, error)) {
		_, err := login("till-7", "EXTERNAL", "", "")
		r.hears(err, amqp.AccessRefused, "ACCESS_REFUSED - Login was refused using authentication mechanism EXTERNAL. For details see the broker logfile.")
		// Users may go between connection.start and start-ok, and mechanisms at a reload.
		r.reload(func(c *Config) { c.Users = nil })
		_, err = login("till-7", "EXTERNAL", "", "")
		r.hears(err, amqp.AccessRefused, "using authentication mechanism EXTERNAL")
	})
}

func TestNamesInCertificates(t *testing.T) {
	ca := newCerts(t)
	uri, _ := url.Parse("spiffe://acme/shop")
	rdn := func(typ asn1.ObjectIdentifier, v string) pkix.AttributeTypeAndValue {
		return pkix.AttributeTypeAndValue{Type: typ, Value: v}
	}
	leaf := func(template x509.Certificate) *x509.Certificate { return issued(t, ca, template).Leaf }
	whole := leaf(x509.Certificate{Subject: pkix.Name{CommonName: "sh,op", Organization: []string{"Acme"}, Country: []string{"DE"}},
		DNSNames: []string{"a.example", "b.example"}, EmailAddresses: []string{"shop@acme.example"}, URIs: []*url.URL{uri}})
	bare := leaf(x509.Certificate{Subject: pkix.Name{Organization: []string{"Acme"}}})
	two := leaf(x509.Certificate{Subject: pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{rdn(commonName, "admin"), rdn(commonName, "shop")}}})
	for _, c := range []struct {
		by   ExternalUser
		in   *x509.Certificate
		want string
	}{
		{ExternalCN, whole, "sh,op"}, {ExternalDN, whole, `CN=sh\,op,O=Acme,C=DE`}, {ExternalSANDNS, whole, "a.example"},
		{ExternalSANURI, whole, "spiffe://acme/shop"}, {ExternalSANEmail, whole, "shop@acme.example"}, {ExternalOff, whole, ""},
		{ExternalCN, bare, ""}, {ExternalDN, bare, "O=Acme"}, {ExternalSANDNS, bare, ""}, {ExternalSANURI, bare, ""}, {ExternalSANEmail, bare, ""},
		{ExternalCN, two, ""},
	} {
		if got := c.by.nameIn(c.in); got != c.want {
			t.Errorf("%s of %v is %q, want %q", c.by, c.in.Subject, got, c.want)
		}
	}
	if ExternalUser("common_name").valid() {
		t.Error("any word is taken")
	}
}

func TestCertificatesThatAreWrong(t *testing.T) {
	for want, users := range map[string][]User{
		"has the certificate of one before": {{Name: "a", Certificate: "x", Broker: Password{}}, {Name: "b", Certificate: "x", Broker: Password{}}},
		"is the name of another":            {{Name: "a", Certificate: "b", Broker: Password{}}, {Name: "b", Broker: Password{}}},
	} {
		cfg := DefaultConfig()
		cfg.Users = users
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	l := Listener{Address: "127.0.0.1:0", Mode: PoolAuto, TLS: serverOf(t, newCerts(t), "localhost")}
	l.TLS.External = ExternalCN
	cfg := DefaultConfig()
	cfg.Listeners = []Listener{l}
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "client_cert") {
		t.Errorf("names of certificates that nobody is asked for: %v", err)
	}
}

// SASL EXTERNAL: who a client is by its certificate, which TLS has verified. It is offered to clients that
// have shown one; whether it names a user that the proxy keeps, they hear as RabbitMQ would say it.

package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"log/slog"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
)

const external = "EXTERNAL"

// ExternalUser says what of a client's certificate is its name.
type ExternalUser string

const (
	ExternalOff      ExternalUser = "off" // EXTERNAL is not offered
	ExternalCN       ExternalUser = "cn"
	ExternalDN       ExternalUser = "dn" // RFC 4514, as RabbitMQ writes it: CN=shop,O=Acme
	ExternalSANDNS   ExternalUser = "san_dns"
	ExternalSANURI   ExternalUser = "san_uri"
	ExternalSANEmail ExternalUser = "san_email"
)

func (e ExternalUser) off() bool { return e == "" || e == ExternalOff }

func (e ExternalUser) valid() bool {
	switch e {
	case "", ExternalOff, ExternalCN, ExternalDN, ExternalSANDNS, ExternalSANURI, ExternalSANEmail:
		return true
	}
	return false
}

var commonName = asn1.ObjectIdentifier{2, 5, 4, 3}

// nameIn is a certificate's name, "" for none. Of alternative names the first counts, as for
// RabbitMQ; of two common names none, since others may read the other one.
func (e ExternalUser) nameIn(cert *x509.Certificate) string {
	first := func(names []string) string {
		if len(names) == 0 {
			return ""
		}
		return names[0]
	}
	switch e {
	case ExternalCN, ExternalDN:
		var names pkix.RDNSequence
		if rest, err := asn1.Unmarshal(cert.RawSubject, &names); err != nil || len(rest) > 0 {
			return ""
		}
		if e == ExternalDN {
			return names.String()
		}
		n := 0
		for _, set := range names {
			for _, a := range set {
				if a.Type.Equal(commonName) {
					n++
				}
			}
		}
		if n == 1 {
			return cert.Subject.CommonName
		}
	case ExternalSANDNS:
		return first(cert.DNSNames)
	case ExternalSANURI:
		if len(cert.URIs) > 0 {
			return cert.URIs[0].String()
		}
	case ExternalSANEmail:
		return first(cert.EmailAddresses)
	}
	return ""
}

// certificate is the client's, where it is verified and may stand for a user; else nil. The TLS handshake is over.
func (c *client) certificate() (*x509.Certificate, ExternalUser) {
	conn, ok := c.conn.(*tls.Conn)
	if !ok || !c.lst.takesExternal() {
		return nil, ExternalOff
	}
	state := conn.ConnectionState()
	if len(state.VerifiedChains) == 0 {
		return nil, ExternalOff
	}
	return state.PeerCertificates[0], c.lst.tls.Load().External
}

// takesExternal reports whether EXTERNAL is a mechanism here at all. As RabbitMQ's it is refused like a wrong
// password where there is no certificate for it, or that of no user.
func (l *listener) takesExternal() bool {
	t := l.tls.Load()
	return t != nil && !t.External.off()
}

// certified is the user that the client's certificate names; nil: none.
func (c *client) certified() *keptUser {
	d := c.s.users.Load()
	cert, by := c.certificate()
	if d == nil || cert == nil {
		return nil
	}
	name := by.nameIn(cert)
	if l := d.certificates[name]; l != nil && name != "" {
		return l
	}
	c.log(slog.LevelDebug, "the client's certificate names no user", "name", name, "external_user", string(by))
	return nil
}

// identifyExternal is the login of a client by its certificate; what it says of itself is not looked at.
func (c *client) identifyExternal() (login, *amqp.Error) {
	l := c.certified()
	if l == nil { // it was not offered, or a reload came since
		c.env.n.localRefused.Add(1)
		return login{}, broker.RefusedLogin(external)
	}
	c.env.n.localOK.Add(1)
	return login{principal{l.Name}, l.stored}, nil
}

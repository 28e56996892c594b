// Who a client is, what proves it, and what the broker is sent for it. Where the broker decides,
// what the client sent is all three; where the proxy does, they are three things.

package proxy

import (
	"bytes"
	"context"
	"io"
	"strings"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
)

// principal is who a client is: what pools, limits, offences, logs and metrics are by.
type principal struct{ user string }

// claim is what a client sends to prove who it is.
type claim struct {
	mechanism string
	user      string
	secret    broker.Secret
}

// login is a principal with what the broker is sent for it. Clients that have the same one, ==, are of one
// account and may share connections.
type login struct {
	principal
	sends credentials
}

// credentials are what the broker is sent, asked for at each dial: they may differ from one to the
// next. Values that are == are the same credentials.
type credentials interface {
	next(ctx context.Context) (broker.Credential, error)
	// digest writes what tells these credentials from others.
	digest(w io.Writer)
	// renewed: the client renews them, with connection.update-secret, on connections of its own.
	renewed() bool
}

// authenticator says who a client is and what the broker is sent for it.
type authenticator interface {
	// mechanisms are the SASL mechanisms that connection.start offers to a client, as words.
	mechanisms(c *client) string
	// identify takes a client's claim. It may wait, until the client is gone.
	identify(c *client, said claim) (login, *amqp.Error)
}

// brokerDecides is how the users of the broker are told apart: it believes nobody, the broker is sent what the client
// sent, and its verdict on that is the proof.
type brokerDecides struct{}

const mechanisms = "PLAIN AMQPLAIN"

func (brokerDecides) identify(_ *client, said claim) (login, *amqp.Error) {
	return login{principalOf(said.user), asSent{said.user, said.secret}}, nil
}

// asSent are credentials that a client sent.
type asSent struct {
	user   string
	secret broker.Secret
}

func (a asSent) next(context.Context) (broker.Credential, error) {
	return broker.Credential{User: a.user, Secret: a.secret}, nil
}

func (a asSent) digest(w io.Writer) {
	// Neither has a NUL that counts: a broker takes none.
	_, _ = io.WriteString(w, a.user+"\x00"+a.secret.Reveal()+"\x00")
}

func (a asSent) renewed() bool { return isBearerToken(a.secret.Reveal()) }

// isBearerToken reports whether a secret looks like a JSON Web Token (RFC 7519): three parts
// in base64url, the first a JSON object.
func isBearerToken(secret string) bool {
	return strings.HasPrefix(secret, "eyJ") && strings.Count(secret, ".") == 2
}

// parseResponse reads a SASL response as RabbitMQ does. known: the mechanism is one of ours; ok: it decodes.
func parseResponse(mechanism string, response []byte) (c claim, ok, known bool) {
	c.mechanism = mechanism
	switch mechanism {
	case "PLAIN": // RFC 4616: authzid NUL authcid NUL passwd; RabbitMQ takes no authzid, and no NUL in the password
		user, secret, ok := bytes.Cut(bytes.TrimPrefix(response, []byte{0}), []byte{0})
		if !ok || response[0] != 0 || bytes.IndexByte(secret, 0) >= 0 {
			return c, false, true
		}
		c.user, c.secret = string(user), broker.NewSecret(string(secret))
		return c, true, true
	case "AMQPLAIN":
		if amqp.CheckTable(response) != "" {
			return c, false, true
		}
		userType, user, ok1 := amqp.Lookup(response, "LOGIN")
		secretType, secret, ok2 := amqp.Lookup(response, "PASSWORD")
		if !ok1 || !ok2 || !isText(userType) || !isText(secretType) || userType == 'x' && secretType == 'x' ||
			bytes.IndexByte(user, 0) >= 0 || bytes.IndexByte(secret, 0) >= 0 {
			return c, false, true
		}
		c.user, c.secret = string(user), broker.NewSecret(string(secret))
		return c, true, true
	}
	return c, false, false
}

// isText reports whether a field's type is a long string or a byte array.
func isText(typ byte) bool { return typ == 'S' || typ == 'x' }

// What the broker is sent for a user of the proxy's own, where it is not just a password: a pair made
// of an AccessKey at each dial, or the certificate that the proxy shows.

package proxy

import (
	"context"
	"crypto/hmac"
	"crypto/sha1" // the cloud's own scheme
	"encoding/base64"
	"encoding/hex"
	"strconv"
	"strings"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
)

// AccessKey is one of Alibaba Cloud's, for ApsaraMQ for RabbitMQ: the name is made of instance and key, the
// password signs the time, and is another one each millisecond.
type AccessKey struct {
	Instance, ID  string
	Secret, Token broker.Secret // Token: of temporary keys (STS), else empty
}

// Account is instance and key.
func (k AccessKey) Account() string { return "0:" + k.Instance + ":" + k.ID }

// Credential is the pair of this moment.
func (k AccessKey) Credential(context.Context) (broker.Credential, error) {
	return k.at(time.Now()), nil
}

// at is the pair of a moment: base64(0:INSTANCE:ID[:TOKEN]) and base64(HEX(HMAC-SHA1(MS, SECRET)):MS),
// where the time in milliseconds is the key and the secret the message.
func (k AccessKey) at(t time.Time) broker.Credential {
	name := k.Account()
	if token := k.Token.Reveal(); token != "" {
		name += ":" + token
	}
	b := base64.StdEncoding
	return broker.Credential{User: b.EncodeToString([]byte(name)), Secret: broker.NewSecret(b.EncodeToString([]byte(k.proof(t))))}
}

// proof is the password of a moment before its base64.
func (k AccessKey) proof(t time.Time) string {
	ms := strconv.FormatInt(t.UnixMilli(), 10)
	mac := hmac.New(sha1.New, []byte(ms))
	mac.Write([]byte(k.Secret.Reveal()))
	return strings.ToUpper(hex.EncodeToString(mac.Sum(nil))) + ":" + ms
}

// Certificate is the one that the proxy shows the broker, by SASL EXTERNAL; it proves User.
type Certificate struct{ User string }

// Account is the user.
func (c Certificate) Account() string { return "certificate:" + c.User }

// Credential is that the certificate counts.
func (c Certificate) Credential(context.Context) (broker.Credential, error) {
	return broker.Credential{User: c.User, External: true}, nil
}

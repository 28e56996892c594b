// Pairs of name and password that applications make of an AccessKey themselves: another password at each
// login, and the key is the proxy's too, with a user. The signature is held against that key here, and whoever
// has signed is that user: their logins are one, whatever the password.

package proxy

import (
	"bytes"
	"crypto/hmac"
	"encoding/base64"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
)

// pairAge is how far the time that a pair is signed with may be from this clock's.
const pairAge = 15 * time.Minute

// pairName is what the name of a pair says.
type pairName struct {
	account string // as AccessKey.Account
	token   string // "": the key is not a temporary one
}

// parsePairName reads the name that is made of an AccessKey. False: it is some other name.
func parsePairName(user string) (n pairName, ok bool) {
	if !strings.HasPrefix(user, "MD") { // "0" in base64: no other name costs more than this
		return n, false
	}
	name, err := base64.StdEncoding.DecodeString(user)
	if err != nil {
		return n, false
	}
	parts := strings.SplitN(string(name), ":", 4)
	if len(parts) < 3 || parts[0] != "0" || parts[1] == "" || parts[2] == "" {
		return n, false
	}
	n.account = strings.Join(parts[:3], ":")
	if len(parts) == 4 {
		n.token = parts[3]
	}
	return n, true
}

// principalOf is who a client is by the name that it sends. The name of a temporary AccessKey has the key's
// token in it, which is a secret and another one each hour: who it is, is the key.
func principalOf(user string) principal {
	if n, ok := parsePairName(user); ok && n.token != "" {
		return principal{base64.StdEncoding.EncodeToString([]byte(n.account))}
	}
	return principal{user}
}

// signedBy reports whether the pair is signed with the key, and how far its time is from now. It takes as
// long for whatever is wrong with the pair.
func (n pairName) signedBy(k AccessKey, secret broker.Secret, now time.Time) (right bool, off time.Duration) {
	said, err := base64.StdEncoding.DecodeString(secret.Reveal())
	_, stamp, _ := strings.Cut(string(said), ":")
	ms, notTime := strconv.ParseInt(stamp, 10, 64)
	at := time.UnixMilli(ms)
	signed := hmac.Equal(said, []byte(k.proof(at)))
	sameToken := hmac.Equal([]byte(n.token), []byte(k.Token.Reveal()))
	return err == nil && notTime == nil && signed && sameToken, now.Sub(at).Abs()
}

// pair is the user whose AccessKey the name of a pair is made of. signed: it is such a name, and the proxy
// decides about it; nobody: of a key that it has not.
func (d *directory) pair(user string) (l *keptUser, n pairName, signed bool) {
	if len(d.keys) == 0 {
		return nil, n, false
	}
	n, ok := parsePairName(user)
	if !ok {
		return nil, n, false
	}
	l = d.keys[n.account]
	return l, n, l != nil || d.refuse
}

// provesPair holds a pair against the AccessKey of l. Nil: it is signed with it, a moment ago. A right one is
// let in at once, a wrong one waits as wrong passwords do. l nil: there is no such key.
func (s *Server) provesPair(c *client, said claim, l *keptUser, n pairName) *amqp.Error {
	var k AccessKey
	if l != nil {
		k = l.Broker.(AccessKey)
	}
	signed, off := n.signedBy(k, said.secret, time.Now())
	if signed && l != nil && off <= pairAge {
		return nil
	}
	if signed && l != nil {
		c.log(slog.LevelInfo, "client refused: its AccessKey pair was signed at another time", "off", off.Round(time.Second), "at_most", pairAge)
	}
	if e := s.fails(c, n.account); e != nil {
		return e
	}
	return broker.RefusedLogin(said.mechanism)
}

// fails has a client wait whose login was found wrong here, for as long as its address and user must.
func (s *Server) fails(c *client, user string) *amqp.Error {
	c.props = bytes.Clone(c.props) // what is read now comes into the same buffer
	gone, stop := c.watch()
	defer stop()
	t, e := s.strangersTurn(c, gone, user)
	if e == nil {
		t.leave(true)
	}
	return e
}

// Tokens as a user's secret at the broker: fetched from their issuer with a client's own credentials
// (OAuth 2.0, RFC 6749 section 4.4), one for each user, in good time before the last one ends; connections
// that stand are told of the new one with connection.update-secret.

package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
	"github.com/amqproxysvc/amqproxysvc/proxy/wait"
)

const (
	// tokenTimeout bounds the fetching of a token.
	tokenTimeout = 10 * time.Second
	// tokenRetry is how long an issuer that gave none is not asked again.
	tokenRetry = time.Second
	// tokenLife is taken for that of a token whose issuer does not tell.
	tokenLife = 5 * time.Minute
)

// OAuth2 is a client of an issuer of tokens that the broker takes.
type OAuth2 struct {
	User     string // is sent as the name; a broker may take another out of the token
	TokenURL string
	ClientID string
	Secret   broker.Secret
	Scope    string // as words; "": the issuer's default
}

// Account is the client at its issuer.
func (o OAuth2) Account() string {
	return "token:" + o.User + " " + o.ClientID + " " + o.TokenURL + " " + o.Scope
}

// Credential fetches a token; nothing is kept of it here, see tokens.
func (o OAuth2) Credential(ctx context.Context) (broker.Credential, error) {
	t, _, err := o.fetch(ctx)
	return broker.Credential{User: o.User, Secret: t}, err
}

// tokenClient asks issuers. It follows nobody elsewhere: the secret is for the issuer alone.
var tokenClient = &http.Client{Timeout: tokenTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

// fetch gets a token and when it ends.
func (o OAuth2) fetch(ctx context.Context) (broker.Secret, time.Time, error) {
	ctx, cancel := context.WithTimeout(context.WithValue(ctx, oauth2.HTTPClient, tokenClient), tokenTimeout)
	defer cancel()
	c := clientcredentials.Config{ClientID: o.ClientID, ClientSecret: o.Secret.Reveal(), TokenURL: o.TokenURL, Scopes: strings.Fields(o.Scope)}
	t, err := c.Token(ctx)
	if err != nil {
		return broker.Secret{}, time.Time{}, &noToken{o.TokenURL, reasonOf(err)}
	}
	if strings.ContainsRune(t.AccessToken, 0) || len(t.AccessToken) > 64<<10 {
		return broker.Secret{}, time.Time{}, &noToken{o.TokenURL, "what it gave is no token"}
	}
	ends := t.Expiry
	if ends.IsZero() {
		ends = time.Now().Add(tokenLife)
	}
	return broker.NewSecret(t.AccessToken), ends, nil
}

// noToken is an issuer that gave no token. What it said is not repeated but for a word: it may hold secrets.
type noToken struct{ from, why string }

func (e *noToken) Error() string { return fmt.Sprintf("no token from %s: %s", e.from, e.why) }

func isNoToken(err error) bool {
	var e *noToken
	return errors.As(err, &e)
}

func reasonOf(err error) string {
	var said *oauth2.RetrieveError
	switch {
	case errors.As(err, &said) && said.ErrorCode != "" && len(said.ErrorCode) < 64 && !strings.ContainsFunc(said.ErrorCode, notPlain):
		return said.ErrorCode
	case errors.As(err, &said) && said.Response != nil:
		return said.Response.Status
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	}
	var cause interface{ Unwrap() error } // *url.Error: what is wrong with the way there
	if errors.As(err, &cause) && cause.Unwrap() != nil && !strings.HasPrefix(err.Error(), "oauth2: cannot parse") {
		return cause.Unwrap().Error()
	}
	return "its answer cannot be understood"
}

func notPlain(r rune) bool { return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '_' }

// tokens are those of one user, in a stored of theirs.
type tokens struct {
	mu       lock.Mutex[lock.Leaf] // a leaf
	of       OAuth2
	token    broker.Secret
	ends     time.Time
	renewAt  time.Time
	failed   error // why there is none, until renewAt
	fetching wait.Bound
	busy     bool // a renewal is under way
}

func newTokens() *tokens {
	t := &tokens{}
	t.fetching.Resize(1)
	return t
}

// get is a token that is good, fetched where there is none: one asks, others wait for it.
func (t *tokens) get(ctx context.Context, o OAuth2) (broker.Secret, error) {
	if token, err := t.known(o); err != nil || token != (broker.Secret{}) {
		return token, err
	}
	if err := t.fetching.Acquire(ctx, nil); err != nil {
		return broker.Secret{}, err
	}
	defer t.fetching.Release()
	if token, err := t.known(o); err != nil || token != (broker.Secret{}) {
		return token, err
	}
	return t.renew(ctx, o)
}

// known is the token that is good still, or why there is none for now; neither: it is to be fetched.
func (t *tokens) known(o OAuth2) (broker.Secret, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	switch {
	case t.of != o:
		return broker.Secret{}, nil
	case now.Before(t.ends):
		return t.token, nil
	case t.failed != nil && now.Before(t.renewAt):
		return broker.Secret{}, t.failed
	}
	return broker.Secret{}, nil
}

// renew fetches a token. The one before stays where none comes.
func (t *tokens) renew(ctx context.Context, o OAuth2) (broker.Secret, error) {
	began := time.Now()
	token, ends, err := o.fetch(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		if t.of != o {
			t.of, t.token, t.ends = o, broker.Secret{}, time.Time{}
		}
		t.failed, t.renewAt = err, time.Now().Add(max(tokenRetry, time.Until(t.ends)/8))
		return broker.Secret{}, err
	}
	t.of, t.token, t.ends, t.failed = o, token, ends, nil
	t.renewAt = began.Add(ends.Sub(began) * 8 / 10)
	return token, nil
}

// due reports whether the caller is to renew the token; it then calls renewed.
func (t *tokens) due(o OAuth2) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.busy || t.token == (broker.Secret{}) || t.of == o && time.Now().Before(t.renewAt) {
		return false
	}
	t.busy = true
	return true
}

func (t *tokens) renewed() {
	t.mu.Lock()
	t.busy = false
	t.mu.Unlock()
}

// newest is the token in force; empty: none.
func (t *tokens) newest() (token broker.Secret, ends time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.token, t.ends
}

// tokens are those of all users who have one.
func (d *directory) tokens() (all []TokenStats) {
	if d == nil || !d.expiring {
		return nil
	}
	for name, l := range d.users {
		if token, ends := l.stored.tokens.newest(); token != (broker.Secret{}) {
			all = append(all, TokenStats{name, ends})
		}
	}
	return all
}

// tendTokens renews those of users who have connections, and tells these.
func (s *Server) tendTokens(ups []*upstream) {
	for _, u := range ups {
		c := u.stored()
		if c == nil {
			continue
		}
		o, ok := c.provider().(OAuth2)
		if !ok {
			continue
		}
		if c.tokens.due(o) {
			s.spawn(func() {
				defer c.tokens.renewed()
				if _, err := c.tokens.renew(s.ctx, o); err != nil && s.ctx.Err() == nil {
					_, ends := c.tokens.newest()
					s.log.Warn("a user's token could not be renewed", "user", c.name, "reason", err, "ends_in", time.Until(ends).Round(time.Second))
				}
			})
		}
		if token, ends := c.tokens.newest(); time.Now().Before(ends) {
			u.renewToken(token)
		}
	}
}

// stored are the credentials that the upstream has logged in with, where the proxy keeps them.
func (u *upstream) stored() *stored {
	if u.account == nil {
		return nil
	}
	return u.account.login.stored()
}

// renewToken tells the broker of a new token. What does not answer it takes no more clients.
func (u *upstream) renewToken(token broker.Secret) {
	now := u.env.now()
	u.mu.Lock()
	pending := u.tokenSent
	if pending == 0 && u.token != token && u.failed == nil && u.pool != nil {
		u.token, u.tokenSent = token, now
		u.out.AppendLocked(appendUpdateSecret(token))
		u.out.KickLocked()
	}
	u.mu.Unlock()
	if pending != 0 && now-pending > int64(u.env.cfg().CloseTimeout) {
		u.retire()
	}
}

// tokenTaken notes the broker's answer.
func (u *upstream) tokenTaken() {
	u.mu.Lock()
	u.tokenSent = 0
	u.mu.Unlock()
}

func appendUpdateSecret(token broker.Secret) []byte {
	text, reason := token.Reveal(), "token refresh"
	args := make([]byte, 0, 4+len(text)+1+len(reason))
	args = append(args, byte(len(text)>>24), byte(len(text)>>16), byte(len(text)>>8), byte(len(text)))
	args = append(append(args, text...), byte(len(reason)))
	return amqp.AppendMethod(nil, 0, amqp.ConnectionUpdateSecret, append(args, reason...)...)
}

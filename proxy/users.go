// Users whose credentials the proxy keeps: what a client sends is held against a hash here, and the
// broker is sent another secret, asked for at each dial. For other users the broker decides, or they
// are refused. A password that was found right once is known by its keyed hash, as what the broker
// accepted is; a wrong one costs its own address and user (strangers.go), a hash a place of two.

package proxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
	"github.com/amqproxysvc/amqproxysvc/proxy/hash"
	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
	"github.com/amqproxysvc/amqproxysvc/proxy/wait"
)

// User is one whose credentials the proxy keeps.
type User struct {
	// Name is what clients send.
	Name string
	// Password is that of their password; zero: no password lets them in, but for pairs that are signed with
	// the AccessKey of Broker.
	Password hash.Hash
	// Certificate is the name in the certificate that lets them in by EXTERNAL; "": Name is.
	Certificate string
	// VHosts are those that they may open; none: the broker decides.
	VHosts []string
	// Broker is what the broker is sent for them.
	Broker Provider
}

// certificate is the name that a certificate of the user has.
func (u *User) certificate() string {
	if u.Certificate != "" {
		return u.Certificate
	}
	return u.Name
}

// Provider is what the broker is sent for a user. Values that are == are the same.
type Provider interface {
	// Account names whom the broker lets in by it. Where that changes, no connection of before is used any more.
	Account() string
	// Credential is asked for at each dial.
	Credential(ctx context.Context) (broker.Credential, error)
}

// Password is a user and password of the broker's.
type Password struct {
	User   string
	Secret broker.Secret
}

// Account is the user's name.
func (p Password) Account() string { return p.User }

// Credential is always the same.
func (p Password) Credential(context.Context) (broker.Credential, error) {
	return broker.Credential{User: p.User, Secret: p.Secret}, nil
}

// UnknownUsers says what becomes of users that are none of Config.Users.
type UnknownUsers string

const (
	// UnknownBroker has the broker decide about them.
	UnknownBroker UnknownUsers = "broker"
	UnknownRefuse UnknownUsers = "refuse"
)

// validateUsers says what is wrong with them.
func (c *Config) validateUsers() (errs []error) {
	seen, shown := map[string]bool{}, map[string]string{}
	for i, u := range c.Users {
		switch other, twice := shown[u.certificate()]; {
		case u.Name == "":
			errs = append(errs, fmt.Errorf("user %d has no name", i+1))
		case seen[u.Name]:
			errs = append(errs, fmt.Errorf("user %d has the name of one before", i+1))
		case u.Broker == nil:
			errs = append(errs, fmt.Errorf("user %d has nothing that the broker is sent", i+1))
		case twice && u.Certificate != "" && other != "":
			errs = append(errs, fmt.Errorf("user %d has the certificate of one before", i+1))
		case twice:
			errs = append(errs, fmt.Errorf("user %d: a name in a certificate, %s, is the name of another user", i+1, strconv.Quote(u.certificate())))
		}
		seen[u.Name], shown[u.certificate()] = true, u.Certificate
	}
	switch c.UnknownUsers {
	case "", UnknownBroker, UnknownRefuse:
	default:
		errs = append(errs, fmt.Errorf(`unknown_users is %s, allowed is "broker" or "refuse"`, strconv.Quote(string(c.UnknownUsers))))
	}
	return errs
}

// hashesAtATime bounds the hashes that are computed at a time: an argon2id takes megabytes and tens of milliseconds.
const hashesAtATime = 2

// directory are the users of a configuration. It is not changed once it was made.
type directory struct {
	users        map[string]*keptUser
	certificates map[string]*keptUser // by the name that a certificate has
	keys         map[string]*keptUser // by the AccessKey that the broker is sent pairs of, as AccessKey.Account
	hashes       []hash.Hash          // all of them
	refuse       bool                 // users that are not in it
	expiring     bool                 // somebody's credential ends
}

type keptUser struct {
	User
	stored *stored
}

// newDirectory goes on with what is known of the users of old that stay; nil: the broker decides about all.
func newDirectory(cfg *Config, old *directory) *directory {
	if len(cfg.Users) == 0 && cfg.UnknownUsers != UnknownRefuse {
		return nil
	}
	d := &directory{users: make(map[string]*keptUser, len(cfg.Users)), certificates: make(map[string]*keptUser, len(cfg.Users)), refuse: cfg.UnknownUsers == UnknownRefuse}
	for _, u := range cfg.Users {
		l := &keptUser{User: u}
		if old != nil {
			if o := old.users[u.Name]; o != nil && o.stored.account == u.Broker.Account() {
				l.stored = o.stored
				l.stored.renew(u.Broker)
			}
		}
		if l.stored == nil {
			l.stored = &stored{name: u.Name, account: u.Broker.Account(), now: u.Broker, tokens: newTokens()}
		}
		switch p := u.Broker.(type) {
		case OAuth2:
			d.expiring = true
		case AccessKey:
			if d.keys == nil {
				d.keys = make(map[string]*keptUser)
			}
			if d.keys[p.Account()] == nil {
				d.keys[p.Account()] = l
			}
		}
		d.users[u.Name], d.certificates[u.certificate()] = l, l
		if !u.Password.IsZero() {
			d.hashes = append(d.hashes, u.Password)
		}
	}
	return d
}

// decoy is the hash that is computed for a user who has none: always the same one for a name, so
// that they cannot be told from others by the time that it takes.
func (d *directory) decoy(key []byte, user string) hash.Hash {
	if len(d.hashes) == 0 {
		return hash.Hash{}
	}
	sum := sha256.Sum256(append(append([]byte(nil), key...), user...))
	return d.hashes[binary.BigEndian.Uint64(sum[:])%uint64(len(d.hashes))]
}

// keepsUsers is the authenticator of every proxy: it knows the users that it was told of, and
// leaves others to the broker.
type keepsUsers struct{}

func (keepsUsers) mechanisms(c *client) string {
	if cert, _ := c.certificate(); cert != nil {
		return mechanisms + " " + external
	}
	return mechanisms
}

func (keepsUsers) identify(c *client, said claim) (login, *amqp.Error) {
	if said.mechanism == external {
		return c.identifyExternal()
	}
	d := c.s.users.Load()
	if d == nil {
		return brokerDecides{}.identify(c, said)
	}
	l := d.users[said.user]
	var name pairName
	signed := false
	if l == nil {
		l, name, signed = d.pair(said.user)
	}
	var e *amqp.Error
	switch {
	case signed:
		e = c.s.provesPair(c, said, l, name)
	case l == nil && !d.refuse:
		return brokerDecides{}.identify(c, said)
	default:
		e = c.s.proves(c, said, d, l)
	}
	if e != nil {
		if e.Code == amqp.AccessRefused {
			c.env.n.localRefused.Add(1)
		}
		return login{}, e
	}
	c.env.n.localOK.Add(1)
	return login{principal{l.Name}, l.stored}, nil
}

// proves holds what a client sent against the user's hash. Nil: it is right. l nil: there is no such user,
// which takes as long to say as that the password is wrong.
func (s *Server) proves(c *client, said claim, d *directory, l *keptUser) *amqp.Error {
	wrong := broker.RefusedLogin(said.mechanism)
	h := d.decoy(s.strangers.key[:], said.user)
	real := l != nil && !l.Password.IsZero()
	if real {
		h = l.Password
	}
	id := s.strangers.id(login{principal{said.user}, asSent{said.user, said.secret}}, h.Reveal())
	if s.strangers.refusal(id) != nil {
		return wrong
	}
	if real && s.strangers.known(id) {
		return nil
	}
	c.props = bytes.Clone(c.props) // what is read now comes into the same buffer
	gone, stop := c.watch()
	defer stop()
	t, e := s.strangersTurn(c, gone, said.user)
	if e != nil {
		return e
	}
	if s.strangers.refusal(id) != nil { // it was tried meanwhile
		t.leave(true)
		return wrong
	}
	if !real || !s.strangers.known(id) {
		ctx, cancel := context.WithTimeout(s.ctx, s.cfg().WaitTimeout)
		err := s.hashing.Acquire(ctx, gone)
		cancel()
		if err != nil {
			t.leave(errors.Is(err, wait.ErrGone))
			return s.notHashed(err)
		}
		right := h.Matches(said.secret.Reveal())
		s.hashing.Release()
		if !right || !real {
			s.strangers.refuse(id, wrong)
			t.leave(true)
			return wrong
		}
		s.strangers.accept(id)
	}
	t.leave(false)
	return nil
}

// notHashed is why a password could not be looked at.
func (s *Server) notHashed(err error) *amqp.Error {
	switch {
	case errors.Is(err, wait.ErrGone):
		return errGone
	case s.ctx.Err() != nil:
		return errStopping
	}
	return amqp.Errorf(amqp.ConnectionForced, 0, "too many logins at a time, try again later")
}

// mayOpen is the verdict on a vhost, as far as it is the proxy's. Nil: the broker decides.
func (s *Server) mayOpen(who login, vhost string) *amqp.Error {
	d := s.users.Load()
	if who.stored() == nil || d == nil {
		return nil
	}
	l := d.users[who.user]
	if l == nil || len(l.VHosts) == 0 || slices.Contains(l.VHosts, vhost) {
		return nil
	}
	return amqp.Errorf(amqp.NotAllowed, amqp.ConnectionOpen, "access to vhost '%s' refused for user '%s'", vhost, who.user)
}

// stored are the credentials that the proxy keeps for a user: one value for as long as they are
// those of one account of the broker's, whatever becomes of the secret.
type stored struct {
	name, account string
	tokens        *tokens // of a provider whose credential ends

	mu  lock.Mutex[lock.Leaf] // a leaf
	now Provider
	at  map[string]*storedAt // by the brokers' names
}

// storedAt is what is known of stored credentials at one broker: each is told of a new secret at a time of its own.
type storedAt struct {
	took Provider // what it took last; nil: nothing
	told bool     // the log knows that it refuses what there is
}

// stored are the credentials, where the proxy keeps them; else nil.
func (l login) stored() *stored {
	s, _ := l.sends.(*stored)
	return s
}

func (c *stored) next(ctx context.Context) (broker.Credential, error) {
	return c.ask(ctx, c.provider())
}

// ask is what p gives; of a provider whose credential ends, the one that is good still.
func (c *stored) ask(ctx context.Context, p Provider) (broker.Credential, error) {
	o, ends := p.(OAuth2)
	if !ends {
		return p.Credential(ctx)
	}
	token, err := c.tokens.get(ctx, o)
	return broker.Credential{User: o.User, Secret: token}, err
}

func (c *stored) digest(w io.Writer) { _, _ = io.WriteString(w, "kept\x00"+c.account+"\x00") }

func (c *stored) renewed() bool { return false }

func (c *stored) provider() Provider {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// renew takes what a reload brings. What the broker has accepted stays at hand until it has
// accepted the new one: file and broker are not changed at the same moment.
func (c *stored) renew(p Provider) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p == c.now {
		return
	}
	c.now = p
	for _, at := range c.at {
		at.told = false
	}
}

// atLocked is what is known of the credentials at a broker.
func (c *stored) atLocked(broker string) *storedAt {
	at := c.at[broker]
	if at == nil {
		at = &storedAt{}
		if c.at == nil {
			c.at = make(map[string]*storedAt)
		}
		c.at[broker] = at
	}
	return at
}

// accepted notes that a broker took what p gave. True: it is a new secret, in place of another.
func (c *stored) accepted(broker string, p Provider) (replaced bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := c.atLocked(broker)
	if p == c.now {
		at.told = false
	}
	if at.took == c.now {
		return false
	}
	replaced = p == c.now && at.took != nil
	at.took = p
	return replaced
}

// other is what the broker took before, if it has refused what p gave.
func (c *stored) other(broker string, p Provider) Provider {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p != c.now {
		return c.now // a reload came between
	}
	if took := c.atLocked(broker).took; took != p {
		return took
	}
	return nil
}

// refused notes that a broker took nothing. True: the log shall tell.
func (c *stored) refused(broker string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := c.atLocked(broker)
	told := at.told
	at.told = true
	return !told
}

// loginStored logs in to a broker with what is kept for a user: with the new secret, and while that is not
// accepted yet with the one before.
func (s *Server) loginStored(c *stored, at string, try func(askFunc) (*broker.Link, error)) (*broker.Link, error) {
	p := c.provider()
	k, err := try(c.by(p))
	if other := c.other(at, p); s.refusesSecret(err) && other != nil {
		first := p
		for _, p = range []Provider{other, first} { // the broker may be told of the new one between the two
			if k, err = try(c.by(p)); !s.refusesSecret(err) {
				break
			}
		}
	}
	switch {
	case err == nil:
		if c.accepted(at, p) {
			s.log.Info("the broker has accepted the new secret kept for a user, the one before is dropped", storedAttrs(c, at)...)
		}
	case s.refusesSecret(err) && c.refused(at):
		s.log.Warn("the broker refuses the secret kept for a user",
			append(storedAttrs(c, at), "at_the_broker", c.account, "reason", s.forClients(err).Text)...)
	}
	return k, err
}

// storedAttrs name the user and, where it is a [[broker]], the broker.
func storedAttrs(c *stored, at string) []any {
	if at == "" {
		return []any{"user", c.name}
	}
	return []any{"user", c.name, "broker", at}
}

// by asks for what a provider gives.
func (c *stored) by(p Provider) askFunc {
	return func(ctx context.Context) (broker.Credential, error) { return c.ask(ctx, p) }
}

func (s *Server) refusesSecret(err error) bool {
	return err != nil && verdictOf(s.forClients(err)).ofSecret()
}

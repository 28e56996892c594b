// Whether a login would be let in, asked without a running proxy: what check-login tells.

package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
)

// CheckLogin is the verdict on a user and password: the proxy's own, and with ask the broker's too, on the vhost as
// well where one is named. Nothing is started. kept: it is a user of the proxy's own. by: which broker has accepted it.
func CheckLogin(ctx context.Context, cfg Config, user string, password broker.Secret, vhost *string, ask bool) (kept bool, by string, err error) {
	if err := cfg.Validate(); err != nil {
		return false, "", err
	}
	d := newDirectory(&cfg, nil)
	var l *keptUser
	if d != nil {
		l = d.users[user]
	}
	said := asSent{user, password}
	sends := func() (broker.Credential, error) { return said.next(ctx) }
	byPair := false
	if d != nil && l == nil {
		var name pairName
		if l, name, _ = d.pair(user); l != nil {
			byPair = true
			if signed, off := name.signedBy(l.Broker.(AccessKey), password, time.Now()); !signed {
				return true, "", errors.New("the pair is not signed with the AccessKey of user " + strconv.Quote(l.Name))
			} else if off > pairAge {
				return true, "", fmt.Errorf("the pair was signed at another time: %s off, allowed is %s", off.Round(time.Second), pairAge)
			}
		}
	}
	switch {
	case l == nil && d != nil && d.refuse:
		return false, "", errors.New("no user of that name, and auth.unknown_users is refuse")
	case l == nil:
	case !byPair && l.Password.IsZero():
		return true, "", errors.New("the user has no password_hash, no password lets them in")
	case !byPair && !l.Password.Matches(password.Reveal()):
		return true, "", errors.New("the password is wrong")
	default:
		sends = func() (broker.Credential, error) { return l.Broker.Credential(ctx) }
		if vhost != nil && len(l.VHosts) > 0 && !slices.Contains(l.VHosts, *vhost) {
			return true, "", fmt.Errorf("access to vhost '%s' refused for user '%s' by user.vhosts", *vhost, user)
		}
	}
	if !ask {
		return l != nil, "", nil
	}
	key, err := sends()
	if err != nil {
		return l != nil, "", err
	}
	by, err = checkAtBroker(ctx, cfg, key, vhost)
	return l != nil, by, err
}

// checkAtBroker logs in as the proxy would, and opens the vhost where one is named.
func checkAtBroker(ctx context.Context, cfg Config, key broker.Credential, vhost *string) (by string, err error) {
	s, err := New(cfg)
	if err != nil {
		return "", err
	}
	defer s.stop()
	ways := s.ways.Load()
	defer func() {
		for _, w := range ways.all {
			w.Close()
		}
	}()
	logIn := func(w *way) (*broker.Link, error) {
		ctx, cancel := context.WithTimeout(ctx, cfg.ConnectTimeout+time.Second)
		defer cancel()
		return w.Login(ctx, broker.Known, key, s.ownProperties(&cfg, 0))
	}
	var k *broker.Link
	var at *way
	for _, w := range ways.used {
		link, e := logIn(w)
		if e == nil {
			k, at, err = link, w, nil
			break
		}
		if w == ways.door {
			err = e
		}
		if !s.refusesSecret(err) {
			break
		}
	}
	if err != nil {
		return "", err
	}
	defer func() { k.Close() }()
	if vhost == nil {
		return at.named(k), nil
	}
	to := ways.of(*vhost)
	if to.way != at {
		other, err := logIn(to.way)
		if err != nil {
			return "", fmt.Errorf("broker %s, where vhost '%s' is: %w", cmp.Or(to.way.name, "[upstream]"), *vhost, err)
		}
		k.Close()
		k = other
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.ConnectTimeout)
	defer cancel()
	if err := k.Open(ctx, to.vhost); err != nil {
		return "", err
	}
	k.Quit(ctx)
	return to.way.named(k), nil
}

// named is the broker as its settings have it, with the address that a link leads to.
func (w *way) named(k *broker.Link) string {
	url := "amqp://"
	if k.Target.TLS != nil {
		url = "amqps://"
	}
	url += net.JoinHostPort(k.Target.Host, strconv.Itoa(k.Target.Port))
	if w.name != "" {
		url += " ([[broker]] " + w.name + ")"
	}
	return url
}

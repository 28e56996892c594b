// Upstreams come to be: a link to the broker that has logged in, then its vhost, then its reader.

package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
)

// brokerConfig is the part of the configuration that leads to a broker.
func (c *Config) brokerConfig(targets []Upstream, balance string) broker.Config {
	return broker.Config{Targets: targets, InOrder: balance == BalanceOrder, DNSRefresh: c.DNSRefresh, Hold: c.Hold,
		ConnectTimeout: c.ConnectTimeout, RetryDelay: c.RetryDelay, WaitTimeout: c.WaitTimeout, Heartbeat: c.Heartbeat,
		Dial: c.Dial, Lookup: c.Lookup,
		ProxyProtocol: map[string]byte{"v1": 1, "v2": 2}[c.ProxyProtocol]}
}

// tells is the address that a connection of the client's own tells the broker, where it asks; else nil.
func (c *client) tells() *net.TCPAddr {
	if p := c.env.cfg().ProxyProtocol; p == "" || p == "off" {
		return nil
	}
	a, _ := c.address().(*net.TCPAddr)
	return a
}

// dial connects to a broker and logs in; props nil: with the proxy's own client-properties;
// from nil: it speaks for nobody.
func (s *Server) dial(ctx context.Context, lane broker.Lane, to *way, who login, props []byte, from *net.TCPAddr) (*upstream, *amqp.Error) {
	u := &upstream{s: s, env: &s.env, opened: s.clock(), done: make(chan struct{}), props: props, to: destination{way: to}}
	u.n = s.n.upstreamSeq.Add(1)
	named := props // with the field that names the proxy
	if props == nil {
		u.own = true
		u.props = s.ownProperties(s.cfg(), u.n)
	} else {
		named = s.withProxy(props)
	}
	if u.from = from; from != nil {
		ctx = broker.For(ctx, from)
	}
	try := func(ask askFunc) (*broker.Link, error) {
		return to.LoginBy(ctx, lane, func(ctx context.Context) (broker.Credential, []byte, error) {
			key, err := ask(ctx)
			u.token = key.Secret
			if props == nil || !fitsStartOk(to.Info(), named, key) {
				return key, u.props, err
			}
			return key, named, err
		})
	}
	var k *broker.Link
	var err error
	if c := who.stored(); c != nil {
		k, err = s.loginStored(c, to.name, try)
	} else {
		k, err = try(who.sends.next)
	}
	if c := who.stored(); isNoToken(err) && c.refused(to.name) {
		s.log.Warn("no token for a user could be fetched", "user", c.name, "reason", err)
	}
	if err != nil {
		return nil, s.forClients(err)
	}
	u.link, u.conn, u.rd = k, k.Conn, k.Reader
	s.n.observe(k.Took)
	return u, nil
}

// askFunc asks what the broker is sent.
type askFunc = func(context.Context) (broker.Credential, error)

// fitsStartOk reports whether a login with these client-properties is no longer than the broker takes.
func fitsStartOk(info *broker.Info, props []byte, key broker.Credential) bool {
	const rest = 64 // the frame, mechanism and locale
	return info == nil || info.FirstFrame() == 0 || len(props)+len(key.User)+len(key.Secret.Reveal())+rest <= info.FirstFrame()
}

// forClients is what a client may hear of an error of the broker's or the way to it.
func (s *Server) forClients(err error) *amqp.Error {
	var verdict *amqp.Error
	var un *broker.Unreachable
	switch {
	case err == nil:
		return nil
	case errors.As(err, &un): // first: what it wraps, as a frame that cannot be read, is no verdict
		if s.ctx.Err() != nil {
			return errStopping
		}
		return amqp.Errorf(amqp.ConnectionForced, 0, "%s", un.ForClients())
	case errors.As(err, &verdict):
		return verdict
	case isNoToken(err):
		return amqp.Errorf(amqp.ConnectionForced, 0, "no credential for the broker could be had, try again later")
	case s.ctx.Err() != nil:
		return errStopping
	case errors.Is(err, context.Canceled):
		return errGone
	case broker.Lost(err):
		return amqp.Errorf(amqp.ConnectionForced, 0, "the connection to the broker was lost")
	}
	return amqp.Errorf(amqp.ConnectionForced, 0, "%v", err)
}

// stale reports whether the proxy has been told meanwhile of another broker than u's, for the vhost of the
// pool or, where that is nil, for logins.
func (u *upstream) stale(p *pool) bool {
	if p == nil {
		return !slices.Contains(u.s.ways.Load().used, u.to.way) || u.link.Moved()
	}
	return u.to != p.to() || u.link.Moved()
}

// open names the vhost: the second half of the handshake.
func (u *upstream) open(ctx context.Context) *amqp.Error {
	if err := u.link.Open(ctx, u.to.vhost); err != nil {
		return u.s.forClients(err)
	}
	u.tune, u.far = u.link.Tune, u.link.Answered >= seatFar
	u.heartbeat = time.Duration(u.tune.Heartbeat) * time.Second
	u.ids.limit = u.tune.ChannelMax
	if u.tune.ChannelMax == 0 {
		u.ids.limit = 65535
	}
	return nil
}

// start hands the upstream over to its reader.
func (u *upstream) start(p *pool) {
	u.pool = p
	u.out.Init(&u.mu, u.conn, &u.env.coarse, u.lostSocket)
	u.lastRead.Store(u.env.now())
	u.link.Stand()
	if !u.s.upstreamUp(u) {
		close(u.done)
		go u.fail(errStopping, false)
		return
	}
	go u.read()
}

// openUpstream dials, logs in and opens the vhost. Places are bounded, and waited for until gone is closed; props and
// from as for dial. beyond: it is for a moment and may be one more than the pool's bound.
func (s *Server) openUpstream(p *pool, gone <-chan struct{}, props []byte, from *net.TCPAddr, beyond bool) (*upstream, *amqp.Error) {
	if !p.known() {
		if u, err := s.tryVHost(p, gone, props, from); u != nil || err != nil {
			return u, err
		}
	}
	b, err := s.gate.take(&placeWanted{p: p, session: props != nil, beyond: beyond, gone: gone})
	if err != nil {
		p.heard(err)
		return nil, err
	}
	u, err := s.dialOpen(s.ctx, broker.Known, p, props, from)
	if err != nil && verdictOf(err).ruling == full && !beyond {
		u, err = s.dialInRoom(s.ctx, broker.Known, p, props, from, err)
	}
	if err != nil {
		b.leave()
		p.heard(err)
		return nil, err
	}
	u.berth, u.account = b, p.account
	p.tells(u)
	return u, nil
}

// tells takes what a new connection told of the broker.
func (p *pool) tells(u *upstream) {
	p.info.Store(u.link.Info)
	if u.to.way == p.s.judges(p.account)[0] {
		p.account.info.Store(u.link.Info)
	}
}

// tryVHost opens a vhost in which the broker has not accepted the login yet: it may not be there at
// all, or be others' alone. So it counts at no bound, and evicts nobody, until it is accepted: one connection more for
// a moment, which ends when gone is closed. Nil and nil: the broker accepts it, and there is a place to be waited for.
func (s *Server) tryVHost(p *pool, gone <-chan struct{}, props []byte, from *net.TCPAddr) (*upstream, *amqp.Error) {
	ctx, over := context.WithCancel(s.ctx)
	defer over()
	s.spawn(func() {
		select {
		case <-gone:
			over()
		case <-ctx.Done():
		}
	})
	u, err := s.dialOpen(ctx, broker.VHosts, p, props, from)
	if err != nil && verdictOf(err).ruling == full {
		u, err = s.dialInRoom(ctx, broker.VHosts, p, props, from, err)
	}
	if err != nil {
		p.heard(err)
		return nil, err
	}
	if b := s.gate.try(); b != nil {
		if b.join(p) {
			u.berth, u.account = b, p.account
			p.tells(u)
			return u, nil
		}
		b.leave()
	}
	s.leaveVHost(p, u)
	return nil, nil
}

// leaveVHost ends a connection on which the broker has accepted the login in a vhost, and for which there is no place.
func (s *Server) leaveVHost(p *pool, u *upstream) {
	s.strangers.accept(p.loginID())
	s.spawn(func() { u.link.Quit(s.ctx) })
}

// dialOpen is dial and open.
func (s *Server) dialOpen(ctx context.Context, lane broker.Lane, p *pool, props []byte, from *net.TCPAddr) (*upstream, *amqp.Error) {
	to := p.to()
	u, err := s.dial(p.beside(ctx, props == nil), lane, to.way, p.account.login, props, from)
	if err != nil {
		return nil, s.saidOfVHost(p, to, err)
	}
	u.to = to
	if err := u.open(ctx); err != nil {
		u.link.Close()
		return nil, s.saidOfVHost(p, to, err)
	}
	return u, nil
}

// ownProperties are the client-properties of a shared upstream.
func (s *Server) ownProperties(cfg *Config, n uint64) []byte {
	var caps []byte
	for _, name := range []string{"publisher_confirms", "exchange_exchange_bindings", "basic.nack",
		"consumer_cancel_notify", "connection.blocked", "authentication_failure_close"} {
		caps = amqp.AppendBoolField(caps, name, true)
	}
	var p []byte
	p = amqp.AppendStringField(p, "product", "amqproxysvc")
	p = amqp.AppendStringField(p, "version", cfg.Version)
	p = amqp.AppendStringField(p, "platform", "Go")
	p = amqp.AppendStringField(p, "connection_name", fmt.Sprintf("amqproxysvc@%s#%d", s.host, n))
	return amqp.AppendTableField(p, "capabilities", caps)
}

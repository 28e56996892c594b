// The handshake with the broker, in two halves: up to tune, which is the broker's verdict
// on user and secret, and connection.open, its verdict on the vhost.

package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// upstreamBuffer is an upstream's own read buffer; busy ones borrow more.
const upstreamBuffer = 4 << 10

// connectContext bounds one handshake with the broker.
func (s *Server) connectContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(s.ctx, s.cfg().ConnectTimeout)
}

// dial connects to the broker and logs in. A broker that could not be reached is not asked
// again for retry_delay.
func (s *Server) dial(ctx context.Context, key accountKey, props []byte) (*upstream, *amqp.Error) {
	if e := s.down.Load(); e != nil && s.clock().Before(e.until) {
		return nil, e.err
	}
	began := time.Now()
	cfg := s.cfg()
	conn, err := cfg.Dial(ctx, "tcp", cfg.Upstream.Address())
	if err == nil && cfg.Upstream.TLS != nil {
		conn, err = startTLS(ctx, conn, cfg.Upstream)
	}
	if err != nil {
		return nil, s.unreachable(cfg.Upstream, err)
	}
	u := &upstream{s: s, env: &s.env, conn: conn, to: cfg.Upstream, opened: s.clock(), done: make(chan struct{}), props: props}
	u.n = s.n.upstreamSeq.Add(1)
	if props == nil {
		u.own = true
		u.props = s.ownProperties(cfg, u.n)
	}
	u.rd.Init(make([]byte, upstreamBuffer), 1<<20)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	e := u.logIn(key)
	if !stop() && e == nil {
		e = u.unreachable(ctx.Err())
	}
	if e != nil {
		_ = conn.Close()
		return nil, e
	}
	s.n.observe(time.Since(began))
	s.down.Store(nil)
	return u, nil
}

func startTLS(ctx context.Context, conn net.Conn, to Upstream) (net.Conn, error) {
	cfg := to.TLS
	if cfg.ServerName == "" {
		cfg = cfg.Clone()
		cfg.ServerName = to.Host
	}
	t := tls.Client(conn, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return t, nil
}

// outage is why the broker could not be reached, believed until a time.
type outage struct {
	err   *amqp.Error
	until time.Time
}

// stale tells whether the proxy has been told meanwhile of another broker than u's.
func (u *upstream) stale() bool { return !u.to.sameAs(u.env.cfg().Upstream) }

// unreachable is the error of a handshake that did not come to its end. Once the broker has
// greeted, that is about one user or vhost, and no outage for the others.
func (u *upstream) unreachable(err error) *amqp.Error {
	if u.greeted {
		return u.s.noAnswer(u.to, err)
	}
	return u.s.unreachable(u.to, err)
}

// unreachable is noAnswer for a broker that nobody reaches: further dials fail fast with it.
func (s *Server) unreachable(to Upstream, err error) *amqp.Error {
	e := s.noAnswer(to, err)
	if cfg := s.cfg(); to.sameAs(cfg.Upstream) {
		s.down.Store(&outage{err: e, until: s.clock().Add(cfg.RetryDelay)})
	}
	return e
}

// noAnswer makes the error that clients hear.
func (s *Server) noAnswer(to Upstream, err error) *amqp.Error {
	cfg := s.cfg()
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		err = fmt.Errorf("no answer within connect_timeout = %v", cfg.ConnectTimeout)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		err = errors.New("it closed the connection during the handshake")
	}
	e := amqp.Errorf(amqp.ConnectionForced, 0, "the broker at %s cannot be reached: %v", to.Address(), err)
	s.log.Warn("broker cannot be reached", "address", to.Address(), "error", err)
	return e
}

// next reads until the next frame of channel 0 that is not a heartbeat.
func (u *upstream) next() (amqp.Frame, error) {
	for {
		f, err := u.rd.Next()
		if err != nil {
			return nil, err
		}
		if f == nil {
			if b := u.rd.Buffered(); len(b) >= 5 && string(b[:4]) == "AMQP" {
				return nil, fmt.Errorf("it speaks another protocol version (%v)", b[4:])
			}
			if _, err := u.rd.Fill(u.conn); err != nil {
				return nil, err
			}
			continue
		}
		if f.Type() == amqp.FrameMethod && f.Channel() == 0 {
			return f, nil
		}
	}
}

// logIn is the handshake up to tune.
func (u *upstream) logIn(key accountKey) *amqp.Error {
	if _, err := u.conn.Write(amqp.ProtocolHeader[:]); err != nil {
		return u.unreachable(err)
	}
	f, err := u.next()
	if err != nil {
		return u.unreachable(err)
	}
	info, err := parseStart(f)
	if err != nil {
		return u.unreachable(err)
	}
	u.greeted = true
	props := u.props
	if !u.own {
		props = u.s.withProxy(props)
	}
	mechanism, response := "PLAIN", []byte("\x00"+key.user+"\x00"+key.secret)
	if !hasWord(info.mechanisms, mechanism) && hasWord(info.mechanisms, "AMQPLAIN") {
		mechanism = "AMQPLAIN"
		response = amqp.AppendStringField(amqp.AppendStringField(nil, "LOGIN", key.user), "PASSWORD", key.secret)
	}
	if _, err := u.conn.Write(amqp.AppendStartOk(nil, props, mechanism, response, "en_US")); err != nil {
		return u.unreachable(err)
	}
	f, err = u.next()
	if errors.Is(err, io.EOF) && !(info.failureClose && announces(u.props, failureClose)) {
		// Without authentication_failure_close this is how a broker refuses (spec 1.4.2.2);
		// with it, the broker died.
		return refusedLogin(mechanism)
	}
	if err != nil {
		return u.unreachable(err)
	}
	switch f.Method() {
	case amqp.ConnectionClose:
		e := amqp.ParseClose(f)
		_, _ = u.conn.Write(amqp.AppendMethod(nil, 0, amqp.ConnectionCloseOk))
		return e
	case amqp.ConnectionTune:
	default:
		return u.unreachable(fmt.Errorf("it sent %v where tune was due", f.Method()))
	}
	t, ok := amqp.ParseTune(f)
	if !ok || (t.FrameMax != 0 && t.FrameMax < amqp.FrameMinSize) {
		return u.unreachable(errors.New("its tune cannot be understood"))
	}
	info.tune = t
	u.serverInfo = info
	u.s.broker.Store(info)
	return nil
}

// refusedLogin is what RabbitMQ says of a wrong user or password.
func refusedLogin(mechanism string) *amqp.Error {
	return amqp.Errorf(amqp.AccessRefused, 0, "Login was refused using authentication mechanism %s. "+
		"For details see the broker logfile.", mechanism)
}

// open is the second half: tune-ok and connection.open in one go.
func (u *upstream) open(ctx context.Context, vhost string) *amqp.Error {
	stop := context.AfterFunc(ctx, func() { _ = u.conn.SetDeadline(time.Unix(1, 0)) })
	e := u.opens(vhost)
	if !stop() && e == nil {
		e = u.broke(ctx.Err())
	}
	return e
}

// broke is the error of a handshake that did not come to its end. A connection that has
// waited for its vhost may have died meanwhile: that is no outage of the broker.
func (u *upstream) broke(err error) *amqp.Error {
	if u.spare {
		return amqp.Errorf(amqp.ConnectionForced, 0, "the connection to the broker was lost: %v", err)
	}
	return u.unreachable(err)
}

func (u *upstream) opens(vhost string) *amqp.Error {
	t := u.serverInfo.tune
	if want := u.env.cfg().Heartbeat; want > 0 && (t.Heartbeat == 0 || int(want/time.Second) < int(t.Heartbeat)) {
		t.Heartbeat = uint16(want / time.Second)
	}
	u.tune = t
	u.heartbeat = time.Duration(t.Heartbeat) * time.Second
	u.ids.limit = t.ChannelMax
	if t.ChannelMax == 0 {
		u.ids.limit = 65535
	}
	p := amqp.AppendOpen(amqp.AppendTune(nil, amqp.ConnectionTuneOk, t), vhost)
	if _, err := u.conn.Write(p); err != nil {
		return u.broke(err)
	}
	f, err := u.next()
	if err != nil {
		return u.broke(err)
	}
	switch f.Method() {
	case amqp.ConnectionClose:
		e := amqp.ParseClose(f)
		_, _ = u.conn.Write(amqp.AppendMethod(nil, 0, amqp.ConnectionCloseOk))
		return e
	case amqp.ConnectionOpenOk:
		u.rd.MaxFrame = t.FrameMax
		if t.FrameMax == 0 {
			u.rd.MaxFrame = unboundedFrame
		}
		return nil
	}
	return u.unreachable(fmt.Errorf("it sent %v where open-ok was due", f.Method()))
}

// unboundedFrame bounds a frame where frame_max 0 was negotiated: some bound there must be.
const unboundedFrame = 16 << 20

// start hands the upstream over to its reader.
func (u *upstream) start(p *pool) {
	u.pool = p
	u.out.Init(&u.mu, u.conn, &u.env.coarse, func(err error) { u.fail(u.lostError(err), true) })
	u.lastRead.Store(u.env.now())
	if !u.s.upstreamUp(u) {
		close(u.done)
		go u.fail(errStopping, false)
		return
	}
	go u.read()
}

// parseStart reads connection.start.
func parseStart(f amqp.Frame) (*brokerInfo, error) {
	if f.Method() != amqp.ConnectionStart {
		return nil, fmt.Errorf("it sent %v where start was due", f.Method())
	}
	a := amqp.ReadArgs(f)
	a.Octet()
	a.Octet()
	props := append([]byte(nil), a.LongStr()...)
	info := &brokerInfo{properties: props, mechanisms: string(a.LongStr())}
	if why := amqp.CheckTable(props); a.Bad || why != "" {
		return nil, errors.New("its connection.start cannot be understood")
	}
	info.confirms = announces(props, "publisher_confirms")
	info.failureClose = announces(props, failureClose)
	return info, nil
}

// failureClose is the capability of saying connection.close to who is refused at login.
const failureClose = "authentication_failure_close"

// announces tells whether properties have a capability.
func announces(properties []byte, capability string) bool {
	typ, caps, ok := amqp.Lookup(properties, "capabilities")
	return ok && typ == 'F' && amqp.LookupBool(caps, capability)
}

func hasWord(words, word string) bool {
	for _, w := range strings.Fields(words) {
		if w == word {
			return true
		}
	}
	return false
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

// openUpstream dials, logs in and opens the vhost. Places are bounded; props nil: the proxy's own.
// beyond: it is for a moment and may be one more than the pool's bound.
func (s *Server) openUpstream(p *pool, props []byte, beyond bool) (*upstream, *amqp.Error) {
	if err := s.gate.take(p, props != nil, beyond); err != nil {
		return nil, err
	}
	ctx, cancel := s.connectContext()
	defer cancel()
	u, err := s.dial(ctx, p.account.key, props)
	if err == nil {
		if err = u.open(ctx, p.id.vhost); err != nil {
			_ = u.conn.Close()
		}
	}
	if err != nil {
		p.stayedAway()
		s.gate.give()
		return nil, err
	}
	u.arriving = true
	u.account = p.account
	p.account.info.Store(u.serverInfo)
	return u, nil
}

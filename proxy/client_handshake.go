// The client's handshake: it looks like the broker's, and the broker's verdicts come
// where the broker would give them.

package proxy

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
)

// handshakeFrame is the largest frame before the handshake is over.
const handshakeFrame = 8 << 10

// errNotAMQP ends a connection that spoke something else.
var errNotAMQP = errors.New("not AMQP 0-9-1")

// handshake is everything up to open-ok. False: the client has ended.
func (c *client) handshake() bool {
	c.rd.MaxFrame = handshakeFrame
	if err := c.protocolHeader(); err != nil {
		if !errors.Is(err, io.EOF) && !errors.Is(err, errNotAMQP) {
			c.log(slog.LevelDebug, "no protocol header", "error", err)
		}
		return false
	}
	if c.stopsBarred() || !c.awaitResume("", false) || !c.awaitGreeting() {
		return false
	}
	info := c.s.brokerOrDefault()
	offered := c.s.auth.mechanisms(c)
	c.send(c.s.startFrame(info, offered))

	f, ok := c.expect(amqp.ConnectionStartOk)
	if !ok || !c.startOk(f, offered) {
		return false
	}
	t := c.account.info.Load().Tune
	c.send(amqp.AppendTune(nil, amqp.ConnectionTune, t))
	f, ok = c.expect(amqp.ConnectionTuneOk)
	if !ok || !c.tuneOk(f, t) {
		return false
	}
	f, ok = c.expect(amqp.ConnectionOpen)
	return ok && c.open(f)
}

// protocolHeader reads the first eight bytes.
func (c *client) protocolHeader() error {
	for {
		b := c.rd.Buffered()
		n := min(len(b), len(amqp.ProtocolHeader))
		if !bytes.Equal(b[:n], amqp.ProtocolHeader[:n]) {
			c.notAMQP(b)
			return errNotAMQP
		}
		if n == len(amqp.ProtocolHeader) {
			c.rd.Skip(n)
			return nil
		}
		if _, err := c.fill(); err != nil {
			return err
		}
	}
}

// notAMQP answers what is not this protocol with what would be (spec 4.2.2).
func (c *client) notAMQP(b []byte) {
	what := "something else than AMQP 0-9-1"
	switch {
	case bytes.HasPrefix(b, proxyV1), bytes.HasPrefix(b, proxyV2[:5]):
		what = "a PROXY header, which listener.proxy_protocol takes"
	case len(b) >= 1 && b[0] == 0x16:
		what = "a TLS hello; this port speaks plain AMQP"
	case bytes.HasPrefix(b, []byte("GET ")), bytes.HasPrefix(b, []byte("POST")), bytes.HasPrefix(b, []byte("HEAD")):
		what = "an HTTP request; health and metrics are on the HTTP port"
	case bytes.HasPrefix(b, []byte("AMQP")):
		what = "another version of AMQP"
	}
	c.log(slog.LevelInfo, "client refused: it sent "+what)
	_ = c.conn.SetDeadline(time.Now().Add(closeGrace))
	c.send(amqp.ProtocolHeader[:])
	c.drain()
}

// drain reads what the client still sends, for a moment, so that closing meets no reset.
func (c *client) drain() {
	c.closeAt.Store(c.env.now() + int64(closeGrace))
	c.phase.Store(phaseClosing)
	for {
		c.rd.Skip(len(c.rd.Buffered()))
		if _, err := c.rd.Fill(c.conn); err != nil {
			return
		}
	}
}

func (c *client) fill() (int, error) {
	c.reading.Store(true)
	n, err := c.rd.Fill(c.conn)
	c.reading.Store(false)
	c.lastRead.Store(c.env.now())
	c.env.n.fromClients.Add(uint64(n))
	return n, err
}

// watch reads the client's socket while its reader waits for something else amid the handshake:
// the channel is closed when the client has hung up. What it sends meanwhile is kept; stop ends
// the watch, before anything else is read.
func (c *client) watch() (gone <-chan struct{}, stop func()) {
	hungUp, stopped, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for len(c.rd.Buffered()) < handshakeFrame {
			n, err := c.rd.Fill(c.conn)
			c.env.n.fromClients.Add(uint64(n))
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return
			}
			if errors.Is(err, io.EOF) && len(c.rd.Buffered()) > 0 {
				break // it has said all it has to say: its answer is still wanted
			}
			if err != nil {
				close(hungUp)
				return
			}
		}
		select {
		case <-stopped:
		case <-c.gone:
			close(hungUp)
		}
	}()
	return hungUp, func() {
		close(stopped)
		_ = c.conn.SetReadDeadline(time.Unix(1, 0))
		<-ended
		_ = c.conn.SetReadDeadline(time.Time{})
	}
}

// send writes during the handshake.
func (c *client) send(p []byte) {
	c.mu.Lock()
	c.out.AppendLocked(p)
	c.mu.Unlock()
	c.out.Flush()
}

// expect reads the one method that is due. False: the client has been refused or is gone.
func (c *client) expect(due amqp.Method) (amqp.Frame, bool) {
	for {
		f, err := c.rd.Next()
		var e *amqp.Error
		switch {
		case errors.As(err, &e):
			c.fault(due, e)
			return nil, false
		case f == nil:
			if _, err := c.fill(); err != nil {
				if !errors.Is(err, io.EOF) && c.phase.Load() != phaseClosing {
					c.log(slog.LevelDebug, "client left during the handshake", "due", due.String(), "error", err)
				}
				return nil, false
			}
			continue
		}
		if t := c.traced.Load(); t != nil {
			t.came(f)
		}
		switch {
		case f.Type() == amqp.FrameHeartbeat && f.Channel() == 0:
			continue
		case f.Type() != amqp.FrameMethod || f.Channel() != 0:
			code := uint16(amqp.UnexpectedFrame)
			if f.Type() > amqp.FrameBody && f.Type() != amqp.FrameHeartbeat {
				code = amqp.FrameError
			}
			c.fault(due, amqp.Errorf(code, 0, "type %d on channel %d during the handshake, %s was due",
				f.Type(), f.Channel(), due))
			return nil, false
		}
		m := f.Method()
		if m == amqp.ConnectionClose {
			c.mu.Lock()
			c.leaving = true
			c.mu.Unlock()
			c.send(amqp.AppendMethod(nil, 0, amqp.ConnectionCloseOk))
			c.drain()
			return nil, false
		}
		if m != due {
			code := uint16(amqp.ChannelError) // as RabbitMQ has it
			if m.Spec().Name == "" {
				code = amqp.CommandInvalid
			}
			c.fault(due, amqp.Errorf(code, m, "%s where %s was due", m, due))
			return nil, false
		}
		if _, e := m.Spec().CheckArgs(f.Args()); e != nil {
			c.fault(due, e)
			return nil, false
		}
		return f, true
	}
}

// fault ends a client that has sent what was not due. Like RabbitMQ it says nothing until tune-ok
// is there: an application that publishes on a connection that another thread of theirs recovers (bunny lets them)
// breaks in upon the handshake, and takes a connection.close there for a refused login.
func (c *client) fault(due amqp.Method, e *amqp.Error) {
	if due == amqp.ConnectionOpen {
		c.end0(e)
		return
	}
	c.log(slog.LevelInfo, "client refused", "code", e.Code, "reason", e.Text)
	c.cutOff()
}

// end0 sends connection.close during the handshake and waits a moment for its answer.
func (c *client) end0(e *amqp.Error) {
	c.mu.Lock()
	c.closeLocked(e)
	c.mu.Unlock()
	c.log(slog.LevelInfo, "client refused", "code", e.Code, "reason", e.Text)
	for {
		f, err := c.rd.Next()
		if err != nil {
			c.drain()
			return
		}
		if f == nil {
			if _, err := c.rd.Fill(c.conn); err != nil {
				return
			}
			continue
		}
		if f.Type() == amqp.FrameMethod && f.Method() == amqp.ConnectionCloseOk {
			return
		}
	}
}

// startOk takes user, secret and client-properties, and gets the verdict on them.
func (c *client) startOk(f amqp.Frame, offered string) bool {
	a := amqp.ReadArgs(f)
	c.props = a.LongStr() // in the read buffer still, see keepProperties
	mechanism := string(a.Str())
	response := a.LongStr()
	c.caps = capabilities{
		authFailureClose: broker.Announces(c.props, broker.FailureClose),
		cancelNotify:     broker.Announces(c.props, "consumer_cancel_notify"),
		blocked:          broker.Announces(c.props, "connection.blocked"),
	}
	said, ok, known := parseResponse(mechanism, response)
	if mechanism == external && c.lst.takesExternal() {
		ok, known = true, true // the certificate says it all, or that there is none
	}
	if !known {
		c.end0(amqp.Errorf(amqp.CommandInvalid, amqp.ConnectionStartOk,
			"unknown authentication mechanism '%s', this proxy takes %s", mechanism, offered))
		return false
	}
	if !ok { // RabbitMQ closes without a word; here it is refused like a wrong password, which libraries understand
		c.refuseLogin(broker.RefusedLogin(mechanism))
		return false
	}
	c.user = principalOf(said.user).user // for the log
	who, e := c.s.auth.identify(c, said)
	if e != nil {
		c.refuseLogin(e)
		return false
	}
	c.user = who.user
	var props []byte
	c.isSession = c.lst.Mode == PoolSession || c.lst.Mode == PoolAuto && who.sends.renewed() || c.s.hasOffended(c)
	if c.isSession {
		c.props = bytes.Clone(c.props)
		props = c.props
	}
	stranger := c.s.cfg().MaxClients > 0 && !c.s.proven(who)
	if !stranger { // who waits for a place has the broker asked nothing meanwhile
		if e := c.s.waitPlace(c); e != nil {
			c.refuseLogin(e)
			return false
		}
	}
	over := c.awaits()
	account, e := c.s.authenticate(c, who, props)
	over()
	if e != nil {
		if verdictOf(e).ofSecret() && strings.Contains(e.Text, "refused using authentication mechanism") {
			e = broker.RefusedLogin(mechanism) // the client's, where the proxy may have used another
		}
		c.refuseLogin(e)
		return false
	}
	c.account = account
	c.user = account.login.user // one copy of it
	if c.fromElsewhere() {
		c.log(slog.LevelInfo, "client refused: its user may come from loopback only", "setting", "client.loopback_users")
		c.refuseLogin(broker.RefusedLogin(mechanism)) // as RabbitMQ does, after the password was found right
		return false
	}
	c.keepProperties()
	if stranger {
		if e := c.s.waitPlace(c); e != nil {
			c.refuseLogin(e)
			return false
		}
	}
	return true
}

// fromElsewhere reports whether the client is of a user whom the broker takes from its own machine
// only, and comes from another: to a broker on the proxy's machine all clients come from loopback.
func (c *client) fromElsewhere() bool {
	if !c.brokerInfo().Loopback || !slices.Contains(c.env.cfg().LoopbackUsers, c.user) {
		return false
	}
	ip, ok := ipOf(c.address())
	return ok && !ip.IsLoopback()
}

// keepProperties takes the client-properties out of the read buffer. Clients of one
// account mostly have the same ones: they share one copy.
func (c *client) keepProperties() {
	if shared := c.account.props.Load(); shared != nil && bytes.Equal(*shared, c.props) {
		c.props = *shared
		return
	}
	own := bytes.Clone(c.props) // a variable of its own: the client must not be kept by it
	c.props = own
	c.account.props.Store(&own)
}

// name is the connection_name that the client gave itself, or "".
func (c *client) name() string { return amqp.LookupString(c.props, "connection_name") }

// refuseLogin ends a client whose login failed, as loudly as it can hear.
func (c *client) refuseLogin(e *amqp.Error) {
	if e == errGone {
		return
	}
	c.throttled(e, "")
	if e.Code == amqp.ConnectionForced {
		c.env.n.loginsFailed.Add(1)
	} else {
		c.env.n.loginsRefused.Add(1)
	}
	if e.Code == amqp.AccessRefused && !c.caps.authFailureClose {
		c.log(slog.LevelInfo, "client refused", "code", e.Code, "reason", e.Text)
		c.cutOff()
		return
	}
	c.end0(e)
}

// tuneOk checks what the client settled on, as RabbitMQ does.
func (c *client) tuneOk(f amqp.Frame, offer amqp.Tune) bool {
	t, _ := amqp.ParseTune(f)
	fail := func(what, kind string, got, bound uint32) bool {
		c.end0(amqp.Errorf(amqp.NotAllowed, amqp.ConnectionTuneOk,
			"negotiated %s = %d is %s than the %s allowed value (%d)",
			what, got, map[string]string{"minimum": "lower", "maximum": "higher"}[kind], kind, bound))
		return false
	}
	switch {
	case t.FrameMax != 0 && t.FrameMax < amqp.FrameMinSize:
		return fail("frame_max", "minimum", t.FrameMax, amqp.FrameMinSize)
	case offer.FrameMax != 0 && (t.FrameMax == 0 || t.FrameMax > offer.FrameMax):
		return fail("frame_max", "maximum", t.FrameMax, offer.FrameMax)
	case offer.ChannelMax != 0 && (t.ChannelMax == 0 || t.ChannelMax > offer.ChannelMax):
		return fail("channel_max", "maximum", uint32(t.ChannelMax), uint32(offer.ChannelMax))
	}
	c.frameMax, c.chanMax = t.FrameMax, t.ChannelMax
	c.heartbeat = time.Duration(t.Heartbeat) * time.Second
	return true
}

// open takes the vhost, gets the verdict on it, and answers.
func (c *client) open(f amqp.Frame) bool {
	a := amqp.ReadArgs(f)
	vhost := string(a.Str())
	if !c.awaitResume(vhost, true) {
		return false
	}
	rules := c.s.quotas.rules.Load()
	e, later := c.s.mayOpen(c.account.login, vhost), false
	if e == nil {
		e, later = c.enter(vhost)
	}
	if e == nil {
		c.pool = c.s.poolOf(c.account, vhost)
		over := c.awaits()
		e = c.admitted()
		over()
	}
	if e == nil && later {
		e = c.enterVHost(vhost)
	}
	if e == nil && c.fromElsewhere() { // as far as the broker of its vhost goes
		c.log(slog.LevelInfo, "client refused: its user may come from loopback only", "setting", "client.loopback_users")
		e = amqp.Errorf(amqp.NotAllowed, amqp.ConnectionOpen, "access to vhost '%s' refused for user '%s'", vhost, c.user)
	}
	if e == errGone {
		return false
	}
	if e != nil {
		c.leaveQuotas()
		c.throttled(e, vhost)
		if e.Code != amqp.ConnectionForced {
			c.env.n.loginsRefused.Add(1)
		} else {
			c.env.n.loginsFailed.Add(1)
		}
		c.end0(e)
		return false
	}
	c.rd.MaxFrame = c.maxFrame()
	c.rd.MaxBuffer = 0
	c.loggedIn()
	c.env.n.loginsOK.Add(1)
	c.pool.logins.Add(1)
	c.lastRead.Store(c.env.now()) // the wait for the verdict was not the client's silence
	c.handshakeOver()
	c.s.appOf(c, c.pool.id.vhost, 1).joins(c)
	c.named.Store(true)
	c.enteredUnder(rules)
	c.s.catches.offer(c)
	c.mu.Lock()
	running := c.phase.CompareAndSwap(phaseHandshake, phaseRunning)
	if running {
		c.out.SetBufferLocked(amqp.AppendMethod(c.out.BufferLocked(16), 0, amqp.ConnectionOpenOk, 0))
	}
	c.mu.Unlock()
	c.out.Flush()
	// Frames that came with connection.open are routed before the next read.
	return running && c.chunk()
}

// A connection of the stand-in broker: handshake, frames, its close, its heartbeats.

package proxytest

import (
	"bytes"
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// RabbitMQ gives a handshake ten seconds and waits a moment before it refuses a login;
// the stand-in does not wait.
const brokerHandshakeTimeout = 10 * time.Second

// brokerCloseTimeout is how long close-ok may take.
const brokerCloseTimeout = 5 * time.Second

type connState int

const (
	connStarting connState = iota // until open-ok
	connOpen
	connClosing // close sent, close-ok awaited
	connDone
)

// BrokerConn is a connection to a stand-in broker.
type BrokerConn struct {
	b    *Broker
	conn net.Conn
	out  *outQueue

	// Guarded by the broker's lock.
	state     connState
	login     Login
	name      string
	vhost     *vhost
	frameMax  uint32
	chanMax   uint16
	channels  map[uint16]*brokerChannel
	exclusive map[*queue]struct{} // queues that end with the connection
	published bool
	told      bool // connection.blocked was sent
	received  time.Time
	beat      *time.Timer  // nil without heartbeats
	node      int          // of a managed broker
	lavin     lavinState   // of LavinMQ
	left      *amqp.Reader // what the handshake left unread; of the reading goroutine alone
}

func newBrokerConn(b *Broker, conn net.Conn) *BrokerConn {
	return &BrokerConn{b: b, conn: conn, out: newOutQueue(conn, b.cfg.Flavour == LavinMQ), channels: map[uint16]*brokerChannel{}, exclusive: map[*queue]struct{}{}}
}

// Send queues frames to the client. Anybody may call it at any time.
func (c *BrokerConn) Send(frames ...[]byte) { c.out.append(frames...) }

// Login is what the client told in the handshake.
func (c *BrokerConn) Login() Login { return c.login }

// Abort ends the connection with a reset.
func (c *BrokerConn) Abort() { Abort(c.conn) }

// errHandled ends a connection of which all that is to be said has been said.
var errHandled = errors.New("handled")

// errLater is errHandled where close-ok is said before the queues are gone.
var errLater = errors.New("handled, and to be ended later")

func (c *BrokerConn) run() {
	err := c.handshake()
	if err == nil {
		err = c.serve()
	}
	var e *amqp.Error
	if errors.As(err, &e) {
		c.b.mu.Lock()
		c.closeLocked(e)
		c.b.mu.Unlock()
		c.awaitCloseOk()
	}
	if errors.Is(err, errLater) {
		time.Sleep(lavinPause)
	}
	c.b.mu.Lock()
	c.endLocked()
	c.b.mu.Unlock()
	c.out.end()
}

// next reads the next frame; it is good until the next call.
func next(rd *amqp.Reader, conn net.Conn) (amqp.Frame, error) {
	for {
		f, err := rd.Next()
		if f != nil || err != nil {
			return f, err
		}
		if _, err := rd.Fill(conn); err != nil {
			return nil, err
		}
	}
}

func (c *BrokerConn) handshake() error {
	c.conn.SetDeadline(time.Now().Add(brokerHandshakeTimeout))
	var header [8]byte
	for n := 0; n < len(header); {
		k, err := c.conn.Read(header[n:])
		if err != nil {
			return err
		}
		n += k
		if !bytes.HasPrefix(amqp.ProtocolHeader[:], header[:n]) {
			c.Send(amqp.ProtocolHeader[:])
			return errHandled
		}
	}
	rd := amqp.NewReader(4096, 8192)
	c.Send(amqp.AppendStart(nil, c.b.cfg.Properties, "PLAIN AMQPLAIN", "en_US"))
	f, err := c.expect(rd, amqp.ConnectionStartOk)
	if err != nil {
		return err
	}
	login := ParseStartOk(append(amqp.Frame(nil), f...))
	c.b.mu.Lock()
	c.login = login
	c.name = amqp.LookupString(login.Properties, "connection_name")
	good := c.b.acceptsLocked(login)
	c.b.countLocked(func(n *BrokerCounts) {
		if good {
			n.Logins++
		} else {
			n.Refused++
		}
	})
	c.b.mu.Unlock()
	if !good {
		if !c.can("authentication_failure_close") {
			return errHandled
		}
		if c.isLavin() {
			return amqp.Errorf(amqp.AccessRefused, amqp.ConnectionStartOk, "")
		}
		return &amqp.Error{Code: amqp.AccessRefused, Text: "ACCESS_REFUSED - Login was refused using authentication mechanism " +
			login.Mechanism + ". For details see the broker logfile."}
	}
	offer := c.b.cfg.Tune
	c.Send(amqp.AppendTune(nil, amqp.ConnectionTune, offer))
	if f, err = c.expect(rd, amqp.ConnectionTuneOk); err != nil {
		return err
	}
	tune, _ := amqp.ParseTune(f)
	if err := checkTune(tune, offer); err != nil {
		return err
	}
	if f, err = c.expect(rd, amqp.ConnectionOpen); err != nil {
		return err
	}
	a := amqp.ReadArgs(f)
	if err := c.open(string(a.Str()), tune); err != nil {
		return err
	}
	c.conn.SetDeadline(time.Time{})
	rd.MaxFrame = tune.FrameMax
	c.left = rd
	return nil
}

// expect reads the one method that the handshake allows next.
func (c *BrokerConn) expect(rd *amqp.Reader, m amqp.Method) (amqp.Frame, error) {
	f, err := next(rd, c.conn)
	if err != nil {
		return nil, err
	}
	if !is(f, m) || f.Channel() != 0 {
		if is(f, amqp.ConnectionClose) {
			c.Send(Method(0, amqp.ConnectionCloseOk))
			return nil, errHandled
		}
		return nil, amqp.Errorf(amqp.CommandInvalid, f.Method(), "%s in the handshake, expected %v", Describe(f), m)
	}
	if _, err := m.Spec().CheckArgs(f.Args()); err != nil {
		return nil, err
	}
	return f, nil
}

func checkTune(got, offer amqp.Tune) error {
	fail := func(field string, v int, word, bound string, limit int) error {
		return amqp.Errorf(amqp.NotAllowed, amqp.ConnectionTuneOk, "negotiated %s = %d is %s than the %s allowed value (%d)", field, v, word, bound, limit)
	}
	if offer.ChannelMax != 0 && (got.ChannelMax == 0 || got.ChannelMax > offer.ChannelMax) {
		return fail("channel_max", int(got.ChannelMax), "higher", "maximum", int(offer.ChannelMax))
	}
	if got.FrameMax != 0 && got.FrameMax < amqp.FrameMinSize {
		return fail("frame_max", int(got.FrameMax), "lower", "minimum", amqp.FrameMinSize)
	}
	if offer.FrameMax != 0 && (got.FrameMax == 0 || got.FrameMax > offer.FrameMax) {
		return fail("frame_max", int(got.FrameMax), "higher", "maximum", int(offer.FrameMax))
	}
	return nil
}

func (c *BrokerConn) open(name string, tune amqp.Tune) error {
	b := c.b
	b.mu.Lock()
	defer b.mu.Unlock()
	v := b.vhosts[name]
	allowed, limited := b.cfg.Access[c.login.User]
	if e := b.throttleLocked(amqp.ConnectionOpen); e != nil {
		b.countLocked(func(n *BrokerCounts) { n.Refused++ })
		return e
	}
	switch {
	case b.limit > 0 && b.counts.Open >= b.limit:
		b.countLocked(func(n *BrokerCounts) { n.Refused++ })
		return amqp.Errorf(amqp.NotAllowed, amqp.ConnectionOpen, "access to vhost '%s' refused for user '%s': connection limit (%d) is reached", name, c.login.User, b.limit)
	case v == nil && c.isLavin():
		b.countLocked(func(n *BrokerCounts) { n.Refused++ })
		return amqp.Errorf(amqp.NotAllowed, amqp.ConnectionOpen, "vhost not found")
	case v == nil:
		b.countLocked(func(n *BrokerCounts) { n.Refused++ })
		return amqp.Errorf(amqp.NotAllowed, amqp.ConnectionOpen, "vhost %s not found", name)
	case limited && !slices.Contains(allowed, name):
		b.countLocked(func(n *BrokerCounts) { n.Refused++ })
		return amqp.Errorf(amqp.NotAllowed, amqp.ConnectionOpen, "access to vhost '%s' refused for user '%s'", name, c.login.User)
	case b.closed:
		return errHandled
	}
	c.vhost, c.frameMax, c.chanMax = v, tune.FrameMax, tune.ChannelMax
	c.login.Tune, c.login.VHost = tune, name
	c.state = connOpen
	c.received = time.Now()
	c.Send(Method(0, amqp.ConnectionOpenOk, ""))
	if tune.Heartbeat > 0 {
		c.beat = time.AfterFunc(time.Duration(tune.Heartbeat)*time.Second/2, c.heartbeat)
	}
	b.countLocked(func(n *BrokerCounts) { n.Opened++; n.Open++ })
	return nil
}

// heartbeat sends one every half interval, and ends a connection that was silent for two.
func (c *BrokerConn) heartbeat() {
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	interval := time.Duration(c.login.Tune.Heartbeat) * time.Second
	switch {
	case c.state == connDone:
		return
	case c.lavin.mute:
		if time.Since(c.received) > interval/2 { // what LavinMQ gives a read
			Abort(c.conn)
			return
		}
		c.beat.Reset(interval / 2)
		return
	case time.Since(c.received) > 2*interval:
		Abort(c.conn)
		return
	}
	c.Send(amqp.Heartbeat)
	c.beat.Reset(interval / 2)
}

func (c *BrokerConn) serve() error {
	for {
		f, err := next(c.left, c.conn)
		if err != nil {
			return err
		}
		if err := c.take(f); err != nil {
			return err
		}
	}
}

// take gives one frame to the broker, with its lock held.
func (c *BrokerConn) take(f amqp.Frame) error {
	b := c.b
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.blocked && c.published && !b.closed && !c.isLavin() {
		b.changed.Wait() // an alarm: RabbitMQ does not read from who publishes
	}
	c.received = time.Now()
	if b.cfg.Intercept != nil && b.cfg.Intercept(c, f) {
		return nil
	}
	if c.state == connClosing {
		switch {
		case is(f, amqp.ConnectionCloseOk):
			return errHandled
		case is(f, amqp.ConnectionClose):
			c.Send(Method(0, amqp.ConnectionCloseOk))
		}
		return nil
	}
	if c.isLavin() {
		if handled, err := c.lavinLocked(f); handled {
			return err
		}
	}
	switch {
	case f.Type() == amqp.FrameHeartbeat:
		if f.Channel() != 0 {
			return amqp.Errorf(amqp.UnexpectedFrame, 0, "heartbeat on channel %d", f.Channel())
		}
		return nil
	case f.Channel() == 0:
		return c.takeZero(f)
	case c.chanMax != 0 && f.Channel() > c.chanMax:
		return amqp.Errorf(amqp.ChannelError, f.Method(), "channel number %d is larger than the negotiated channel_max of %d", f.Channel(), c.chanMax)
	}
	ch := c.channels[f.Channel()]
	if ch == nil {
		if !is(f, amqp.ChannelOpen) {
			return amqp.Errorf(amqp.ChannelError, f.Method(), "expected 'channel.open'")
		}
		ch = newBrokerChannel(c, f.Channel())
		c.channels[f.Channel()] = ch
		b.countLocked(func(n *BrokerCounts) { n.Channels++; n.ChansOpen++ })
		c.Send(Method(f.Channel(), amqp.ChannelOpenOk, ""))
		return nil
	}
	if b.cfg.Flavour == Alibaba {
		if handled, err := ch.alibabaLocked(f); handled {
			return err
		}
	}
	err := ch.take(f)
	var e *amqp.Error
	if errors.As(err, &e) && !amqp.IsHard(e.Code) {
		ch.failLocked(e)
		return nil
	}
	return err
}

// takeZero answers the methods of the connection itself.
func (c *BrokerConn) takeZero(f amqp.Frame) error {
	if f.Type() != amqp.FrameMethod {
		return amqp.Errorf(amqp.UnexpectedFrame, 0, "%s on channel 0", Describe(f))
	}
	m := f.Method()
	if _, err := m.Spec().CheckArgs(f.Args()); err != nil {
		return err
	}
	switch m {
	case amqp.ConnectionClose:
		if c.isLavin() {
			c.Send(Method(0, amqp.ConnectionCloseOk))
			return errLater
		}
		c.endLocked()
		c.Send(Method(0, amqp.ConnectionCloseOk))
		return errHandled
	case amqp.ConnectionUpdateSecret:
		a := amqp.ReadArgs(f)
		c.login.Password = string(a.LongStr())
		c.Send(Method(0, amqp.ConnectionUpdateSecretOk))
		return nil
	}
	return amqp.Errorf(amqp.CommandInvalid, m, "unexpected method %v on channel 0", m)
}

// can reports whether the client announced the capability.
func (c *BrokerConn) can(capability string) bool {
	_, caps, _ := amqp.Lookup(c.login.Properties, "capabilities")
	return amqp.LookupBool(caps, capability)
}

// blockLocked tells a publishing client about the alarm, once.
func (c *BrokerConn) blockLocked() {
	if c.b.blocked && c.published && !c.told && c.state == connOpen && c.can("connection.blocked") {
		c.told = true
		c.Send(Method(0, amqp.ConnectionBlocked, c.b.alarm))
	}
}

// closeLocked sends connection.close; what the client still says but close-ok is dropped.
func (c *BrokerConn) closeLocked(e *amqp.Error) {
	if c.state == connClosing || c.state == connDone {
		return
	}
	open := c.state == connOpen
	c.releaseLocked()
	c.state = connClosing
	c.b.countLocked(func(n *BrokerCounts) {
		n.Closes++
		if open {
			n.Open--
		}
	})
	c.Send(amqp.AppendClose(nil, 0, e))
	c.conn.SetReadDeadline(time.Now().Add(brokerCloseTimeout))
}

func (c *BrokerConn) awaitCloseOk() {
	rd := c.left
	if rd == nil {
		rd = amqp.NewReader(4096, 0)
	}
	for {
		f, err := next(rd, c.conn)
		if err != nil || is(f, amqp.ConnectionCloseOk) {
			return
		}
	}
}

// endLocked forgets the connection and gives back what it held.
func (c *BrokerConn) endLocked() {
	if c.state == connOpen {
		c.b.countLocked(func(n *BrokerCounts) { n.Open-- })
	}
	c.releaseLocked()
	c.state = connDone
	if c.beat != nil {
		c.beat.Stop()
	}
	delete(c.b.conns, c)
	c.b.changed.Broadcast()
}

// releaseLocked ends the channels and the exclusive queues.
func (c *BrokerConn) releaseLocked() {
	for _, ch := range c.channels {
		ch.releaseLocked()
	}
	for q := range c.exclusive {
		q.deleteLocked()
	}
	clear(c.exclusive)
}

// outQueue is the bytes waiting for a socket, and the one who writes them.
type outQueue struct {
	conn  net.Conn
	mu    sync.Mutex
	more  *sync.Cond
	buf   []byte
	ends  []int // where in buf each answer ends, when each is a write of its own
	each  bool
	ended bool
}

func newOutQueue(conn net.Conn, each bool) *outQueue {
	q := &outQueue{conn: conn, each: each}
	q.more = sync.NewCond(&q.mu)
	return q
}

func (q *outQueue) append(frames ...[]byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended {
		return
	}
	for _, f := range frames {
		q.buf = append(q.buf, f...)
	}
	if q.each {
		q.ends = append(q.ends, len(q.buf))
	}
	q.more.Signal()
}

// end has what is queued written and the connection closed.
func (q *outQueue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.conn.SetWriteDeadline(time.Now().Add(brokerCloseTimeout))
	q.more.Signal()
}

func (q *outQueue) run() {
	var spare []byte
	for {
		q.mu.Lock()
		for len(q.buf) == 0 && !q.ended {
			q.more.Wait()
		}
		buf, ends := q.buf, q.ends
		q.buf, q.ends = spare[:0], nil
		q.mu.Unlock()
		if len(buf) == 0 {
			q.conn.Close()
			return
		}
		if err := q.write(buf, ends); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				Abort(q.conn)
			}
			q.conn.Close()
			q.mu.Lock()
			q.ended, q.buf = true, nil
			q.mu.Unlock()
			return
		}
		if spare = buf; cap(spare) > 1<<20 {
			spare = nil
		}
	}
}

// write writes what is queued, at once or answer by answer.
func (q *outQueue) write(buf []byte, ends []int) error {
	if len(ends) == 0 {
		ends = []int{len(buf)}
	}
	at := 0
	for _, end := range ends {
		if _, err := q.conn.Write(buf[at:end]); err != nil {
			return err
		}
		at = end
	}
	return nil
}

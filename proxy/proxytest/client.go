// A raw client: small steps that a test puts together, whole operations for the usual
// ways, and nothing in the background: what it reads, it reads when it is asked to.

package proxytest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// ClientConfig says how a client connects. The zero value but for Addr is guest on "/".
type ClientConfig struct {
	Addr string // HOST:PORT
	// Dial opens the connection in place of TCP; a MemListener's Dial, say.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	TLS  *tls.Config

	User, Password, VHost string // "": guest, guest, /
	Mechanism             string // "": PLAIN; AMQPLAIN
	// Name is the connection_name among the client-properties.
	Name string
	// Properties is the inside of the client-properties; nil: usual capabilities and Name.
	Properties []byte
	// FrameMax and ChannelMax are asked for when smaller than what the server offers; 0: the server's.
	FrameMax   uint32
	ChannelMax uint16
	// Heartbeat is what tune-ok says, in seconds. The client sends none by itself.
	Heartbeat uint16
	// Timeout bounds each wait; 0: 10 s.
	Timeout time.Duration
}

func (c ClientConfig) withDefaults() ClientConfig {
	or := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	or(&c.User, "guest")
	or(&c.Password, "guest")
	or(&c.VHost, "/")
	or(&c.Mechanism, "PLAIN")
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	if c.Properties == nil {
		c.Properties = ClientProperties(c.Name)
	}
	return c
}

// ClientProperties is the inside of the client-properties of a client with all capabilities.
func ClientProperties(name string) []byte {
	var caps, b []byte
	for _, s := range []string{"publisher_confirms", "basic.nack", "consumer_cancel_notify", "connection.blocked", "authentication_failure_close"} {
		caps = amqp.AppendBoolField(caps, s, true)
	}
	b = amqp.AppendStringField(b, "product", "proxytest")
	b = amqp.AppendTableField(b, "capabilities", caps)
	if name != "" {
		b = amqp.AppendStringField(b, "connection_name", name)
	}
	return b
}

// Client is a raw AMQP client for one goroutine.
type Client struct {
	// Mechanisms are those that connection.start offers.
	Mechanisms string
	// ServerProperties is the inside of the server's table in connection.start.
	ServerProperties []byte
	// Offered is the server's tune, Tune what was settled.
	Offered, Tune amqp.Tune

	cfg   ClientConfig
	conn  net.Conn
	rd    *amqp.Reader
	aside []amqp.Frame // read while something else was awaited
	at    int          // where among them the frame last taken was
	seq   map[uint16]uint64
	acked map[uint16]uint64
}

// Message is a delivered, gotten or returned message.
type Message struct {
	Tag         uint64
	Redelivered bool
	Exchange    string
	Key         string
	ConsumerTag string // of a delivery
	Code        uint16 // of a return
	Count       uint32 // of a get: messages left
	Properties  []byte // flags and encoded properties of the content header
	Body        []byte
}

// ErrEmpty is Get's answer for an empty queue.
var ErrEmpty = errors.New("queue is empty")

// Connect opens the socket only.
func Connect(cfg ClientConfig) (*Client, error) {
	cfg = cfg.withDefaults()
	ctx, cancel := context.WithTimeout(context.Background(), cfg.Timeout)
	defer cancel()
	dial := cfg.Dial
	if dial == nil {
		var d net.Dialer
		dial = d.DialContext
	}
	conn, err := dial(ctx, "tcp", cfg.Addr)
	if err != nil {
		return nil, err
	}
	if cfg.TLS != nil {
		conn = tls.Client(conn, cfg.TLS)
	}
	return NewClient(conn, cfg), nil
}

// NewClient is a client on an open connection.
func NewClient(conn net.Conn, cfg ClientConfig) *Client {
	return &Client{cfg: cfg.withDefaults(), conn: conn, rd: amqp.NewReader(4096, 0), seq: map[uint16]uint64{}, acked: map[uint16]uint64{}}
}

// Dial connects and makes the whole handshake. A refusal is an *amqp.Error.
func Dial(cfg ClientConfig) (*Client, error) {
	c, err := Connect(cfg)
	if err != nil {
		return nil, err
	}
	if err := c.Handshake(); err != nil {
		c.Abort()
		return nil, err
	}
	return c, nil
}

// Handshake goes from the protocol header to open-ok.
func (c *Client) Handshake() error {
	if err := c.Start(); err != nil {
		return err
	}
	if err := c.TuneOk(); err != nil {
		return err
	}
	return c.Open()
}

// Start sends the protocol header and start-ok, and reads what the server offers to tune.
func (c *Client) Start() error {
	if err := c.Send(amqp.ProtocolHeader[:]); err != nil {
		return err
	}
	f, err := c.Expect(amqp.ConnectionStart)
	if err != nil {
		return err
	}
	a := amqp.ReadArgs(f)
	a.Octet()
	a.Octet()
	c.ServerProperties = append([]byte(nil), a.LongStr()...)
	c.Mechanisms = string(a.LongStr())
	response := []byte("\x00" + c.cfg.User + "\x00" + c.cfg.Password)
	switch c.cfg.Mechanism {
	case "EXTERNAL":
		response = []byte(c.cfg.User)
	case "AMQPLAIN":
		response = amqp.AppendStringField(nil, "LOGIN", c.cfg.User)
		response = amqp.AppendStringField(response, "PASSWORD", c.cfg.Password)
	}
	if err := c.Send(amqp.AppendStartOk(nil, c.cfg.Properties, c.cfg.Mechanism, response, "en_US")); err != nil {
		return err
	}
	if f, err = c.Expect(amqp.ConnectionTune); err != nil {
		return err
	}
	c.Offered, _ = amqp.ParseTune(f)
	return nil
}

// TuneOk settles the smaller of what is wanted and what is offered.
func (c *Client) TuneOk() error {
	c.Tune = c.Offered
	if c.cfg.FrameMax != 0 && (c.cfg.FrameMax < c.Tune.FrameMax || c.Tune.FrameMax == 0) {
		c.Tune.FrameMax = c.cfg.FrameMax
	}
	if c.cfg.ChannelMax != 0 && (c.cfg.ChannelMax < c.Tune.ChannelMax || c.Tune.ChannelMax == 0) {
		c.Tune.ChannelMax = c.cfg.ChannelMax
	}
	c.Tune.Heartbeat = c.cfg.Heartbeat
	return c.Send(amqp.AppendTune(nil, amqp.ConnectionTuneOk, c.Tune))
}

// Open asks for the vhost and waits for open-ok.
func (c *Client) Open() error {
	return c.Call(amqp.AppendOpen(nil, c.cfg.VHost), amqp.ConnectionOpenOk)
}

// Conn is the connection underneath.
func (c *Client) Conn() net.Conn { return c.conn }

// Unread is what has been read from the connection and not been asked for, for those who
// read on by themselves.
func (c *Client) Unread() []byte { return c.rd.Buffered() }

// Send writes frames, or any bytes, in one write.
func (c *Client) Send(frames ...[]byte) error {
	b := frames[0]
	if len(frames) > 1 {
		b = nil
		for _, f := range frames {
			b = append(b, f...)
		}
	}
	c.conn.SetWriteDeadline(time.Now().Add(c.cfg.Timeout))
	_, err := c.conn.Write(b)
	return err
}

// SendMethod sends one method, its arguments as Method takes them.
func (c *Client) SendMethod(channel uint16, m amqp.Method, args ...any) error {
	return c.Send(Method(channel, m, args...))
}

// Next is the next frame but heartbeats, as it came, those laid aside first. The frame
// is the caller's. The end of the connection is an error.
func (c *Client) Next() (amqp.Frame, error) { return c.NextWithin(c.cfg.Timeout) }

// NextWithin is Next with a timeout of its own; os.ErrDeadlineExceeded when it passed.
func (c *Client) NextWithin(timeout time.Duration) (amqp.Frame, error) {
	if len(c.aside) > 0 {
		f := c.aside[0]
		c.aside = c.aside[1:]
		return f, nil
	}
	return c.read(timeout)
}

func (c *Client) read(timeout time.Duration) (amqp.Frame, error) {
	c.conn.SetReadDeadline(time.Now().Add(timeout))
	for {
		f, err := c.rd.Next()
		if err != nil {
			return nil, err
		}
		if f == nil {
			if _, err := c.rd.Fill(c.conn); err != nil {
				return nil, err
			}
			continue
		}
		if f.Type() != amqp.FrameHeartbeat {
			return append(amqp.Frame(nil), f...), nil
		}
	}
}

// Expect takes the next frame, which must be the method. A close that comes in its place
// is answered and is the error, an *amqp.Error.
func (c *Client) Expect(m amqp.Method) (amqp.Frame, error) {
	f, err := c.Next()
	if err != nil {
		return nil, fmt.Errorf("waiting for %v: %w", m, err)
	}
	if is(f, m) {
		return f, nil
	}
	if err := c.closed(f); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("got %s, want %v", Describe(f), m)
}

// Await takes the next frame that is the method on the channel and lays aside what comes
// before it. A close of the channel or connection is answered and is the error.
func (c *Client) Await(channel uint16, m amqp.Method) (amqp.Frame, error) {
	return c.awaitAny(channel, func(f amqp.Frame) bool { return is(f, m) }, m)
}

func (c *Client) awaitAny(channel uint16, want func(amqp.Frame) bool, m amqp.Method) (amqp.Frame, error) {
	return c.awaitFrom(0, channel, want, m)
}

// awaitFrom looks at the frames laid aside from the given place on, then at new ones.
func (c *Client) awaitFrom(from int, channel uint16, want func(amqp.Frame) bool, m amqp.Method) (amqp.Frame, error) {
	for i := from; ; i++ {
		if i == len(c.aside) {
			f, err := c.read(c.cfg.Timeout)
			if err != nil {
				return nil, fmt.Errorf("waiting for %v on channel %d: %w", m, channel, err)
			}
			c.aside = append(c.aside, f)
		}
		f := c.aside[i]
		if f.Channel() != channel && f.Channel() != 0 {
			continue
		}
		match := f.Channel() == channel && want(f)
		if !match && !is(f, amqp.ConnectionClose) && !is(f, amqp.ChannelClose) {
			continue
		}
		c.aside = append(c.aside[:i:i], c.aside[i+1:]...)
		c.at = i
		if match {
			return f, nil
		}
		return nil, c.closed(f)
	}
}

func is(f amqp.Frame, m amqp.Method) bool {
	return f.Type() == amqp.FrameMethod && f.Method() == m
}

// closed answers a close and makes it an error; nil when f is none.
func (c *Client) closed(f amqp.Frame) error {
	switch {
	case is(f, amqp.ConnectionClose):
		_ = c.SendMethod(0, amqp.ConnectionCloseOk) // the close says more than a failed write
	case is(f, amqp.ChannelClose):
		_ = c.SendMethod(f.Channel(), amqp.ChannelCloseOk)
		delete(c.seq, f.Channel())
		delete(c.acked, f.Channel())
	default:
		return nil
	}
	return amqp.ParseClose(f)
}

// Call sends a request and awaits its answer on the same channel.
func (c *Client) Call(request []byte, reply amqp.Method) error {
	_, err := c.call(request, reply)
	return err
}

func (c *Client) call(request []byte, reply amqp.Method) (amqp.Frame, error) {
	if err := c.Send(request); err != nil {
		return nil, err
	}
	return c.Await(amqp.Frame(request).Channel(), reply)
}

// OpenChannel opens a channel.
func (c *Client) OpenChannel(channel uint16) error {
	return c.Call(Method(channel, amqp.ChannelOpen, ""), amqp.ChannelOpenOk)
}

// CloseChannel closes a channel and waits for the answer. What was laid aside of it is
// gone: it came before the answer, and the next channel of the number must not have it.
func (c *Client) CloseChannel(channel uint16) error {
	delete(c.seq, channel)
	delete(c.acked, channel)
	err := c.Call(Method(channel, amqp.ChannelClose, 200, "", 0, 0), amqp.ChannelCloseOk)
	if err == nil {
		c.aside = slices.DeleteFunc(c.aside, func(f amqp.Frame) bool { return f.Channel() == channel })
	}
	return err
}

// Bits of queue.declare.
const (
	Passive    = 1
	Durable    = 2
	Exclusive  = 4
	AutoDelete = 8
)

// DeclareQueue declares a queue with the bits and returns its name.
func (c *Client) DeclareQueue(channel uint16, queue string, bits int) (string, error) {
	f, err := c.call(Method(channel, amqp.QueueDeclare, 0, queue, bits, nil), amqp.QueueDeclareOk)
	if err != nil {
		return "", err
	}
	a := amqp.ReadArgs(f)
	return string(a.Str()), nil
}

// QueueLength is the number of messages that are ready in a queue.
func (c *Client) QueueLength(channel uint16, queue string) (int, error) {
	f, err := c.call(Method(channel, amqp.QueueDeclare, 0, queue, Passive, nil), amqp.QueueDeclareOk)
	if err != nil {
		return 0, err
	}
	a := amqp.ReadArgs(f)
	a.Str()
	return int(a.Long()), nil
}

// DeleteQueue deletes a queue.
func (c *Client) DeleteQueue(channel uint16, queue string) error {
	return c.Call(Method(channel, amqp.QueueDelete, 0, queue, 0), amqp.QueueDeleteOk)
}

// Publish sends a message without properties and waits for nothing.
func (c *Client) Publish(channel uint16, exchange, key string, body []byte) error {
	if _, ok := c.seq[channel]; ok {
		c.seq[channel]++
	}
	return c.Send(PublishBytes(channel, exchange, key, body, c.Tune.FrameMax))
}

// Confirm puts a channel into confirm mode.
func (c *Client) Confirm(channel uint16) error {
	if err := c.Call(Method(channel, amqp.ConfirmSelect, 0), amqp.ConfirmSelectOk); err != nil {
		return err
	}
	c.seq[channel], c.acked[channel] = 0, 0
	return nil
}

// WaitConfirms waits until all that was published on the channel is confirmed. It takes
// confirms in order, as a broker sends them for a classic queue; a nack is an error.
func (c *Client) WaitConfirms(channel uint16) error {
	for c.acked[channel] < c.seq[channel] {
		f, err := c.awaitAny(channel, func(f amqp.Frame) bool { return is(f, amqp.BasicAck) || is(f, amqp.BasicNack) }, amqp.BasicAck)
		if err != nil {
			return err
		}
		a := amqp.ReadArgs(f)
		tag, multiple := a.LongLong(), a.Octet() != 0
		if is(f, amqp.BasicNack) {
			return fmt.Errorf("publish %d on channel %d was refused by basic.nack", tag, channel)
		}
		next := c.acked[channel] + 1
		if tag > c.seq[channel] || tag < next || (tag != next && !multiple) {
			return fmt.Errorf("confirm for %d (multiple=%v) on channel %d, awaited from %d to %d", tag, multiple, channel, next, c.seq[channel])
		}
		c.acked[channel] = tag
	}
	return nil
}

// Get takes one message from a queue; ErrEmpty when there is none.
func (c *Client) Get(channel uint16, queue string, noAck bool) (*Message, error) {
	if err := c.Send(Method(channel, amqp.BasicGet, 0, queue, noAck)); err != nil {
		return nil, err
	}
	f, err := c.awaitAny(channel, func(f amqp.Frame) bool { return is(f, amqp.BasicGetOk) || is(f, amqp.BasicGetEmpty) }, amqp.BasicGetOk)
	if err != nil {
		return nil, err
	}
	if is(f, amqp.BasicGetEmpty) {
		return nil, ErrEmpty
	}
	a := amqp.ReadArgs(f)
	m := &Message{Tag: a.LongLong(), Redelivered: a.Octet() != 0, Exchange: string(a.Str()), Key: string(a.Str()), Count: a.Long()}
	return m, c.content(channel, m)
}

// content takes the header and the bodies that belong to a method just taken.
func (c *Client) content(channel uint16, m *Message) error {
	f, err := c.awaitFrom(c.at, channel, func(f amqp.Frame) bool { return f.Type() == amqp.FrameHeader }, amqp.BasicDeliver)
	if err != nil {
		return err
	}
	size := f.BodySize()
	m.Properties = f.Payload()[12:]
	m.Body = make([]byte, 0, size)
	for uint64(len(m.Body)) < size {
		f, err := c.awaitFrom(c.at, channel, func(f amqp.Frame) bool { return f.Type() == amqp.FrameBody }, amqp.BasicDeliver)
		if err != nil {
			return err
		}
		m.Body = append(m.Body, f.Payload()...)
	}
	return nil
}

// Qos sets the prefetch of consumers to come.
func (c *Client) Qos(channel, prefetch uint16) error {
	return c.Call(amqp.AppendQos(nil, channel, prefetch, false), amqp.BasicQosOk)
}

// Consume starts a consumer and returns its tag.
func (c *Client) Consume(channel uint16, queue, tag string, noAck bool) (string, error) {
	bits := 0
	if noAck {
		bits = 2
	}
	f, err := c.call(Method(channel, amqp.BasicConsume, 0, queue, tag, bits, nil), amqp.BasicConsumeOk)
	if err != nil {
		return "", err
	}
	a := amqp.ReadArgs(f)
	return string(a.Str()), nil
}

// Cancel ends a consumer.
func (c *Client) Cancel(channel uint16, tag string) error {
	return c.Call(Method(channel, amqp.BasicCancel, tag, 0), amqp.BasicCancelOk)
}

// Delivery waits for the next delivery on a channel.
func (c *Client) Delivery(channel uint16) (*Message, error) {
	f, err := c.Await(channel, amqp.BasicDeliver)
	if err != nil {
		return nil, err
	}
	a := amqp.ReadArgs(f)
	m := &Message{ConsumerTag: string(a.Str()), Tag: a.LongLong(), Redelivered: a.Octet() != 0, Exchange: string(a.Str()), Key: string(a.Str())}
	return m, c.content(channel, m)
}

// Return waits for the next basic.return on a channel.
func (c *Client) Return(channel uint16) (*Message, error) {
	f, err := c.Await(channel, amqp.BasicReturn)
	if err != nil {
		return nil, err
	}
	a := amqp.ReadArgs(f)
	m := &Message{Code: a.Short()}
	a.Str()
	m.Exchange, m.Key = string(a.Str()), string(a.Str())
	return m, c.content(channel, m)
}

// Ack acknowledges a delivery, or all up to it.
func (c *Client) Ack(channel uint16, tag uint64, multiple bool) error {
	return c.SendMethod(channel, amqp.BasicAck, tag, multiple)
}

// Closed waits for the server's close of the channel (or, with 0, the connection),
// answers it and returns what it says.
func (c *Client) Closed(channel uint16) (*amqp.Error, error) {
	m := amqp.ChannelClose
	if channel == 0 {
		m = amqp.ConnectionClose
	}
	_, err := c.awaitAny(channel, func(amqp.Frame) bool { return false }, m)
	var e *amqp.Error
	if errors.As(err, &e) {
		return e, nil
	}
	return nil, err
}

// Close closes the connection as the protocol wants it and waits for the answer.
func (c *Client) Close() error {
	defer c.conn.Close()
	return c.Call(Method(0, amqp.ConnectionClose, 200, "bye", 0, 0), amqp.ConnectionCloseOk)
}

// Hangup ends the socket without a word, Abort with a reset.
func (c *Client) Hangup() error { return c.conn.Close() }

// Abort ends the socket with a reset.
func (c *Client) Abort() { Abort(c.conn) }

// Flavours of the stand-in broker: brokers other than RabbitMQ, as far as they differ from
// it in what a pooling proxy must know. This file: the flavours, and what Alibaba Cloud's
// and a managed cluster behind one address do; LavinMQ has a file of its own.

package proxytest

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// Flavour names what a stand-in broker behaves like; "" is RabbitMQ.
type Flavour string

const (
	// LavinMQ keeps the queue declared last per connection, writes each answer by itself
	// without TCP_NODELAY, and has hard errors and abilities of its own.
	LavinMQ Flavour = "lavinmq"
	// Alibaba is Alibaba Cloud's ApsaraMQ for RabbitMQ: passwords that are signatures,
	// throttles told as 530, few channels, no confirms announced.
	Alibaba Flavour = "alibaba"
	// Managed is a cluster behind one address whose nodes come and go one by one.
	Managed Flavour = "managed"
)

// alibabaChannels is how many channels ApsaraMQ allows a connection.
const alibabaChannels = 64

// signatureAge is how old the time in a signed password may be.
const signatureAge = 15 * time.Minute

// TooManyRequests is the text of ApsaraMQ's throttle, told as 530 on the channel.
const TooManyRequests = "denied for too many requests"

// flavour fills in what the flavour has for settings that were not made.
func (cfg *BrokerConfig) flavour() error {
	switch cfg.Flavour {
	case "":
	case LavinMQ:
		if cfg.Tune == (amqp.Tune{}) {
			cfg.Tune = amqp.Tune{ChannelMax: 2048, FrameMax: 131072, Heartbeat: 300}
		}
		if cfg.Properties == nil {
			cfg.Properties = properties("LavinMQ", "2.9.1", "Crystal 1.21.0", everyCapability...)
		}
	case Alibaba:
		if cfg.Tune == (amqp.Tune{}) {
			cfg.Tune = amqp.Tune{ChannelMax: alibabaChannels, FrameMax: 131072, Heartbeat: 60}
		}
		if cfg.Properties == nil {
			cfg.Properties = properties("ApsaraMQ for RabbitMQ", "3.8.0", "Java", "basic.nack", "consumer_cancel_notify", "authentication_failure_close")
		}
	case Managed:
		if cfg.Nodes == 0 {
			cfg.Nodes = 3
		}
	default:
		return fmt.Errorf("stand-in broker: flavour %q; allowed are lavinmq, alibaba, managed and the empty one", cfg.Flavour)
	}
	return nil
}

var everyCapability = []string{"publisher_confirms", "exchange_exchange_bindings", "basic.nack", "consumer_cancel_notify",
	"connection.blocked", "consumer_priorities", "authentication_failure_close", "per_consumer_qos", "direct_reply_to"}

// properties is the inside of the server-properties of a product.
func properties(product, version, platform string, capabilities ...string) []byte {
	var caps []byte
	for _, c := range capabilities {
		caps = amqp.AppendBoolField(caps, c, true)
	}
	b := amqp.AppendTableField(nil, "capabilities", caps)
	b = amqp.AppendStringField(b, "product", product)
	b = amqp.AppendStringField(b, "platform", platform)
	return amqp.AppendStringField(b, "version", version)
}

// acceptsLocked is the verdict about a login.
func (b *Broker) acceptsLocked(login Login) bool {
	if password, known := b.users[login.User]; known && login.User != "" && password == login.Password {
		return true
	}
	return b.cfg.Flavour == Alibaba && b.signed(login.User, login.Password, time.Now())
}

// signed checks a user and password made of an AccessKey:
//
//	user     = base64("0:" instance ":" AccessKeyId)
//	password = base64(hex(HMAC-SHA1(key: timestamp, message: AccessKeySecret)) ":" timestamp)
//
// the hexadecimal digits in upper case, the timestamp in milliseconds. A pair that does
// not age has "2:" in front and is a plain user.
func (b *Broker) signed(user, password string, now time.Time) bool {
	name, err := base64.StdEncoding.DecodeString(user)
	if err != nil {
		return false
	}
	parts := strings.Split(string(name), ":")
	if len(parts) < 3 || parts[0] != "0" {
		return false
	}
	secret, known := b.cfg.AccessKeys[parts[2]]
	proof, err := base64.StdEncoding.DecodeString(password)
	if !known || err != nil {
		return false
	}
	_, stamp, ok := strings.Cut(string(proof), ":")
	ms, err := strconv.ParseInt(stamp, 10, 64)
	if !ok || err != nil || now.Sub(time.UnixMilli(ms)).Abs() > signatureAge {
		return false
	}
	return hmac.Equal(proof, signature(secret, ms))
}

func signature(secret string, ms int64) []byte {
	stamp := strconv.FormatInt(ms, 10)
	mac := hmac.New(sha1.New, []byte(stamp))
	mac.Write([]byte(secret))
	return []byte(strings.ToUpper(hex.EncodeToString(mac.Sum(nil))) + ":" + stamp)
}

// Sign makes the user and password that an application of ApsaraMQ sends at a time: another
// password each millisecond.
func Sign(instance, keyID, secret string, at time.Time) (user, password string) {
	return base64.StdEncoding.EncodeToString([]byte("0:" + instance + ":" + keyID)),
		base64.StdEncoding.EncodeToString(signature(secret, at.UnixMilli()))
}

// Throttle refuses the next n requests that ApsaraMQ counts (logins to a vhost,
// queue.declare, exchange.declare, basic.get) with 530 and TooManyRequests.
func (b *Broker) Throttle(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.throttled = n
}

// throttleLocked is the throttle's error for one request, or nil.
func (b *Broker) throttleLocked(m amqp.Method) *amqp.Error {
	if b.throttled == 0 {
		return nil
	}
	b.throttled--
	return &amqp.Error{Code: amqp.NotAllowed, Method: m, Text: TooManyRequests + ", ReqId:5FB4C999314635F952FCBFF6"}
}

// LoseChannels makes the broker forget the open channels of every connection, as ApsaraMQ
// does where processes share a connection and open and close often: the next frame on one
// of them is answered by 504 ChannelNotFind, which ends the connection.
func (b *Broker) LoseChannels() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.conns {
		for _, ch := range c.channels {
			ch.lost = true
		}
	}
}

// alibabaLocked sees the frames of an open channel before the broker does.
func (ch *brokerChannel) alibabaLocked(f amqp.Frame) (handled bool, err error) {
	var m amqp.Method
	if f.Type() == amqp.FrameMethod {
		m = f.Method()
	}
	if ch.lost {
		return true, &amqp.Error{Code: amqp.ChannelError, Method: m, Text: "ChannelNotFind, ReqId:5FB4C999314635F952FCBFF6"}
	}
	switch m {
	case amqp.QueueDeclare, amqp.ExchangeDeclare, amqp.BasicGet:
		if e := ch.c.b.throttleLocked(m); e != nil {
			ch.failLocked(e) // the channel alone, although 530 is a code of connections
			return true, nil
		}
	}
	return false, nil
}

// Sever ends the connections of one node of a managed broker as a node that is replaced
// does: 320 to each, then the socket. New connections go to the others until Return.
func (b *Broker) Sever(node int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away[node] = true
	for c := range b.conns {
		if c.node == node && c.state == connOpen {
			c.closeLocked(&amqp.Error{Code: amqp.ConnectionForced, Text: "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'"})
		}
	}
}

// Return lets a severed node take connections again.
func (b *Broker) Return(node int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.away, node)
}

// Nodes is how many open connections each node of a managed broker has.
func (b *Broker) Nodes() []int {
	b.mu.Lock()
	defer b.mu.Unlock()
	held := make([]int, b.cfg.Nodes)
	for c := range b.conns {
		if c.state == connOpen {
			held[c.node]++
		}
	}
	return held
}

// nodeLocked picks the node of a new connection as a balancer does, one after the other
// among those that are there; -1: none is.
func (b *Broker) nodeLocked() int {
	for range b.cfg.Nodes {
		b.turn = (b.turn + 1) % b.cfg.Nodes
		if !b.away[b.turn] {
			return b.turn
		}
	}
	return -1
}

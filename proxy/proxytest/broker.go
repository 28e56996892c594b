// The stand-in broker: AMQP 0-9-1 as RabbitMQ speaks it, in memory, for tests, the
// demo and the benchmark. This file: what it is told, its counters, its life.

package proxytest

import (
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// BrokerConfig says how a stand-in broker is. The zero value is RabbitMQ on a free
// loopback port with guest, guest and "/".
type BrokerConfig struct {
	// Listener takes the connections; nil: a free loopback port.
	Listener net.Listener
	// TLS wraps what the listener accepts.
	TLS *tls.Config
	// Users maps names to passwords; nil: guest to guest.
	Users map[string]string
	// Access lists the vhosts a user may open; a user who is not in it may open all.
	Access map[string][]string
	// VHosts are the vhosts there are; nil: "/".
	VHosts []string
	// Tune is what the broker offers; the zero value: DefaultTune.
	Tune amqp.Tune
	// Properties is the inside of the server-properties; nil: those of RabbitMQ 3.10.
	Properties []byte
	// Flavour makes it another broker than RabbitMQ; its Tune and Properties then are the
	// default ones.
	Flavour Flavour
	// AccessKeys maps Alibaba Cloud's AccessKey ids to their secrets.
	AccessKeys map[string]string
	// Nodes is how many nodes a managed broker has; 0: three.
	Nodes int
	// Intercept, when set, sees each frame after the handshake before the broker does, with
	// the broker's lock held. It may answer with c.Send; when it returns true the broker
	// does not see the frame.
	Intercept func(c *BrokerConn, f amqp.Frame) bool
}

// BrokerCounts is a snapshot of what a broker has seen.
type BrokerCounts struct {
	Accepted  int // sockets accepted
	Opened    int // connections that heard open-ok
	Open      int // of these, open now
	Logins    int // start-ok with the right secret
	Refused   int // logins and opens refused
	Channels  int // channels opened
	ChansOpen int // of these, open now
	Published int // messages received whole
	Delivered int // messages sent to consumers and getters
	Acked     int // messages acknowledged
	Closes    int // connection.close sent for an error
	SoftError int // channel.close sent
}

// Broker is a stand-in broker.
type Broker struct {
	cfg BrokerConfig
	ln  net.Listener
	wg  sync.WaitGroup

	mu      sync.Mutex
	changed *sync.Cond // the counters, the alarm or the set of connections
	counts  BrokerCounts
	users   map[string]string
	vhosts  map[string]*vhost
	conns   map[*BrokerConn]struct{}
	serial  int // of generated names
	alarm   string
	blocked bool
	closed  bool

	limit     int          // of open connections; 0: none
	throttled int          // requests still to be refused (Alibaba)
	turn      int          // the node that took the last connection (Managed)
	away      map[int]bool // nodes that are severed
}

// NewBroker starts a broker.
func NewBroker(cfg BrokerConfig) (*Broker, error) {
	if err := cfg.flavour(); err != nil {
		return nil, err
	}
	b := &Broker{cfg: cfg, ln: cfg.Listener, users: map[string]string{"guest": "guest"}, vhosts: map[string]*vhost{}, conns: map[*BrokerConn]struct{}{}, away: map[int]bool{}}
	b.changed = sync.NewCond(&b.mu)
	if b.ln == nil {
		var err error
		if b.ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return nil, fmt.Errorf("stand-in broker: %w", err)
		}
	}
	if cfg.Users != nil {
		b.users = map[string]string{}
		for user, password := range cfg.Users {
			b.users[user] = password
		}
	}
	if cfg.VHosts == nil {
		cfg.VHosts = []string{"/"}
	}
	for _, name := range cfg.VHosts {
		b.vhosts[name] = newVHost(b, name)
	}
	if b.cfg.Tune == (amqp.Tune{}) {
		b.cfg.Tune = DefaultTune
	}
	if b.cfg.Properties == nil {
		b.cfg.Properties = RabbitMQProperties("3.10.8")
	}
	b.wg.Add(1)
	go b.accept()
	return b, nil
}

// StartBroker is NewBroker for a test; it ends with the test.
func StartBroker(t testing.TB, cfg BrokerConfig) *Broker {
	t.Helper()
	b, err := NewBroker(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// Addr is the HOST:PORT to connect to.
func (b *Broker) Addr() string { return b.ln.Addr().String() }

// URL is the broker's address for clients, without user.
func (b *Broker) URL() string {
	u := url.URL{Scheme: "amqp", Host: b.Addr()}
	if b.cfg.TLS != nil {
		u.Scheme = "amqps"
	}
	return u.String()
}

func (b *Broker) accept() {
	defer b.wg.Done()
	for {
		conn, err := b.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors, say: the next one may do
			continue
		}
		if tcp, ok := conn.(*net.TCPConn); ok && b.cfg.Flavour == LavinMQ {
			tcp.SetNoDelay(false) //nolint:errcheck // an error: the connection has gone
		}
		if b.cfg.TLS != nil {
			conn = tls.Server(conn, b.cfg.TLS)
		}
		c := newBrokerConn(b, conn)
		b.mu.Lock()
		if b.closed {
			b.mu.Unlock()
			conn.Close()
			return
		}
		if b.cfg.Nodes > 0 {
			if c.node = b.nodeLocked(); c.node < 0 {
				b.mu.Unlock()
				Abort(conn)
				continue
			}
		}
		b.conns[c] = struct{}{}
		b.counts.Accepted++
		b.wg.Add(2)
		b.changed.Broadcast()
		b.mu.Unlock()
		go func() { defer b.wg.Done(); c.run() }()
		go func() { defer b.wg.Done(); c.out.run() }()
	}
}

// Close ends the listener and every connection and waits for the broker's goroutines.
func (b *Broker) Close() {
	b.mu.Lock()
	b.closed = true
	b.blocked = false
	b.changed.Broadcast()
	b.mu.Unlock()
	b.ln.Close()
	b.Cut()
	b.wg.Wait()
}

// Counts is a snapshot of the counters.
func (b *Broker) Counts() BrokerCounts {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.counts
}

// WaitFor waits until cond holds of the counters; false after the timeout.
func (b *Broker) WaitFor(timeout time.Duration, cond func(BrokerCounts) bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	late := false
	timer := time.AfterFunc(timeout, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		late = true
		b.changed.Broadcast()
	})
	defer timer.Stop()
	for !cond(b.counts) {
		if late {
			return false
		}
		b.changed.Wait()
	}
	return true
}

// count changes the counters; the lock is held.
func (b *Broker) countLocked(f func(*BrokerCounts)) {
	f(&b.counts)
	b.changed.Broadcast()
}

// SetLimit bounds the connections that may be open, as RabbitMQ's limit for a vhost does; 0: no bound.
func (b *Broker) SetLimit(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limit = n
}

// AddVHost makes a vhost that was not there.
func (b *Broker) AddVHost(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.vhosts[name] = newVHost(b, name)
}

// SetUser adds a user or changes a password; connections that are open stay open.
func (b *Broker) SetUser(user, password string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.users[user] = password
}

// SetAccess lists the vhosts that a user may open from now on; connections that are open stay open.
func (b *Broker) SetAccess(user string, vhosts ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	access := maps.Clone(b.cfg.Access) // the map is the caller's
	if access == nil {
		access = make(map[string][]string)
	}
	access[user] = vhosts
	b.cfg.Access = access
}

// RemoveUser makes further logins of a user fail.
func (b *Broker) RemoveUser(user string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.users, user)
}

// Messages is how many messages are ready in a queue of a vhost; -1: there is no such queue.
func (b *Broker) Messages(vhost, queue string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if v := b.vhosts[vhost]; v != nil && v.queues[queue] != nil {
		return len(v.queues[queue].ready)
	}
	return -1
}

// Bodies are those of the messages that are ready in a queue of a vhost.
func (b *Broker) Bodies(vhost, queue string) [][]byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	var bodies [][]byte
	if v := b.vhosts[vhost]; v != nil && v.queues[queue] != nil {
		for _, m := range v.queues[queue].ready {
			bodies = append(bodies, m.body)
		}
	}
	return bodies
}

// Connections are the connection_names of the open connections ("" where a client gave none).
func (b *Broker) Connections() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var names []string
	for c := range b.conns {
		if c.state == connOpen {
			names = append(names, c.name)
		}
	}
	return names
}

// Block raises an alarm: as in RabbitMQ, connections that publish are told (when they can
// be) and not read from any more.
func (b *Broker) Block(reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.blocked, b.alarm = true, reason
	if b.cfg.Flavour == LavinMQ {
		return // it announces connection.blocked and never sends it
	}
	for c := range b.conns {
		c.blockLocked()
	}
}

// Unblock ends the alarm.
func (b *Broker) Unblock() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.blocked = false
	for c := range b.conns {
		if c.told {
			c.told = false
			c.Send(Method(0, amqp.ConnectionUnblocked))
		}
	}
	b.changed.Broadcast()
}

// CloseConnections closes every open connection with the code and text, as
// "rabbitmqctl close_all_connections" does with 320.
func (b *Broker) CloseConnections(code uint16, text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.conns {
		if c.state == connOpen {
			c.closeLocked(&amqp.Error{Code: code, Text: text})
		}
	}
}

// Cut ends every connection with a reset.
func (b *Broker) Cut() {
	b.mu.Lock()
	conns := make([]*BrokerConn, 0, len(b.conns))
	for c := range b.conns {
		conns = append(conns, c)
	}
	b.mu.Unlock()
	for _, c := range conns {
		Abort(c.conn)
	}
}

// newName makes a name that the broker gives; the lock is held.
func (b *Broker) newNameLocked(prefix string) string {
	b.serial++
	return fmt.Sprintf("%s%06d", prefix, b.serial)
}

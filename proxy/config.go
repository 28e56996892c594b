// Settings of the engine, with their defaults and bounds. Where a setting comes
// from (file, environment, command line) is no matter of this package.

package proxy

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/advice"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
)

// PoolMode says how a listener's clients share upstreams.
type PoolMode string

const (
	// PoolAuto shares upstreams until a client needs one of its own.
	PoolAuto PoolMode = "auto"
	// PoolShared always carries the channels of many clients on one upstream.
	PoolShared PoolMode = "shared"
	// PoolSession gives each connected client an upstream of its own, reused after it left.
	PoolSession PoolMode = "session"
)

// Listener is one address on which clients are accepted.
type Listener struct {
	// Address is HOST:PORT; port 0 lets the system choose.
	Address string
	// Mode is how clients accepted here share upstreams.
	Mode PoolMode
	// MatchProperties lets an upstream, in mode session, be reused only by clients whose
	// client-properties are equal, byte for byte, to those it was opened with. In the
	// other modes sessions are reused by any client of their identity.
	MatchProperties bool
	// TLS is what clients are met with; nil: plain AMQP.
	TLS *ServerTLS
	// Proxy are the balancers that tell the addresses of clients; nil: they come themselves.
	Proxy *ProxyProtocol
	// Access is who may connect here.
	Access Access
}

// Upstream is the broker to which connections are pooled.
type Upstream = broker.Target

// Which of several brokers is asked.
const (
	// BalanceSpread asks the one with the fewest connections.
	BalanceSpread = "spread"
	// BalanceOrder asks the first that can be reached.
	BalanceOrder = "order"
)

// Config is all that the engine can be told. Take DefaultConfig and change it.
type Config struct {
	Listeners []Listener
	// Upstream is where the broker is, Others where else: nodes of one cluster, whose users, vhosts
	// and queues are the same.
	Upstream Upstream
	Others   []Upstream
	// Balance is which of several is asked: BalanceSpread or BalanceOrder.
	Balance string
	// Brokers are others, by name, and Routes say which vhosts are there: what is at none is at Upstream.
	Brokers []Broker
	Routes  []Route
	// DNSRefresh is how often names are asked for their addresses, each of which counts as one of
	// several; 0: a name is one, whatever its addresses.
	DNSRefresh time.Duration
	// ProxyProtocol is what each connection to the broker begins with: "v1", "v2", or nothing:
	// a session's has the address of its client, all others the proxy's own.
	ProxyProtocol string

	// Users are those whose credentials the proxy keeps; about others UnknownUsers says who decides, "" the broker.
	Users        []User
	UnknownUsers UnknownUsers

	// Access is who may connect, to whatever listener.
	Access Access
	// Limits are by user, vhost, address or listener.
	Limits []Limit
	// MaxClients bounds the clients held at a time; 0: no bound.
	MaxClients int
	// LoopbackUsers are refused from other machines where the broker is on this one's loopback.
	LoopbackUsers []string
	// MaxHandshakes bounds the clients that have not logged in yet, half of it those of one
	// address; more are closed at once. 0: no bound.
	MaxHandshakes int
	// MaxUpstreams bounds the connections to the broker in all; 0: no bound.
	MaxUpstreams int
	// MaxUpstreamsPerIdentity bounds them per user, secret and vhost; 0: no bound.
	MaxUpstreamsPerIdentity int
	// MaxChannels is how many channels of clients one upstream carries, 1..65535.
	// The broker's channel_max bounds it further.
	MaxChannels int
	// Spread is how many connections an identity has for publishers, and for readers, before channels
	// share them: 1 fills one before the next is opened.
	Spread int
	// SharedPrefetchLimit is the prefetch above which a consumer counts as unbounded, 1..65535.
	SharedPrefetchLimit int
	// ReuseChannels keeps channels that have only published for the next client of the
	// identity, instead of closing them at the broker. It needs FastClose.
	ReuseChannels bool
	// IdleChannels bounds the channels that one upstream keeps, 0..65535.
	IdleChannels int
	// FastClose answers the close of a quiet channel or connection without waiting for the broker.
	FastClose bool

	// MaxMessageSize bounds the body of a publish in bytes.
	MaxMessageSize int64
	// MessageBuffer bounds the bytes that have come of all publishes that are not yet whole;
	// readers wait their turn above it. At least MaxMessageSize, better several times that.
	MessageBuffer int64
	// ClientQueue bounds the bytes waiting for one client's socket.
	ClientQueue int
	// ClientQueues bounds them for all clients together: the longest queue goes first. 0: no bound.
	ClientQueues int64

	// IdleTimeout closes an upstream that carried no channel for so long.
	IdleTimeout time.Duration
	// MaxLifetime retires an upstream gracefully after this age; 0: never.
	MaxLifetime time.Duration
	// AuthTTL is how long a login counts as verified after the broker accepted it.
	AuthTTL time.Duration
	// ConnectTimeout bounds the broker's whole handshake: TCP, TLS and AMQP.
	ConnectTimeout time.Duration
	// Hold is how long who comes while the broker is away waits for it, instead of failing.
	Hold time.Duration
	// RetryDelay is how long logins fail fast after a failed connect.
	RetryDelay time.Duration
	// WaitTimeout is how long a client waits for a place at a bound.
	WaitTimeout time.Duration
	// HandshakeTimeout bounds the client's handshake.
	HandshakeTimeout time.Duration
	// CloseTimeout bounds the wait for the broker's close-ok of a channel that was not quiet.
	CloseTimeout time.Duration
	// WriteTimeout ends a peer whose socket takes no byte for so long.
	WriteTimeout time.Duration
	// DrainTimeout is how long clients may finish when the proxy stops.
	DrainTimeout time.Duration

	// Heartbeat is asked of the broker on upstreams, in whole seconds; the smaller of
	// this and the broker's own is used. 0 takes the broker's.
	Heartbeat time.Duration

	// Advice has applications judged by what they do, but for the rules of AdviceMute.
	Advice     bool
	AdviceMute []string

	// Version is told to clients and brokers in a field of the properties.
	Version string
	// Logger takes the engine's log; nil: slog.Default().
	Logger *slog.Logger
	// Dial opens the TCP connection to the broker; nil: net.Dialer with keep-alive.
	// A seam for tests and for other transports.
	Dial DialFunc
	// Lookup asks for the addresses of a broker's name; nil: the system's resolver, or none where
	// Dial is set.
	Lookup broker.LookupFunc
}

// DefaultConfig has every default; only Upstream and Listeners must be looked at.
func DefaultConfig() Config {
	return Config{
		Listeners:     []Listener{{Address: "127.0.0.1:5673", Mode: PoolAuto, MatchProperties: true}},
		Upstream:      Upstream{Host: "localhost", Port: 5672},
		Balance:       BalanceSpread,
		DNSRefresh:    30 * time.Second,
		ProxyProtocol: "off",
		UnknownUsers:  UnknownBroker,
		LoopbackUsers: []string{"guest"},
		MaxHandshakes: 2000,

		MaxUpstreamsPerIdentity: 2000,

		MaxChannels:         200,
		Spread:              1,
		SharedPrefetchLimit: 1000,
		ReuseChannels:       true,
		IdleChannels:        32,
		FastClose:           true,
		MaxMessageSize:      128 << 20,
		MessageBuffer:       1 << 30,
		ClientQueue:         16 << 20,
		ClientQueues:        256 << 20,
		IdleTimeout:         300 * time.Second,
		MaxLifetime:         time.Hour,
		AuthTTL:             30 * time.Second,
		ConnectTimeout:      5 * time.Second,
		RetryDelay:          time.Second,
		WaitTimeout:         5 * time.Second,
		HandshakeTimeout:    10 * time.Second,
		CloseTimeout:        5 * time.Second,
		WriteTimeout:        30 * time.Second,
		DrainTimeout:        20 * time.Second,
		Heartbeat:           15 * time.Second,
		Advice:              true,
		Version:             "dev",
	}
}

// upstreams are all addresses of the broker.
func (c *Config) upstreams() []Upstream { return append([]Upstream{c.Upstream}, c.Others...) }

// Validate reports every setting that is out of range, each with what is allowed.
func (c *Config) Validate() error {
	var errs []error
	bad := func(name string, got any, allowed string) {
		errs = append(errs, fmt.Errorf("%s is %v, allowed is %s", name, got, allowed))
	}
	if len(c.Listeners) == 0 {
		errs = append(errs, errors.New("no listener is set, at least one is needed"))
	}
	for _, l := range c.Listeners {
		if _, port, err := net.SplitHostPort(l.Address); err != nil {
			bad("listener address", strconv.Quote(l.Address), "HOST:PORT")
		} else if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
			bad("listener port", strconv.Quote(port), "0 to 65535")
		}
		switch l.Mode {
		case PoolAuto, PoolShared, PoolSession:
		default:
			bad("pool_mode", strconv.Quote(string(l.Mode)), `"auto", "shared" or "session"`)
		}
		errs = append(errs, l.TLS.validate(l.Address)...)
		if err := l.Proxy.validate(l.Address); err != nil {
			errs = append(errs, err)
		}
	}
	for _, u := range c.allUpstreams() {
		if u.Host == "" {
			bad("upstream host", `""`, "a host name or an IP address")
		}
		if u.Port < 1 || u.Port > 65535 {
			bad("upstream port", u.Port, "1 to 65535")
		}
	}
	switch c.Balance {
	case "", BalanceSpread, BalanceOrder:
	default:
		bad("balance", strconv.Quote(c.Balance), `"spread" or "order"`)
	}
	switch c.ProxyProtocol {
	case "", "off", "v1", "v2":
	default:
		bad("upstream proxy_protocol", strconv.Quote(c.ProxyProtocol), `"off", "v1" or "v2"`)
	}
	errs = append(errs, c.validateRoutes()...)
	errs = append(errs, c.validateUsers()...)
	for _, p := range ValidateLimits(c.Limits) {
		errs = append(errs, errors.New(p))
	}
	for _, id := range c.AdviceMute {
		if !advice.Known(id) {
			bad("advice mute", strconv.Quote(id), "the name of a rule")
		}
	}
	ranged := func(name string, v, lo, hi int64) {
		if v < lo || v > hi {
			bad(name, v, fmt.Sprintf("%d to %d", lo, hi))
		}
	}
	ranged("max_clients", int64(c.MaxClients), 0, 10_000_000)
	ranged("max_handshakes", int64(c.MaxHandshakes), 0, 10_000_000)
	ranged("max_upstreams", int64(c.MaxUpstreams), 0, 1_000_000)
	ranged("max_upstreams_per_identity", int64(c.MaxUpstreamsPerIdentity), 0, 1_000_000)
	ranged("max_channels", int64(c.MaxChannels), 1, 65535)
	ranged("spread", int64(c.Spread), 1, 1000)
	ranged("idle_channels", int64(c.IdleChannels), 0, 65535)
	ranged("shared_prefetch_limit", int64(c.SharedPrefetchLimit), 1, 65535)
	ranged("max_message_size", c.MaxMessageSize, 1, 1<<40)
	ranged("message_buffer", c.MessageBuffer, c.MaxMessageSize, 1<<42)
	ranged("client_queue", int64(c.ClientQueue), 64<<10, 1<<32)
	if c.ClientQueues != 0 {
		ranged("client_queues", c.ClientQueues, 1<<20, 1<<42)
	}
	timed := func(name string, v, lo, hi time.Duration) {
		if v < lo || v > hi {
			bad(name, v, fmt.Sprintf("%v to %v", lo, hi))
		}
	}
	const year = 365 * 24 * time.Hour
	timed("idle_timeout", c.IdleTimeout, time.Second, year)
	if c.MaxLifetime != 0 {
		timed("max_lifetime", c.MaxLifetime, time.Second, year)
	}
	timed("dns_refresh", c.DNSRefresh, 0, 24*time.Hour)
	timed("auth_ttl", c.AuthTTL, 0, year)
	timed("connect_timeout", c.ConnectTimeout, 100*time.Millisecond, time.Hour)
	timed("hold", c.Hold, 0, time.Hour)
	timed("retry_delay", c.RetryDelay, 0, time.Hour)
	timed("wait_timeout", c.WaitTimeout, 0, time.Hour)
	timed("handshake_timeout", c.HandshakeTimeout, 100*time.Millisecond, time.Hour)
	timed("close_timeout", c.CloseTimeout, 100*time.Millisecond, time.Hour)
	timed("write_timeout", c.WriteTimeout, time.Second, year)
	timed("drain_timeout", c.DrainTimeout, 0, 24*time.Hour)
	timed("heartbeat", c.Heartbeat, 0, 65535*time.Second)
	return errors.Join(errs...)
}

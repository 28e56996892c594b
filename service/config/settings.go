// Package config holds all settings of the program: what they are called, what they may
// be, where they come from (command line, environment, file, default, in that order of
// rank) and the texts made from their one table: flags, sample file, settings page, man page.

package config

import (
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
)

// Settings are the values in force, after all sources have been looked at.
type Settings struct {
	// Engine has every setting that the engine takes as it is. Its Listeners, Upstream and
	// Others are not used here: see Listeners and Broker, and ProxyConfig.
	Engine    proxy.Config
	Listeners []Listener
	Users     []User
	Limits    []Limit
	Auth      Auth
	Broker    Broker   // the first of those that upstream.url names
	Others    []Broker // the others
	Named     []NamedBroker
	Routes    []Route
	TLS       TLS
	HTTP      HTTP
	Admin     Admin
	Log       Log
	// TermTimeout bounds the end of a drain, after clients were told to close; -1: no bound.
	TermTimeout time.Duration
	// DrainDelay is how long clients are still accepted after a request to stop.
	DrainDelay time.Duration
	// UpgradeDrain is how long clients may stay with the old process after an upgrade.
	UpgradeDrain time.Duration
	// MemoryLimit is MemoryAuto or MemoryOff.
	MemoryLimit string

	// The [[user]], [[limit]], [[broker]] and [[route]] that is being read or written, see Setting.at.
	user   User
	limit  Limit
	broker NamedBroker
	route  Route
}

// Auth says who decides about users that have no [[user]].
type Auth struct {
	UnknownUsers string // "broker" or "refuse"
}

// Whether Go's collector is told of the memory limit that the system sets.
const (
	MemoryAuto = "auto"
	MemoryOff  = "off"
)

// Listener is one [[listener]] table.
type Listener struct {
	Address         string // host name or IP address, without brackets
	Port            int    // 0: any free port
	PoolMode        proxy.PoolMode
	MatchProperties bool

	TLS               bool
	CertFile, KeyFile []string // pairs, in their order
	ClientCert        proxy.ClientCert
	ClientCAFile      string
	TLSMinVersion     string // "1.2" or "1.3"
	ExternalUser      string // proxy.ExternalUser

	ProxyProtocol         string // "off" or "required"
	ProxyFrom, DirectFrom []netip.Prefix

	Allow, Deny []netip.Prefix
}

// Brokers are all that upstream.url names.
func (s *Settings) Brokers() []Broker { return append([]Broker{s.Broker}, s.Others...) }

// BrokersText is their addresses, for who looks.
func (s *Settings) BrokersText() string {
	var all []string
	for _, b := range s.Brokers() {
		all = append(all, b.Address())
	}
	return strings.Join(all, ", ")
}

// HostPort is the address as net.Listen takes it.
func (l Listener) HostPort() string { return hostPort(l.Address, l.Port) }

// Broker is where upstream.url points to, without its user, password and vhost.
type Broker struct {
	Host string // without brackets
	Port int
	TLS  bool
}

// Address is HOST:PORT as net.Dial takes it.
func (b Broker) Address() string { return hostPort(b.Host, b.Port) }

// String is the URL in full.
func (b Broker) String() string {
	if b.TLS {
		return "amqps://" + b.Address()
	}
	return "amqp://" + b.Address()
}

// TLS are the settings of an amqps connection to the broker.
type TLS struct {
	CAFile, CertFile, KeyFile string // "" when not set
	ServerName                string // "": the host of the URL
	Verify                    bool
}

// HTTP is where metrics and health are served.
type HTTP struct {
	Address string
	Port    int    // 0: not served
	Hosts   string // names besides the address's
	Pprof   bool
	Page    bool
	// PasswordFile holds the password of the page, "": none is asked for.
	PasswordFile string
}

// HostPort is the address as net.Listen takes it, "" when HTTP is off.
func (h HTTP) HostPort() string {
	if h.Port == 0 {
		return ""
	}
	return hostPort(h.Address, h.Port)
}

// Admin is where the admin channel is.
type Admin struct {
	Socket string // "": the service's own place, "off": nowhere
}

// Log is where the log goes and how it looks.
type Log struct {
	Level      slog.Level
	Format     string // "text" or "json"
	File       string // "": no file
	MaxSize    int64  // bytes
	MaxAge     time.Duration
	MaxBackups int
	Compress   bool
}

// Defaults has every setting at its default; what the engine takes comes from the engine.
func Defaults() Settings {
	engine := proxy.DefaultConfig()
	s := Settings{
		Engine:      engine,
		Broker:      Broker{Host: engine.Upstream.Host, Port: engine.Upstream.Port, TLS: engine.Upstream.TLS != nil},
		TLS:         TLS{Verify: true},
		HTTP:        HTTP{Address: "127.0.0.1", Port: 15673, Page: true},
		Log:         Log{Level: slog.LevelInfo, Format: "text", MaxSize: 100 << 20, MaxAge: 30 * day, MaxBackups: 10, Compress: true},
		TermTimeout: 10 * time.Second, UpgradeDrain: time.Hour,
		MemoryLimit: MemoryAuto,
		user:        defaultUser(),
		limit:       defaultLimit(),
		broker:      defaultBroker(),
		route:       defaultRoute(),
		Auth:        Auth{UnknownUsers: string(proxy.UnknownBroker)},
	}
	for range engine.Listeners {
		s.Listeners = append(s.Listeners, defaultListener())
	}
	return s
}

func defaultListener() Listener {
	first := proxy.DefaultConfig().Listeners[0]
	host, port, _ := net.SplitHostPort(first.Address)
	n, _ := strconv.Atoi(port)
	return Listener{Address: host, Port: n, PoolMode: first.Mode, MatchProperties: first.MatchProperties,
		ClientCert: proxy.ClientCertNone, TLSMinVersion: "1.2", ExternalUser: string(proxy.ExternalOff), ProxyProtocol: "off"}
}

// hostPort is net.JoinHostPort for hosts with or without brackets.
func hostPort(host string, port int) string {
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	return net.JoinHostPort(host, strconv.Itoa(port))
}

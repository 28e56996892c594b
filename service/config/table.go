// The table of all settings. Everything that names a setting is made from it: the file's
// checks, the flags, the environment, the sample file, the settings page, the man page.

package config

import (
	"slices"
	"strings"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/advice"
)

// Kind is how a setting is written.
type Kind int

// The kinds of values.
const (
	KindText     Kind = iota // any text
	KindPath                 // a file's path; in the settings file relative to that file
	KindPaths                // one of these, or a list
	KindSecret               // a file with a secret: as KindPath, or the name of a credential of systemd
	KindNames                // one name, or a list
	KindNetworks             // one network (10.0.0.0/8) or address, or a list
	KindHost                 // a host name or an IP address
	KindURL                  // the broker's URL, or a list of such
	KindChoice               // one of Values
	KindBool                 // true or false
	KindInt                  // a whole number
	KindSize                 // bytes: 4096, "64KiB", "16MiB"
	KindDuration             // seconds: 30, or "30s", "5m", "1h30m", "7d"
	KindRate                 // "200/s", "30/m", "10/h", or 0
	KindByteRate             // bytes a second: "20MiB/s", or 0
)

// Special is a number outside of Min..Max that has a meaning of its own.
type Special struct {
	Value   int64
	Meaning string
}

// Setting is one row of the table.
type Setting struct {
	Section string // "" at the top of the file; "listener", and those in optional, are arrays of tables
	Key     string
	Kind    Kind
	// Min and Max bound numbers: plain, bytes, or nanoseconds for a duration.
	Min, Max int64
	Special  *Special
	Values   []string // of a KindChoice
	Env      string   // environment variable, "" for none
	Flag     string   // long name of the command line flag, "" for none
	Short    string   // its letter, "" for none
	Live     bool     // a reload applies it; otherwise it takes a restart
	Hidden   bool     // the value is shown nowhere
	Help     string   // one paragraph

	at func(*Settings, *Listener) any // where the value is kept; of a user, say, in Settings.user
}

// Name is the setting's full name, section.key.
func (d *Setting) Name() string {
	if d.Section == "" {
		return d.Key
	}
	return d.Section + "." + d.Key
}

const (
	day  = 24 * time.Hour
	year = 365 * day

	secondNS = int64(time.Second)
	milliNS  = int64(time.Millisecond)
)

// FileOnly reports whether the setting is one of tables of which there may be none: it cannot be set
// on the command line or in the environment.
func (d *Setting) FileOnly() bool { return isOptional(d.Section) }

// Section is a group of settings.
type Section struct {
	Name  string // "" for the top of the file
	Title string
	Help  string
}

// isOptional reports whether a section is an array of tables that has none by default.
func isOptional(section string) bool {
	_, is := optional[section]
	return is
}

// Sections are the groups in the order of the sample file.
var Sections = []Section{
	{"", "Stopping", "What happens to clients when the proxy stops. These come before every section of the file."},
	{"listener", "Listeners", "Where clients connect. Repeat the [[listener]] header for each address. The command line and the environment change the first one."},
	{"upstream", "Broker", "The broker to which connections are pooled."},
	{"broker", "Other brokers", "Brokers that routes lead to, a [[broker]] for each, beside that of [upstream], whose other settings and [tls] are theirs too. Only the file has them, and they are all live."},
	{"route", "Routes", "At which broker a vhost is, and under which name, a [[route]] for each; the first that matches a client's vhost counts, and what none matches is at [upstream]. User and secret, which come before the vhost, are judged by [upstream], or where a route is for all vhosts (*) by its broker, and where that refuses them by the others that routes lead to; the broker of the vhost judges them again. Limits, metrics, lists and what clients are told keep the name that clients have for a vhost. After a reload connections that lead elsewhere now end with their last channel, and what comes goes the new way."},
	{"tls", "TLS to the broker", "For an amqps URL. TLS 1.2 or newer; the files are read again at a reload."},
	{"pool", "Pools", "Connections to the broker, and how they are shared. A pool holds those of one user, password and vhost."},
	{"client", "Clients", "What one client, and all of them, may take. In use at a time is at most message_buffer + client_queues + 256 KiB for each client (4 KiB while it is idle, 14 KiB with TLS) + 16 KiB (80 KiB with TLS) for each of max_handshakes + 1 MiB for each connection to the broker, 40 MiB for the program itself, and up to as much again before Go's collector has cleaned up, which the environment variable GOMEMLIMIT bounds."},
	{"auth", "Logins", "Who decides about a login. Without a [[user]] the broker decides about all of them."},
	{"user", "Users", "Users whose credentials the proxy keeps, a [[user]] for each: their applications know a password of the proxy's, and the broker is sent another that they never see. Only the file has them, and they are all live: clients that are connected stay."},
	{"limit", "Limits", "How much of the proxy each user, vhost, address (an IPv6 /64) or listener may take, a [[limit]] for each kind. Of those that match, the most specific one is in force, alone: a name before a pattern, a longer pattern or narrower network before a wider one; one with nothing set lifts a wider one. Only the file has them, and they are all live: clients that are connected stay."},
	{"http", "Metrics and health", "/metrics for Prometheus, /healthz (the process lives) and /readyz (the broker can be reached)."},
	{"admin", "Admin channel", "Where the commands that look at a running proxy and act on it reach it: clients, pools, upstreams, stats, limits, advise, top, config, trace, kick, reconnect, pause, resume, drain, upgrade."},
	{"advice", "Advice", "What amqproxysvc advise, status, the live page and the log say of applications that use connections, channels or queues in a way that costs them or the broker."},
	{"log", "Logging", "Log lines go to the terminal, the journal or the Windows event log, and to a file when one is set."},
}

// Table has every setting in the order of the sample file.
var Table = []Setting{
	{Key: "drain_timeout", Kind: KindDuration, Max: int64(day), Env: "TERM_CLIENT_CLOSE_TIMEOUT", Flag: "term-client-close-timeout", Live: true,
		Help: "How long clients may go on when the proxy was asked to stop, before they are told to close. New clients are not accepted meanwhile.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.DrainTimeout }},
	{Key: "term_timeout", Kind: KindDuration, Max: int64(day), Special: &Special{-1, "no bound"}, Env: "TERM_TIMEOUT", Flag: "term-timeout", Live: true,
		Help: "How long the end of a stop may take, once clients were told to close. Each has a second to answer that, the broker then close_timeout; what is still open after term_timeout is cut off.",
		at:   func(s *Settings, _ *Listener) any { return &s.TermTimeout }},
	{Key: "drain_delay", Kind: KindDuration, Max: int64(time.Hour), Live: true,
		Help: "How long clients are still accepted when the proxy was asked to stop, while /readyz answers 503, before drain_timeout begins: for a balancer or Kubernetes, which send clients until they have noticed. A second request to stop ends it.",
		at:   func(s *Settings, _ *Listener) any { return &s.DrainDelay }},
	{Key: "upgrade_drain", Kind: KindDuration, Max: int64(7 * day), Live: true,
		Help: "How long clients may stay with the old process after amqproxysvc upgrade, while a new one serves new clients. Then they have drain_timeout to finish.",
		at:   func(s *Settings, _ *Listener) any { return &s.UpgradeDrain }},

	{Section: "listener", Key: "address", Kind: KindHost, Env: "LISTEN_ADDRESS", Flag: "listen", Short: "l",
		Help: "Address on which clients are accepted. 0.0.0.0 stands for all IPv4 addresses of this machine, :: for all addresses.",
		at:   func(_ *Settings, l *Listener) any { return &l.Address }},
	{Section: "listener", Key: "port", Kind: KindInt, Max: 65535, Env: "LISTEN_PORT", Flag: "port", Short: "p",
		Help: "Port on which clients are accepted. 0 lets the system choose a free one, which the log then names.",
		at:   func(_ *Settings, l *Listener) any { return &l.Port }},
	{Section: "listener", Key: "pool_mode", Kind: KindChoice, Values: []string{"auto", "shared", "session"},
		Help: "How clients share connections to the broker. shared: many clients on one connection. session: one client per connection while it is there, reused after. auto: shared until a client needs a connection of its own (an exclusive queue, an unbounded consumer, a bearer token), then a session.",
		at:   func(_ *Settings, l *Listener) any { return &l.PoolMode }},
	{Section: "listener", Key: "match_properties", Kind: KindBool,
		Help: "In pool_mode session: reuse a connection only for clients whose client-properties (connection_name first of all) equal those it was opened with, so that the broker shows the right names. Set it to false where applications put a process id into the name. The other modes reuse sessions whatever the properties.",
		at:   func(_ *Settings, l *Listener) any { return &l.MatchProperties }},
	{Section: "listener", Key: "tls", Kind: KindBool,
		Help: "Whether clients speak TLS here. A listener speaks either; for both have two side by side. By custom the port for TLS is 5671.",
		at:   func(_ *Settings, l *Listener) any { return &l.TLS }},
	{Section: "listener", Key: "cert_file", Kind: KindPaths, Live: true,
		Help: "File with the certificate (PEM) that clients are shown, and those between it and its authority. Of several, each with its key_file, the one for the name that the client asks for (SNI) is shown, else the first. Renewed files are seen by themselves within a minute, and at a reload.",
		at:   func(_ *Settings, l *Listener) any { return &l.CertFile }},
	{Section: "listener", Key: "key_file", Kind: KindPaths, Live: true,
		Help: "File with the private key (PEM, not encrypted) of cert_file; as many, in the same order. It must not be readable by everybody.",
		at:   func(_ *Settings, l *Listener) any { return &l.KeyFile }},
	{Section: "listener", Key: "client_cert", Kind: KindChoice, Values: []string{"none", "optional", "required"}, Live: true,
		Help: "Whether clients show a certificate. optional: a client may, and is refused with one that no authority of client_ca_file vouches for. A certificate does not take the place of user and password, but by external_user.",
		at:   func(_ *Settings, l *Listener) any { return &l.ClientCert }},
	{Section: "listener", Key: "client_ca_file", Kind: KindPath, Live: true,
		Help: "File with the certificates (PEM) of the authorities that may vouch for clients. When it changes, who connects anew shows a certificate anew; who is connected stays.",
		at:   func(_ *Settings, l *Listener) any { return &l.ClientCAFile }},
	{Section: "listener", Key: "external_user", Kind: KindChoice, Values: []string{"off", "cn", "dn", "san_dns", "san_uri", "san_email"}, Live: true,
		Help: "Whether clients may log in by their certificate (SASL EXTERNAL), and what of it is their name: the common name, the whole subject (CN=shop,O=Acme), or the first alternative name of that kind. It is looked for among the [[user]], as user.certificate or else user.name. The mechanism is offered to a client with a verified certificate, and to nobody else. Needs client_cert.",
		at:   func(_ *Settings, l *Listener) any { return &l.ExternalUser }},
	{Section: "listener", Key: "tls_min_version", Kind: KindChoice, Values: []string{"1.2", "1.3"}, Live: true,
		Help: "Lowest version of TLS that clients may speak.",
		at:   func(_ *Settings, l *Listener) any { return &l.TLSMinVersion }},
	{Section: "listener", Key: "proxy_protocol", Kind: KindChoice, Values: []string{"off", "required"},
		Help: "Whether a balancer in front (HAProxy's send-proxy and send-proxy-v2, nginx, a cloud's) tells the address of each client, by the PROXY protocol, version 1 or 2, before TLS where there is. Logs, limits and lists then have the client's own address. required: every connection from proxy_from begins with it.",
		at:   func(_ *Settings, l *Listener) any { return &l.ProxyProtocol }},
	{Section: "listener", Key: "proxy_from", Kind: KindNetworks, Live: true,
		Help: "Networks of the balancers that are believed, with proxy_protocol. Who comes from elsewhere is closed.",
		at:   func(_ *Settings, l *Listener) any { return &l.ProxyFrom }},
	{Section: "listener", Key: "direct_from", Kind: KindNetworks, Live: true,
		Help: "Networks whose connections come without the PROXY protocol, with proxy_protocol: this machine's programs, probes. One that is in proxy_from too counts as there.",
		at:   func(_ *Settings, l *Listener) any { return &l.DirectFrom }},
	{Section: "listener", Key: "allow", Kind: KindNetworks, Live: true,
		Help: "Networks from which clients may connect here; others are closed without a byte. Empty: all. With proxy_protocol it is the client's own address that counts, as the balancer tells it.",
		at:   func(_ *Settings, l *Listener) any { return &l.Allow }},
	{Section: "listener", Key: "deny", Kind: KindNetworks, Live: true,
		Help: "Networks from which clients may not connect here, whatever allow says.",
		at:   func(_ *Settings, l *Listener) any { return &l.Deny }},

	{Section: "upstream", Key: "url", Kind: KindURL, Env: "AMQP_URL", Live: true,
		Help: "The broker: amqp://HOST[:PORT] (port 5672) or amqps://HOST[:PORT] for TLS (port 5671). A user, a password and a vhost are ignored, since clients bring their own. Several are the nodes of one cluster, which have the same users, vhosts and queues; all of them amqp or all amqps. On the command line they are the arguments, in the environment parted by commas. After a reload it serves new connections.",
		at:   func(s *Settings, _ *Listener) any { return brokers{&s.Broker, &s.Others} }},
	{Section: "upstream", Key: "balance", Kind: KindChoice, Values: []string{proxy.BalanceSpread, proxy.BalanceOrder}, Live: true,
		Help: "Which of several brokers a new connection goes to. spread: the one with the fewest connections of this proxy. order: the first that can be reached. One that cannot be reached, or says that it is being drained, is not asked until a probe has found it back; only where all are out are they asked all the same.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.Balance }},
	{Section: "upstream", Key: "dns_refresh", Kind: KindDuration, Max: int64(day), Live: true,
		Help: "How often the addresses of a name in url are asked for. Where a name has several, each is a broker of its own (of IPv4 and IPv6 the family with more of them). Connections to an address that the name has no more end with their last channel. 0: a name is one broker, whatever its addresses.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.DNSRefresh }},
	{Section: "upstream", Key: "connect_timeout", Kind: KindDuration, Min: 100 * milliNS, Max: int64(time.Hour), Live: true,
		Help: "How long connecting to the broker may take in all: TCP, TLS and the AMQP handshake. Of several brokers each.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.ConnectTimeout }},
	{Section: "upstream", Key: "hold", Kind: KindDuration, Max: int64(time.Hour), Live: true,
		Help: "How long logins, and the first frames of channels, wait for a broker that is away, instead of failing: a restart of the broker is then a pause. Clients that wait count at max_handshakes, and their own timeouts go on. What is under way at the broker when it goes is lost as ever. 0: they fail at once.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.Hold }},
	{Section: "upstream", Key: "retry_delay", Kind: KindDuration, Max: int64(time.Hour), Live: true,
		Help: "How long logins fail at once, with the same error, after the broker could not be reached. Of several brokers, one that is out is probed after this at first, then after twice as long each time, up to a minute.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.RetryDelay }},
	{Section: "upstream", Key: "heartbeat", Kind: KindDuration, Max: 65535 * secondNS, Live: true,
		Help: "Heartbeat asked of the broker, in whole seconds; the smaller of this and the broker's own is used. A broker that has been silent for two of them is lost. 0 takes the broker's.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.Heartbeat }},
	{Section: "upstream", Key: "proxy_protocol", Kind: KindChoice, Values: []string{"off", "v1", "v2"}, Live: true,
		Help: "For a broker with proxy_protocol = true, or a balancer before it that asks for the PROXY protocol. A connection of one client's own (a session) then has its client's address at the broker, and serves clients of that address only; shared ones have the proxy's own. Without it the broker must not ask.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.ProxyProtocol }},

	{Section: "broker", Key: "name", Kind: KindText, Live: true,
		Help: "Name by which routes mean it.",
		at:   func(s *Settings, _ *Listener) any { return &s.broker.Name }},
	{Section: "broker", Key: "url", Kind: KindURL, Live: true,
		Help: "Where it is, as upstream.url: one, or the nodes of one cluster.",
		at:   func(s *Settings, _ *Listener) any { return brokers{&s.broker.First, &s.broker.Others} }},
	{Section: "broker", Key: "balance", Kind: KindChoice, Values: []string{proxy.BalanceSpread, proxy.BalanceOrder}, Live: true,
		Help: "Which of its nodes a new connection goes to, as upstream.balance.",
		at:   func(s *Settings, _ *Listener) any { return &s.broker.Balance }},
	{Section: "broker", Key: "server_name", Kind: KindText, Live: true,
		Help: "Name that its certificate must be for. Empty: the host of its URL; tls.server_name is for upstream.url alone.",
		at:   func(s *Settings, _ *Listener) any { return &s.broker.ServerName }},

	{Section: "route", Key: "vhost", Kind: KindText, Live: true,
		Help: "Vhost that clients name, or a pattern of such: * stands for any characters, ? for one.",
		at:   func(s *Settings, _ *Listener) any { return &s.route.VHost }},
	{Section: "route", Key: "to_vhost", Kind: KindText, Live: true,
		Help: "Name of the vhost at the broker. Empty: the same.",
		at:   func(s *Settings, _ *Listener) any { return &s.route.ToVHost }},
	{Section: "route", Key: "broker", Kind: KindText, Live: true,
		Help: "Name of the [[broker]] that the vhost is at. Empty: that of [upstream], which sets some vhosts apart from a route below for more.",
		at:   func(s *Settings, _ *Listener) any { return &s.route.Broker }},
	{Section: "route", Key: "durable", Kind: KindBool, Live: true,
		Help: "Whether queues are declared durable, whatever their clients say: for a broker that denies transient ones, as RabbitMQ 4.3 does. Queues that are exclusive, auto-delete or named by the broker, and passive declarations, stay as they are. What is rewritten is counted, and logged once for a queue; a queue that is there as it was declared before is still another one to the broker (406).",
		at:   func(s *Settings, _ *Listener) any { return &s.route.Durable }},
	{Section: "route", Key: "queue_type", Kind: KindChoice, Values: []string{asDeclared, "classic", "quorum"}, Live: true,
		Help: "Type with which durable queues are declared whose clients say none: of the same queues as route.durable, after that. A queue with an argument that only classic ones take (x-max-priority, x-queue-mode, x-queue-version, x-queue-master-locator) is not made a quorum queue.",
		at:   func(s *Settings, _ *Listener) any { return &s.route.QueueType }},

	{Section: "tls", Key: "ca_file", Kind: KindPath, Live: true,
		Help: "File with the certificates (PEM) of the authorities that may vouch for the broker. Empty: those of the system.",
		at:   func(s *Settings, _ *Listener) any { return &s.TLS.CAFile }},
	{Section: "tls", Key: "cert_file", Kind: KindPath, Live: true,
		Help: "File with the certificate (PEM), and those between it and its authority, that the proxy shows to the broker. Needs key_file.",
		at:   func(s *Settings, _ *Listener) any { return &s.TLS.CertFile }},
	{Section: "tls", Key: "key_file", Kind: KindPath, Live: true,
		Help: "File with the private key (PEM, not encrypted) of cert_file.",
		at:   func(s *Settings, _ *Listener) any { return &s.TLS.KeyFile }},
	{Section: "tls", Key: "server_name", Kind: KindText, Live: true,
		Help: "Name that the broker's certificate must carry, also sent as SNI. Empty: the host of the URL.",
		at:   func(s *Settings, _ *Listener) any { return &s.TLS.ServerName }},
	{Section: "tls", Key: "verify", Kind: KindBool, Live: true,
		Help: "Whether the broker's certificate is verified. Without it anyone on the way can read every password: for trials only.",
		at:   func(s *Settings, _ *Listener) any { return &s.TLS.Verify }},

	{Section: "pool", Key: "idle_timeout", Kind: KindDuration, Min: secondNS, Max: int64(year), Env: "IDLE_CONNECTION_TIMEOUT", Flag: "idle-connection-timeout", Short: "t", Live: true,
		Help: "How long a connection to the broker that carries no channel stays open for the next client.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.IdleTimeout }},
	{Section: "pool", Key: "max_lifetime", Kind: KindDuration, Min: secondNS, Max: int64(year), Special: &Special{0, "no bound"}, Live: true,
		Help: "Age at which a connection to the broker takes no new channels and is closed when its last one ends; up to a tenth less, so that what was opened together does not end together. It also spreads connections anew over a cluster.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.MaxLifetime }},
	{Section: "pool", Key: "auth_ttl", Kind: KindDuration, Max: int64(year), Live: true,
		Help: "How long a login counts as good after the broker accepted it. The first login after that is still served, while the proxy asks the broker again; when the broker refuses, so does the proxy from then on.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.AuthTTL }},
	{Section: "pool", Key: "max_upstreams", Kind: KindInt, Max: 1_000_000, Live: true,
		Help: "Connections to the broker in all. 0: no bound.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.MaxUpstreams }},
	{Section: "pool", Key: "max_upstreams_per_identity", Kind: KindInt, Max: 1_000_000, Live: true,
		Help: "Connections to the broker for one user, password and vhost. The default keeps one user, who can have a connection for each exclusive queue, from taking the broker all its descriptors; raise it where more clients of one user need a connection of their own. 0: no bound.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.MaxUpstreamsPerIdentity }},
	{Section: "pool", Key: "max_channels", Kind: KindInt, Min: 1, Max: 65535, Env: "MAX_UPSTREAM_CHANNELS", Flag: "max-upstream-channels", Live: true,
		Help: "Clients' channels that one connection to the broker carries; the broker's own channel_max bounds it further. Few keep small what a lost connection takes along.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.MaxChannels }},
	{Section: "pool", Key: "spread", Kind: KindInt, Min: 1, Max: 1000, Live: true,
		Help: "Connections that one user, password and vhost has for publishers, and as many for readers, before channels share them; then a channel goes to the one with the fewest. Brokers whose limits or nodes are by connection want several: Alibaba Cloud asks for 10. Of several brokers they go to different ones. 1: one is filled up to max_channels before the next is opened.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.Spread }},
	{Section: "pool", Key: "shared_prefetch_limit", Kind: KindInt, Min: 1, Max: 65535, Live: true,
		Help: "Prefetch above which a consumer counts as unbounded, and gets a connection of its own in pool_mode auto.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.SharedPrefetchLimit }},
	{Section: "pool", Key: "wait_timeout", Kind: KindDuration, Max: int64(time.Hour), Live: true,
		Help: "How long a client waits for a place when max_clients, max_upstreams, max_upstreams_per_identity or a limit's max_upstreams is reached, or for its turn at a limit's connect_rate, before it is refused.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.WaitTimeout }},
	{Section: "pool", Key: "reuse_channels", Kind: KindBool, Live: true,
		Help: "Keep a channel that has only published and declared open at the broker for the next client of the user, instead of closing it: the broker is spared an open and a close per connect. Needs fast_close.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.ReuseChannels }},
	{Section: "pool", Key: "idle_channels", Kind: KindInt, Max: 65535, Live: true,
		Help: "Channels that one connection to the broker keeps for the next clients, beside max_channels, none for longer than auth_ttl. 0: none.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.IdleChannels }},
	{Section: "pool", Key: "fast_close", Kind: KindBool, Live: true,
		Help: "Answer the close of a channel or connection that has nothing under way without waiting for the broker.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.FastClose }},

	{Section: "client", Key: "allow", Kind: KindNetworks, Live: true,
		Help: "Networks from which clients may connect, to whatever listener; others are closed without a byte. Empty: all. A listener's own allow and deny count as well.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.Access.Allow }},
	{Section: "client", Key: "deny", Kind: KindNetworks, Live: true,
		Help: "Networks from which clients may not connect, whatever allow says.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.Access.Deny }},
	{Section: "client", Key: "loopback_users", Kind: KindNames, Live: true,
		Help: "Users who are refused when they come from another machine and the broker is on this one's loopback, as by RabbitMQ's setting of that name: to the broker, all that come through the proxy come from loopback. A broker elsewhere judges by itself.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.LoopbackUsers }},
	{Section: "client", Key: "max_clients", Kind: KindInt, Max: 10_000_000, Live: true,
		Help: "Clients that have logged in, or are about to, at a time; others wait for wait_timeout in the order in which they came. 0: no bound but that of descriptors: clients and connections to the broker leave an eighth of LimitNOFILE (at least 32, at most 1024) for everything else, and who comes then is closed at once.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.MaxClients }},
	{Section: "client", Key: "max_handshakes", Kind: KindInt, Max: 10_000_000, Live: true,
		Help: "Connections that have not logged in yet, at a time; half of these may come from one address (IPv6: /64), and a balancer in front is one address. More are closed at once, before anything is done for them. 0: no bound.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.MaxHandshakes }},
	{Section: "client", Key: "max_message_size", Kind: KindSize, Min: 1, Max: 1 << 40, Live: true,
		Help: "Largest body of a published message. A larger one is refused before its body is read.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.MaxMessageSize }},
	{Section: "client", Key: "message_buffer", Kind: KindSize, Min: 1, Max: 1 << 42, Live: true,
		Help: "Memory for all messages that clients have begun to publish but not yet sent whole, taken as they come. Above it clients wait their turn, and one whose message comes with less than 16 KiB a second is closed for those that wait. One user's clients have half of it. At least max_message_size, better several times that.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.MessageBuffer }},
	{Section: "client", Key: "client_queue", Kind: KindSize, Min: 64 << 10, Max: 1 << 32, Live: true,
		Help: "Memory for what waits to be sent to one client. A client that shares its connection to the broker and does not read is closed when it is full.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.ClientQueue }},
	{Section: "client", Key: "client_queues", Kind: KindSize, Min: 1 << 20, Max: 1 << 42, Special: &Special{0, "no bound"}, Live: true,
		Help: "Memory for what waits to be sent to all clients together. Where it is full, the client for whom most waits is closed; one with a connection to the broker of its own is not, the broker waits for it.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.ClientQueues }},
	{Section: "client", Key: "memory_limit", Kind: KindChoice, Values: []string{MemoryAuto, MemoryOff}, Live: true,
		Help: "auto: where the system limits this process's memory (a container, a unit's MemoryMax=), Go's collector keeps it within nine tenths of that, by cleaning up more often. It refuses nobody: the bounds above do. The environment variable GOMEMLIMIT counts instead. off: the collector knows of no limit.",
		at:   func(s *Settings, _ *Listener) any { return &s.MemoryLimit }},
	{Section: "client", Key: "handshake_timeout", Kind: KindDuration, Min: 100 * milliNS, Max: int64(time.Hour), Live: true,
		Help: "How long a client may take from connecting to its connection.open.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.HandshakeTimeout }},
	{Section: "client", Key: "close_timeout", Kind: KindDuration, Min: 100 * milliNS, Max: int64(time.Hour), Live: true,
		Help: "How long the close of a channel that has something under way waits for the broker. A broker that answers nothing for so long is asked whether it is there, and lost when it has not answered after as long again.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.CloseTimeout }},
	{Section: "client", Key: "write_timeout", Kind: KindDuration, Min: secondNS, Max: int64(year), Live: true,
		Help: "How long a client or the broker may take no byte of what it is sent, before it counts as dead.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.WriteTimeout }},

	{Section: "auth", Key: "unknown_users", Kind: KindChoice, Values: []string{"broker", "refuse"}, Live: true,
		Help: "What becomes of users that have no [[user]]. broker: the broker is sent what they send and decides, as it does where there is no [[user]] at all. refuse: they are refused here, in RabbitMQ's words.",
		at:   func(s *Settings, _ *Listener) any { return &s.Auth.UnknownUsers }},

	{Section: "user", Key: "name", Kind: KindText, Live: true,
		Help: "Name that applications log in with.",
		at:   func(s *Settings, _ *Listener) any { return &s.user.Name }},
	{Section: "user", Key: "password_hash", Kind: KindText, Live: true, Hidden: true,
		Help: "Hash of the password that applications log in with: what amqproxysvc hash-password prints (argon2id), or a password_hash of RabbitMQ's definitions (SHA-256 or SHA-512), which amqproxysvc import-users takes over. Never the password itself.",
		at:   func(s *Settings, _ *Listener) any { return &s.user.PasswordHash }},
	{Section: "user", Key: "certificate", Kind: KindText, Live: true,
		Help: "Name in the certificate that lets the user in without a password, where the listener has external_user. Empty: user.name is that name. With it password_hash may be left out: then no password lets them in.",
		at:   func(s *Settings, _ *Listener) any { return &s.user.Certificate }},
	{Section: "user", Key: "vhosts", Kind: KindNames, Live: true,
		Help: "Vhosts that the user may open; others are refused here, with RabbitMQ's 530. Empty: the broker decides.",
		at:   func(s *Settings, _ *Listener) any { return &s.user.VHosts }},
	{Section: "user", Key: "broker_user", Kind: KindText, Live: true,
		Help: "Name that the broker knows the user by: in its list of connections, its permissions, and the user_id of messages. Empty: the same name.",
		at:   func(s *Settings, _ *Listener) any { return &s.user.BrokerUser }},
	{Section: "user", Key: "provider", Kind: KindChoice, Values: []string{"password", "alibaba", "oauth2", "external"}, Live: true,
		Help: "What the broker is sent. password: broker_user and the password of broker_password_file. alibaba: a pair made of an AccessKey of Alibaba Cloud's (ApsaraMQ for RabbitMQ), anew for each connection; an application that signs its pairs with the same key itself is let in by them, as this user, whatever name they have, so that its connections can be reused though its password changes (then password_hash may be left out). oauth2: a token that an issuer gives the proxy (client credentials), renewed before it ends, on connections that stand too. external: that the certificate of tls.cert_file counts (SASL EXTERNAL).",
		at:   func(s *Settings, _ *Listener) any { return &s.user.Provider }},
	{Section: "user", Key: "broker_password_file", Kind: KindSecret, Live: true,
		Help: "File with the password that the broker is sent, on its first line; not readable by everybody. A name without a directory is looked for in $CREDENTIALS_DIRECTORY first (systemd's LoadCredential= and LoadCredentialEncrypted=), then beside the settings file; on Windows the file may be one that amqproxysvc protect has encrypted. It is read again at a reload, and within a minute after it has changed; a new password is used for the next connection, and until the broker has accepted it the one before is tried too. Connections that stand stay.",
		at:   func(s *Settings, _ *Listener) any { return &s.user.BrokerPasswordFile }},
	{Section: "user", Key: "instance_id", Kind: KindText, Live: true,
		Help: "With provider alibaba: the id of the instance.",
		at:   func(s *Settings, _ *Listener) any { return &s.user.InstanceID }},
	{Section: "user", Key: "access_key_file", Kind: KindSecret, Live: true,
		Help: "With provider alibaba: file with the AccessKey's id on its first line and its secret on the second, as broker_password_file otherwise.",
		at:   func(s *Settings, _ *Listener) any { return &s.user.AccessKeyFile }},
	{Section: "user", Key: "security_token_file", Kind: KindSecret, Live: true,
		Help: "With provider alibaba and a temporary AccessKey (STS): file with the security token on its first line. Whoever renews the key writes both files; they are seen within a minute.",
		at:   func(s *Settings, _ *Listener) any { return &s.user.SecurityTokenFile }},
	{Section: "user", Key: "token_url", Kind: KindText, Live: true,
		Help: "With provider oauth2: the issuer's token endpoint, https:// or on loopback http://.",
		at:   func(s *Settings, _ *Listener) any { return &s.user.TokenURL }},
	{Section: "user", Key: "client_id", Kind: KindText, Live: true,
		Help: "With provider oauth2: how the issuer knows the proxy.",
		at:   func(s *Settings, _ *Listener) any { return &s.user.ClientID }},
	{Section: "user", Key: "client_secret_file", Kind: KindSecret, Live: true,
		Help: "With provider oauth2: file with the secret for the issuer on its first line, as broker_password_file otherwise.",
		at:   func(s *Settings, _ *Listener) any { return &s.user.ClientSecretFile }},
	{Section: "user", Key: "scope", Kind: KindText, Live: true,
		Help: "With provider oauth2: the scopes that are asked for, parted by blanks. Empty: the issuer's own choice.",
		at:   func(s *Settings, _ *Listener) any { return &s.user.Scope }},

	{Section: "limit", Key: "by", Kind: KindChoice, Values: []string{"user", "vhost", "address", "listener"}, Live: true,
		Help: "Whom the limit counts together: clients of one user, of one vhost, from one address (an IPv6 address counts as its /64, a client behind a balancer by its own with listener.proxy_protocol), or of one listener.",
		at:   func(s *Settings, _ *Listener) any { return &s.limit.By }},
	{Section: "limit", Key: "match", Kind: KindText, Live: true,
		Help: "Those that the limit is for, each on its own: a name, in which * stands for any characters; with by = \"address\" a network or an address; with by = \"listener\" HOST:PORT as it is bound, so that *:5671 is the one on that port. *: all.",
		at:   func(s *Settings, _ *Listener) any { return &s.limit.Match }},
	{Section: "limit", Key: "max_clients", Kind: KindInt, Max: 10_000_000, Live: true,
		Help: "Clients at a time, each. One more is refused at once, as RabbitMQ does at its own limits: 530 with \"limit (N) is reached\". 0: no bound.",
		at:   func(s *Settings, _ *Listener) any { return &s.limit.MaxClients }},
	{Section: "limit", Key: "max_upstreams", Kind: KindInt, Max: 1_000_000, Live: true,
		Help: "Connections to the broker, each, by user or vhost. Above it channels share those that there are, and who needs one more waits for wait_timeout, as at pool.max_upstreams. 0: no bound.",
		at:   func(s *Settings, _ *Listener) any { return &s.limit.MaxUpstreams }},
	{Section: "limit", Key: "connect_rate", Kind: KindRate, Live: true,
		Help: "Logins in a second, a minute or an hour, each. Those above it wait their turn, first come first served, for pool.wait_timeout at most, and are then refused with 530. At once go ten, or what a twentieth of a second brings. Only a login whose password is right counts, so that nobody can use up another's. 0: no bound.",
		at:   func(s *Settings, _ *Listener) any { return &s.limit.ConnectRate }},
	{Section: "limit", Key: "data_rate", Kind: KindByteRate, Min: proxy.DataRateLeast, Max: 1 << 40, Live: true,
		Help: "Bytes a second that all clients of one may send together; above it they are read more slowly, and nobody is closed. At once goes a quarter of a second. What the broker sends to clients is not bounded. 0: no bound.",
		at:   func(s *Settings, _ *Listener) any { return &s.limit.DataRate }},
	{Section: "limit", Key: "action", Kind: KindChoice, Values: []string{"enforce", "alarm"}, Live: true,
		Help: "enforce: the limit holds. alarm: what would be refused or have to wait is counted and logged, and nothing else happens. There may be one of each for the same clients: the alarm below the bound.",
		at:   func(s *Settings, _ *Listener) any { return &s.limit.Action }},

	{Section: "http", Key: "address", Kind: KindHost, Env: "HTTP_ADDRESS",
		Help: "Address on which metrics and health are served. There is no login: keep it on loopback or behind a firewall.",
		at:   func(s *Settings, _ *Listener) any { return &s.HTTP.Address }},
	{Section: "http", Key: "port", Kind: KindInt, Max: 65535, Env: "HTTP_PORT", Flag: "http-port", Short: "b",
		Help: "Port on which metrics and health are served. 0: not at all.",
		at:   func(s *Settings, _ *Listener) any { return &s.HTTP.Port }},
	{Section: "http", Key: "hosts", Kind: KindText,
		Help: "Names by which the HTTP server may be asked, parted by blanks, besides its addresses, localhost and this machine's name. Requests for another name are refused, since a web page could have made it up.",
		at:   func(s *Settings, _ *Listener) any { return &s.HTTP.Hosts }},
	{Section: "http", Key: "page", Kind: KindBool,
		Help: "Serve the live page on / too, for a browser: the broker, who waits, what is reused, clients and connections. It changes nothing. Where address is not a loopback one it is served only with a password_file.",
		at:   func(s *Settings, _ *Listener) any { return &s.HTTP.Page }},
	{Section: "http", Key: "password_file", Kind: KindPath,
		Help: "File with the password that the live page asks for, on its first line; the user's name may be any. Metrics and health ask for none. Empty: no password.",
		at:   func(s *Settings, _ *Listener) any { return &s.HTTP.PasswordFile }},
	{Section: "http", Key: "pprof", Kind: KindBool,
		Help: "Serve Go's profiles under /debug/pprof/ too, to look into the proxy itself.",
		at:   func(s *Settings, _ *Listener) any { return &s.HTTP.Pprof }},

	{Section: "admin", Key: "socket", Kind: KindText,
		Help: "Full path of a Unix socket, or on Windows the name of a pipe (\\\\.\\pipe\\NAME). Empty: the place of a service that the system manages, /run/NAME/control.sock or \\\\.\\pipe\\amqproxysvc-NAME; in the foreground none. off: none. Root, administrators and the service's own user may act; the service's group may look.",
		at:   func(s *Settings, _ *Listener) any { return &s.Admin.Socket }},

	{Section: "advice", Key: "enabled", Kind: KindBool, Live: true,
		Help: "Whether applications are judged by what they do. It costs them nothing.",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.Advice }},
	{Section: "advice", Key: "mute", Kind: KindNames, Live: true,
		Help: "Rules that nothing is said of, one or a list: " + ruleNames() + ".",
		at:   func(s *Settings, _ *Listener) any { return &s.Engine.AdviceMute }},

	{Section: "log", Key: "level", Kind: KindChoice, Values: []string{"debug", "info", "warn", "error"}, Env: "LOG_LEVEL", Live: true,
		Help: "The least important lines that are logged. -d on the command line is short for debug.",
		at:   func(s *Settings, _ *Listener) any { return &s.Log.Level }},
	{Section: "log", Key: "format", Kind: KindChoice, Values: []string{"text", "json"}, Live: true,
		Help: "How lines are written: key=value pairs or JSON objects. The terminal and the journal always get text.",
		at:   func(s *Settings, _ *Listener) any { return &s.Log.Format }},
	{Section: "log", Key: "file", Kind: KindPath, Live: true,
		Help: "File to which lines are written as well; a symbolic link is not taken. Empty: no file.",
		at:   func(s *Settings, _ *Listener) any { return &s.Log.File }},
	{Section: "log", Key: "max_size", Kind: KindSize, Min: 1 << 20, Max: 1 << 40, Live: true,
		Help: "Size, in whole MiB, at which the file is put aside under a name with the time in it, and a new one begun.",
		at:   func(s *Settings, _ *Listener) any { return &s.Log.MaxSize }},
	{Section: "log", Key: "max_age", Kind: KindDuration, Min: int64(day), Max: 100 * int64(year), Special: &Special{0, "no bound"}, Live: true,
		Help: "Age, in whole days, at which files put aside are deleted.",
		at:   func(s *Settings, _ *Listener) any { return &s.Log.MaxAge }},
	{Section: "log", Key: "max_backups", Kind: KindInt, Max: 100_000, Live: true,
		Help: "How many files put aside are kept. 0: no bound.",
		at:   func(s *Settings, _ *Listener) any { return &s.Log.MaxBackups }},
	{Section: "log", Key: "compress", Kind: KindBool, Live: true,
		Help: "Compress files put aside with gzip.",
		at:   func(s *Settings, _ *Listener) any { return &s.Log.Compress }},
}

// Find is the setting of that full name, or of that key where only one has it; nil for none. Those that only
// the file has are found by their full name.
func Find(name string) *Setting {
	var found *Setting
	for i := range Table {
		d := &Table[i]
		if d.Name() == name {
			return d
		}
		if d.Key == name && !d.FileOnly() {
			if found != nil {
				return nil
			}
			found = d
		}
	}
	return found
}

// Nearest is the full name of the setting that someone who wrote name most likely meant,
// "" when nothing comes near. AMQProxy's names are known.
func Nearest(name string) string {
	if old := amqproxyName(name); old != "" {
		return old
	}
	_, key, dotted := strings.Cut(name, ".")
	if !dotted {
		key = name
	}
	best, bestDistance := "", 2*(2+len(key)/3)
	for i := range Table {
		d := &Table[i]
		n := 2 * min(Distance(name, d.Name()), Distance(key, d.Key))
		if len(key) >= 4 && strings.Contains(d.Key, strings.ToLower(key)) {
			n = min(n, 2) // a part of the key, or the key in another section
		}
		if section, _, _ := strings.Cut(name, "."); dotted && section == d.Section {
			n-- // rather the same section
		}
		if n < bestDistance {
			best, bestDistance = d.Name(), n
		}
	}
	return best
}

// amqproxyName translates the names of AMQProxy's ini file, flags and environment.
func amqproxyName(name string) string {
	name = strings.ToLower(name)
	switch name {
	case "upstream", "main.upstream":
		return "upstream.url"
	case "log_level", "main.log_level", "listen.log_level":
		return "log.level"
	case "listen.bind", "listen.address", "listener.bind":
		return "listener.address"
	}
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		name = name[i+1:]
	}
	for i := range Table {
		d := &Table[i]
		flag := strings.ReplaceAll(d.Flag, "-", "_")
		if name == strings.ToLower(d.Env) && name != "" || strings.Contains(flag, "_") && name == flag {
			return d.Name()
		}
	}
	return ""
}

// Distance is the number of letters to insert, delete or change, or of neighbours to swap,
// to get from a to b (optimal string alignment), case put aside.
func Distance(a, b string) int {
	a, b = strings.ToLower(a), strings.ToLower(b)
	before, row := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next := make([]int, len(b)+1)
		next[0] = i + 1
		for j := range len(b) {
			change := row[j]
			if a[i] != b[j] {
				change++
			}
			next[j+1] = min(change, next[j]+1, row[j+1]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row = row, next
	}
	return row[len(b)]
}

// ruleNames are those of the advice.
func ruleNames() string {
	var names []string
	for i := range advice.Rules {
		names = append(names, advice.Rules[i].ID)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// What the admin channel answers: JSON of one schema, whose names stay. Times are seconds,
// sizes octets.

package admin

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/advice"
)

// Schema is the version of every answer's layout: fields may be added within one, none is
// taken away or changes its meaning.
const Schema = 1

// brokerCPU is what a client that finds a connection spares the broker: RabbitMQ 3.10 and 4.0 take 1.6 to
// 2.8 ms of their CPU for a connect, a publish and a disconnect, 0.13 to 0.25 of them through the proxy
// (BENCHMARK.md, "What RabbitMQ itself is spared").
const brokerCPU = 1800 * time.Microsecond

// Clients is the answer to `clients`.
type Clients struct {
	Schema  int      `json:"schema"`
	Total   int      `json:"total"` // how many there are that match; Clients may be cut to a limit
	Clients []Client `json:"clients"`
}

// Client is one client.
type Client struct {
	ID        uint64   `json:"id"`
	User      string   `json:"user"`
	VHost     string   `json:"vhost"`
	Address   string   `json:"address"`
	Name      string   `json:"name"`  // connection_name
	State     string   `json:"state"` // connecting, waiting, running, blocked, closing
	Mode      string   `json:"mode"`  // shared, session
	Channels  int      `json:"channels"`
	Bound     int      `json:"bound"`     // channels at the broker, those that are being closed included
	Upstreams []uint64 `json:"upstreams"` // IDs of the connections to the broker that carry them
	In        uint64   `json:"in_bytes"`
	Out       uint64   `json:"out_bytes"`
	Queue     int      `json:"queue_bytes"` // what waits to be sent to it
	Age       float64  `json:"age_seconds"`
	Idle      float64  `json:"idle_seconds"`    // since it last sent something
	Waiting   float64  `json:"waiting_seconds"` // for a place on a connection to the broker
}

// Upstreams is the answer to `upstreams`.
type Upstreams struct {
	Schema    int        `json:"schema"`
	Upstreams []Upstream `json:"upstreams"`
}

// Upstream is one connection to the broker.
type Upstream struct {
	ID       uint64  `json:"id"`
	Broker   string  `json:"broker"`
	Name     string  `json:"broker_name,omitempty"` // of a [[broker]]
	User     string  `json:"user"`
	VHost    string  `json:"vhost"`
	ToVHost  string  `json:"to_vhost,omitempty"` // its name there, where a route gives it another
	State    string  `json:"state"`              // shared, session, idle, retired, suspect, blocked
	Lane     string  `json:"lane"`               // publish, read, or "": nobody's yet
	Client   uint64  `json:"client,omitempty"`   // whose session it is
	Channels int     `json:"channels"`
	Kept     int     `json:"kept_channels"` // for the next clients
	In       uint64  `json:"in_bytes"`
	Out      uint64  `json:"out_bytes"`
	Queue    int     `json:"queue_bytes"`
	Age      float64 `json:"age_seconds"`
	Idle     float64 `json:"idle_seconds"`
	Blocked  string  `json:"blocked_reason,omitempty"`
}

// Pools is the answer to `pools`.
type Pools struct {
	Schema int    `json:"schema"`
	Pools  []Pool `json:"pools"`
}

// Pool is what is held for one user, password and vhost: a user with two passwords has two.
type Pool struct {
	User      string  `json:"user"`
	VHost     string  `json:"vhost"`
	Clients   int     `json:"clients"`
	Waiting   int     `json:"waiting_clients"`
	MaxWait   float64 `json:"max_wait_seconds"` // of those that wait now
	Upstreams int     `json:"upstreams"`
	Idle      int     `json:"idle_upstreams"`
	Sessions  int     `json:"session_upstreams"`
	Channels  int     `json:"channels"`
	Logins    uint64  `json:"logins"` // since the pool was made
	Reused    uint64  `json:"reused"` // of these, served by a connection that was there
}

// Limits is the answer to `limits`.
type Limits struct {
	Schema int        `json:"schema"`
	Limits []Limit    `json:"limits"` // in the order of the settings
	Total  int        `json:"total"`  // how many keys there are that match; Keys may be cut to a limit
	Keys   []LimitKey `json:"keys"`   // those that were hit most first
}

// Limit is one [[limit]]; what it does not bound is 0.
type Limit struct {
	By           string  `json:"by"`    // user, vhost, address, listener
	Match        string  `json:"match"` // as set
	Action       string  `json:"action"`
	MaxClients   int     `json:"max_clients"`
	MaxUpstreams int     `json:"max_upstreams"`
	ConnectRate  float64 `json:"connects_per_second"`
	DataRate     int64   `json:"bytes_per_second"`
}

// LimitKey is one user, vhost, address or listener at the most specific limit that matches; beside one that is enforced there
// may be one that raises an alarm.
type LimitKey struct {
	Key       string `json:"key"`
	Limit     Limit  `json:"limit"`
	Clients   int    `json:"clients"`
	Upstreams int    `json:"upstreams"`
	Waiting   int    `json:"waiting_logins"`    // for their turn at connect_rate
	Logins    int64  `json:"logins_per_second"` // in the last whole second
	Bytes     int64  `json:"bytes_per_second"`  // the same, from clients, where they are limited
	Refused   uint64 `json:"refused"`
	Delayed   uint64 `json:"delayed"`
	Alarms    uint64 `json:"alarms"` // what would have been refused or delayed
}

func limitsOf(limits []proxy.Limit, keys []proxy.LimitKeyInfo, total int) Limits {
	a := Limits{Schema: Schema, Limits: []Limit{}, Total: total, Keys: []LimitKey{}}
	for _, l := range limits {
		a.Limits = append(a.Limits, limitOf(l))
	}
	for _, k := range keys {
		a.Keys = append(a.Keys, LimitKey{Key: k.Key, Limit: limitOf(k.Limit), Clients: k.Clients, Upstreams: k.Upstreams, Waiting: k.Waiting,
			Logins: k.Logins, Bytes: k.Bytes, Refused: k.Refused, Delayed: k.Delayed, Alarms: k.Alarms})
	}
	return a
}

func limitOf(l proxy.Limit) Limit {
	action := "enforce"
	if l.Alarm {
		action = "alarm"
	}
	return Limit{string(l.By), l.Match, action, l.MaxClients, l.MaxUpstreams, l.ConnectRate.PerSecond(), l.DataRate}
}

// Stats is the answer to `stats`: the counters that tell the most, all of them are in /metrics.
type Stats struct {
	Schema           int      `json:"schema"`
	Version          string   `json:"version"`
	Uptime           float64  `json:"uptime_seconds"`
	BrokerUp         bool     `json:"broker_up"`
	BrokerReason     string   `json:"broker_reason,omitempty"`
	UpstreamsBlocked int      `json:"blocked_upstreams"`
	Clients          int      `json:"clients"`
	Waiting          int      `json:"waiting_clients"`
	LongestWait      float64  `json:"longest_wait_seconds"`
	Channels         int      `json:"channels"`
	Upstreams        int      `json:"upstreams"`
	Kept             int      `json:"kept_channels"`
	Pauses           []Pause  `json:"pauses,omitempty"`
	Targets          []Target `json:"targets"` // the addresses of all brokers
	Brokers          []Broker `json:"brokers"`
	Routes           []Route  `json:"routes,omitempty"`
	PausedClients    int      `json:"paused_clients"` // wait for the end of a pause
	ClientsTotal     uint64   `json:"clients_total"`
	UpstreamsTotal   uint64   `json:"upstreams_total"`
	LoginsOK         uint64   `json:"logins_ok"`
	LoginsRefused    uint64   `json:"logins_refused"`
	LoginsFailed     uint64   `json:"logins_failed"`
	Reused           uint64   `json:"logins_reused"`
	ChannelsOpened   uint64   `json:"channels_opened"`
	ChannelsReused   uint64   `json:"channels_reused"`
	UpstreamsLost    uint64   `json:"upstreams_lost"`
	Connects         uint64   `json:"upstream_connects"`        // connections to the broker that were opened and logged in
	ConnectSeconds   float64  `json:"upstream_connect_seconds"` // what these took together
	BrokerCPUSaved   float64  `json:"broker_cpu_saved_seconds"` // by brokerCPU; an estimate
	LateErrors       uint64   `json:"late_errors"`
	FirewallCloses   uint64   `json:"firewall_closes"`
	SlowClients      uint64   `json:"slow_client_closes"`
	SlowPublishers   uint64   `json:"slow_publish_closes"`
	TurnedAway       uint64   `json:"turned_away"`
	Silent           uint64   `json:"heartbeat_timeouts"`
	FromClients      uint64   `json:"received_from_clients_bytes"`
	ToClients        uint64   `json:"sent_to_clients_bytes"`
	FromUpstreams    uint64   `json:"received_from_upstreams_bytes"`
	ToUpstreams      uint64   `json:"sent_to_upstreams_bytes"`

	Listeners []Listener   `json:"listeners"`
	Errors    []ErrorCount `json:"errors"` // that clients were told since the start

	BeforeUpgrade *Before `json:"before_upgrade,omitempty"` // counted in none of the above
}

// Target is one address of a broker.
type Target struct {
	Broker    string  `json:"broker,omitempty"` // the name of a [[broker]]; of [upstream] none
	Address   string  `json:"address"`
	Up        bool    `json:"up"`                    // it is asked
	Out       float64 `json:"out_seconds,omitempty"` // since when it is not
	Reason    string  `json:"reason,omitempty"`
	Upstreams int     `json:"upstreams"`
	Connects  uint64  `json:"connects"`
	Failures  uint64  `json:"failures"`
}

// Broker is one [[broker]]. broker_up is of the one that judges logins.
type Broker struct {
	Name   string  `json:"name"`
	Up     bool    `json:"up"`
	Away   float64 `json:"away_seconds,omitempty"`
	Reason string  `json:"reason,omitempty"`
}

// Route is one [[route]].
type Route struct {
	VHost     string `json:"vhost"`
	ToVHost   string `json:"to_vhost,omitempty"`
	Broker    string `json:"broker,omitempty"`
	Durable   bool   `json:"durable,omitempty"` // what queues are declared as
	QueueType string `json:"queue_type,omitempty"`
}

func targetsOf(targets []proxy.TargetStats) []Target {
	all := make([]Target, 0, len(targets))
	for _, t := range targets {
		one := Target{Broker: t.Broker, Address: t.Address, Up: t.Up, Reason: t.Reason, Upstreams: t.Links, Connects: t.Connects, Failures: t.Failures}
		if !t.Up && !t.Since.IsZero() {
			one.Out = seconds(time.Since(t.Since))
		}
		all = append(all, one)
	}
	return all
}

func brokersOf(brokers []proxy.BrokerStats) []Broker {
	all := make([]Broker, 0, len(brokers))
	for _, b := range brokers {
		one := Broker{Name: b.Name, Up: b.Up, Reason: b.Reason}
		if !b.Up {
			one.Away = seconds(time.Since(b.AwaySince))
		}
		all = append(all, one)
	}
	return all
}

// RoutesOf are the routes as they are told.
func RoutesOf(routes []proxy.Route) (all []Route) {
	for _, r := range routes {
		all = append(all, Route{VHost: r.VHost, ToVHost: r.ToVHost, Broker: r.Broker, Durable: r.Durable, QueueType: r.QueueType})
	}
	return all
}

// Advise is the answer to `advise`.
type Advise struct {
	Schema int      `json:"schema"`
	Advice []Advice `json:"advice"` // the gravest first
}

// Advice is one piece: a habit of an application, its evidence in numbers, and what to do.
type Advice struct {
	Rule     string  `json:"rule"`
	Level    string  `json:"level"` // error, warn, info
	User     string  `json:"user"`
	VHost    string  `json:"vhost"`
	Name     string  `json:"name"`    // connection_name without the words that have digits, or the library
	Address  string  `json:"address"` // the host that the application is on
	Since    float64 `json:"since_seconds"`
	Evidence string  `json:"evidence"`
	Remedy   string  `json:"remedy"`
}

func adviceOf(all []advice.Advice) []Advice {
	out := make([]Advice, 0, len(all))
	for _, a := range all {
		out = append(out, Advice{Rule: a.Rule, Level: a.Level, User: a.User, VHost: a.VHost, Name: a.Name, Address: a.Host,
			Since: seconds(time.Since(a.Since)), Evidence: a.Evidence, Remedy: a.Remedy})
	}
	return out
}

// Pause is one that is in force.
type Pause struct {
	VHost string  `json:"vhost"`
	All   bool    `json:"all"` // and not one vhost
	For   float64 `json:"for_seconds"`
	Left  float64 `json:"left_seconds,omitempty"` // until it ends by itself
}

// Config is the answer to `config`.
type Config struct {
	Schema   int       `json:"schema"`
	Settings []Setting `json:"settings"`
}

// Setting is one setting in force.
type Setting struct {
	Name   string `json:"name"`
	Value  string `json:"value"`  // as it would stand in the settings file
	Origin string `json:"origin"` // "default", "FILE:LINE", "environment NAME", "command line FLAG"
}

// Status is the answer to `status`: what the state file holds, as the process itself tells it.
type Status struct {
	Schema int `json:"schema"`
	State  any `json:"state"`
}

// Reload is the answer to `reload`.
type Reload struct {
	Schema      int      `json:"schema"`
	Changed     []string `json:"changed"`      // settings with another value than before
	NeedRestart []string `json:"need_restart"` // those with another value than at the start, which holds after a restart
	// TakenOver is the process that serves new clients now: the program on the disk was another one than the one
	// that ran. NoUpgrade is why it has not taken over.
	TakenOver int    `json:"taken_over,omitempty"`
	NoUpgrade string `json:"no_upgrade,omitempty"`
	// Warnings are of what is unwise in the settings or not used.
	Warnings []string `json:"warnings,omitempty"`
}

// Before is the process of before an upgrade, while it serves its clients to their end.
type Before struct {
	PID     int       `json:"pid"`
	Clients int       `json:"clients"`
	Until   time.Time `json:"until,omitzero"` // then they have drain_timeout
}

// Elsewhere is an error of ReloadNow and UpgradeNow: another process has taken over, and is the one to ask.
type Elsewhere struct{ Err error }

func (e Elsewhere) Error() string { return e.Err.Error() }

// Done is the answer to what changes something.
type Done struct {
	Schema int `json:"schema"`
	Count  int `json:"count"` // how many clients or upstreams it fell on
}

// Failure is the answer to what could not be done.
type Failure struct {
	Schema int    `json:"schema"`
	Error  string `json:"error"`
}

func seconds(d time.Duration) float64 { return d.Round(time.Millisecond).Seconds() }

func clientOf(c *proxy.ClientInfo) Client {
	mode := "shared"
	if c.Session {
		mode = "session"
	}
	on := c.Upstreams
	if on == nil {
		on = []uint64{}
	}
	return Client{
		ID: c.ID, User: c.User, VHost: c.VHost, Address: c.Address, Name: c.Name, State: string(c.State), Mode: mode,
		Channels: c.Channels, Bound: c.Bound, Upstreams: on, In: c.In, Out: c.Out, Queue: c.Queue,
		Age: seconds(c.Age), Idle: seconds(c.Idle), Waiting: seconds(c.Waiting),
	}
}

func upstreamOf(u proxy.UpstreamInfo) Upstream {
	toVHost := u.ToVHost
	if toVHost == u.VHost {
		toVHost = ""
	}
	return Upstream{
		ID: u.ID, Broker: u.Broker, Name: u.Name, ToVHost: toVHost, User: u.User, VHost: u.VHost, State: string(u.State), Lane: u.Lane, Client: u.Client,
		Channels: u.Channels, Kept: u.Kept, In: u.In, Out: u.Out, Queue: u.Queue,
		Age: seconds(u.Age), Idle: seconds(u.Idle), Blocked: u.Blocked,
	}
}

// poolsOf puts those of one name beside each other, the longest wait first.
func poolsOf(pools []proxy.PoolStats, clients []proxy.ClientInfo) []Pool {
	type name struct{ user, vhost string }
	longest := map[name]time.Duration{}
	for _, c := range clients {
		if c.Waiting > 0 {
			longest[name{c.User, c.VHost}] = max(c.Waiting, longest[name{c.User, c.VHost}])
		}
	}
	all := make([]Pool, 0, len(pools))
	for _, p := range pools {
		one := Pool{
			User: p.User, VHost: p.VHost, Clients: p.Clients, Waiting: p.Waiting, Upstreams: p.Upstreams, Idle: p.Idle,
			Sessions: p.Sessions, Channels: p.Channels, Logins: p.Logins, Reused: p.Reused,
		}
		if p.Waiting > 0 {
			one.MaxWait = seconds(longest[name{p.User, p.VHost}])
		}
		all = append(all, one)
	}
	slices.SortStableFunc(all, func(a, b Pool) int {
		return cmp.Or(cmp.Compare(b.MaxWait, a.MaxWait), cmp.Compare(a.User, b.User), cmp.Compare(a.VHost, b.VHost), cmp.Compare(b.Clients, a.Clients))
	})
	return all
}

func pausesOf(pauses []proxy.PauseInfo) (all []Pause) {
	for _, p := range pauses {
		one := Pause{VHost: p.VHost, All: p.All, For: seconds(time.Since(p.Since))}
		if !p.Until.IsZero() {
			one.Left = seconds(max(0, time.Until(p.Until)))
		}
		all = append(all, one)
	}
	return all
}

func statsOf(s proxy.Stats, version string) Stats {
	return Stats{
		Pauses: pausesOf(s.Pauses), PausedClients: s.PausedClients, Targets: targetsOf(s.Targets), Brokers: brokersOf(s.Brokers), Routes: RoutesOf(s.Routes),
		Schema: Schema, Version: version, Uptime: seconds(time.Since(s.Started)),
		BrokerUp: s.BrokerUp, BrokerReason: s.BrokerReason, UpstreamsBlocked: s.UpstreamsBlocked,
		Clients: s.Clients, Waiting: s.Waiting, LongestWait: seconds(s.LongestWait), Channels: s.Channels,
		Upstreams: s.Upstreams, Kept: s.Kept, ClientsTotal: s.ClientsTotal, UpstreamsTotal: s.UpstreamsTotal,
		LoginsOK: s.LoginsOK, LoginsRefused: s.LoginsRefused, LoginsFailed: s.LoginsFailed, Reused: s.ReuseHits,
		ChannelsOpened: s.ChannelsOpened, ChannelsReused: s.ChannelsReused, UpstreamsLost: s.UpstreamsLost,
		Connects: s.ConnectLatency[len(s.ConnectLatency)-1], ConnectSeconds: seconds(s.ConnectLatencySum),
		BrokerCPUSaved: float64(s.ReuseHits) * brokerCPU.Seconds(),
		LateErrors:     s.LateErrors, FirewallCloses: s.FirewallCloses, SlowClients: s.SlowClientCloses,
		SlowPublishers: s.SlowPublishCloses, TurnedAway: s.TurnedAway, Silent: s.HeartbeatTimeouts,
		FromClients: s.BytesFromClients, ToClients: s.BytesToClients,
		FromUpstreams: s.BytesFromUpstreams, ToUpstreams: s.BytesToUpstreams,
		Listeners: listenersOf(s.Listeners), Errors: errorsOf(&s),
	}
}

// String says where it leads.
func (r Route) String() string {
	to := cmp.Or(r.Broker, "[upstream]")
	if r.ToVHost != "" {
		to += ", vhost " + strconv.Quote(r.ToVHost)
	}
	if queues := strings.TrimSpace(map[bool]string{true: "durable "}[r.Durable] + r.QueueType); queues != "" {
		to += ", queues " + queues
	}
	return "vhost " + strconv.Quote(r.VHost) + " to " + to
}

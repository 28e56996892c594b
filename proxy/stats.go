// Counters and gauges of the engine, read by metrics, status lines and tests.

package proxy

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/advice"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
	"github.com/amqproxysvc/amqproxysvc/proxy/ledger"
)

// Stats is a snapshot of a server. Totals count from the server's start.
type Stats struct {
	Started time.Time

	Clients     int           // connected now
	Upstreams   int           // open now
	Channels    int           // of clients, open now
	Bindings    int           // upstream channels open at the broker now
	Kept        int           // of these, the ones that belong to nobody and wait for a client
	Identities  int           // identities known now
	Waiting     int           // clients waiting at a bound now
	LongestWait time.Duration // of those that wait now

	// BrokerUp is false when the broker, of several the one that judges logins, could not be reached at the last attempt and no upstream
	// stands; before the first attempt it is true.
	// While it is false, BrokerAwaySince and BrokerReason say more.
	BrokerUp         bool
	BrokerAwaySince  time.Time
	BrokerReason     string // one line without secrets
	UpstreamsBlocked int    // upstreams on which the broker's connection.blocked is in force

	ClientsTotal                           uint64
	UpstreamsTotal                         uint64
	LoginsOK                               uint64 // clients whose open was answered with open-ok
	LoginsRefused                          uint64 // refused by the broker's verdict
	LoginsFailed                           uint64 // failed for want of a broker that can be reached, or of a place
	ReuseHits                              uint64 // logins served by an upstream that was there
	BytesFromClients, BytesToClients       uint64
	BytesFromUpstreams, BytesToUpstreams   uint64
	FramesFromClients, FramesFromUpstreams uint64
	LocalOK, LocalRefused                  uint64 // logins of the proxy's own users: proved, or refused here
	RechecksFailed                         uint64 // logins behind served ones that found no place or no broker
	HeldBehindCloses                       uint64 // reads, declares and new channels that waited for closes that came before
	LateErrors                             uint64 // soft errors of channels that were closed quietly
	SlowClientCloses                       uint64 // clients closed because their queue was full
	SlowPublishCloses                      uint64 // clients closed because a publish came too slowly while others waited for room
	TurnedAway                             uint64 // connections closed at once: max_handshakes, or too few descriptors
	FirewallCloses                         uint64 // hard errors answered by the proxy in the broker's stead
	HeartbeatTimeouts                      uint64
	ChannelsOpened, ChannelsReused         uint64                        // channels of clients that got a fresh one at the broker, or a kept one
	ChannelBarriers                        uint64                        // methods sent to prove that a channel can be used again
	ChannelsNotReused                      [len(NotReusedReasons)]uint64 // closed instead of kept, by reason
	UpstreamsLost                          uint64                        // ended by the broker or the network, not by the proxy

	// ConnectLatency is a histogram of successful broker handshakes: the count of those
	// that took at most ConnectLatencyBounds[i]; the last entry counts all.
	ConnectLatency    [len(ConnectLatencyBounds) + 1]uint64
	ConnectLatencySum time.Duration
	HeldTime          time.Duration // of HeldBehindCloses, in all
	// Waits are those of clients, for a place or a verdict on their login that was not there. FirstFrames is how
	// long the first frame of a channel was held here until it had a place at the broker, such waits included.
	Waits, FirstFrames Histogram
	// ConnectionErrors and ChannelErrors are what clients were told, by the index of ErrorCodes.
	ConnectionErrors, ChannelErrors [len(ErrorCodes)]uint64

	// Barred are connections closed for their address.
	Barred uint64
	// Limits are what limits did; LimitKeys is how many users and so on are remembered for them, in the order of
	// LimitBys, -1: there is no limit by that.
	Limits    []LimitStats
	LimitKeys [len(LimitBys)]int

	Tokens        []TokenStats
	Advice        []advice.Advice // the gravest first
	Pauses        []PauseInfo     // in force
	PausedClients int             // that wait for their end now

	Pools     []PoolStats
	Listeners []ListenerStats
	Targets   []TargetStats
	Brokers   []BrokerStats // those of Config.Brokers
	Routes    []Route
	// DeclaresRewritten are those of queues that a route had declared otherwise than their clients did.
	DeclaresRewritten uint64
}

// BrokerStats is one of several brokers, as BrokerUp is of the one that judges logins.
type BrokerStats struct {
	Name      string
	Up        bool
	AwaySince time.Time
	Reason    string
}

// TargetStats is one address of the broker's.
type TargetStats = broker.TargetState

// OutReasons name the entries of TargetStats.Outs.
var OutReasons = broker.Reasons

// ConnectLatencyBounds are the upper bounds, in seconds, of Stats.ConnectLatency.
var ConnectLatencyBounds = [...]float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5}

// NotReusedReasons name the entries of Stats.ChannelsNotReused: what the channel did, or that
// there was no room for it (full) or it was too old. In the order of ledger.Use.
var NotReusedReasons = [ledger.NumUses - 1]string{"busy", "consumed", "transaction", "mandatory", "full", "old"}

// TokenStats is the token that the broker is sent for a user.
type TokenStats struct {
	User string
	Ends time.Time
}

// PoolStats is one identity's pool, without its secret.
type PoolStats struct {
	User, VHost string
	Clients     int
	Upstreams   int
	Idle        int // upstreams that carry no channel
	Sessions    int // upstreams that belong to one client
	Channels    int
	Waiting     int
	// Logins are those that were answered with open-ok, Reused those of them for which a
	// connection to the broker was there. They count from the pool's making: one that nobody
	// has used for idle_timeout is forgotten.
	Logins, Reused uint64
	// Verdict is what the broker last decided when the identity logged in: accepted, refused, full,
	// throttled, or away where it said nothing. Reason is its text, unless it accepted; Heard is when.
	Verdict, Reason string
	Heard           time.Time
}

// counters are the server's own; Stats is made of them.
type counters struct {
	clientsTotal, upstreamsTotal, upstreamSeq atomic.Uint64
	loginsOK, loginsRefused, loginsFailed     atomic.Uint64
	reuseHits, localOK, localRefused          atomic.Uint64
	fromClients, fromUpstreams                atomic.Uint64
	toUpstreams, turnedAway, barred           atomic.Uint64
	framesClients, framesUpstreams            atomic.Uint64
	lateErrors, slowCloses, firewallCloses    atomic.Uint64
	slowPublishes, rechecksFailed             atomic.Uint64
	heldBehindCloses                          atomic.Uint64
	heldTime                                  atomic.Int64
	heartbeatTimeouts, upstreamsLost          atomic.Uint64
	channels, bindings                        atomic.Int64
	channelsOpened, channelsReused, barriers  atomic.Uint64
	notReused                                 [ledger.NumUses]atomic.Uint64
	latency                                   [len(ConnectLatencyBounds) + 1]atomic.Uint64
	latencySum                                atomic.Int64
	waits, firstFrames                        histogram
	connectionErrors, channelErrors           errorCounts
}

// observe counts one successful login to the broker.
func (n *counters) observe(took time.Duration) {
	n.latencySum.Add(int64(took))
	for i := range n.latency {
		bound := math.Inf(1)
		if i < len(ConnectLatencyBounds) {
			bound = ConnectLatencyBounds[i]
		}
		if took.Seconds() <= bound {
			n.latency[i].Add(1)
		}
	}
}

// Stats is a snapshot of the counters.
func (s *Server) Stats() Stats {
	n := &s.n
	st := Stats{
		Started: s.began, ClientsTotal: n.clientsTotal.Load(), UpstreamsTotal: n.upstreamsTotal.Load(),
		LoginsOK: n.loginsOK.Load(), LoginsRefused: n.loginsRefused.Load(), LoginsFailed: n.loginsFailed.Load(),
		ReuseHits: n.reuseHits.Load(), RechecksFailed: n.rechecksFailed.Load(), BytesFromClients: n.fromClients.Load(), BytesFromUpstreams: n.fromUpstreams.Load(),
		BytesToUpstreams:  n.toUpstreams.Load(),
		FramesFromClients: n.framesClients.Load(), FramesFromUpstreams: n.framesUpstreams.Load(),
		HeldBehindCloses: n.heldBehindCloses.Load(), HeldTime: time.Duration(n.heldTime.Load()),
		LateErrors: n.lateErrors.Load(), SlowClientCloses: n.slowCloses.Load(),
		SlowPublishCloses: n.slowPublishes.Load(), TurnedAway: n.turnedAway.Load(), FirewallCloses: n.firewallCloses.Load(),
		HeartbeatTimeouts: n.heartbeatTimeouts.Load(), UpstreamsLost: n.upstreamsLost.Load(),
		Channels: int(n.channels.Load()), Bindings: int(n.bindings.Load()),
		ConnectLatencySum: time.Duration(n.latencySum.Load()),
	}
	st.LocalOK, st.LocalRefused = n.localOK.Load(), n.localRefused.Load()
	st.Waits, st.FirstFrames = n.waits.snapshot(), n.firstFrames.snapshot()
	st.ConnectionErrors, st.ChannelErrors = n.connectionErrors.snapshot(), n.channelErrors.snapshot()
	st.ChannelsOpened, st.ChannelsReused = n.channelsOpened.Load(), n.channelsReused.Load()
	st.ChannelBarriers = n.barriers.Load()
	for i := range st.ChannelsNotReused {
		st.ChannelsNotReused[i] = n.notReused[i+1].Load()
	}
	for i := range st.ConnectLatency {
		st.ConnectLatency[i] = n.latency[i].Load()
	}
	s.mu.Lock()
	st.Upstreams = len(s.upstreams)
	for u := range s.upstreams {
		st.Kept += int(u.keptN.Load())
		if u.blocked.Load() {
			st.UpstreamsBlocked++
		}
	}
	s.mu.Unlock()
	var away bool
	ways := s.ways.Load()
	st.BrokerAwaySince, st.BrokerReason, away = ways.door.Away()
	st.BrokerUp = !away
	for _, w := range ways.all {
		for _, t := range w.Targets() {
			t.Broker = w.name
			st.Targets = append(st.Targets, t)
		}
		if w.name != "" {
			since, reason, away := w.Away()
			st.Brokers = append(st.Brokers, BrokerStats{Name: w.name, Up: !away, AwaySince: since, Reason: reason})
		}
	}
	st.DeclaresRewritten = s.rewrites.n.Load()
	for _, r := range ways.routes {
		st.Routes = append(st.Routes, r.Route)
	}
	st.Clients = s.clients.len()
	st.BytesToClients = s.clients.written()
	n1, t1 := s.gate.waiting()
	n2, t2 := s.limits.clients.Waiting()
	n3, t3 := s.quotas.loginsWaiting()
	st.Waiting, st.LongestWait = n1+n2+n3, max(t1, t2, t3)
	st.Barred = n.barred.Load()
	st.Limits, st.LimitKeys = s.quotas.stats()
	st.Advice = s.Advice()
	st.Pauses, st.PausedClients = s.Pauses(), int(s.pauses.waiting.Load())
	for _, p := range s.allPools() {
		st.Pools = append(st.Pools, p.stats())
	}
	st.Identities = len(st.Pools)
	st.Listeners = s.listenerStats()
	st.Tokens = s.users.Load().tokens()
	return st
}

func (p *pool) stats() PoolStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := PoolStats{User: p.id.user, VHost: p.id.vhost, Clients: p.clients, Upstreams: len(p.ups), Waiting: p.waiting + p.entering,
		Logins: p.logins.Load(), Reused: p.reused.Load()}
	if v, at := p.standing.latest(); at != 0 {
		st.Verdict, st.Heard = v.String(), p.env.began.Add(time.Duration(at))
		if v.words != nil {
			st.Reason = v.words.Text
		}
	}
	for _, u := range p.ups {
		st.Channels += u.load
		switch {
		case u.owner.Load() != nil:
			st.Sessions++
		case u.load == 0:
			st.Idle++
		}
	}
	return st
}

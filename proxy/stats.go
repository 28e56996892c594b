// Counters and gauges of the engine, read by metrics, status lines and tests.

package proxy

import "time"

// Stats is a snapshot of a server. Totals count from the server's start.
type Stats struct {
	Started time.Time

	Clients     int           // connected now
	Upstreams   int           // open now
	Channels    int           // of clients, open now
	Bindings    int           // upstream channels in use now
	Identities  int           // identities known now
	Waiting     int           // clients waiting at a bound now
	LongestWait time.Duration // of those that wait now

	ClientsTotal                           uint64
	UpstreamsTotal                         uint64
	LoginsOK                               uint64 // clients whose open was answered with open-ok
	LoginsRefused                          uint64 // refused by the broker's verdict
	LoginsFailed                           uint64 // failed because the broker could not be reached
	ReuseHits                              uint64 // logins served by an upstream that was there
	BytesFromClients, BytesToClients       uint64
	BytesFromUpstreams, BytesToUpstreams   uint64
	FramesFromClients, FramesFromUpstreams uint64
	LateErrors                             uint64 // soft errors of channels that were closed quietly
	SlowClientCloses                       uint64 // clients closed because their queue was full
	FirewallCloses                         uint64 // hard errors answered by the proxy in the broker's stead
	HeartbeatTimeouts                      uint64
	UpstreamsLost                          uint64 // ended by the broker or the network, not by the proxy

	// ConnectLatency is a histogram of successful broker handshakes: the count of those
	// that took at most ConnectLatencyBounds[i]; the last entry counts all.
	ConnectLatency    [len(ConnectLatencyBounds) + 1]uint64
	ConnectLatencySum time.Duration

	Pools []PoolStats
}

// ConnectLatencyBounds are the upper bounds, in seconds, of Stats.ConnectLatency.
var ConnectLatencyBounds = [...]float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5}

// PoolStats is one identity's pool, without its secret.
type PoolStats struct {
	User, VHost string
	Upstreams   int
	Idle        int // upstreams that carry no channel
	Sessions    int // upstreams that belong to one client
	Channels    int
	Waiting     int
}

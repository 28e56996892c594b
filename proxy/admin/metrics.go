// The metrics: one look at the engine's counters per scrape. AMQProxy's two names stay,
// so that its dashboards do; all others begin with amqproxysvc_.

package admin

import (
	"cmp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/advice"
)

// maxPools bounds the user and vhost label pairs of a scrape. The pools with the most
// upstreams have a line of their own, the others are added up under otherPools: brokers
// with passwords and users by time stamp would else make series without end.
const maxPools = 200

const otherPools = "_other"

// metric is one row: a number out of the counters.
type metric struct {
	name, help string
	kind       prometheus.ValueType
	value      func(*proxy.Stats) float64
}

var metrics = []metric{
	{"amqproxy_client_connections", "Clients connected now (AMQProxy's name).", prometheus.GaugeValue, func(s *proxy.Stats) float64 { return float64(s.Clients) }},
	{"amqproxy_upstream_connections", "Connections to the broker now (AMQProxy's name).", prometheus.GaugeValue, func(s *proxy.Stats) float64 { return float64(s.Upstreams) }},

	{"amqproxysvc_start_time_seconds", "When the engine started, in seconds since 1970.", prometheus.GaugeValue, func(s *proxy.Stats) float64 { return float64(s.Started.UnixMilli()) / 1000 }},
	{"amqproxysvc_clients", "Clients connected now.", prometheus.GaugeValue, func(s *proxy.Stats) float64 { return float64(s.Clients) }},
	{"amqproxysvc_upstreams", "Connections to the broker now.", prometheus.GaugeValue, func(s *proxy.Stats) float64 { return float64(s.Upstreams) }},
	{"amqproxysvc_upstreams_blocked", "Connections on which the broker blocks publishers now.", prometheus.GaugeValue, func(s *proxy.Stats) float64 { return float64(s.UpstreamsBlocked) }},
	{brokerUp, brokerUpHelp, prometheus.GaugeValue, func(s *proxy.Stats) float64 { return truth(s.BrokerUp) }},
	{"amqproxysvc_client_channels", "Channels of clients open now.", prometheus.GaugeValue, func(s *proxy.Stats) float64 { return float64(s.Channels) }},
	{"amqproxysvc_upstream_channels", "Channels open at the broker now, kept ones included.", prometheus.GaugeValue, func(s *proxy.Stats) float64 { return float64(s.Bindings) }},
	{"amqproxysvc_identities", "Users with password and vhost known now.", prometheus.GaugeValue, func(s *proxy.Stats) float64 { return float64(s.Identities) }},
	{"amqproxysvc_waiting_clients", "Clients that wait for a place at a bound now.", prometheus.GaugeValue, func(s *proxy.Stats) float64 { return float64(s.Waiting) }},
	{"amqproxysvc_longest_wait_seconds", "How long the longest of them waits.", prometheus.GaugeValue, func(s *proxy.Stats) float64 { return s.LongestWait.Seconds() }},

	{"amqproxysvc_paused_clients", "Clients that wait for the end of a pause now.", prometheus.GaugeValue, func(s *proxy.Stats) float64 { return float64(s.PausedClients) }},

	{"amqproxysvc_clients_total", "Clients accepted.", prometheus.CounterValue, func(s *proxy.Stats) float64 { return float64(s.ClientsTotal) }},
	{"amqproxysvc_upstreams_total", "Connections opened to the broker.", prometheus.CounterValue, func(s *proxy.Stats) float64 { return float64(s.UpstreamsTotal) }},
	{"amqproxysvc_upstreams_lost_total", "Connections ended by the broker or the network.", prometheus.CounterValue, func(s *proxy.Stats) float64 { return float64(s.UpstreamsLost) }},
	{"amqproxysvc_reuse_hits_total", "Logins served by a connection that was there.", prometheus.CounterValue, func(s *proxy.Stats) float64 { return float64(s.ReuseHits) }},
	{"amqproxysvc_idle_channels", "Channels kept open at the broker for the next client now.", prometheus.GaugeValue, func(s *proxy.Stats) float64 { return float64(s.Kept) }},
	{"amqproxysvc_channels_opened_total", "Channels opened at the broker.", prometheus.CounterValue, func(s *proxy.Stats) float64 { return float64(s.ChannelsOpened) }},
	{"amqproxysvc_channels_reused_total", "Channels of clients that got one which was open at the broker.", prometheus.CounterValue, func(s *proxy.Stats) float64 { return float64(s.ChannelsReused) }},
	{"amqproxysvc_channel_barriers_total", "Methods sent to prove that a channel can be used again.", prometheus.CounterValue, func(s *proxy.Stats) float64 { return float64(s.ChannelBarriers) }},
	{"amqproxysvc_rechecks_failed_total", "Logins that could not be verified anew, for want of a place or a broker.", prometheus.CounterValue, func(s *proxy.Stats) float64 { return float64(s.RechecksFailed) }},
	{"amqproxysvc_held_behind_closes_total", "Reads, declares and new channels that waited until closes answered at once before were through at the broker.", prometheus.CounterValue, func(s *proxy.Stats) float64 { return float64(s.HeldBehindCloses) }},
	{"amqproxysvc_held_behind_closes_seconds_total", "How long they waited in all.", prometheus.CounterValue, func(s *proxy.Stats) float64 { return s.HeldTime.Seconds() }},
	{"amqproxysvc_late_errors_total", "Errors of the broker for channels that were closed without waiting for it.", prometheus.CounterValue, func(s *proxy.Stats) float64 { return float64(s.LateErrors) }},
	{"amqproxysvc_turned_away_total", "Connections of clients closed at once: max_handshakes, or no descriptors left.", prometheus.CounterValue, func(s *proxy.Stats) float64 { return float64(s.TurnedAway) }},
	{"amqproxysvc_barred_total", "Connections of clients closed at once for their address: allow, deny.", prometheus.CounterValue, func(s *proxy.Stats) float64 { return float64(s.Barred) }},
	{"amqproxysvc_slow_client_closes_total", "Clients closed because their queue was full.", prometheus.CounterValue, func(s *proxy.Stats) float64 { return float64(s.SlowClientCloses) }},
	{"amqproxysvc_slow_publish_closes_total", "Clients closed because a publish came too slowly while others waited for message_buffer.", prometheus.CounterValue, func(s *proxy.Stats) float64 { return float64(s.SlowPublishCloses) }},
	{"amqproxysvc_firewall_closes_total", "Connection errors answered by the proxy to keep them from a shared connection.", prometheus.CounterValue, func(s *proxy.Stats) float64 { return float64(s.FirewallCloses) }},
	{"amqproxysvc_declares_rewritten_total", "Declarations of queues that a route had made otherwise than their clients did.", prometheus.CounterValue, func(s *proxy.Stats) float64 { return float64(s.DeclaresRewritten) }},
	{"amqproxysvc_heartbeat_timeouts_total", "Peers closed because they were silent for two heartbeats.", prometheus.CounterValue, func(s *proxy.Stats) float64 { return float64(s.HeartbeatTimeouts) }},
}

func truth(v bool) float64 {
	if v {
		return 1
	}
	return 0
}

// A [[broker]] has a row of its own in the metric of the broker that judges logins, whose row has no label: to who
// looks for that by its name alone it must stay.
const brokerUp = "amqproxysvc_broker_up"

const brokerUpHelp = "0: the broker could not be reached at the last attempt, and no connection to it stands; 1 else, before the first attempt too. " +
	"Without a label: of the broker that judges logins; with one: of that [[broker]]."

// labelled is a counter that is split by one label.
var labelled = []struct {
	name, help, label string
	values            []string
	value             func(*proxy.Stats) []uint64
}{
	{"amqproxysvc_logins_total", "Logins: ok, refused by the broker or by a limit, or failed because the broker could not be reached.", "result",
		[]string{"ok", "refused", "failed"}, func(s *proxy.Stats) []uint64 { return []uint64{s.LoginsOK, s.LoginsRefused, s.LoginsFailed} }},
	{"amqproxysvc_local_logins_total", "Logins of users whose credentials the proxy keeps: the password was right, or refused here.", "result",
		[]string{"ok", "refused"}, func(s *proxy.Stats) []uint64 { return []uint64{s.LocalOK, s.LocalRefused} }},
	{"amqproxysvc_channels_not_reused_total", "Channels closed at the broker instead of kept, by what they had done.", "reason",
		proxy.NotReusedReasons[:], func(s *proxy.Stats) []uint64 { return s.ChannelsNotReused[:] }},
	{"amqproxysvc_received_bytes_total", "Bytes received.", "from",
		[]string{"clients", "upstreams"}, func(s *proxy.Stats) []uint64 { return []uint64{s.BytesFromClients, s.BytesFromUpstreams} }},
	{"amqproxysvc_sent_bytes_total", "Bytes sent.", "to",
		[]string{"clients", "upstreams"}, func(s *proxy.Stats) []uint64 { return []uint64{s.BytesToClients, s.BytesToUpstreams} }},
	{"amqproxysvc_received_frames_total", "AMQP frames received.", "from",
		[]string{"clients", "upstreams"}, func(s *proxy.Stats) []uint64 { return []uint64{s.FramesFromClients, s.FramesFromUpstreams} }},
}

// poolMetrics are the gauges of each pool.
var poolMetrics = []struct {
	name, help string
	value      func(*proxy.PoolStats) int
}{
	{"amqproxysvc_pool_upstreams", "Connections to the broker of one user and vhost.", func(p *proxy.PoolStats) int { return p.Upstreams }},
	{"amqproxysvc_pool_idle_upstreams", "Those of them that carry no channel.", func(p *proxy.PoolStats) int { return p.Idle }},
	{"amqproxysvc_pool_session_upstreams", "Those of them that belong to one client.", func(p *proxy.PoolStats) int { return p.Sessions }},
	{"amqproxysvc_pool_channels", "Clients' channels on them.", func(p *proxy.PoolStats) int { return p.Channels }},
	{"amqproxysvc_pool_waiting_clients", "Clients that wait for one of them.", func(p *proxy.PoolStats) int { return p.Waiting }},
}

// Of each listener that speaks TLS.
const (
	shakesName  = "amqproxysvc_tls_handshakes_total"
	shakesHelp  = "TLS handshakes of clients, by how they ended."
	headersName = "amqproxysvc_proxy_headers_total"
	headersHelp = "Connections to listeners with the PROXY protocol, by what came of their header."
	expiryName  = "amqproxysvc_certificate_expiry_timestamp_seconds"
	tokensName  = "amqproxysvc_token_expiry_timestamp_seconds"
	tokensHelp  = "When the token that the broker is sent for a user ends, in seconds since 1970."
	expiryHelp  = "When a certificate that clients are shown expires, in seconds since 1970."
)

// targetMetrics are those of each address of the broker's.
var targetMetrics = []struct {
	name, help string
	kind       prometheus.ValueType
	value      func(*proxy.TargetStats) float64
}{
	{"amqproxysvc_target_up", "1: this address of the broker's is asked; 0: it could not be reached lately.", prometheus.GaugeValue, func(t *proxy.TargetStats) float64 { return truth(t.Up) }},
	{"amqproxysvc_target_upstreams", "Connections to this address, those being opened included.", prometheus.GaugeValue, func(t *proxy.TargetStats) float64 { return float64(t.Links) }},
	{"amqproxysvc_target_connects_total", "Connections on which the broker at this address has greeted.", prometheus.CounterValue, func(t *proxy.TargetStats) float64 { return float64(t.Connects) }},
	{"amqproxysvc_target_failures_total", "Connects to this address that failed.", prometheus.CounterValue, func(t *proxy.TargetStats) float64 { return float64(t.Failures) }},
}

const (
	outsName = "amqproxysvc_target_outs_total"
	outsHelp = "How often this address was not asked any more: it could not be reached (connect), or the broker said that it goes away (drain)."
)

const (
	latencyName = "amqproxysvc_upstream_connect_seconds"
	latencyHelp = "How long connecting and logging in to the broker took."
	adviceName  = "amqproxysvc_advice"
	adviceHelp  = "Always 1: what amqproxysvc advise tells of a user's applications now."
	waitsName   = "amqproxysvc_wait_seconds"
	waitsHelp   = "How long clients waited for a place, or for the verdict on a login, that was not there."
	framesName  = "amqproxysvc_first_frame_seconds"
	framesHelp  = "How long the first frame of a channel was held until the channel had a place at the broker."
	lnsName     = "amqproxysvc_listener_clients"
	lnsHelp     = "Clients connected to a listener now."
	accName     = "amqproxysvc_listener_clients_total"
	accHelp     = "Clients accepted by a listener."
	errName     = "amqproxysvc_errors_total"
	errHelp     = "Errors that clients were told, by what was closed for them (connection or channel) and their AMQP code."
	limitedName = "amqproxysvc_limited_total"
	limitedHelp = "What limits did: clients, connections, logins or reads of clients that were refused, were delayed, or raised an alarm."
	keysName    = "amqproxysvc_limit_keys"
	keysHelp    = "Users, vhosts, addresses and listeners that are remembered for limits by these."
	upgradeName = "amqproxysvc_upgrade_draining_clients"
	upgradeHelp = "Clients that the process from before an upgrade serves to their end."
	untilName   = "amqproxysvc_upgrade_drain_end_timestamp_seconds"
	untilHelp   = "When upgrade_drain is over for them, in seconds since 1970; not there without such a process."
	infoName    = "amqproxysvc_build_info"
	infoHelp    = "Always 1; the labels say which program runs."
)

// collector reads the counters once per scrape.
type collector struct {
	source     Source
	version    string
	plain      []*prometheus.Desc
	labelled   []*prometheus.Desc
	pools      []*prometheus.Desc
	brokerUp   *prometheus.Desc // not described: the registry has one of that name
	targets    []*prometheus.Desc
	outs       *prometheus.Desc
	shakes     *prometheus.Desc
	expiry     *prometheus.Desc
	tokens     *prometheus.Desc
	headers    *prometheus.Desc
	latency    *prometheus.Desc
	waits      *prometheus.Desc
	frames     *prometheus.Desc
	listeners  *prometheus.Desc
	accepted   *prometheus.Desc
	errors     *prometheus.Desc
	advice     *prometheus.Desc
	limited    *prometheus.Desc
	limitKeys  *prometheus.Desc
	upgrade    *prometheus.Desc
	upgradeEnd *prometheus.Desc
	buildInfo  *prometheus.Desc
}

func newCollector(source Source, version string) *collector {
	c := &collector{source: source, version: version}
	for _, m := range metrics {
		c.plain = append(c.plain, prometheus.NewDesc(m.name, m.help, nil, nil))
	}
	for _, m := range labelled {
		c.labelled = append(c.labelled, prometheus.NewDesc(m.name, m.help, []string{m.label}, nil))
	}
	for _, m := range poolMetrics {
		c.pools = append(c.pools, prometheus.NewDesc(m.name, m.help, []string{"user", "vhost"}, nil))
	}
	for _, m := range targetMetrics {
		c.targets = append(c.targets, prometheus.NewDesc(m.name, m.help, []string{"target"}, nil))
	}
	c.brokerUp = prometheus.NewDesc(brokerUp, brokerUpHelp, []string{"broker"}, nil)
	c.outs = prometheus.NewDesc(outsName, outsHelp, []string{"target", "reason"}, nil)
	c.shakes = prometheus.NewDesc(shakesName, shakesHelp, []string{"listener", "result"}, nil)
	c.expiry = prometheus.NewDesc(expiryName, expiryHelp, []string{"listener", "file"}, nil)
	c.tokens = prometheus.NewDesc(tokensName, tokensHelp, []string{"user"}, nil)
	c.headers = prometheus.NewDesc(headersName, headersHelp, []string{"listener", "result"}, nil)
	c.latency = prometheus.NewDesc(latencyName, latencyHelp, nil, nil)
	c.advice = prometheus.NewDesc(adviceName, adviceHelp, []string{"rule", "user", "vhost"}, nil)
	c.waits = prometheus.NewDesc(waitsName, waitsHelp, nil, nil)
	c.frames = prometheus.NewDesc(framesName, framesHelp, nil, nil)
	c.listeners = prometheus.NewDesc(lnsName, lnsHelp, []string{"listener"}, nil)
	c.accepted = prometheus.NewDesc(accName, accHelp, []string{"listener"}, nil)
	c.errors = prometheus.NewDesc(errName, errHelp, []string{"of", "code"}, nil)
	c.limited = prometheus.NewDesc(limitedName, limitedHelp, []string{"limit", "by", "action"}, nil)
	c.limitKeys = prometheus.NewDesc(keysName, keysHelp, []string{"by"}, nil)
	c.upgrade = prometheus.NewDesc(upgradeName, upgradeHelp, nil, nil)
	c.upgradeEnd = prometheus.NewDesc(untilName, untilHelp, nil, nil)
	c.buildInfo = prometheus.NewDesc(infoName, infoHelp, []string{"version", "goversion"}, nil)
	return c
}

// Describe is part of prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range append(c.targets[:len(c.targets):len(c.targets)], c.outs) {
		ch <- d
	}
	for _, group := range [][]*prometheus.Desc{c.plain, c.labelled, c.pools, {c.shakes, c.expiry, c.tokens, c.headers, c.latency, c.advice, c.waits, c.frames, c.listeners, c.accepted, c.errors, c.limited, c.limitKeys, c.upgrade, c.upgradeEnd, c.buildInfo}} {
		for _, d := range group {
			ch <- d
		}
	}
}

// Collect is part of prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	stats := c.source.Stats()
	for i, m := range metrics {
		ch <- prometheus.MustNewConstMetric(c.plain[i], m.kind, m.value(&stats))
	}
	for i, m := range labelled {
		for j, v := range m.value(&stats) {
			ch <- prometheus.MustNewConstMetric(c.labelled[i], prometheus.CounterValue, float64(v), m.values[j])
		}
	}
	pools := boundPools(stats.Pools, maxPools)
	for i, m := range poolMetrics {
		for j := range pools {
			p := &pools[j]
			ch <- prometheus.MustNewConstMetric(c.pools[i], prometheus.GaugeValue, float64(m.value(p)), p.User, p.VHost)
		}
	}
	for _, t := range stats.Tokens[:min(len(stats.Tokens), maxPools)] {
		ch <- prometheus.MustNewConstMetric(c.tokens, prometheus.GaugeValue, float64(t.Ends.Unix()), strings.ToValidUTF8(t.User, "\ufffd"))
	}
	for _, b := range stats.Brokers {
		ch <- prometheus.MustNewConstMetric(c.brokerUp, prometheus.GaugeValue, truth(b.Up), strings.ToValidUTF8(b.Name, "\ufffd"))
	}
	told := map[string]bool{}
	for i := range stats.Targets {
		t := &stats.Targets[i]
		if told[t.Address] { // names of two brokers lead to one address
			continue
		}
		told[t.Address] = true
		for j, m := range targetMetrics {
			ch <- prometheus.MustNewConstMetric(c.targets[j], m.kind, m.value(t), t.Address)
		}
		for j, n := range t.Outs {
			ch <- prometheus.MustNewConstMetric(c.outs, prometheus.CounterValue, float64(n), t.Address, proxy.OutReasons[j])
		}
	}
	c.collectListeners(ch, stats.Listeners)
	ch <- latencyHistogram(c.latency, &stats)
	ch <- waitHistogram(c.waits, &stats.Waits)
	ch <- waitHistogram(c.frames, &stats.FirstFrames)
	for i, code := range proxy.ErrorCodes {
		label := "other"
		if code != 0 {
			label = strconv.Itoa(int(code))
		}
		ch <- prometheus.MustNewConstMetric(c.errors, prometheus.CounterValue, float64(stats.ConnectionErrors[i]), "connection", label)
		ch <- prometheus.MustNewConstMetric(c.errors, prometheus.CounterValue, float64(stats.ChannelErrors[i]), "channel", label)
	}
	c.collectAdvice(ch, stats.Advice)
	for _, l := range stats.Limits {
		for i, n := range l.Done {
			ch <- prometheus.MustNewConstMetric(c.limited, prometheus.CounterValue, float64(n), l.Limit, l.By, proxy.LimitActions[i])
		}
	}
	for i, n := range stats.LimitKeys {
		if n >= 0 && len(stats.Limits) > 0 {
			ch <- prometheus.MustNewConstMetric(c.limitKeys, prometheus.GaugeValue, float64(n), string(proxy.LimitBys[i]))
		}
	}
	draining := Before{}
	if s, ok := c.source.(interface{ BeforeUpgrade() *Before }); ok {
		if b := s.BeforeUpgrade(); b != nil {
			draining = *b
		}
	}
	ch <- prometheus.MustNewConstMetric(c.upgrade, prometheus.GaugeValue, float64(draining.Clients))
	if !draining.Until.IsZero() {
		ch <- prometheus.MustNewConstMetric(c.upgradeEnd, prometheus.GaugeValue, float64(draining.Until.Unix()))
	}
	ch <- prometheus.MustNewConstMetric(c.buildInfo, prometheus.GaugeValue, 1, c.version, runtime.Version())
}

// collectAdvice has each rule once for a user and vhost, however many applications they have, and no more
// than maxPools in all.
func (c *collector) collectAdvice(ch chan<- prometheus.Metric, all []advice.Advice) {
	type labels struct{ rule, user, vhost string }
	told := map[labels]bool{}
	for _, a := range all {
		l := labels{a.Rule, strings.ToValidUTF8(a.User, "\ufffd"), strings.ToValidUTF8(a.VHost, "\ufffd")}
		if !told[l] && len(told) < maxPools {
			told[l] = true
			ch <- prometheus.MustNewConstMetric(c.advice, prometheus.GaugeValue, 1, l.rule, l.user, l.vhost)
		}
	}
}

// collectListeners has a listener counted by its address; two cannot have the same.
func (c *collector) collectListeners(ch chan<- prometheus.Metric, listeners []proxy.ListenerStats) {
	for _, l := range listeners {
		ch <- prometheus.MustNewConstMetric(c.listeners, prometheus.GaugeValue, float64(l.Clients), l.Address)
		ch <- prometheus.MustNewConstMetric(c.accepted, prometheus.CounterValue, float64(l.Accepted), l.Address)
		for i, v := range l.TLSHandshakes {
			ch <- prometheus.MustNewConstMetric(c.shakes, prometheus.CounterValue, float64(v), l.Address, proxy.TLSResults[i])
		}
		for i, v := range l.ProxyHeaders {
			ch <- prometheus.MustNewConstMetric(c.headers, prometheus.CounterValue, float64(v), l.Address, proxy.ProxyResults[i])
		}
		told := map[string]bool{}
		for _, cert := range l.Certificates {
			file := strings.ToValidUTF8(cert.File, "\ufffd")
			if !told[file] {
				ch <- prometheus.MustNewConstMetric(c.expiry, prometheus.GaugeValue, float64(cert.NotAfter.Unix()), l.Address, file)
			}
			told[file] = true
		}
	}
}

// latencyHistogram is Stats.ConnectLatency, whose counts are cumulative already.
func latencyHistogram(desc *prometheus.Desc, s *proxy.Stats) prometheus.Metric {
	last := len(proxy.ConnectLatencyBounds)
	buckets := make(map[float64]uint64, last)
	for i, bound := range proxy.ConnectLatencyBounds {
		buckets[bound] = s.ConnectLatency[i]
	}
	return prometheus.MustNewConstHistogram(desc, s.ConnectLatency[last], s.ConnectLatencySum.Seconds(), buckets)
}

// waitHistogram is one of waits.
func waitHistogram(desc *prometheus.Desc, h *proxy.Histogram) prometheus.Metric {
	last := len(proxy.WaitBounds)
	buckets := make(map[float64]uint64, last)
	for i, bound := range proxy.WaitBounds {
		buckets[bound] = h.Counts[i]
	}
	return prometheus.MustNewConstHistogram(desc, h.Counts[last], h.Sum.Seconds(), buckets)
}

// boundPools adds up pools that have the same labels (one user with two passwords, names
// that are no text) and, beyond so many, all the smaller ones.
func boundPools(pools []proxy.PoolStats, limit int) []proxy.PoolStats {
	type labels struct{ user, vhost string }
	byLabels := map[labels]int{}
	var sums []proxy.PoolStats
	add := func(sum *proxy.PoolStats, p proxy.PoolStats) {
		sum.Upstreams += p.Upstreams
		sum.Idle += p.Idle
		sum.Sessions += p.Sessions
		sum.Channels += p.Channels
		sum.Waiting += p.Waiting
	}
	for _, p := range pools {
		p.User, p.VHost = strings.ToValidUTF8(p.User, "\ufffd"), strings.ToValidUTF8(p.VHost, "\ufffd")
		key := labels{p.User, p.VHost}
		if i, known := byLabels[key]; known {
			add(&sums[i], p)
			continue
		}
		byLabels[key] = len(sums)
		sums = append(sums, p)
	}
	if len(sums) <= limit {
		return sums
	}
	slices.SortStableFunc(sums, func(a, b proxy.PoolStats) int {
		return cmp.Or(cmp.Compare(b.Upstreams, a.Upstreams), cmp.Compare(b.Channels, a.Channels),
			cmp.Compare(a.User, b.User), cmp.Compare(a.VHost, b.VHost))
	})
	other := proxy.PoolStats{User: otherPools, VHost: otherPools}
	var kept []proxy.PoolStats
	for i, p := range sums {
		if i < limit && !(p.User == otherPools && p.VHost == otherPools) {
			kept = append(kept, p)
		} else {
			add(&other, p)
		}
	}
	return append(kept, other)
}

// Names are the names of all metrics of this program, for its documentation.
func Names() (names []string) {
	for _, m := range metrics {
		names = append(names, m.name)
	}
	for _, m := range labelled {
		names = append(names, m.name)
	}
	for _, m := range poolMetrics {
		names = append(names, m.name)
	}
	for _, m := range targetMetrics {
		names = append(names, m.name)
	}
	names = append(names, outsName)
	return append(names, shakesName, expiryName, tokensName, headersName, latencyName, waitsName, framesName, lnsName, accName, errName, adviceName, limitedName, keysName, upgradeName, untilName, infoName)
}

// Quotas: limits by user, vhost, address and listener, as the configuration has them, and which
// of them is in force for whom.

package proxy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// LimitBy is whom a limit counts together.
type LimitBy string

// What limits are by. An address is an IPv4 one or an IPv6 /64.
const (
	ByUser     LimitBy = "user"
	ByVHost    LimitBy = "vhost"
	ByAddress  LimitBy = "address"
	ByListener LimitBy = "listener"
)

// The same as numbers.
const (
	byUser = iota
	byVHost
	byAddress
	byListener
	quotaKinds
)

// LimitBys are all there are.
var LimitBys = [quotaKinds]LimitBy{ByUser, ByVHost, ByAddress, ByListener}

// Limit bounds what each of those that it matches may take.
type Limit struct {
	By LimitBy
	// Match are those it is for, each on its own: a name, in which * stands for any characters, of
	// an address a network. Of several that match, the most specific one is in force, alone.
	Match string

	MaxClients   int   // at a time; 0: no bound
	MaxUpstreams int   // at a time, for users and vhosts; 0: no bound
	ConnectRate  Rate  // logins; those above it wait
	DataRate     int64 // bytes a second from clients, who are not read above it; 0: no bound
	// Alarm counts and logs what would be refused or have to wait, and does neither.
	Alarm bool
}

// Bounds of limits.
const (
	// LimitsMost is how many there may be.
	LimitsMost = 1000
	// RateMost is the largest number in a Rate.
	RateMost = 1_000_000
	// DataRateLeast is so much that one read is no pause of more than a second.
	DataRateLeast = 64 << 10
	dataRateMost  = 1 << 40
)

// Rate is so many in a second, a minute or an hour. The zero value is none.
type Rate struct {
	N   int64
	Per time.Duration
}

var ratePers = []struct {
	per  time.Duration
	name string
}{{time.Second, "s"}, {time.Minute, "m"}, {time.Hour, "h"}}

// ParseRate reads "200/s", "30/m" or "10/h".
func ParseRate(text string) (Rate, bool) {
	number, name, _ := strings.Cut(text, "/")
	var n int64
	for _, c := range []byte(number) {
		if c < '0' || c > '9' || n > RateMost {
			return Rate{}, false
		}
		n = 10*n + int64(c-'0')
	}
	for _, p := range ratePers {
		if p.name == name && n > 0 && n <= RateMost {
			return Rate{n, p.per}, true
		}
	}
	return Rate{}, false
}

func (r Rate) String() string {
	for _, p := range ratePers {
		if p.per == r.Per {
			return fmt.Sprintf("%d/%s", r.N, p.name)
		}
	}
	return "0"
}

// PerSecond is the rate in a second.
func (r Rate) PerSecond() float64 {
	if r.Per == 0 {
		return 0
	}
	return float64(r.N) * float64(time.Second) / float64(r.Per)
}

// Which is what a limit is called in messages.
func (l *Limit) Which(i int) string {
	return fmt.Sprintf("limit %d (%s %s)", i+1, l.By, l.Match)
}

// ValidateLimits reports what is wrong with limits, a line each.
func ValidateLimits(limits []Limit) (problems []string) {
	if len(limits) > LimitsMost {
		problems = append(problems, fmt.Sprintf("there are %d limits, allowed are %d", len(limits), LimitsMost))
	}
	type same struct {
		by    LimitBy
		match string
		alarm bool
	}
	first := map[same]int{}
	for i := range limits {
		l := &limits[i]
		bad := func(format string, args ...any) {
			problems = append(problems, l.Which(i)+": "+fmt.Sprintf(format, args...))
		}
		if kindOf(l.By) < 0 {
			bad("limit.by is %q, allowed is user, vhost, address or listener", l.By)
		}
		if l.Match == "" {
			bad(`limit.match is "", allowed is a name, in which * stands for any characters, "*" for all`)
		}
		if l.By == ByAddress && l.Match != "*" && l.Match != "" {
			switch n, ok := limitNetwork(l.Match); {
			case !ok:
				bad("limit.match is %q, allowed is a network (10.0.0.0/8), an IP address, or * for each address", l.Match)
			case n.Addr().Is6() && n.Bits() > 64:
				bad("limit.match is %q, allowed is an IPv6 network of /64 or wider: the addresses of one are counted together", l.Match)
			}
		}
		if j, twice := first[same{l.By, l.Match, l.Alarm}]; twice {
			bad("limit.by, limit.match and limit.action are those of limit %d too, allowed is one", j+1)
		} else {
			first[same{l.By, l.Match, l.Alarm}] = i
		}
		if l.MaxUpstreams != 0 && (l.By == ByAddress || l.By == ByListener) {
			bad("limit.max_upstreams is for limits by user or vhost: clients of all addresses and listeners share connections to the broker")
		}
		ranged := func(name string, n, lo, hi int64) {
			if n != 0 && (n < lo || n > hi) {
				bad("limit.%s is %d, allowed is %d to %d", name, n, lo, hi)
			}
		}
		ranged("max_clients", int64(l.MaxClients), 1, 10_000_000)
		ranged("max_upstreams", int64(l.MaxUpstreams), 1, 1_000_000)
		ranged("data_rate", l.DataRate, DataRateLeast, dataRateMost)
		if r, ok := ParseRate(l.ConnectRate.String()); l.ConnectRate != (Rate{}) && (!ok || r != l.ConnectRate) {
			bad("limit.connect_rate is %d in %v, allowed is 1 to %d in a second, a minute or an hour", l.ConnectRate.N, l.ConnectRate.Per, RateMost)
		}
	}
	return problems
}

func kindOf(by LimitBy) int { return slices.Index(LimitBys[:], by) }

// limitNetwork reads a network, or an address as one that has no other.
func limitNetwork(text string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(text); err == nil {
		if a = a.Unmap(); a.Is6() {
			n, err := a.WithZone("").Prefix(64)
			return n, err == nil
		}
		n, err := a.Prefix(32)
		return n, err == nil
	}
	n, err := netip.ParsePrefix(text)
	return n.Masked(), err == nil && !n.Addr().Is4In6()
}

// quotaRule is a limit in force.
type quotaRule struct {
	Limit
	network netip.Prefix // of an address; not valid: all

	each, slack         int64 // of ConnectRate: nanoseconds for one, and how many of these at once
	dataSlack           int64 // of DataRate: nanoseconds of it at once
	literals, wildcards int
}

// quotaRules are those of one configuration.
type quotaRules struct {
	by    [quotaKinds][]*quotaRule // the most specific first
	order []*quotaRule             // as configured
}

// newQuotaRules is nil where there are none.
func newQuotaRules(limits []Limit) *quotaRules {
	if len(limits) == 0 {
		return nil
	}
	all := &quotaRules{}
	for _, l := range limits {
		r := &quotaRule{Limit: l, wildcards: strings.Count(l.Match, "*")}
		r.literals = len(l.Match) - r.wildcards
		kind := kindOf(l.By)
		if kind == byAddress && l.Match != "*" {
			r.network, _ = limitNetwork(l.Match)
			r.literals = 1 + r.network.Bits()
		}
		if l.ConnectRate.N > 0 {
			// At once go ten, or what a twentieth of a second brings: a page that opens a few connections
			// waits for nothing, and a thousand logins are no faster than the rate by more than 5 %.
			second := l.ConnectRate.PerSecond()
			burst := int64(max(1, second/20, min(second, 10)))
			r.each = max(1, int64(l.ConnectRate.Per)/l.ConnectRate.N)
			r.slack = (burst - 1) * r.each
		}
		if l.DataRate > 0 {
			// At once goes a quarter of a second, or one read.
			r.dataSlack = max(int64(time.Second/4), DataRateLeast*int64(time.Second)/l.DataRate)
		}
		all.order = append(all.order, r)
		all.by[kind] = append(all.by[kind], r)
	}
	for kind := range all.by {
		slices.SortStableFunc(all.by[kind], func(a, b *quotaRule) int {
			exact := func(r *quotaRule) int { return min(r.wildcards, 1) }
			return cmp.Or(cmp.Compare(exact(a), exact(b)), cmp.Compare(b.literals, a.literals))
		})
	}
	return all
}

// rulesOf are the most specific rule that is enforced, and of those that raise an alarm; nil: none.
type rulesOf struct{ enforce, alarm *quotaRule }

// of finds the rules for a key.
func (q *quotaRules) of(kind int, name string) (is rulesOf) {
	var addr netip.Addr
	if kind == byAddress {
		if n, err := netip.ParsePrefix(name); err == nil {
			addr = n.Addr()
		} else {
			addr, _ = netip.ParseAddr(name)
		}
	}
	for _, r := range q.by[kind] {
		if r.Alarm && is.alarm != nil || !r.Alarm && is.enforce != nil {
			continue
		}
		switch {
		case kind == byAddress && r.network.IsValid():
			if !r.network.Contains(addr) {
				continue
			}
		case !matches(r.Match, name, false):
			continue
		}
		if r.Alarm {
			is.alarm = r
		} else {
			is.enforce = r
		}
	}
	return is
}

// Limits by user, vhost, address and listener: the [[limit]] tables.

package config

import (
	"fmt"
	"strings"

	"github.com/amqproxysvc/amqproxysvc/proxy"
)

// Limit is one [[limit]] table.
type Limit struct {
	By           string // proxy.LimitBy
	Match        string
	MaxClients   int
	MaxUpstreams int
	ConnectRate  proxy.Rate
	DataRate     int64  // bytes a second
	Action       string // "enforce" or "alarm"
}

func defaultLimit() Limit { return Limit{By: string(proxy.ByUser), Match: "*", Action: "enforce"} }

// limits takes the [[limit]] tables.
func (f *fileLoader) limits(value any) {
	tables, _ := f.tables("limit", value)
	for i, table := range tables {
		f.s.limit = defaultLimit()
		f.section("limit", nil, i, table)
		f.s.Limits = append(f.s.Limits, f.s.limit)
	}
	f.s.limit = defaultLimit()
}

// engineLimits are the engine's.
func (s *Settings) engineLimits() (all []proxy.Limit) {
	for _, l := range s.Limits {
		all = append(all, proxy.Limit{By: proxy.LimitBy(l.By), Match: l.Match, MaxClients: l.MaxClients, MaxUpstreams: l.MaxUpstreams,
			ConnectRate: l.ConnectRate, DataRate: l.DataRate, Alarm: l.Action == "alarm"})
	}
	return all
}

// warning is what is allowed but unwise: a limit on a port on which nothing listens.
func (l *Limit) warning(i int, listeners []Listener) string {
	at := strings.LastIndexByte(l.Match, ':')
	if l.By != string(proxy.ByListener) || at < 0 || strings.Contains(l.Match[at:], "*") {
		return ""
	}
	for _, x := range listeners {
		if x.Port == 0 || fmt.Sprintf(":%d", x.Port) == l.Match[at:] {
			return ""
		}
	}
	return fmt.Sprintf("limit %d (listener %s): no listener has this port", i+1, l.Match)
}

// What limits are in force, and who is at them, for those that look.

package proxy

import (
	"cmp"
	"slices"
)

// LimitKeyInfo is one user, vhost, address or listener at one limit.
type LimitKeyInfo struct {
	Key   string
	Limit Limit // the most specific one that matches; there may be one that is enforced and one that is not
	// Clients are those connected now, Waiting those whose login waits for its turn, Upstreams the
	// connections to the broker. Logins and Bytes came in the last whole second, Bytes only where they are limited.
	Clients, Waiting, Upstreams int
	Logins, Bytes               int64
	// What the limit did, since the key is remembered.
	Refused, Delayed, Alarms uint64
}

// ListLimits are all limits, and those at them, who were hit most first: at most so many of total.
func (s *Server) ListLimits(most int, which func(by LimitBy, key string) bool) (limits []Limit, keys []LimitKeyInfo, total int) {
	q := &s.quotas
	rules := q.rules.Load()
	if rules == nil {
		return nil, nil, 0
	}
	for _, r := range rules.order {
		limits = append(limits, r.Limit)
	}
	g := &s.gate
	var ups [2]map[string]int
	g.mu.Lock()
	for kind, of := range [2]map[string]int{byUser: g.users, byVHost: g.vhosts} {
		ups[kind] = make(map[string]int, len(of))
		for name, n := range of {
			ups[kind][name] = n
		}
	}
	g.mu.Unlock()

	now := int64(q.now())
	var paces []*dataPace // beside keys
	q.mu.Lock()
	for kind := range q.of {
		for _, k := range q.of[kind] {
			if !which(LimitBys[kind], k.name) {
				continue
			}
			info := LimitKeyInfo{Key: k.name, Clients: k.clients, Waiting: k.line.LenLocked(), Logins: k.came.rate(now)}
			if kind < len(ups) {
				info.Upstreams = ups[kind][k.name]
			}
			if r := k.rules.enforce; r != nil {
				info.Limit, info.Refused, info.Delayed = r.Limit, k.hits[limitRefused], k.hits[limitDelayed]
				keys, paces = append(keys, info), append(paces, k.data)
			}
			if r := k.rules.alarm; r != nil {
				info.Limit, info.Refused, info.Delayed, info.Alarms = r.Limit, 0, 0, k.hits[limitAlarm]
				keys, paces = append(keys, info), append(paces, k.data)
			}
		}
	}
	q.mu.Unlock()
	for i, d := range paces {
		if d != nil {
			keys[i].Bytes = d.rate(now)
		}
	}
	total = len(keys)
	slices.SortFunc(keys, func(a, b LimitKeyInfo) int {
		return cmp.Or(cmp.Compare(b.Refused+b.Delayed+b.Alarms, a.Refused+a.Delayed+a.Alarms), cmp.Compare(b.Clients, a.Clients),
			cmp.Compare(kindOf(a.Limit.By), kindOf(b.Limit.By)), cmp.Compare(a.Key, b.Key), cmp.Compare(b2i(a.Limit.Alarm), b2i(b.Limit.Alarm)))
	})
	return limits, keys[:min(most, len(keys))], total
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// What limits are in force, and who is at them, for those that look.

package proxy

import (
	"cmp"
	"runtime"
	"slices"
	"strings"
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
	// First who. Logins wait for the lock: in a full table it is let go of between parts, and only those are kept that may be
	// told of. Who comes or goes meanwhile is told of or not.
	const part = 1000
	type one struct {
		k       *quota
		hits    uint64
		clients int
	}
	order := func(a, b one) int {
		if a.hits != b.hits || a.clients != b.clients {
			return cmp.Or(cmp.Compare(b.hits, a.hits), cmp.Compare(b.clients, a.clients))
		}
		return cmp.Or(cmp.Compare(a.k.kind, b.k.kind), strings.Compare(a.k.name, b.k.name))
	}
	var all []one
	var last *one // of the first ones so far: who comes behind it is not told of
	first := func() {
		slices.SortFunc(all, order)
		if all = all[:min(most, len(all))]; most > 0 && len(all) == most {
			worst := all[most-1]
			last = &worst
		}
	}
	q.mu.Lock()
	seen := 0
	for kind := range q.of {
		for _, k := range q.of[kind] {
			if seen++; seen%part == 0 {
				q.mu.Unlock()
				if len(all) >= 2*most {
					first()
				}
				runtime.Gosched()
				q.mu.Lock()
			}
			if k.rules == (rulesOf{}) || !which(LimitBys[kind], k.name) {
				continue
			}
			for _, r := range [2]*quotaRule{k.rules.enforce, k.rules.alarm} {
				if r != nil {
					total++
				}
			}
			this := one{k, k.hits[limitRefused] + k.hits[limitDelayed] + k.hits[limitAlarm], k.clients}
			if last == nil || order(this, *last) < 0 {
				all = append(all, this)
			}
		}
	}
	q.mu.Unlock()
	first()

	ups := [2][]int{make([]int, len(all)), make([]int, len(all))}
	g := &s.gate
	g.mu.Lock()
	for i := range all {
		ups[byUser][i], ups[byVHost][i] = g.users[all[i].k.name], g.vhosts[all[i].k.name]
	}
	g.mu.Unlock()
	now := int64(q.now())
	var paces []*dataPace // beside keys
	q.mu.Lock()
	for i := range all {
		k := all[i].k
		info := LimitKeyInfo{Key: k.name, Clients: k.clients, Waiting: k.line.LenLocked(), Logins: k.came.rate(now)}
		if k.kind < len(ups) {
			info.Upstreams = ups[k.kind][i]
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
	q.mu.Unlock()
	for i, d := range paces {
		if d != nil {
			keys[i].Bytes = d.rate(now)
		}
	}
	return limits, keys[:min(most, len(keys))], total
}

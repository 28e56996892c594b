// The table of quotas: who has how many clients, how many were refused. It is bounded: whom nobody
// uses leaves it, the least recent first. Where no limit is set there is none, and nothing looks.

package proxy

import (
	"container/list"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
	"github.com/amqproxysvc/amqproxysvc/proxy/wait"
)

const (
	// quotaKeysMost is how many users, and so on of each kind, are kept that have no client now.
	quotaKeysMost = 100_000
	// quotaKeepsFor is how long they are.
	quotaKeepsFor = 10 * time.Minute
	// quotaTellEvery is how often the log tells of one limit of one key.
	quotaTellEvery = time.Minute
)

// What is limited.
const (
	limitClients = iota
	limitUpstreams
	limitConnects
	limitData
	limitNames
)

// LimitNames are the settings of what is limited.
var LimitNames = [limitNames]string{"max_clients", "max_upstreams", "connect_rate", "data_rate"}

// What a limit does.
const (
	limitRefused = iota
	limitDelayed
	limitAlarm
	limitActions
)

// LimitActions name what a limit did, or would have done.
var LimitActions = [limitActions]string{"refused", "delayed", "alarm"}

// quotas are the server's.
type quotas struct {
	s     *Server
	rules atomic.Pointer[quotaRules] // nil: there are none
	hits  [quotaKinds][limitNames][limitActions]atomic.Uint64

	mu      lock.Mutex[lock.Leaf]
	of      [quotaKinds]map[string]*quota
	idle    [quotaKinds]list.List // of those that nobody uses, the least recent first
	waiting int                   // logins above a rate
	lines   map[*quota]bool       // at which they wait
	full    [quotaKinds]time.Time // when it was last told
	say     []func()              // lines of the log, which the janitor writes
}

// sayMost bounds the lines that wait for the janitor: what is not said now is a minute later.
const sayMost = 256

// quota is what one user, vhost, address or listener has. It is guarded by quotas.mu.
type quota struct {
	kind  int
	name  string
	from  *quotaRules // what the next is from
	rules rulesOf

	refs    int // clients that are counted in it, or are being
	clients int
	hits    [limitActions]uint64
	told    [limitNames]time.Duration // since the server's start

	turn, alarmTurn int64 // connects: when the one after the last would be due, see paceTake
	came            window
	line            wait.Line[struct{}]
	timer           *time.Timer // serves the line; nil: nobody waits
	data            *dataPace   // nil: it has no data_rate

	at       *list.Element // in the list of the idle; nil: it is in use
	idleFrom time.Duration
}

// clientQuotas are those that a client is counted in. It is guarded by quotas.mu.
type clientQuotas struct {
	of [quotaKinds]*quota
}

func (q *quotas) now() time.Duration { return time.Since(q.s.began) }

// keyLocked is the quota of a name, made if there is none and a rule is for it, with its rules. Nil: none is.
func (q *quotas) keyLocked(rules *quotaRules, kind int, name string) *quota {
	k := q.of[kind][name]
	if k == nil {
		if rules == nil || rules.of(kind, name) == (rulesOf{}) {
			return nil
		}
		if q.idle[kind].Len() >= quotaKeysMost {
			q.turnOutLocked(kind)
		}
		k = &quota{kind: kind, name: name, idleFrom: q.now()}
		if q.of[kind] == nil {
			q.of[kind] = make(map[string]*quota)
		}
		q.of[kind][name] = k
		k.at = q.idle[kind].PushBack(k)
	} else if k.at != nil {
		k.idleFrom = q.now()
		q.idle[kind].MoveToBack(k.at)
	}
	q.refreshLocked(k, rules)
	return k
}

// turnOutLocked forgets the one that nobody has used for longest. What it had been given of a rate it
// may have again: said where that is so.
func (q *quotas) turnOutLocked(kind int) {
	k := q.leastRecentLocked(kind)
	now := q.now()
	q.dropLocked(k)
	if k.turn <= int64(now) || !q.full[kind].IsZero() && time.Since(q.full[kind]) < quotaTellEvery {
		return
	}
	q.full[kind] = time.Now()
	q.sayLocked(func() {
		q.s.log.Warn("more are limited than are remembered: the least recent are forgotten", "by", string(LimitBys[kind]), "remembered", quotaKeysMost)
	})
}

// leastRecentLocked is the one that nobody has used for longest; nil: all are in use.
func (q *quotas) leastRecentLocked(kind int) *quota {
	e := q.idle[kind].Front()
	if e == nil {
		return nil
	}
	return e.Value.(*quota)
}

func (q *quotas) dropLocked(k *quota) {
	q.idle[k.kind].Remove(k.at)
	delete(q.of[k.kind], k.name)
}

// refreshLocked has the key follow the rules of a configuration.
func (q *quotas) refreshLocked(k *quota, rules *quotaRules) {
	if k.from == rules {
		return
	}
	k.from, k.rules = rules, rulesOf{}
	if rules != nil {
		k.rules = rules.of(k.kind, k.name)
	}
	q.refreshDataLocked(k)
}

func (q *quotas) useLocked(k *quota) {
	if k.at != nil {
		q.idle[k.kind].Remove(k.at)
		k.at = nil
	}
	k.refs++
}

func (q *quotas) leaveLocked(k *quota) {
	k.refs--
	if k.refs == 0 {
		k.idleFrom = q.now()
		k.at = q.idle[k.kind].PushBack(k)
	}
}

// hitLocked counts what a limit did to one of the key's, and has it told once a minute.
func (q *quotas) hitLocked(k *quota, what, action int, r *quotaRule) {
	q.hits[k.kind][what][action].Add(1)
	k.hits[action]++
	now := q.now()
	if k.told[what] != 0 && now-k.told[what] < quotaTellEvery || len(q.say) >= sayMost {
		return
	}
	k.told[what] = max(now, 1)
	by, name := string(LimitBys[k.kind]), k.name
	q.sayLocked(func() {
		q.s.log.Warn("limit reached", "limit", LimitNames[what], by, name, "bound", r.bound(what), "action", LimitActions[action])
	})
}

// sayLocked has the janitor write a line: no lock is held for that.
func (q *quotas) sayLocked(line func()) {
	if len(q.say) < sayMost {
		q.say = append(q.say, line)
	}
}

// tell writes the lines that wait. It is the janitor's.
func (q *quotas) tell() {
	q.mu.Lock()
	lines := q.say
	q.say = nil
	q.mu.Unlock()
	for _, line := range lines {
		line()
	}
}

// bound is the limit as one writes it.
func (r *quotaRule) bound(what int) string {
	switch what {
	case limitClients:
		return strconv.Itoa(r.MaxClients)
	case limitUpstreams:
		return strconv.Itoa(r.MaxUpstreams)
	case limitConnects:
		return r.ConnectRate.String()
	}
	return strconv.FormatInt(r.DataRate, 10) + " B/s"
}

// keysOf are the names that a client counts under.
func (c *client) keysOf(vhost string) [quotaKinds]string {
	return [quotaKinds]string{byUser: c.user, byVHost: vhost, byAddress: hostOf(c.address()), byListener: c.lst.ln.Addr().String()}
}

// enter counts a client that has proved who it is and names its vhost, where RabbitMQ looks at its own
// limits, and has it wait where logins are too many. An error: it is refused, or has gone. Anybody may name
// any vhost: in one where its login is not known it counts once the broker has let it in. later: it
// shall come again then, with enterVHost.
func (c *client) enter(vhost string) (e *amqp.Error, later bool) {
	rules := c.s.quotas.rules.Load()
	if rules == nil {
		return nil, false
	}
	later = len(rules.by[byVHost]) > 0 && !c.s.knownIn(c.account, vhost)
	return c.enterBy(vhost, func(kind int) bool { return !later || kind != byVHost }), later
}

// enterVHost is enter for who was not known in the vhost then.
func (c *client) enterVHost(vhost string) *amqp.Error {
	return c.enterBy(vhost, func(kind int) bool { return kind == byVHost })
}

func (c *client) enterBy(vhost string, which func(kind int) bool) *amqp.Error {
	q := &c.s.quotas
	names := c.keysOf(vhost)
	q.mu.Lock()
	rules := q.rules.Load()
	if rules == nil {
		q.mu.Unlock()
		return nil
	}
	mine, next := &clientQuotas{}, &clientQuotas{}
	if old := c.quotas.Load(); old != nil {
		*mine = *old
	}
	for kind := range mine.of {
		if len(rules.by[kind]) == 0 || !which(kind) {
			continue
		}
		k := q.keyLocked(rules, kind, names[kind])
		if k == nil {
			continue
		}
		if r := k.rules.enforce; r != nil && r.MaxClients > 0 && k.clients >= r.MaxClients {
			q.hitLocked(k, limitClients, limitRefused, r)
			q.mu.Unlock()
			return tooManyFor(kind, c.user, vhost, "connection", r.bound(limitClients))
		}
		mine.of[kind], next.of[kind] = k, k
	}
	q.countLocked(c, mine)
	q.mu.Unlock()
	return c.takeTurns(next, vhost)
}

// countLocked counts a client in those quotas that it is not yet counted in.
func (q *quotas) countLocked(c *client, mine *clientQuotas) {
	old := c.quotas.Load()
	for kind, k := range mine.of {
		if k == nil || old != nil && old.of[kind] == k {
			continue
		}
		q.useLocked(k)
		k.clients++
		if r := k.rules.alarm; r != nil && r.MaxClients > 0 && k.clients > r.MaxClients {
			q.hitLocked(k, limitClients, limitAlarm, r)
		}
	}
	c.quotas.Store(mine)
	c.followLocked(mine)
}

// tooManyFor is what RabbitMQ says of its limits for users and vhosts; of the others in that form.
func tooManyFor(kind int, user, vhost, what, bound string) *amqp.Error {
	if kind == byVHost {
		return amqp.Errorf(amqp.NotAllowed, amqp.ConnectionOpen, "access to vhost '%s' refused for user '%s': %s limit (%s) is reached", vhost, user, what, bound)
	}
	return amqp.Errorf(amqp.NotAllowed, amqp.ConnectionOpen, "connection refused for user '%s': %s %s limit (%s) is reached", user, LimitBys[kind], what, bound)
}

// leaveQuotas ends the client's count.
func (c *client) leaveQuotas() {
	q := &c.s.quotas
	c.quotasLeft.Store(true) // before the look: a reload that counts now must see it
	if q.rules.Load() == nil && c.quotas.Load() == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	mine := c.quotas.Swap(nil)
	if mine == nil {
		return
	}
	for _, k := range mine.of {
		if k != nil {
			k.clients--
			q.leaveLocked(k)
		}
	}
}

// set takes new limits. Who is connected is counted in those that are new, and nobody is cut.
func (q *quotas) set(limits []Limit) {
	rules := newQuotaRules(limits)
	if rules == nil && q.rules.Load() == nil {
		return
	}
	q.mu.Lock()
	q.rules.Store(rules)
	for kind := range q.of {
		for _, k := range q.of[kind] {
			q.refreshLocked(k, rules)
		}
	}
	for k := range q.lines {
		q.serveLineLocked(k)
	}
	q.mu.Unlock()
	for _, c := range q.s.clients.appendTo(nil, func(c *client) bool { return c.named.Load() }) {
		c.recount()
	}
}

// recount counts a client that is logged in where the limits that are in force now ask for it.
func (c *client) recount() {
	q := &c.s.quotas
	names := c.keysOf(c.pool.id.vhost)
	q.mu.Lock()
	defer q.mu.Unlock()
	rules := q.rules.Load()
	if c.quotasLeft.Load() {
		return
	}
	mine := &clientQuotas{}
	if old := c.quotas.Load(); old != nil {
		*mine = *old
	}
	if rules != nil {
		for kind := range mine.of {
			if mine.of[kind] == nil && len(rules.by[kind]) > 0 {
				mine.of[kind] = q.keyLocked(rules, kind, names[kind])
			}
		}
	}
	if *mine == (clientQuotas{}) {
		return
	}
	q.countLocked(c, mine)
}

// enteredUnder is for a client that is named now, and has entered under these rules: a reload that came
// amid its login may not have found it.
func (c *client) enteredUnder(rules *quotaRules) {
	if c.s.quotas.rules.Load() != rules {
		c.recount()
	}
}

// tend forgets whom nobody has used for long. It is the janitor's.
func (q *quotas) tend() {
	const atOnce = 5000
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.now()
	for kind := range q.idle {
		for range atOnce {
			k := q.leastRecentLocked(kind)
			if k == nil || now-k.idleFrom < quotaKeepsFor {
				break
			}
			q.dropLocked(k)
		}
	}
}

// LimitStats is what limits of one kind on one thing did.
type LimitStats struct {
	By, Limit string
	Done      [limitActions]uint64 // by LimitActions
}

// limitStats are those of limits that are set, or did something; and how many are remembered of each kind, in
// the order of LimitBys, -1: there is no limit by that.
func (q *quotas) stats() (all []LimitStats, keys [quotaKinds]int) {
	rules := q.rules.Load()
	q.mu.Lock()
	for kind := range keys {
		keys[kind] = len(q.of[kind])
		if (rules == nil || len(rules.by[kind]) == 0) && keys[kind] == 0 {
			keys[kind] = -1
		}
	}
	q.mu.Unlock()
	for kind := range q.hits {
		for what := range q.hits[kind] {
			st := LimitStats{By: string(LimitBys[kind]), Limit: LimitNames[what]}
			used := false
			for i := range st.Done {
				st.Done[i] = q.hits[kind][what][i].Load()
				used = used || st.Done[i] > 0
			}
			if rules != nil {
				for _, r := range rules.by[kind] {
					used = used || r.sets(what)
				}
			}
			if used {
				all = append(all, st)
			}
		}
	}
	return all, keys
}

// sets reports whether the limit bounds that.
func (r *quotaRule) sets(what int) bool {
	switch what {
	case limitClients:
		return r.MaxClients > 0
	case limitUpstreams:
		return r.MaxUpstreams > 0
	case limitConnects:
		return r.ConnectRate.N > 0
	}
	return r.DataRate > 0
}

// upstreamsFull is the limit that lets a pool have no connection to the broker more; nil: none.
type upstreamsFull struct {
	kind int
	name string
	rule *quotaRule
}

func (f *upstreamsFull) setting() string {
	return fmt.Sprintf("limit.max_upstreams of %s '%s'", LimitBys[f.kind], f.name)
}

// counts reports whether a pool's connections count at it.
func (f *upstreamsFull) counts(p *pool) bool {
	return f.kind == byUser && p.id.user == f.name || f.kind == byVHost && p.id.vhost == f.name
}

// upstreams looks at the limits for a pool whose user and vhost have so many connections to the broker. The
// gate's lock is held.
func (q *quotas) upstreams(id identity, used [2]int) *upstreamsFull {
	rules := q.rules.Load()
	if rules == nil {
		return nil
	}
	for kind, name := range [2]string{byUser: id.user, byVHost: id.vhost} {
		if r := rules.of(kind, name).enforce; r != nil && r.MaxUpstreams > 0 && used[kind] >= r.MaxUpstreams {
			return &upstreamsFull{kind, name, r}
		}
	}
	return nil
}

// upstreamsAlarm counts a connection to the broker that limits would not have let be.
func (q *quotas) upstreamsAlarm(id identity, used [2]int) {
	rules := q.rules.Load()
	if rules == nil {
		return
	}
	for kind, name := range [2]string{byUser: id.user, byVHost: id.vhost} {
		if r := rules.of(kind, name).alarm; r != nil && r.MaxUpstreams > 0 && used[kind] > r.MaxUpstreams {
			q.hit(kind, name, limitUpstreams, limitAlarm, r)
		}
	}
}

func (q *quotas) hit(kind int, name string, what, action int, r *quotaRule) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if k := q.keyLocked(q.rules.Load(), kind, name); k != nil { // else it went with a reload, at the same moment
		q.hitLocked(k, what, action, r)
	}
}

// Applications: clients that are alike, and what they do, counted for the advice that is given on it
// (package advice). A client's reader counts what it sees in plain numbers and adds them up here ten times a
// second at most: a message costs an addition.

package proxy

import (
	"cmp"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/amqproxysvc/amqproxysvc/proxy/advice"
	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
)

const (
	// mostApps bounds the applications that are told apart.
	mostApps = 1000
	// adviseEvery is how often they are judged.
	adviseEvery = time.Minute
	// adviceTold is how long the log is silent about what it has told of.
	adviceTold = 24 * time.Hour
)

// app is one application.
type app struct {
	id      advice.App
	clients atomic.Int32

	logins, reused, sessions, throttled, opened, published, big, missing, declared, got, empty atomic.Uint64
	queue, exchange                                                                            atomic.Pointer[string]

	// The janitor's.
	history advice.History
	told    map[string]time.Time // by rule
}

// deeds are what a client's reader has counted and not added up yet.
type deeds struct {
	opened, published, big, declared, got uint64
	queue                                 string // declared last
}

// apps are those that are known, and what is said of them.
type apps struct {
	mu   lock.Mutex[lock.Leaf]
	all  map[advice.App]*app
	said atomic.Pointer[[]advice.Advice]
}

// appOf is the application of a client whose login has come so far as to tell; so many more belong to it now.
func (s *Server) appOf(c *client, vhost string, more int32) (a *app) {
	id := advice.App{User: c.user, VHost: vhost, Name: appName(c.props), Host: c.host()}
	s.apps.mu.Lock()
	defer s.apps.mu.Unlock()
	defer func() { a.clients.Add(more) }() // in one step with the look for it: the janitor forgets those without clients
	a = s.apps.all[id]
	if a != nil {
		return a
	}
	if len(s.apps.all) >= mostApps { // the janitor makes room
		id = advice.App{User: "_other", VHost: "_other", Name: "_other"}
		if a = s.apps.all[id]; a != nil {
			return a
		}
	}
	a = &app{id: id}
	a.history.Begin(s.clock())
	if s.apps.all == nil {
		s.apps.all = make(map[advice.App]*app)
	}
	s.apps.all[id] = a
	return a
}

// appName is what the clients of one application are called alike: the connection_name without the
// words that have digits, or else the library.
func appName(props []byte) string {
	name := amqp.LookupString(props, "connection_name")
	if name == "" {
		name = amqp.LookupString(props, "product")
	}
	name = strings.ToValidUTF8(name[:min(len(name), 100)], "\ufffd")
	if !strings.ContainsAny(name, "0123456789") {
		return name
	}
	var b strings.Builder
	word, numbered := 0, false // where the word begins, and whether it has a digit
	for i := 0; i <= len(name); i++ {
		if i < len(name) && inWord(name[i]) {
			numbered = numbered || name[i] <= '9'
			continue
		}
		if !numbered {
			b.WriteString(name[word:i])
		}
		if i < len(name) {
			b.WriteByte(name[i])
		}
		word, numbered = i+1, false
	}
	return b.String()
}

// inWord reports whether an octet is a letter's, of whatever script, or a digit.
func inWord(c byte) bool {
	return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z' || c >= utf8.RuneSelf
}

// joins counts the client in, at its login.
func (a *app) joins(c *client) {
	c.app = a
	a.logins.Add(1)
	if c.reused {
		a.reused.Add(1)
	}
	if c.isSession {
		a.sessions.Add(1)
	}
	c.busyAt.Store(c.env.now())
}

// tellApp adds up what the reader has counted.
func (c *client) tellApp() {
	if c.app == nil || c.desk == nil || c.did == (deeds{}) {
		return
	}
	d := &c.did
	a := c.app
	for _, x := range []struct {
		to *atomic.Uint64
		n  uint64
	}{{&a.opened, d.opened}, {&a.published, d.published}, {&a.big, d.big}, {&a.declared, d.declared}, {&a.got, d.got}} {
		if x.n > 0 {
			x.to.Add(x.n)
		}
	}
	if d.queue != "" {
		queue := d.queue // of its own: the client must not be kept by it
		a.queue.Store(&queue)
	}
	*d = deeds{}
	c.busyAt.Store(c.env.now())
}

// missed counts a publish that the broker refused for its exchange.
func (c *client) missed(e *amqp.Error) {
	if e.Code != amqp.NotFound || e.Method != amqp.BasicPublish || c.app == nil {
		return
	}
	c.app.missing.Add(1)
	text := e.Text[:min(len(e.Text), 200)]
	c.app.exchange.Store(&text)
}

// throttled counts a login that the broker refused since there were too many.
func (c *client) throttled(e *amqp.Error, vhost string) {
	if c.user != "" && verdictOf(e).ruling == throttled {
		c.s.appOf(c, vhost, 0).throttled.Add(1)
	}
}

func (a *app) deeds() advice.Deeds {
	return advice.Deeds{
		Logins: a.logins.Load(), Reused: a.reused.Load(), Sessions: a.sessions.Load(), Throttled: a.throttled.Load(), Opened: a.opened.Load(),
		Published: a.published.Load(), Big: a.big.Load(), Missing: a.missing.Load(), Declared: a.declared.Load(), Got: a.got.Load(), Empty: a.empty.Load(),
	}
}

// Advice is what is to be said of the applications now, the gravest first.
func (s *Server) Advice() []advice.Advice {
	if all := s.apps.said.Load(); all != nil {
		return slices.Clone(*all)
	}
	return nil
}

// advise judges all applications. It is the janitor's, once a minute.
func (s *Server) advise() {
	cfg := s.cfg()
	if !cfg.Advice {
		s.apps.said.Store(nil)
		return
	}
	sights := s.sights()
	s.apps.mu.Lock()
	all := make([]*app, 0, len(s.apps.all))
	for _, a := range s.apps.all {
		all = append(all, a)
	}
	s.apps.mu.Unlock()
	now := s.clock()
	var said []advice.Advice
	var gone []*app
	for _, a := range all {
		var sight advice.Sight
		if x := sights[a]; x != nil {
			sight = *x
		}
		sight.Rotating = s.rotation.rotates(a.id.User)
		for to, from := range map[*string]*atomic.Pointer[string]{&sight.Queue: &a.queue, &sight.Exchange: &a.exchange} {
			if p := from.Load(); p != nil {
				*to = *p
			}
		}
		for _, x := range a.history.Look(a.id, now, a.deeds(), sight) {
			if slices.Contains(cfg.AdviceMute, x.Rule) {
				continue
			}
			said = append(said, x)
			s.logAdvice(a, x, now)
		}
		if a.clients.Load() == 0 && a.history.Quiet() {
			gone = append(gone, a)
		}
	}
	s.apps.mu.Lock()
	for _, a := range gone {
		if a.clients.Load() == 0 {
			delete(s.apps.all, a.id)
		}
	}
	s.apps.mu.Unlock()
	slices.SortFunc(said, func(a, b advice.Advice) int {
		return cmp.Or(cmp.Compare(gravity(a.Level), gravity(b.Level)), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.User, b.User),
			cmp.Compare(a.VHost, b.VHost), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Host, b.Host))
	})
	s.apps.said.Store(&said)
}

func gravity(level string) int {
	return slices.Index([]string{advice.Error, advice.Warn, advice.Info}, level)
}

// logAdvice tells once a day.
func (s *Server) logAdvice(a *app, x advice.Advice, now time.Time) {
	if last, is := a.told[x.Rule]; is && now.Sub(last) < adviceTold {
		return
	}
	if a.told == nil {
		a.told = make(map[string]time.Time)
	}
	a.told[x.Rule] = now
	level := slog.LevelInfo
	if x.Level == advice.Error {
		level = slog.LevelWarn
	}
	s.log.Log(bg, level, "advice", "rule", x.Rule, "user", x.User, "vhost", x.VHost, "name", x.Name, "address", x.Host, "evidence", x.Evidence, "remedy", x.Remedy)
}

// sights is how the clients of each application are.
func (s *Server) sights() map[*app]*advice.Sight {
	all := map[*app]*advice.Sight{}
	now := s.now()
	for _, c := range s.clients.appendTo(nil, func(c *client) bool { return c.named.Load() }) {
		x := all[c.app]
		if x == nil {
			x = &advice.Sight{}
			all[c.app] = x
		}
		x.Clients++
		x.MostChannels = max(x.MostChannels, int(c.chansN.Load()))
		stays := now-c.started >= int64(advice.LongIdle)
		if stays && now-c.busyAt.Load() >= int64(advice.LongIdle) && !c.consumes.Load() {
			x.Idle++
		}
		if c.unbounded.Load() {
			x.Unbounded++
		}
		switch {
		case c.heartbeat == 0 && stays:
			x.Silent++
		case c.heartbeat > 0 && c.heartbeat < 5*time.Second:
			x.Hasty++
		}
		if amqp.LookupString(c.props, "connection_name") == "" {
			x.Unnamed++
		}
	}
	return all
}

// Routes: at which broker a vhost is, and what it is called there. Clients, limits, lists and metrics
// know it by its name here; the broker's words are said with that name too.

package proxy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
)

// Broker is one more broker than Config.Upstream.
type Broker struct {
	Name string
	// Upstream is where it is, Others where else: nodes of one cluster.
	Upstream Upstream
	Others   []Upstream
	// Balance is which of these is asked, as Config.Balance.
	Balance string
}

// Route says where the vhosts of a pattern are. Of several the first that matches counts; what none
// matches is at Config.Upstream.
type Route struct {
	// VHost is a pattern: * stands for any characters, ? for one.
	VHost string
	// ToVHost is the vhost's name at the broker; "": the same.
	ToVHost string
	// Broker is the name of one of Config.Brokers; "": Config.Upstream.
	Broker string
	// Durable and QueueType are what queues are declared as that are named, and neither exclusive nor auto-delete; false and "":
	// as their clients do.
	Durable   bool
	QueueType string
}

// way is a broker with what is known of it alone.
type way struct {
	*broker.Broker
	name       string // "": Config.Upstream
	transients transients
}

// ways are the brokers that there are, and which vhosts are where. It is never changed.
type ways struct {
	all []*way // that of Config.Upstream is the first
	// door greets, and judges user and secret first, which a client sends before its vhost: where vhosts are
	// that no other route names.
	door *way
	// used are the door and the others that vhosts are at.
	used    []*way
	routes  []route
	rewrite bool // a route rewrites declarations
}

type route struct {
	Route
	way *way
}

// destination is where a vhost is.
type destination struct {
	way   *way
	vhost string // its name there
}

// of is where a vhost is.
func (w *ways) of(vhost string) destination {
	r := w.route(vhost)
	if r == nil {
		return destination{w.all[0], vhost}
	}
	if r.ToVHost != "" {
		vhost = r.ToVHost
	}
	return destination{r.way, vhost}
}

// route is that of a vhost, or nil.
func (w *ways) route(vhost string) *route {
	for i := range w.routes {
		if r := &w.routes[i]; matches(r.VHost, vhost, true) {
			return r
		}
	}
	return nil
}

// named is the broker of that name, or nil.
func (w *ways) named(name string) *way {
	if w == nil {
		return nil
	}
	for _, x := range w.all {
		if x.name == name {
			return x
		}
	}
	return nil
}

// matches reports whether a text is one of the pattern's: * stands for any characters and, where one is set, ? for one.
func matches(pattern, text string, one bool) bool {
	star, from := -1, 0 // the last *, and what it stands for begins
	i, j := 0, 0
	for j < len(text) {
		_, size := utf8.DecodeRuneInString(text[j:])
		switch {
		case i < len(pattern) && pattern[i] == '*':
			star, from = i, j
			i++
		case one && i < len(pattern) && pattern[i] == '?':
			i++
			j += size
		case i < len(pattern) && pattern[i] == text[j]:
			i++
			j++
		case star >= 0: // one more is the star's
			_, size := utf8.DecodeRuneInString(text[from:])
			from += size
			i, j = star+1, from
		default:
			return false
		}
	}
	return strings.Trim(pattern[i:], "*") == ""
}

// setWays takes the brokers and routes of a configuration for what comes after. moved: connections may lead
// to where nothing of theirs is any more. gone: who judges user and secret no more, or is another broker now.
func (s *Server) setWays(cfg *Config) (moved bool, gone []*way) {
	old, next := s.ways.Load(), &ways{}
	left := make(map[*way]broker.Left)
	add := func(name string, c broker.Config) {
		w := old.named(name)
		if w == nil {
			w = &way{name: name, Broker: broker.New(s.ctx, s.log, s.spawn, c)}
		} else {
			left[w] = w.Set(c)
		}
		moved = moved || left[w] != broker.LeftNone
		next.all = append(next.all, w)
	}
	add("", cfg.brokerConfig(cfg.upstreams(), cfg.Balance))
	for _, b := range cfg.Brokers {
		add(b.Name, cfg.brokerConfig(append([]Upstream{b.Upstream}, b.Others...), b.Balance))
	}
	next.door = next.all[0]
	for _, r := range cfg.Routes {
		next.routes = append(next.routes, route{r, next.named(r.Broker)})
		next.rewrite = next.rewrite || r.Durable || r.QueueType != ""
	}
	for i := len(next.routes) - 1; i >= 0; i-- { // the first that is for all
		if r := &next.routes[i]; strings.Trim(r.VHost, "*") == "" {
			next.door = r.way
		}
	}
	next.used = next.reached()
	s.ways.Store(next)
	if old == nil {
		return false, nil
	}
	for _, w := range old.all {
		if next.named(w.name) == nil {
			w.Close()
		}
	}
	for _, w := range old.used {
		if !slices.Contains(next.used, w) || left[w] == broker.LeftAll || w == old.door && w != next.door {
			gone = append(gone, w)
		}
	}
	return moved || len(gone) > 0 || len(old.routes)+len(next.routes) > 0, gone
}

// reached are the brokers that vhosts are at, the door first: all but those that no route leads to, or none before one
// that is for all.
func (w *ways) reached() []*way {
	used := []*way{w.door}
	add := func(x *way) {
		if !slices.Contains(used, x) {
			used = append(used, x)
		}
	}
	for _, r := range w.routes {
		add(r.way)
		if strings.Trim(r.VHost, "*") == "" {
			return used
		}
	}
	add(w.all[0])
	return used
}

// door is the broker that judges user and secret.
func (s *Server) door() *way { return s.ways.Load().door }

// to is where the pool's vhost is.
func (p *pool) to() destination { return p.s.ways.Load().of(p.id.vhost) }

// judges are the brokers that are asked about user and secret: the one that has accepted them, else the door, and where
// that refuses the others that vhosts are at. Each has users of its own, and which vhost is meant is not said yet; that
// vhost's broker judges again.
func (s *Server) judges(a *account) []*way {
	all := s.ways.Load().used
	i := slices.Index(all, a.by.Load())
	if i <= 0 {
		return all
	}
	return slices.Concat(all[i:i+1], all[:i], all[i+1:])
}

// askJudges asks one after the other until one accepts. Where none does, what the first says counts, unless the login was
// known before and one of the others could not be asked.
func (s *Server) askJudges(a *account, ask func(w *way, first bool) (*upstream, *amqp.Error), known bool) (u *upstream, by *way, e *amqp.Error) {
	for i, w := range s.judges(a) {
		u, err := ask(w, i == 0)
		if err == nil {
			return u, w, nil
		}
		refused := verdictOf(err).ofSecret()
		if i == 0 || known && !refused {
			e = err
		}
		if i == 0 && !refused {
			break // it would let them in, or is away
		}
	}
	return nil, nil, e
}

// atJudge reports whether the pool's vhost is at the broker that has accepted its user and secret.
func (p *pool) atJudge() bool { return p.to().way == p.s.judges(p.account)[0] }

// in has what the broker says of the vhost said with the name that clients have for it.
func (d destination) in(vhost string, e *amqp.Error) *amqp.Error {
	if e == nil || d.vhost == vhost {
		return e
	}
	text := e.Text
	// RabbitMQ: vhost X not found; anything else is "in vhost 'X'", "access to vhost 'X'". LavinMQ: 'Y' doesn't have access to 'X'.
	for _, around := range [][2]string{{"vhost '", "'"}, {"vhost ", " not found"}, {"access to '", "'"}} {
		text = strings.ReplaceAll(text, around[0]+d.vhost+around[1], around[0]+vhost+around[1])
	}
	if text == e.Text {
		return e
	}
	x := *e
	x.Text = text
	return &x
}

// saidOfVHost has a refused login at another broker than the one that judged it said of the vhost: user and secret were
// found right before, and a client that names its vhost understands nothing else.
func (s *Server) saidOfVHost(p *pool, d destination, e *amqp.Error) *amqp.Error {
	e = d.in(p.id.vhost, e)
	if e == nil || d.way == s.judges(p.account)[0] || !verdictOf(e).ofSecret() {
		return e
	}
	s.log.Info("login refused by the broker of a route", "user", p.id.user, "vhost", p.id.vhost, "broker", d.way.name,
		"code", e.Code, "reason", e.Text)
	if p.account.login.stored() != nil {
		return e // which no client is to blame for
	}
	return amqp.Errorf(amqp.NotAllowed, amqp.ConnectionOpen, "access to vhost '%s' refused for user '%s'", p.id.vhost, p.id.user)
}

// brokerInfo is what the broker of the client's vhost tells of itself, before that is known the one that
// let the client in.
func (c *client) brokerInfo() *broker.Info {
	if c.pool != nil {
		if info := c.pool.info.Load(); info != nil {
			return info
		}
	}
	return c.account.info.Load()
}

// allUpstreams are the addresses of all brokers.
func (c *Config) allUpstreams() []Upstream {
	all := c.upstreams()
	for _, b := range c.Brokers {
		all = append(append(all, b.Upstream), b.Others...)
	}
	return all
}

// validateRoutes looks at brokers and routes.
func (c *Config) validateRoutes() (errs []error) {
	names := map[string]bool{"": true}
	for _, b := range c.Brokers {
		switch {
		case b.Name == "":
			errs = append(errs, errors.New("a broker has no name, by which routes mean it"))
		case names[b.Name]:
			errs = append(errs, fmt.Errorf("the broker %q is there twice, allowed is each name once", b.Name))
		}
		names[b.Name] = true
		switch b.Balance {
		case "", BalanceSpread, BalanceOrder:
		default:
			errs = append(errs, fmt.Errorf("balance of the broker %q is %q, allowed is \"spread\" or \"order\"", b.Name, b.Balance))
		}
	}
	for _, r := range c.Routes {
		switch {
		case r.VHost == "":
			errs = append(errs, errors.New("a route has no vhost, allowed is a name or a pattern, * for all"))
		case len(r.ToVHost) > 255:
			errs = append(errs, fmt.Errorf("the route of vhost %q leads to one with a name of %d octets, allowed are 255", r.VHost, len(r.ToVHost)))
		}
		switch r.QueueType {
		case "", "classic", "quorum":
		default:
			errs = append(errs, fmt.Errorf("queue_type of the route of vhost %q is %q, allowed is \"classic\" or \"quorum\"", r.VHost, r.QueueType))
		}
		if !names[r.Broker] {
			errs = append(errs, fmt.Errorf("the route of vhost %q leads to the broker %q, which there is none of", r.VHost, r.Broker))
		}
	}
	return errs
}

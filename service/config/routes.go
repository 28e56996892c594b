// Other brokers than upstream.url, and which vhosts are there: the [[broker]] and [[route]] tables.

package config

import (
	"fmt"
	"strings"

	"github.com/amqproxysvc/amqproxysvc/proxy"
)

// NamedBroker is one [[broker]] table.
type NamedBroker struct {
	Name       string
	First      Broker
	Others     []Broker
	Balance    string
	ServerName string // "": the host of the URL
}

// Route is one [[route]] table.
type Route struct {
	VHost   string
	ToVHost string // "": the same
	Broker  string // "": that of upstream.url

	Durable   bool
	QueueType string // asDeclared, or another
}

// Brokers are all that broker.url names.
func (b *NamedBroker) Brokers() []Broker { return append([]Broker{b.First}, b.Others...) }

// asDeclared is the type of queue that clients say.
const asDeclared = "as_declared"

func defaultRoute() Route { return Route{QueueType: asDeclared} }

func defaultBroker() NamedBroker { return NamedBroker{Balance: proxy.BalanceSpread} }

// optional are the sections that are arrays of tables of which there is none by default: how many there are
// of one, and how the i-th becomes what Setting.at means.
var optional = map[string]struct {
	n    func(*Settings) int
	pick func(s *Settings, i int)
}{
	"user":   {func(s *Settings) int { return len(s.Users) }, func(s *Settings, i int) { s.user = s.Users[i] }},
	"limit":  {func(s *Settings) int { return len(s.Limits) }, func(s *Settings, i int) { s.limit = s.Limits[i] }},
	"broker": {func(s *Settings) int { return len(s.Named) }, func(s *Settings, i int) { s.broker = s.Named[i] }},
	"route":  {func(s *Settings) int { return len(s.Routes) }, func(s *Settings, i int) { s.route = s.Routes[i] }},
}

// brokers takes the [[broker]] tables.
func (f *fileLoader) brokers(value any) {
	tables, _ := f.tables("broker", value)
	for i, table := range tables {
		f.s.broker = defaultBroker()
		f.section("broker", nil, i, table)
		f.s.Named = append(f.s.Named, f.s.broker)
	}
	f.s.broker = defaultBroker()
}

// routes takes the [[route]] tables.
func (f *fileLoader) routes(value any) {
	tables, _ := f.tables("route", value)
	for i, table := range tables {
		f.s.route = defaultRoute()
		f.section("route", nil, i, table)
		f.s.Routes = append(f.s.Routes, f.s.route)
	}
	f.s.route = defaultRoute()
}

// checkRoutes looks at what goes together.
func (s *Settings) checkRoutes() (problems []string) {
	names, at := map[string]int{}, map[string]string{}
	for _, b := range s.Brokers() {
		at[b.Address()] = "upstream.url"
	}
	for i := range s.Named {
		b := &s.Named[i]
		bad := func(format string, args ...any) {
			problems = append(problems, fmt.Sprintf("broker %d%s: ", i+1, inBrackets(b.Name))+fmt.Sprintf(format, args...))
		}
		switch j, twice := names[b.Name]; {
		case b.Name == "":
			bad("broker.name is not set, it is what route.broker means it by")
		case twice:
			bad("broker.name is that of broker %d too, allowed is each name once", j+1)
		default:
			names[b.Name] = i
		}
		if b.First.Host == "" {
			bad("broker.url is not set, %s", allowedURL)
			continue
		}
		for _, one := range b.Brokers() {
			if other, twice := at[one.Address()]; twice {
				bad("broker.url is %s, which is that of %s too, allowed is each broker once", one, other)
			}
			at[one.Address()] = "broker " + b.Name
		}
	}
	for i := range s.Routes {
		r := &s.Routes[i]
		bad := func(format string, args ...any) {
			problems = append(problems, fmt.Sprintf("route %d%s: ", i+1, inBrackets(r.VHost))+fmt.Sprintf(format, args...))
		}
		if r.VHost == "" {
			bad("route.vhost is not set, allowed is a vhost's name, or a pattern with * in it")
		}
		if len(r.ToVHost) > 255 {
			bad("route.to_vhost has %d octets, allowed are 255", len(r.ToVHost))
		}
		if _, known := names[r.Broker]; r.Broker != "" && !known {
			bad("route.broker is %q, allowed is the name of a [[broker]]%s", r.Broker, s.brokerNames())
		}
	}
	return problems
}

func (s *Settings) brokerNames() string {
	var names []string
	for _, b := range s.Named {
		names = append(names, b.Name)
	}
	if len(names) == 0 {
		return ", there is none"
	}
	return ": " + strings.Join(names, ", ")
}

func inBrackets(name string) string {
	if name == "" {
		return ""
	}
	return " (" + name + ")"
}

// routeWarnings are what is allowed but does nothing.
func (s *Settings) routeWarnings() (warnings []string) {
	used := map[string]bool{}
	all := 0 // the first route that is for all vhosts, counted from 1
	for i, r := range s.Routes {
		if all > 0 {
			warnings = append(warnings, fmt.Sprintf("route %d%s: never counts, since route %d before it is for all vhosts", i+1, inBrackets(r.VHost), all))
			continue
		}
		if strings.Trim(r.VHost, "*") == "" {
			all = i + 1
		}
		used[r.Broker] = true
	}
	for i, b := range s.Named {
		if !used[b.Name] {
			warnings = append(warnings, fmt.Sprintf("broker %d%s: no route leads there", i+1, inBrackets(b.Name)))
		}
	}
	return warnings
}

// engineRoutes makes brokers and routes for the engine.
func (s *Settings) engineRoutes() (all []proxy.Broker, routes []proxy.Route, problems []string) {
	for i := range s.Named {
		b := &s.Named[i]
		one := proxy.Broker{Name: b.Name, Balance: b.Balance}
		for j, at := range b.Brokers() {
			u := proxy.Upstream{Host: at.Host, Port: at.Port}
			if at.TLS {
				t := s.TLS
				t.ServerName = b.ServerName
				var err error
				if u.TLS, err = t.client(at.Host); err != nil && !s.Broker.TLS && len(problems) == 0 { // else said already
					problems = append(problems, err.Error())
				}
			}
			if j == 0 {
				one.Upstream = u
			} else {
				one.Others = append(one.Others, u)
			}
		}
		all = append(all, one)
	}
	for _, r := range s.Routes {
		one := proxy.Route{VHost: r.VHost, ToVHost: r.ToVHost, Broker: r.Broker, Durable: r.Durable}
		if r.QueueType != asDeclared {
			one.QueueType = r.QueueType
		}
		routes = append(routes, one)
	}
	return all, routes, problems
}

// usesTLS reports whether any broker is reached by TLS.
func (s *Settings) usesTLS() bool {
	for i := range s.Named {
		if s.Named[i].First.TLS {
			return true
		}
	}
	return s.Broker.TLS
}

// allBrokers are those of upstream.url, then those of each [[broker]].
func (s *Settings) allBrokers() (all []Broker) {
	all = s.Brokers()
	for i := range s.Named {
		all = append(all, s.Named[i].Brokers()...)
	}
	return all
}

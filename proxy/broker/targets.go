// The targets: which of them are in rotation, the order in which they are asked, and what has
// become of each.

package broker

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// target is an address as it is configured now, with what is known of it.
type target struct {
	Target
	at []netip.Addr // the addresses behind its name, where these are known
	*health
}

// health is what is known of a target over time.
type health struct {
	breaker
	links    atomic.Int64 // connections to it, from the dial on
	connects atomic.Uint64
	failures atomic.Uint64
	outs     [reasons]atomic.Uint64
	cluster  atomic.Pointer[string] // what it says its cluster is
}

// Reason is why a target was taken out of rotation.
type Reason uint8

const (
	OutConnect Reason = iota // it could not be reached
	OutDrain                 // the broker said that it goes away
	reasons
)

// Reasons name the entries of TargetState.Outs.
var Reasons = [reasons]string{"connect", "drain"}

// Left is how many of the targets before are there no more.
type Left uint8

const (
	LeftNone Left = iota
	LeftSome
	LeftAll
)

// several reports whether there is a choice. With one target all is as without a rotation.
func (s *settings) several() bool { return len(s.targets) > 1 }

type besideKey struct{}

// Beside has a dial prefer the targets with the fewest of the caller's own connections, by address.
func Beside(ctx context.Context, at map[string]int) context.Context {
	return context.WithValue(ctx, besideKey{}, at)
}

// inRotation are the targets that are asked, the first first.
func (s *settings) inRotation(ctx context.Context) []*target {
	var in []*target
	for _, t := range s.targets {
		if t.up() {
			in = append(in, t)
		}
	}
	if s.InOrder || len(in) < 2 {
		return in
	}
	// Equals by chance: proxies with one connection each must not all come to the first target.
	rand.Shuffle(len(in), func(i, j int) { in[i], in[j] = in[j], in[i] })
	links := make(map[*target]int64, len(in))
	for _, t := range in {
		links[t] = t.links.Load()
	}
	own, _ := ctx.Value(besideKey{}).(map[string]int)
	slices.SortStableFunc(in, func(a, b *target) int {
		return cmp.Or(cmp.Compare(own[a.Address()], own[b.Address()]), cmp.Compare(links[a], links[b]))
	})
	return in
}

// leads reports whether one of the targets is where the link leads.
func (s *settings) leads(k *Link) bool {
	return slices.ContainsFunc(s.targets, func(t *target) bool {
		if t.Host != k.Target.Host || t.Port != k.Target.Port || (t.TLS == nil) != (k.Target.TLS == nil) {
			return false
		}
		ip := k.Target.IP
		if !ip.IsValid() {
			ip = k.ip
		}
		switch {
		case t.IP.IsValid():
			return ip == t.IP
		case len(t.at) > 0 && ip.IsValid():
			return slices.Contains(t.at, ip)
		}
		return true
	})
}

// expand makes targets of the configured ones: of a name with several addresses one for each.
func (c *Config) expand(known map[string]*addresses) (all []*target) {
	for _, t := range c.Targets {
		own := []*target{{Target: t}}
		if a := known[t.Host]; a != nil && c.looksUp(t) {
			own[0].at = a.all
			if each := a.each(); len(each) > 1 {
				own = own[:0]
				for _, ip := range each {
					x := t
					x.IP = ip
					own = append(own, &target{Target: x})
				}
			}
		}
		for _, x := range own {
			if !slices.ContainsFunc(all, func(y *target) bool { return y.SameAs(x.Target) }) {
				all = append(all, x)
			}
		}
	}
	return all
}

// putLocked takes a configuration, with the addresses that are known, for what comes after.
func (b *Broker) putLocked(cfg Config) Left {
	next := &settings{Config: cfg, targets: cfg.expand(b.known)}
	stays, were := 0, 0
	old := b.conf.Load()
	if old != nil {
		were = len(old.targets)
	}
	for _, t := range next.targets {
		if old != nil {
			if i := slices.IndexFunc(old.targets, func(x *target) bool { return x.SameAs(t.Target) }); i >= 0 {
				t.health = old.targets[i].health
				stays++
				continue
			}
		}
		t.health = &health{}
	}
	b.conf.Store(next)
	switch {
	case stays == were:
		return LeftNone
	case stays > 0:
		return LeftSome
	}
	return LeftAll
}

// Tend is called several times a second: it has names looked up and targets probed whose time
// has come. left: targets are there no more since the last call. back: some have come back.
func (b *Broker) Tend() (left, back bool) {
	cfg := b.conf.Load()
	if b.standing.Load() > 0 {
		b.look()
	}
	if cfg.several() {
		now := time.Now()
		for _, t := range cfg.targets {
			if t.probeDue(now) {
				b.spawn(func() { b.probe(t) })
			}
		}
	}
	return b.left.Swap(false), b.back.Swap(false)
}

// probe asks a target that is out of rotation whether it is back.
func (b *Broker) probe(t *target) {
	if k, err := b.dialTarget(b.ctx, b.conf.Load(), t); err == nil {
		k.Close()
	}
}

// sameCluster notes what a target says its cluster is, and warns where another says otherwise: users
// and queues of one are not there at the other. Nodes of a cluster that was given no name each tell their own.
func (b *Broker) sameCluster(cfg *settings, t *target, name string) {
	if name == "" {
		return
	}
	t.cluster.Store(&name)
	for _, x := range cfg.targets {
		if other := x.cluster.Load(); other != nil && *other != name && !(isNodeName(*other) && isNodeName(name)) && !b.mixed.Swap(true) {
			b.log.Warn("brokers are not of one cluster", "address", t.Address(), "cluster", name, "other", x.Address(), "its_cluster", *other)
		}
	}
}

// isNodeName reports whether a cluster may be named as RabbitMQ does by itself: rabbit@host, after the node that is asked.
func isNodeName(cluster string) bool { return strings.Contains(cluster, "@") }

// hurry has all that are out of rotation probed now: another has come back.
func (s *settings) hurry() {
	for _, t := range s.targets {
		t.breaker.hurry()
	}
}

// Leaving takes the broker's last words on a link: where they say that its node goes away, and
// there are others, it is asked no more until a probe has found it back.
func (k *Link) Leaving(e *amqp.Error) {
	cfg := k.b.conf.Load()
	if e.Code != amqp.ConnectionForced || !GoesAway(e.Text) || !cfg.several() || k.health == nil {
		return
	}
	if k.health.eject(&Unreachable{Address: k.Target.Address(), Err: e}, cfg.RetryDelay) {
		k.health.outs[OutDrain].Add(1)
		k.b.log.Warn("broker out of rotation", "address", k.Target.Address(), "error", e.Text)
	}
}

// GoesAway reads what RabbitMQ ("Node was put into maintenance mode", "broker forced connection
// closure with reason 'shutdown'") and LavinMQ ("Broker shutdown") say when they stop.
func GoesAway(text string) bool {
	return strings.Contains(text, "maintenance mode") || strings.Contains(text, "shutdown")
}

// TargetState is what is known of one target.
type TargetState struct {
	Address string
	// Broker is the name of the broker that it is of, where the caller has several.
	Broker string
	// Up: it is in rotation. Otherwise Since and Reason say more.
	Up     bool
	Since  time.Time
	Reason string
	// Links are the connections to it.
	Links              int
	Connects, Failures uint64
	Outs               [reasons]uint64 // by Reasons
}

// Targets are the targets as they are now.
func (b *Broker) Targets() []TargetState {
	cfg := b.conf.Load()
	all := make([]TargetState, 0, len(cfg.targets))
	for _, t := range cfg.targets {
		s := TargetState{Address: t.Address(), Links: int(t.links.Load()), Connects: t.connects.Load(), Failures: t.failures.Load()}
		for i := range s.Outs {
			s.Outs[i] = t.outs[i].Load()
		}
		since, err := t.away()
		if s.Up = err == nil; !s.Up {
			s.Since, s.Reason = since, shortReason(err)
		}
		all = append(all, s)
	}
	return all
}

// everyone is why none of several targets can be reached.
type everyone []error

func (e everyone) Unwrap() []error { return e }

func (e everyone) Error() string {
	var all []string
	for _, err := range e {
		text := shortReason(err)
		if un := (*Unreachable)(nil); errors.As(err, &un) {
			text = un.Address + ": " + text
		}
		all = append(all, text)
	}
	return strings.Join(all, "; ")
}

// nobody is the error of a broker none of whose targets could be reached.
func nobody(why []error) error {
	if len(why) == 1 {
		return why[0]
	}
	all := &Unreachable{Err: everyone(why)}
	for i, err := range why { // clients hear the reason that all have
		var un *Unreachable
		if !errors.As(err, &un) || i > 0 && un.why != all.why {
			all.why = ""
			break
		}
		all.why = un.why
	}
	return all
}

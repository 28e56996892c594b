// Package broker is the way to the broker: its addresses, whether it is there, dialling and
// TLS, the handshake in two steps, and what was learned of it. It knows nothing of clients.
package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// Target is one address of the broker.
type Target struct {
	// Host is the broker's DNS name or IP address.
	Host string
	// IP is the one of Host's addresses that is meant; zero: whichever answers.
	IP netip.Addr
	// Port is its TCP port, 5672 for AMQP and 5671 for AMQPS by custom.
	Port int
	// TLS is nil for a plain connection. ServerName is filled in from Host when empty.
	TLS *tls.Config
}

// Address is HOST:PORT as net.Dial takes it.
func (t Target) Address() string {
	host := t.Host
	if t.IP.IsValid() {
		host = t.IP.String()
	}
	return net.JoinHostPort(host, strconv.Itoa(t.Port))
}

// SameAs reports whether t leads to what v leads to.
func (t Target) SameAs(v Target) bool {
	return t.Address() == v.Address() && (t.TLS == nil) == (v.TLS == nil)
}

// DialFunc opens a TCP connection to a HOST:PORT address.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Config is what a Broker can be told, see Set.
type Config struct {
	// Targets are the addresses of one broker, the nodes of a cluster say.
	Targets []Target
	// InOrder asks the first of them that can be reached; else the one with the fewest connections.
	InOrder bool
	// DNSRefresh is how often names are asked for their addresses, each of which is a target of its
	// own; 0: a name is one target.
	DNSRefresh time.Duration
	// Hold is how long a login waits for a broker that is away; 0: it fails.
	Hold time.Duration
	// ConnectTimeout bounds one handshake with one target: TCP, TLS, and AMQP up to tune; and connection.open.
	ConnectTimeout time.Duration
	// RetryDelay is how long an address that could not be reached is not asked again.
	RetryDelay time.Duration
	// WaitTimeout bounds the wait for a turn where many handshakes are under way.
	WaitTimeout time.Duration
	// Heartbeat is asked of the broker; the smaller of this and the broker's own is used. 0: the broker's.
	Heartbeat time.Duration
	// ProxyProtocol is the version of the header that each connection begins with; 0: none.
	ProxyProtocol byte
	Dial          DialFunc
	// Lookup asks for a name's addresses; nil: names are not looked up but by Dial.
	Lookup LookupFunc
}

// Lane is whose handshakes wait for one another.
type Lane int

const (
	// Known is for credentials that the broker has accepted before.
	Known Lane = iota
	// Strangers is for all others: they cannot hold up those who are known.
	Strangers
	// VHosts is for credentials that the broker has accepted, and a vhost in which it has not: a turn
	// lasts until the link serves or is closed, however long the broker takes for its goodbye.
	VHosts
	lanes
)

// How many handshakes of a lane are under way at a time. More only wait at the broker
// instead of here, where they would hold up everybody.
const (
	KnownAtATime     = 128
	StrangersAtATime = 32
	VHostsAtATime    = 32
)

const (
	// upFor is how long a broker that greeted counts as being there although no connection stands.
	upFor = time.Second
	// greetedFor is how long a connection on which the broker has greeted waits for a login:
	// less than a broker waits for start-ok (RabbitMQ: 10 s).
	greetedFor = 5 * time.Second
)

// Broker is one broker, or one cluster of them: what logs in here may log in at any target.
type Broker struct {
	log   *slog.Logger
	ctx   context.Context
	spawn func(func())
	conf  atomic.Pointer[settings]
	turns [lanes]chan struct{}

	info     atomic.Pointer[Info] // of the newest handshake
	standing atomic.Int64         // links that serve, see Link.Stand
	lastUp   atomic.Int64         // when the broker last greeted, Unix nanoseconds; 0: it was lost since

	left, back atomic.Bool // targets have left, have come back, since the last Tend
	mixed      atomic.Bool // the log has told that they are not of one cluster

	mu       sync.Mutex
	greeting *Greeting
	greeted  *Link
	closed   bool
	known    map[string]*addresses // of the targets' names
	looking  chan struct{}         // closed when the names that are being looked up are known
	lookAt   time.Time             // when to ask again
	told     breaker               // what the log was told of the absence of several targets
}

// settings are a configuration with the state of its targets.
type settings struct {
	Config
	targets []*target
}

// New makes a Broker, which ends with ctx. spawn runs what goes on behind the callers' backs.
func New(ctx context.Context, log *slog.Logger, spawn func(func()), cfg Config) *Broker {
	b := &Broker{log: log, ctx: ctx, spawn: spawn}
	b.turns[Known] = make(chan struct{}, KnownAtATime)
	b.turns[Strangers] = make(chan struct{}, StrangersAtATime)
	b.turns[VHosts] = make(chan struct{}, VHostsAtATime)
	b.Set(cfg)
	return b
}

// Set takes a configuration for what comes after, and tells how much of the targets has left.
func (b *Broker) Set(cfg Config) Left {
	b.mu.Lock()
	b.lookAt = time.Time{}
	left := b.putLocked(cfg)
	b.mu.Unlock()
	b.mixed.Store(false)
	if left == LeftAll {
		b.lastUp.Store(0)
	}
	if left != LeftNone {
		b.dropMoved()
	}
	return left
}

// Close ends what waits here for a login.
func (b *Broker) Close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.dropGreeted(nil)
}

// InOrder is what it is configured as.
func (b *Broker) InOrder() bool { return b.conf.Load().InOrder }

// Info is what the newest handshake told of the broker; nil: there was none.
func (b *Broker) Info() *Info { return b.info.Load() }

// Unreachable says why no target could be reached. Error is for the operator, ForClients
// for whoever asked: not everybody may know the broker's address or what its network says.
type Unreachable struct {
	Address string // "": of several, which the error names
	Err     error
	why     string // for clients; may be empty
}

func (e *Unreachable) Error() string {
	if e.Address == "" {
		return fmt.Sprintf("no broker can be reached: %v", e.Err)
	}
	return fmt.Sprintf("the broker at %s cannot be reached: %v", e.Address, e.Err)
}

func (e *Unreachable) Unwrap() error { return e.Err }

// ForClients is the text that clients may hear.
func (e *Unreachable) ForClients() string {
	if e.why == "" {
		return "the broker cannot be reached"
	}
	return "the broker cannot be reached: " + e.why
}

// Busy says that too many handshakes are under way.
type Busy struct{ Within time.Duration }

func (e *Busy) Error() string {
	return fmt.Sprintf("too many logins at the broker are under way, no turn within wait_timeout = %v", e.Within)
}

// turn waits for one of the lane's turns; the caller gives it back.
func (b *Broker) turn(ctx context.Context, l Lane) (give func(), err error) {
	turns := b.turns[l]
	give = func() { <-turns }
	select {
	case turns <- struct{}{}:
		return give, nil
	default:
	}
	within := b.conf.Load().WaitTimeout
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case turns <- struct{}{}:
		return give, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timer.C:
		return nil, &Busy{within}
	}
}

// Login dials and logs in: the broker's verdict on the credential is an *amqp.Error. props are
// the client-properties. The link waits for Open or Close.
func (b *Broker) Login(ctx context.Context, l Lane, c Credential, props []byte) (*Link, error) {
	return b.LoginBy(ctx, l, func(context.Context) (Credential, []byte, error) { return c, props, nil })
}

// LoginBy is Login with what is asked for at each dial: a credential may end while a broker that is away is waited for.
func (b *Broker) LoginBy(ctx context.Context, l Lane, ask func(context.Context) (c Credential, props []byte, err error)) (*Link, error) {
	h := held{time.Now()}
	for {
		c, props, err := ask(ctx)
		if err != nil {
			return nil, err
		}
		k, err := b.login(ctx, l, c, props)
		if err == nil || !h.again(ctx, b, err, nil) {
			return k, err
		}
	}
}

func (b *Broker) login(ctx context.Context, l Lane, c Credential, props []byte) (*Link, error) {
	give, err := b.turn(ctx, l)
	if err != nil {
		return nil, err
	}
	k, err := b.logInNow(ctx, c, props)
	if err == nil && l == VHosts { // what it is for comes yet, see Open
		k.turn = sync.OnceFunc(give)
		return k, nil
	}
	give()
	return k, err
}

// logInNow is login for who has a turn.
func (b *Broker) logInNow(ctx context.Context, c Credential, props []byte) (*Link, error) {
	if k := b.takeGreeted(); k != nil && clientOf(ctx) != nil {
		k.Close() // it speaks for nobody
	} else if k != nil {
		err := k.logInBy(ctx, c, props)
		if err == nil {
			return k, nil
		}
		k.Close()
		if !k.stale(err) {
			return nil, err
		}
		// It died while it waited for a login.
		if cfg := b.conf.Load(); !cfg.several() { // or is as silent as another one would be
			var cancel func()
			ctx, cancel = context.WithDeadline(ctx, k.began.Add(cfg.ConnectTimeout))
			defer cancel()
		}
	}
	k, err := b.dial(ctx)
	if err != nil {
		return nil, err
	}
	if err := k.logInBy(ctx, c, props); err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

// logInBy is logIn within connect_timeout of the dial.
func (k *Link) logInBy(ctx context.Context, c Credential, props []byte) error {
	ctx, cancel := context.WithDeadline(ctx, k.began.Add(k.b.conf.Load().ConnectTimeout))
	defer cancel()
	return k.logIn(ctx, c, props)
}

// dial connects to a target that lets it, up to connection.start: to those in rotation in turn,
// then, where none is or was reached, to those that are out and may be asked again.
func (b *Broker) dial(ctx context.Context) (*Link, error) {
	b.awaitLook(ctx)
	cfg := b.conf.Load()
	asked := make(map[*target]bool, len(cfg.targets))
	why := make(map[*target]error, len(cfg.targets))
	for _, ts := range [][]*target{cfg.inRotation(ctx), cfg.targets} {
		for _, t := range ts {
			if asked[t] {
				continue
			}
			asked[t] = true
			k, err := b.dialTarget(ctx, cfg, t)
			if err == nil {
				return k, nil
			}
			switch {
			case ctx.Err() == nil:
				why[t] = err
				continue
			case errors.Is(ctx.Err(), context.DeadlineExceeded):
				return nil, err
			}
			return nil, ctx.Err()
		}
	}
	all := make([]error, 0, len(why))
	for _, t := range cfg.targets {
		all = append(all, why[t])
	}
	err := nobody(all)
	if cfg.several() {
		b.lastUp.Store(0)
		if b.told.news(shortReason(err)) {
			b.log.Warn("broker cannot be reached", "error", err)
		}
	}
	return nil, err
}

// dialTarget connects to one target, if its breaker lets it.
func (b *Broker) dialTarget(ctx context.Context, cfg *settings, t *target) (*Link, error) {
	whole := ctx
	ctx, cancel := context.WithTimeout(ctx, cfg.ConnectTimeout)
	defer cancel()
	began := time.Now() // the wait for a probe is in it: who has no time left after a good one opens nothing, see leave
	probe, err := t.enter(ctx)
	if err != nil {
		return nil, err
	}
	slowMost := slowInARow
	if cfg.several() {
		slowMost = 1 // another is asked in its stead, which costs nobody anything
	}
	t.links.Add(1)
	l, err := b.greet(ctx, cfg, t.Target)
	if err != nil {
		t.links.Add(-1)
	}
	if err != nil && ctx.Err() != nil && (!errors.Is(ctx.Err(), context.DeadlineExceeded) || cfg.several() && whole.Err() != nil) {
		t.leave(probe, began, nil, noVerdict, 0, 0)
		return nil, ctx.Err() // nobody waits for it any more
	}
	if err != nil {
		e := cfg.unreachable(t.Target, err)
		e.addHint(t.Target, err, t.hasGreeted())
		was := t.up()
		opened, _ := t.leave(probe, began, e, judge(err), slowMost, cfg.RetryDelay)
		t.failures.Add(1)
		if opened && was {
			t.outs[OutConnect].Add(1)
		}
		if opened && !cfg.several() {
			b.lastUp.Store(0)
		}
		switch {
		case !t.news(shortReason(e)):
		case opened && cfg.several():
			b.log.Warn("broker out of rotation", "address", e.Address, "error", e.Err)
		default:
			b.log.Warn("broker cannot be reached", "address", e.Address, "error", e.Err)
		}
		return nil, e
	}
	if _, back := t.leave(probe, began, nil, reached, 0, 0); back > 0 {
		back = back.Round(time.Millisecond)
		if cfg.several() {
			cfg.hurry() // what they have in common may be over
			b.told.forget()
			b.back.Store(true)
			b.log.Info("broker back in rotation", "address", t.Address(), "after", back)
		} else {
			b.log.Info("broker can be reached again", "address", t.Address(), "after", back)
		}
	}
	t.connects.Add(1)
	b.heardByDial(t, l.ip)
	if cfg.several() {
		b.sameCluster(cfg, t, amqp.LookupString(l.Info.Properties, "cluster_name"))
	}
	b.lastUp.Store(time.Now().UnixNano())
	l.began, l.health = began, t.health
	return l, nil
}

// unreachable makes the error of a handshake that did not come to its end.
func (s *settings) unreachable(t Target, err error) *Unreachable {
	e := &Unreachable{Address: t.Address(), Err: err}
	switch {
	case isTimeout(err):
		e.why = fmt.Sprintf("no answer within connect_timeout = %v", s.ConnectTimeout)
		e.Err = errors.New(e.why)
	case isEOF(err):
		e.why = "it closed the connection during the handshake"
		e.Err = errors.New(e.why)
	}
	return e
}

// Down is why the broker is not asked now; nil: it may be there.
func (b *Broker) Down() error {
	var why []error
	for _, t := range b.conf.Load().targets {
		err := t.openFor()
		if err == nil {
			return nil
		}
		why = append(why, err)
	}
	if len(why) == 0 {
		return nil
	}
	return nobody(why)
}

// Check asks the broker for its greeting, without a login.
func (b *Broker) Check(ctx context.Context) error {
	if err := b.Down(); err != nil {
		return err
	}
	k, err := b.dial(ctx)
	if err != nil {
		return err
	}
	k.Close()
	return nil
}

// Greeting is the wait for the broker's greeting.
type Greeting struct {
	done chan struct{}
	err  error
}

// Done is closed when the broker has greeted or could not be reached.
func (g *Greeting) Done() <-chan struct{} { return g.done }

// Err is why the broker has not greeted, after Done.
func (g *Greeting) Err() error { return g.err }

// Greet is asked before a client is greeted: nil where the broker is known to be up. Otherwise
// it is being dialled, once for all that wait, and the next login takes that connection.
func (b *Broker) Greet() *Greeting {
	if b.isUp() {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.greeting == nil {
		if b.isUp() { // one has ended since
			return nil
		}
		g := &Greeting{done: make(chan struct{})}
		b.greeting = g
		b.spawn(func() { b.fetchGreeting(g) })
	}
	return b.greeting
}

// isUp reports whether the broker is known to be up.
func (b *Broker) isUp() bool {
	return b.standing.Load() > 0 || time.Now().UnixNano()-b.lastUp.Load() < int64(upFor)
}

func (b *Broker) fetchGreeting(g *Greeting) {
	k, err := b.dial(b.ctx)
	b.mu.Lock()
	b.greeting = nil
	old := b.greeted
	if err == nil {
		b.greeted = k
	} else {
		old = nil
	}
	closed := b.closed
	b.mu.Unlock()
	g.err = err
	close(g.done)
	if old != nil {
		old.Close()
	}
	switch {
	case err != nil:
	case closed || k.Moved():
		b.dropGreeted(k)
	default:
		time.AfterFunc(greetedFor, func() { b.dropGreeted(k) })
	}
}

// dropGreeted closes the connection that waits for a login, if it is k or k is nil.
func (b *Broker) dropGreeted(k *Link) {
	b.mu.Lock()
	old := b.greeted
	if old == nil || (k != nil && old != k) {
		b.mu.Unlock()
		return
	}
	b.greeted = nil
	b.mu.Unlock()
	old.Close()
}

// dropMoved is dropGreeted where its target has left.
func (b *Broker) dropMoved() {
	b.mu.Lock()
	k := b.greeted
	b.mu.Unlock()
	if k != nil && k.Moved() {
		b.dropGreeted(k)
	}
}

// takeGreeted is a connection on which the broker has greeted, or nil.
func (b *Broker) takeGreeted() *Link {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := b.greeted
	b.greeted = nil
	if k != nil {
		k.waited, k.began = true, time.Now()
	}
	return k
}

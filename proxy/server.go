// The server: listeners, the set of clients, reload and shutdown.

package proxy

import (
	"context"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
	"github.com/amqproxysvc/amqproxysvc/proxy/wait"
)

var bg = context.Background()

// DialFunc opens a connection to the broker at a HOST:PORT address.
type DialFunc = broker.DialFunc

// Server is one proxy engine. Make it with New, run it with Start, end it with Shutdown.
type Server struct {
	env
	host string
	stop context.CancelFunc // ends ctx

	gate   gate
	budget budget
	limits limits
	queues queues
	logins logins
	ways   atomic.Pointer[ways]
	// noBroker stands in before the first handshake with the broker: RabbitMQ's values.
	noBroker   *broker.Info
	auth       authenticator
	users      atomic.Pointer[directory] // nil: the broker decides about all
	hashing    wait.Bound
	strangers  *strangers
	rotation   rotation
	checking   atomic.Int32 // SelfChecks under way
	selfChecks sync.Map     // the addresses of SelfCheck's connections, which are greeted without a broker
	greeting   atomic.Pointer[greeting]

	clients   clientSet
	rests     atomic.Int64 // clients that came to rest lately
	restsSeen int64        // the janitor's
	offences  atomic.Int32 // len(offenders)
	limited   atomic.Bool  // channelLimits is not empty
	traces    atomic.Int32 // under way
	catches   catches
	rewrites  rewrites
	pauses    pauses
	quotas    quotas
	apps      apps

	mu              lock.Mutex[lock.Server] // guards all below
	listeners       []*listener
	accepting       bool
	upstreams       map[*upstream]struct{}
	offenders       map[offender]int64 // until when, coarse clock
	accountOffences map[string]offences
	channelLimits   map[userAt]learned // channels that a broker lets a user have
	empty           chan struct{}      // closed when the last client has gone, while stopping
	ended           bool
	err             error

	orphans []*pool // refused by the broker, with clients left; guarded by logins.mu
	// acceptors are those of the owners that accept clients.
	acceptors sync.WaitGroup
	done      chan struct{}
}

var errStopping = amqp.Errorf(amqp.ConnectionForced, 0, "proxy shutting down")

// New checks the configuration; nothing is started.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Server{
		upstreams: make(map[*upstream]struct{}),
		done:      make(chan struct{}),

		offenders:       make(map[offender]int64),
		accountOffences: make(map[string]offences),
		channelLimits:   make(map[userAt]learned),
	}
	if all := descriptors(); all > 0 {
		s.limits.sockets = all - spareSockets(all)
	}
	s.began = time.Now()
	s.log = cfg.Logger
	if s.log == nil {
		s.log = slog.Default()
	}
	s.host, _ = os.Hostname()
	s.noBroker = defaultBroker()
	s.ctx, s.stop = context.WithCancel(bg)
	s.gate.s, s.gate.env = s, &s.env
	s.quotas.s = s
	s.logins.accounts = make(map[login]*account)
	s.auth = keepsUsers{}
	s.hashing.Resize(hashesAtATime)
	s.strangers = newStrangers()
	s.setConfig(cfg)
	return s, nil
}

// setConfig tells what setWays does.
func (s *Server) setConfig(cfg Config) (moved bool, gone []*way) {
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{KeepAlive: 30 * time.Second}).DialContext
		if cfg.Lookup == nil {
			cfg.Lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
				return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
			}
		}
	}
	s.budget.resize(cfg.MessageBuffer, cfg.MaxMessageSize)
	s.conf.Store(&cfg)
	s.users.Store(newDirectory(&cfg, s.users.Load()))
	s.quotas.set(cfg.Limits)
	moved, gone = s.setWays(&cfg)
	s.gate.poke()
	s.limits.clients.Resize(cfg.MaxClients)
	return moved, gone
}

// Start binds every listener and accepts clients; it returns when all are bound, or
// with the first error and nothing bound. An inherited listener (socket activation)
// serves in place of the configured address with the same index; a nil entry is bound anew.
func (s *Server) Start(inherited []net.Listener) error {
	bound, err := s.bind(s.cfg().Listeners, inherited)
	if err != nil {
		return err
	}
	s.coarse.Store(1)
	s.mu.Lock()
	s.listeners, s.accepting = bound, true
	s.mu.Unlock()
	s.spawn(s.janitor)
	for _, l := range bound {
		s.acceptors.Add(1)
		s.spawn(func() {
			defer s.acceptors.Done()
			s.accept(l)
		})
	}
	return nil
}

func (s *Server) clientGone(c *client) {
	c.lst.clients.Add(-1)
	c.handshakeOver()
	if c.held {
		s.limits.clients.Release()
	}
	if s.clients.remove(c) {
		s.mu.Lock()
		if s.empty != nil && s.clients.len() == 0 {
			close(s.empty)
			s.empty = nil
		}
		s.mu.Unlock()
	}
	s.owners.done()
}

// upstreamUp counts an upstream whose reader is about to run. False: the server has ended.
func (s *Server) upstreamUp(u *upstream) bool {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return false
	}
	s.upstreams[u] = struct{}{}
	s.owners.add()
	s.mu.Unlock()
	s.n.upstreamsTotal.Add(1)
	return true
}

func (s *Server) readerGone(u *upstream) {
	close(u.done)
	s.owners.done()
}

// upstreamGone takes out an upstream that has ended. said: another line tells of its end.
func (s *Server) upstreamGone(u *upstream, said bool) {
	s.mu.Lock()
	delete(s.upstreams, u)
	s.mu.Unlock()
	if !said {
		s.log.Info("upstream closed", "upstream", u.n)
	}
}

// allPools are the pools of all identities, those that are no longer served included.
func (s *Server) allPools() []*pool {
	l := &s.logins
	l.mu.Lock()
	defer l.mu.Unlock()
	all := append([]*pool(nil), s.orphans...)
	for _, a := range l.accounts {
		for _, p := range a.pools {
			all = append(all, p)
		}
	}
	return all
}

// Reload takes a new configuration for what comes after; clients stay connected.
// It names the settings that changed but take effect only after a restart.
// On an error nothing has changed.
func (s *Server) Reload(cfg Config) (needRestart []string, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	old := s.cfg()
	needRestart = changedListeners(old.Listeners, cfg.Listeners)
	cfg.Listeners = s.renew(old.Listeners, cfg.Listeners)
	moved, gone := s.setConfig(cfg)
	if len(gone) > 0 { // those of one broker speak for one another
		s.distrust(gone)
	}
	if moved {
		s.retireStale()
	}
	return needRestart, nil
}

// retireStale has what leads to where the broker is no more used up; what comes goes to where it
// is. What is being opened now is looked at when it is there, see upstream.stale.
func (s *Server) retireStale() {
	s.dropSpares(math.MaxInt)
	for _, p := range s.allPools() {
		p.retireStale()
	}
}

// Shutdown stops accepting, gives clients until the drain timeout (or ctx's end, if
// sooner) to finish, then closes them with 320, flushes, closes the upstreams and returns.
func (s *Server) Shutdown(ctx context.Context) error {
	empty := s.stopAccepting()
	timer := time.NewTimer(s.cfg().DrainTimeout)
	defer timer.Stop()
	select {
	case <-empty:
	case <-timer.C:
	case <-ctx.Done():
	case <-s.done:
		return s.Err()
	}
	for _, c := range s.clients.appendTo(nil, nil) {
		c.shut(errStopping, false)
	}
	// Every client has closeGrace to answer, every write that is under way to end.
	wait := time.NewTimer(2 * closeGrace)
	defer wait.Stop()
	select {
	case <-empty:
	case <-wait.C:
	}
	s.closeUpstreams()
	s.end(nil)
	return nil
}

// StopAccepting closes the listeners, not what others hold of their sockets. Clients go on, until Shutdown.
func (s *Server) StopAccepting() { s.stopAccepting() }

// stopAccepting closes the listeners; the channel is closed when no client is left.
func (s *Server) stopAccepting() <-chan struct{} {
	s.mu.Lock()
	s.accepting = false
	listeners := s.listeners
	s.mu.Unlock()
	closeAll(listeners)
	s.acceptors.Wait() // those they accepted last are among the clients now
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.empty == nil {
		s.empty = make(chan struct{})
		if s.clients.len() == 0 {
			empty := s.empty
			close(empty)
			s.empty = nil
			return empty
		}
	}
	return s.empty
}

// closeUpstreams says connection.close to the broker and waits for its answer, bounded.
func (s *Server) closeUpstreams() {
	s.mu.Lock()
	ups := make([]*upstream, 0, len(s.upstreams))
	for u := range s.upstreams {
		ups = append(ups, u)
	}
	s.mu.Unlock()
	for _, u := range ups {
		u.close("the proxy is stopping")
	}
	timer := time.NewTimer(s.cfg().CloseTimeout)
	defer timer.Stop()
	for _, u := range ups {
		select {
		case <-u.done:
		case <-timer.C:
			return
		}
	}
}

// Close ends everything at once.
func (s *Server) Close() error {
	s.stopAccepting()
	s.end(nil)
	return nil
}

// end closes every socket, waits for the goroutines and closes Done.
func (s *Server) end(err error) {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		if err == nil {
			<-s.done // else a listener's goroutine calls, which the end waits for
		}
		return
	}
	s.ended, s.accepting, s.err = true, false, err
	s.owners.close()
	listeners := s.listeners
	var ups []*upstream
	for u := range s.upstreams {
		ups = append(ups, u)
	}
	s.mu.Unlock()
	clients := s.clients.end()
	s.stop()
	for _, w := range s.ways.Load().all {
		w.Close()
	}
	s.dropSpares(math.MaxInt)
	closeAll(listeners)
	for _, u := range ups {
		u.fail(errStopping, false)
	}
	for _, c := range clients {
		c.closeSocket()
	}
	go func() {
		s.owners.wait()
		close(s.done)
	}()
	if err == nil {
		<-s.done
	}
}

// Done is closed when the server has ended, by Shutdown, Close or a failed listener.
func (s *Server) Done() <-chan struct{} { return s.done }

// Err says, after Done, why the server ended; nil after Shutdown and Close.
func (s *Server) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

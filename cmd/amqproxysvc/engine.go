// The engine as the service carries it: the proxy, its settings, its log and its HTTP
// server as one thing that can be started, reloaded and drained.

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/admin"
	"github.com/amqproxysvc/amqproxysvc/service"
	"github.com/amqproxysvc/amqproxysvc/service/config"
	"github.com/amqproxysvc/amqproxysvc/service/control"
	"github.com/amqproxysvc/amqproxysvc/service/logging"
)

// proxyServer is proxy.Server; tests put another in its place.
type proxyServer interface {
	Start(inherited []net.Listener) error
	Addrs() []net.Addr
	Listeners() []net.Listener
	Reload(cfg proxy.Config) (needRestart []string, err error)
	StopAccepting()
	Shutdown(ctx context.Context) error
	Close() error
	Done() <-chan struct{}
	Err() error
	Ready(ctx context.Context) error
	SelfCheck(ctx context.Context) error
	Stats() proxy.Stats
	ListClients() []proxy.ClientInfo
	ListUpstreams() []proxy.UpstreamInfo
	Kick(id uint64, user string) int
	Reconnect(id uint64, user string) int
	Balance() int
	Pause(vhost string, all bool, most time.Duration) int
	Resume(vhost string, all bool) bool
	Trace(ctx context.Context, w proxy.TraceWanted) (*proxy.Trace, error)
	ListLimits(most int, which func(by proxy.LimitBy, key string) bool) ([]proxy.Limit, []proxy.LimitKeyInfo, int)
}

var newServer = func(cfg proxy.Config) (proxyServer, error) { return proxy.New(cfg) }

// engine is a service.Engine.
type engine struct {
	src     config.Source
	log     *logging.Log
	server  proxyServer
	started time.Time

	admin     *admin.Server // nil: HTTP is off
	adminAddr net.Addr
	adminSet  config.HTTP // what admin was started with
	// pagePassword is that of the live page, "": it asks for none.
	pagePassword string
	draining     atomic.Bool
	handover     handover

	name    string          // of the service's instance
	managed bool            // a service manager started the process
	host    service.Host    // what carries it
	control *control.Server // nil: there is no admin channel

	mu        sync.Mutex
	settings  config.Settings    // in force
	explained []config.Explained // the same, with where each comes from

	certificates certificates
}

var _ service.Engine = (*engine)(nil)

// openEngine loads the settings, opens the log, makes it the default, and makes the
// engine; nothing is bound. The warnings are logged.
func openEngine(src config.Source, logOpts logging.Options) (*engine, error) {
	settings, warnings, err := config.Load(src)
	if err != nil {
		return nil, err
	}
	logOpts.Settings = settings.Log
	log, err := logging.New(logOpts)
	if err != nil {
		return nil, service.ConfigError(err)
	}
	logger := log.Logger()
	e := &engine{src: src, log: log, settings: settings, explained: config.Explain(src, &settings), adminSet: settings.HTTP}
	e.certificates.seen = stamps(&settings)
	e.pagePassword, err = settings.HTTP.Password()
	var cfg proxy.Config
	if err == nil {
		cfg, err = settings.ProxyConfig(programVersion(), logger)
	}
	if err == nil {
		e.server, err = newServer(cfg)
		err = service.ConfigError(err)
	}
	if err != nil {
		_ = log.Close()
		return nil, err
	}
	slog.SetDefault(logger)
	limitMemory(settings.MemoryLimit, systemMemoryLimit)
	for _, w := range append(warnings, settings.Warnings()...) {
		logger.Warn(w)
	}
	return e, nil
}

// Start binds the HTTP port, then the listeners. Either both are bound or none.
func (e *engine) Start(_ context.Context, inherited []net.Listener) error {
	if has := len(e.settings.Listeners); len(inherited) > has { // nobody would answer on what is too many
		return service.ConfigError(fmt.Errorf("socket activation: there is a socket for listener %d, counted from 0, and the settings have %d [[listener]]: "+
			"give each ListenStream= of the .socket unit one (an empty ListenStream= in a drop-in takes back those before it)", len(inherited)-1, has))
	}
	for i, l := range inherited {
		if asked := e.settings.Listeners[i].HostPort(); l != nil && elsewhere(l.Addr().String(), asked) {
			slog.Warn(socketCounts(l.Addr().String(), i, asked))
		}
	}
	var httpListener net.Listener
	if address := e.adminSet.HostPort(); address != "" {
		ln, err := e.handover.taken(httpAt+address), error(nil)
		if ln == nil {
			ln, err = net.Listen(proxy.ListenNetwork(address), address)
		}
		if err != nil {
			return bindError(err, "http.address, http.port (-b), which are of health and metrics")
		}
		httpListener = ln
		e.handover.bound(httpAt+address, ln)
	}
	if err := e.openControl(); err != nil {
		if httpListener != nil {
			_ = httpListener.Close()
		}
		return err
	}
	if err := e.server.Start(inherited); err != nil {
		if httpListener != nil {
			_ = httpListener.Close()
		}
		e.closeControl()
		return bindError(err, "listener.address, listener.port")
	}
	e.mu.Lock()
	e.started = time.Now()
	e.mu.Unlock()
	if httpListener != nil {
		e.adminAddr = httpListener.Addr()
		o := admin.Options{Source: e, Version: programVersion(), Hosts: e.adminSet.Hosts, Pprof: e.adminSet.Pprof, Password: e.pagePassword}
		if e.adminSet.ServesPage() {
			o.Lister = e
		}
		e.admin = admin.New(o)
		e.admin.Serve(httpListener)
	}
	e.handover.rest()
	e.watchCertificates()
	return nil
}

// Addresses are those of the listeners as the settings name them.
func (e *engine) Addresses() (addresses []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, l := range e.settings.Listeners {
		addresses = append(addresses, l.HostPort())
	}
	return addresses
}

// Listeners are the bound ones.
func (e *engine) Listeners() []net.Listener { return e.server.Listeners() }

// bindError says in words what keeps an address from being bound, and which settings to change.
func bindError(err error, settings string) error {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "listen" {
		return err
	}
	where := ""
	if op.Addr != nil {
		where = op.Addr.String()
	}
	reason := op.Err.Error()
	var lookup *net.DNSError
	switch {
	case errors.As(err, &lookup):
		where, reason = lookup.Name, "no address is known of that name: "+lookup.Err
	case addressInUse(err):
		reason = "another program uses this address"
		if tcp, ok := op.Addr.(*net.TCPAddr); ok {
			reason += listenerOf(tcp.Port)
		}
	case errors.Is(err, syscall.EACCES):
		reason = "permission denied (ports below 1024 need a privilege, or socket activation)"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		reason = "this machine has no such address"
	}
	return reworded{fmt.Sprintf("cannot listen on %s: %s; change %s", where, reason, settings), err}
}

// reworded is an error in other words, still the same to errors.Is and errors.As.
type reworded struct {
	text string
	err  error
}

func (r reworded) Error() string { return r.text }
func (r reworded) Unwrap() error { return r.err }

// reload loads the settings again and applies what can be.
func (e *engine) reload() (needRestart, warnings []string, err error) {
	e.certificates.mu.Lock()
	defer e.certificates.mu.Unlock()
	settings, warnings, err := config.Load(e.src)
	if err != nil {
		return nil, nil, err
	}
	seen := stamps(&settings)
	cfg, err := settings.ProxyConfig(programVersion(), e.log.Logger())
	if err != nil {
		return nil, nil, err
	}
	e.mu.Lock()
	old := e.settings
	e.mu.Unlock()
	// The log first: it can be put back, the engine cannot.
	if err := e.log.Apply(settings.Log); err != nil {
		return nil, nil, service.ConfigError(err)
	}
	needRestart, err = e.server.Reload(cfg)
	if err != nil {
		return nil, nil, errors.Join(err, e.log.Apply(old.Log))
	}
	if settings.HTTP.Address != e.adminSet.Address {
		needRestart = append(needRestart, "http.address")
	}
	if settings.HTTP.Port != e.adminSet.Port {
		needRestart = append(needRestart, "http.port")
	}
	if settings.HTTP.Hosts != e.adminSet.Hosts {
		needRestart = append(needRestart, "http.hosts")
	}
	if settings.HTTP.Page != e.adminSet.Page {
		needRestart = append(needRestart, "http.page")
	}
	if settings.HTTP.PasswordFile != e.adminSet.PasswordFile {
		needRestart = append(needRestart, "http.password_file")
	}
	if settings.HTTP.Pprof != e.adminSet.Pprof {
		needRestart = append(needRestart, "http.pprof")
	}
	if settings.Admin != old.Admin {
		needRestart = append(needRestart, "admin.socket")
	}
	e.certificates.seen = seen
	e.mu.Lock()
	e.settings, e.explained = settings, config.Explain(e.src, &settings)
	e.mu.Unlock()
	limitMemory(settings.MemoryLimit, systemMemoryLimit)
	if e.admin != nil {
		e.admin.Forget() // what was known of the broker before
	}
	warnings = append(warnings, settings.Warnings()...)
	for _, w := range warnings {
		slog.Warn(w)
	}
	return needRestart, warnings, nil
}

// Drain ends everything: clients are still accepted for drain_delay, then those that are there
// have drain_timeout to finish, then term_timeout to close.
// The HTTP server answers to the end, with /readyz not ready.
func (e *engine) Drain(ctx context.Context) error {
	e.draining.Store(true)
	e.certificates.mu.Lock()
	if t := e.certificates.timer; t != nil {
		t.Stop()
	}
	e.certificates.mu.Unlock()
	e.mu.Lock()
	delay, drain, term := e.settings.DrainDelay, e.settings.Engine.DrainTimeout, e.settings.TermTimeout
	e.mu.Unlock()
	if delay > 0 && !e.handover.left {
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-ctx.Done():
		case <-e.server.Done():
		}
		timer.Stop()
	}

	ended := make(chan error, 1)
	go func() { ended <- e.server.Shutdown(ctx) }()
	err := e.awaitShutdown(ctx, ended, drain, term)
	if e.admin != nil {
		httpCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		err = errors.Join(err, e.admin.Shutdown(httpCtx))
	}
	e.closeControl()
	return err
}

// awaitShutdown waits for Shutdown and cuts it off term after the drain's end.
func (e *engine) awaitShutdown(ctx context.Context, ended <-chan error, drain, term time.Duration) error {
	if term < 0 {
		return <-ended
	}
	cut := time.NewTimer(drain + term)
	defer cut.Stop()
	hurry := ctx.Done()
	for {
		select {
		case err := <-ended:
			return err
		case <-hurry: // the drain ends now
			hurry = nil
			cut.Reset(term)
		case <-cut.C:
			slog.Warn("term_timeout is over, what is still open is cut off", "clients", e.server.Stats().Clients)
			return errors.Join(e.server.Close(), <-ended)
		}
	}
}

// Status is a snapshot.
func (e *engine) Status() service.Status {
	stats := e.server.Stats()
	e.mu.Lock()
	defer e.mu.Unlock()
	st := service.Status{
		Clients: stats.Clients, Upstreams: stats.Upstreams, Advice: len(stats.Advice),
		Broker:   service.BrokerState{AwaySince: stats.BrokerAwaySince, Reason: stats.BrokerReason, Blocked: stats.UpstreamsBlocked},
		Upstream: e.settings.BrokersText(), Since: e.started, DrainTimeout: e.settings.DrainDelay + e.settings.Engine.DrainTimeout,
	}
	away := map[string]bool{"": !stats.BrokerUp}
	for _, b := range stats.Brokers {
		if away[b.Name] = !b.Up; !b.Up {
			st.Broker.Others = append(st.Broker.Others, service.BrokerAway{Name: b.Name, Since: b.AwaySince, Reason: b.Reason})
		}
	}
	for _, t := range stats.Targets {
		if !t.Up && !away[t.Broker] {
			st.Broker.Out = append(st.Broker.Out, strings.TrimSpace(t.Broker+" "+t.Address)+": "+t.Reason)
		}
	}
	for _, r := range admin.RoutesOf(stats.Routes) {
		st.Routes = append(st.Routes, r.String())
	}
	for _, a := range e.server.Addrs() {
		st.Listening = append(st.Listening, a.String())
	}
	return st
}

// Check is the watchdog's question.
func (e *engine) Check(ctx context.Context) error { return e.server.SelfCheck(ctx) }

// Done is closed when the proxy has ended.
func (e *engine) Done() <-chan struct{} { return e.server.Done() }

// Err says why.
func (e *engine) Err() error { return e.server.Err() }

// ReopenLog reopens the log file.
func (e *engine) ReopenLog() error { return e.log.Reopen() }

// Stats and Ready make the engine the source of the HTTP server.
func (e *engine) Stats() proxy.Stats { return e.server.Stats() }

// Ready says why clients cannot be served, a drain included.
func (e *engine) Ready(ctx context.Context) error {
	if e.draining.Load() {
		return errors.New("the proxy is stopping")
	}
	return e.server.Ready(ctx)
}

// upstreamText is the broker as AMQProxy prints it: "host:5671 TLS".
func (e *engine) upstreamText() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.settings.Broker.TLS {
		return e.settings.BrokersText() + " TLS"
	}
	return strings.TrimSpace(e.settings.BrokersText())
}

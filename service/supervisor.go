// The supervisor: carries an engine from start to end, and does on the way what the
// system asks for: reload, reopen the log, tell the state, feed the watchdog, drain.
// How the system asks is the matter of run_unix.go and run_windows.go.

package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	kservice "github.com/kardianos/service"
)

const (
	// statusInterval is how often the live counts are looked at; they are told when changed.
	statusInterval = time.Second
	// selfCheckInterval is the watchdog's period where no service manager has one.
	selfCheckInterval = 10 * time.Second
	// selfCheckFailures in a row end the process where no service manager does it.
	selfCheckFailures = 3
	// defaultDrain is assumed of an engine that does not tell its drain timeout.
	defaultDrain = 20 * time.Second
	// drainGrace is what a drain may take beyond its timeout, for flushing and closing.
	drainGrace = 10 * time.Second
	// giveUp is how long something that was told to end at once is waited for.
	giveUp = 5 * time.Second
	// sameRequest is how soon after the first request to stop another one is the same one:
	// timeout(1), make and supervisors signal the process and then its group.
	sameRequest = time.Second
)

// Options say what Run runs.
type Options struct {
	// Name is the instance's name as systemd or the service control manager knows it.
	Name string
	// Open reads the configuration, sets up logging (slog.SetDefault) and makes the engine,
	// without binding anything: an error is a wrong configuration. It is called once, inside
	// of the running service, so that what is wrong can be reported there.
	Open func(ctx context.Context) (Engine, error)
	// Managed says that a service manager started the process (`run --service`).
	Managed bool
	// StateFile is where the running service tells `status` and `reload` its state; empty:
	// status.json in systemd's runtime directory if there is one, else nowhere.
	StateFile string
	// Ready, if not nil, is called once, when clients can connect.
	Ready func(Engine)
	// Host, if not nil, is given, before Open, what carries the engine.
	Host func(Host)
}

// Run carries the engine until it is told to stop, the engine ends by itself, or ctx ends.
// The error says why the service could not start or did not last; ExitCode gives the
// process's exit code for it. What has been logged already comes as an ExitError without text.
func Run(ctx context.Context, opts Options) error {
	s := newSupervisor(opts)
	if opts.Host != nil {
		opts.Host(s)
	}
	stopWatching := context.AfterFunc(ctx, s.requestStop)
	defer stopWatching()
	return s.run()
}

type supervisor struct {
	opts   Options
	state  *stateFile
	notify func(string) // to systemd; does nothing elsewhere

	// watchdog is how often systemd wants to hear from us; 0: it does not.
	watchdog time.Duration
	// selfEnd makes failed self-checks end the process, where no service manager watches.
	selfEnd bool

	keepers keepers // of the listening sockets

	stopMu         sync.Mutex
	stopAsked      time.Time     // when first
	stopping       chan struct{} // closed by the first request to stop
	forced         chan struct{} // closed by the second
	reload, reopen chan struct{} // one pending request each

	upgradeWait time.Duration
	before      *predecessor // which this process took over from
	byUnit      map[int]bool // the listeners that a socket unit has

	asked    chan chan<- ReloadState // reloads whose outcome somebody waits for
	upgrades chan chan<- upgraded
	served   chan struct{} // closed when no more are taken

	toldMu sync.Mutex
	told   toldState // for those who ask

	// Owned by the goroutine that runs start, serve and stop one after the other.
	eng        Engine
	after      *successor // which has taken over
	err        error      // why the service did not last
	lastReload *ReloadState
	lastText   string
	lastAdvice int
}

func newSupervisor(opts Options) *supervisor {
	s := &supervisor{
		opts:     opts,
		notify:   func(state string) { _, _ = daemon.SdNotify(false, state) },
		stopping: make(chan struct{}),
		forced:   make(chan struct{}),
		reload:   make(chan struct{}, 1),
		reopen:   make(chan struct{}, 1),
		asked:    make(chan chan<- ReloadState),
		upgrades: make(chan chan<- upgraded),
		served:   make(chan struct{}),
		before:   findPredecessor(),
		keepers:  keepers{name: opts.Name},

		upgradeWait: upgradeWait,
	}
	path := opts.StateFile
	if dirs := os.Getenv("RUNTIME_DIRECTORY"); path == "" && dirs != "" && os.Getenv("NOTIFY_SOCKET") != "" {
		dir, _, _ := strings.Cut(dirs, ":")
		path = stateFileIn(dir)
	}
	s.state = &stateFile{path: path}
	if d, err := daemon.SdWatchdogEnabled(false); err == nil {
		s.watchdog = d
	}
	return s
}

// requestStop asks for a drain; asked again later, for an end at once.
func (s *supervisor) requestStop() {
	s.stopMu.Lock()
	defer s.stopMu.Unlock()
	switch {
	case s.stopAsked.IsZero():
		s.stopAsked = time.Now()
		close(s.stopping)
	case time.Since(s.stopAsked) < sameRequest:
	default:
		select {
		case <-s.forced:
		default:
			close(s.forced)
		}
	}
}

// onSignals makes the requests of the signals that come, until stop.
func onSignals(requests map[os.Signal]func()) (stop func()) {
	signals := make(chan os.Signal, 8)
	for sig := range requests {
		signal.Notify(signals, sig)
	}
	done, heard := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(heard)
		for {
			select {
			case sig := <-signals:
				requests[sig]()
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		close(done)
		<-heard
	}
}

func (s *supervisor) requestReload() { offer(s.reload) }
func (s *supervisor) requestReopen() { offer(s.reopen) }

// offer leaves one request pending; a second one says nothing that the first does not.
func offer(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// program is the supervisor as kardianos/service sees it.
type program struct{ s *supervisor }

func (p program) Start(kservice.Service) error { return p.s.start() }
func (p program) Stop(kservice.Service) error  { return p.s.stop() }

// start makes the engine and returns when its listeners are bound. A request to stop
// that comes meanwhile ends it.
func (s *supervisor) start() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	watched := make(chan struct{})
	defer close(watched)
	go func() {
		select {
		case <-s.stopping:
			cancel()
		case <-watched:
		}
	}()

	inPlace := s.inPlace()
	s.notify("STATUS=starting")
	s.state.hold()
	eng, err := s.opts.Open(ctx)
	if err != nil {
		s.err = ConfigError(err)
		s.tellFailure("not started", err)
		return s.err // not logged: the log was not set up
	}
	files := inheritedFiles()
	if s.before != nil {
		files = s.before.files
		if up, ok := eng.(Upgradable); ok {
			up.Take(s.before.sockets)
		}
	}
	inherited, byUnit, err := s.keepers.takeListeners(files, eng.Addresses())
	if err == nil {
		err = eng.Start(ctx, inherited)
	}
	if err != nil {
		s.tellFailure("not started", err)
		slog.Error("service could not start", "error", err, Event(EventStartFailed))
		s.err = &ExitError{Code: ExitCode(err)}
		return s.err
	}
	inPlace()
	if s.before != nil { // which may have rotated it meanwhile
		if err := eng.ReopenLog(); err != nil {
			slog.Error("log file could not be reopened", "error", err, Event(EventLogReopenFailed))
		}
	}
	s.eng, s.byUnit = eng, byUnit
	kept := 0
	for i, l := range inherited {
		if l != nil && !byUnit[i] {
			kept++
		}
	}
	if s.opts.Managed {
		s.keepers.keep(eng.Addresses(), eng.Listeners(), byUnit)
	}
	st := eng.Status()
	slog.Info("service started", "listening", strings.Join(st.Listening, " "), "upstream", st.Upstream,
		"socket_activated", len(byUnit), "kept_sockets", kept, "pid", os.Getpid(), Event(EventStarted))
	s.tell(PhaseServing, "READY=1\n")
	if s.opts.Ready != nil {
		s.opts.Ready(eng)
	}
	return nil
}

// inPlace has a process that is to take over from another say nothing to systemd, and leave the
// state file alone, until the func is called: that tells the other that this one serves.
func (s *supervisor) inPlace() func() {
	if s.before == nil {
		return func() {}
	}
	notify, path := s.notify, s.state.path
	s.notify, s.state.path = func(string) {}, ""
	return func() {
		s.before.ready()
		s.notify, s.state.path = notify, path
		s.state.hold()
		go s.before.listen(s.requestReload)
	}
}

// serve does what is asked until it is to stop, or the engine has ended: s.err then says why.
func (s *supervisor) serve() {
	ctx, cancel := context.WithCancel(context.Background())
	status := time.NewTicker(statusInterval)
	defer status.Stop()

	var checkEvery <-chan time.Time
	period := s.watchdog / 3
	if s.selfEnd {
		period = selfCheckInterval
	}
	if period > 0 {
		t := time.NewTicker(period)
		defer t.Stop()
		checkEvery = t.C
		s.notify(daemon.SdNotifyWatchdog)
	}

	// At most one reload or upgrade and one check run at a time; their ends come back here.
	var reloaded chan ReloadState
	var checked chan error
	failures, again, signalled := 0, false, false
	var waiting, next []chan<- ReloadState // for the outcome of the reload at work, and of the one after it
	var upgrading chan upgraded
	var upgraders []chan<- upgraded // who wait for the upgrade at work, or the next
	var half *ReloadState           // done but for the upgrade that is its second half
	defer func() {
		close(s.served)
		cancel()
		waitFor(reloaded)
		waitFor(checked)
		if upgrading != nil {
			if u := <-upgrading; u.child != nil { // ready just when this one was to stop
				u.child.kill()
			}
		}
	}()

	startUpgrade := func() {
		upgrading = make(chan upgraded, 1)
		go func(c chan<- upgraded) {
			child, err := s.startSuccessor(ctx)
			c <- upgraded{child, err}
		}(upgrading)
	}
	// begin does what was asked while something else was at work.
	begin := func() {
		switch {
		case reloaded != nil || upgrading != nil:
		case again:
			again, signalled = false, false
			waiting, next = next, nil
			reloaded = make(chan ReloadState, 1)
			s.tell(PhaseReloading, daemon.SdNotifyReloading+"\n"+daemon.SdNotifyMonotonicUsec())
			go func(c chan<- ReloadState) { c <- s.doReload(ctx) }(reloaded)
		case len(upgraders) > 0:
			startUpgrade()
		}
	}
	finish := func(r ReloadState) {
		s.finishReload(r)
		for _, outcome := range waiting {
			outcome <- *s.lastReload
		}
		waiting = nil
	}
	for {
		select {
		case <-s.stopping:
			return
		case <-s.eng.Done():
			s.engineEnded()
			return
		case <-s.reload:
			again, signalled = true, true
			begin()
		case outcome := <-s.asked:
			next = append(next, outcome)
			again = true
			begin()
		case outcome := <-s.upgrades:
			upgraders = append(upgraders, outcome)
			begin()
		case u := <-upgrading:
			upgrading = nil
			if u.err == nil {
				u.err = s.handOver(u.child)
			}
			for _, outcome := range upgraders {
				outcome <- u
			}
			upgraders = nil
			if u.err == nil {
				if half != nil {
					half.TakenOver, half.NeedRestart = u.child.pid, nil
					for _, outcome := range waiting {
						outcome <- *half
					}
				}
				if signalled { // of who waits for an outcome each asks again
					sendLine(s.after.conn, "reload")
				}
				return
			}
			slog.Error("upgrade failed, this process serves on as before", "error", u.err, Event(EventUpgradeFailed))
			if half != nil {
				half.NoUpgrade = u.err.Error()
				finish(*half)
				half = nil
			}
			begin()
		case r := <-reloaded:
			reloaded = nil
			switch why, upgrade := s.upgradesOnReload(); {
			case r.Error != "" || why == "" && !upgrade:
			case upgrade:
				slog.Info("configuration reloaded; the program on the disk is another one than this, and is to take over", "changed", strings.Join(r.Changed, ", "))
				half = &r
				startUpgrade()
				continue
			default:
				slog.Info("the program on the disk is another one than this, and a reload does not start it here", "reason", why)
				r.NoUpgrade = why
			}
			finish(r)
			begin()
		case <-s.reopen:
			if err := s.eng.ReopenLog(); err != nil {
				slog.Error("log file could not be reopened", "error", err, Event(EventLogReopenFailed))
			} else {
				slog.Info("log file reopened", Event(EventLogReopened))
			}
		case <-status.C:
			if reloaded == nil && half == nil {
				s.tell(PhaseServing, "")
			}
		case <-checkEvery:
			if checked == nil {
				checked = make(chan error, 1)
				go func(c chan<- error) {
					ctx, cancel := context.WithTimeout(ctx, period)
					defer cancel()
					c <- s.eng.Check(ctx)
				}(checked)
			}
		case err := <-checked:
			checked = nil
			if err == nil {
				failures = 0
				s.notify(daemon.SdNotifyWatchdog)
				continue
			}
			failures++
			slog.Error("self-check failed", "error", err, "in_a_row", failures, Event(EventCheckFailed))
			if s.selfEnd && failures >= selfCheckFailures {
				s.tellFailure("failed", err)
				s.err = &ExitError{Code: ExitFailed}
				return
			}
		}
	}
}

// waitFor waits, within bounds, for a goroutine whose context has ended.
func waitFor[T any](c <-chan T) {
	if c == nil {
		return
	}
	select {
	case <-c:
	case <-time.After(giveUp):
	}
}

func (s *supervisor) doReload(ctx context.Context) ReloadState {
	done, err := s.eng.Reload(ctx)
	r := ReloadState{At: time.Now(), Changed: done.Changed, NeedRestart: done.NeedRestart, Warnings: done.Warnings}
	if err != nil {
		r.Error = err.Error()
	}
	return r
}

func (s *supervisor) finishReload(r ReloadState) {
	r.Count = 1
	if s.lastReload != nil {
		r.Count = s.lastReload.Count + 1
	}
	s.lastReload = &r
	switch {
	case r.Error != "":
		slog.Error("reload failed, the settings from before stay in force", "error", r.Error, Event(EventReloadFailed))
	case len(r.NeedRestart) > 0:
		slog.Warn("configuration reloaded, but some changed settings need a restart",
			"need_restart", strings.Join(r.NeedRestart, ", "), "changed", strings.Join(r.Changed, ", "), Event(EventReloadPartial))
	default:
		slog.Info("configuration reloaded", "changed", strings.Join(r.Changed, ", "), Event(EventReloaded))
	}
	s.tell(PhaseServing, "READY=1\n")
}

func (s *supervisor) engineEnded() {
	err := s.eng.Err()
	if err == nil {
		err = errors.New("the engine ended without being asked to")
	}
	slog.Error("service failed", "error", err, Event(EventFailed))
	s.tellFailure("failed", err)
	s.err = &ExitError{Code: ExitCode(err)}
}

// stop drains the engine. It returns when all has ended, at the latest a little after the
// drain timeout, or at once after a second request to stop.
func (s *supervisor) stop() error {
	if s.eng == nil || s.ended() {
		return s.err
	}
	if s.after != nil {
		s.linger()
	} else {
		s.keepers.release()
	}
	s.before.stop()
	words := "service is stopping"
	if s.after != nil {
		words = "the process from before the upgrade is stopping"
	}
	slog.Info(words, "clients", s.eng.Status().Clients, Event(EventStopping))
	began := time.Now()
	limit := s.eng.Status().DrainTimeout
	if limit <= 0 {
		limit = defaultDrain
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit+drainGrace)
	defer cancel()
	drained := make(chan error, 1)
	go func() {
		err := s.eng.Drain(ctx)
		s.before.wait(ctx)
		drained <- err
	}()

	// The extension lets the drain timeout be longer than the unit's TimeoutStopSec.
	extend := fmt.Sprintf("STOPPING=1\nWATCHDOG=1\nEXTEND_TIMEOUT_USEC=%d\n", (drainGrace + giveUp).Microseconds())
	s.lastText = ""
	s.tell(PhaseDraining, extend)
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	forced, overdue := s.forced, (<-chan time.Time)(nil)
	ended := ctx.Done()
	for {
		select {
		case err := <-drained:
			return s.stopped(err, began)
		case <-tick.C:
			s.lastText = ""
			s.tell(PhaseDraining, extend)
		case <-forced:
			forced = nil
			slog.Warn("asked to stop a second time: closing what is left at once", Event(EventStopForced))
			s.before.stop()
			cancel()
		case <-ended:
			ended = nil
			overdue = time.After(giveUp)
		case <-overdue:
			return s.stopped(fmt.Errorf("the engine did not end within %v of being told to at once", giveUp), began)
		}
	}
}

func (s *supervisor) stopped(err error, began time.Time) error {
	took := time.Since(began).Round(time.Millisecond)
	if s.err == nil {
		s.state.remove()
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		slog.Error("service did not stop cleanly", "error", err, "took", took, Event(EventStopFailed))
		s.notify("STATUS=did not stop cleanly: " + oneLine(err))
		if s.err == nil {
			s.err = &ExitError{Code: ExitFailed}
		}
		return s.err
	}
	words := "service stopped"
	if s.after != nil {
		words = "the process from before the upgrade has stopped"
	}
	slog.Info(words, "took", took, Event(EventStopped))
	s.notify("STATUS=stopped")
	return s.err
}

func (s *supervisor) ended() bool {
	select {
	case <-s.eng.Done():
		return true
	default:
		return false
	}
}

// tell gives systemd and the state file the live counts, with what else systemd must hear.
// Without that, only what changed is told.
func (s *supervisor) tell(phase Phase, also string) {
	s.toldMu.Lock()
	s.told = toldState{s.eng, phase, s.lastReload}
	s.toldMu.Unlock()
	st := s.eng.Status()
	text := phase.text(st)
	if s.lastReload != nil && s.lastReload.Error != "" {
		text += "; last reload failed: " + s.lastReload.Error
	}
	if b := s.before.state(); b != nil {
		text += "; " + b.text()
	}
	if also == "" && text == s.lastText && st.Advice == s.lastAdvice {
		return
	}
	s.lastText, s.lastAdvice = text, st.Advice
	s.notify(also + "STATUS=" + strings.ReplaceAll(text, "\n", " "))
	if !s.state.write(s.stateOf(phase, st, s.lastReload)) {
		s.lastText = "" // tell it again
	}
}

// tellFailure leaves the reason where `status` finds it: with systemd, or in the state file.
func (s *supervisor) tellFailure(what string, err error) {
	if s.before != nil {
		s.before.fail(err)
	}
	s.notify("STATUS=" + what + ": " + oneLine(err))
	s.state.write(State{Name: s.opts.Name, PID: os.Getpid(), Phase: PhaseFailed, Updated: time.Now(), Error: oneLine(err)})
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

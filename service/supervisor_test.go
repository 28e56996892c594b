package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// fakeEngine does what a test tells it to. Its hooks run on the supervisor's goroutines.
type fakeEngine struct {
	mu      sync.Mutex
	status  Status
	startFn func(context.Context) error
	reload  func(context.Context) ([]string, error) // which settings need a restart
	check   func(context.Context) error
	drain   func(context.Context) error
	reopens int
	err     error
	done    chan struct{}
	once    sync.Once
}

func newFakeEngine() *fakeEngine {
	return &fakeEngine{done: make(chan struct{}), status: Status{Listening: []string{"127.0.0.1:5673"}, Upstream: "broker:5672", DrainTimeout: 20 * time.Second}}
}

func (e *fakeEngine) Start(ctx context.Context, _ []net.Listener) error {
	if e.startFn != nil {
		return e.startFn(ctx)
	}
	return nil
}
func (e *fakeEngine) Addresses() []string       { return nil }
func (e *fakeEngine) Listeners() []net.Listener { return nil }
func (e *fakeEngine) Reload(ctx context.Context) (r Reloaded, err error) {
	if e.reload != nil {
		r.NeedRestart, err = e.reload(ctx)
	}
	return r, err
}
func (e *fakeEngine) Drain(ctx context.Context) (err error) {
	if e.drain != nil {
		err = e.drain(ctx)
	}
	e.end(nil)
	return err
}
func (e *fakeEngine) Check(ctx context.Context) error {
	if e.check != nil {
		return e.check(ctx)
	}
	return nil
}
func (e *fakeEngine) Status() Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.status
}
func (e *fakeEngine) setClients(n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.status.Clients = n
}
func (e *fakeEngine) Done() <-chan struct{} { return e.done }
func (e *fakeEngine) Err() error            { return e.err }
func (e *fakeEngine) ReopenLog() error      { e.reopens++; return nil }
func (e *fakeEngine) end(err error)         { e.once.Do(func() { e.err = err; close(e.done) }) }

// told collects what systemd hears.
type told struct {
	mu    sync.Mutex
	lines []string
}

func (t *told) notify(state string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, strings.Split(strings.TrimSpace(state), "\n")...)
}

// take gives what was told since the last time.
func (t *told) take() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := t.lines
	t.lines = nil
	return lines
}

func (t *told) count(line string) (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range t.lines {
		if strings.HasPrefix(l, line) {
			n++
		}
	}
	return n
}

func testSupervisor(e Engine) (*supervisor, *told) {
	s := newSupervisor(Options{Name: "test", Open: func(context.Context) (Engine, error) { return e, nil }})
	t := &told{}
	s.notify = t.notify
	return s, t
}

// runService starts the service and serves; the result comes when it has stopped.
func runService(t *testing.T, s *supervisor) <-chan error {
	t.Helper()
	if err := s.start(); err != nil {
		t.Fatalf("start: %v", err)
	}
	result := make(chan error, 1)
	go func() { s.serve(); result <- s.stop() }()
	return result
}

func wantLines(t *testing.T, got []string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !slices.ContainsFunc(got, func(l string) bool { return strings.HasPrefix(l, w) }) {
			t.Errorf("systemd heard %q, want a line %q", got, w)
		}
	}
}

func TestReadyOnlyOnceTheEngineListens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEngine()
		bound := make(chan struct{})
		e.startFn = func(context.Context) error { <-bound; return nil }
		s, told := testSupervisor(e)
		started := make(chan error, 1)
		go func() { started <- s.start() }()
		time.Sleep(10 * time.Second) // of the bubble's clock
		if n := told.count("READY=1"); n != 0 {
			t.Fatal("ready before the listeners were bound")
		}
		close(bound)
		if err := <-started; err != nil {
			t.Fatal(err)
		}
		wantLines(t, told.take(), "READY=1", "STATUS=serving 0 clients over 0 upstreams")
	})
}

func TestAStopEndsAStartThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEngine()
		e.startFn = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		s, _ := testSupervisor(e)
		time.AfterFunc(time.Second, s.requestStop)
		if err := s.start(); ExitCode(err) != ExitFailed {
			t.Errorf("got %v, want an exit with %d", err, ExitFailed)
		}
	})
}

func TestStatusIsToldWhenItChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEngine()
		s, told := testSupervisor(e)
		result := runService(t, s)
		told.take()
		time.Sleep(10 * time.Second)
		if got := told.take(); len(got) != 0 {
			t.Errorf("nothing changed, and systemd heard %q", got)
		}
		e.setClients(1)
		time.Sleep(2 * statusInterval)
		wantLines(t, told.take(), "STATUS=serving 1 client over 0 upstreams")
		s.requestStop()
		if err := <-result; err != nil {
			t.Errorf("stop: %v", err)
		}
		wantLines(t, told.take(), "STOPPING=1", "EXTEND_TIMEOUT_USEC=", "STATUS=stopped")
	})
}

func TestReloadTellsItsOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		e := newFakeEngine()
		outcome := errors.New("listener.port is 0, allowed is 1 to 65535")
		var need []string
		e.reload = func(context.Context) ([]string, error) {
			time.Sleep(time.Second)
			return need, outcome
		}
		s, told := testSupervisor(e)
		s.state.path = stateFileIn(dir)
		result := runService(t, s)
		told.take()

		before, err := ReadState(s.state.path)
		if err != nil {
			t.Fatal(err)
		}
		s.requestReload()
		_, err = awaitReload(t.Context(), before, func() (State, error) { return ReadState(s.state.path) })
		if err == nil || !strings.Contains(err.Error(), outcome.Error()) {
			t.Errorf("of a reload that fails: got %v, want %v in it", err, outcome)
		}
		wantLines(t, told.take(), "RELOADING=1", "READY=1", "STATUS=serving 0 clients over 0 upstreams; last reload failed: listener.port")

		outcome, need = nil, []string{"listener 2", "http.port"}
		before, _ = ReadState(s.state.path)
		s.requestReload()
		r, err := awaitReload(t.Context(), before, func() (State, error) { return ReadState(s.state.path) })
		if err != nil || r.Count != 2 || !slices.Equal(r.NeedRestart, need) {
			t.Errorf("of the second reload: got %+v, %v", r, err)
		}
		if got := r.text(); !strings.HasSuffix(got, "a restart is needed for: listener 2, http.port") {
			t.Errorf("status says %q", got)
		}
		s.requestStop()
		if err := <-result; err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(s.state.path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the state file outlives the service: %v", err)
		}
	})
}

func TestReloadsDoNotOverlapAndNoneIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEngine()
		running, most, reloads := 0, 0, 0
		e.reload = func(context.Context) ([]string, error) {
			running++
			most = max(most, running)
			time.Sleep(time.Second)
			running--
			reloads++
			return nil, nil
		}
		s, _ := testSupervisor(e)
		result := runService(t, s)
		s.requestReload()
		time.Sleep(500 * time.Millisecond)
		for range 5 { // while one is at work: one more must follow
			s.requestReload()
			synctest.Wait()
		}
		time.Sleep(5 * time.Second)
		s.requestStop()
		<-result
		if most != 1 || reloads != 2 {
			t.Errorf("got %d reloads, %d at a time; want 2, 1 at a time", reloads, most)
		}
	})
}

// Who asks through the host hears of a reload that began after it asked, however many ask.
func TestReloadByTheHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEngine()
		n := 0
		e.reload = func(context.Context) ([]string, error) {
			n++
			mine := n
			time.Sleep(time.Second)
			if mine == 3 {
				return nil, errors.New("nonsense in a.toml")
			}
			return []string{"reload " + strconv.Itoa(mine)}, nil
		}
		s, _ := testSupervisor(e)
		if st := s.State(); st.Phase != PhaseStarting {
			t.Errorf("before the start: %+v", st)
		}
		result := runService(t, s)
		outcomes := make(chan string, 9)
		ask := func() {
			go func() {
				r, err := s.Reload(t.Context())
				outcomes <- fmt.Sprint(r.NeedRestart, r.Error, err)
			}()
			synctest.Wait()
		}
		ask()
		if st := s.State(); st.Phase != PhaseReloading || st.PID != os.Getpid() || st.Upstream != "broker:5672" {
			t.Errorf("while it reloads: %+v", st)
		}
		ask()
		ask()
		for _, want := range []string{"[reload 1]<nil>", "[reload 2]<nil>", "[reload 2]<nil>"} {
			if got := <-outcomes; got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		}
		ask()
		if got := <-outcomes; got != "[]nonsense in a.toml<nil>" {
			t.Errorf("of one that fails: %s", got)
		}
		if st := s.State(); st.Phase != PhaseServing || st.Reload == nil || st.Reload.Count != 3 {
			t.Errorf("afterwards: %+v", st)
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Reload(gone); !errors.Is(err, context.Canceled) {
			t.Errorf("who has gone hears %v", err)
		}
		ask() // while it stops
		s.requestStop()
		if got := <-outcomes; !strings.HasSuffix(got, errStopping.Error()) {
			t.Errorf("at the end: %s", got)
		}
		<-result
		if _, err := s.Reload(t.Context()); !errors.Is(err, errStopping) {
			t.Errorf("after the end: %v", err)
		}
	})
}

func TestAStopEndsAReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEngine()
		reloading := false
		e.reload = func(ctx context.Context) ([]string, error) {
			reloading = true
			<-ctx.Done()
			reloading = false
			return nil, ctx.Err()
		}
		e.drain = func(context.Context) error {
			if reloading {
				t.Error("drained while a reload was at work")
			}
			return nil
		}
		s, _ := testSupervisor(e)
		result := runService(t, s)
		s.requestReload()
		synctest.Wait()
		s.requestStop()
		if err := <-result; err != nil {
			t.Error(err)
		}
	})
}

func TestDrainGoesOnAsLongAsItMay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEngine()
		e.status.DrainTimeout = 10 * time.Minute
		e.drain = func(ctx context.Context) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(10 * time.Minute):
				return nil
			}
		}
		s, told := testSupervisor(e)
		result := runService(t, s)
		began := time.Now()
		s.requestStop()
		if err := <-result; err != nil {
			t.Errorf("stop: %v", err)
		}
		if took := time.Since(began); took != 10*time.Minute {
			t.Errorf("the drain was cut off after %v", took)
		}
		// systemd gives up (drainGrace + giveUp) after the last extension.
		if n := told.count("EXTEND_TIMEOUT_USEC=15000000"); n < 599 {
			t.Errorf("systemd was asked for more time %d times in 10 minutes", n)
		}
	})
}

func TestASecondStopEndsTheDrainAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEngine()
		e.drain = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		s, _ := testSupervisor(e)
		result := runService(t, s)
		began := time.Now()
		s.requestStop()
		time.Sleep(3 * time.Second)
		s.requestStop()
		if err := <-result; err != nil {
			t.Errorf("asked to end at once: got %v, want no error", err)
		}
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("it took %v, want 3s", took)
		}
	})
}

// timeout(1) and others signal the process and then its group: that is one request.
func TestTwoRequestsAtOnceAreOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEngine()
		e.drain = func(ctx context.Context) error {
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Second):
			}
			return ctx.Err()
		}
		s, _ := testSupervisor(e)
		result := runService(t, s)
		began := time.Now()
		s.requestStop()
		time.Sleep(10 * time.Millisecond)
		s.requestStop()
		if err := <-result; err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("it took %v, want the drain's 10s", took)
		}
	})
}

func TestAnEngineThatDoesNotDrainIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEngine()
		hang := make(chan struct{})
		e.drain = func(context.Context) error { <-hang; return nil }
		s, _ := testSupervisor(e)
		result := runService(t, s)
		began := time.Now()
		s.requestStop()
		if err := <-result; ExitCode(err) != ExitFailed {
			t.Errorf("got %v, want exit code %d", err, ExitFailed)
		}
		if took, want := time.Since(began), e.status.DrainTimeout+drainGrace+giveUp; took != want {
			t.Errorf("given up after %v, want %v", took, want)
		}
		close(hang)
	})
}

func TestWatchdogIsFedByTheSelfCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEngine()
		var sick atomic.Bool
		e.check = func(ctx context.Context) error {
			if sick.Load() {
				<-ctx.Done() // no answer
				return ctx.Err()
			}
			return nil
		}
		s, told := testSupervisor(e)
		s.watchdog = 30 * time.Second
		result := runService(t, s)
		time.Sleep(61 * time.Second)
		if n := told.count("WATCHDOG=1"); n != 7 {
			t.Errorf("systemd heard %d pings in 61 s, want 7", n)
		}
		sick.Store(true)
		time.Sleep(11 * time.Second) // a check may be at work
		told.take()
		time.Sleep(60 * time.Second)
		if n := told.count("WATCHDOG=1"); n != 0 {
			t.Errorf("systemd heard %d pings of an engine that does not answer", n)
		}
		sick.Store(false)
		time.Sleep(25 * time.Second)
		if n := told.count("WATCHDOG=1"); n == 0 {
			t.Error("systemd heard nothing of an engine that is well again")
		}
		s.requestStop()
		<-result
	})
}

func TestWhereNobodyWatchesItEndsItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEngine()
		e.check = func(context.Context) error { return errors.New("no answer") }
		s, _ := testSupervisor(e)
		s.selfEnd = true
		began := time.Now()
		if err := <-runService(t, s); ExitCode(err) != ExitFailed {
			t.Errorf("got %v, want exit code %d", err, ExitFailed)
		}
		if took, want := time.Since(began), selfCheckFailures*selfCheckInterval; took != want {
			t.Errorf("ended after %v, want %v", took, want)
		}
	})
}

func TestAnEngineThatEndsByItselfIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEngine()
		s, told := testSupervisor(e)
		result := runService(t, s)
		e.end(errors.New("accept: too many open files"))
		if err := <-result; ExitCode(err) != ExitFailed {
			t.Errorf("got %v, want exit code %d", err, ExitFailed)
		}
		wantLines(t, told.take(), "STATUS=failed: accept: too many open files")
	})
}

func TestAWrongConfigurationIs78AndLeavesItsReason(t *testing.T) {
	path := stateFileIn(t.TempDir())
	s := newSupervisor(Options{Open: func(context.Context) (Engine, error) { return nil, errors.New("a.toml:3: nonsense") }, StateFile: path})
	told := &told{}
	s.notify = told.notify
	err := s.start()
	if ExitCode(err) != ExitConfig || !strings.Contains(err.Error(), "a.toml:3: nonsense") {
		t.Errorf("got %v with exit code %d, want the reason and %d", err, ExitCode(err), ExitConfig)
	}
	wantLines(t, told.take(), "STATUS=not started: a.toml:3: nonsense")
	if st, err := ReadState(path); err != nil || st.Phase != PhaseFailed || st.Error != "a.toml:3: nonsense" {
		t.Errorf("the state file tells %+v, %v", st, err)
	}
}

func TestRunDrainsWhenItsContextEnds(t *testing.T) {
	e := newFakeEngine()
	ctx, cancel := context.WithCancel(t.Context())
	err := Run(ctx, Options{Name: "test", Open: func(context.Context) (Engine, error) { return e, nil }, Ready: func(Engine) { cancel() }})
	if err != nil {
		t.Errorf("got %v", err)
	}
	select {
	case <-e.done:
	default:
		t.Error("it was not drained")
	}
}

func TestSystemdIsToldOverItsSocket(t *testing.T) {
	dir := t.TempDir()
	sock, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Skip("SKIPPED LOUDLY: no UNIX datagram sockets here: ", err)
	}
	defer sock.Close()
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	t.Setenv("RUNTIME_DIRECTORY", dir+":/elsewhere")
	s := newSupervisor(Options{Name: "test", Open: func(context.Context) (Engine, error) { return newFakeEngine(), nil }})
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	var all string
	for !strings.Contains(all, "READY=1") {
		if err := sock.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := sock.Read(buf)
		if err != nil {
			t.Fatalf("after %q: %v", all, err)
		}
		all += string(buf[:n]) + "\n"
	}
	if st, err := ReadState(stateFileIn(dir)); err != nil || st.Phase != PhaseServing || st.PID != os.Getpid() {
		t.Errorf("the state in the runtime directory is %+v, %v", st, err)
	}
}

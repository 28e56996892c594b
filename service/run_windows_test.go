package service

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/windows/svc"
)

// scm plays the service control manager toward a handler.
type scm struct {
	requests chan svc.ChangeRequest
	changes  chan svc.Status
	ended    chan uint32 // the exit code

	mu   sync.Mutex
	seen []svc.Status
}

func runHandler(s *supervisor) *scm {
	m := &scm{requests: make(chan svc.ChangeRequest), changes: make(chan svc.Status), ended: make(chan uint32, 1)}
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		for st := range m.changes {
			m.mu.Lock()
			m.seen = append(m.seen, st)
			m.mu.Unlock()
		}
	}()
	go func() {
		_, code := (&handler{s: s}).Execute(nil, m.requests, m.changes)
		close(m.changes)
		<-heard
		m.ended <- code
	}()
	return m
}

// take gives what the handler reported since the last time.
func (m *scm) take() []svc.Status {
	synctest.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	seen := m.seen
	m.seen = nil
	return seen
}

// interrogate gives the handler's answer.
func (m *scm) interrogate(t *testing.T) svc.Status {
	t.Helper()
	m.take()
	m.requests <- svc.ChangeRequest{Cmd: svc.Interrogate}
	seen := m.take()
	if len(seen) != 1 {
		t.Fatalf("Interrogate was answered %d times: %v", len(seen), seen)
	}
	return seen[0]
}

// wantRising checks that all are of a state, with checkpoints that rise and a wait hint.
func wantRising(t *testing.T, seen []svc.Status, state svc.State, atLeast int) {
	t.Helper()
	if len(seen) < atLeast {
		t.Fatalf("got %d reports, want at least %d: %v", len(seen), atLeast, seen)
	}
	for i, st := range seen {
		if st.State != state || st.WaitHint != 10000 || i > 0 && st.CheckPoint <= seen[i-1].CheckPoint {
			t.Fatalf("report %d is %+v, want state %d, a wait hint of 10 s and a checkpoint that rises: %v", i, st, state, seen)
		}
	}
}

func TestHandlerReportsASlowStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEngine()
		e.startFn = func(context.Context) error { time.Sleep(5500 * time.Millisecond); return nil }
		s, _ := testSupervisor(e)
		m := runHandler(s)
		time.Sleep(5200 * time.Millisecond)
		wantRising(t, m.take(), svc.StartPending, 6)
		if st := m.interrogate(t); st.State != svc.StartPending {
			t.Errorf("interrogated while it starts: got %+v", st)
		}
		time.Sleep(time.Second)
		seen := m.take()
		if last := seen[len(seen)-1]; last.State != svc.Running || last.Accepts != accepted {
			t.Errorf("started: got %+v, want running, and %v accepted", last, accepted)
		}
		m.requests <- svc.ChangeRequest{Cmd: svc.Stop}
		if code := <-m.ended; code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
}

func TestHandlerTakesEveryControl(t *testing.T) {
	for _, stop := range []svc.Cmd{svc.Stop, svc.Shutdown, svc.PreShutdown} {
		synctest.Test(t, func(t *testing.T) {
			e := newFakeEngine()
			reloads := make(chan struct{}, 1)
			e.reload = func(context.Context) ([]string, error) { reloads <- struct{}{}; return nil, nil }
			e.drain = func(context.Context) error { time.Sleep(5500 * time.Millisecond); return nil }
			s, _ := testSupervisor(e)
			m := runHandler(s)
			synctest.Wait()
			if st := m.interrogate(t); st.State != svc.Running {
				t.Errorf("interrogated while it runs: got %+v", st)
			}
			m.requests <- svc.ChangeRequest{Cmd: svc.ParamChange}
			<-reloads
			m.take()
			m.requests <- svc.ChangeRequest{Cmd: stop}
			time.Sleep(5200 * time.Millisecond)
			wantRising(t, m.take(), svc.StopPending, 6)
			if st := m.interrogate(t); st.State != svc.StopPending {
				t.Errorf("interrogated while it drains: got %+v", st)
			}
			if code := <-m.ended; code != 0 {
				t.Errorf("control %d: exit code %d", stop, code)
			}
		})
	}
}

func TestHandlerEndsWithTheErrorsCode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSupervisor(Options{Name: "amqproxysvc-test", Open: func(context.Context) (Engine, error) { return nil, errors.New("nonsense") }})
		if code := <-runHandler(s).ended; code != ExitConfig {
			t.Errorf("a wrong configuration: exit code %d, want %d", code, ExitConfig)
		}
		e := newFakeEngine()
		s, _ = testSupervisor(e)
		m := runHandler(s)
		synctest.Wait()
		e.end(errors.New("accept: broken"))
		if code := <-m.ended; code != ExitFailed {
			t.Errorf("an engine that ends by itself: exit code %d, want %d", code, ExitFailed)
		}
	})
}

func TestAccessListsAreReadByWindows(t *testing.T) {
	sid := serviceSID("amqproxysvc")
	for _, list := range []string{sddlConfigDir("", sid), sddlWritable(sid), sddlStateDir(sid)} {
		dir, err := os.MkdirTemp("", "amqproxysvc") // Wine cannot clean up what t.TempDir makes
		if err != nil {
			t.Fatal(err)
		}
		if err := setAccessList(dir, list); err != nil {
			t.Errorf("%s: %v", list, err)
		}
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	}
}

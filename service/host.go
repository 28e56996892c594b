// What a running engine may ask of what carries it: a reload with its outcome, and the state
// as the state file has it. The admin channel answers `reload` and `status` from here.

package service

import (
	"context"
	"errors"
	"os"
	"time"
)

// Host carries an engine.
type Host interface {
	// Reload has the settings read anew and gives the outcome, an error of the settings in
	// it, of a reload that began after it was asked. The error says why there is none.
	Reload(ctx context.Context) (ReloadState, error)
	// Upgrade has a new process of the program on the disk take over, whose number it gives; the error
	// says why it does not: then nothing has changed.
	Upgrade(ctx context.Context) (pid int, err error)
	// State is what the state file would hold now.
	State() State
	// Before is the process from before an upgrade while it serves, nil: there is none.
	Before() *Before
}

// ErrTakenOver is the error of what was asked of a process whose place another one took meanwhile.
var ErrTakenOver = errors.New("a new process of the program has taken over meanwhile: ask that one")

// Reloaded is what a reload came to.
type Reloaded struct {
	// Changed are the settings that have another value than before, those that NeedRestart
	// included, which take effect after one.
	Changed, NeedRestart []string
	// Warnings are of what is unwise in the settings or not used.
	Warnings []string
}

var errStopping = errors.New("the service is stopping")

// Reload is for any goroutine.
func (s *supervisor) Reload(ctx context.Context) (ReloadState, error) {
	outcome := make(chan ReloadState, 1)
	select {
	case s.asked <- outcome:
	case <-s.served:
		return ReloadState{}, s.unserved()
	case <-ctx.Done():
		return ReloadState{}, ctx.Err()
	}
	select {
	case r := <-outcome:
		return r, nil
	case <-s.served:
	case <-ctx.Done():
		return ReloadState{}, ctx.Err()
	}
	select {
	case r := <-outcome: // it was done just before
		return r, nil
	default:
		return ReloadState{}, s.unserved()
	}
}

// unserved is why nothing more is done, once served is closed.
func (s *supervisor) unserved() error {
	if s.after != nil {
		return ErrTakenOver
	}
	return errStopping
}

// Before is for any goroutine.
func (s *supervisor) Before() *Before { return s.before.state() }

// State is for any goroutine.
func (s *supervisor) State() State {
	s.toldMu.Lock()
	eng, phase, reload := s.told.eng, s.told.phase, s.told.reload
	s.toldMu.Unlock()
	if eng == nil {
		return State{Name: s.opts.Name, PID: os.Getpid(), Phase: PhaseStarting, Updated: time.Now()}
	}
	return s.stateOf(phase, eng.Status(), reload)
}

func (s *supervisor) stateOf(phase Phase, st Status, reload *ReloadState) State {
	return State{Name: s.opts.Name, PID: os.Getpid(), Phase: phase, Clients: st.Clients, Upstreams: st.Upstreams,
		Listening: st.Listening, Upstream: st.Upstream, Routes: st.Routes, Broker: &st.Broker, Advice: st.Advice, Since: st.Since, Updated: time.Now(), Reload: reload,
		Before: s.before.state()}
}

// toldState is what State needs of what the supervisor's goroutine owns.
type toldState struct {
	eng    Engine
	phase  Phase
	reload *ReloadState // never written to again
}

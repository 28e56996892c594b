// Under the Windows service control manager (SCM), over the same start and stop as
// everywhere. kardianos/service's own handler has no checkpoints, no PreShutdown, no
// ParamChange and no error at run time; so this one speaks to the SCM itself.

package service

import (
	"errors"
	"log/slog"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/eventlog"
)

const (
	// accepted while the service runs. Interrogate always comes.
	accepted = svc.AcceptStop | svc.AcceptShutdown | svc.AcceptPreShutdown | svc.AcceptParamChange
	// checkpointInterval is how often a start or stop that goes on says so.
	checkpointInterval = time.Second
	// waitHint is what the SCM allows until the next checkpoint; several may be late.
	waitHint = 10 * time.Second
)

// run tries the SCM at once when it is meant to be there: asking whether this is a service
// costs start time, and gets it wrong under Wine. Without one it is a console program.
func (s *supervisor) run() error {
	if s.opts.Managed {
		s.selfEnd = true
		if s.state.path == "" {
			s.state.path = DefaultStateFile(s.opts.Name)
		}
		err := svc.Run(s.opts.Name, &handler{s: s})
		if !errors.Is(err, windows.ERROR_FAILED_SERVICE_CONTROLLER_CONNECT) {
			if err == nil {
				err = s.err
			}
			return err
		}
		s.selfEnd, s.state.path = false, s.opts.StateFile // no service after all
	}
	return s.runConsole()
}

func (s *supervisor) runConsole() error {
	defer onSignals(map[os.Signal]func(){os.Interrupt: s.requestStop, syscall.SIGTERM: s.requestStop})()

	p := program{s}
	if err := p.Start(nil); err != nil {
		return err
	}
	s.serve()
	return p.Stop(nil)
}

// handler is the SCM's view of the supervisor. Execute's goroutine does nothing that can
// take long, so that every control is answered while start, serve and stop run beside it.
type handler struct {
	s      *supervisor
	status svc.Status
}

// Execute implements svc.Handler. The exit code is specific to the service: ExitFailed, for
// which the recovery actions restart it, or ExitConfig.
func (h *handler) Execute(_ []string, requests <-chan svc.ChangeRequest, changes chan<- svc.Status) (bool, uint32) {
	s := h.s
	p := program{s}

	if err := h.during(svc.StartPending, func() error { return p.Start(nil) }, requests, changes); err != nil {
		h.reportStart(err)
		return h.exit(err)
	}

	h.status = svc.Status{State: svc.Running, Accepts: accepted}
	changes <- h.status
	served := make(chan struct{})
	go func() { s.serve(); close(served) }()
	for running := true; running; {
		select {
		case r := <-requests:
			switch r.Cmd {
			case svc.Stop, svc.Shutdown, svc.PreShutdown:
				slog.Debug("the service control manager asks to stop", "control", r.Cmd)
				s.requestStop()
				h.pend(svc.StopPending, changes) // at once; serve may take a moment to return
			case svc.ParamChange:
				s.requestReload()
				changes <- h.status
			case svc.Interrogate:
				changes <- h.status
			}
		case <-served:
			running = false
		}
	}

	err := h.during(svc.StopPending, func() error { return p.Stop(nil) }, requests, changes)
	return h.exit(err)
}

// during runs a step beside the control loop: a checkpoint goes up every second, and every
// Interrogate is answered, until the step has ended.
func (h *handler) during(state svc.State, step func() error, requests <-chan svc.ChangeRequest, changes chan<- svc.Status) error {
	done := make(chan error, 1)
	go func() { done <- step() }()
	tick := time.NewTicker(checkpointInterval)
	defer tick.Stop()
	h.pend(state, changes)
	for {
		select {
		case err := <-done:
			return err
		case <-tick.C:
			h.pend(state, changes)
		case r := <-requests:
			switch r.Cmd {
			case svc.Stop, svc.Shutdown, svc.PreShutdown:
				h.s.requestStop() // a machine that goes down does not wait for a start
			}
			changes <- h.status
		}
	}
}

// pend tells the SCM a pending state: its first report, or the next checkpoint of it.
func (h *handler) pend(state svc.State, changes chan<- svc.Status) {
	if h.status.State != state {
		h.status = svc.Status{State: state}
	}
	h.status.CheckPoint++
	h.status.WaitHint = uint32(waitHint.Milliseconds())
	if state == svc.StartPending {
		h.status.Accepts = 0
	}
	changes <- h.status
}

// exit is what Execute returns for err. A wrong configuration that the recovery actions
// ran into again ends without an error, so that they stop: the reason was reported before.
func (h *handler) exit(err error) (bool, uint32) {
	if err == nil {
		return false, 0
	}
	code := ExitCode(err)
	if code == ExitConfig && h.restartedByRecovery() {
		h.report(EventNotRetried, "The configuration is still wrong. The service is not started again until an administrator does so.")
		return false, 0
	}
	return true, uint32(code)
}

func (h *handler) restartedByRecovery() bool {
	reason, err := svc.DynamicStartReason() // since Windows 8
	return err == nil && reason == svc.StartReasonRestartOnFailure
}

// reportStart tells the event log what happened before logging was set up.
func (h *handler) reportStart(err error) {
	var said *ExitError
	if errors.As(err, &said) && said.Err == nil {
		return // logged where it happened
	}
	id := EventStartFailed
	if errors.Is(err, ErrConfig) {
		id = EventConfigWrong
	}
	h.report(id, "The service "+h.s.opts.Name+" could not start: "+err.Error())
}

func (h *handler) report(id int, text string) {
	log, err := eventlog.Open(h.s.opts.Name)
	if err != nil {
		return // nowhere left to say it; the exit code still tells
	}
	defer ignore(log.Close)
	_ = log.Error(uint32(id), eventText(text))
}

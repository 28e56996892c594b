// Asking the Windows service control manager (SCM): start, stop, restart, reload, and what
// it knows of the service. kardianos/service's own stop loops without end when the service
// does not stop, so each step here has its bound.

package service

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/mgr"
)

const scmPoll = 100 * time.Millisecond

// Control asks the SCM to "start", "stop", "restart" or "reload" the service and waits
// until that is done or ctx ends; the service goes on with it in that case.
func Control(ctx context.Context, name, action string) error {
	if err := checkName(name); err != nil {
		return err
	}
	m, err := connect()
	if err != nil {
		return err
	}
	defer ignore(m.Disconnect)
	s, err := m.OpenService(name)
	if errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST) {
		return fmt.Errorf("%w: %s", ErrNotInstalled, name)
	}
	if err != nil {
		return fmt.Errorf("the service %s cannot be opened: %w", name, err)
	}
	defer ignore(s.Close)
	switch action {
	case "start":
		return startAndWait(ctx, s)
	case "stop":
		return stopAndWait(ctx, s)
	case "restart":
		if err := stopAndWait(ctx, s); err != nil {
			return err
		}
		return startAndWait(ctx, s)
	case "reload":
		return reloadAndWait(ctx, s)
	}
	return fmt.Errorf("%q is no action, want start, stop, restart or reload", action)
}

func startAndWait(ctx context.Context, s *mgr.Service) error {
	err := s.Start()
	// While the machine comes up the SCM may be busy starting others.
	for errors.Is(err, windows.ERROR_SERVICE_DATABASE_LOCKED) && ctx.Err() == nil {
		pause(ctx, scmPoll)
		err = s.Start()
	}
	if errors.Is(err, windows.ERROR_SERVICE_ALREADY_RUNNING) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s was not started: %w", s.Name, err)
	}
	st, err := await(ctx, s, svc.Running, svc.Stopped)
	if err != nil {
		return fmt.Errorf("%s: the start is not done yet: %w", s.Name, err)
	}
	if st.State == svc.Running {
		return nil
	}
	code := exitCodeOf(st)
	err = fmt.Errorf("the service %s did not start, exit code %s: %s", s.Name, exitText(code), failureReason(s.Name))
	if code == ExitConfig {
		err = ConfigError(err)
	}
	return err
}

func stopAndWait(ctx context.Context, s *mgr.Service) error {
	_, err := s.Control(svc.Stop)
	if errors.Is(err, windows.ERROR_SERVICE_NOT_ACTIVE) {
		return nil
	}
	// While it starts or already stops it takes no control; it is awaited all the same.
	if err != nil && !errors.Is(err, windows.ERROR_SERVICE_CANNOT_ACCEPT_CTRL) {
		return fmt.Errorf("%s was not asked to stop: %w", s.Name, err)
	}
	if _, err := await(ctx, s, svc.Stopped); err != nil {
		return fmt.Errorf("%s: the stop is not done yet, clients may still be finishing: %w", s.Name, err)
	}
	return nil
}

func reloadAndWait(ctx context.Context, s *mgr.Service) error {
	file := DefaultStateFile(s.Name)
	before, ferr := ReadState(file)
	st, err := s.Control(svc.ParamChange)
	if errors.Is(err, windows.ERROR_SERVICE_NOT_ACTIVE) {
		return fmt.Errorf("%s is stopped, only a running service can be reloaded", s.Name)
	}
	if err != nil {
		return fmt.Errorf("%s was not asked to reload: %w", s.Name, err)
	}
	if ferr != nil || before.PID != int(st.ProcessId) && st.ProcessId != 0 {
		return nil // it tells no outcome; the log does
	}
	_, err = awaitReload(ctx, before, func() (State, error) { return ReadState(file) })
	return err
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// await polls the SCM until the service is in one of the states.
func await(ctx context.Context, s *mgr.Service, states ...svc.State) (svc.Status, error) {
	tick := time.NewTicker(scmPoll)
	defer tick.Stop()
	for {
		st, err := s.Query()
		if err != nil {
			return st, err
		}
		for _, want := range states {
			if st.State == want {
				return st, nil
			}
		}
		select {
		case <-ctx.Done():
			return st, ctx.Err()
		case <-tick.C:
		}
	}
}

// stopOrKill leaves no process of the service. The SCM has a service stopped that says so: its process lasts a
// moment longer, and with it the files that it has open, which nobody can remove.
func stopOrKill(ctx context.Context, s *mgr.Service, timeout time.Duration) error {
	p, perr := processOf(s)
	if p != 0 {
		defer ignore(func() error { return windows.CloseHandle(p) })
	}
	soft, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := stopAndWait(soft, s)
	if err == nil && (p == 0 || ended(p)) || ctx.Err() != nil {
		return err
	}
	if p == 0 {
		return errors.Join(err, perr)
	}
	if terr := windows.TerminateProcess(p, ExitFailed); terr != nil && !ended(p) {
		return errors.Join(err, terr)
	}
	hard, cancel := context.WithTimeout(ctx, giveUp)
	defer cancel()
	_, err = await(hard, s, svc.Stopped)
	_ = ended(p)
	return err
}

// processOf is the service's process, 0 where it has none.
func processOf(s *mgr.Service) (windows.Handle, error) {
	st, err := s.Query()
	if err != nil || st.ProcessId == 0 {
		return 0, err
	}
	return windows.OpenProcess(windows.SYNCHRONIZE|windows.PROCESS_TERMINATE, false, st.ProcessId)
}

// ended waits, within bounds, for a process's end.
func ended(p windows.Handle) bool {
	event, err := windows.WaitForSingleObject(p, uint32(giveUp.Milliseconds()))
	return err == nil && event == windows.WAIT_OBJECT_0
}

// failureReason is what the service left behind when it failed.
func failureReason(name string) string {
	if st, err := ReadState(DefaultStateFile(name)); err == nil && st.Phase == PhaseFailed && st.Error != "" {
		return st.Error
	}
	return "the Application event log, source " + name + ", says why"
}

// exitCodeOf is the service's own exit code, or the system's for it.
func exitCodeOf(st svc.Status) int {
	if st.Win32ExitCode == uint32(windows.ERROR_SERVICE_SPECIFIC_ERROR) {
		return int(st.ServiceSpecificExitCode)
	}
	return int(st.Win32ExitCode)
}

// Query asks the SCM, and the running service, about the service. It needs no rights.
func Query(_ context.Context, name string) (Report, error) {
	r := Report{Name: name, Manager: "scm"}
	if err := checkName(name); err != nil {
		return r, err
	}
	name16, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return r, err
	}
	h, err := windows.OpenSCManager(nil, nil, windows.SC_MANAGER_CONNECT)
	if err != nil {
		return r, fmt.Errorf("the service control manager cannot be reached: %w", err)
	}
	defer ignore(func() error { return windows.CloseServiceHandle(h) })
	sh, err := windows.OpenService(h, name16, windows.SERVICE_QUERY_CONFIG|windows.SERVICE_QUERY_STATUS)
	if errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST) {
		r.State = StateNotInstalled
		return r, nil
	}
	if err != nil {
		return r, fmt.Errorf("the service %s cannot be opened: %w", name, err)
	}
	s := &mgr.Service{Name: name, Handle: sh}
	defer ignore(s.Close)
	st, err := s.Query()
	if err != nil {
		return r, err
	}
	if c, err := serviceConfig(s.Handle); err == nil {
		r.Enabled = c.StartType == windows.SERVICE_AUTO_START
	}
	r.PID, r.ExitCode = int(st.ProcessId), exitCodeOf(st)
	switch st.State {
	case svc.Running, svc.Paused, svc.PausePending, svc.ContinuePending:
		r.State = StateRunning
	case svc.StartPending:
		r.State = StateStarting
	case svc.StopPending:
		r.State = StateStopping
	default:
		r.PID = 0
		r.State = StateStopped
		if r.ExitCode == int(windows.ERROR_SERVICE_NEVER_STARTED) {
			r.ExitCode = 0
		}
		if r.ExitCode != 0 {
			r.State = StateFailed
			r.Reason = failureReason(name)
		}
	}
	r.ownWord(DefaultStateFile(name))
	if r.Service != nil {
		r.Since = r.Service.Since
	}
	return r, nil
}

// serviceConfig asks for the basic settings only: mgr's Config fails as a whole where one of
// the later ones is unknown.
func serviceConfig(h windows.Handle) (*windows.QUERY_SERVICE_CONFIG, error) {
	n := uint32(1024)
	for {
		b := make([]byte, n)
		c := (*windows.QUERY_SERVICE_CONFIG)(unsafe.Pointer(&b[0]))
		err := windows.QueryServiceConfig(h, c, n, &n)
		if err == nil || !errors.Is(err, windows.ERROR_INSUFFICIENT_BUFFER) || int(n) <= len(b) {
			return c, err
		}
	}
}

// ReloadProcess is how systemd's ExecReload asks; Windows has no such thing.
func ReloadProcess(context.Context, int, string) (ReloadState, error) {
	return ReloadState{}, errors.New("reload --pid is for systemd, on Windows use reload --name")
}

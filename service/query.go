// What `status` tells: the service manager's word on the process, and the running
// service's own on its clients.

package service

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"
)

// RunState is the service manager's word on a service.
type RunState string

const (
	StateRunning      RunState = "running"
	StateStarting     RunState = "starting"
	StateReloading    RunState = "reloading"
	StateStopping     RunState = "stopping"
	StateStopped      RunState = "stopped"
	StateFailed       RunState = "failed"
	StateNotInstalled RunState = "not installed"
)

// Report is all that is known of a service.
type Report struct {
	Name     string    `json:"name"`
	Manager  string    `json:"manager"` // systemd, scm, or none: the process alone was asked
	State    RunState  `json:"state"`
	PID      int       `json:"pid,omitempty"`
	Since    time.Time `json:"since,omitzero"` // of State
	ExitCode int       `json:"exit_code"`      // of the last process that ended by itself
	// Signal that killed it, 0: none; systemd only.
	Signal int    `json:"signal,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Result is systemd's word on how the last process ended, as "exit-code", "watchdog",
	// "oom-kill"; empty while it runs.
	Result string `json:"result,omitempty"`
	// Enabled: starts when the machine does.
	Enabled bool `json:"enabled"`
	// Restarts after failures, since the service was last started by hand; systemd only.
	Restarts int `json:"restarts"`
	// Service is the running service's own word; nil when it gave none.
	Service *State `json:"service,omitempty"`
}

const managerNone = "none"

// ReportOfProcess is what is known of a process that was asked itself.
func ReportOfProcess(st State) Report {
	r := Report{Name: st.Name, Manager: managerNone, State: StateRunning, PID: st.PID, Since: st.Since, Service: &st}
	switch st.Phase {
	case PhaseStarting:
		r.State = StateStarting
	case PhaseReloading:
		r.State = StateReloading
	case PhaseDraining:
		r.State = StateStopping
	}
	return r
}

// ExitCode is what `status` exits with, as the LSB asks: 0 running, 3 not running,
// 4 unknown.
func (r Report) LSBCode() int {
	switch r.State {
	case StateRunning, StateReloading:
		return 0
	case StateNotInstalled:
		return 4
	}
	return 3
}

// Print writes the report for a reader. now is the time to count from.
func (r Report) Print(w io.Writer, now time.Time) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "  %-10s %s\n", name, fmt.Sprintf(format, args...))
	}
	fmt.Fprintf(w, "%s: %s", r.Name, r.State)
	if r.PID != 0 {
		fmt.Fprintf(w, ", pid %d", r.PID)
	}
	if !r.Since.IsZero() {
		fmt.Fprintf(w, ", since %s (%s)", r.Since.Local().Format(time.DateTime), now.Sub(r.Since).Round(time.Second))
	}
	fmt.Fprintln(w)
	if r.State == StateNotInstalled {
		return
	}
	// While a process starts, systemd no longer has what the one before ended with.
	if ended := r.ExitCode+r.Signal != 0; r.State == StateFailed || ended && (r.State == StateStopped || r.State == StateStarting) {
		if r.Signal != 0 {
			line("killed", "by signal %d%s", r.Signal, signalName(r.Signal))
		} else {
			line("exit code", "%s", exitText(r.ExitCode))
		}
	}
	if r.Reason != "" {
		line("reason", "%s", r.Reason)
	}
	if s := r.Service; s != nil {
		line("clients", "%d", s.Clients)
		line("upstreams", "%d", s.Upstreams)
		line("listening", "%s", strings.Join(s.Listening, " "))
		line("upstream", "%s", s.Upstream)
		for _, r := range s.Routes {
			line("route", "%s", r)
		}
		if b := s.Broker; b != nil {
			line("broker", "%s", cmp.Or(b.trouble(time.DateTime), "no trouble seen"))
		}
		if s.Advice > 0 {
			line("advice", "%s: amqproxysvc advise", Plural(s.Advice, "piece"))
		}
		if s.Phase == PhaseDraining {
			line("draining", "no new clients; those connected may finish")
		}
		if b := s.Before; b != nil {
			line("upgrade", "%s", b.text())
		}
		if l := s.Reload; l != nil {
			line("reload", "%s", l.text())
		}
	}
	switch {
	case r.Manager == managerNone:
	case r.Enabled:
		line("at boot", "yes")
	default:
		line("at boot", "no")
	}
	if r.Restarts > 0 {
		line("restarts", "%d after failures", r.Restarts)
	}
}

func (l ReloadState) text() string {
	at := l.At.Local().Format(time.DateTime)
	switch {
	case l.Error != "":
		return "failed at " + at + ", the settings from before are in force: " + l.Error
	}
	text := "done at " + at
	if len(l.NeedRestart) > 0 {
		text += "; a restart is needed for: " + strings.Join(l.NeedRestart, ", ")
	}
	if l.NoUpgrade != "" {
		text += "; the program on the disk, another one, did not take over: " + l.NoUpgrade
	}
	return text
}

// signalName is the name of the commoner ones.
func signalName(n int) string {
	if name := map[int]string{2: "INT", 3: "QUIT", 6: "ABRT", 7: "BUS", 9: "KILL", 11: "SEGV", 15: "TERM", 31: "SYS"}[n]; name != "" {
		return " (" + name + ")"
	}
	return ""
}

func exitText(code int) string {
	switch code {
	case ExitOK:
		return "0"
	case ExitUsage:
		return "64 (wrong command line)"
	case ExitConfig:
		return "78 (wrong configuration)"
	}
	return fmt.Sprint(code)
}

// ownWord adds the running service's state file to the report, if it is that process's.
func (r *Report) ownWord(path string) {
	if r.PID == 0 {
		return
	}
	if st, err := ReadState(path); err == nil && st.PID == r.PID {
		r.Service = &st
	}
}

// Asking systemd: start, stop, restart, reload, and what it knows of the service.

package service

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// systemctl runs it and makes its words the error's.
func systemctl(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "systemctl", append([]string{"--no-ask-password"}, args...)...).CombinedOutput()
	if ctx.Err() != nil {
		return fmt.Errorf("systemctl %s: %w", strings.Join(args, " "), ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// Control asks systemd to "start", "stop", "restart" or "reload" the service and waits
// until that is done or ctx ends; systemd goes on with it in that case.
func Control(ctx context.Context, name, action string) error {
	if err := checkControlName(name); err != nil {
		return err
	}
	r, err := Query(ctx, name)
	if err != nil {
		return err
	}
	if r.State == StateNotInstalled {
		return fmt.Errorf("%w: %s", ErrNotInstalled, name)
	}
	if action == "reload" && r.PID == 0 {
		return fmt.Errorf("%s is %s, only a running service can be reloaded", name, r.State)
	}
	if action == "start" && r.State == StateFailed {
		_ = systemctl(ctx, "reset-failed", name+".service") // else the start limit may refuse
	}
	cerr := systemctl(ctx, action, name+".service")
	if cerr == nil {
		return nil
	}
	if os.Geteuid() != 0 && notAllowed.MatchString(cerr.Error()) {
		return needRoot(action)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: the %s is not done yet, systemd goes on with it: %w", name, action, ctx.Err())
	}
	if r, err := Query(ctx, name); err == nil {
		switch {
		case action == "reload":
			if st, err := ReadState(DefaultStateFile(name)); err == nil && st.Reload != nil && st.Reload.Error != "" && st.PID == r.PID {
				return fmt.Errorf("reload failed, the settings from before stay in force: %s", st.Reload.Error)
			}
			return fmt.Errorf("reload refused, the settings from before stay in force: %s", lastWords(ctx, name))
		case r.ExitCode == ExitConfig:
			return ConfigError(fmt.Errorf("the service %s did not %s: %s", name, action, orElse(r.Reason, lastWords(ctx, name))))
		case action != "stop":
			return fmt.Errorf("the service %s did not %s: %s", name, action, orElse(r.Reason, lastWords(ctx, name)))
		}
	}
	return cerr
}

// notAllowed is what systemctl says to those who may not.
var notAllowed = regexp.MustCompile(`(?i)access denied|authentication (is )?required|permission denied|not permitted`)

func orElse(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// lastWords is the last line that the service wrote to the journal.
func lastWords(ctx context.Context, name string) string {
	out, err := exec.CommandContext(ctx, "journalctl", "--quiet", "--no-pager", "--output=cat", "--lines=1", "--identifier=amqproxysvc", "--unit="+name+".service").Output()
	if words := strings.TrimSpace(string(out)); err == nil && words != "" {
		return strings.TrimPrefix(words, "amqproxysvc: ")
	}
	return "see journalctl -u " + name
}

// templateInstance is an instance of the packages' template unit.
var templateInstance = regexp.MustCompile(`^amqproxysvc@[A-Za-z0-9][A-Za-z0-9_.-]*$`)

func checkControlName(name string) error {
	if templateInstance.MatchString(name) {
		return nil
	}
	return checkName(name)
}

// Query asks systemd, and the running service, about the service.
func Query(ctx context.Context, name string) (Report, error) {
	r := Report{Name: name, Manager: "systemd"}
	if err := checkControlName(name); err != nil {
		return r, err
	}
	if err := needSystemd(); err != nil {
		return r, err
	}
	out, err := exec.CommandContext(ctx, "systemctl", "show", "--timestamp=unix", "--property=LoadState,ActiveState,SubState,MainPID,"+
		"ExecMainCode,ExecMainStatus,StatusText,UnitFileState,NRestarts,StateChangeTimestamp,Result", name+".service").Output()
	if err != nil {
		return r, fmt.Errorf("systemctl show %s: %w", name, err)
	}
	r.fromSystemd(parseProperties(string(out)))
	if r.State == StateStarting && r.PID != 0 && r.Restarts > 0 && r.Reason == "" {
		r.Reason = "its last words: " + lastWords(ctx, name)
	}
	r.ownWord(DefaultStateFile(name))
	return r, nil
}

func parseProperties(out string) map[string]string {
	props := make(map[string]string)
	for line := range strings.Lines(out) {
		if k, v, ok := strings.Cut(strings.TrimRight(line, "\n"), "="); ok {
			props[k] = v
		}
	}
	return props
}

// fromSystemd reads the properties of `systemctl show`.
func (r *Report) fromSystemd(p map[string]string) {
	number := func(key string) int {
		n, _ := strconv.Atoi(p[key]) // empty where systemd has none: 0
		return n
	}
	r.PID, r.ExitCode, r.Restarts = number("MainPID"), number("ExecMainStatus"), number("NRestarts")
	r.Enabled = strings.HasPrefix(p["UnitFileState"], "enabled")
	if sec, err := strconv.ParseInt(strings.TrimPrefix(p["StateChangeTimestamp"], "@"), 10, 64); err == nil && sec > 0 {
		r.Since = time.Unix(sec, 0)
	}
	switch p["ActiveState"] {
	case "active":
		r.State = StateRunning
	case "reloading":
		r.State = StateReloading
	case "activating":
		r.State = StateStarting
	case "deactivating":
		r.State = StateStopping
	case "failed":
		r.State = StateFailed
	default:
		r.State = StateStopped
		if p["LoadState"] == "not-found" {
			r.State = StateNotInstalled
			r.Since = time.Time{}
		}
	}
	// Of a process that was killed systemd's status is the signal.
	switch p["ExecMainCode"] {
	case "2", "3", "killed", "dumped": // CLD_KILLED, CLD_DUMPED
		r.Signal, r.ExitCode = r.ExitCode, 0
	}
	switch r.State {
	case StateFailed, StateStarting, StateStopped:
		r.Result = p["Result"]
		r.Reason = reasonOf(p["StatusText"], r)
	}
}

// reasonOf says why the last process ended: in its own words where it had any, for its last
// status may as well be that it served.
func reasonOf(status string, r *Report) string {
	switch r.Result {
	case "watchdog":
		return "it gave no sign of life and was killed by the watchdog"
	case "oom-kill":
		return "the kernel killed it for want of memory (oom-kill)"
	case "start-limit-hit":
		return "it was started too often in a short time, systemd has given up: amqproxysvc start"
	case "timeout":
		return "it took too long to start or stop and was killed"
	case "resources":
		return "systemd could not prepare it: see journalctl -u " + r.Name
	case "success":
		return ""
	}
	for _, own := range []string{"not started: ", "failed: ", "did not stop cleanly: "} {
		if words, ok := strings.CutPrefix(status, own); ok && r.Signal == 0 {
			return words
		}
	}
	switch r.Result {
	case "exit-code", "signal", "core-dump":
		return "" // the number says it
	}
	return r.Result
}

// ReloadProcess asks one process to reload, and waits until it has: what ExecReload does,
// where the service manager is already asking. A process that keeps no state file (one in
// the foreground) is only asked.
func ReloadProcess(ctx context.Context, pid int, stateFile string) (ReloadState, error) {
	if pid < 1 { // kill(2) takes these for many processes
		return ReloadState{}, fmt.Errorf("%d is not the number of a process", pid)
	}
	if stateFile == "" {
		if dir, _, _ := strings.Cut(os.Getenv("RUNTIME_DIRECTORY"), ":"); dir != "" {
			stateFile = stateFileIn(dir)
		}
	}
	dir := ""
	if stateFile != "" {
		dir = filepath.Dir(stateFile)
	}
	if !ownKind(ctx, pid, dir) {
		return ReloadState{}, fmt.Errorf("--pid: process %d is not of this program, or has gone: nothing was sent to it", pid)
	}
	before, err := ReadState(stateFile)
	watch := err == nil && before.PID == pid
	if err := unix.Kill(pid, unix.SIGHUP); err != nil {
		return ReloadState{}, fmt.Errorf("process %d could not be asked to reload: %w", pid, err)
	}
	if !watch {
		return ReloadState{}, nil
	}
	return awaitReload(ctx, before, func() (State, error) { return ReadState(stateFile) })
}

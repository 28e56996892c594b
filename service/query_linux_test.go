package service

import (
	"strings"
	"testing"
	"time"
)

func TestReportFromSystemd(t *testing.T) {
	for _, c := range []struct {
		props string
		state RunState
		lsb   int
		words []string
	}{
		{"LoadState=loaded\nActiveState=active\nSubState=running\nMainPID=42\nExecMainStatus=0\nNRestarts=0\nUnitFileState=enabled\nStateChangeTimestamp=@1700000000\nStatusText=serving 1 client\nResult=success",
			StateRunning, 0, []string{"x: running, pid 42, since ", "(1m40s)", "at boot    yes"}},
		{"LoadState=loaded\nActiveState=reloading\nMainPID=42\nUnitFileState=disabled", StateReloading, 0, []string{"reloading", "at boot    no"}},
		{"LoadState=loaded\nActiveState=failed\nSubState=failed\nMainPID=0\nExecMainStatus=78\nUnitFileState=enabled\nStatusText=not started: a.toml:3: nonsense\nResult=exit-code",
			StateFailed, 3, []string{"exit code  78 (wrong configuration)", "reason     a.toml:3: nonsense"}},
		{"LoadState=loaded\nActiveState=failed\nExecMainCode=1\nExecMainStatus=2\nResult=watchdog\nStatusText=serving 0 clients", StateFailed, 3, []string{"reason     it gave no sign of life and was killed by the watchdog"}},
		{"LoadState=loaded\nActiveState=activating\nSubState=auto-restart\nExecMainCode=2\nExecMainStatus=9\nNRestarts=1\nResult=signal\nStatusText=serving 0 clients over 0 upstreams",
			StateStarting, 3, []string{"killed     by signal 9 (KILL)"}},
		{"LoadState=loaded\nActiveState=failed\nExecMainCode=2\nExecMainStatus=9\nResult=oom-kill", StateFailed, 3, []string{"killed     by signal 9 (KILL)", "reason     the kernel killed it for want of memory"}},
		{"LoadState=loaded\nActiveState=failed\nExecMainCode=1\nExecMainStatus=1\nNRestarts=59\nResult=start-limit-hit\nStatusText=not started: port", StateFailed, 3, []string{"systemd has given up: amqproxysvc start"}},
		{"LoadState=loaded\nActiveState=activating\nSubState=auto-restart\nExecMainStatus=1\nNRestarts=3\nStatusText=not started: port\nResult=exit-code",
			StateStarting, 3, []string{"exit code  1", "reason     port", "restarts   3"}},
		{"LoadState=loaded\nActiveState=activating\nSubState=start\nMainPID=7\nExecMainStatus=0\nNRestarts=3\nStatusText=\nResult=success",
			StateStarting, 3, []string{"x: starting, pid 7\n  at boot    no\n  restarts   3"}}, // and no exit code 0
		{"LoadState=loaded\nActiveState=deactivating\nMainPID=42", StateStopping, 3, []string{"stopping, pid 42"}},
		{"LoadState=loaded\nActiveState=inactive\nMainPID=0\nExecMainStatus=0", StateStopped, 3, []string{"x: stopped"}},
		{"LoadState=not-found\nActiveState=inactive\nStateChangeTimestamp=", StateNotInstalled, 4, []string{"x: not installed"}},
	} {
		r := Report{Name: "x"}
		r.fromSystemd(parseProperties(c.props + "\n"))
		if r.State != c.state || r.LSBCode() != c.lsb {
			t.Errorf("%s: got %s with exit code %d, want %s with %d", c.props, r.State, r.LSBCode(), c.state, c.lsb)
		}
		var b strings.Builder
		r.Print(&b, time.Unix(1700000100, 0))
		if strings.Contains(b.String(), "serving") {
			t.Errorf("what it did when it was well is no reason:\n%s", b.String())
		}
		for _, w := range c.words {
			if !strings.Contains(b.String(), w) {
				t.Errorf("%q is not in what status says:\n%s", w, b.String())
			}
		}
	}
}

func TestDefaultPlaces(t *testing.T) {
	for name, want := range map[string]string{
		"amqproxysvc":    "/etc/amqproxysvc/amqproxysvc.toml",
		"amqproxysvc-eu": "/etc/amqproxysvc/amqproxysvc-eu.toml",
		"amqproxysvc@eu": "/etc/amqproxysvc/eu.toml",
	} {
		if got := DefaultConfig(name); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
		if got := DefaultStateFile(name); got != "/run/"+name+"/status.json" {
			t.Errorf("%s: its state is looked for in %s", name, got)
		}
	}
}

func TestProgramsThatTheSandboxHidesAreRefused(t *testing.T) {
	for exe, ok := range map[string]bool{"/usr/bin/a": true, "/opt/x/a": true, "/root/a": false, "/home/u/bin/a": false, "/tmp/a": false, "/rootfs/a": true} {
		if err := reachable(exe); (err == nil) != ok {
			t.Errorf("%s: got %v", exe, err)
		}
	}
}

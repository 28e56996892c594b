package service

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// SIGHUP ends a program that does not know it: only our own kind is asked.
func TestReloadOfAStrangersProcess(t *testing.T) {
	sleep := exec.Command("sleep", "100")
	if err := sleep.Start(); err != nil {
		t.Skip(err)
	}
	defer func() { _, _ = sleep.Process.Kill(), sleep.Wait() }()
	// What is left of a service that was killed names a process that is another program's now.
	left := filepath.Join(t.TempDir(), "status.json")
	if err := os.WriteFile(left, fmt.Appendf(nil, `{"name":"amqproxysvc","pid":%d,"phase":"serving"}`, sleep.Process.Pid), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // for one that does ask it, and waits for its answer
	defer cancel()
	for _, stateFile := range []string{"", left} {
		_, err := ReloadProcess(ctx, sleep.Process.Pid, stateFile)
		if err == nil || !strings.Contains(err.Error(), "nothing was sent") {
			t.Errorf("state file %q: got %v", stateFile, err)
		}
	}
	if err := sleep.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("it was ended: %v", err)
	}
}

func TestWhatSystemctlSaysToThoseWhoMayNot(t *testing.T) {
	for text, want := range map[string]bool{
		"Failed to restart amqproxysvc.service: Access denied":                                        true,
		"Failed to stop amqproxysvc.service: Interactive authentication required.":                    true,
		"Job for amqproxysvc.service failed because the control process exited with error code.\nSee": false,
	} {
		if notAllowed.MatchString(text) != want {
			t.Errorf("%q: %v", text, !want)
		}
	}
}

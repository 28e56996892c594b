package service

import (
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// SIGHUP ends a program that does not know it: only our own kind is asked.
func TestReloadOfAStrangersProcess(t *testing.T) {
	sleep := exec.Command("sleep", "100")
	if err := sleep.Start(); err != nil {
		t.Skip(err)
	}
	defer func() { _, _ = sleep.Process.Kill(), sleep.Wait() }()
	_, err := ReloadProcess(t.Context(), sleep.Process.Pid, "")
	if err == nil || !strings.Contains(err.Error(), "nothing was sent") {
		t.Errorf("got %v", err)
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

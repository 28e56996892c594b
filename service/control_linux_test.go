package service

import (
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
	for _, stateFile := range []string{"", left} {
		_, err := ReloadProcess(t.Context(), sleep.Process.Pid, stateFile)
		if err == nil || !strings.Contains(err.Error(), "nothing was sent") {
			t.Errorf("state file %q: got %v", stateFile, err)
		}
	}
	if err := sleep.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("it was ended: %v", err)
	}
}

// The mark beside the state file tells whose it is, as long as that process lives.
func TestMark(t *testing.T) {
	if path := os.Getenv("TEST_HOLD_MARK"); path != "" { // as the child below
		if _, err := lockMark(path); err != nil {
			t.Fatal(err)
		}
		_ = os.WriteFile(path+".held", nil, 0o600)
		_, _ = os.Stdin.Read(make([]byte, 1))
		return
	}
	mark := markFileIn(t.TempDir())
	if got := holderOf(mark); got != 0 {
		t.Errorf("of no mark: %d", got)
	}
	child := exec.Command(os.Args[0], "-test.run=^TestMark$")
	child.Env = append(os.Environ(), "TEST_HOLD_MARK="+mark)
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(mark + ".held"); err == nil {
			break
		} else if t.Context().Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if got := holderOf(mark); got != child.Process.Pid {
		t.Errorf("got %d, want %d", got, child.Process.Pid)
	}
	if _, err := lockMark(mark); err == nil {
		t.Error("a second process has it too")
	}
	_ = stdin.Close()
	if err := child.Wait(); err != nil {
		t.Errorf("the child: %v", err)
	}
	if got := holderOf(mark); got != 0 {
		t.Errorf("of a process that has ended: %d", got)
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

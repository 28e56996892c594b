package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/amqproxysvc/amqproxysvc/service"
)

// upgrading is a program that runs from a file that can be replaced.
type upgrading struct {
	t                      *testing.T
	out                    *output
	cmd                    *exec.Cmd
	program, config, admin string
	listening, http        string
}

func startUpgrading(t *testing.T) *upgrading {
	dir := t.TempDir()
	u := &upgrading{t: t, out: newOutput(), program: filepath.Join(dir, "program"), config: filepath.Join(dir, "a.toml"), admin: filepath.Join(dir, "a.sock")}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u.http = free.Addr().String()
	_ = free.Close()
	u.put("")
	u.configure("drain_timeout = 0")
	u.cmd = exec.Command(u.program, "run", "--config", u.config)
	u.cmd.Env = append(os.Environ(), asProgram+"=fake")
	// A file, not a pipe: the new process has it too, and outlives the old one.
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("log:\n%s", text)
		}
		_ = log.Close()
	})
	u.cmd.Stdout, u.cmd.Stderr = log, log
	if err := u.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.cmd.Process.Kill(); _ = u.cmd.Wait() })
	u.until("it listens", func() bool {
		text, _ := os.ReadFile(log.Name())
		for line := range strings.Lines(string(text)) {
			if _, at, ok := strings.Cut(line, "Proxy listening on "); ok {
				u.listening = strings.TrimRight(strings.TrimSpace(at), `"`)
			}
		}
		return u.listening != "" && strings.Contains(string(text), "HTTP server listening")
	})
	return u
}

// put has another program in the file's place: this one, or a script.
func (u *upgrading) put(script string) {
	u.t.Helper()
	content, mode := []byte(script), os.FileMode(0o755)
	if script == "" {
		own, err := os.Executable()
		if err == nil {
			content, err = os.ReadFile(own)
		}
		if err != nil {
			u.t.Fatal(err)
		}
	}
	if err := os.WriteFile(u.program+".new", content, mode); err != nil {
		u.t.Fatal(err)
	}
	if err := os.Rename(u.program+".new", u.program); err != nil {
		u.t.Fatal(err)
	}
}

func (u *upgrading) configure(text string) {
	u.t.Helper()
	text += fmt.Sprintf("\n[[listener]]\nport = 0\n[http]\nport = %s\n[admin]\nsocket = %q\n", u.http[strings.LastIndexByte(u.http, ':')+1:], u.admin)
	if err := os.WriteFile(u.config, []byte(text), 0o600); err != nil {
		u.t.Fatal(err)
	}
}

func (u *upgrading) until(what string, is func() bool) {
	u.t.Helper()
	for began := time.Now(); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > 30*time.Second {
			u.t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// upgrade gives the new process's number.
func (u *upgrading) upgrade() (pid int, err error) {
	u.t.Helper()
	cmd := upgradeCommand()
	var said strings.Builder
	cmd.SetOut(&said)
	cmd.SetErr(&said)
	cmd.SetArgs([]string{"--socket", u.admin})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	if err := cmd.ExecuteContext(u.t.Context()); err != nil {
		return 0, err
	}
	if _, err := fmt.Sscanf(said.String(), "process %d has taken over", &pid); err != nil {
		u.t.Fatalf("it says %q", said.String())
	}
	u.t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGKILL) })
	return pid, nil
}

func (u *upgrading) state() service.State {
	u.t.Helper()
	a := &asker{}
	a.socket = u.admin
	st, err := askState(u.t.Context(), a)
	a.client.CloseIdleConnections() // the channel holds 32 at a time, and this is asked over and over
	if err != nil {
		u.t.Fatal(err)
	}
	return st
}

// serves checks that clients are served, by the process that answers the admin channel.
func (u *upgrading) serves(pid int) {
	u.t.Helper()
	c := dial(u.t, u.listening)
	u.until("the client is counted by process "+strconv.Itoa(pid), func() bool { st := u.state(); return st.PID == pid && st.Clients > 0 })
	_ = c.Close()
	res, err := http.Get("http://" + u.http + "/healthz")
	if err != nil {
		u.t.Fatal(err)
	}
	_ = res.Body.Close()
}

// hold is the only client, once it is counted.
func (u *upgrading) hold() net.Conn {
	u.t.Helper()
	c := dial(u.t, u.listening)
	u.until("the client is there", func() bool { return u.state().Clients == 1 })
	return c
}

func open(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	_, err := c.Read(make([]byte, 1))
	return os.IsTimeout(err)
}

// Who is connected stays with the old process to the end, who comes is the new one's; the one
// after it is no different, while the first still serves.
func TestUpgradeCutsNobody(t *testing.T) {
	u := startUpgrading(t)
	first := u.cmd.Process.Pid
	held := u.hold()
	u.put("")
	second, err := u.upgrade()
	if err != nil || second == first {
		t.Fatalf("process %d, %v", second, err)
	}
	u.until("the old process tells its client", func() bool {
		st := u.state()
		return st.PID == second && st.Before != nil && st.Before.PID == first && st.Before.Clients == 1
	})
	u.serves(second)
	third, err := u.upgrade()
	if err != nil {
		t.Fatal(err)
	}
	u.serves(third)
	if !open(held) {
		t.Error("the client of the first process was cut")
	}
	_ = held.Close()
	ended(t, u.cmd, 0)
	u.until("the second process has ended, too", func() bool { return u.state().Before == nil })
	u.serves(third)
	if err := unix.Kill(third, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	u.until("the admin socket goes with the last process", func() bool { _, err := os.Stat(u.admin); return os.IsNotExist(err) })
}

// A new process that does not start changes nothing, and says why.
func TestUpgradeThatFails(t *testing.T) {
	u := startUpgrading(t)
	first := u.cmd.Process.Pid
	held := dial(t, u.listening)
	fails := func(reason string) {
		t.Helper()
		pid, err := u.upgrade()
		if err == nil || !strings.Contains(err.Error(), reason) || strings.Contains(err.Error(), "\n") {
			t.Fatalf("process %d, %v; want the reason %q in one line", pid, err, reason)
		}
		u.serves(first)
		if !open(held) {
			t.Fatal("the client was cut")
		}
		if _, err := os.Stat(u.admin); err != nil {
			t.Fatal(err)
		}
	}
	u.put("#!/bin/sh\nexit 3\n")
	fails("ended before it was ready")
	if err := os.Remove(u.program); err != nil {
		t.Fatal(err)
	}
	fails("no such file")
	u.put("")
	u.configure("nonsense = 1")
	fails("nonsense")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	u.configure(fmt.Sprintf("[[listener]]\nport = %d", taken.Addr().(*net.TCPAddr).Port))
	fails("another program uses this address")
	u.configure("drain_timeout = 0")
	second, err := u.upgrade()
	if err != nil {
		t.Fatal(err)
	}
	u.serves(second)
}

// Each may end in any way: the new one serves on, and a stop ends both.
func TestUpgradeEndsOfTheOldProcess(t *testing.T) {
	t.Run("killed", func(t *testing.T) {
		u := startUpgrading(t)
		_ = u.hold()
		second, err := u.upgrade()
		if err != nil {
			t.Fatal(err)
		}
		_ = u.cmd.Process.Kill()
		u.until("it is missed", func() bool { st := u.state(); return st.PID == second && st.Before == nil })
		u.serves(second)
	})
	t.Run("told to stop by the new one", func(t *testing.T) {
		u := startUpgrading(t)
		_ = u.hold()
		second, err := u.upgrade()
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(second, unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		ended(t, u.cmd, 0)
		u.until("the new one has ended", func() bool { _, err := os.Stat(u.admin); return os.IsNotExist(err) })
	})
	t.Run("upgrade_drain is over", func(t *testing.T) {
		u := startUpgrading(t)
		u.configure("drain_timeout = 0\nupgrade_drain = 0")
		u.cmd.Process.Signal(unix.SIGHUP)
		u.until("the settings are read", func() bool { r := u.state().Reload; return r != nil && r.Error == "" })
		held := u.hold()
		if _, err := u.upgrade(); err != nil {
			t.Fatal(err)
		}
		ended(t, u.cmd, 0)
		if open(held) {
			t.Error("the client is still there")
		}
	})
}

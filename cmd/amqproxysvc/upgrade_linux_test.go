package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/amqproxysvc/amqproxysvc/service"
	"github.com/amqproxysvc/amqproxysvc/service/control"
)

// upgrading is a program that runs from a file that can be replaced.
type upgrading struct {
	t                      *testing.T
	out                    *output
	cmd                    *exec.Cmd
	program, config, admin string
	listening, http        string
}

func startUpgrading(t *testing.T, env ...string) *upgrading {
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
	u.cmd.Env = append(append(os.Environ(), asProgram+"=fake"), env...)
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
		if time.Since(began) > patience {
			u.t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// ask runs a command, over the admin channel.
func (u *upgrading) ask(cmd *cobra.Command) (string, error) {
	var said strings.Builder
	cmd.SetOut(&said)
	cmd.SetErr(&said)
	cmd.SetArgs([]string{"--socket", u.admin})
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err := cmd.ExecuteContext(u.t.Context())
	return said.String(), err
}

// ends has a process killed at the test's end, which is the parent of those that systemd would be.
func (u *upgrading) ends(pid int) {
	u.t.Cleanup(func() {
		_ = unix.Kill(pid, unix.SIGKILL)
		_, _ = unix.Wait4(pid, nil, 0, nil)
	})
}

// upgrade gives the new process's number.
func (u *upgrading) upgrade() (pid int, err error) {
	u.t.Helper()
	said, err := u.ask(upgradeCommand())
	if err != nil {
		return 0, err
	}
	if _, err := fmt.Sscanf(said, "process %d has taken over", &pid); err != nil {
		u.t.Fatalf("it says %q", said)
	}
	u.ends(pid)
	return pid, nil
}

func (u *upgrading) state() service.State {
	u.t.Helper()
	a := &asker{}
	a.socket = u.admin
	st, err := askState(u.t.Context(), a)
	if err != nil {
		u.t.Fatal(err)
	}
	return st
}

// serves checks that clients are served, by the process that answers the admin channel.
func (u *upgrading) serves(pid int) {
	u.t.Helper()
	var all []net.Conn
	u.until("a client is counted by process "+strconv.Itoa(pid), func() bool {
		all = append(all, dial(u.t, u.listening)) // the one before may have been the old process's last
		st := u.state()
		return st.PID == pid && st.Clients > 0
	})
	for _, c := range all {
		_ = c.Close()
	}
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

// open reports whether nothing has been heard on a connection.
func open(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	_, err := c.Read(make([]byte, 1))
	return os.IsTimeout(err)
}

// cut waits until a connection has been closed.
func (u *upgrading) cut(c net.Conn) {
	u.t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, c); os.IsTimeout(err) {
		u.t.Errorf("not within %v: the client is cut", patience)
	}
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
	u.put("#!/bin/sh\necho ready >&3\nexit 3\n")
	fails("ended before it had taken over")
	u.put("#!/bin/sh\necho ready >&3\nread go <&3\nexit 3\n")
	fails("ended before it had taken over")
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
		u.cut(held)
	})
}

// notifySocket stands in for systemd's: told is what came there.
func notifySocket(t *testing.T) (env string, told func() string) {
	at := filepath.Join(t.TempDir(), "notify")
	sock, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: at, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sock.Close() })
	all := newOutput()
	go func() {
		for buf := make([]byte, 8192); ; {
			n, err := sock.Read(buf)
			if err != nil {
				return
			}
			fmt.Fprintf(all, "%s\n", buf[:n])
		}
	}()
	return "NOTIFY_SOCKET=" + at, all.String
}

// Under systemd a reload has another program take over, and applies the settings where that fails.
func TestReloadUpgrades(t *testing.T) {
	env, told := notifySocket(t)
	u := startUpgrading(t, env)
	first := u.cmd.Process.Pid
	held := u.hold()
	reload := func(want string) {
		t.Helper()
		if said, err := u.ask(reloadCommand()); err != nil || !strings.Contains(said, want) || want == "" && said != "" {
			t.Fatalf("a reload says %q, %v; want %q", said, err, want)
		}
	}
	reload("")
	u.put("#!/bin/sh\nexit 3\n")
	u.configure("drain_timeout = 1")
	reload("drain_timeout was changed, and holds from now on\nthe program on the disk is another one than runs, and did not take over: the new process ended before it was ready")
	if st := u.state(); st.PID != first || st.Reload == nil || st.Reload.NoUpgrade == "" || st.Phase != service.PhaseServing {
		t.Fatalf("the state is %+v", st)
	}
	u.configure("nonsense = 1")
	u.put("")
	if _, err := u.ask(reloadCommand()); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Fatalf("of nonsense: %v", err)
	}
	if st := u.state(); st.PID != first {
		t.Fatalf("a broken file upgrades: %+v", st)
	}
	u.configure("drain_timeout = 0")
	before := len(told())
	reload("has taken over, the one before serves its clients to their end")
	var st service.State
	u.until("the new process answers", func() bool { st = u.state(); return st.PID != first })
	u.ends(st.PID)
	u.until("the old process tells its clients, and until when", func() bool {
		st := u.state()
		return st.Before != nil && st.Before.PID == first && st.Before.Clients == 1 && !st.Before.Until.IsZero()
	})
	u.serves(st.PID)
	if !open(held) {
		t.Fatal("the client was cut")
	}
	if said, err := u.ask(statsCommand()); err != nil || !strings.Contains(said, fmt.Sprintf("process %d, of before it, serves 1 client more to the end, at most for ", first)) {
		t.Errorf("stats: %s, %v", said, err)
	}
	want := []string{"RELOADING=1", fmt.Sprintf("MAINPID=%d", st.PID), "READY=1"}
	u.until(fmt.Sprintf("systemd hears %q, one after the other", want), func() bool { // the last is said beside the answers
		words := strings.Split(told()[before:], "\n")
		for _, w := range want {
			i := slices.Index(words, w)
			if i < 0 {
				return false
			}
			words = words[i+1:]
		}
		return true
	})
	reload("") // the new one runs what is there
	_ = held.Close()
	ended(t, u.cmd, 0)
}

// Another manager goes by the process's number: a reload leaves it.
func TestReloadUpgradesUnderSystemdAlone(t *testing.T) {
	u := startUpgrading(t)
	u.put("")
	said, err := u.ask(reloadCommand())
	if err != nil || !strings.Contains(said, "did not take over: a reload starts another process only under systemd") {
		t.Fatalf("%q, %v", said, err)
	}
	u.serves(u.cmd.Process.Pid)
}

// The old process is killed while the new one starts: that one serves, by itself.
func TestTheOldProcessIsKilledAmidTheUpgrade(t *testing.T) {
	u := startUpgrading(t)
	first := u.cmd.Process.Pid
	asked := make(chan error, 1)
	go func() { _, err := u.ask(upgradeCommand()); asked <- err }()
	child := 0
	u.until("the new process has been started", func() bool {
		children, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", first))
		for _, file := range children {
			text, _ := os.ReadFile(file)
			if _, err := fmt.Sscan(string(text), &child); err != nil {
				continue
			}
			environ, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", child)) // Go tries the system's calls with another child
			if strings.Contains(string(environ), "AMQPROXYSVC_HANDOVER=") {
				return true
			}
		}
		return false
	})
	_ = u.cmd.Process.Kill()
	u.t.Cleanup(func() { _ = unix.Kill(child, unix.SIGKILL) })
	<-asked // told nothing, or that it was done just before
	u.until("the new process answers", func() bool {
		a := &asker{}
		a.socket = u.admin
		st, err := askState(t.Context(), a)
		return err == nil && st.PID == child && st.Before == nil
	})
	u.serves(child)
}

// Reloads and upgrades at the same time are done one after the other, and each that asks hears that it was done.
func TestReloadsBesideUpgrades(t *testing.T) {
	u := startUpgrading(t)
	done := make(chan struct{})
	failed := make(chan error, 1)
	go func() {
		defer close(failed)
		for {
			select {
			case <-done:
				return
			default:
				if _, err := u.ask(reloadCommand()); err != nil {
					failed <- err
					return
				}
			}
		}
	}()
	last := 0
	for range 3 {
		pid, err := u.upgrade()
		if err != nil || pid == last {
			t.Errorf("process %d after %d, %v", pid, last, err)
		}
		last = pid
	}
	close(done)
	if err := <-failed; err != nil {
		t.Errorf("a reload beside them: %v", err)
	}
	u.serves(last)
}

// Where a restart is the way is told by the exit code, for scripts.
func TestUpgradeExitCodes(t *testing.T) {
	for status, want := range map[int]int{http.StatusNotFound: 3, http.StatusNotImplemented: 3, http.StatusBadRequest: 1, http.StatusForbidden: 1} {
		at := adminSocket(t)
		s, err := control.New(at, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = w.Write([]byte(`{"schema":1,"error":"because"}`))
		}), func(ctx context.Context, _ control.Peer) context.Context { return ctx })
		if err != nil {
			t.Fatal(err)
		}
		if code, _, errs := tells(t, "upgrade", "--socket", at); code != want || errs == "" {
			t.Errorf("status %d: exit code %d, want %d: %s", status, code, want, errs)
		}
		s.Close()
		if code, _, errs := tells(t, "upgrade", "--socket", at); code != 3 {
			t.Errorf("nobody answers: exit code %d: %s", code, errs)
		}
	}
}

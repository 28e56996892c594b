//go:build linux

// A Debian root booted with systemd as PID 1, and commands in it. It shares the host's
// network, and nothing else.

package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

type machine struct {
	root    string
	cgroups []string // of its own, one in each hierarchy; a second machine must not meet this one's
	nspawn  *exec.Cmd
	done    chan struct{}
	init    int // PID 1's pid, seen from here
	// private gives it a network of its own, with a loopback and nothing else.
	private bool
}

// suite is the Debian release that is booted: SUITE, or the one whose systemd (252) RHEL 9
// has too.
func suite() string {
	if s := os.Getenv("SUITE"); s != "" {
		return s
	}
	return "bookworm"
}

// cachedRoot is the tarball of a fresh root, made when it is not there. The package tests'
// script makes it: one of both at a time, and nothing is deleted through a mount.
func cachedRoot(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "bash", "-c", `. packaging/lib.sh && . packaging/test/booted.sh && base_root "$1" "$1-systemd" systemd,systemd-sysv,dbus`, "base_root", suite())
	cmd.Env = append(os.Environ(), "AMQPROXYSVC_TEST_CACHE="+rabbit.CacheDir())
	// debootstrap, which unmounts what it has mounted when it is asked to end, is asked too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("no root: %w: %s", err, last(said.String(), 5))
	}
	return strings.TrimSpace(string(out)), nil
}

// newMachine unpacks a root; boot starts it. No other of this process has its name.
func newMachine(ctx context.Context, name, dir string) (*machine, error) {
	tarball, err := cachedRoot(ctx)
	if err != nil {
		return nil, err
	}
	m := &machine{root: dir}
	for _, top := range cgroupTops() {
		m.cgroups = append(m.cgroups, filepath.Join(top, fmt.Sprintf("amqproxysvc-testbed-%d-%s", os.Getpid(), name)))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if out, err := exec.CommandContext(ctx, "tar", "-C", dir, "-xpf", tarball).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("tar: %w: %s", err, out)
	}
	return m, nil
}

// cgroupTops are the hierarchies that a systemd wants for itself. A hybrid host has two, and
// nspawn takes its place from the unified one: a machine without a cgroup of its own there
// shares the payload's with every other machine, and each ends the other's services.
func cgroupTops() (tops []string) {
	for _, dir := range []string{"/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err == nil {
			tops = append(tops, dir)
		}
	}
	if tops == nil {
		tops = []string{"/sys/fs/cgroup"}
	}
	return tops
}

const bootTimeout = 3 * time.Minute

// boot returns when the machine says that it runs.
func (m *machine) boot(ctx context.Context) error {
	for _, dir := range m.cgroups {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	// PID 1 ignores TERM; when this process dies, nspawn and with it the machine is killed.
	args := append([]string{"-c", `while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs" || exit; shift; done; shift; exec systemd-nspawn "$@"`, "sh"}, m.cgroups...)
	args = append(args, "--", "--quiet", "--directory="+m.root, "--boot", "--register=no", "--keep-unit", "--console=pipe")
	if m.private {
		args = append(args, "--private-network")
	}
	m.nspawn = exec.Command("sh", args...)
	m.nspawn.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	var console bytes.Buffer
	m.nspawn.Stdout, m.nspawn.Stderr = &console, &console
	if err := m.nspawn.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	m.done = done
	go func() {
		_ = m.nspawn.Wait() // killed, as a rule
		close(done)
	}()
	m.init = 0
	for deadline := time.Now().Add(bootTimeout); ; {
		if m.init == 0 {
			m.init = childOf(m.nspawn.Process.Pid)
		}
		if m.init != 0 {
			out, _ := m.run(ctx, "systemctl", "is-system-running")
			if state := strings.TrimSpace(out); state == "running" || state == "degraded" {
				return nil
			}
		}
		select {
		case <-done:
			return fmt.Errorf("systemd-nspawn ended: %s", last(console.String(), 20))
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("the machine is not up after %v", bootTimeout)
		}
	}
}

// childOf finds the process whose parent is pid.
func childOf(pid int) int {
	out, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0
	}
	for _, f := range strings.Fields(string(out)) {
		child, err := strconv.Atoi(f)
		if err != nil {
			continue
		}
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", child)); err == nil && strings.TrimSpace(string(comm)) == "systemd" {
			return child
		}
	}
	return 0
}

// run runs a command in the machine and gives its output and error output.
func (m *machine) run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	enter := []string{"-t", strconv.Itoa(m.init), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", "--",
		"env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// halt powers the machine off, or cuts its power.
func (m *machine) halt() {
	if m.nspawn == nil {
		return
	}
	if m.init != 0 {
		_ = syscall.Kill(m.init, syscall.Signal(34+4)) // SIGRTMIN+4: power off
	}
	select {
	case <-m.done:
	case <-time.After(30 * time.Second):
		_ = m.nspawn.Process.Kill()
		<-m.done
	}
	m.nspawn = nil
	for _, dir := range m.cgroups {
		removeCgroups(dir)
	}
}

// removeCgroups removes a cgroup and those below, the lowest first.
func removeCgroups(top string) {
	var dirs []string
	_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		_ = os.Remove(dirs[i]) // busy for a moment, or gone
	}
}

// path is where a file of the machine is seen from here.
func (m *machine) path(inside string) string { return filepath.Join(m.root, inside) }

func last(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// Starting the new process of an upgrade, in the old one's cgroup, with its listening sockets
// as inherited descriptors; and in the new one finding them.

package service

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// handoverEnv tells the new process what its descriptors from 3 on are: the old process's
// number, then a name for each; the first is the socket between the two.
const handoverEnv = "AMQPROXYSVC_HANDOVER"

// socketPrefix marks sockets that are not clients' listeners.
const socketPrefix = "socket "

// handoverSep parts the names, which may hold blanks and colons.
const handoverSep = "\x1f"

// startSuccessor starts the program that is now where this one was started from, and waits until it serves.
func (s *supervisor) startSuccessor(ctx context.Context) (_ *successor, err error) {
	up, ok := s.eng.(Upgradable)
	switch {
	case !ok:
		return nil, notHere("it cannot be handed over")
	case os.Getpid() == 1:
		return nil, notHere("this is a container's first process, with which the container ends: replace the container")
	case os.Getenv("NOTIFY_SOCKET") == "" && ownTerminal() >= 0:
		return nil, notHere("this process belongs to a terminal, which would be left with nothing in it: end it and start it anew")
	}
	path, err := os.Executable() // as it was started, also when another file is there now
	if err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	own := os.NewFile(uintptr(pair[0]), "handover")
	conn, err := net.FileConn(own)
	_ = own.Close()
	names, files := []string{fmt.Sprint(os.Getpid())}, []*os.File{os.NewFile(uintptr(pair[1]), "handover")}
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	if err != nil {
		return nil, err
	}
	add := func(name string, l net.Listener) error {
		f, err := duplicate(l)
		if err != nil {
			return fmt.Errorf("the socket at %s cannot be handed over: %w", l.Addr(), err)
		}
		names, files = append(names, name), append(files, f)
		return nil
	}
	addresses := s.eng.Addresses()
	for i, l := range s.eng.Listeners() {
		name := fmt.Sprintf("listen%d", i) // a socket unit's
		if !s.byUnit[i] && i < len(addresses) {
			name = keptName(addresses[i])
		}
		err = errors.Join(err, add(name, l))
	}
	for name, l := range up.Sockets() {
		err = errors.Join(err, add(socketPrefix+name, l))
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	attr := &os.ProcAttr{Files: append([]*os.File{os.Stdin, os.Stdout, os.Stderr}, files...), Env: handoverEnviron(os.Environ(), names)}
	managed := os.Getenv("NOTIFY_SOCKET") != ""
	if managed {
		// systemd's child as this one is: only of those it hears that they ended.
		attr.Sys = &syscall.SysProcAttr{Cloneflags: unix.CLONE_PARENT}
	}
	p, err := os.StartProcess(path, os.Args, attr)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	for _, f := range files { // that its end is seen at the other end of the pair
		_ = f.Close()
	}
	files = nil
	c := &successor{pid: p.Pid, conn: conn, kill: func() { _ = p.Kill(); _ = conn.Close() }}
	if !managed {
		go func() { _, _ = p.Wait() }()
	}
	if err := c.awaitReady(ctx, s.upgradeWait); err != nil {
		c.kill()
		return nil, err
	}
	return c, nil
}

// upgradesOnReload reports whether a reload is to have the program on the disk take over: it is another one than
// this, and nobody but systemd, which is told, goes by this process's number. Else it says why not, or "": there
// is no other program.
func (s *supervisor) upgradesOnReload() (why string, yes bool) {
	path, err := os.Executable()
	if err != nil || !replaced(path) {
		return "", false
	}
	if _, ok := s.eng.(Upgradable); !ok || os.Getenv("NOTIFY_SOCKET") == "" {
		return "a reload starts another process only under systemd, which is told its number: restart this one", false
	}
	return "", true
}

// replaced reports whether another file is where the program was started from. While it runs, no other file has
// its inode, and nobody can write to it.
func replaced(path string) bool {
	runs, err := os.Stat("/proc/self/exe")
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && there.Mode().IsRegular() && !os.SameFile(runs, there)
}

// handoverEnviron is the new process's: what systemd said to this one alone is not in it.
func handoverEnviron(environ, names []string) []string {
	environ = slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		key, _, _ := strings.Cut(kv, "=")
		return slices.Contains([]string{handoverEnv, "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}, key)
	})
	return append(environ, handoverEnv+"="+strings.Join(names, handoverSep))
}

// duplicate is a file of a listener's socket, which stays non-blocking.
func duplicate(l net.Listener) (*os.File, error) {
	sc, ok := l.(syscall.Conn)
	if !ok {
		return nil, errors.New("it has no file descriptor")
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, derr := -1, error(nil)
	if err := raw.Control(func(own uintptr) { fd, derr = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) }); err != nil || derr != nil {
		return nil, errors.Join(err, derr)
	}
	return os.NewFile(uintptr(fd), "listener"), nil
}

// findPredecessor is the process that started this one to take over, nil: none did.
func findPredecessor() *predecessor {
	text, set := os.LookupEnv(handoverEnv)
	if !set {
		return nil
	}
	_ = os.Unsetenv(handoverEnv)
	names := strings.Split(text, handoverSep)
	p := &predecessor{sockets: map[string]net.Listener{}, gone: make(chan struct{})}
	if _, err := fmt.Sscan(names[0], &p.pid); err != nil {
		return nil
	}
	unix.CloseOnExec(3)
	f := os.NewFile(3, "handover")
	conn, err := net.FileConn(f)
	_ = f.Close()
	if err != nil {
		slog.Debug("what the environment says of a process before is not so", "error", err)
		return nil
	}
	p.conn, p.lines = conn, bufio.NewReader(conn)
	for i, name := range names[1:] {
		fd := 4 + i
		unix.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), name)
		name, other := strings.CutPrefix(name, socketPrefix)
		if !other {
			p.files = append(p.files, f)
			continue
		}
		if l, err := net.FileListener(f); err == nil {
			p.sockets[name] = l
		}
		_ = f.Close()
	}
	return p
}

//go:build unix

package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// DefaultPath is where the service of that name, managed by the system, is reached.
func DefaultPath(name string) string { return filepath.Join("/run", name, "control.sock") }

// ManagedPath is where a process that a service manager started is to be reached, "" when it
// gave no place.
func ManagedPath(string) string {
	if dir := filepath.SplitList(os.Getenv("RUNTIME_DIRECTORY")); len(dir) > 0 && dir[0] != "" {
		return filepath.Join(dir[0], "control.sock")
	}
	return ""
}

// listen binds the socket for its owner and group. One that a process left behind is replaced.
func listen(at string) (net.Listener, error) {
	ln, err := net.Listen("unix", at)
	if errors.Is(err, syscall.EADDRINUSE) {
		info, serr := os.Lstat(at)
		if serr == nil && info.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("%s is there and is no socket", at)
		}
		c, derr := net.Dial("unix", at)
		if derr == nil {
			_ = c.Close()
		}
		// Only a refusal says that nobody serves it: one that is busy answers otherwise.
		if !errors.Is(derr, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("%s: %w", at, ErrInUse)
		}
		if rerr := os.Remove(at); rerr != nil {
			return nil, rerr
		}
		ln, err = net.Listen("unix", at)
	}
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(at, 0o660); err != nil {
		_ = ln.Close()
		return nil, err
	}
	return ln, nil
}

// own makes a socket this process's: the kernel tells those who connect who listened last, and its end takes the file away.
func own(ln net.Listener) {
	u, ok := ln.(*net.UnixListener)
	if !ok {
		return
	}
	u.SetUnlinkOnClose(true)
	if raw, err := u.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = syscall.Listen(int(fd), syscall.SOMAXCONN) })
	}
}

// disown leaves the file to another process.
func disown(ln net.Listener) {
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
}

func dial(ctx context.Context, at string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", at)
}

// peerFrom makes a peer of a user's number. Under systemd's PrivateUsers= only root and the
// service's own user have theirs; everybody else is nobody, and may look.
func peerFrom(uid uint32) Peer {
	return Peer{Admin: uid == 0 || int(uid) == os.Geteuid(), Name: fmt.Sprintf("uid %d", uid)}
}

// Which process is ours: asked before one is signalled, for SIGHUP ends a program that does
// not know it, and a number that was written down may be another program's by now.

package service

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/amqproxysvc/amqproxysvc/service/control"
)

// lockMark makes the file and locks it for as long as the process lives. No other file of this
// process may be opened on it: closing that would end the lock.
func lockMark(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s is another process's: %w", path, err)
	}
	return f, nil
}

// holderOf is the process that has locked the mark, 0: none.
func holderOf(path string) int {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock); err != nil || lock.Type == unix.F_UNLCK {
		return 0
	}
	return int(lock.Pid)
}

// ownKind reports whether a process runs a program of our name: by its name, which cannot be
// looked at from within the unit's sandbox; else, where the service's runtime directory is
// known, because it serves the admin channel there, or has marked the state as its own.
func ownKind(ctx context.Context, pid int, dir string) bool {
	if own, err := os.ReadFile("/proc/self/comm"); err == nil {
		if its, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil {
			return bytes.Equal(own, its)
		}
	}
	if dir == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if server, err := control.ServerPID(ctx, filepath.Join(dir, "control.sock")); err == nil && server == pid {
		return true
	}
	return holderOf(markFileIn(dir)) == pid
}

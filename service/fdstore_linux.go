// Listening sockets in systemd's file descriptor store (FileDescriptorStoreMax=): they
// outlive the process, so that a client that connects during a restart, or after a crash,
// waits for the next process instead of being refused.

package service

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// keptPrefix marks the names of our own sockets among those that systemd hands over.
const keptPrefix = "kept-"

// keptName is the name in the store of a listener with that configured address: a colon is
// not allowed there. A socket is taken again for the same text only.
func keptName(address string) string { return keptPrefix + strings.ReplaceAll(address, ":", "_") }

// splitKept parts what systemd handed over into the sockets of a socket unit and our own.
func splitKept(files []*os.File) (activated []*os.File, kept map[string]*os.File) {
	kept = map[string]*os.File{}
	for _, f := range files {
		if !strings.HasPrefix(f.Name(), keptPrefix) {
			activated = append(activated, f)
			continue
		}
		if old := kept[f.Name()]; old != nil {
			_ = old.Close()
		}
		kept[f.Name()] = f
	}
	return activated, kept
}

// takeKept puts the kept sockets in the places that no socket unit has taken. It gives what
// is left in the store and nobody's any more, and closes all files.
func takeKept(inherited []net.Listener, kept map[string]*os.File, addresses []string) (_ []net.Listener, stale []string) {
	for i, address := range addresses {
		f := kept[keptName(address)]
		if f == nil || i < len(inherited) && inherited[i] != nil {
			continue
		}
		l, err := net.FileListener(f)
		if err != nil {
			continue // it is no listening socket any more: bound anew
		}
		for len(inherited) <= i {
			inherited = append(inherited, nil)
		}
		inherited[i] = l
		_ = f.Close()
		delete(kept, keptName(address))
	}
	for name, f := range kept {
		_ = f.Close()
		stale = append(stale, name)
	}
	return inherited, stale
}

// keepListener gives a duplicate of a listener's socket to systemd. One that it has already
// is not kept twice.
func keepListener(name string, l net.Listener) error {
	sc, ok := l.(syscall.Conn)
	if !ok {
		return errors.New("it has no file descriptor")
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) { sent = notifySocket("FDSTORE=1\nFDNAME="+name, unix.UnixRights(int(fd))) })
	return errors.Join(err, sent)
}

// forgetKept takes a socket out of the store.
func forgetKept(name string) error { return notifySocket("FDSTOREREMOVE=1\nFDNAME="+name, nil) }

func notifySocket(state string, rights []byte) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	// By the system calls: a connected net.UnixConn sends no descriptors.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.Sendmsg(fd, []byte(state), rights, &unix.SockaddrUnix{Name: path}, unix.MSG_NOSIGNAL)
}

// stopsForGood asks systemd whether the unit is being stopped and not restarted: then those
// who connect during the drain are better refused at once. False where it cannot be asked.
func stopsForGood(name string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "systemctl", "--no-pager", "--no-legend", "--plain", "list-jobs").Output()
	if err != nil {
		slog.Debug("systemd could not be asked whether this is a restart", "error", err)
		return false
	}
	return jobIsStop(string(out), name)
}

// jobIsStop reads `systemctl list-jobs`: JOB UNIT TYPE STATE.
func jobIsStop(jobs, name string) bool {
	for line := range strings.Lines(jobs) {
		if f := strings.Fields(line); len(f) >= 3 && f[1] == name+".service" {
			return f[2] == "stop"
		}
	}
	return false
}

// keepers is what the supervisor does with the store.
type keepers struct {
	name  string   // the unit's, without .service
	names []string // in the store
}

// takeListeners gives the engine's inherited listeners: those of a socket unit, then those
// that were kept over a restart. byUnit marks the places of the former.
func (k *keepers) takeListeners(files []*os.File, addresses []string) (inherited []net.Listener, byUnit map[int]bool, err error) {
	sockets, kept := splitKept(files)
	inherited, err = orderListeners(sockets)
	if err != nil {
		for _, f := range kept {
			_ = f.Close()
		}
		return nil, nil, err
	}
	byUnit = map[int]bool{}
	for i, l := range inherited {
		if l != nil {
			byUnit[i] = true
		}
	}
	inherited, stale := takeKept(inherited, kept, addresses)
	for _, name := range stale {
		if err := forgetKept(name); err != nil {
			slog.Debug("a socket could not be taken out of systemd's store", "name", name, "error", err)
		}
	}
	return inherited, byUnit, nil
}

// keep gives systemd the sockets that are the program's own, so that the next process has
// them. byUnit are those that a socket unit has.
func (k *keepers) keep(addresses []string, listeners []net.Listener, byUnit map[int]bool) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return
	}
	for i, l := range listeners {
		if i >= len(addresses) || byUnit[i] || strings.HasSuffix(addresses[i], ":0") { // any free port: not the same one
			continue
		}
		name := keptName(addresses[i])
		if err := keepListener(name, l); err != nil {
			slog.Debug("a socket could not be given to systemd, a restart will refuse clients for a moment", "listener", addresses[i], "error", err)
			continue
		}
		k.names = append(k.names, name)
	}
}

// release lets the sockets end with this process where the service is stopped for good.
func (k *keepers) release() {
	if len(k.names) == 0 || !stopsForGood(k.name) {
		return
	}
	for _, name := range k.names {
		_ = forgetKept(name)
	}
	k.names = nil
}

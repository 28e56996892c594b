//go:build unix

package proxy

import "syscall"

// descriptors is how many files and sockets the process may have open; 0: not known.
func descriptors() int {
	var lim syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim) != nil || lim.Cur > 1<<30 {
		return 0
	}
	return int(lim.Cur)
}

// outOfDescriptors reports whether an error says that the process or the system has no socket left.
func outOfDescriptors(errno syscall.Errno) bool {
	return errno == syscall.EMFILE || errno == syscall.ENFILE || errno == syscall.ENOBUFS || errno == syscall.ENOMEM
}

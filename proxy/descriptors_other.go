//go:build !unix

package proxy

import "syscall"

// descriptors is how many files and sockets the process may have open; 0: not known.
func descriptors() int { return 0 }

// outOfDescriptors reports whether an error says that the process or the system has no socket
// left: WSAEMFILE, WSAENOBUFS.
func outOfDescriptors(errno syscall.Errno) bool { return errno == 10024 || errno == 10055 }

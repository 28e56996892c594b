//go:build unix && !linux

package proxy

import "syscall"

// writev writes the first: what has not left by it, a goroutine sends.
func writev(fd int, p [][]byte) (int, error) { return syscall.Write(fd, p[0]) }

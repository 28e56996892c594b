package proxy

import "golang.org/x/sys/unix"

func writev(fd int, p [][]byte) (int, error) { return unix.Writev(fd, p) }

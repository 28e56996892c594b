//go:build !windows

package main

import (
	"errors"
	"syscall"
)

// addressInUse reports whether another socket has the address.
func addressInUse(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }

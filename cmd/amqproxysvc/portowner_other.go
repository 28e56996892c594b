//go:build !linux

package main

import "fmt"

// listenerOf says how to find the program that listens on a port.
func listenerOf(port int) string {
	return fmt.Sprintf(" (which: netstat -abno, port %d)", port)
}

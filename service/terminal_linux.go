// The terminal that somebody started the proxy in: when it is closed the proxy ends with it, as
// every program does there.

package service

import (
	"os/signal"

	"golang.org/x/sys/unix"
)

// terminal is a descriptor of the terminal that the process began with; -1: it had none, or is to
// outlive it.
type terminal int

// ownTerminal looks before SIGHUP is asked for: who starts with it ignored, as under nohup, goes on.
func ownTerminal() terminal {
	if signal.Ignored(unix.SIGHUP) {
		return -1
	}
	for fd := range 3 {
		if terminal(fd).there() {
			return terminal(fd)
		}
	}
	return -1
}

func (t terminal) there() bool {
	_, err := unix.IoctlGetTermios(int(t), unix.TCGETS)
	return err == nil
}

// gone reports whether there was a terminal and it was closed.
func (t terminal) gone() bool { return t >= 0 && !t.there() }

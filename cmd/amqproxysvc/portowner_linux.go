// Who listens on a port: as /proc has it, for those who may look.

package main

import (
	"fmt"
	"strconv"

	"github.com/prometheus/procfs"
)

// listenerOf names the program that listens on a port, or says how to find it.
func listenerOf(port int) string {
	unknown := fmt.Sprintf(" (which: sudo ss -ltnp 'sport = :%d')", port)
	proc, err := procfs.NewDefaultFS()
	if err != nil {
		return unknown
	}
	const listening = 10 // TCP_LISTEN
	sockets := map[string]bool{}
	// Deprecated in favour of netlink, whose faster way would be one more dependency for a
	// question asked once, by a program that is about to end.
	//lint:ignore SA1019 see above
	tables := []func() (procfs.NetTCP, error){proc.NetTCP, proc.NetTCP6}
	for _, table := range tables {
		lines, err := table()
		if err != nil {
			continue
		}
		for _, l := range lines {
			if l.St == listening && l.LocalPort == uint64(port) {
				sockets["socket:["+strconv.FormatUint(l.Inode, 10)+"]"] = true
			}
		}
	}
	all, err := proc.AllProcs()
	if err != nil {
		return unknown
	}
	for _, p := range all {
		files, err := p.FileDescriptorTargets() // an error: another user's
		if err != nil {
			continue
		}
		for _, f := range files {
			if !sockets[f] {
				continue
			}
			if name, err := p.Comm(); err == nil {
				return fmt.Sprintf(": %s, pid %d", name, p.PID)
			}
		}
	}
	return unknown
}

//go:build windows

// Command wineprobe has a service answer Interrogate and prints what it says: state,
// checkpoint and wait hint.
package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/mgr"
)

var states = map[svc.State]string{svc.Stopped: "stopped", svc.StartPending: "starting", svc.StopPending: "stopping", svc.Running: "running"}

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "wineprobe:", err)
		os.Exit(1)
	}
}

func run(name string) error {
	m, err := mgr.Connect()
	if err != nil {
		return err
	}
	defer func() { _ = m.Disconnect() }()
	s, err := m.OpenService(name)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	st, err := s.Control(svc.Interrogate)
	fmt.Println(states[st.State], st.CheckPoint, st.WaitHint)
	return err
}

//go:build windows

// Command wineprobe has a service answer Interrogate and prints what it says: state, checkpoint and wait hint. With
// the number and the text of an event of that service it prints what the Event Viewer would show of it.
package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/mgr"
)

var states = map[svc.State]string{svc.Stopped: "stopped", svc.StartPending: "starting", svc.StopPending: "stopping", svc.Running: "running"}

func main() {
	var err error
	switch len(os.Args) {
	case 2:
		err = interrogate(os.Args[1])
	case 4:
		err = show(os.Args[1], os.Args[2], os.Args[3])
	default:
		err = errors.New("usage: wineprobe SERVICE [EVENT TEXT]")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "wineprobe:", err)
		os.Exit(1)
	}
}

func interrogate(name string) error {
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

// show goes the Event Viewer's way: the source's message file, loaded as data, and its message for the number.
func show(source, event, text string) error {
	id, err := strconv.ParseUint(event, 10, 32)
	if err != nil {
		return err
	}
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, `SYSTEM\CurrentControlSet\Services\EventLog\Application\`+source, registry.QUERY_VALUE)
	if err != nil {
		return err
	}
	defer func() { _ = k.Close() }()
	file, _, err := k.GetStringValue("EventMessageFile")
	if err != nil {
		return err
	}
	module, err := windows.LoadLibraryEx(file, 0, windows.LOAD_LIBRARY_AS_DATAFILE|windows.LOAD_LIBRARY_AS_IMAGE_RESOURCE)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	defer func() { _ = windows.FreeLibrary(module) }()
	text16, err := windows.UTF16PtrFromString(text)
	if err != nil {
		return err
	}
	args := []*uint16{text16}
	buf := make([]uint16, 1000)
	n, err := windows.FormatMessage(windows.FORMAT_MESSAGE_FROM_HMODULE|windows.FORMAT_MESSAGE_ARGUMENT_ARRAY, uintptr(module), uint32(id), 0, buf, (*byte)(unsafe.Pointer(&args[0])))
	if err != nil {
		return fmt.Errorf("event %d: %w", id, err)
	}
	fmt.Println(strings.TrimSuffix(windows.UTF16ToString(buf[:n]), "\r\n"))
	return nil
}

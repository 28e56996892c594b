// The Windows event log as one more place for log records.

package service

import (
	"log/slog"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
	"golang.org/x/sys/windows/svc/eventlog"
)

// eventSources is where the event log has who writes to it.
const eventSources = `SYSTEM\CurrentControlSet\Services\EventLog\Application\`

// ownMessages has the Event Viewer take the texts of a service's events from the program, which has one for each
// number. A program that was built without them leaves what is registered: EventCreate.exe, which every Windows has.
func ownMessages(name, program string) error {
	if _, err := windows.FindResource(0, windows.ResourceID(1), windows.RT_MESSAGETABLE); err != nil {
		return nil
	}
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, eventSources+name, registry.SET_VALUE)
	if err != nil {
		return err
	}
	defer ignore(k.Close)
	return k.SetStringValue("EventMessageFile", program)
}

// SystemLog is the handler that gives the system's own log what belongs there: on Windows
// the event log, for a service that its manager started. Nil: the system has no such log,
// or cannot be written to.
func SystemLog(name string, managed bool) slog.Handler {
	if !managed {
		return nil
	}
	log, err := eventlog.Open(name) // open for as long as the process lives
	if err != nil {
		return nil
	}
	return &eventHandler{sink: func(level slog.Level, id uint32, text string) error {
		switch {
		case level >= slog.LevelError:
			return log.Error(id, text)
		case level >= slog.LevelWarn:
			return log.Warning(id, text)
		}
		return log.Info(id, text)
	}}
}

// The Windows event log as one more place for log records.

package service

import (
	"log/slog"

	"golang.org/x/sys/windows/svc/eventlog"
)

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

package service

import "log/slog"

// SystemLog is the handler that gives the system's own log what belongs there. Linux needs
// none: what the service writes to its standard error is in the journal.
func SystemLog(name string, managed bool) slog.Handler { return nil }

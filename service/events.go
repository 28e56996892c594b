// The stable table of event IDs: what the Windows event log shows as "Event ID" and what
// a monitoring rule may hang on. Numbers are never reused. The Event Viewer finds what to show for
// them in the program itself, by an object that is made of this file.

package service

import "log/slog"

//go:generate go -C ../packaging/tools run ./messages

// EventKey is the attribute of a log record that carries its event ID.
const EventKey = "event_id"

// Event IDs. OPERATIONS.md says for each what to do.
const (
	EventStarted         = 100
	EventStopping        = 101
	EventStopped         = 102
	EventReloaded        = 103
	EventReloadPartial   = 104
	EventLogReopened     = 105
	EventStopForced      = 106
	EventUpgraded        = 107
	EventConfigWrong     = 200
	EventStartFailed     = 201
	EventFailed          = 202
	EventReloadFailed    = 203
	EventCheckFailed     = 204
	EventStopFailed      = 205
	EventLogReopenFailed = 206
	EventNotRetried      = 207
	EventUpgradeFailed   = 208
	// EventOther is for warnings and errors that carry no ID of their own.
	EventOther = 900
)

// Event is the attribute that gives a log record its ID.
func Event(id int) slog.Attr { return slog.Int(EventKey, id) }

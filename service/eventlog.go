// Log records as the Windows event log takes them: lifecycle, warnings and errors, each
// with its ID. The writing itself is in eventlog_windows.go.

package service

import (
	"context"
	"log/slog"
	"strings"
)

// eventSink takes one event.
type eventSink func(level slog.Level, id uint32, text string) error

// mostEvent is how long the text of an event is at most, in octets. Windows takes 31,839 characters, and nothing at all of more.
const mostEvent = 31_000

// eventText is a text that Windows takes: it ends at a NUL there.
func eventText(text string) string {
	text = strings.ReplaceAll(text, "\x00", "?")
	if len(text) > mostEvent {
		text = strings.ToValidUTF8(text[:mostEvent], "") + "..."
	}
	return text
}

// eventHandler is a slog.Handler over an eventSink. It passes on what carries an event ID
// and what is a warning or worse.
type eventHandler struct {
	sink  eventSink
	attrs []slog.Attr // of With, in order, groups resolved to dotted keys
	group string
}

func (h *eventHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo
}

func (h *eventHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.attrs = append(append([]slog.Attr{}, h.attrs...), h.grouped(attrs)...)
	return &c
}

func (h *eventHandler) WithGroup(name string) slog.Handler {
	c := *h
	if name != "" {
		c.group += name + "."
	}
	return &c
}

func (h *eventHandler) grouped(attrs []slog.Attr) []slog.Attr {
	out := make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		out[i] = slog.Attr{Key: h.group + a.Key, Value: a.Value}
	}
	return out
}

func (h *eventHandler) Handle(_ context.Context, r slog.Record) error {
	id := uint32(0)
	var text strings.Builder
	text.WriteString(r.Message)
	take := func(a slog.Attr) bool {
		if strings.TrimPrefix(a.Key, h.group) == EventKey && a.Value.Kind() == slog.KindInt64 {
			id = uint32(a.Value.Int64())
		} else if !a.Equal(slog.Attr{}) {
			text.WriteString("\r\n" + a.Key + ": " + a.Value.Resolve().String())
		}
		return true
	}
	for _, a := range h.attrs {
		take(a)
	}
	r.Attrs(func(a slog.Attr) bool { return take(slog.Attr{Key: h.group + a.Key, Value: a.Value}) })
	if id == 0 {
		if r.Level < slog.LevelWarn {
			return nil
		}
		id = EventOther
	}
	return h.sink(r.Level, id, eventText(text.String()))
}

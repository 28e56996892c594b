package service

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
)

func TestEventHandlerPassesWhatBelongsThere(t *testing.T) {
	type event struct {
		level slog.Level
		id    uint32
		text  string
	}
	var got []event
	log := slog.New(&eventHandler{sink: func(level slog.Level, id uint32, text string) error {
		got = append(got, event{level, id, text})
		return nil
	}})
	log.Debug("not for the event log", Event(EventOther))
	log.Info("nor is a client's coming")
	log.Info("service started", "listening", "127.0.0.1:5673", Event(EventStarted))
	log.With("client", 7).Warn("slow")
	log.Warn("named", "name", "a\x00b")
	log.Warn(strings.Repeat("\u20ac", 20_000))
	log.WithGroup("tls").With("file", "a.pem").Error("unreadable", "error", errors.New("no such file"), Event(EventReloadFailed))

	want := []event{
		{slog.LevelInfo, EventStarted, "service started\r\nlistening: 127.0.0.1:5673"},
		{slog.LevelWarn, EventOther, "slow\r\nclient: 7"},
		{slog.LevelWarn, EventOther, "named\r\nname: a?b"},
		{slog.LevelWarn, EventOther, strings.Repeat("\u20ac", mostEvent/3) + "..."},
		{slog.LevelError, EventReloadFailed, "unreadable\r\ntls.file: a.pem\r\ntls.error: no such file"},
	}
	if len(got) != len(want) {
		t.Fatalf("got %d events %v, want %d", len(got), got, len(want))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("event %d: got %+v, want %+v", i, got[i], want[i])
		}
	}
}

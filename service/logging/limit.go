// The rate limit: of lines with the same level and message, so many pass in a window, and
// what was kept back is counted and told. A broker that is down must not fill the disk.

package logging

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	limitWindow = 10 * time.Second
	limitLines  = 10
	// limitKeys bounds the memory; messages are constants, so it is not reached.
	limitKeys = 1000
)

type limitKey struct {
	level   slog.Level
	message string
}

type limitEntry struct {
	began      time.Time
	lines      int
	suppressed int
}

type limiter struct {
	now  func() time.Time
	root slog.Handler // takes the lines about suppressed lines

	mu      sync.Mutex
	swept   time.Time
	entries map[limitKey]*limitEntry
}

func newLimiter(now func() time.Time) *limiter {
	if now == nil {
		now = time.Now
	}
	return &limiter{now: now, entries: map[limitKey]*limitEntry{}}
}

// limited is a handler behind the limiter. Debug lines are not limited: who turns them on
// wants them all.
type limited struct {
	next slog.Handler
	*limiter
}

func (h *limited) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

func (h *limited) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &limited{h.next.WithAttrs(attrs), h.limiter}
}

func (h *limited) WithGroup(name string) slog.Handler {
	return &limited{h.next.WithGroup(name), h.limiter}
}

func (h *limited) Handle(ctx context.Context, r slog.Record) error {
	pass := r.Level < slog.LevelInfo || h.admit(limitKey{r.Level, r.Message})
	h.tell(h.sweep(limitWindow))
	if !pass {
		return nil
	}
	return h.next.Handle(ctx, r)
}

// admit counts a line and says whether it may pass.
func (l *limiter) admit(key limitKey) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	e := l.entries[key]
	if e == nil {
		if len(l.entries) >= limitKeys {
			return true
		}
		e = &limitEntry{began: now}
		l.entries[key] = e
	}
	if now.Sub(e.began) >= limitWindow && e.suppressed == 0 {
		*e = limitEntry{began: now}
	}
	if e.lines >= limitLines {
		if now.Sub(e.began) < limitWindow {
			e.suppressed++
			return false
		}
		l.swept = time.Time{} // the window is over: the sweep that follows tells and ends it
	}
	e.lines++
	return true
}

// sweep ends the windows that are older than age, and gives what to tell about them.
func (l *limiter) sweep(age time.Duration) (told []slog.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if now.Sub(l.swept) < time.Second && age > 0 {
		return nil
	}
	l.swept = now
	for key, e := range l.entries {
		if now.Sub(e.began) < age {
			continue
		}
		if e.suppressed > 0 {
			r := slog.NewRecord(now, key.level, "log lines suppressed", 0)
			r.AddAttrs(slog.String("line", key.message), slog.Int("suppressed", e.suppressed),
				slog.Duration("within", now.Sub(e.began).Round(time.Second)))
			told = append(told, r)
		}
		delete(l.entries, key)
	}
	return told
}

func (l *limiter) tell(records []slog.Record) {
	for _, r := range records {
		if l.root.Enabled(context.Background(), r.Level) {
			_ = l.root.Handle(context.Background(), r)
		}
	}
}

func (l *limiter) flush() { l.tell(l.sweep(0)) }

// The rate limit: of lines with the same level and message, so many pass in a window, and
// after them only the first of each cause (user, vhost, code, address); what was kept back
// is counted and told. A broker that is down must not fill the disk, and one client's errors
// must not hide another's.

package logging

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"
)

const (
	limitWindow = 10 * time.Second
	limitLines  = 10
	// limitCauses bounds the causes of one message that are told apart in a window, and
	// limitPerAddress those of one address: a stranger who makes up users has few.
	limitCauses     = 64
	limitPerAddress = 16
	// limitKeys bounds the memory; messages are constants, so it is not reached.
	limitKeys = 1000
)

type limitKey struct {
	level   slog.Level
	message string
}

type limitEntry struct {
	began      time.Time
	lines      int // of the first ones
	suppressed int
	causes     map[cause]int // lines kept back of each
	addresses  map[string]int
}

// cause is what tells lines with one message apart.
type cause struct{ user, vhost, code, address string }

// take adds an attribute, if it is one of a cause's.
func (c *cause) take(a slog.Attr) {
	switch a.Key {
	case "user":
		c.user = brief(a.Value.Resolve().String())
	case "vhost":
		c.vhost = brief(a.Value.Resolve().String())
	case "code":
		c.code = brief(a.Value.Resolve().String())
	case "address":
		c.address = brief(a.Value.Resolve().String())
		if host, _, err := net.SplitHostPort(c.address); err == nil {
			c.address = host // a port is anew with each connect
		}
	}
}

func (c cause) String() string {
	var parts []string
	for _, p := range []struct{ name, value string }{{"user", c.user}, {"vhost", c.vhost}, {"code", c.code}, {"address", c.address}} {
		if p.value != "" {
			parts = append(parts, p.name+"="+p.value)
		}
	}
	return strings.Join(parts, " ")
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
	next  slog.Handler
	cause cause // of With
	*limiter
}

func (h *limited) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

func (h *limited) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := &limited{h.next.WithAttrs(attrs), h.cause, h.limiter}
	for _, a := range attrs {
		with.cause.take(a)
	}
	return with
}

func (h *limited) WithGroup(name string) slog.Handler {
	return &limited{h.next.WithGroup(name), h.cause, h.limiter}
}

func (h *limited) Handle(ctx context.Context, r slog.Record) error {
	pass := r.Level < slog.LevelInfo
	if !pass {
		by := h.cause
		r.Attrs(func(a slog.Attr) bool { by.take(a); return true })
		pass = h.admit(limitKey{r.Level, r.Message}, by)
	}
	h.tell(h.sweep(limitWindow))
	if !pass {
		return nil
	}
	return h.next.Handle(ctx, r)
}

// admit counts a line and reports whether it may pass.
func (l *limiter) admit(key limitKey, by cause) bool {
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
	first := e.first(by)
	if e.lines >= limitLines {
		if now.Sub(e.began) < limitWindow {
			if first {
				return true
			}
			e.suppressed++
			if n, known := e.causes[by]; known {
				e.causes[by] = n + 1
			}
			return false
		}
		l.swept = time.Time{} // the window is over: the sweep that follows tells and ends it
	}
	e.lines++
	return true
}

// first notes a cause and reports whether its line is the first in this window; beyond the
// bounds none is.
func (e *limitEntry) first(by cause) bool {
	if _, known := e.causes[by]; known || len(e.causes) >= limitCauses || e.addresses[by.address] >= limitPerAddress {
		return false
	}
	if e.causes == nil {
		e.causes, e.addresses = map[cause]int{}, map[string]int{}
	}
	e.causes[by] = 0
	e.addresses[by.address]++
	return true
}

// most is the cause of most lines that were kept back, as far as they are told apart.
func (e *limitEntry) most() (by cause, lines int) {
	for c, n := range e.causes {
		if n > lines || n == lines && n > 0 && c.String() < by.String() {
			by, lines = c, n
		}
	}
	return by, lines
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
			if by, lines := e.most(); lines > 0 && by != (cause{}) {
				r.AddAttrs(slog.String("most_from", by.String()), slog.Int("of_these", lines))
			}
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

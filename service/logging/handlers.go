// Small slog handlers: text or JSON by a switch, lines with a prefix of ours, records kept
// off one output, and the removal of what may be secret.

package logging

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"github.com/amqproxysvc/amqproxysvc/service/config"
)

// either is a text or a JSON handler, as the switch stands.
type either struct {
	text, json slog.Handler
	isJSON     *atomic.Bool
}

func (e either) Enabled(ctx context.Context, level slog.Level) bool {
	return e.text.Enabled(ctx, level)
}

func (e either) Handle(ctx context.Context, r slog.Record) error {
	if e.isJSON.Load() {
		return e.json.Handle(ctx, r)
	}
	return e.text.Handle(ctx, r)
}

func (e either) WithAttrs(attrs []slog.Attr) slog.Handler {
	return either{e.text.WithAttrs(attrs), e.json.WithAttrs(attrs), e.isJSON}
}

func (e either) WithGroup(name string) slog.Handler {
	return either{e.text.WithGroup(name), e.json.WithGroup(name), e.isJSON}
}

// fileHandler spares the formatting where no file is set.
type fileHandler struct {
	slog.Handler
	file *file
}

func (h fileHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.Handler.Enabled(ctx, level) && h.file.isOpen()
}

func (h fileHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return fileHandler{h.Handler.WithAttrs(attrs), h.file}
}

func (h fileHandler) WithGroup(name string) slog.Handler {
	return fileHandler{h.Handler.WithGroup(name), h.file}
}

// hiding keeps some records away from a handler.
type hiding struct {
	slog.Handler
	hide func(slog.Record) bool
}

func (h hiding) Handle(ctx context.Context, r slog.Record) error {
	if h.hide(r) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

func (h hiding) WithAttrs(attrs []slog.Attr) slog.Handler {
	return hiding{h.Handler.WithAttrs(attrs), h.hide}
}

func (h hiding) WithGroup(name string) slog.Handler {
	return hiding{h.Handler.WithGroup(name), h.hide}
}

// lineHandler writes PREFIX MESSAGE KEY=VALUE..., each line in one Write. The attributes
// are slog's own text.
type lineHandler struct {
	attrs  slog.Handler // writes into buf
	prefix func(slog.Record) string
	*lineOutput
}

type lineOutput struct {
	mu  sync.Mutex
	buf bytes.Buffer
	w   io.Writer
}

func newLineHandler(w io.Writer, level slog.Leveler, prefix func(slog.Record) string, omit ...string) *lineHandler {
	h := &lineHandler{prefix: prefix, lineOutput: &lineOutput{w: w}}
	h.attrs = slog.NewTextHandler(&h.buf, &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
			return slog.Attr{}
		}
		if len(groups) == 0 && slices.Contains(omit, a.Key) {
			return slog.Attr{}
		}
		return redact(groups, a)
	}})
	return h
}

func (h *lineHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.attrs.Enabled(ctx, level)
}

func (h *lineHandler) Handle(ctx context.Context, r slog.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf.Reset()
	h.buf.WriteString(h.prefix(r))
	h.buf.WriteString(oneLine(config.Redact(r.Message)))
	h.buf.WriteByte(' ')
	if err := h.attrs.Handle(ctx, r); err != nil {
		return err
	}
	line := append(bytes.TrimRight(h.buf.Bytes(), " \n"), '\n')
	_, err := h.w.Write(line)
	return err
}

func (h *lineHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &lineHandler{h.attrs.WithAttrs(attrs), h.prefix, h.lineOutput}
}

func (h *lineHandler) WithGroup(name string) slog.Handler {
	return &lineHandler{h.attrs.WithGroup(name), h.prefix, h.lineOutput}
}

func terminalPrefix(r slog.Record) string {
	return r.Time.Format("15:04:05 ") + r.Level.String() + " "
}

// journalPrefix is the syslog priority as sd-daemon(3) has it.
func journalPrefix(r slog.Record) string {
	switch {
	case r.Level >= slog.LevelError:
		return "<3>"
	case r.Level >= slog.LevelWarn:
		return "<4>"
	case r.Level >= slog.LevelInfo:
		return "<6>"
	}
	return "<7>"
}

// oneLine keeps what a peer sent from forging a line of its own.
func oneLine(text string) string {
	if strings.ContainsFunc(text, func(r rune) bool { return !strconv.IsPrint(r) }) {
		quoted := strconv.Quote(text)
		return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
	}
	return text
}

const (
	// longest is how many octets of a value a line shows: a peer's names can be kilobytes.
	longest = 256
	// longestError is the same for what the program itself says is wrong.
	longestError = 2048
)

// brief cuts what is too long, between two characters.
func brief(text string) string { return cut(text, longest) }

func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	for most > 0 && !utf8.RuneStart(text[most]) {
		most--
	}
	return text[:most] + "..."
}

// redact takes values out that are secret by their name, and passwords out of URLs, and cuts
// what is too long. The engine logs no secret; this is the second fence.
func redact(_ []string, a slog.Attr) slog.Attr {
	most := longest
	switch strings.ToLower(a.Key) {
	case "password", "passwd", "secret", "token", "authorization", "credentials", "response":
		return slog.String(a.Key, "[redacted]")
	case "error", slog.MessageKey:
		most = longestError
	}
	switch a.Value.Kind() {
	case slog.KindString:
		a.Value = slog.StringValue(cut(config.Redact(a.Value.String()), most))
	case slog.KindAny:
		if err, ok := a.Value.Any().(error); ok {
			a.Value = slog.StringValue(cut(config.Redact(err.Error()), most))
		}
	}
	return a
}

// redactJSON is redact for JSON, which leaves as they are the characters that turn a line
// around on a screen, and writes times as numbers of nanoseconds: for programs they are
// seconds, as everywhere, and the name says so.
func redactJSON(groups []string, a slog.Attr) slog.Attr {
	a = redact(groups, a)
	switch a.Value.Kind() {
	case slog.KindString:
		a.Value = slog.StringValue(visible(a.Value.String()))
	case slog.KindDuration:
		return slog.Float64(a.Key+"_seconds", a.Value.Duration().Seconds())
	}
	return a
}

// visible writes what cannot be seen, but for what JSON escapes itself, as its code.
func visible(text string) string {
	hidden := func(r rune) bool { return r >= ' ' && !strconv.IsPrint(r) }
	if !strings.ContainsFunc(text, hidden) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if hidden(r) {
			quoted := strconv.QuoteRuneToASCII(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// fenced is a handler of another package behind the same fence as our own: secrets taken
// out, long values cut, each text on one line.
type fenced struct{ slog.Handler }

func (h fenced) Handle(ctx context.Context, r slog.Record) error {
	out := slog.NewRecord(r.Time, r.Level, oneLine(cut(config.Redact(r.Message), longestError)), r.PC)
	r.Attrs(func(a slog.Attr) bool { out.AddAttrs(fence(a)); return true })
	return h.Handler.Handle(ctx, out)
}

func (h fenced) WithAttrs(attrs []slog.Attr) slog.Handler {
	out := make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		out[i] = fence(a)
	}
	return fenced{h.Handler.WithAttrs(out)}
}

func (h fenced) WithGroup(name string) slog.Handler { return fenced{h.Handler.WithGroup(name)} }

func fence(a slog.Attr) slog.Attr {
	a.Value = a.Value.Resolve()
	if a.Value.Kind() == slog.KindGroup {
		members := slices.Clone(a.Value.Group())
		for i := range members {
			members[i] = fence(members[i])
		}
		a.Value = slog.GroupValue(members...)
		return a
	}
	a = redact(nil, a)
	if a.Value.Kind() == slog.KindString {
		a.Value = slog.StringValue(oneLine(a.Value.String()))
	}
	return a
}

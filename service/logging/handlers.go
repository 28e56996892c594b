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

// redact takes values out that are secret by their name, and passwords out of URLs. The
// engine logs none; this is the second fence.
func redact(_ []string, a slog.Attr) slog.Attr {
	switch strings.ToLower(a.Key) {
	case "password", "passwd", "secret", "token", "authorization", "credentials", "response":
		return slog.String(a.Key, "[redacted]")
	}
	switch a.Value.Kind() {
	case slog.KindString:
		a.Value = slog.StringValue(config.Redact(a.Value.String()))
	case slog.KindAny:
		if err, ok := a.Value.Any().(error); ok {
			a.Value = slog.StringValue(config.Redact(err.Error()))
		}
	}
	return a
}

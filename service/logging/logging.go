// Package logging decides where log lines go and how they look: text for a terminal,
// priorities for the journal, text or JSON elsewhere, a rotating file beside it, and
// whatever handlers the service adds (the Windows event log).

package logging

import (
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/term"

	"github.com/amqproxysvc/amqproxysvc/service/config"
)

// Options say where a Log writes. What may change while it runs is in Settings.
type Options struct {
	Settings config.Log
	// Output takes the lines besides the file; nil: nothing does.
	Output io.Writer
	// Style is how lines look on Output; see StyleOf.
	Style Style
	// Hide, if not nil, keeps records off Output (not off the file).
	Hide func(slog.Record) bool
	// Extra handlers get every record as well, after rate limiting; they have their own levels.
	Extra []slog.Handler
	// Now is the clock of the rate limit; nil: time.Now.
	Now func() time.Time
}

// Style is how lines look.
type Style int

// The styles.
const (
	// StylePlain is text or JSON, as the settings say.
	StylePlain Style = iota
	// StyleTerminal is for people: time of day, level, message, attributes.
	StyleTerminal
	// StyleJournal leads each line with its priority, "<6>", and leaves the time to the journal.
	StyleJournal
)

// StyleOf is the style that suits a stream: is it the journal's, or a terminal?
func StyleOf(f *os.File) Style {
	switch {
	case isJournal(f, os.Getenv("JOURNAL_STREAM")):
		return StyleJournal
	case term.IsTerminal(int(f.Fd())):
		return StyleTerminal
	}
	return StylePlain
}

// Log is the program's log. Its methods may be called from any goroutine.
type Log struct {
	level slog.LevelVar
	json  atomic.Bool
	file  file
	limit *limiter
	root  slog.Handler
}

// New opens the log. An error names the setting that is wrong; nothing is open then.
func New(o Options) (*Log, error) {
	l := &Log{}
	var all []slog.Handler
	if o.Output != nil {
		h := l.output(o.Output, o.Style)
		if o.Hide != nil {
			h = hiding{h, o.Hide}
		}
		all = append(all, h)
	}
	all = append(all, fileHandler{l.plain(&l.file), &l.file})
	for _, h := range o.Extra {
		all = append(all, fenced{h})
	}
	l.limit = newLimiter(o.Now)
	l.root = &limited{next: slog.NewMultiHandler(all...), limiter: l.limit}
	l.limit.root = slog.NewMultiHandler(all...)
	if err := l.Apply(o.Settings); err != nil {
		return nil, err
	}
	return l, nil
}

// Logger is the logger to hand out; it follows Apply.
func (l *Log) Logger() *slog.Logger { return slog.New(l.root) }

// Apply changes level, format and file. On an error everything stays as it was.
func (l *Log) Apply(s config.Log) error {
	if err := l.file.apply(s); err != nil {
		return err
	}
	l.level.Set(s.Level)
	l.json.Store(s.Format == "json")
	return nil
}

// Reopen closes and opens the file, so that another program may move it away.
func (l *Log) Reopen() error { return l.file.reopen() }

// Follow leaves the file's rotation to another process that writes to it, too. It cannot be taken back.
func (l *Log) Follow() { l.file.follow() }

// Close tells what was suppressed and closes the file.
func (l *Log) Close() error {
	l.limit.flush()
	return l.file.close()
}

func (l *Log) output(w io.Writer, style Style) slog.Handler {
	switch style {
	case StyleTerminal:
		return newLineHandler(w, &l.level, terminalPrefix, "event_id") // an ID is for machines
	case StyleJournal:
		return newLineHandler(w, &l.level, journalPrefix)
	}
	return l.plain(w)
}

// plain writes text or JSON, as it is set at the time.
func (l *Log) plain(w io.Writer) slog.Handler {
	return either{
		slog.NewTextHandler(w, &slog.HandlerOptions{Level: &l.level, ReplaceAttr: redact}),
		slog.NewJSONHandler(w, &slog.HandlerOptions{Level: &l.level, ReplaceAttr: redactJSON}),
		&l.json,
	}
}

// file is the rotating file, or none.
type file struct {
	isSet atomic.Bool // whether open is there

	mu   sync.Mutex
	set  config.Log
	open io.WriteCloser // nil: none
}

// Write writes a line to the file, if there is one.
func (f *file) Write(line []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open == nil {
		return len(line), nil
	}
	return f.open.Write(line)
}

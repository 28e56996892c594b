// Running in the foreground, as AMQProxy does: on a terminal its two lines and the line
// with the counts, kept up to date; otherwise log lines with the same words.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/service"
	"github.com/amqproxysvc/amqproxysvc/service/config"
	"github.com/amqproxysvc/amqproxysvc/service/logging"
)

// countsEvery is how often the counts on the terminal are looked at.
const countsEvery = 250 * time.Millisecond

// runOptions say how runProxy runs the engine.
type runOptions struct {
	Name string // of the service's instance
	// Managed says that a service manager started the process.
	Managed   bool
	StateFile string
	// Log is where log lines go; its Settings are filled in.
	Log logging.Options
	// Ready, if not nil, is called when clients can connect.
	Ready func(*engine)
}

// runProxy loads the settings and runs the engine to its end. The foreground and the
// service run it alike.
func runProxy(ctx context.Context, src config.Source, o runOptions) error {
	var made *engine
	var openErr error
	err := service.Run(ctx, service.Options{
		Name: o.Name, Managed: o.Managed, StateFile: o.StateFile,
		Open: func(context.Context) (service.Engine, error) {
			made, openErr = openEngine(src, o.Log)
			if openErr != nil {
				return nil, openErr // not made itself: a nil *engine is no nil Engine
			}
			return made, nil
		},
		Ready: func(service.Engine) {
			if o.Ready != nil {
				o.Ready(made)
			}
		},
	})
	if made != nil {
		err = errors.Join(err, made.log.Close())
	}
	if openErr != nil {
		return openErr
	}
	return err
}

// runForeground runs until interrupted, with output for people or for log collectors on
// standard output, where AMQProxy's is.
func runForeground(ctx context.Context, src config.Source) error {
	fg := &foreground{}
	o := runOptions{Name: "amqproxysvc", Ready: fg.ready}
	o.Log.Style = logging.StyleOf(os.Stdout)
	o.Log.Output = os.Stdout
	if o.Log.Style == logging.StyleTerminal {
		fg.term = &terminal{w: os.Stdout}
		o.Log.Output = fg.term
	}
	o.Log.Hide = fg.hide
	err := runProxy(ctx, src, o)
	fg.stop()
	var coded *service.ExitError
	if fg.failed != "" && errors.As(err, &coded) && coded.Err == nil {
		return &service.ExitError{Code: coded.Code, Err: errors.New(fg.failed)}
	}
	return err
}

type foreground struct {
	term    *terminal                   // nil: standard output is not a terminal
	log     atomic.Pointer[slog.Logger] // nil: not serving yet
	failed  string                      // why the start failed: told once, on standard error
	updater sync.WaitGroup
	ended   chan struct{}
}

// hide keeps off the output what is said there in another way: on a terminal AMQProxy's
// lines stand for the engine's informative ones; an error at the start goes to standard error.
func (f *foreground) hide(r slog.Record) (hidden bool) {
	event, text := int64(0), ""
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case service.EventKey:
			event = a.Value.Int64()
		case "error":
			text = a.Value.String()
		}
		return true
	})
	switch event {
	case 0:
		if f.term == nil || r.Level != slog.LevelInfo {
			return false
		}
		log := f.log.Load() // who wants debug lines wants these too
		return log == nil || !log.Enabled(context.Background(), slog.LevelDebug)
	case service.EventStarted:
		return true
	case service.EventStartFailed:
		f.failed = text
		return text != ""
	}
	return false
}

// ready says AMQProxy's lines and begins to keep the counts up to date.
func (f *foreground) ready(e *engine) {
	f.log.Store(e.log.Logger())
	if f.term == nil {
		slog.Info("Proxy upstream: " + e.upstreamText())
		for _, a := range e.Status().Listening {
			slog.Info("Proxy listening on " + a)
		}
		if e.adminAddr != nil {
			slog.Info("HTTP server listening on " + e.adminAddr.String())
		}
		return
	}
	say(f.term, "Proxy upstream: %s", e.upstreamText())
	for _, a := range e.Status().Listening {
		say(f.term, "Proxy listening on %s", a)
	}
	f.ended = make(chan struct{})
	f.updater.Go(func() {
		tick := time.NewTicker(countsEvery)
		defer tick.Stop()
		for {
			s := e.Stats()
			f.term.setCounts(fmt.Sprintf("%d clients\t\t %d upstreams", s.Clients, s.Upstreams))
			select {
			case <-tick.C:
			case <-f.ended:
				return
			}
		}
	})
}

// stop ends the updates and leaves the cursor on a line of its own.
func (f *foreground) stop() {
	if f.ended != nil {
		close(f.ended)
		f.updater.Wait()
		f.term.end()
	}
}

// terminal writes lines above one line that is kept up to date. It uses nothing but
// carriage returns and spaces, which every console knows.
type terminal struct {
	mu     sync.Mutex
	w      io.Writer
	counts string
}

func (t *terminal) Write(lines []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.counts == "" {
		return t.w.Write(lines)
	}
	if _, err := fmt.Fprintf(t.w, "\r%s\r%s%s", strings.Repeat(" ", width(t.counts)), lines, t.counts); err != nil {
		return 0, err
	}
	return len(lines), nil
}

// setCounts writes the line anew if it changed.
func (t *terminal) setCounts(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if line == t.counts {
		return
	}
	pad := max(0, width(t.counts)-width(line))
	_, _ = fmt.Fprintf(t.w, "\r%s%s", line, strings.Repeat(" ", pad))
	t.counts = line
}

func (t *terminal) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, _ = io.WriteString(t.w, "\n")
	t.counts = ""
}

// width is how many columns a line takes, tabs included.
func width(line string) (n int) {
	for _, r := range line {
		if r == '\t' {
			n += 8 - n%8
		} else {
			n++
		}
	}
	return n
}

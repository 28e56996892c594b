// Running in the foreground, as AMQProxy does: on a terminal its two lines and the line
// with the counts, kept up to date; otherwise log lines with the same words.

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/service"
	"github.com/amqproxysvc/amqproxysvc/service/config"
	"github.com/amqproxysvc/amqproxysvc/service/logging"
	"github.com/amqproxysvc/amqproxysvc/service/terminal"
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
	var host service.Host
	err := service.Run(ctx, service.Options{
		Name: o.Name, Managed: o.Managed, StateFile: o.StateFile, Host: func(h service.Host) { host = h },
		Open: func(context.Context) (service.Engine, error) {
			made, openErr = openEngine(src, o.Log)
			if openErr != nil {
				return nil, openErr // not made itself: a nil *engine is no nil Engine
			}
			made.name, made.managed, made.host = o.Name, o.Managed, host
			return made, nil
		},
		Ready: func(service.Engine) {
			if made.control != nil {
				made.control.Own()
			}
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
		fg.term = terminal.Of(os.Stdout)
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
	term    *terminal.Terminal     // nil: standard output is not a terminal
	engine  atomic.Pointer[engine] // nil: not serving yet
	failed  string                 // why the start failed: told once, on standard error
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
		e := f.engine.Load() // who wants debug lines wants these too
		return e == nil || !e.log.Logger().Enabled(context.Background(), slog.LevelDebug)
	case service.EventStarted:
		return true
	case service.EventStopping:
		if e := f.engine.Load(); f.term != nil && e != nil {
			say(f.term, "%s", stoppingText(e.Status()))
			return true
		}
	case service.EventStartFailed:
		f.failed = text
		return text != ""
	}
	return false
}

// stoppingText tells whoever pressed Ctrl-C what is waited for.
func stoppingText(st service.Status) string {
	switch {
	case st.Clients == 0:
		return "Stopping."
	case st.DrainTimeout <= 0:
		return fmt.Sprintf("Stopping: %s told to close.", service.Plural(st.Clients, "client"))
	case st.Clients == 1:
		return fmt.Sprintf("Stopping: 1 client has %v to finish; Ctrl-C again ends at once.", st.DrainTimeout)
	}
	return fmt.Sprintf("Stopping: %d clients have %v to finish; Ctrl-C again ends at once.", st.Clients, st.DrainTimeout)
}

// ready says AMQProxy's lines and begins to keep the counts up to date.
func (f *foreground) ready(e *engine) {
	f.engine.Store(e)
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
			f.showCounts(e)
			select {
			case <-tick.C:
			case <-f.ended:
				return
			}
		}
	})
}

func (f *foreground) showCounts(e *engine) {
	s := e.Stats()
	f.term.SetStatus(fmt.Sprintf("%d clients\t\t %d upstreams", s.Clients, s.Upstreams))
}

// stop ends the updates with the last counts, and leaves the cursor on a line of its own.
func (f *foreground) stop() {
	if f.ended != nil {
		close(f.ended)
		f.updater.Wait()
		f.showCounts(f.engine.Load())
		f.term.End()
	}
}

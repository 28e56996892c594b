// Package admin serves metrics and health over HTTP: /metrics, /healthz, /readyz, and
// Go's profiles when asked to. It is bounded in time, connections and work, and reads
// the engine through an interface of two methods.

package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/singleflight"

	"github.com/amqproxysvc/amqproxysvc/proxy"
)

const (
	// longestProfile bounds what one profile may take of the process.
	longestProfile = 60
	// readyTimeout bounds the look at the broker behind /readyz.
	readyTimeout = 5 * time.Second
	// readyTTL is how long its answer is used again, so that probes do not knock at the
	// broker more than once a second, however many there are.
	readyTTL = time.Second
	// maxAsking is how many wait for that answer at a time. Others hear the one before: a crowd that asks while the
	// broker says nothing is not to hold all connections that there may be.
	maxAsking = 64
)

// Source is the engine as far as this package needs it.
type Source interface {
	// Stats is a snapshot of the counters.
	Stats() proxy.Stats
	// Ready says why clients cannot be served, nil when they can.
	Ready(ctx context.Context) error
}

// Options say what is served.
type Options struct {
	Source  Source
	Version string
	// Hosts are names, besides localhost, addresses and the machine's own, that requests may
	// be for, parted by blanks or commas.
	Hosts string
	// Pprof serves /debug/pprof/ too.
	Pprof bool
	// Lister is what the live page shows; nil: there is none.
	Lister Lister
	// Password is asked for by the page and what it reads; "": none.
	Password string
	Logger   *slog.Logger // nil: slog.Default()
}

// Server serves on one listener. Make it with New, run it with Serve, end it with Shutdown.
type Server struct {
	http    *http.Server
	limited *limitListener
	ready   *readiness
	live    *page // nil: there is none
	closing atomic.Bool
	errs    chan error
}

// New makes a server; nothing is bound.
func New(o Options) *Server {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	ready := &readiness{source: o.Source}
	var live *page
	if o.Lister != nil {
		live = newPage(o.Lister, o.Version, o.Password)
	}
	s := &Server{
		errs:  make(chan error, 1),
		ready: ready,
		live:  live,
		http: &http.Server{
			Handler:           answering(handler(o, ready, live)),
			ConnContext:       withConn,
			ConnState:         idle,
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       10 * time.Second,
			WriteTimeout:      2 * time.Minute, // a CPU profile takes as long as it was asked to
			IdleTimeout:       5 * time.Second,
			MaxHeaderBytes:    16 << 10,
			ErrorLog:          slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
		},
	}
	return s
}

// Serve accepts on the listener, which it takes over, until Shutdown. It does not block.
func (s *Server) Serve(ln net.Listener) {
	s.serve(newLimitListener(ln, mostConns(proxy.SpareSockets())))
}

func (s *Server) serve(limited *limitListener) {
	s.limited = limited
	go func() {
		err := s.http.Serve(limited)
		if s.closing.Load() {
			err = nil
		}
		s.errs <- err
	}()
}

// Shutdown stops accepting, lets who has come have his answer until ctx ends, then closes all. It
// must come once, after Serve, and gives the error with which serving ended, if it failed.
func (s *Server) Shutdown(ctx context.Context) error {
	s.closing.Store(true)
	_ = s.limited.Close() // nothing was to be read or written
	err := <-s.errs
	if s.live != nil {
		close(s.live.ending)
	}
	// Not http.Server's Shutdown: that ends whoever has come and not asked yet. So each goes after his answer.
	s.http.SetKeepAlivesEnabled(false)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for s.limited.holds() && ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	_ = s.http.Close()
	return err
}

// Forget makes the next /readyz ask anew; to be called when settings have changed.
func (s *Server) Forget() {
	s.ready.mu.Lock()
	defer s.ready.mu.Unlock()
	s.ready.asked = time.Time{}
}

// Handler is the HTTP interface itself.
func Handler(o Options) http.Handler {
	var live *page
	if o.Lister != nil {
		live = newPage(o.Lister, o.Version, o.Password)
	}
	return handler(o, &readiness{source: o.Source}, live)
}

func handler(o Options, ready *readiness, live *page) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		newCollector(o.Source, o.Version),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: 4,
		Timeout:             10 * time.Second,
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, "OK")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, req *http.Request) {
		if err := ready.ask(req.Context()); err != nil {
			answer(w, http.StatusServiceUnavailable, "not ready: "+strings.ReplaceAll(err.Error(), "\n", "; "))
			return
		}
		answer(w, http.StatusOK, "OK")
	})
	index := func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, "amqproxysvc "+o.Version+": /metrics /healthz /readyz")
	}
	if live != nil {
		live.routes(mux, index)
	} else {
		mux.HandleFunc("GET /{$}", index)
	}
	if o.Pprof { // without the command line, which may hold the broker's URL with a password
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", bounded(pprof.Profile))
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", bounded(pprof.Trace))
	}
	return hostCheck(o.Hosts, mux)
}

// bounded refuses a profile over more time than longestProfile.
func bounded(profile http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		if text := req.FormValue("seconds"); text != "" {
			if n, err := strconv.ParseFloat(text, 64); err != nil || !(n >= 0 && n <= longestProfile) {
				answer(w, http.StatusBadRequest, fmt.Sprintf("seconds is %.20q, allowed is 0 to %d", text, longestProfile))
				return
			}
		}
		profile(w, req)
	}
}

func answer(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, text+"\n")
}

// readiness asks the source at most once at a time and once in readyTTL.
type readiness struct {
	source Source
	flight singleflight.Group
	asking atomic.Int32

	mu    sync.Mutex
	asked time.Time
	err   error
}

func (r *readiness) ask(ctx context.Context) error {
	if err, fresh := r.known(); fresh {
		return err
	}
	defer r.asking.Add(-1)
	if r.asking.Add(1) > maxAsking {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.asked.IsZero() {
			return errors.New("the broker has not answered yet")
		}
		return r.err
	}
	// The question outlives a prober that hangs up: others wait for the same answer.
	result := r.flight.DoChan("", func() (any, error) {
		if err, fresh := r.known(); fresh {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readyTimeout)
		defer cancel()
		err := r.source.Ready(ctx)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.asked, r.err = time.Now(), err
		return nil, err
	})
	select {
	case a := <-result:
		return a.Err
	case <-ctx.Done():
		return fmt.Errorf("no answer: %w", ctx.Err())
	}
}

func (r *readiness) known() (err error, fresh bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err, !r.asked.IsZero() && time.Since(r.asked) < readyTTL
}

// The program's tests run it in this process, or start the test binary as the program. The
// engine behind it is a fake with real listeners, but for the tests of whole_linux_test.go.

package main

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/advice"
)

// asProgram makes the test binary be the program: "real" with the real engine, else with the fake.
const asProgram = "AMQPROXYSVC_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	for _, name := range []string{"LISTEN_ADDRESS", "LISTEN_PORT", "HTTP_PORT", "LOG_LEVEL", "IDLE_CONNECTION_TIMEOUT",
		"MAX_UPSTREAM_CHANNELS", "TERM_TIMEOUT", "TERM_CLIENT_CLOSE_TIMEOUT", "AMQP_URL", "JOURNAL_STREAM", "NOTIFY_SOCKET"} {
		if os.Getenv(asProgram) == "" {
			_ = os.Unsetenv(name)
		}
	}
	if version == "" {
		version = "0.0.0-test"
	}
	if os.Getenv(asProgram) != "" {
		if os.Getenv(asProgram) != "real" {
			newServer = func(cfg proxy.Config) (proxyServer, error) { return newFake(cfg), nil }
		}
		os.Exit(run(os.Args[1:], os.Stderr))
	}
	os.Exit(m.Run())
}

// fakeServer accepts and counts clients, and does what a test tells it.
type fakeServer struct {
	advice    []advice.Advice
	limited   []proxy.LimitKeyInfo
	cfg       proxy.Config
	listeners []net.Listener
	clients   atomic.Int32
	done      chan struct{}
	closeOnce sync.Once
	workers   sync.WaitGroup

	mu       sync.Mutex
	conns    map[net.Conn]bool
	reloaded []proxy.Config

	reloadErr error
	need      []string
	stuck     bool // Shutdown ends only by Close
	ready     error

	list  []proxy.ClientInfo
	ups   []proxy.UpstreamInfo
	shows []proxy.ListenerStats
	more  func(*proxy.Stats)
}

func newFake(cfg proxy.Config) *fakeServer {
	return &fakeServer{cfg: cfg, done: make(chan struct{}), conns: map[net.Conn]bool{}}
}

func (f *fakeServer) Start(inherited []net.Listener) error {
	for i, l := range f.cfg.Listeners {
		if i < len(inherited) && inherited[i] != nil {
			f.listeners = append(f.listeners, inherited[i])
			continue
		}
		ln, err := net.Listen("tcp", l.Address)
		if err != nil {
			for _, ln := range f.listeners {
				_ = ln.Close()
			}
			return err
		}
		f.listeners = append(f.listeners, ln)
	}
	for _, ln := range f.listeners {
		f.workers.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				f.workers.Go(func() { f.serve(c) })
			}
		})
	}
	return nil
}

func (f *fakeServer) serve(c net.Conn) {
	f.mu.Lock()
	f.conns[c] = true
	f.mu.Unlock()
	f.clients.Add(1)
	var b [1]byte
	_, _ = c.Read(b[:])
	f.clients.Add(-1)
	f.mu.Lock()
	delete(f.conns, c)
	f.mu.Unlock()
	_ = c.Close()
}

func (f *fakeServer) Listeners() []net.Listener { return f.listeners }

func (f *fakeServer) Addrs() (addrs []net.Addr) {
	for _, ln := range f.listeners {
		addrs = append(addrs, ln.Addr())
	}
	return addrs
}

func (f *fakeServer) Reload(cfg proxy.Config) ([]string, error) {
	if f.reloadErr != nil {
		return nil, f.reloadErr
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reloaded = append(f.reloaded, cfg)
	return f.need, nil
}

func (f *fakeServer) StopAccepting() {
	for _, ln := range f.listeners {
		_ = ln.Close()
	}
}

func (f *fakeServer) Shutdown(context.Context) error {
	if f.stuck {
		<-f.done
		return nil
	}
	return f.Close()
}

func (f *fakeServer) Close() error {
	f.closeOnce.Do(func() {
		for _, ln := range f.listeners {
			_ = ln.Close()
		}
		f.mu.Lock()
		for c := range f.conns {
			_ = c.Close()
		}
		f.mu.Unlock()
		f.workers.Wait()
		close(f.done)
	})
	return nil
}

func (f *fakeServer) Done() <-chan struct{}           { return f.done }
func (f *fakeServer) Err() error                      { return nil }
func (f *fakeServer) Ready(context.Context) error     { return f.ready }
func (f *fakeServer) SelfCheck(context.Context) error { return nil }
func (f *fakeServer) Stats() proxy.Stats {
	st := proxy.Stats{Clients: int(f.clients.Load()), Upstreams: 1, Listeners: f.shows, Advice: f.advice}
	if f.more != nil {
		f.more(&st)
	}
	return st
}

func (f *fakeServer) ListClients() []proxy.ClientInfo     { return f.list }
func (f *fakeServer) ListUpstreams() []proxy.UpstreamInfo { return f.ups }
func (f *fakeServer) Kick(id uint64, user string) int {
	return len(slices.DeleteFunc(slices.Clone(f.list), func(c proxy.ClientInfo) bool { return c.ID != id && (id != 0 || c.User != user) }))
}
func (f *fakeServer) ListLimits(int, func(proxy.LimitBy, string) bool) ([]proxy.Limit, []proxy.LimitKeyInfo, int) {
	limits := make([]proxy.Limit, 0, len(f.limited))
	for _, k := range f.limited {
		limits = append(limits, k.Limit)
	}
	return limits, f.limited, len(f.limited) + 1
}
func (f *fakeServer) Reconnect(uint64, string) int          { return len(f.ups) }
func (f *fakeServer) Balance() int                          { return len(f.ups) }
func (f *fakeServer) Pause(string, bool, time.Duration) int { return len(f.ups) }
func (f *fakeServer) Resume(vhost string, _ bool) bool      { return vhost != "never" }
func (f *fakeServer) Trace(context.Context, proxy.TraceWanted) (*proxy.Trace, error) {
	return nil, errTest
}

// useFake puts the fake in the engine's place for one test.
func useFake(t *testing.T, prepare func(*fakeServer)) *fakeServer {
	t.Helper()
	fake := newFake(proxy.Config{})
	if prepare != nil {
		prepare(fake)
	}
	before := newServer
	newServer = func(cfg proxy.Config) (proxyServer, error) { fake.cfg = cfg; return fake, nil }
	t.Cleanup(func() {
		newServer = before
		_ = fake.Close()
	})
	return fake
}

// program runs the command line in this process.
func program(args ...string) (code int, stderr string) {
	var b strings.Builder
	code = run(args, &b)
	return code, b.String()
}

var errTest = errors.New("test error")

// patience bounds each wait for what must come. It measures nothing: a machine may have much else to do.
const patience = time.Minute

// within fails the test when something takes too long.
func within(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s: not within %v", what, patience)
	}
}

// freePort is a port that was free a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return port
}

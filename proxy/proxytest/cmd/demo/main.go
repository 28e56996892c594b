// Command demo shows what the proxy is for, without a broker: a stand-in behind TLS
// and 50 ms, the proxy in front of it, one message per connection straight and
// pooled. Then it stays, for the user's own client.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/service/terminal"
)

func main() {
	d := demo{out: os.Stdout, columns: func() int { return 0 }}
	if term.IsTerminal(int(os.Stdout.Fd())) {
		d.columns = func() int { return terminal.Columns(os.Stdout) }
		d.screen = terminal.New(os.Stdout, d.columns)
		d.out = d.screen
	}
	flag.StringVar(&d.url, "broker", "", "AMQP `URL` of a real broker, user, password and vhost in it; else a stand-in is started")
	flag.IntVar(&d.straight, "straight", 20, "messages sent straight to the broker")
	flag.IntVar(&d.pooled, "pooled", 200, "messages sent through the proxy")
	flag.StringVar(&d.port, "port", "", "`PORT` of the proxy (default 5673, or another where that is taken)")
	flag.BoolVar(&d.leave, "leave", false, "end after the table, do not stay")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := d.run(ctx); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "demo: "+err.Error())
		os.Exit(1)
	}
	if ctx.Err() != nil {
		d.say("Stopped.")
	}
}

type demo struct {
	out              io.Writer
	screen           *terminal.Terminal // nil: not a terminal
	columns          func() int         // of the window, 0: not known
	url, port        string
	straight, pooled int
	leave            bool
}

func (d *demo) say(format string, args ...any) { _, _ = fmt.Fprintf(d.out, format+"\n", args...) }

// tell is say for a sentence, which breaks between words where the window ends.
func (d *demo) tell(format string, args ...any) {
	_, _ = io.WriteString(d.out, paragraph(d.columns(), fmt.Sprintf(format, args...)))
}

// status is a line that is written over by the next one; a pipe does not get it.
func (d *demo) status(format string, args ...any) {
	if d.screen != nil {
		d.screen.SetStatus(fmt.Sprintf(format, args...))
	}
}

// endStatus takes the line away, for what comes in its place.
func (d *demo) endStatus() {
	if d.screen != nil {
		d.screen.SetStatus("")
	}
}

func (d *demo) run(ctx context.Context) error {
	t, err := d.target()
	if err != nil {
		return err
	}
	defer t.close()
	ln, err := d.listen()
	if err != nil {
		return err
	}
	srv, err := start(ln, t)
	if err != nil {
		ln.Close()
		return err
	}
	defer stopServer(srv)
	d.tell("Proxy upstream: %s%s", t.upstream.Address(), map[bool]string{true: " TLS"}[t.upstream.TLS != nil])
	d.tell("Proxy listening on %s", ln.Addr())
	d.say("")

	control, queue, err := openQueue(t.client)
	if err != nil {
		return fmt.Errorf("%s: %w", t.client.Addr, err)
	}
	defer func() { _ = control.Hangup() }()
	pooledCfg := t.client
	pooledCfg.Addr, pooledCfg.TLS = ln.Addr().String(), nil
	before := t.opened(srv)
	a, err := d.series(ctx, "straight to the broker", t.client, queue, d.straight)
	if err != nil {
		return err
	}
	a.opened = len(a.times)
	if t.broker != nil {
		a.opened = t.broker.Counts().Opened - before
	}
	before = t.opened(srv)
	b, err := d.series(ctx, "through the proxy", pooledCfg, queue, d.pooled)
	if err != nil {
		return err
	}
	b.opened = t.opened(srv) - before
	if err := awaitMessages(ctx, control, queue, d.straight+d.pooled); err != nil {
		return err
	}
	d.say("\n%s", table(d.columns(), a, b))
	d.tell("All %d messages have arrived in the queue.", d.straight+d.pooled)
	if d.leave {
		return nil
	}
	t.watchMessages()
	d.say("\n%s", invitation(d.columns(), ln.Addr().(*net.TCPAddr).Port, t))
	d.watch(ctx, srv, t)
	d.endStatus()
	return nil
}

// listen takes the port asked for, or 5673, or any.
func (d *demo) listen() (net.Listener, error) {
	port := d.port
	if port == "" {
		port = "5673"
	}
	ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
	if err == nil {
		return ln, nil
	}
	if d.port != "" {
		return nil, fmt.Errorf("cannot listen on port %s: %w; give another -port, or none", port, err)
	}
	if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	d.tell("Port 5673 is taken: the proxy takes %d instead.", ln.Addr().(*net.TCPAddr).Port)
	return ln, nil
}

func start(ln net.Listener, t *target) (*proxy.Server, error) {
	cfg := proxy.DefaultConfig()
	cfg.Listeners[0].Address = ln.Addr().String()
	cfg.Upstream = t.upstream
	cfg.Version = "demo"
	cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	srv, err := proxy.New(cfg)
	if err != nil {
		return nil, err
	}
	return srv, srv.Start([]net.Listener{ln})
}

func stopServer(srv *proxy.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		_ = srv.Close()
	}
}

// openQueue makes a queue that ends with the demo.
func openQueue(cfg proxytest.ClientConfig) (*proxytest.Client, string, error) {
	c, err := proxytest.Dial(cfg)
	if err != nil {
		return nil, "", err
	}
	if err := c.OpenChannel(1); err != nil {
		return nil, "", err
	}
	queue, err := c.DeclareQueue(1, fmt.Sprintf("amqproxysvc-demo-%d", os.Getpid()), proxytest.Exclusive)
	return c, queue, err
}

// awaitMessages waits until the broker has routed what was published; a publish has no answer.
func awaitMessages(ctx context.Context, c *proxytest.Client, queue string, want int) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		n, err := c.QueueLength(1, queue) // costs a round trip
		if err != nil || n == want {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d messages were sent, %d have arrived", want, n)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// result is what one way of sending took.
type result struct {
	name   string
	times  []time.Duration
	opened int // connections at the broker
}

// series sends n messages, each over a connection of its own.
func (d *demo) series(ctx context.Context, name string, cfg proxytest.ClientConfig, queue string, n int) (result, error) {
	r := result{name: name}
	if d.screen == nil {
		d.say("%-22s sending %d messages, one connection each ...", name, n)
	}
	for i := range n {
		d.status("%s", progress(name, i, n))
		took, err := oneMessage(cfg, queue, fmt.Appendf(nil, "%s %d", name, i))
		if err != nil {
			return r, fmt.Errorf("message %d %s: %w", i+1, name, err)
		}
		r.times = append(r.times, took)
		if ctx.Err() != nil {
			return r, ctx.Err()
		}
	}
	d.endStatus()
	if d.screen != nil {
		d.say("%s", terminal.Cut(progress(name, n, n), max(d.columns()-1, 39)))
	}
	return r, nil
}

func progress(name string, i, n int) string {
	return fmt.Sprintf("%-22s %d/%d %s", name, i, n, bar(i, n))
}

func bar(i, n int) string {
	const width = 30
	full := i * width / n
	return "[" + strings.Repeat("#", full) + strings.Repeat(".", width-full) + "]"
}

// oneMessage does what a PHP request does: connect, open a channel, set its prefetch as
// php-amqp always does, publish, close the channel, disconnect.
func oneMessage(cfg proxytest.ClientConfig, queue string, body []byte) (time.Duration, error) {
	start := time.Now()
	c, err := proxytest.Dial(cfg)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Hangup() }()
	steps := []func() error{
		func() error { return c.OpenChannel(1) },
		func() error { return c.Qos(1, 3) },
		func() error { return c.Publish(1, "", queue, body) },
		func() error { return c.CloseChannel(1) },
		c.Close,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return 0, err
		}
	}
	return time.Since(start), nil
}

// watch keeps a line up to date on a terminal until the demo is stopped.
func (d *demo) watch(ctx context.Context, srv *proxy.Server, t *target) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		s := srv.Stats()
		d.status("%d clients\t\t %d upstreams", s.Clients, s.Upstreams)
		select {
		case size := <-t.messages:
			d.tell("Your client's message arrived at the stand-in broker: %d bytes.", size)
		case <-ctx.Done():
			return
		case <-srv.Done():
			return
		case <-tick.C:
		}
	}
}

var errScheme = errors.New("allowed is amqp://USER:PASSWORD@HOST:PORT/VHOST or amqps://…")

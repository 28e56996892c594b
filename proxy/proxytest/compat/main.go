// Command compat runs client libraries' own test suites against RabbitMQ, straight and
// through the proxy, compares them test by test and prints a table. Its exit code is 1
// when a test that passes straight fails through the proxy for no reason known.
// The brokers have their management plugin, through which tests close connections; for
// RabbitMQ 4.0 that takes root with the right to mount.

//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/relay"
)

// modes are the pool modes that suites are run in.
var modes = []string{"session", "auto"}

type options struct {
	suites, brokers, modes []string
	only                   string // a unit of a suite: a test, a file
	sources                string
	// address is of a broker that runs already, management the port of its HTTP API, ctl
	// its rabbitmqctl.
	address, ctl string
	management   int
	keep, quick  bool
	reruns       int
}

func main() {
	os.Exit(run())
}

func run() int {
	var o options
	names := make([]string, len(suites))
	for i, s := range suites {
		names[i] = s.name
	}
	list := flag.String("suites", strings.Join(names, ","), "suites to run, comma-separated")
	versions := flag.String("brokers", "3.10,4.0", "releases of RabbitMQ to run them on")
	pools := flag.String("modes", strings.Join(modes, ","), "pool modes to run them in; none: straight only")
	flag.StringVar(&o.address, "address", "", "`HOST:PORT` of a broker of yours, of any product, with user guest, instead of those of -brokers; what its queues hold is not kept")
	flag.IntVar(&o.management, "management", 0, "`PORT` of its HTTP API on this machine, for tests that look connections up")
	flag.StringVar(&o.ctl, "ctl", "", "`PROGRAM` that is its rabbitmqctl, for tests that call it")
	flag.BoolVar(&o.quick, "quick", false, "what CI runs: amqp091-go but for its longest tests, and php-amqp, on RabbitMQ 3.10, unless said otherwise")
	flag.StringVar(&o.only, "only", "", "run this `UNIT` of the suite alone: a test of Go's, a file of the others'")
	flag.StringVar(&o.sources, "sources", os.Getenv("COMPAT_SOURCES"),
		"`DIR` with unpacked sources named like their suites, for those that no registry carries here")
	flag.BoolVar(&o.keep, "keep", false, "keep logs and working copies, and say where they are")
	flag.IntVar(&o.reruns, "reruns", 3, "how often tests that differ are repeated, straight and through")
	flag.Parse()
	if o.quick {
		given := map[string]bool{}
		flag.Visit(func(f *flag.Flag) { given[f.Name] = true })
		if !given["suites"] {
			*list = "amqp091-go,php-amqp"
		}
		if !given["brokers"] {
			*versions = "3.10"
		}
	}
	o.suites, o.brokers, o.modes = split(*list), split(*versions), split(*pools)
	for _, s := range o.suites {
		if !slices.Contains(names, s) {
			fmt.Fprintf(os.Stderr, "compat: no suite is called %q; there are %s\n", s, strings.Join(names, ", "))
			return 2
		}
	}
	o.modes = slices.DeleteFunc(o.modes, func(m string) bool { return m == "none" })
	for _, m := range o.modes {
		if !slices.Contains(modes, m) {
			fmt.Fprintf(os.Stderr, "compat: no mode is called %q; there are %s and none\n", m, strings.Join(modes, ", "))
			return 2
		}
	}
	if _, _, err := net.SplitHostPort(o.address); o.address != "" && err != nil {
		fmt.Fprintf(os.Stderr, "compat: -address is HOST:PORT: %v\n", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	rows, err := compare(ctx, o)
	fmt.Print(table(rows))
	if err != nil {
		fmt.Fprintln(os.Stderr, "compat:", err)
		return 1
	}
	for _, r := range rows {
		if r.unexplained() > 0 || r.missing != "" && os.Getenv("CI") == "true" {
			return 1
		}
	}
	return 0
}

func split(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' })
}

// compare runs the suites wanted on the brokers wanted.
func compare(ctx context.Context, o options) ([]*row, error) {
	work, err := os.MkdirTemp("", "amqproxysvc-compat-")
	if err != nil {
		return nil, err
	}
	if o.keep {
		fmt.Fprintln(os.Stderr, "compat: working in", work)
	} else {
		defer os.RemoveAll(work)
	}
	program := filepath.Join(work, "amqproxysvc")
	if _, err := command(ctx, "", nil, "go", "build", "-o", program,
		"github.com/amqproxysvc/amqproxysvc/cmd/amqproxysvc"); err != nil {
		return nil, fmt.Errorf("the proxy does not build: %w", err)
	}
	var rows []*row
	suitesOn := func(b *bench, names []string) (rows []*row) {
		for _, s := range suites {
			if !slices.Contains(names, s.name) || ctx.Err() != nil {
				continue
			}
			r := b.suite(s)
			rows = append(rows, r)
			if r.missing != "" {
				fmt.Fprintf(os.Stderr, "SKIPPED LOUDLY: %s: %s\n", s.name, r.missing)
			}
		}
		return rows
	}
	if o.address != "" {
		host, port, err := net.SplitHostPort(o.address)
		if err != nil {
			return nil, err
		}
		if host != "127.0.0.1" && host != "localhost" { // suites know a port only, of this machine
			way, err := relay.New(o.address, 0)
			if err != nil {
				return nil, err
			}
			defer func() { _ = way.Close() }()
			_, port, _ = net.SplitHostPort(way.Addr())
		}
		b := &bench{ctx: ctx, options: o, work: work, program: program, name: "at " + o.address}
		if b.port, err = strconv.Atoi(port); err != nil {
			return nil, err
		}
		return suitesOn(b, o.suites), ctx.Err()
	}
	// onBroker runs suites on a broker of their own.
	onBroker := func(version string, names []string) ([]*row, error) {
		broker, err := rabbit.Start(rabbit.Version(version), rabbit.WithProc)
		if err != nil {
			if os.Getenv("CI") == "true" {
				return nil, err
			}
			fmt.Fprintln(os.Stderr, "SKIPPED LOUDLY:", err)
			return nil, nil
		}
		defer broker.Close()
		own, err := os.MkdirTemp(work, "")
		if err != nil {
			return nil, err
		}
		b := &bench{ctx: ctx, options: o, work: own, program: program, broker: broker, name: version, port: broker.Port}
		if err := b.manage(); err != nil {
			return nil, err
		}
		return suitesOn(b, names), nil
	}
	for _, version := range o.brokers {
		together := [][]string{o.suites}
		if o.quick { // side by side: most of what they take is waiting
			together = slices.Collect(slices.Chunk(o.suites, 1))
		}
		got, failed := make([][]*row, len(together)), make([]error, len(together))
		var running sync.WaitGroup
		for i, names := range together {
			running.Go(func() { got[i], failed[i] = onBroker(version, names) })
		}
		running.Wait()
		rows = slices.Concat(append([][]*row{rows}, got...)...)
		if err := errors.Join(failed...); err != nil {
			return rows, err
		}
	}
	return rows, ctx.Err()
}

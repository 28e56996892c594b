// Command bench measures the proxy beside HAProxy in TCP mode and a direct
// connection, in one run, and prints a table: rates, ratios, latencies, CPU per
// operation, memory. The broker and the load are processes of their own.
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
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	role := flag.String("role", "", "for the benchmark itself: drain, load or crowd")
	o := options{}
	flag.BoolVar(&o.quick, "quick", false, "one short round, without the scaling rows: under a minute")
	flag.StringVar(&o.peers, "peers", os.Getenv("PEERS"), "`name=host:port`, comma between several: other proxies; the broker they need is told")
	flag.StringVar(&o.broker, "broker", os.Getenv("BROKER"), "`amqp://HOST:PORT` of a real broker that lets guest in: connects are measured against it too")
	rows := flag.String("rows", "", "only rows whose id matches the `REGEXP`; -list shows the ids")
	list := flag.Bool("list", false, "show the rows' ids and end")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds, interleaved; medians count")
	flag.DurationVar(&o.each, "each", 2*time.Second, "time of one measurement")
	flag.StringVar(&o.binary, "amqproxysvc", "", "the `BINARY` to measure (default: built from this module; none: leave it out)")
	flag.StringVar(&o.markdown, "md", "", "write the table to a `FILE` in Markdown too")
	flag.StringVar(&o.profiles, "profile", "", "save a CPU profile of amqproxysvc for each row into `DIR`, the heap for those of idle clients")
	flag.IntVar(&o.crowd, "crowd", 0, "instead of the table: so many idle `CLIENTS`, held, and one proxy killed and started again")
	flag.DurationVar(&o.held, "held", 10*time.Minute, "how long the crowd is held")
	flag.StringVar(&o.drainPort, "drain", "127.0.0.1:0", "`HOST:PORT` of the stand-in, for peers")
	flag.Parse()
	if os.Getenv("QUICK") == "1" {
		o.quick = true
	}
	err := run(*role, o, *rows, *list)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: "+err.Error())
		os.Exit(1)
	}
}

func run(role string, o options, pattern string, list bool) error {
	switch role {
	case "drain":
		return drainRole(os.Stdin, os.Stdout)
	case "load":
		return loadRole(os.Stdin, os.Stdout)
	case "crowd":
		return crowdRole(os.Stdin, os.Stdout)
	case "":
	default:
		return fmt.Errorf("-role is %q, allowed is drain, load or crowd", role)
	}
	re, err := regexp.Compile(pattern)
	if err != nil {
		return fmt.Errorf("-rows: %w", err)
	}
	if list {
		fmt.Println(strings.Join(allIDs(), "\n"))
		return nil
	}
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		return errors.New("the CPU time of the proxies is read from /proc, which this system lacks: Linux is needed")
	}
	if o.quick {
		o.rounds, o.each = 1, 700*time.Millisecond
	}
	if o.rounds < 1 || o.each < 100*time.Millisecond {
		return errors.New("allowed is -rounds of 1 or more and -each of 100ms or more")
	}
	o.rows, o.broker = re, strings.TrimPrefix(o.broker, "amqp://")
	if _, _, err := net.SplitHostPort(o.broker); err != nil && o.broker != "" {
		return fmt.Errorf("-broker is %q, allowed is amqp://HOST:PORT", o.broker)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if o.crowd > 0 {
		return runCrowd(ctx, o)
	}
	b, err := newBench(o)
	if err != nil {
		return err
	}
	defer b.close()
	return b.run(ctx)
}

func allIDs() []string {
	ids := []string{idMemory, idIdle, idIdleTLS}
	for _, r := range rows() {
		ids = append(ids, r.id)
	}
	ids = append(ids, brokerRow().id)
	for _, r := range sparedRows() {
		ids = append(ids, r.id)
	}
	return append(ids, idPHP)
}

type options struct {
	quick              bool
	peers, broker      string
	rows               *regexp.Regexp
	rounds             int
	each               time.Duration
	binary             string
	markdown, profiles string
	drainPort          string
	crowd              int
	held               time.Duration
}

// bench is one run.
type bench struct {
	o       options
	dir     string
	drain   *child
	load    *child
	first   drainStats // the drain's addresses
	caFile  string
	binary  string
	peers   []*peer
	table   *table
	started time.Time
}

func newBench(o options) (b *bench, err error) {
	b = &bench{o: o, started: time.Now()}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.dir, err = os.MkdirTemp("", "amqproxysvc-bench-"); err != nil {
		return b, err
	}
	if b.drain, err = startChild("drain", "BENCH_DRAIN="+o.drainPort); err != nil {
		return b, err
	}
	if b.load, err = startChild("load"); err != nil {
		return b, err
	}
	if err = b.drain.ask(struct{}{}, &b.first); err != nil {
		return b, err
	}
	b.caFile = filepath.Join(b.dir, "ca.pem")
	if err = os.WriteFile(b.caFile, []byte(b.first.CA), 0o600); err != nil {
		return b, err
	}
	if err = writeServerPEM(b.dir); err != nil {
		return b, err
	}
	if b.binary, err = buildService(o.binary, b.dir); err != nil {
		return b, err
	}
	return b, b.startPeers(b.first)
}

// startPeers starts the proxies afresh, before the drain or another broker.
func (b *bench) startPeers(d drainStats) error {
	b.stopPeers()
	b.peers = []*peer{{name: "direct", addr: [ways]string{plain: d.Addr, fromClients: d.TLSAddr}}}
	if h, err := startHAProxy(b.dir, d); err != nil {
		fmt.Fprintln(os.Stderr, "SKIPPED LOUDLY: the column of HAProxy and the ratios:", err)
	} else {
		b.peers = append(b.peers, h)
	}
	if b.binary != "none" {
		s, err := startService(b.binary, b.dir, b.caFile, d)
		if err != nil {
			return err
		}
		b.peers = append(b.peers, s)
	}
	for _, text := range strings.FieldsFunc(b.o.peers, func(r rune) bool { return r == ',' || r == ' ' }) {
		name, addr, ok := strings.Cut(text, "=")
		if !ok || !strings.Contains(addr, ":") {
			return fmt.Errorf("-peers has %q, allowed is name=host:port", text)
		}
		b.peers = append(b.peers, &peer{name: name, addr: [ways]string{plain: addr}})
	}
	return nil
}

func (b *bench) stopPeers() {
	for _, p := range b.peers {
		p.stop()
	}
	b.peers = nil
}

func (b *bench) close() {
	b.stopPeers()
	for _, c := range []*child{b.load, b.drain} {
		if c != nil {
			c.stop()
		}
	}
	if b.dir != "" {
		os.RemoveAll(b.dir)
	}
}

// run measures row by row and prints each as it is done.
func (b *bench) run(ctx context.Context) error {
	names := make([]string, len(b.peers))
	for i, p := range b.peers {
		names[i] = p.name
	}
	b.table = newTable(names)
	b.table.head(b.describe())
	if err := b.memory(ctx); err != nil {
		return err
	}
	for _, r := range rows() {
		if !b.o.rows.MatchString(r.id) || r.scaling && b.o.quick && b.o.rows.String() == "" {
			continue
		}
		if err := b.measureRow(ctx, r); err != nil {
			return err
		}
	}
	if err := b.realBroker(ctx); err != nil {
		return err
	}
	if b.o.rows.MatchString(idPHP) && b.binary != "none" {
		if err := b.php(ctx); err != nil {
			return err
		}
	}
	b.table.foot(time.Since(b.started))
	if b.o.markdown != "" {
		return os.WriteFile(b.o.markdown, []byte(b.table.markdown()), 0o644)
	}
	return nil
}

// realBroker is about the broker that was named, if one was.
func (b *bench) realBroker(ctx context.Context) error {
	if b.o.broker == "" || !slices.ContainsFunc(allIDs(), func(id string) bool {
		return (id == brokerRow().id || strings.HasPrefix(id, "spared")) && b.o.rows.MatchString(id)
	}) {
		return nil
	}
	if err := b.startPeers(drainStats{Addr: b.o.broker, TLSAddr: b.first.TLSAddr}); err != nil {
		return err
	}
	if r := brokerRow(); b.o.rows.MatchString(r.id) {
		if err := b.measureRow(ctx, r); err != nil {
			return err
		}
	}
	if err := b.spare(ctx); err != nil {
		return err
	}
	return b.startPeers(b.first)
}

func (b *bench) describe() string {
	return fmt.Sprintf("%s; %d round(s) of %v, medians; broker: a stand-in on %s that drops and floods", machine(), b.o.rounds, b.o.each, b.first.Addr)
}

func median[T int | int64 | float64 | time.Duration](v []T) T {
	if len(v) == 0 {
		return 0
	}
	s := slices.Clone(v)
	slices.Sort(s)
	return s[len(s)/2]
}

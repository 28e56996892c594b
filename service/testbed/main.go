//go:build linux

// Command testbed tries the native service for real: under systemd as PID 1 and under
// Wine's service control manager. `run` beside it installs what it needs.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

const (
	// limit bounds a whole bed.
	limit = 20 * time.Minute
	// patience bounds each wait for what must come. It measures nothing: a machine may have much else to do.
	patience = 90 * time.Second
)

func main() { os.Exit(run()) }

func run() int {
	beds := []struct {
		name string
		run  func(*bed)
	}{{"systemd", systemdBed}, {"wine", wineBed}, {"operations", operationsBed}}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	work, err := os.MkdirTemp("", "amqproxysvc-testbed-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "testbed:", err)
		return 1
	}
	defer os.RemoveAll(work)
	if err := build(ctx, work); err != nil {
		fmt.Fprintln(os.Stderr, "testbed:", err)
		return 1
	}
	broker, err := rabbit.Start(rabbit.V310)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testbed:", err)
		return 1
	}
	defer broker.Close()
	const ports = 6 // of a bed
	free, err := rabbit.FreePorts(ports * len(beds))
	if err != nil {
		fmt.Fprintln(os.Stderr, "testbed:", err)
		return 1
	}
	var all []*bed
	for i, b := range beds {
		if len(os.Args) > 1 && !slices.Contains(os.Args[1:], b.name) {
			continue
		}
		all = append(all, &bed{name: b.name, run: b.run, work: filepath.Join(work, b.name), bin: work, broker: broker, ports: free[i*ports:][:ports]})
	}
	atOnce(ctx, all)

	code := 0
	var summary []string
	for _, one := range all {
		line := fmt.Sprintf("%-10s %d steps passed, %d failed, %.0f s", one.name, one.passed, len(one.failed), one.took.Seconds())
		if len(one.failed) > 0 {
			code = 1
			line += ": " + strings.Join(one.failed, "; ")
		}
		summary = append(summary, line)
	}
	fmt.Printf("\n%s\n", strings.Join(summary, "\n"))
	return code
}

// build makes the programs under test, as a release has them.
func build(ctx context.Context, dir string) error {
	for _, target := range []struct{ goos, file string }{{"linux", "amqproxysvc"}, {"windows", "amqproxysvc.exe"}} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, target.file), "./cmd/amqproxysvc")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+target.goos)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building for %s: %w\n%s", target.goos, err, out)
		}
	}
	return nil
}

// atOnce has the beds live side by side, for most of their time they wait. What one of several says is shown when
// it has ended, the only one's as it comes.
func atOnce(ctx context.Context, all []*bed) {
	var wg sync.WaitGroup
	var screen sync.Mutex
	for _, b := range all {
		wg.Go(func() {
			bctx, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			var said bytes.Buffer
			b.ctx, b.out, b.began = bctx, &said, time.Now()
			if len(all) == 1 {
				b.out = os.Stdout
			}
			fmt.Fprintf(b.out, "\n== %s ==\n", b.name)
			b.do()
			b.took = time.Since(b.began)
			screen.Lock()
			defer screen.Unlock()
			_, _ = os.Stdout.Write(said.Bytes()) // a lost line of a transcript
		})
	}
	wg.Wait()
}

// bed is one environment and its steps.
type bed struct {
	name   string
	run    func(*bed)
	ctx    context.Context
	out    io.Writer
	work   string // private directory
	bin    string // holds the programs under test
	broker *rabbit.Broker
	ports  []int // nobody else's on this machine
	began  time.Time
	took   time.Duration

	// lastWords, if not nil, is what the service said lately; shown with a failure.
	lastWords func() string

	passed   int
	failed   []string
	cleanups []func()
}

// stepFailed ends a step, bedFailed the whole bed.
type stepFailed struct{ err error }
type bedFailed struct{ err error }

func (b *bed) do() {
	defer func() {
		for i := len(b.cleanups) - 1; i >= 0; i-- {
			b.cleanups[i]()
		}
	}()
	defer func() {
		switch r := recover().(type) {
		case nil:
		case bedFailed:
			fmt.Fprintf(b.out, "FAIL           %v\n", r.err)
			b.failed = append(b.failed, r.err.Error())
		default:
			panic(r)
		}
	}()
	if err := os.MkdirAll(b.work, 0o755); err != nil {
		panic(bedFailed{err})
	}
	b.run(b)
}

func (b *bed) cleanup(f func()) { b.cleanups = append(b.cleanups, f) }

// step runs one step and prints a line for it, with the time it took and what it noted.
// A failed one is remembered; the next goes on.
func (b *bed) step(name string, f func(s *step)) {
	if b.ctx.Err() != nil {
		panic(bedFailed{errors.New("out of time before: " + name)})
	}
	s := &step{bed: b}
	began := time.Now()
	err := s.run(f)
	took := time.Since(began).Seconds()
	word := "ok  "
	if err != nil {
		word = "FAIL"
		b.failed = append(b.failed, name)
	} else {
		b.passed++
	}
	fmt.Fprintf(b.out, "%s %7.2f s  %s", word, took, name)
	if len(s.notes) > 0 {
		fmt.Fprintf(b.out, " [%s]", strings.Join(s.notes, "; "))
	}
	fmt.Fprintln(b.out)
	if err != nil {
		fmt.Fprintf(b.out, "     %s\n", strings.ReplaceAll(err.Error(), "\n", "\n     "))
		if b.lastWords != nil {
			fmt.Fprintf(b.out, "     | %s\n", strings.ReplaceAll(b.lastWords(), "\n", "\n     | "))
		}
	}
}

// must is a step without which the rest is of no use.
func (b *bed) must(name string, f func(s *step)) {
	before := len(b.failed)
	b.step(name, f)
	if len(b.failed) > before {
		panic(bedFailed{errors.New("cannot go on without: " + name)})
	}
}

type step struct {
	bed   *bed
	notes []string
}

func (s *step) run(f func(s *step)) (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case stepFailed:
			err = r.err
		default:
			panic(r)
		}
	}()
	f(s)
	return nil
}

func (s *step) fail(format string, args ...any) { panic(stepFailed{fmt.Errorf(format, args...)}) }
func (s *step) note(format string, args ...any) {
	s.notes = append(s.notes, fmt.Sprintf(format, args...))
}

func (s *step) check(err error) {
	if err != nil {
		s.fail("%w", err)
	}
}

// contains fails unless text holds all the words.
func (s *step) contains(text string, words ...string) {
	for _, w := range words {
		if !strings.Contains(text, w) {
			s.fail("%q is not in:\n%s", w, text)
		}
	}
}

// fill makes a log file so long that two more lines take it over 1 MiB.
func (s *step) fill(path string) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	s.check(err)
	defer f.Close()
	info, err := f.Stat()
	s.check(err)
	if room := (1<<20 - 100) - int(info.Size()); room > 0 {
		_, err = f.WriteString(strings.Repeat("x", room) + "\n")
		s.check(err)
	}
}

// until waits until f is true.
func (s *step) until(what string, f func() bool) time.Duration {
	began := time.Now()
	for !f() {
		if s.bed.ctx.Err() != nil || time.Since(began) > patience {
			s.fail("not within %v: %s", patience, what)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return time.Since(began)
}

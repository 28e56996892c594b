//go:build linux

// PHP clients through the service under test.

package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const php = "service/testbed/traffic.php"

func phpCommand(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "php", append([]string{php}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// traffic has n connections publish one message each and gets all back.
func (s *step) traffic(port, n int) {
	ctx, cancel := context.WithTimeout(s.bed.ctx, time.Minute)
	defer cancel()
	out, err := phpCommand(ctx, "once", strconv.Itoa(port), strconv.Itoa(n)).CombinedOutput()
	if err != nil {
		s.fail("PHP through port %d: %w: %s", port, err, out)
	}
	s.note("PHP: %s", strings.TrimSpace(string(out)))
}

// client is a PHP client at work.
type client struct {
	mode string
	file string // ends it, but for "stay", which makes it
	out  bytes.Buffer
	done chan error
	stop context.CancelFunc
}

var clients atomic.Int64

// start starts a client, and returns when it is at work.
func (s *step) start(mode string, port int) *client {
	c := &client{mode: mode, file: filepath.Join(s.bed.work, fmt.Sprintf("%s-%d", mode, clients.Add(1))), done: make(chan error, 1)}
	ctx, cancel := context.WithTimeout(s.bed.ctx, 3*time.Minute)
	c.stop = cancel
	s.bed.cleanup(cancel)
	cmd := phpCommand(ctx, mode, strconv.Itoa(port), c.file)
	cmd.Stdout, cmd.Stderr = &c.out, &c.out
	s.check(cmd.Start())
	go func() { c.done <- cmd.Wait() }()
	up := c.file
	if mode != "stay" {
		up += ".up"
	}
	s.until("the client "+mode+" is at work", func() bool {
		select {
		case err := <-c.done:
			s.fail("the client %s has ended: %v: %s", mode, err, c.out.String())
		default:
		}
		_, err := os.Stat(up)
		return err == nil
	})
	return c
}

func (s *step) load(port int) []*client {
	var all []*client
	for _, mode := range []string{"hold", "hold", "hold", "churn"} {
		all = append(all, s.start(mode, port))
	}
	time.Sleep(500 * time.Millisecond) // of work
	return all
}

// end lets a client finish and gives its last words; a client that failed is a failure.
func (s *step) end(c *client) string {
	if c.mode != "stay" {
		s.check(os.WriteFile(c.file, nil, 0o644))
	}
	select {
	case err := <-c.done:
		if err != nil {
			s.fail("the client %s: %w: %s", c.mode, err, c.out.String())
		}
	case <-time.After(time.Minute):
		c.stop()
		s.fail("the client %s does not end", c.mode)
	}
	return strings.TrimSpace(c.out.String())
}

// leaves ends a client amid its work.
func (s *step) leaves(c *client) {
	c.stop()
	if err := <-c.done; err == nil {
		s.fail("the client %s had ended by itself: %s", c.mode, c.out.String())
	}
}

func (s *step) endAll(all []*client) {
	for _, c := range all { // all at once: who ends gets back what it published, beside nobody who publishes still
		if c.mode != "stay" {
			s.check(os.WriteFile(c.file, nil, 0o644))
		}
	}
	var words []string
	for _, c := range all {
		words = append(words, c.mode+" "+s.end(c))
	}
	s.note("PHP: %s", strings.Join(words, ", "))
}

// accepts reports whether somebody listens.
func accepts(port int) bool {
	c, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), time.Second)
	if err == nil {
		c.Close()
	}
	return err == nil
}

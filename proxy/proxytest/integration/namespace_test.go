// A host of its own, whose packets can be dropped without a word: a network namespace behind a pair of interfaces.

//go:build linux

package integration

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// elsewhere is that host. Sockets that are made in it stay in it, whoever uses them.
type elsewhere struct {
	t      *testing.T
	device string      // on this side; with an x behind it on the other
	in     chan func() // run in the namespace
}

const here, there = "10.213.77.1", "10.213.77.2"

func newElsewhere(t *testing.T) *elsewhere {
	t.Helper()
	e := &elsewhere{t: t, device: fmt.Sprint("aq", os.Getpid()%1e6), in: make(chan func())}
	ready := make(chan error)
	thread := 0
	go func() {
		runtime.LockOSThread() // for good: the thread, and with it the namespace, ends here
		thread = syscall.Gettid()
		ready <- syscall.Unshare(syscall.CLONE_NEWNET)
		for f := range e.in {
			f()
		}
	}()
	err := <-ready
	t.Cleanup(func() { close(e.in) })
	if err == nil {
		err = ip("link", "add", e.device, "type", "veth", "peer", "name", e.device+"x")
	}
	if err != nil {
		t.Skipf("SKIPPED LOUDLY: no network namespace can be had: %v", err)
	}
	t.Cleanup(func() { _ = ip("link", "del", e.device) })
	e.must(ip("link", "set", e.device+"x", "netns", strconv.Itoa(thread)))
	e.must(ip("addr", "add", here+"/30", "dev", e.device))
	e.must(ip("link", "set", e.device, "up"))
	e.inside(func() error {
		return errors.Join(ip("addr", "add", there+"/30", "dev", e.device+"x"), ip("link", "set", e.device+"x", "up"), ip("link", "set", "lo", "up"))
	})
	return e
}

func (e *elsewhere) must(err error) {
	e.t.Helper()
	if err != nil {
		e.t.Fatal(err)
	}
}

func (e *elsewhere) inside(f func() error) {
	e.t.Helper()
	done := make(chan error)
	e.in <- func() { done <- f() }
	e.must(<-done)
}

func ip(args ...string) error {
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// forward has an address there lead to one here.
func (e *elsewhere) forward(target string) (addr string) {
	e.t.Helper()
	var ln net.Listener
	e.inside(func() (err error) {
		ln, err = net.Listen("tcp", there+":0")
		return err
	})
	e.t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			from, err := ln.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", target)
			if err != nil {
				from.Close()
				continue
			}
			for _, way := range [][2]net.Conn{{from, to}, {to, from}} {
				go func() {
					_, _ = io.Copy(way[0], way[1])
					from.Close()
					to.Close()
				}()
			}
		}
	}()
	return ln.Addr().String()
}

// drop has packets from and to there dropped: they go to a network address that nobody has.
func (e *elsewhere) drop(on bool) {
	e.t.Helper()
	toward := func(to, device string) error {
		if on {
			return ip("neigh", "replace", to, "lladdr", "02:00:00:00:00:99", "nud", "permanent", "dev", device)
		}
		return ip("neigh", "del", to, "dev", device)
	}
	e.must(toward(there, e.device))
	e.inside(func() error { return toward(here, e.device+"x") })
}

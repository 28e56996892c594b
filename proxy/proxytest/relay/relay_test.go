// What the relay promises: the delay, the order, the throughput, cuts, silence and
// that it leaves nothing behind.

package relay

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// echo is a server that sends back what it gets.
func echo(t *testing.T) string {
	t.Helper()
	return serve(t, func(c net.Conn) { io.Copy(c, c) })
}

func serve(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); handle(c) }()
		}
	}()
	return ln.Addr().String()
}

func start(t *testing.T, target string, delay time.Duration) *Relay {
	t.Helper()
	r, err := New(target, delay)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func dial(t *testing.T, r *Relay) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", r.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// ping sends one byte and waits for its echo; it returns the time that took.
func ping(t *testing.T, c net.Conn) time.Duration {
	t.Helper()
	sent := time.Now()
	if _, err := c.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return time.Since(sent)
}

func TestRoundTrips(t *testing.T) {
	const delay = 25 * time.Millisecond
	r := start(t, echo(t), delay)
	began := time.Now()
	c := dial(t, r)
	ping(t, c)
	if got := time.Since(began); got < 4*delay {
		t.Errorf("connect and ping took %v, want at least two round trips, %v", got, 4*delay)
	}
	for range 5 {
		if got := ping(t, c); got < 2*delay {
			t.Errorf("ping took %v, want at least %v", got, 2*delay)
		}
	}
	if r.Conns() != 1 || r.Total() != 1 {
		t.Errorf("conns %d, total %d, want 1, 1", r.Conns(), r.Total())
	}
}

// Many writes are on the way at once: a window of one per delay would take minutes.
func TestThroughputAndOrder(t *testing.T) {
	const delay = 25 * time.Millisecond
	const size = 64 << 20
	r := start(t, echo(t), delay)
	c := dial(t, r)
	want := sha256.New()
	go func() {
		src := rand.New(rand.NewSource(1))
		buf := make([]byte, 100_000)
		for left := size; left > 0; {
			n := min(left, 1+src.Intn(len(buf)))
			src.Read(buf[:n])
			want.Write(buf[:n])
			if _, err := c.Write(buf[:n]); err != nil {
				t.Errorf("write: %v", err)
				return
			}
			left -= n
		}
		c.(*net.TCPConn).CloseWrite()
	}()
	began := time.Now()
	got := sha256.New()
	n, err := io.Copy(got, c)
	took := time.Since(began)
	if err != nil || n != size {
		t.Fatalf("read %d bytes, error %v, want %d and the end", n, err, size)
	}
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		t.Error("the bytes changed on the way")
	}
	t.Logf("%d MiB there and back in %v", size>>20, took.Round(time.Millisecond))
}

func TestHalfClose(t *testing.T) {
	target := serve(t, func(c net.Conn) {
		all, _ := io.ReadAll(c)
		c.Write(append([]byte("got "), all...))
	})
	c := dial(t, start(t, target, time.Millisecond))
	c.Write([]byte("this"))
	c.(*net.TCPConn).CloseWrite()
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "got this" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestCut(t *testing.T) {
	far := make(chan error, 1)
	target := serve(t, func(c net.Conn) {
		_, err := io.Copy(c, c)
		far <- err
	})
	r := start(t, target, time.Millisecond)
	c := dial(t, r)
	ping(t, c)
	r.Cut()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("near side: %v, want a reset", err)
	}
	if err := <-far; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("far side: %v, want a reset", err)
	}
	ping(t, dial(t, r)) // the next connection works
	if r.Total() != 2 {
		t.Errorf("total %d, want 2", r.Total())
	}
}

func TestStall(t *testing.T) {
	r := start(t, echo(t), time.Millisecond)
	old := dial(t, r)
	ping(t, old)
	r.Stall(true)
	fresh := dial(t, r) // its connect succeeds, as one to a full accept queue does
	for name, c := range map[string]net.Conn{"old": old, "fresh": fresh} {
		c.Write([]byte{7})
		c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if n, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: read %d bytes, %v, while stalled", name, n, err)
		}
	}
	r.Stall(false)
	for name, c := range map[string]net.Conn{"old": old, "fresh": fresh} {
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		b := make([]byte, 1)
		if _, err := io.ReadFull(c, b); err != nil || b[0] != 7 {
			t.Errorf("%s: got %v, %v after the stall, want 7", name, b, err)
		}
	}
}

func TestTargetGone(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := start(t, ln.Addr().String(), time.Millisecond)
	ln.Close() // only now, or the relay might be given this very port
	c := dial(t, r)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	target := echo(t)
	ping(t, dial(t, start(t, target, 0))) // the test's own server is warm
	before := runtime.NumGoroutine()
	r := start(t, target, time.Millisecond)
	conns := make([]net.Conn, 50)
	for i := range conns {
		conns[i] = dial(t, r)
		ping(t, conns[i])
	}
	r.Stall(true)
	for _, c := range conns {
		c.Write([]byte{1})
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	for _, c := range conns {
		c.Close()
	}
	if n := r.Conns(); n != 0 {
		t.Errorf("%d connections after Close", n)
	}
	// The echo server's goroutines end a moment after their sockets.
	deadline := time.Now().Add(5 * time.Second)
	for runtime.NumGoroutine() > before && time.Now().Before(deadline) {
		runtime.Gosched()
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines after Close, %d before New", n, before)
	}
}

func TestBadArguments(t *testing.T) {
	if _, err := New("nowhere", 0); err == nil {
		t.Error("a target without a port was taken")
	}
	if _, err := New("127.0.0.1:1", -1); err == nil {
		t.Error("a negative delay was taken")
	}
}

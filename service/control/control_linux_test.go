package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

type key struct{}

func serve(t *testing.T, at string) (*Server, error) {
	t.Helper()
	s, err := New(at, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		p, _ := req.Context().Value(key{}).(Peer)
		fmt.Fprintf(w, "%s %v", p.Name, p.Admin)
	}), func(ctx context.Context, p Peer) context.Context { return context.WithValue(ctx, key{}, p) })
	if err == nil {
		t.Cleanup(s.Close)
	}
	return s, err
}

func get(t *testing.T, at string) (string, error) {
	t.Helper()
	c := Client(at)
	defer c.CloseIdleConnections()
	res, err := c.Get("http://x/")
	if err != nil {
		return "", err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

func TestControl(t *testing.T) {
	at := filepath.Join(t.TempDir(), "s.sock")
	s, err := serve(t, at)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := get(t, at); err != nil || got != fmt.Sprintf("uid %d true", os.Geteuid()) {
		t.Errorf("got %q, %v; want this user as an admin", got, err)
	}
	if pid, err := ServerPID(t.Context(), at); err != nil || pid != os.Getpid() {
		t.Errorf("it is process %d's, %v; want %d", pid, err, os.Getpid())
	}
	info, err := os.Stat(at)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket has %v, %v; want 0660", info.Mode(), err)
	}
	if _, err := serve(t, at); !errors.Is(err, ErrInUse) {
		t.Errorf("a second server: %v, want ErrInUse", err)
	}
	if got, err := get(t, at); err != nil || got == "" {
		t.Errorf("the first server no longer answers: %q, %v", got, err)
	}
	s.Close()
	if _, err := os.Stat(at); !os.IsNotExist(err) {
		t.Errorf("after Close the socket is there: %v", err)
	}
}

// What a killed process left is replaced; what is no socket is left alone.
func TestLeftBehind(t *testing.T) {
	dir := t.TempDir()
	at := filepath.Join(dir, "s.sock")
	ln, err := net.Listen("unix", at)
	if err != nil {
		t.Fatal(err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = ln.Close()
	if _, err := serve(t, at); err != nil {
		t.Errorf("a socket that nobody serves is in the way: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := serve(t, file); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file in the way: %v", err)
	}
	if b, _ := os.ReadFile(file); string(b) != "x" {
		t.Error("the file was touched")
	}
}

// A socket whose owner is too busy to accept is not taken for one that was left behind.
func TestBusyIsInUse(t *testing.T) {
	at := filepath.Join(t.TempDir(), "s.sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: at}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for range 100 { // until its backlog is full
		c, err := net.Dial("unix", at)
		if err != nil {
			break
		}
		defer func() { _ = c.Close() }()
	}
	if _, err := serve(t, at); !errors.Is(err, ErrInUse) {
		t.Errorf("got %v, want ErrInUse", err)
	}
	if _, err := os.Stat(at); err != nil {
		t.Errorf("the socket was taken away: %v", err)
	}
}

func TestPeers(t *testing.T) {
	for uid, admin := range map[uint32]bool{0: true, uint32(os.Geteuid()): true, 65534: false} {
		if p := peerFrom(uid); p.Admin != admin {
			t.Errorf("uid %d: %+v", uid, p)
		}
	}
}

// Those who may only look leave places for those who may change something.
func TestPlacesForAdmins(t *testing.T) {
	inner, err := net.Listen("unix", filepath.Join(t.TempDir(), "s.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = inner.Close() }()
	var admin atomic.Bool
	peer := func(net.Conn) (Peer, error) { return Peer{Admin: admin.Load()}, nil }
	ln := &bounded{inner, peer, make(chan struct{}, maxConns), make(chan struct{}, forAdmins)}
	accepted := make(chan net.Conn)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	come := func() net.Conn {
		c, err := net.Dial("unix", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	for range maxConns {
		come()
		<-accepted
	}
	if _, err := come().Read(make([]byte, 1)); err == nil {
		t.Error("beyond the bound one who may only look is not sent away")
	}
	admin.Store(true)
	var last net.Conn
	for range forAdmins {
		come()
		last = <-accepted
	}
	if _, err := come().Read(make([]byte, 1)); err == nil {
		t.Error("administrators have no bound")
	}
	_ = last.Close()
	come()
	<-accepted
}

// Who holds connections and says nothing takes a bounded number of them, and those beyond are
// closed, not left to wait; a place that comes free serves the next.
func TestConnectionsAreBounded(t *testing.T) {
	at := filepath.Join(t.TempDir(), "s.sock")
	if _, err := serve(t, at); err != nil {
		t.Fatal(err)
	}
	var held []net.Conn
	for range maxConns + forAdmins { // whoever runs the test is one
		c, err := net.Dial("unix", at)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		held = append(held, c)
	}
	beyond, err := net.Dial("unix", at)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = beyond.Close() }()
	if _, err := beyond.Read(make([]byte, 1)); err == nil {
		t.Error("a connection beyond the bound is not closed")
	}
	_ = held[0].Close()
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		if got, err := get(t, at); err == nil && got != "" {
			break
		} else if time.Since(began) > 10*time.Second {
			t.Fatalf("a place came free and nobody is served: %v", err)
		}
	}
}

// While one process leaves the socket to another, nobody who asks is left without an answer.
func TestLeaveAnswersWhoHasCome(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "answer") })
	for range 30 {
		at := filepath.Join(t.TempDir(), "s.sock")
		first, err := New(at, handler, func(ctx context.Context, _ Peer) context.Context { return ctx })
		if err != nil {
			t.Fatal(err)
		}
		file, err := first.Listener().(*net.UnixListener).File()
		if err != nil {
			t.Fatal(err)
		}
		ln, err := net.FileListener(file)
		_ = file.Close()
		if err != nil {
			t.Fatal(err)
		}
		second := Adopt(ln, handler, func(ctx context.Context, _ Peer) context.Context { return ctx })
		stop := make(chan struct{})
		var asking sync.WaitGroup
		var answered atomic.Int32
		for range 4 {
			asking.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					if got, err := get(t, at); err != nil || got != "answer" {
						t.Errorf("got %q, %v", got, err)
						return
					}
					answered.Add(1)
				}
			})
		}
		for answered.Load() < 8 && !t.Failed() {
			runtime.Gosched()
		}
		first.Leave(t.Context())
		close(stop)
		asking.Wait()
		second.Close()
		if t.Failed() {
			return
		}
	}
}

package admin

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// A thousand pages at once over the port itself: each is served, or told that it is not; afterwards nothing is held.
func TestAThousandPagesHearOfIt(t *testing.T) {
	inner, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &listed{}
	s := New(Options{Source: l, Lister: l, Version: "1"})
	limited := newLimitListener(inner, maxConns)
	s.serve(limited)
	defer func() { _ = s.Shutdown(context.Background()) }()
	const pages = 1000
	var mu sync.Mutex
	said := map[string]int{}
	var asking sync.WaitGroup
	var held []net.Conn
	for range pages {
		asking.Go(func() {
			c, err := net.Dial("tcp4", inner.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.WriteString(c, "GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
			what := ""
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err == nil {
				what = res.Status
				if res.StatusCode != http.StatusOK {
					text, err := io.ReadAll(res.Body)
					if err != nil || strings.Count(string(text), "\n") != 1 || !res.Close {
						t.Errorf("%s with %q, %v, close %v", what, text, err, res.Close)
					}
				}
			} else {
				what = err.Error()
			}
			mu.Lock()
			defer mu.Unlock()
			said[what]++
			if what == "200 OK" {
				held = append(held, c)
			} else {
				_ = c.Close()
			}
		})
	}
	asking.Wait()
	t.Logf("%d pages: %v", pages, said)
	if said["200 OK"] != maxLive || said["503 Service Unavailable"] != pages-maxLive {
		t.Errorf("%d pages: %v, want %d served and all others told", pages, said, maxLive)
	}
	for _, c := range held {
		_ = c.Close()
	}
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		limited.mu.Lock()
		n := len(limited.held[0]) + len(limited.held[1]) + len(limited.farewells)
		limited.mu.Unlock()
		if n == 0 {
			return
		}
		if time.Since(began) > 20*time.Second {
			t.Fatalf("%d connections are held when all have hung up", n)
		}
	}
}

// Who hangs on after he was told holds nothing for longer than a moment, nor beyond a bound.
func TestFarewells(t *testing.T) {
	inner, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := newLimitListener(inner, 1)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.(*limitConn).set(time.Time{}) // being answered, for ever
		}
	}()
	defer func() { _ = inner.Close() }()
	var all []net.Conn
	for range 1 + maxFarewells + 50 {
		c, err := net.Dial("tcp4", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		all = append(all, c)
	}
	for i, c := range all[1:] { // which never hang up
		if told, err := io.ReadAll(c); err != nil || string(told) != string(ln.told) {
			t.Fatalf("connection %d hears %q, %v", i, told, err)
		}
		ln.mu.Lock()
		if n := len(ln.farewells); n > maxFarewells {
			t.Errorf("%d are waited for, at most %d are wanted", n, maxFarewells)
		}
		ln.mu.Unlock()
	}
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		ln.mu.Lock()
		n := len(ln.farewells)
		ln.mu.Unlock()
		if n == 0 {
			return
		}
		if time.Since(began) > 20*time.Second {
			t.Fatalf("%d are still waited for", n)
		}
	}
}

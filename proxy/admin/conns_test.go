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
	"testing/synctest"
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
	none(t, limited, "connections held, when all have hung up", func() int {
		return len(limited.held[0]) + len(limited.held[1]) + len(limited.farewells)
	})
}

// none waits until there are none of what, counted with the listener's lock held.
func none(t *testing.T, l *limitListener, what string, count func() int) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		n := count()
		l.mu.Unlock()
		if n == 0 {
			return
		}
		if time.Since(began) > 20*time.Second {
			t.Fatalf("%d %s", n, what)
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
			c.(*limitConn).begins(false) // being answered, for ever
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
	none(t, ln, "still waited for", func() int { return len(ln.farewells) })
}

// A probe that has come and is slow to ask has its answer, though as many as there are places came before it and
// hundreds have come behind it, whatever they do.
func TestAProbeThatIsSlowToAsk(t *testing.T) {
	const request = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
	for name, hog := range map[string]string{"idle": request, "half requests": "GET /metrics HTTP/1.1\r\nHost: ", "silence": ""} {
		t.Run(name, func(t *testing.T) {
			inner, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			limited := newLimitListener(inner, maxConns)
			s := New(Options{Source: &fake{}})
			s.serve(limited)
			var all []net.Conn
			defer func() {
				for _, c := range all {
					_ = c.Close()
				}
				_ = s.Shutdown(t.Context())
			}()
			come := func(says string) net.Conn {
				c, err := net.Dial("tcp4", inner.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, c)
				if _, err := io.WriteString(c, says); err != nil {
					t.Fatal(err)
				}
				return c
			}
			accepted := func(c net.Conn) {
				for began := time.Now(); ; time.Sleep(time.Millisecond) {
					limited.mu.Lock()
					for h := range limited.held[1] {
						if h.RemoteAddr().String() == c.LocalAddr().String() {
							limited.mu.Unlock()
							return
						}
					}
					limited.mu.Unlock()
					if time.Since(began) > 20*time.Second {
						t.Fatal("a connection was not accepted")
					}
				}
			}
			for range maxConns {
				come(hog)
			}
			probe := come("")
			accepted(probe)
			for range 300 {
				come(hog)
			}
			accepted(come(""))
			_, _ = io.WriteString(probe, request)
			res, err := http.ReadResponse(bufio.NewReader(probe), nil)
			if err != nil || res.StatusCode != http.StatusOK {
				t.Errorf("the probe hears %v, %v", res, err)
			}
		})
	}
}

// However many requests are under way, health is told, and the others hear why they are not answered.
func TestHealthBesideSlowAnswers(t *testing.T) {
	inner, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	limited := newLimitListener(inner, maxConns)
	entered, end := make(chan struct{}), make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/slow", func(http.ResponseWriter, *http.Request) { entered <- struct{}{}; <-end })
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "OK") })
	server := &http.Server{Handler: answering(mux), ConnContext: withConn, ConnState: idle}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(limited) })
	ask := func(path string) (int, string, bool) {
		client := &http.Client{Transport: &http.Transport{}}
		defer client.CloseIdleConnections()
		res, err := client.Get("http://" + inner.Addr().String() + path)
		if err != nil {
			return 0, err.Error(), false
		}
		defer func() { _ = res.Body.Close() }()
		text, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(text), res.Close
	}
	var slow sync.WaitGroup
	for range maxAnswers {
		slow.Go(func() {
			if code, text, _ := ask("/slow"); code != http.StatusOK {
				t.Errorf("one of those that have a place hears %d %q", code, text)
			}
		})
	}
	for range maxAnswers {
		<-entered
	}
	if code, text, ends := ask("/slow"); code != http.StatusServiceUnavailable || text != "64 requests are being answered already: ask again later\n" || !ends {
		t.Errorf("one too many hears %d %q, and its connection ends: %v", code, text, ends)
	}
	for range 2 {
		if code, text, _ := ask("/healthz"); code != http.StatusOK {
			t.Errorf("a probe hears %d %q", code, text)
		}
	}
	close(end)
	slow.Wait()
	_ = server.Close()
	serving.Wait()
	none(t, limited, "answers counted, when all have been sent", func() int { return limited.answers[1] })
}

// Who does not read his answer gives way after a moment, where nobody loses less by it.
func TestUnreadAnswersGiveWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimitListener(nil, maxAnswers+1)
		come := func() *limitConn {
			t.Helper()
			c, _ := l.place(&unreadConn{fakeConn{"127.0.0.1"}, make(chan struct{})})
			if c == nil {
				t.Fatal("there is no place")
			}
			return c
		}
		var all []*limitConn
		for range maxAnswers {
			c := come()
			if !c.begins(true) {
				t.Fatal("a request is not answered")
			}
			all = append(all, c)
		}
		stuck := func(c *limitConn) bool {
			select {
			case <-c.Conn.(*unreadConn).closed:
				return false
			default:
				return true
			}
		}
		for _, c := range all[:2] {
			go func() { _, _ = c.Write([]byte("x")) }()
			time.Sleep(time.Millisecond)
		}
		time.Sleep(unreadFor - 3*time.Millisecond)
		next := come()
		if next.begins(true) || !stuck(all[0]) {
			t.Fatal("who is slow to read has given way at once")
		}
		if c, told := l.place(&fakeConn{"127.0.0.1"}); c != nil || told == nil {
			t.Fatal("there was a place where all are being answered")
		}
		time.Sleep(time.Millisecond)
		if !next.begins(true) || stuck(all[0]) {
			t.Fatal("who does not read has not given way to a request")
		}
		come().begins(false) // where it was
		if c, _ := l.place(&fakeConn{"127.0.0.1"}); c != nil {
			t.Fatal("who is slow to read has given way to a connection at once")
		}
		time.Sleep(time.Millisecond)
		come()
		if stuck(all[1]) {
			t.Fatal("who does not read has not given way to a connection")
		}
	})
}

// unreadConn takes nothing that is written.
type unreadConn struct {
	fakeConn
	closed chan struct{}
}

func (c *unreadConn) Write([]byte) (int, error) { <-c.closed; return 0, net.ErrClosed }
func (c *unreadConn) Close() error              { close(c.closed); return nil }

// Who takes a long answer slowly takes it: he does not give way.
func TestASlowReaderOfALongAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimitListener(nil, 1)
		c, _ := l.place(&slowConn{fakeConn{"127.0.0.1"}})
		c.begins(true)
		const long = 100_000
		var n int
		var err error
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			n, err = c.Write(make([]byte, long))
		}()
		for range 4 {
			time.Sleep(unreadFor)
			if other, _ := l.place(&fakeConn{"127.0.0.1"}); other != nil {
				t.Fatal("he has lost his place")
			}
		}
		<-ended
		if n != long || err != nil {
			t.Errorf("of %d octets he was sent %d, %v", long, n, err)
		}
	})
}

// slowConn takes 20 kB a second.
type slowConn struct{ fakeConn }

func (*slowConn) Write(p []byte) (int, error) {
	time.Sleep(time.Duration(len(p)) * time.Second / 20_000)
	return len(p), nil
}

// Nobody gives way to a request that nobody waits for any more.
func TestWhoHasLostHisPlaceTakesNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimitListener(nil, maxAnswers+1)
		for range maxAnswers {
			c, _ := l.place(&unreadConn{fakeConn{"127.0.0.1"}, make(chan struct{})})
			c.begins(true)
			go func() { _, _ = c.Write([]byte("x")) }()
		}
		silent, _ := l.place(&fakeConn{"127.0.0.1"})
		rested, _ := l.place(&fakeConn{"127.0.0.1"})
		rested.begins(false)
		rested.ends()
		next, _ := l.place(&fakeConn{"127.0.0.1"})
		if next == nil || !silent.left.Load() {
			t.Fatal("the places are not as they should be")
		}
		time.Sleep(unreadFor)
		for what, c := range map[string]*limitConn{"was told so": silent, "was cut": rested} {
			if c.begins(true) {
				t.Errorf("one that %s is answered", what)
			}
		}
		if n := l.answers[1]; n != maxAnswers || len(l.held[1]) != maxAnswers+1 {
			t.Errorf("%d are answered and %d held", n, len(l.held[1]))
		}
		for c := range l.held[1] {
			_ = c.Close()
		}
	})
}

func TestMostConns(t *testing.T) {
	for spare, want := range map[int]int{32: 64, 128: 64, 512: 160, 1024: 384} {
		if got := mostConns(spare); got != want {
			t.Errorf("with %d descriptors: %d, want %d", spare, got, want)
		}
	}
	for spare := range 1025 {
		if got := mostConns(spare); got > 64 && 2*got+maxFarewells > spare*7/8 {
			t.Errorf("with %d descriptors: %d connections on each side", spare, got)
		}
	}
}

// While the broker says nothing, whoever asks for it leaves the others their places, and hears the last answer.
func TestACrowdThatAsksForABrokerThatIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent := make(chan struct{})
		r := &readiness{source: &fake{ready: func(context.Context) error { <-silent; return nil }}}
		var waiting sync.WaitGroup
		var told [maxAsking]error
		ask := func() {
			for i := range told {
				waiting.Go(func() { told[i] = r.ask(t.Context()) })
			}
			synctest.Wait()
		}
		ask()
		if err := r.ask(t.Context()); err == nil || err.Error() != "the broker has not answered yet" {
			t.Errorf("one too many hears %v", err)
		}
		silent <- struct{}{}
		waiting.Wait()
		for _, err := range told {
			if err != nil {
				t.Fatalf("one of those that wait hears %v", err)
			}
		}
		time.Sleep(readyTTL)
		ask()
		if err := r.ask(t.Context()); err != nil {
			t.Errorf("one too many hears %v where the last answer was good", err)
		}
		silent <- struct{}{}
		waiting.Wait()
	})
}

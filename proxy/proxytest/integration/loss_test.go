// Losing the broker and stopping the proxy, under load: what clients hear, that no
// confirmed message is lost, that the next client is served and nothing leaks.

//go:build linux

package integration

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/relay"
)

const publishers = 10

func queues(o *observer, n int) []string {
	var names []string
	for i := range n {
		names = append(names, o.queue(fmt.Sprintf("q%d", i)))
	}
	return names
}

// told checks what the publishers heard of the end of their connections, and when.
func told(t *testing.T, ends []ending, since time.Time, code int, words ...string) {
	t.Helper()
	for _, e := range ends {
		if e.err == nil {
			t.Errorf("%s: the connection ended without a word", e.queue)
			continue
		}
		if e.err.Code != code {
			t.Errorf("%s: heard %d %q, want code %d", e.queue, e.err.Code, e.err.Reason, code)
		}
		if len(words) > 0 && e.err.Reason != words[0] {
			t.Errorf("%s: heard %q, want %q", e.queue, e.err.Reason, words[0])
		}
		if d := e.at.Sub(since); d > time.Second+raceSlack {
			t.Errorf("%s: heard only after %v", e.queue, d)
		}
	}
	if len(ends) > 0 && ends[0].err != nil {
		t.Logf("heard: %d %s", ends[0].err.Code, ends[0].err.Reason)
	}
}

// raceSlack is added to time limits where the proxy runs with the race detector, on a
// machine with two cores that also runs the broker and the clients.
const raceSlack = 2 * time.Second

func TestBrokerKilledUnderLoad(t *testing.T) {
	each(t, "", func(t *testing.T, tg *target) {
		names := queues(observe(t, tg.broker), publishers)
		var base usage
		if tg.proxy != nil {
			canary(t, tg.addr)
			base = tg.proxy.usage(t)
		}
		l := startLoad(t, tg.addr, names)
		l.underway(t, 2000)
		// Messages are confirmed when they are on disk; a queue is declared before it is.
		if _, err := tg.broker.Eval("mnesia:sync_log()."); err != nil {
			t.Fatal(err)
		}
		at := time.Now()
		if err := tg.broker.Kill(); err != nil {
			t.Fatal(err)
		}
		ends := l.wait(t)
		if tg.proxy != nil {
			told(t, ends, at, 320)
			notGreeted(t, tg.proxy, 5*time.Second, "")
		}
		if err := tg.broker.Restart(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the next client is served", func() error {
			conn, err := dial(tg.addr, amqp.Config{})
			if err != nil {
				return err // within retry_delay the old failure is told
			}
			return conn.Close()
		})
		canary(t, tg.addr)
		confirmed, sent := nothingLost(t, observe(t, tg.broker), ends)
		t.Logf("%d sent, %d confirmed, all of these there after the restart", sent, confirmed)
		if tg.proxy != nil {
			tg.proxy.returnsTo(t, base)
		}
	})
}

func TestCloseAllConnections(t *testing.T) {
	each(t, "", func(t *testing.T, tg *target) {
		names := queues(observe(t, tg.broker), publishers)
		var base usage
		if tg.proxy != nil {
			canary(t, tg.addr)
			base = tg.proxy.usage(t)
		}
		l := startLoad(t, tg.addr, names)
		l.underway(t, 2000)
		at := time.Now()
		// The observer's connection goes too.
		if _, err := tg.broker.Eval(`[rabbit_networking:close_connection(P, "maintenance") || P <- rabbit_networking:connections()], ok.`); err != nil {
			t.Fatal(err)
		}
		ends := l.wait(t)
		told(t, ends, at, 320, "CONNECTION_FORCED - maintenance")
		canary(t, tg.addr)
		confirmed, sent := nothingLost(t, observe(t, tg.broker), ends)
		t.Logf("%d sent, %d confirmed, all of these there", sent, confirmed)
		if tg.proxy != nil {
			tg.proxy.returnsTo(t, base)
		}
	})
}

// The path to the broker is cut or goes silent; only the socket tells, or nothing.
func TestPathLost(t *testing.T) {
	through(t, func(t *testing.T, b *rabbit.Broker) {
		path, err := relay.New(b.Addr(), 0)
		if err != nil {
			t.Fatal(err)
		}
		defer path.Close()
		p := startProxy(t, true, "amqp://"+path.Addr(), "[upstream]\nheartbeat = \"2s\"\n")
		canary(t, p.addr)
		base := p.usage(t)
		for _, c := range []struct {
			name   string
			lose   func()
			within time.Duration
		}{
			{"cut", path.Cut, time.Second},
			{"silent", func() { path.Stall(true) }, 2 * 2 * time.Second}, // two heartbeats
		} {
			t.Run(c.name, func(t *testing.T) {
				o := observe(t, b)
				l := startLoad(t, p.addr, queues(o, publishers))
				l.underway(t, 1000)
				at := time.Now()
				c.lose()
				ends := l.wait(t)
				told(t, ends, at.Add(c.within-time.Second), 320)
				path.Stall(false)
				path.Cut() // what was held back must not come in late
				eventually(t, "the next client is served", func() error {
					conn, err := dial(p.addr, amqp.Config{})
					if err != nil {
						return err
					}
					return conn.Close()
				})
				canary(t, p.addr)
				nothingLost(t, o, ends)
				p.returnsTo(t, base)
			})
		}
	})
}

func TestSIGTERMUnderLoad(t *testing.T) {
	through(t, func(t *testing.T, b *rabbit.Broker) {
		const drain = 3 * time.Second
		o := observe(t, b)
		p := startProxy(t, true, b.URL(), fmt.Sprintf("drain_timeout = %q\n", drain))
		l := startLoad(t, p.addr, queues(o, publishers))
		l.underway(t, 2000)
		at := time.Now()
		p.signal(syscall.SIGTERM)
		// New clients are not taken any more, those that work may go on.
		eventually(t, "new clients are refused", func() error {
			conn, err := dial(p.addr, amqp.Config{Dial: amqp.DefaultDial(time.Second)})
			if err == nil {
				conn.Close()
				return fmt.Errorf("one was served")
			}
			return nil
		})
		l.underway(t, 500)
		ends := l.wait(t)
		code, ok := p.ended(patience)
		took := time.Since(at)
		if !ok || code != 0 {
			t.Errorf("exit code %d (ended: %v), want 0", code, ok)
		}
		if took > drain+time.Second+raceSlack {
			t.Errorf("ended after %v, drain_timeout is %v", took, drain)
		}
		told(t, ends, at.Add(drain), 320, "CONNECTION_FORCED - proxy shutting down")
		confirmed, sent := nothingLost(t, o, ends)
		t.Logf("FIGURE SIGTERM under load: exit %d after %v, %d messages confirmed, none lost (%d sent)", code, took.Round(10*time.Millisecond), confirmed, sent)
		eventually(t, "no connection is left at the broker", func() error {
			if n := connections(t, b, 1); n != 0 {
				return fmt.Errorf("%d", n)
			}
			return nil
		})
	})
}

// Without clients a stop is at once, and a second signal does not wait for the drain.
func TestSIGTERMQuick(t *testing.T) {
	through(t, func(t *testing.T, b *rabbit.Broker) {
		p := startProxy(t, true, b.URL(), "drain_timeout = \"1m\"\n")
		canary(t, p.addr)
		at := time.Now()
		p.signal(syscall.SIGTERM)
		if code, ok := p.ended(5 * time.Second); !ok || code != 0 {
			t.Errorf("without clients: exit code %d (ended: %v) after %v", code, ok, time.Since(at))
		}
		p = startProxy(t, true, b.URL(), "drain_timeout = \"1m\"\n")
		conn, err := dial(p.addr, amqp.Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		p.signal(syscall.SIGTERM)
		if code, ok := p.ended(1500 * time.Millisecond); ok { // two signals within a second are one
			t.Errorf("with a client: ended at once, exit code %d", code)
		}
		p.signal(syscall.SIGTERM)
		if code, ok := p.ended(5 * time.Second); !ok || code < 0 {
			t.Errorf("a second signal: exit code %d (ended: %v)", code, ok)
		}
	})
}

package proxy

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
	"github.com/amqproxysvc/amqproxysvc/proxy/outbox"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// sinkConn takes everything.
type sinkConn struct {
	net.Conn
	n, writes int
}

func (c *sinkConn) Write(p []byte) (int, error) { c.n += len(p); c.writes++; return len(p), nil }
func (*sinkConn) Close() error                  { return nil }

// halves are a client and an upstream without readers of their own, a channel of the one
// bound to the other: what comes is fed by the test.
func halves(t testing.TB) (*client, *upstream, *sinkConn) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	far, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	near, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		buf := make([]byte, 1<<20)
		for {
			if _, err := far.Read(buf); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { near.Close(); far.Close(); ln.Close(); <-drained })
	broker := &sinkConn{}
	c, u := halvesOn(t, DefaultConfig(), near, broker)
	return c, u, broker
}

// halvesOn are halves on connections of the test's own.
func halvesOn(t testing.TB, cfg Config, near, far net.Conn) (*client, *upstream) {
	cfg.Logger = slog.New(slog.DiscardHandler)
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.coarse.Store(1)
	a := &account{login: login{sends: asSent{}}, pools: map[string]*pool{}}
	a.info.Store(&broker.Info{Confirms: true})
	p := &pool{s: s, env: &s.env, account: a}
	u := &upstream{s: s, env: &s.env, conn: far, account: a, pool: p, to: p.to(), done: make(chan struct{})}
	u.out.Init(&u.mu, far, &s.coarse, nil)
	u.rd = amqp.NewReader(4<<10, 131072)
	u.tune.FrameMax, u.ids.limit = 131072, 100
	p.ups = append(p.ups, u)
	c := &client{s: s, env: &s.env, account: a, pool: p, frameMax: 131072, gone: make(chan struct{}), runSeq: 1}
	c.accepted(near, &listener{Listener: Listener{Mode: PoolAuto}})
	c.out.Init(&c.mu, near, &s.coarse, nil)
	c.takeDesk()
	c.rd.Init(make([]byte, clientBuffer), 131072)
	c.phase.Store(phaseRunning)
	feedClient(t, c, proxytest.Method(1, amqp.ChannelOpen, ""))
	return c, u
}

func feedClient(t testing.TB, c *client, p []byte) {
	for in := bytes.NewReader(p); in.Len() > 0; {
		if _, err := c.rd.Fill(in); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if !c.chunk() {
			t.Fatal("the client has ended")
		}
	}
}

// What a message costs is bytes: nothing is allocated for one, either way.
func TestNothingAllocatedPerMessage(t *testing.T) {
	if raceEnabled || lock.Ranked {
		t.Skip("the race detector allocates, and so do ranks of locks")
	}
	const messages = 200
	body := bytes.Repeat([]byte("x"), 100)
	t.Run("publish", func(t *testing.T) {
		c, _, broker := halves(t)
		one := proxytest.PublishBytes(1, "", "queue", body, 0)
		many := bytes.Repeat(one, messages)
		in := bytes.NewReader(many)
		feed := func() {
			in.Reset(many)
			for in.Len() > 0 {
				if _, err := c.rd.Fill(in); err != nil || !c.chunk() {
					t.Fatal("the client has ended", err)
				}
			}
		}
		feed()
		broker.n = 0
		if n := testing.AllocsPerRun(200, feed); n != 0 {
			t.Errorf("%v allocations for %d publishes, want 0", n, messages)
		}
		if broker.n < 200*len(many) {
			t.Errorf("%d octets reached the broker, want %d", broker.n, 201*len(many))
		}
	})
	t.Run("publish one by one", func(t *testing.T) {
		c, _, _ := halves(t)
		one := proxytest.PublishBytes(1, "", "queue", body, 0)
		in := bytes.NewReader(one)
		feed := func() {
			in.Reset(one)
			if _, err := c.rd.Fill(in); err != nil || !c.chunk() {
				t.Fatal("the client has ended", err)
			}
		}
		feed()
		if n := testing.AllocsPerRun(2000, feed); n != 0 {
			t.Errorf("%v allocations for a publish, want 0", n)
		}
	})
	for _, what := range []string{"deliver", "confirm"} {
		t.Run(what, func(t *testing.T) {
			c, u, _ := halves(t)
			feedClient(t, c, proxytest.PublishBytes(1, "", "queue", body, 0)) // binds the channel
			one := proxytest.Method(1, amqp.BasicAck, 1, 0)
			if what == "deliver" {
				one = append(proxytest.Method(1, amqp.BasicDeliver, "ctag", 1, 0, "", "queue"), proxytest.Header(1, uint64(len(body)))...)
				one = append(one, proxytest.Body(1, body)...)
			}
			many := bytes.Repeat(one, messages)
			in := bytes.NewReader(many)
			var d delivery
			feed := func() {
				in.Reset(many)
				for in.Len() > 0 {
					if _, err := u.rd.Fill(in); err != nil {
						t.Fatal(err)
					}
					if e := u.chunk(&d); e != nil {
						t.Fatal(e)
					}
				}
				for idle := false; !idle; runtime.Gosched() {
					c.mu.Lock()
					idle = c.out.IdleLocked()
					c.mu.Unlock()
				}
			}
			feed()
			if n := testing.AllocsPerRun(200, feed); n > 0.5 {
				t.Errorf("%v allocations for %d messages, want 0", n, messages)
			}
		})
	}
}

// discards takes whatever is tried.
type discards struct{}

func (discards) TryWrite(p net.Buffers) (n int, err error) {
	for _, b := range p {
		n += len(b)
	}
	return n, nil
}

// A queue of many blocks costs no more objects than one of few: they, and what they are written with, are used again.
func TestLongQueueAllocatesNothing(t *testing.T) {
	if raceEnabled || lock.Ranked {
		t.Skip("with the race detector pools drop at random, and ranks of locks allocate")
	}
	var mu lock.Mutex[lock.Leaf]
	var now atomic.Int64
	var out outbox.Box
	out.Init(&mu, io.Discard, &now, nil)
	p := make([]byte, 64<<10)
	n := testing.AllocsPerRun(1000, func() {
		mu.Lock()
		out.AppendLocked(p)
		out.AppendLocked(p)
		mu.Unlock()
		out.Flush()
		mu.Lock()
		out.AppendLocked(p)
		mu.Unlock()
		out.FlushTry(discards{})
	})
	if n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

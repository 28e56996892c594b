// The load generator: raw frames, written in batches made beforehand. It runs one
// kind of work at a time, started, counted and stopped on request.

package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// Kinds of work.
const (
	opPublish  = "publish"  // without confirms, as fast as it goes
	opConfirms = "confirms" // with a window of publishes that are not confirmed
	opOneByOne = "onebyone" // a publish, its confirm, the next
	opConsume  = "consume"  // no-ack
	opConnect  = "connect"  // connect, channel, publish, disconnect
	opIdle     = "idle"     // only connected
)

// underway is what all clients together have written and nobody has read, at most: thousands of
// them would else fill the memory that the kernel keeps for TCP, and its drops would be measured.
const underway = 64 << 20 // bytes

// work says what to do. Do is "start", "count", "touch" or "stop".
type work struct {
	Do       string
	Op       string
	Addr     string
	TLS      bool
	Clients  int
	Channels int // of each client
	Size     int // of a body
	Batch    int // messages in a write; 0: as many as fill 64 KiB
	Window   int
	Life     string // of opConnect: lifePublish where it is empty
}

// counted is the answer: operations so far and, at the stop, latencies since the last count.
type counted struct {
	Ops           int64
	P50, P99, Max time.Duration
}

// generator is the load's side of one work.
type generator struct {
	w       work
	clients []*proxytest.Client
	ops     atomic.Int64
	stopped atomic.Bool
	wg      sync.WaitGroup

	mu    sync.Mutex
	times []time.Duration
	err   error
}

func loadRole(in io.Reader, out io.Writer) error {
	var g *generator
	return answerLines(in, out, func(w work) (counted, error) {
		switch {
		case w.Do == "start":
			g = &generator{w: w}
			if err := g.start(); err != nil {
				g.stop()
				return counted{}, err
			}
			return counted{}, nil
		case g == nil:
			return counted{}, errors.New("nothing was started")
		case w.Do == "touch":
			return counted{}, g.touch()
		case w.Do == "count":
			g.mu.Lock()
			g.times = g.times[:0]
			g.mu.Unlock()
			return counted{Ops: g.ops.Load()}, g.failure()
		}
		c := counted{Ops: g.ops.Load()}
		c.P50, c.P99, c.Max = g.percentiles()
		err := g.failure()
		g.stop()
		g = nil
		return c, err
	})
}

func (g *generator) failure() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

func (g *generator) fail(err error) {
	if g.stopped.Load() || err == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.err = err
	}
}

func (g *generator) percentiles() (p50, p99, slowest time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.times) == 0 {
		return 0, 0, 0
	}
	slices.Sort(g.times)
	n := len(g.times) - 1
	return g.times[n/2], g.times[n*99/100], g.times[n]
}

func (g *generator) took(times []time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.times = append(g.times, times...)
}

func (g *generator) stop() {
	g.stopped.Store(true)
	// A deadline first: to close a socket in use waits for its user, one after another.
	for _, c := range g.clients {
		if c != nil {
			c.Conn().SetDeadline(time.Unix(1, 0))
		}
	}
	g.wg.Wait()
	for _, c := range g.clients {
		if c != nil {
			c.Abort()
		}
	}
}

// start connects all clients, some at a time, and sets them to work.
func (g *generator) start() error {
	if g.w.Op == opConnect {
		if g.w.Life != "" {
			if err := g.freshQueue(); err != nil {
				return err
			}
		}
		for range g.w.Clients {
			g.wg.Add(1)
			go func() { defer g.wg.Done(); g.fail(g.connects()) }()
		}
		return nil
	}
	g.clients = make([]*proxytest.Client, g.w.Clients)
	var dialing sync.WaitGroup
	places := make(chan struct{}, 32)
	for i := range g.clients {
		dialing.Add(1)
		places <- struct{}{}
		go func() {
			defer func() { <-places; dialing.Done() }()
			c, err := g.dial()
			if err != nil {
				g.fail(fmt.Errorf("client %d: %w", i+1, err))
			}
			g.clients[i] = c
		}()
	}
	dialing.Wait()
	if err := g.failure(); err != nil {
		return err
	}
	if g.w.Op == opIdle {
		return nil
	}
	one := func(ch int) []byte {
		return proxytest.PublishBytes(uint16(ch), "", "bench", make([]byte, g.w.Size), 131072)
	}
	blobs := make([][]byte, max(1, g.w.Channels))
	batch := g.w.Batch
	if batch == 0 {
		batch = max(1, blobSize/len(one(1)))
	}
	for i := range blobs {
		blobs[i] = repeat(one(i+1), batch)
	}
	// They begin together: to start one more beside thousands that are at work takes a whole turn of
	// theirs, and the last would begin minutes after the first.
	begin := make(chan struct{})
	defer close(begin)
	for _, c := range g.clients {
		g.wg.Add(1)
		go func() {
			defer g.wg.Done()
			<-begin
			switch g.w.Op {
			case opPublish:
				g.fail(g.publish(c, blobs, batch))
			case opConfirms:
				g.fail(g.confirms(c, blobs[0], batch, g.w.Window))
			case opOneByOne:
				g.fail(g.oneByOne(c, one(1)))
			case opConsume:
				g.fail(g.consume(c))
			}
		}()
	}
	return nil
}

func (g *generator) dial() (*proxytest.Client, error) {
	cfg := proxytest.ClientConfig{Addr: g.w.Addr, Timeout: 30 * time.Second}
	if g.w.TLS {
		cfg.TLS = &tls.Config{InsecureSkipVerify: true} // what is measured is not whom it trusts
	}
	c, err := proxytest.Dial(cfg)
	if err != nil {
		return nil, err
	}
	for ch := range max(1, g.w.Channels) {
		if err := c.OpenChannel(uint16(ch + 1)); err != nil {
			return c, err
		}
	}
	switch g.w.Op {
	case opConfirms, opOneByOne:
		err = c.Confirm(1)
	case opConsume:
		_, err = c.Consume(1, fmt.Sprintf("flood-%d", g.w.Size), "bench", true)
	}
	if t, ok := c.Conn().(*net.TCPConn); ok && g.w.Clients >= 1000 {
		if err := t.SetWriteBuffer(underway / g.w.Clients); err != nil {
			return c, err
		}
	}
	c.Conn().SetDeadline(time.Time{})
	return c, err
}

// touch has every idle client publish one message, so that its channel is the broker's too.
func (g *generator) touch() error {
	for i, c := range g.clients {
		if err := c.Publish(1, "", "bench", make([]byte, 100)); err != nil {
			return fmt.Errorf("client %d: %w", i+1, err)
		}
	}
	return nil
}

// publish writes batches for each channel in turn. The drain counts what arrives.
func (g *generator) publish(c *proxytest.Client, blobs [][]byte, batch int) error {
	for i := 0; !g.stopped.Load(); i++ {
		if _, err := c.Conn().Write(blobs[i%len(blobs)]); err != nil {
			return err
		}
		g.ops.Add(int64(batch))
	}
	return nil
}

// acks reads frames until the confirms have reached at least want, and returns how far they got.
func acks(conn net.Conn, rd *amqp.Reader, have, want uint64) (uint64, error) {
	for {
		f, err := rd.Next()
		if err != nil {
			return have, err
		}
		switch {
		case f == nil:
			if have >= want {
				return have, nil
			}
			if _, err := rd.Fill(conn); err != nil {
				return have, err
			}
		case f.Type() == amqp.FrameHeartbeat:
		case f.Method() == amqp.BasicAck:
			a := amqp.ReadArgs(f)
			have = max(have, a.LongLong())
		default:
			return have, fmt.Errorf("got %s, want basic.ack", proxytest.Describe(f))
		}
	}
}

// confirms keeps the window as full as whole batches allow.
func (g *generator) confirms(c *proxytest.Client, blob []byte, batch, window int) error {
	rd := amqp.NewReader(4096, 0)
	var sent, acked uint64
	for {
		for int(sent-acked)+batch <= window {
			if _, err := c.Conn().Write(blob); err != nil {
				return err
			}
			sent += uint64(batch)
		}
		have, err := acks(c.Conn(), rd, acked, acked+1)
		if err != nil {
			return err
		}
		if have > sent {
			return fmt.Errorf("confirmed up to %d, of %d that were published", have, sent)
		}
		g.ops.Add(int64(have - acked))
		acked = have
	}
}

func (g *generator) oneByOne(c *proxytest.Client, one []byte) error {
	rd := amqp.NewReader(512, 0)
	var times []time.Duration
	defer func() { g.took(times) }()
	for seq := uint64(1); ; seq++ {
		start := time.Now()
		if _, err := c.Conn().Write(one); err != nil {
			return err
		}
		if _, err := acks(c.Conn(), rd, seq-1, seq); err != nil {
			return err
		}
		if times = append(times, time.Since(start)); len(times) == 1000 {
			g.took(times)
			times = times[:0]
		}
		g.ops.Add(1)
	}
}

// consume counts bodies as they come.
func (g *generator) consume(c *proxytest.Client) error {
	buf := make([]byte, blobSize)
	n, skip := copy(buf, c.Unread()), 0
	for {
		k, err := c.Conn().Read(buf[n:])
		if err != nil {
			return err
		}
		b := buf[:n+k]
		var bodies, rest int
		bodies, rest, skip = countBodies(b, skip)
		n = copy(buf, b[len(b)-rest:])
		g.ops.Add(int64(bodies))
	}
}

// freshQueue makes the queue that a real broker is to put the messages into, empty.
func (g *generator) freshQueue() error {
	c, err := proxytest.Dial(proxytest.ClientConfig{Addr: g.w.Addr, Timeout: 30 * time.Second})
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.OpenChannel(1); err != nil {
		return err
	}
	if err := c.DeleteQueue(1, benchQueue); err != nil {
		return err
	}
	_, err = c.DeclareQueue(1, benchQueue, 0)
	return err
}

// connects does one short life after another, the way of a PHP request.
func (g *generator) connects() error {
	s := newShortLife(g.w.Life, g.w.Size)
	var times []time.Duration
	defer func() { g.took(times) }()
	for !g.stopped.Load() {
		start := time.Now()
		if err := s.live(g.w.Addr); err != nil {
			return err
		}
		if times = append(times, time.Since(start)); len(times) == 100 {
			g.took(times)
			times = times[:0]
		}
		g.ops.Add(1)
	}
	return nil
}

// Traces: what one client and the proxy send each other, for somebody who looks. Nobody waits for
// the looker: what he does not take in time is lost to him, and counted. While nobody looks it
// costs a client one look at a pointer for each read.

package proxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
)

const (
	// mostTraces bounds those under way, and with traceOctets the memory that they take.
	mostTraces  = 8
	traceFrames = 4096
	traceOctets = 1 << 20
)

// TraceWanted says whose frames are wanted: those of a client by ID, or those of the next client that
// logs in as a user, from an address, or both.
type TraceWanted struct {
	Client        uint64
	User, Address string
	Bodies        int // so many octets of each body frame
}

// TracedFrame is a frame, or where there is no Type the news that its channel has a seat at the broker now.
type TracedFrame struct {
	At         time.Time
	FromClient bool
	Type       byte
	Channel    uint16
	Seat       TracedSeat
	Size       int // octets of the payload
	// Payload has stars in place of secrets, and of a body no more than was asked for.
	Payload []byte
}

// TracedSeat is where a channel is at the broker; the zero value: nowhere yet.
type TracedSeat struct {
	Upstream uint64
	Channel  uint16
}

// Trace is under way until it is closed. All but Close is for one goroutine.
type Trace struct {
	c      *client
	bodies int
	wake   chan struct{} // something has come
	once   sync.Once

	// Guarded by client.mu.
	frames []TracedFrame
	octets int
	lost   uint64
	seats  map[uint16]TracedSeat
	over   bool
	half   []byte // of a frame that is being written to the client: what was shown of it

	seen int // the client's reader: octets at the start of its buffer that were taken already
}

// Trace begins to look at a client, or waits until there is one.
func (s *Server) Trace(ctx context.Context, w TraceWanted) (*Trace, error) {
	if s.traces.Add(1) > mostTraces {
		s.traces.Add(-1)
		return nil, fmt.Errorf("%d traces are under way, and no more can be", mostTraces)
	}
	var t *Trace
	var err error
	if w.Client != 0 {
		t, err = s.traceClient(w)
	} else {
		t, err = s.catches.next(ctx, s.ctx, w)
	}
	if err != nil {
		s.traces.Add(-1)
	}
	return t, err
}

func (s *Server) traceClient(w TraceWanted) (*Trace, error) {
	all := s.clients.appendTo(nil, func(c *client) bool { return c.n == w.Client })
	if len(all) == 0 {
		return nil, fmt.Errorf("there is no client %d", w.Client)
	}
	t := newTrace(all[0], w)
	if err := t.attach(); err != nil {
		return nil, err
	}
	t.findSeats()
	return t, nil
}

func newTrace(c *client, w TraceWanted) *Trace {
	return &Trace{c: c, bodies: w.Bodies, wake: make(chan struct{}, 1), seats: make(map[uint16]TracedSeat)}
}

func (t *Trace) attach() error {
	c := t.c
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.goneOnce:
		return fmt.Errorf("client %d has gone", c.n)
	case c.traced.Load() != nil:
		return fmt.Errorf("client %d is being traced already", c.n)
	}
	c.traced.Store(t)
	c.out.TapLocked(t.sentLocked)
	return nil
}

// findSeats notes where the channels are that were bound before.
func (t *Trace) findSeats() {
	for _, u := range t.c.s.allUpstreams() {
		u.mu.Lock()
		var here []*binding
		if table := u.table.Load(); table != nil {
			for i := range *table {
				if b := (*table)[i].Load(); b != nil && b.ch != nil && b.ch.c == t.c {
					here = append(here, b)
				}
			}
		}
		u.mu.Unlock()
		t.c.mu.Lock()
		for _, b := range here {
			if b.ch.cur.Load() == b { // else it has moved, or is closed
				t.seats[b.ch.id] = TracedSeat{u.n, b.id}
			}
		}
		t.c.mu.Unlock()
	}
}

// Client is who is looked at.
func (t *Trace) Client() ClientInfo { return t.c.info(t.c.env.now()) }

// ProxyAddress is the proxy's end of the client's connection.
func (t *Trace) ProxyAddress() string { return t.c.conn.LocalAddr().String() }

// Next waits for frames. Those that were lost came behind them. The error is io.EOF when the
// client has gone and all is told.
func (t *Trace) Next(ctx context.Context) (frames []TracedFrame, lost uint64, err error) {
	for {
		gone := t.c.cut()
		t.c.mu.Lock()
		frames, lost = t.frames, t.lost
		t.frames, t.lost, t.octets = nil, 0, 0
		t.c.mu.Unlock()
		switch {
		case len(frames) > 0 || lost > 0:
			return frames, lost, nil
		case gone:
			return nil, 0, io.EOF
		}
		select {
		case <-t.wake:
		case <-t.c.gone:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
}

// Close ends it.
func (t *Trace) Close() {
	t.once.Do(func() {
		t.c.mu.Lock()
		t.over, t.frames, t.half = true, nil, nil
		if t.c.traced.Load() == t {
			t.c.traced.Store(nil)
			t.c.out.TapLocked(nil)
		}
		t.c.mu.Unlock()
		t.c.s.traces.Add(-1)
	})
}

// heard takes the whole frames in the read buffer, before the router writes in them.
func (t *Trace) heard() {
	c := t.c
	c.mu.Lock()
	t.seen += t.takeLocked(true, c.buf[min(t.seen, len(c.buf)):])
	c.mu.Unlock()
}

// passed notes that so many octets of the read buffer were dealt with.
func (t *Trace) passed(n int) { t.seen = max(0, t.seen-n) }

// came takes a frame of the handshake.
func (t *Trace) came(f amqp.Frame) {
	t.c.mu.Lock()
	t.takeLocked(true, f)
	t.c.mu.Unlock()
}

// sentLocked takes what is about to be written to the client, which may end amid a frame.
func (t *Trace) sentLocked(p []byte) {
	if len(t.half) > 0 {
		t.half = append(t.half, p...)
		p = t.half
	}
	t.half = append(t.half[:0], p[t.takeLocked(false, p):]...)
}

// seatedLocked notes that a channel is bound.
func (t *Trace) seatedLocked(b *binding) {
	at := TracedSeat{b.u.n, b.id}
	t.seats[b.ch.id] = at
	t.addLocked(TracedFrame{At: time.Now(), Channel: b.ch.id, Seat: at})
}

// takeLocked takes the whole frames at the start of p, and says how many octets that were.
func (t *Trace) takeLocked(fromClient bool, p []byte) (n int) {
	now := time.Now()
	for {
		size, _, err := amqp.Split(p[n:], 0)
		if size == 0 || err != nil {
			return n // the router says what is wrong with it
		}
		f := amqp.Frame(p[n : n+size])
		n += size
		if m := f.Method(); f.Type() == amqp.FrameMethod && (m == amqp.ChannelOpen || m == amqp.ChannelCloseOk) {
			delete(t.seats, f.Channel())
		}
		t.addLocked(TracedFrame{At: now, FromClient: fromClient, Type: f.Type(), Channel: f.Channel(), Seat: t.seats[f.Channel()],
			Size: len(f.Payload()), Payload: f.Payload()})
	}
}

// addLocked keeps a copy, unless too much waits for the looker. What comes behind a loss is lost with it
// until he has taken what waits: so he knows where the gap is.
func (t *Trace) addLocked(f TracedFrame) {
	if t.over {
		return
	}
	if f.Type == amqp.FrameBody {
		f.Payload = f.Payload[:min(len(f.Payload), t.bodies)]
	}
	if t.lost > 0 || len(t.frames) >= traceFrames || t.octets+len(f.Payload) > traceOctets {
		t.lost++
		return
	}
	f.Payload = bytes.Clone(f.Payload)
	if f.Type == amqp.FrameMethod {
		hideSecret(f.Payload)
	}
	t.frames = append(t.frames, f)
	t.octets += len(f.Payload)
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// hideSecret writes stars over what proves who a client is, in a method's payload; over all of its
// arguments where it cannot be told apart.
func hideSecret(p []byte) {
	if len(p) < 4 {
		return
	}
	a := amqp.ArgsOf(p[4:])
	switch amqp.Method(binary.BigEndian.Uint32(p)) {
	case amqp.ConnectionStartOk:
		a.LongStr()
		a.Str()
	case amqp.ConnectionSecureOk, amqp.ConnectionUpdateSecret:
	default:
		return
	}
	secret := a.LongStr()
	if a.Bad {
		secret = p[4:]
	}
	for i := range secret {
		secret[i] = '*'
	}
}

// catches are those who wait for the next client of a kind.
type catches struct {
	n   atomic.Int32 // len(all)
	mu  lock.Mutex[lock.Leaf]
	all []*catch
}

type catch struct {
	want   TraceWanted
	caught chan *Trace
}

var errTraceStops = errors.New("the proxy is stopping")

// next waits for a client.
func (s *catches) next(ctx, server context.Context, w TraceWanted) (*Trace, error) {
	x := &catch{w, make(chan *Trace, 1)}
	s.mu.Lock()
	s.all = append(s.all, x)
	s.n.Add(1)
	s.mu.Unlock()
	var err error
	select {
	case t := <-x.caught:
		return t, nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-server.Done():
		err = errTraceStops
	}
	if !s.remove(x) { // it was caught at the same moment
		return <-x.caught, nil
	}
	return nil, err
}

// remove takes one out. False: it is out already.
func (s *catches) remove(x *catch) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.all {
		if s.all[i] == x {
			s.all = append(s.all[:i], s.all[i+1:]...)
			s.n.Add(-1)
			return true
		}
	}
	return false
}

// offer has a client that has just logged in traced, where somebody waits for it. Its reader calls it.
func (s *catches) offer(c *client) {
	if s.n.Load() == 0 || c.traced.Load() != nil {
		return
	}
	var x *catch
	s.mu.Lock()
	for _, y := range s.all {
		if (y.want.User == "" || y.want.User == c.user) && (y.want.Address == "" || y.want.Address == c.host()) {
			x = y
			break
		}
	}
	s.mu.Unlock()
	if x == nil || !s.remove(x) {
		return
	}
	t := newTrace(c, x.want)
	_ = t.attach() // of one that has just gone there is nothing to tell
	x.caught <- t
}

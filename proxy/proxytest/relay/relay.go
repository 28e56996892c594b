// Package relay is a long path on one machine: a TCP relay that holds every byte
// for a given time each way, keeps order and throughput, and can be cut or silenced.
// It stands between a client and a broker in tests, the demo and the benchmark.
package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// lineCapacity bounds the bytes on the way in one direction of one connection. It is
// the path's bandwidth-delay product: 32 MiB in 25 ms is more than 1 GB/s.
const lineCapacity = 32 << 20

// dialTimeout bounds the connect to the target, which is on this machine.
const dialTimeout = 5 * time.Second

// Relay accepts on a loopback port of its own and forwards each connection to a target.
type Relay struct {
	target string
	delay  time.Duration
	ln     net.Listener
	ctx    context.Context // ends when the relay is closed
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	paths map[*path]struct{}
	total int
	flow  chan struct{} // closed while bytes may pass
	stall bool
}

// New starts a relay to target (HOST:PORT) on a free loopback port. Every byte arrives
// delay after it was sent, so a round trip costs twice the delay. As on a real path a
// connect costs a round trip too: what a client sends in that time is held longer.
func New(target string, delay time.Duration) (*Relay, error) {
	if delay < 0 {
		return nil, fmt.Errorf("relay: delay is %v, allowed is 0 or more", delay)
	}
	if _, _, err := net.SplitHostPort(target); err != nil {
		return nil, fmt.Errorf("relay: target %q, allowed is HOST:PORT: %w", target, err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("relay: listen: %w", err)
	}
	r := &Relay{target: target, delay: delay, ln: ln, paths: map[*path]struct{}{}, flow: make(chan struct{})}
	close(r.flow)
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.wg.Add(1)
	go r.accept()
	return r, nil
}

// Addr is the HOST:PORT to connect to.
func (r *Relay) Addr() string { return r.ln.Addr().String() }

// Conns is how many connections pass through now.
func (r *Relay) Conns() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.paths)
}

// Total is how many connections were accepted since New.
func (r *Relay) Total() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.total
}

// Cut resets every connection, on both sides, at once. New ones are accepted.
func (r *Relay) Cut() {
	r.mu.Lock()
	cut := make([]*path, 0, len(r.paths))
	for p := range r.paths {
		cut = append(cut, p)
	}
	r.mu.Unlock()
	for _, p := range cut {
		p.reset()
	}
}

// Stall(true) silences the path: nothing more arrives on either side, of old
// connections and new ones, and no socket is closed. Stall(false) lets all that was
// held go on, in order.
func (r *Relay) Stall(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if on == r.stall {
		return
	}
	r.stall = on
	if on {
		r.flow = make(chan struct{})
	} else {
		close(r.flow)
	}
}

// Close ends the listener and every connection and waits for all goroutines.
func (r *Relay) Close() error {
	r.cancel()
	err := r.ln.Close()
	r.Cut()
	r.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// passable waits until the path is not stalled; false when ctx ended first.
func (r *Relay) passable(ctx context.Context) bool {
	for {
		r.mu.Lock()
		flow, stall := r.flow, r.stall
		r.mu.Unlock()
		if !stall {
			return true
		}
		select {
		case <-flow:
		case <-ctx.Done():
			return false
		}
	}
}

func (r *Relay) accept() {
	defer r.wg.Done()
	for {
		conn, err := r.ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of descriptors, say: the next accept may do.
			select {
			case <-r.ctx.Done():
				return
			case <-time.After(10 * time.Millisecond):
				continue
			}
		}
		p := &path{relay: r, client: conn.(*net.TCPConn)}
		p.ctx, p.cancel = context.WithCancel(r.ctx)
		r.mu.Lock()
		r.paths[p] = struct{}{}
		r.total++
		r.wg.Add(1)
		r.mu.Unlock()
		go p.run(time.Now())
	}
}

// path is one connection through the relay.
type path struct {
	relay  *Relay
	client *net.TCPConn
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex
	broker *net.TCPConn // nil until connected
	isCut  bool
}

// run connects to the target, moves bytes until both directions ended, and forgets the path.
func (p *path) run(accepted time.Time) {
	r := p.relay
	defer r.wg.Done()
	defer func() {
		p.cancel()
		p.client.Close()
		r.mu.Lock()
		delete(r.paths, p)
		r.mu.Unlock()
	}()
	// The kernel told the client "connected" at once; over the path the target would
	// see the SYN now + delay and the client its answer a delay later.
	if !sleepUntil(p.ctx, accepted.Add(r.delay)) || !r.passable(p.ctx) {
		return
	}
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(p.ctx, "tcp", r.target)
	if err != nil {
		sleepUntil(p.ctx, time.Now().Add(r.delay))
		p.reset()
		return
	}
	defer conn.Close()
	p.mu.Lock()
	p.broker = conn.(*net.TCPConn)
	cut := p.isCut
	p.mu.Unlock()
	if cut {
		p.reset()
		return
	}
	connected := accepted.Add(2 * r.delay)
	var both sync.WaitGroup
	both.Add(2)
	go func() { defer both.Done(); p.carry(p.broker, p.client, connected) }()
	go func() { defer both.Done(); p.carry(p.client, p.broker, time.Time{}) }()
	both.Wait()
}

// carry moves bytes from src to dst, each delay after it was read, but none that was
// read before notBefore earlier than if it had been read then. An end of file passes
// on as one; an error resets both sides.
func (p *path) carry(dst, src *net.TCPConn, notBefore time.Time) {
	l := newLine()
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 64<<10)
		for {
			n, err := src.Read(buf)
			now := time.Now()
			if now.Before(notBefore) {
				now = notBefore
			}
			due := now.Add(p.relay.delay)
			if n > 0 && !l.put(p.ctx, chunk{due: due, data: append([]byte(nil), buf[:n]...)}) {
				return
			}
			if err != nil {
				l.put(p.ctx, chunk{due: due, end: err})
				return
			}
		}
	}()
	for {
		c, ok := l.take(p.ctx)
		if !ok || !sleepUntil(p.ctx, c.due) || !p.relay.passable(p.ctx) {
			break
		}
		if c.end != nil {
			if errors.Is(c.end, io.EOF) && dst.CloseWrite() == nil {
				<-done
				return
			}
			p.reset()
			break
		}
		if _, err := dst.Write(c.data); err != nil {
			p.reset()
			break
		}
	}
	p.reset()
	<-done
}

// reset ends both sides with a TCP reset, as when a path is cut.
func (p *path) reset() {
	p.mu.Lock()
	p.isCut = true
	broker := p.broker
	p.mu.Unlock()
	p.cancel()
	for _, c := range []*net.TCPConn{p.client, broker} {
		if c != nil {
			c.SetLinger(0) // an error means that the socket is closed already
			c.Close()
		}
	}
}

// chunk is a read's bytes, or the end of a direction, and when it arrives.
type chunk struct {
	due  time.Time
	data []byte
	end  error
}

// line is the bytes on the way in one direction: one putter, one taker.
type line struct {
	mu    sync.Mutex
	queue []chunk
	size  int
	more  chan struct{} // has a token when the queue may have grown
	room  chan struct{} // has a token when the queue may have shrunk
}

func newLine() *line {
	return &line{more: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// put appends c once there is room; false when ctx ended first.
func (l *line) put(ctx context.Context, c chunk) bool {
	for {
		l.mu.Lock()
		if l.size == 0 || l.size+len(c.data) <= lineCapacity {
			l.queue = append(l.queue, c)
			l.size += len(c.data)
			l.mu.Unlock()
			token(l.more)
			return true
		}
		l.mu.Unlock()
		select {
		case <-l.room:
		case <-ctx.Done():
			return false
		}
	}
}

// take removes the oldest chunk once there is one; false when ctx ended first.
func (l *line) take(ctx context.Context) (chunk, bool) {
	for {
		l.mu.Lock()
		if len(l.queue) > 0 {
			c := l.queue[0]
			l.queue[0] = chunk{}
			l.queue = l.queue[1:]
			l.size -= len(c.data)
			l.mu.Unlock()
			token(l.room)
			return c, true
		}
		l.mu.Unlock()
		select {
		case <-l.more:
		case <-ctx.Done():
			return chunk{}, false
		}
	}
}

// token leaves one token in ch, which has room for one.
func token(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// sleepUntil waits for a point in time; false when ctx ended first.
func sleepUntil(ctx context.Context, due time.Time) bool {
	wait := time.Until(due)
	if wait <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

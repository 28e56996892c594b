// A broker, each step of which the test makes: it accepts, expects frames, sends
// frames, stops reading, falls silent, cuts. What arrives is read in the
// background and kept, with its connection and channel, in the order of arrival.

package proxytest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// scriptTimeout ends a wait of a script that is in vain. Nothing waits for so long in a
// test that succeeds; in a synctest bubble it passes at once when all is idle.
const scriptTimeout = 10 * time.Second

// Script is a scripted broker. Its methods fail the test; call them from the test's goroutine.
type Script struct {
	// Product is what the broker says that it is; "": RabbitMQ.
	Product string
	// Way is how long the broker of the script takes for each answer of a handshake.
	Way time.Duration

	t  testing.TB
	ln net.Listener
	wg sync.WaitGroup

	mu      sync.Mutex
	changed *sync.Cond
	peers   []*Peer // in the order in which they were accepted
	given   int     // peers that Accept has returned
	log     []Record
	ended   bool
}

// Record is a frame that arrived at a script.
type Record struct {
	Peer  *Peer
	Frame amqp.Frame
	At    time.Time
}

func (r Record) String() string { return fmt.Sprintf("#%d %s", r.Peer.N, Describe(r.Frame)) }

// NewScript listens on ln, or on a free loopback port when ln is nil, until the test ends.
func NewScript(t testing.TB, ln net.Listener) *Script {
	t.Helper()
	if ln == nil {
		var err error
		if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatalf("script: listen: %v", err)
		}
	}
	s := &Script{t: t, ln: ln}
	s.changed = sync.NewCond(&s.mu)
	s.wg.Add(1)
	go s.accept()
	t.Cleanup(s.Close)
	return s
}

// Addr is the HOST:PORT to connect to.
func (s *Script) Addr() string { return s.ln.Addr().String() }

// Close ends the listener and every connection, and waits for the script's goroutines.
func (s *Script) Close() {
	s.mu.Lock()
	s.ended = true
	peers := s.peers
	s.mu.Unlock()
	s.ln.Close()
	for _, p := range peers {
		p.Read()
		p.conn.Close()
	}
	s.wg.Wait()
}

func (s *Script) accept() {
	defer s.wg.Done()
	for {
		conn, err := s.ln.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.ended {
			s.mu.Unlock()
			conn.Close()
			return
		}
		p := &Peer{s: s, N: len(s.peers) + 1, conn: conn}
		s.peers = append(s.peers, p)
		s.wg.Add(1)
		s.changed.Broadcast()
		s.mu.Unlock()
		go p.read()
	}
}

// wait blocks until cond, called with the lock held, is true; false after the timeout.
func (s *Script) wait(timeout time.Duration, cond func() bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	late := false
	timer := time.AfterFunc(timeout, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		late = true
		s.changed.Broadcast()
	})
	defer timer.Stop()
	for !cond() {
		if late {
			return false
		}
		s.changed.Wait()
	}
	return true
}

// Accept waits for the next connection.
func (s *Script) Accept() *Peer {
	s.t.Helper()
	var p *Peer
	if !s.wait(scriptTimeout, func() bool {
		if s.given == len(s.peers) {
			return false
		}
		p = s.peers[s.given]
		s.given++
		return true
	}) {
		s.t.Fatalf("script: no connection %d came\n%s", s.given+1, s.Log())
	}
	return p
}

// AcceptOpen is Accept and Open.
func (s *Script) AcceptOpen() *Peer {
	s.t.Helper()
	p := s.Accept()
	p.Open()
	return p
}

// Accepted is how many connections came so far.
func (s *Script) Accepted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.peers)
}

// Records are all frames that arrived so far, on whatever connection.
func (s *Script) Records() []Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log[:len(s.log):len(s.log)]
}

// Wait blocks until cond holds of the frames that arrived.
func (s *Script) Wait(what string, cond func([]Record) bool) {
	s.t.Helper()
	if !s.wait(scriptTimeout, func() bool { return cond(s.log) }) {
		s.t.Fatalf("script: waited in vain for %s\n%s", what, s.Log())
	}
}

// Log is all that arrived, a line each.
func (s *Script) Log() string {
	var b strings.Builder
	for _, r := range s.Records() {
		fmt.Fprintln(&b, r)
	}
	if b.Len() == 0 {
		return "(nothing arrived)"
	}
	return "arrived:\n" + b.String()
}

// Count is how many of the method arrived, on whatever connection and channel.
func Count(rs []Record, m amqp.Method) int {
	n := 0
	for _, r := range rs {
		if r.Frame.Type() == amqp.FrameMethod && r.Frame.Method() == m {
			n++
		}
	}
	return n
}

// Peer is one connection to a script.
type Peer struct {
	// N counts the script's connections from 1.
	N int
	// Login is what the handshake told.
	Login Login

	s    *Script
	conn net.Conn

	// Guarded by s.mu.
	header  []byte // the protocol header, once it is there
	queue   []amqp.Frame
	end     error // why reading ended
	held    bool
	perRead int
	every   time.Duration
}

// Login is what a client told in its handshake.
type Login struct {
	Properties     []byte // the inside of the client-properties
	Mechanism      string
	Response       []byte
	User, Password string // of PLAIN and AMQPLAIN
	Tune           amqp.Tune
	VHost          string
}

// read takes bytes as fast as the script lets it.
func (p *Peer) read() {
	defer p.s.wg.Done()
	rd := amqp.NewReader(64<<10, 0)
	for {
		var src io.Reader = p.conn
		if n := p.mayRead(); n > 0 {
			src = io.LimitReader(p.conn, int64(n))
		}
		_, err := rd.Fill(src)
		p.take(rd, err)
		if err != nil {
			return
		}
	}
}

// mayRead waits while reading is held or slow; it tells how many octets may be read, 0: any.
func (p *Peer) mayRead() int {
	p.s.mu.Lock()
	for p.held {
		p.s.changed.Wait()
	}
	n, every := p.perRead, p.every
	p.s.mu.Unlock()
	if every == 0 {
		return 0
	}
	time.Sleep(every) // the slowness itself, not a wait for something
	return n
}

func (p *Peer) take(rd *amqp.Reader, err error) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	defer p.s.changed.Broadcast()
	if p.header == nil {
		if b := rd.Buffered(); len(b) >= 8 {
			p.header = append([]byte(nil), b[:8]...)
			rd.Skip(8)
		}
	}
	for p.header != nil {
		f, ferr := rd.Next()
		if ferr != nil {
			err = errors.Join(ferr, err)
		}
		if f == nil {
			break
		}
		f = append(amqp.Frame(nil), f...)
		p.queue = append(p.queue, f)
		p.s.log = append(p.s.log, Record{Peer: p, Frame: f, At: time.Now()})
	}
	if err != nil && p.end == nil {
		p.end = err
	}
}

// Hold stops reading; what a read in progress brings is still recorded. Give the
// connection a small capacity (Pipe, ListenMem) to make the other side's writes wait.
func (p *Peer) Hold() { p.set(func() { p.held = true }) }

// Read reads on at full speed after Hold or ReadSlowly.
func (p *Peer) Read() { p.set(func() { p.held, p.every = false, 0 }) }

// ReadSlowly reads at most n octets each time.
func (p *Peer) ReadSlowly(n int, every time.Duration) {
	p.set(func() { p.held, p.perRead, p.every = false, n, every })
}

func (p *Peer) set(f func()) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	f()
	p.s.changed.Broadcast()
}

// Cut ends the connection with a reset.
func (p *Peer) Cut() {
	p.Read()
	Abort(p.conn)
}

// Close ends the connection without a word of AMQP.
func (p *Peer) Close() {
	p.Read()
	p.conn.Close()
}

// Send writes frames, or any bytes, in one write.
func (p *Peer) Send(frames ...[]byte) {
	p.s.t.Helper()
	var b []byte
	for _, f := range frames {
		b = append(b, f...)
	}
	if _, err := p.conn.Write(b); err != nil {
		p.s.t.Fatalf("script: write on #%d: %v\n%s", p.N, err, p.s.Log())
	}
}

// Write is Send for other goroutines than the test's, to a peer that may have gone.
func (p *Peer) Write(b []byte) { _, _ = p.conn.Write(b) }

// SendMethod sends one method, its arguments as Method takes them.
func (p *Peer) SendMethod(channel uint16, m amqp.Method, args ...any) {
	p.s.t.Helper()
	p.Send(Method(channel, m, args...))
}

// Next waits for the next frame; heartbeats are left out.
func (p *Peer) Next() amqp.Frame {
	p.s.t.Helper()
	f := p.next(scriptTimeout)
	if f == nil {
		p.s.t.Fatalf("script: no further frame came on #%d (reading ended with: %v)\n%s", p.N, p.Err(), p.s.Log())
	}
	return f
}

func (p *Peer) next(timeout time.Duration) (f amqp.Frame) {
	p.s.wait(timeout, func() bool {
		for len(p.queue) > 0 {
			f, p.queue = p.queue[0], p.queue[1:]
			if f.Type() != amqp.FrameHeartbeat {
				return true
			}
			f = nil
		}
		return p.end != nil
	})
	return f
}

// Expect fails the test unless the next frame is the method, and returns it.
func (p *Peer) Expect(m amqp.Method) amqp.Frame {
	p.s.t.Helper()
	f := p.Next()
	if f.Type() != amqp.FrameMethod || f.Method() != m {
		p.s.t.Fatalf("script: on #%d got %s, want %v\n%s", p.N, Describe(f), m, p.s.Log())
	}
	return f
}

// ExpectOn is Expect on a certain channel.
func (p *Peer) ExpectOn(channel uint16, m amqp.Method) amqp.Frame {
	p.s.t.Helper()
	f := p.Expect(m)
	if f.Channel() != channel {
		p.s.t.Fatalf("script: on #%d got %s, want it on channel %d\n%s", p.N, Describe(f), channel, p.s.Log())
	}
	return f
}

// ExpectBytes fails the test unless the next frames are exactly these.
func (p *Peer) ExpectBytes(want []byte) {
	p.s.t.Helper()
	frames, err := Frames(want)
	if err != nil {
		p.s.t.Fatalf("script: ExpectBytes: %v", err)
	}
	for range frames {
		f := p.Next()
		n := len(f)
		if d := Diff(f, want[:min(n, len(want))]); d != "" {
			p.s.t.Fatalf("script: on #%d: %s\n%s", p.N, d, p.s.Log())
		}
		want = want[n:]
	}
}

// ExpectContent takes a method with its content, whole, on one channel without a frame between.
func (p *Peer) ExpectContent(m amqp.Method) (method, header amqp.Frame, body []byte) {
	p.s.t.Helper()
	method = p.Expect(m)
	header = p.Next()
	if header.Type() != amqp.FrameHeader || header.Channel() != method.Channel() {
		p.s.t.Fatalf("script: on #%d got %s, want the content header of %v", p.N, Describe(header), m)
	}
	for uint64(len(body)) < header.BodySize() {
		f := p.Next()
		if f.Type() != amqp.FrameBody || f.Channel() != method.Channel() {
			p.s.t.Fatalf("script: on #%d got %s, want a body of %v", p.N, Describe(f), m)
		}
		body = append(body, f.Payload()...)
	}
	return method, header, body
}

// ExpectNothing fails the test when a frame comes within d. In a synctest bubble it costs no time.
func (p *Peer) ExpectNothing(d time.Duration) {
	p.s.t.Helper()
	if f := p.next(d); f != nil {
		p.s.t.Fatalf("script: on #%d got %s, want nothing\n%s", p.N, Describe(f), p.s.Log())
	}
}

// ExpectEnd waits until the other side ended the connection, frames left unread or not.
func (p *Peer) ExpectEnd() {
	p.s.t.Helper()
	if !p.s.wait(scriptTimeout, func() bool { return p.end != nil }) {
		p.s.t.Fatalf("script: #%d was not closed\n%s", p.N, p.s.Log())
	}
}

// Err is why reading ended; nil while it goes on.
func (p *Peer) Err() error {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	return p.end
}

// ExpectHeader waits for the eight octets that a client sends first.
func (p *Peer) ExpectHeader() []byte {
	p.s.t.Helper()
	var h []byte
	if !p.s.wait(scriptTimeout, func() bool { h = p.header; return h != nil || p.end != nil }) || h == nil {
		p.s.t.Fatalf("script: no protocol header came on #%d", p.N)
	}
	return h
}

// DefaultTune is what RabbitMQ offers.
var DefaultTune = amqp.Tune{ChannelMax: 2047, FrameMax: 131072, Heartbeat: 60}

// Start makes the handshake up to and including start-ok.
func (p *Peer) Start() Login {
	p.s.t.Helper()
	p.ExpectHeader()
	says := RabbitMQProperties("3.10.8")
	if p.s.Product != "" {
		says = properties(p.s.Product, "1.0", "", everyCapability...)
	}
	time.Sleep(p.s.Way)
	p.Send(amqp.AppendStart(nil, says, "PLAIN AMQPLAIN", "en_US"))
	p.Login = ParseStartOk(p.Expect(amqp.ConnectionStartOk))
	return p.Login
}

// Open makes the whole handshake as RabbitMQ does, with DefaultTune.
func (p *Peer) Open() Login {
	p.s.t.Helper()
	return p.OpenTuned(DefaultTune)
}

// OpenTuned makes the whole handshake with a tune of the test's own.
func (p *Peer) OpenTuned(tune amqp.Tune) Login {
	p.s.t.Helper()
	p.Start()
	time.Sleep(p.s.Way)
	p.Send(amqp.AppendTune(nil, amqp.ConnectionTune, tune))
	p.Login.Tune, _ = amqp.ParseTune(p.Expect(amqp.ConnectionTuneOk))
	open := amqp.ReadArgs(p.Expect(amqp.ConnectionOpen))
	p.Login.VHost = string(open.Str())
	time.Sleep(p.s.Way)
	p.SendMethod(0, amqp.ConnectionOpenOk, "")
	return p.Login
}

// OpenChannel expects channel.open, answers it and returns the channel's number.
func (p *Peer) OpenChannel() uint16 {
	p.s.t.Helper()
	f := p.Expect(amqp.ChannelOpen)
	p.SendMethod(f.Channel(), amqp.ChannelOpenOk, "")
	return f.Channel()
}

// ParseStartOk reads connection.start-ok.
func ParseStartOk(f amqp.Frame) Login {
	a := amqp.ReadArgs(f)
	l := Login{Properties: a.LongStr(), Mechanism: string(a.Str()), Response: a.LongStr()}
	switch l.Mechanism {
	case "PLAIN":
		if parts := strings.Split(string(l.Response), "\x00"); len(parts) == 3 {
			l.User, l.Password = parts[1], parts[2]
		}
	case "AMQPLAIN":
		l.User = amqp.LookupString(l.Response, "LOGIN")
		l.Password = amqp.LookupString(l.Response, "PASSWORD")
	}
	return l
}

// RabbitMQProperties is the inside of the server-properties of a RabbitMQ of that version.
func RabbitMQProperties(version string) []byte {
	var caps, b []byte
	for _, c := range []string{"publisher_confirms", "exchange_exchange_bindings", "basic.nack", "consumer_cancel_notify",
		"connection.blocked", "consumer_priorities", "authentication_failure_close", "per_consumer_qos", "direct_reply_to"} {
		caps = amqp.AppendBoolField(caps, c, true)
	}
	b = amqp.AppendTableField(b, "capabilities", caps)
	b = amqp.AppendStringField(b, "cluster_name", "rabbit@standin")
	b = amqp.AppendStringField(b, "copyright", "Copyright (c) 2007-2022 VMware, Inc. or its affiliates.")
	b = amqp.AppendStringField(b, "information", "Licensed under the MPL 2.0. Website: https://rabbitmq.com")
	b = amqp.AppendStringField(b, "platform", "Erlang/OTP 25.2.3")
	b = amqp.AppendStringField(b, "product", "RabbitMQ")
	return amqp.AppendStringField(b, "version", version)
}

// Dial is a dial seam that connects to the script, whatever the address.
func (s *Script) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if m, ok := s.ln.(*MemListener); ok {
		return m.Dial(ctx, network, address)
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", s.Addr())
}

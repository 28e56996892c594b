package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// recorded is a client's end of a connection, and the octets that went over it.
type recorded struct {
	net.Conn
	mu       sync.Mutex
	out, got bytes.Buffer
}

func (c *recorded) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	c.got.Write(p[:n])
	c.mu.Unlock()
	return n, err
}

func (c *recorded) Write(p []byte) (int, error) {
	c.mu.Lock()
	c.out.Write(p)
	c.mu.Unlock()
	return c.Conn.Write(p)
}

// recordedClient has not begun its handshake.
func (r *rig) recordedClient(cfg proxytest.ClientConfig) (*proxytest.Client, *recorded) {
	conn, err := r.in.Dial(context.Background(), "tcp", "127.0.0.1:5673")
	r.must(err)
	rec := &recorded{Conn: conn}
	cfg.Timeout = time.Minute
	return proxytest.NewClient(rec, cfg), rec
}

// all is what a trace tells until its client has gone.
func (r *rig) all(t *Trace) (frames []TracedFrame, lost uint64) {
	r.t.Helper()
	for {
		some, n, err := t.Next(context.Background())
		if errors.Is(err, io.EOF) {
			return frames, lost
		}
		r.must(err)
		frames, lost = append(frames, some...), lost+n
	}
}

func (r *rig) trace(w TraceWanted) *Trace {
	r.t.Helper()
	synctest.Wait()
	t, err := r.s.Trace(context.Background(), w)
	r.must(err)
	r.t.Cleanup(t.Close)
	return t
}

// A trace is what went over the wire, both ways, frame by frame, from wherever it began: whole with all
// bodies asked for, but for secrets; and it says where each channel is.
func TestTraceIsTheWire(t *testing.T) {
	body := bytes.Repeat([]byte("b"), 300_000) // three frames
	withBroker(t, proxytest.BrokerConfig{Users: map[string]string{"app": "secret-of-app"}}, nil, func(r *rig) {
		c, rec := r.recordedClient(proxytest.ClientConfig{User: "app", Password: "secret-of-app", Name: "shop"})
		tr := r.trace(TraceWanted{Client: 1, Bodies: 1 << 20})
		r.must(c.Handshake())
		r.must(c.OpenChannel(7))
		_, err := c.DeclareQueue(7, "q", 0)
		r.must(err)
		r.must(c.Publish(7, "", "q", body))
		r.must(c.Publish(7, "", "q", []byte("second")))
		synctest.Wait()
		for range 2 {
			_, err = c.Get(7, "q", true)
			r.must(err)
		}
		_, err = c.Get(7, "q", true)
		if !errors.Is(err, proxytest.ErrEmpty) {
			t.Fatal(err)
		}
		r.must(c.OpenChannel(8))
		r.must(c.CloseChannel(8))
		r.must(c.Close())
		frames, lost := r.all(tr)
		if lost != 0 {
			t.Errorf("%d frames were lost", lost)
		}
		for _, fromClient := range []bool{true, false} {
			wire := rec.got.Bytes()
			if fromClient {
				wire = rec.out.Bytes()[8:] // behind the protocol header
			}
			want, err := proxytest.Frames(wire)
			r.must(err)
			i := 0
			for _, f := range frames {
				if f.Type == 0 || f.FromClient != fromClient {
					continue
				}
				if i == len(want) {
					t.Fatalf("from client %v: more frames than the %d of the wire", fromClient, i)
				}
				w := want[i]
				p := w.Payload()
				if w.Method() == amqp.ConnectionStartOk {
					p = bytes.Replace(p, []byte("\x00app\x00secret-of-app"), []byte(strings.Repeat("*", 18)), 1)
				}
				if f.Type != w.Type() || f.Channel != w.Channel() || f.Size != len(p) || !bytes.Equal(f.Payload, p) {
					t.Errorf("from client %v, frame %d: got type %d channel %d size %d %.60q\nwant %s", fromClient, i, f.Type, f.Channel, f.Size, f.Payload, proxytest.Describe(w))
				}
				i++
			}
			if i != len(want) {
				t.Errorf("from client %v: %d frames, %d on the wire", fromClient, i, len(want))
			}
		}
		seat := TracedSeat{}
		for _, f := range frames {
			if f.Type == 0 && f.Channel == 7 {
				seat = f.Seat
			}
			if f.Type == amqp.FrameMethod && f.Channel == 7 {
				m := amqp.Frame(amqp.AppendFrame(nil, 1, 7, f.Payload)).Method()
				if want := map[amqp.Method]bool{amqp.BasicGetOk: true, amqp.BasicGetEmpty: true}[m]; want && (seat.Upstream == 0 || f.Seat != seat) {
					t.Errorf("%s is told at %+v, the channel is at %+v", m, f.Seat, seat)
				}
			}
		}
		if seat.Upstream == 0 || seat.Channel == 0 {
			t.Error("where the channel went is not told")
		}
	})
}

// Nothing that proves who a client is comes into a trace, in whatever way it is sent.
func TestTraceHidesSecrets(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{Users: map[string]string{"app": "secret-of-app"}}, func(c *Config) { c.Listeners[0].Mode = PoolSession }, func(r *rig) {
		for id, mechanism := range []string{"PLAIN", "AMQPLAIN"} {
			c, rec := r.recordedClient(proxytest.ClientConfig{User: "app", Password: "secret-of-app", Mechanism: mechanism})
			tr := r.trace(TraceWanted{Client: uint64(id + 1), Bodies: 1 << 20})
			r.must(c.Handshake())
			r.must(c.Call(proxytest.Method(0, amqp.ConnectionUpdateSecret, "secret-to-come", "because"), amqp.ConnectionUpdateSecretOk))
			_ = c.SendMethod(0, amqp.ConnectionSecureOk, "secret-of-app")
			_ = c.SendMethod(3, amqp.ConnectionUpdateSecret, "secret-to-come", "")
			_, _ = c.Next()
			_ = c.Hangup()
			frames, _ := r.all(tr)
			if n := bytes.Count(rec.out.Bytes(), []byte("secret-")); n < 3 || len(frames) < 10 {
				t.Errorf("%s: %d secrets were sent, %d frames told", mechanism, n, len(frames))
			}
			for _, f := range frames {
				if bytes.Contains(f.Payload, []byte("secret-")) {
					t.Errorf("%s: a secret is told: %q", mechanism, f.Payload)
				}
			}
		}
	})
}

// What cannot be told apart is hidden whole; what holds no secret is left as it is.
func TestHideSecret(t *testing.T) {
	for in, want := range map[string]string{
		"\x00\x0a\x00\x0b\x00\x00\x00\x00\x05PLAIN\x00\x00\x00\x03abc\x05en_US": "\x00\x0a\x00\x0b\x00\x00\x00\x00\x05PLAIN\x00\x00\x00\x03***\x05en_US",
		"\x00\x0a\x00\x0b\x00\x00\xff\x00\x05PLAIN\x00\x00\x00\x03abc":          "\x00\x0a\x00\x0b" + strings.Repeat("*", 17),
		"\x00\x0a\x00\x15\x00\x00\x00\xffabc":                                   "\x00\x0a\x00\x15*******",
		"\x00\x0a\x00\x46\x00\x00\x00\x03abc\x01x":                              "\x00\x0a\x00\x46\x00\x00\x00\x03***\x01x",
		"\x00\x0a\x00\x28\x01/\x00\x00":                                         "\x00\x0a\x00\x28\x01/\x00\x00",
		"\x00\x0a":                                                              "\x00\x0a",
	} {
		p := []byte(in)
		if hideSecret(p); string(p) != want {
			t.Errorf("%q: got %q, want %q", in, p, want)
		}
	}
}

// A trace of a client that was there tells where its channels are; bodies only as far as asked for.
func TestTraceOfWhoIsThere(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		c := r.client(proxytest.ClientConfig{})
		r.must(c.Publish(1, "", "q", []byte("before")))
		tr := r.trace(TraceWanted{Client: 1, Bodies: 3})
		if who := tr.Client(); who.ID != 1 || who.User != "guest" {
			t.Errorf("the client is %+v", who)
		}
		r.must(c.Publish(1, "", "q", []byte("hello")))
		synctest.Wait()
		frames, lost, err := tr.Next(context.Background())
		if err != nil || lost != 0 || len(frames) != 3 {
			t.Fatalf("got %d frames, %d lost, %v; want a publish", len(frames), lost, err)
		}
		if f := frames[2]; f.Type != amqp.FrameBody || f.Size != 5 || string(f.Payload) != "hel" || f.Seat != frames[0].Seat || f.Seat.Upstream == 0 || !f.FromClient {
			t.Errorf("the body is %+v", f)
		}
		tr.Close()
		r.must(c.Publish(1, "", "q", []byte("hello")))
		if _, err := r.s.Trace(context.Background(), TraceWanted{Client: 1}); err != nil {
			t.Errorf("traced anew: %v", err)
		}
		if n := r.s.traces.Load(); n != 1 {
			t.Errorf("%d traces are counted, want 1", n)
		}
		r.must(c.Close())
	})
}

// Who looks too slowly holds nobody: frames are lost to him, and he hears where and how many.
func TestTraceOfSlowLooker(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		c := r.client(proxytest.ClientConfig{})
		tr := r.trace(TraceWanted{Client: 1, Bodies: 10})
		const messages = 2000
		for range messages {
			r.must(c.Publish(1, "", "nowhere", []byte("x")))
		}
		_, err := c.DeclareQueue(1, "q", 0) // all of it has been taken
		r.must(err)
		frames, lost, err := tr.Next(context.Background())
		r.must(err)
		// 3 frames a message; that the channel was bound; the declare and its answer.
		if len(frames) != traceFrames || len(frames)+int(lost) != 3*messages+3 {
			t.Errorf("%d frames are told and %d lost, want %d and together %d", len(frames), lost, traceFrames, 3*messages+3)
		}
		r.must(c.Publish(1, "", "nowhere", []byte("x")))
		synctest.Wait()
		if frames, lost, err := tr.Next(context.Background()); len(frames) != 3 || lost != 0 || err != nil {
			t.Errorf("after that: %d frames, %d lost, %v", len(frames), lost, err)
		}
		for range 20 {
			r.must(c.Publish(1, "", "nowhere", make([]byte, 300_000)))
		}
		r.must(c.Close())
		tr.c.mu.Lock()
		held := tr.octets
		tr.c.mu.Unlock()
		if held > traceOctets {
			t.Errorf("%d octets are held, want %d at most", held, traceOctets)
		}
	})
}

// The next client of a user is waited for; the wait ends with its caller.
func TestTraceOfWhoComes(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{Users: listed}, nil, func(r *rig) {
		ctx, cancel := context.WithCancel(context.Background())
		type result struct {
			t   *Trace
			err error
		}
		wait := func(ctx context.Context, w TraceWanted) <-chan result {
			done := make(chan result, 1)
			go func() {
				t, err := r.s.Trace(ctx, w)
				done <- result{t, err}
			}()
			synctest.Wait()
			return done
		}
		byUser, other := wait(ctx, TraceWanted{User: "b"}), wait(ctx, TraceWanted{User: "b", Address: "192.0.2.1"})
		a := r.client(proxytest.ClientConfig{User: "a", Password: "x"})
		b := r.client(proxytest.ClientConfig{User: "b", Password: "x"})
		got := <-byUser
		r.must(got.err)
		synctest.Wait()
		frames, _, err := got.t.Next(context.Background())
		r.must(err)
		var methods []amqp.Method
		for _, f := range frames {
			methods = append(methods, amqp.Frame(amqp.AppendFrame(nil, f.Type, f.Channel, f.Payload)).Method())
		}
		if want := []amqp.Method{amqp.ConnectionOpenOk, amqp.ChannelOpen, amqp.ChannelOpenOk}; got.t.Client().User != "b" || !slices.Equal(methods, want) {
			t.Errorf("of %s: got %v, want %v", got.t.Client().User, methods, want)
		}
		cancel()
		if x := <-other; !errors.Is(x.err, context.Canceled) {
			t.Errorf("the wait that was called off ended with %v", x.err)
		}
		got.t.Close()
		if n, m := r.s.traces.Load(), r.s.catches.n.Load(); n != 0 || m != 0 {
			t.Errorf("%d traces and %d waits are left", n, m)
		}
		r.must(a.Close())
		r.must(b.Close())
	})
}

func TestTraceBounds(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		var all []*proxytest.Client
		for range mostTraces + 1 {
			all = append(all, r.client(proxytest.ClientConfig{}))
		}
		refused := func(id uint64, words string) {
			t.Helper()
			if _, err := r.s.Trace(context.Background(), TraceWanted{Client: id}); err == nil || !strings.Contains(err.Error(), words) {
				t.Errorf("a trace of client %d: %v, want %q", id, err, words)
			}
		}
		refused(99, "there is no client 99")
		first := r.trace(TraceWanted{Client: 1})
		refused(1, "client 1 is being traced already")
		for i := range mostTraces - 1 {
			r.trace(TraceWanted{Client: uint64(i + 2)})
		}
		refused(mostTraces+1, "8 traces are under way")
		first.Close()
		first.Close()
		r.trace(TraceWanted{Client: mostTraces + 1})
		for _, c := range all {
			r.must(c.Close())
		}
	})
}

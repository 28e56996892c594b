package proxy

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// noise is a body in which nothing repeats.
func noise(n int) []byte {
	b := make([]byte, n)
	rnd := rand.NewChaCha8(sha256.Sum256([]byte{byte(n)}))
	_, _ = rnd.Read(b)
	return b
}

// Bodies around every boundary arrive whole both ways, whatever each side's frame_max is.
func TestBodiesFitEitherSide(t *testing.T) {
	for _, fm := range []struct{ client, broker uint32 }{{4096, 131072}, {131072, 131072}, {8192, 8192}, {4096, 4096}, {5000, 0}} {
		withScript(t, 0, func(c *Config) { c.Heartbeat = 0 }, func(r *rig) {
			done := make(chan *proxytest.Client)
			go func() {
				c, err := r.login(proxytest.ClientConfig{FrameMax: fm.client})
				if err != nil {
					t.Error(err)
				}
				done <- c
			}()
			p := r.sc.Accept()
			p.OpenTuned(amqp.Tune{ChannelMax: 100, FrameMax: fm.broker})
			c := <-done
			r.must(c.OpenChannel(1))
			r.must(c.Publish(1, "", "q", nil))
			id := p.OpenChannel()
			p.ExpectContent(amqp.BasicPublish)
			for _, size := range []int{0, 1, 4087, 4088, 4089, 8175, 8176, 8177, 65535, 65536, 131063, 131064, 131065, 400_000} {
				body := noise(size)
				go func() {
					if err := c.Publish(1, "", "q", body); err != nil {
						t.Error(err)
					}
				}()
				if _, _, got := p.ExpectContent(amqp.BasicPublish); !bytes.Equal(got, body) {
					t.Fatalf("%+v: a publish of %d octets came as %d", fm, size, len(got))
				}
				out := proxytest.Method(id, amqp.BasicGetOk, 1, 0, "", "q", 0)
				out = append(out, proxytest.Header(id, uint64(size))...)
				out = amqp.AppendBody(out, id, body, fm.broker)
				synctest.Wait()
				r.must(c.Send(proxytest.Method(1, amqp.BasicGet, 0, "q", 1)))
				f := p.Next()
				for !isMethod(amqp.BasicGet)(f) { // alone there, it turns the upstream to readers
					f = p.Next()
				}
				go p.Send(out)
				var got []byte
				_, err := c.Expect(amqp.BasicGetOk)
				r.must(err)
				f, err = c.Next()
				r.must(err)
				for uint64(len(got)) < f.BodySize() {
					b, err := c.Next()
					r.must(err)
					if b.Type() != amqp.FrameBody || (len(b) > int(c.Tune.FrameMax) && c.Tune.FrameMax != 0) {
						t.Fatalf("%+v: got %s of %d octets", fm, proxytest.Describe(b), len(b))
					}
					got = append(got, b.Payload()...)
				}
				if !bytes.Equal(got, body) {
					t.Fatalf("%+v: a message of %d octets came changed", fm, size)
				}
			}
			_ = c.Hangup()
		})
	}
}

// A content header cannot be split: it reaches a client with a smaller frame_max whole, as it
// does straight from RabbitMQ, and the body in frames that fit.
func TestHeaderThatDoesNotFit(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{FrameMax: 4096})
		r.must(c.Send(proxytest.Method(1, amqp.BasicGet, 0, "q", 1)))
		id := p.OpenChannel()
		p.Expect(amqp.BasicGet)
		props := amqp.AppendLongStr(nil, amqp.AppendStringField(nil, "big", string(make([]byte, 5000))))
		body := bytes.Repeat([]byte("b"), 6000)
		p.Send(proxytest.Method(id, amqp.BasicGetOk, 1, 0, "", "q", 0), proxytest.HeaderWith(id, 6000, 1<<13, props), proxytest.Body(id, body))
		for _, want := range []struct {
			typ  byte
			size int
		}{{amqp.FrameMethod, 0}, {amqp.FrameHeader, 14 + len(props) + amqp.FrameOverhead}, {amqp.FrameBody, 4096}, {amqp.FrameBody, 6000 - 4088 + amqp.FrameOverhead}} {
			f, err := c.Next()
			r.must(err)
			if f.Type() != want.typ || f.Channel() != 1 || (want.size != 0 && len(f) != want.size) {
				t.Fatalf("got %s of %d octets, want type %d of %d", proxytest.Describe(f), len(f), want.typ, want.size)
			}
		}
		_ = c.Hangup()
	})
}

// A message over max_message_size costs its client the connection before its body is read.
func TestMessageTooLarge(t *testing.T) {
	withScript(t, 0, func(c *Config) { c.MaxMessageSize = 1000 }, func(r *rig) {
		c, _ := r.pair(proxytest.ClientConfig{})
		r.must(c.Send(proxytest.Method(1, amqp.BasicPublish, 0, "", "q", 0), proxytest.Header(1, 1001)))
		e, err := c.Closed(0)
		r.must(err)
		r.hears(e, amqp.FrameError, "max_message_size = 1000")
		synctest.Wait()
		if n := len(r.bodies(r.sc.Records())); n != 0 {
			t.Errorf("%d publishes arrived", n)
		}
		_ = c.Hangup()
	})
}

// Publishes that do not fit message_buffer together wait for each other, and all arrive.
func TestMessageBufferIsShared(t *testing.T) {
	withScript(t, 0, func(c *Config) { c.MaxMessageSize, c.MessageBuffer = 300_000, 400_000 }, func(r *rig) {
		first, _ := r.pair(proxytest.ClientConfig{})
		done := make(chan error, 5)
		for i := range 5 {
			c := first
			if i > 0 {
				c = r.client(proxytest.ClientConfig{})
			}
			go func() {
				p := proxytest.PublishBytes(1, "", "q", bytes.Repeat([]byte{byte('a' + i)}, 250_000), 131072)
				for len(p) > 0 { // in pieces, side by side
					n := min(len(p), 30_000)
					if err := c.Send(p[:n]); err != nil {
						done <- err
						return
					}
					p = p[n:]
					time.Sleep(10 * time.Millisecond)
					r.s.budget.mu.Lock()
					if r.s.budget.used > 400_000 {
						t.Errorf("%d octets of message_buffer are in use", r.s.budget.used)
					}
					r.s.budget.mu.Unlock()
				}
				done <- nil
			}()
		}
		for range 5 {
			r.must(<-done)
		}
		synctest.Wait()
		if n := r.bodies(r.sc.Records()); len(n) != 5 {
			t.Errorf("%d publishes arrived, want 5", len(n))
		}
	})
}

// tune-ok is judged as RabbitMQ does.
func TestTuneIsJudged(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		for _, tc := range []struct {
			tune  amqp.Tune
			words string
		}{
			{amqp.Tune{ChannelMax: 2048, FrameMax: 131072}, "negotiated channel_max = 2048 is higher than the maximum allowed value (2047)"},
			{amqp.Tune{ChannelMax: 0, FrameMax: 131072}, "negotiated channel_max = 0 is higher"},
			{amqp.Tune{ChannelMax: 1, FrameMax: 131073}, "negotiated frame_max = 131073 is higher than the maximum allowed value (131072)"},
			{amqp.Tune{ChannelMax: 1, FrameMax: 0}, "negotiated frame_max = 0 is higher"},
			{amqp.Tune{ChannelMax: 1, FrameMax: 4095}, "negotiated frame_max = 4095 is lower than the minimum allowed value (4096)"},
			{amqp.Tune{ChannelMax: 1, FrameMax: 4096}, ""},
		} {
			c := r.connect(proxytest.ClientConfig{})
			r.must(c.Start())
			r.must(c.Send(amqp.AppendTune(nil, amqp.ConnectionTuneOk, tc.tune)))
			err := c.Open()
			if tc.words == "" {
				r.must(err)
			} else {
				r.hears(err, amqp.NotAllowed, tc.words)
			}
			_ = c.Hangup()
		}
	})
}

// What is not AMQP 0-9-1 hears what would be, and the end; a port scan leaves no line above debug.
func TestNotAMQP(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		for _, hello := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x02\x00\x01", "AMQP\x00\x01\x00\x00", "AMQP\x03\x01\x00\x00", "\x00\x00\x00\x00\x00\x00\x00\x00\x00"} {
			c := r.connect(proxytest.ClientConfig{})
			r.must(c.Send([]byte(hello)))
			_ = c.Conn().SetReadDeadline(time.Now().Add(time.Minute))
			var got []byte
			for buf := make([]byte, 64); ; {
				n, err := c.Conn().Read(buf)
				got = append(got, buf[:n]...)
				if err != nil {
					break
				}
			}
			if !bytes.Equal(got, amqp.ProtocolHeader[:]) {
				t.Errorf("%q got %q", hello, got)
			}
			_ = c.Hangup()
		}
		before := len(r.log())
		_ = r.connect(proxytest.ClientConfig{}).Hangup()
		synctest.Wait()
		if line := r.log()[before:]; bytes.Contains([]byte(line), []byte("level=INFO")) || bytes.Contains([]byte(line), []byte("level=WARN")) {
			t.Errorf("a port scan is logged: %s", line)
		}
		begin := time.Now()
		c := r.connect(proxytest.ClientConfig{})
		if _, err := c.Next(); err == nil || time.Since(begin) > 11*time.Second {
			t.Errorf("a silent client had %v, got %v", time.Since(begin), err)
		}
		_ = c.Hangup()
	})
}

// Frames that a client may send, but an upstream with a smaller frame_max may not carry,
// end the client alone.
func TestFramesTooLargeForTheUpstream(t *testing.T) {
	for name, frames := range map[string][]byte{
		"method": proxytest.Method(1, amqp.QueueBind, 0, "q", "x", "", 0, amqp.AppendStringField(nil, "long", strings.Repeat("x", 5000))),
		"header": append(proxytest.Method(1, amqp.BasicPublish, 0, "", "q", 0),
			proxytest.HeaderWith(1, 0, 1<<13, amqp.AppendLongStr(nil, amqp.AppendStringField(nil, "long", strings.Repeat("x", 5000))))...),
	} {
		t.Run(name, func(t *testing.T) {
			withScript(t, 0, func(c *Config) { c.MaxLifetime, c.Heartbeat = time.Minute, 0 }, func(r *rig) {
				c, p := r.pair(proxytest.ClientConfig{})
				time.Sleep(61 * time.Second) // what stands retires
				p.Expect(amqp.ConnectionClose)
				r.must(c.SendMethod(1, amqp.QueueDeclare, 0, "q", 0, nil))
				q := r.sc.Accept()
				q.OpenTuned(amqp.Tune{ChannelMax: 100, FrameMax: 4096, Heartbeat: 60})
				q.OpenChannel()
				q.Expect(amqp.QueueDeclare)
				r.must(c.Send(frames))
				e, err := c.Closed(0)
				r.must(err)
				r.hears(e, amqp.FrameError, "larger than the negotiated frame_max of 4096")
				q.Expect(amqp.ChannelClose)
				_ = c.Hangup()
			})
		})
	}
}

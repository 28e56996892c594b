package proxy

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// A client may die at every octet of its publishes: the broker gets each whole or not at all.
func TestPublishIsWholeOrNotAtAll(t *testing.T) {
	body := bytes.Repeat([]byte("x"), 40)
	sent := proxytest.PublishBytes(1, "", "q", body, 0)
	two := proxytest.Method(1, amqp.BasicPublish, 0, "", "q", 0)
	two = append(two, proxytest.Header(1, 30)...)
	two = append(two, proxytest.Body(1, body[:10])...)
	two = append(two, proxytest.Body(1, nil)...)
	two = append(two, proxytest.Body(1, body[:20])...)
	sent = append(sent, two...)
	first := len(sent) - len(two)
	for at := 0; at <= len(sent); at = min(at+3, max(len(sent), at+1)) {
		withScript(t, 0, nil, func(r *rig) {
			c, _ := r.pair(proxytest.ClientConfig{})
			if at > 0 {
				r.must(c.Send(sent[:at]))
			}
			synctest.Wait()
			_ = c.Hangup()
			synctest.Wait()
			want := 0
			if at >= first {
				want++
			}
			if at == len(sent) {
				want++
			}
			if n := r.bodies(r.sc.Records()); len(n) != want {
				t.Errorf("cut at %d: %d publishes arrived, want %d", at, len(n), want)
			}
		})
	}
}

// Publishes on two channels, their frames interleaved, split at every octet.
func TestInterleavedPublishesSplitAnywhere(t *testing.T) {
	a, b := bytes.Repeat([]byte("a"), 20), bytes.Repeat([]byte("b"), 9)
	var sent []byte
	for _, f := range [][]byte{
		proxytest.Method(1, amqp.BasicPublish, 0, "", "q", 0),
		proxytest.Method(2, amqp.BasicPublish, 0, "", "q", 0),
		proxytest.Header(2, 9), proxytest.Header(1, 20), proxytest.Body(1, a[:11]), proxytest.Body(2, b[:4]),
		proxytest.Body(1, a[11:]), proxytest.Body(2, b[4:]),
		proxytest.PublishBytes(1, "", "q", []byte("tail"), 0),
	} {
		sent = append(sent, f...)
	}
	for at := 1; at < len(sent); at += 2 {
		withScript(t, 0, nil, func(r *rig) {
			c, _ := r.pair(proxytest.ClientConfig{})
			r.must(c.OpenChannel(2))
			r.must(c.Send(sent[:at]))
			synctest.Wait()
			r.must(c.Send(sent[at:]))
			synctest.Wait()
			got := map[string]int{}
			for _, s := range r.bodies(r.sc.Records()) {
				got[s]++
			}
			if len(got) != 3 || got[string(a)] != 1 || got[string(b)] != 1 || got["tail"] != 1 {
				t.Errorf("split at %d: got %v", at, got)
			}
			_ = c.Hangup()
		})
	}
}

// Frames that come in one write with connection.open must be as safe as later ones.
func TestPublishCutInTheFirstChunk(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		first := make(chan error)
		c := r.connect(proxytest.ClientConfig{})
		go func() {
			if err := c.Start(); err != nil {
				first <- err
				return
			}
			tune := c.Offered
			tune.Heartbeat = 0
			pub := proxytest.PublishBytes(1, "", "q", []byte("0123456789"), 0)
			first <- c.Send(amqp.AppendTune(nil, amqp.ConnectionTuneOk, tune), amqp.AppendOpen(nil, "/"),
				proxytest.Method(1, amqp.ChannelOpen, ""), proxytest.Method(2, amqp.ChannelOpen, ""),
				proxytest.Method(2, amqp.BasicPublish, 0, "", "q", 0), pub[:len(pub)-4])
		}()
		r.sc.AcceptOpen()
		r.must(<-first)
		synctest.Wait()
		if n := len(r.bodies(r.sc.Records())); n != 0 {
			t.Errorf("%d publishes arrived, want none", n)
		}
		_ = c.Hangup()
		synctest.Wait()
		r.bodies(r.sc.Records())
	})
}

// Frames of a body may be as small and as many as the client likes: what is held of a
// publish stays near its size.
func TestManySmallBodyFramesTakeNoMoreRoom(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		const size = 20_000
		r.must(c.Send(proxytest.Method(1, amqp.BasicPublish, 0, "", "q", 0), proxytest.Header(1, size), proxytest.Body(1, []byte("x"))))
		synctest.Wait()
		for range 200 {
			r.must(c.Send(bytes.Repeat(proxytest.Body(1, nil), 1000), bytes.Repeat(proxytest.Body(1, []byte("y")), 50)))
		}
		synctest.Wait()
		for range 9999 / 50 {
			r.must(c.Send(bytes.Repeat(proxytest.Body(1, []byte("z")), 50)))
		}
		r.must(c.Send(proxytest.Body(1, bytes.Repeat([]byte("e"), size-1-10000-9999/50*50))))
		p.OpenChannel()
		before := len(r.sc.Records())
		_, _, body := p.ExpectContent(amqp.BasicPublish)
		if len(body) != size || bytes.Count(body, []byte("y")) != 10000 || body[size-1] != 'e' {
			t.Errorf("the body came as %d octets", len(body))
		}
		if frames := len(r.sc.Records()) - before; frames > 12 {
			t.Errorf("%d frames were held for a body of %d octets", frames, size)
		}
		_ = c.Hangup()
	})
}

// Whoever holds room for a publish and sends nothing gives it up when others wait for it.
func TestHoarderGivesUpItsRoom(t *testing.T) {
	withScript(t, 0, func(c *Config) { c.MaxMessageSize, c.MessageBuffer, c.Heartbeat = 1<<20, 1<<20, 0 }, func(r *rig) {
		hog, p := r.pair(proxytest.ClientConfig{})
		r.must(hog.Send(proxytest.Method(1, amqp.BasicPublish, 0, "", "q", 0), proxytest.Header(1, 1<<20), proxytest.Body(1, []byte("x"))))
		p.OpenChannel()
		time.Sleep(50 * time.Second)
		if f, err := hog.NextWithin(time.Second); err == nil {
			t.Fatalf("nobody waits, yet the holder hears %s", proxytest.Describe(f))
		}
		c := r.client(proxytest.ClientConfig{})
		r.must(c.Send(proxytest.Method(1, amqp.BasicPublish, 0, "", "q", 0), proxytest.Header(1, 1<<19), proxytest.Body(1, []byte("y"))))
		e, err := hog.Closed(0)
		r.must(err)
		r.hears(e, amqp.ResourceError, "message_buffer")
		r.must(c.Send(proxytest.Body(1, make([]byte, 100_000)), proxytest.Body(1, make([]byte, 1<<17)), proxytest.Body(1, make([]byte, 1<<17)),
			proxytest.Body(1, make([]byte, 1<<17)), proxytest.Body(1, make([]byte, 1<<19-3<<17-100_001))))
		synctest.Wait()
		if n := r.bodies(r.sc.Records()); len(n) != 1 || len(n[0]) != 1<<19 {
			t.Errorf("%d publishes arrived, want the one that waited", len(n))
		}
		_ = c.Hangup()
		_ = hog.Hangup()
	})
}

// A client whose socket broke does not go on waiting for room.
func TestDeadClientWaitsForNoRoom(t *testing.T) {
	withScript(t, 0, func(c *Config) { c.MaxMessageSize, c.MessageBuffer = 1<<20, 1<<20 }, func(r *rig) {
		a, p := r.pair(proxytest.ClientConfig{})
		b := r.client(proxytest.ClientConfig{Heartbeat: 2})
		begun := proxytest.PublishBytes(1, "", "q", make([]byte, 1<<20), 131072)[:70_000]
		r.must(a.Send(begun))
		p.OpenChannel()
		synctest.Wait()
		r.must(b.Send(begun))
		synctest.Wait()
		if !r.s.budget.wanted() {
			t.Fatal("the second client does not wait for room")
		}
		b.Abort()
		time.Sleep(5 * time.Second) // a heartbeat cannot be written
		if n := r.s.Stats().Clients; n != 1 || r.s.budget.wanted() {
			t.Errorf("%d clients, waiting: %v; want one, and nobody waiting", n, r.s.budget.wanted())
		}
		_ = a.Hangup()
	})
}

// A frame is counted once, in however many pieces its publish comes.
func TestFramesAreCountedOnce(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		before := r.s.Stats().FramesFromClients
		body := proxytest.Body(1, make([]byte, 1000))
		r.must(c.Send(proxytest.Method(1, amqp.BasicPublish, 0, "", "q", 0), proxytest.Header(1, 10_000)))
		for range 10 {
			synctest.Wait()
			r.must(c.Send(body))
		}
		p.OpenChannel()
		p.ExpectContent(amqp.BasicPublish)
		if n := r.s.Stats().FramesFromClients - before; n != 12 {
			t.Errorf("%d frames are counted, 12 were sent", n)
		}
		_ = c.Hangup()
	})
}

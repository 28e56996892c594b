package proxy

import (
	"bytes"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// An answer of the proxy's own must neither overtake an earlier one of the broker's nor
// fall into the content of a delivery.
func TestOwnAnswersKeepTheOrder(t *testing.T) {
	for _, m := range []struct {
		name    string
		request []byte
		reply   amqp.Method
	}{
		{"qos", amqp.AppendQos(nil, 1, 7, false), amqp.BasicQosOk},
		{"select", proxytest.Method(1, amqp.ConfirmSelect, 0), amqp.ConfirmSelectOk},
	} {
		withScript(t, 0, nil, func(r *rig) {
			c, p := r.pair(proxytest.ClientConfig{})
			r.must(c.Send(proxytest.Method(1, amqp.QueueDeclare, 0, "q", 0, nil), m.request))
			p.OpenChannel()
			p.Expect(amqp.QueueDeclare)
			p.Expect(amqp.Frame(m.request).Method())
			if f, err := c.NextWithin(time.Second); err == nil {
				t.Fatalf("%s: %s came before declare-ok", m.name, proxytest.Describe(f))
			}
			p.SendMethod(1, amqp.QueueDeclareOk, "q", 0, 0)
			p.SendMethod(1, m.reply)
			_, err := c.Expect(amqp.QueueDeclareOk)
			r.must(err)
			_, err = c.Expect(m.reply)
			r.must(err)
			// With nothing under way it is answered at once, and the broker's answer swallowed.
			r.must(c.Send(m.request))
			_, err = c.Expect(m.reply)
			r.must(err)
			p.Expect(amqp.Frame(m.request).Method())
			p.SendMethod(1, m.reply)
			if f, err := c.NextWithin(time.Second); err == nil {
				t.Fatalf("%s: answered twice: %s", m.name, proxytest.Describe(f))
			}

			r.must(c.Qos(1, 5))
			p.Expect(amqp.BasicQos)
			p.SendMethod(1, amqp.BasicQosOk)
			done := make(chan error)
			go func() { _, err := c.Consume(1, "q", "t", false); done <- err }()
			id := p.Expect(amqp.BasicConsume).Channel() // alone there: it needs not move
			p.SendMethod(id, amqp.BasicConsumeOk, "t")
			r.must(<-done)
			body := bytes.Repeat([]byte("b"), 100)
			deliver := proxytest.Method(id, amqp.BasicDeliver, "t", 1, 0, "", "q")
			p.Send(deliver, proxytest.Header(id, 200), proxytest.Body(id, body))
			synctest.Wait()
			r.must(c.Send(m.request))
			synctest.Wait()
			p.Send(proxytest.Body(id, body))
			synctest.Wait()
			p.SendMethod(id, m.reply)
			for i, want := range []byte{amqp.FrameMethod, amqp.FrameHeader, amqp.FrameBody, amqp.FrameBody, amqp.FrameMethod} {
				f, err := c.Next()
				r.must(err)
				if f.Type() != want || (i == 4 && f.Method() != m.reply) {
					t.Fatalf("%s: frame %d is %s", m.name, i, proxytest.Describe(f))
				}
			}
			_ = c.Hangup()
		})
	}
}

// A client that does not read crowds its upstream only until it has caught up.
func TestCrowdedUpstreamIsOpenAgain(t *testing.T) {
	for _, queue := range []int{64 << 10, 16 << 20} {
		withScript(t, 0, func(c *Config) { c.ClientQueue, c.WriteTimeout = queue, time.Hour }, func(r *rig) {
			c, p := r.pair(proxytest.ClientConfig{})
			d := r.client(proxytest.ClientConfig{})
			gets := func(c *proxytest.Client) uint16 {
				r.must(c.Send(proxytest.Method(1, amqp.BasicGet, 0, "q", 1)))
				id := p.OpenChannel()
				p.Expect(amqp.BasicGet)
				return id
			}
			id := gets(c)
			gets(d)
			u := r.s.allPools()[0].ups[0]
			const more = 600 << 10 // than the client's socket holds, 256 KiB
			size := min(queue/2+256<<10+1000, more)
			p.Send(proxytest.Method(id, amqp.BasicGetOk, 1, 0, "", "q", 0), proxytest.Header(id, uint64(size)))
			for left := size; left > 0; left -= 10_000 {
				p.Send(proxytest.Body(id, make([]byte, min(left, 10_000))))
				synctest.Wait()
			}
			if n := u.crowded.Load(); n != 1 {
				t.Fatalf("client_queue %d: crowded is %d with a client that does not read, want 1", queue, n)
			}
			if _, err := c.Await(1, amqp.BasicGetOk); err != nil {
				t.Fatal(err)
			}
			for got := 0; got < size; {
				f, err := c.Next()
				r.must(err)
				if f.Type() == amqp.FrameBody {
					got += len(f.Payload())
				}
			}
			time.Sleep(time.Second)
			if n := u.crowded.Load(); n != 0 {
				t.Errorf("client_queue %d: crowded is %d with everything read, want 0", queue, n)
			}
			_ = c.Hangup()
			_ = d.Hangup()
		})
	}
}

// A client that reads too slowly on a shared upstream ends alone; one that is alone there
// is waited for, and gets everything.
func TestSlowReaders(t *testing.T) {
	for _, alone := range []bool{true, false} {
		withScript(t, 0, func(c *Config) { c.ClientQueue, c.WriteTimeout = 1<<20, time.Hour }, func(r *rig) {
			c, p := r.pair(proxytest.ClientConfig{})
			r.must(c.Send(proxytest.Method(1, amqp.BasicGet, 0, "q", 1)))
			id := p.OpenChannel()
			p.Expect(amqp.BasicGet)
			d := c
			if !alone {
				d = r.client(proxytest.ClientConfig{})
				r.must(d.Send(proxytest.Method(1, amqp.BasicGet, 0, "q", 1)))
				p.OpenChannel()
				p.Expect(amqp.BasicGet)
			}
			const size = 4 << 20
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				p.Send(proxytest.Method(id, amqp.BasicGetOk, 1, 0, "", "q", 0), proxytest.Header(id, size))
				for range size / (64 << 10) {
					p.Send(proxytest.Body(id, make([]byte, 64<<10)))
				}
			}()
			synctest.Wait()
			if !alone {
				<-sent // nobody waited for the slow one
				e, err := c.Closed(0)
				r.must(err)
				r.hears(e, amqp.ResourceError, "client_queue")
				p.SendMethod(2, amqp.BasicGetEmpty, "")
				_, err = d.Await(1, amqp.BasicGetEmpty)
				r.must(err)
				_ = d.Hangup()
				return
			}
			select {
			case <-sent:
				t.Error("4 MiB went into a queue of 1 MiB")
			default:
			}
			_, err := c.Await(1, amqp.BasicGetOk)
			r.must(err)
			for got := 0; got < size; {
				f, err := c.Next()
				r.must(err)
				if f.Type() == amqp.FrameBody {
					got += len(f.Payload())
				}
			}
			<-sent
			_ = c.Hangup()
		})
	}
}

// A client that reads slowly and has two upstreams for itself is waited for by both.
func TestSlowReaderOfTwoUpstreams(t *testing.T) {
	withScript(t, 0, func(c *Config) { c.ClientQueue, c.WriteTimeout = 1<<20, time.Hour }, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		r.must(c.Send(proxytest.Method(1, amqp.BasicPublish, 0, "", "q", 1), proxytest.Header(1, 0)))
		returned := p.OpenChannel()
		p.ExpectContent(amqp.BasicPublish)
		r.must(c.OpenChannel(2))
		r.must(c.Send(proxytest.Method(2, amqp.BasicGet, 0, "q", 1)))
		q := r.sc.AcceptOpen()
		got := q.OpenChannel()
		q.Expect(amqp.BasicGet)
		const size = 4 << 20
		var sent sync.WaitGroup
		send := func(p *proxytest.Peer, id uint16, m []byte) {
			sent.Go(func() {
				p.Send(m, proxytest.Header(id, size))
				for range size / (64 << 10) {
					p.Send(proxytest.Body(id, make([]byte, 64<<10)))
				}
			})
			synctest.Wait()
		}
		send(p, returned, proxytest.Method(returned, amqp.BasicReturn, 312, "NO_ROUTE", "", "q"))
		send(q, got, proxytest.Method(got, amqp.BasicGetOk, 1, 0, "", "q", 0))
		for left := 2 * size; left > 0; {
			f, err := c.Next()
			r.must(err)
			if f.Type() == amqp.FrameMethod && f.Channel() == 0 {
				t.Fatalf("the client hears %s", proxytest.Describe(f))
			}
			if f.Type() == amqp.FrameBody {
				left -= len(f.Payload())
			}
		}
		sent.Wait()
		time.Sleep(time.Second)
		for _, u := range r.s.allPools()[0].ups {
			if n := u.crowded.Load(); n != 0 {
				t.Errorf("upstream %d is crowded by %d with everything read", u.n, n)
			}
		}
		_ = c.Hangup()
	})
}

// The close-ok that a client owes after crossing closes may come when its number has been
// cleared away for another channel.
func TestLateCloseOkOfAClearedNumber(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{ChannelMax: 1})
		r.must(c.Confirm(1))
		r.must(c.Publish(1, "", "q", nil)) // not confirmed: its close is not quiet
		id := p.OpenChannel()
		p.Expect(amqp.ConfirmSelect)
		p.ExpectContent(amqp.BasicPublish)
		r.must(c.SendMethod(1, amqp.ChannelClose, 200, "", 0, 0))
		p.ExpectOn(id, amqp.ChannelClose)
		p.Send(proxytest.CloseBytes(id, 404, "NOT_FOUND", 0)) // crosses
		synctest.Wait()
		r.must(c.Send(proxytest.Method(2, amqp.ChannelOpen, ""), proxytest.Method(1, amqp.ChannelCloseOk)))
		_, err := c.Await(2, amqp.ChannelOpenOk)
		r.must(err)
		r.must(c.CloseChannel(2))
		_ = c.Hangup()
	})
}

// A channel that the broker has closed may not be opened again before the client's close-ok:
// neither where the client closes it instead of answering, nor where both closes cross.
func TestNoReopenWithoutCloseOk(t *testing.T) {
	for _, crosses := range []bool{false, true} {
		for _, answers := range []bool{false, true} {
			withScript(t, 0, nil, func(r *rig) {
				c, p := r.pair(proxytest.ClientConfig{})
				other := r.client(proxytest.ClientConfig{})
				closeIt := proxytest.Method(1, amqp.ChannelClose, 200, "", 0, 0)
				r.must(c.Send(proxytest.Method(1, amqp.QueueDeclare, 0, "nope", 1, nil)))
				id := p.OpenChannel()
				p.Expect(amqp.QueueDeclare)
				if crosses { // the call is under way, so the close waits for the broker's
					r.must(c.Send(closeIt))
					p.ExpectOn(id, amqp.ChannelClose)
				}
				p.Send(proxytest.CloseBytes(id, 404, "NOT_FOUND - no queue 'nope'", amqp.QueueDeclare))
				p.ExpectOn(id, amqp.ChannelCloseOk)
				f, err := c.Expect(amqp.ChannelClose)
				r.must(err)
				r.hears(amqp.ParseClose(f), 404, "nope")
				if !crosses {
					r.must(c.Send(closeIt))
				}
				_, err = c.Expect(amqp.ChannelCloseOk)
				r.must(err)
				// What another thread still sends is swallowed.
				r.must(c.Send(proxytest.PublishBytes(1, "", "q", []byte("late"), 0)))
				if answers {
					r.must(c.SendMethod(1, amqp.ChannelCloseOk))
					r.must(c.OpenChannel(1))
					r.must(c.Close())
				} else {
					r.must(c.SendMethod(1, amqp.ChannelOpen, ""))
					e, err := c.Closed(0)
					r.must(err)
					r.hears(e, amqp.ChannelError, "second 'channel.open' seen")
					_ = c.Hangup()
				}
				r.must(other.Close())
			})
		}
	}
}

// The broker's text names the channel by the number that the client gave it.
func TestChannelNumberInTexts(t *testing.T) {
	for text, want := range map[string]string{
		"PRECONDITION_FAILED - delivery acknowledgement on channel 2 timed out. Timeout value used: 200 ms": "PRECONDITION_FAILED - delivery acknowledgement on channel 9 timed out. Timeout value used: 200 ms",
		"NOT_FOUND - no queue 'channel 21'": "NOT_FOUND - no queue 'channel 21'",
		"closed channel 2":                  "closed channel 9",
	} {
		withScript(t, 0, nil, func(r *rig) {
			c, p := r.pair(proxytest.ClientConfig{})
			r.must(c.Publish(1, "", "q", nil))
			p.OpenChannel()
			r.must(c.OpenChannel(9))
			r.must(c.SendMethod(9, amqp.QueueDeclare, 0, "q", 0, nil))
			p.ExpectContent(amqp.BasicPublish)
			id := p.OpenChannel()
			p.Expect(amqp.QueueDeclare)
			p.Send(proxytest.CloseBytes(id, 406, text, 0))
			e, err := c.Closed(9)
			r.must(err)
			if id != 2 || e.Text != want {
				t.Errorf("channel %d: got %q, want %q", id, e.Text, want)
			}
			r.must(c.OpenChannel(9))
			_ = c.Hangup()
		})
	}
}

// fillUpstream has the broker take nothing more while two clients publish: the reader of a
// writes and waits, what b sends fills the queue behind it.
func (r *rig) fillUpstream(p *proxytest.Peer, a, b *proxytest.Client) {
	p.Hold()
	small := proxytest.PublishBytes(1, "", "q", make([]byte, 20_000), 0)
	r.must(a.Send(small))
	synctest.Wait()
	for range 20 {
		r.must(b.Send(small))
		synctest.Wait()
	}
}

// The broker's error for a channel whose close was answered is counted also when that close
// still waits for its turn.
func TestLateErrorWhileTheCloseWaits(t *testing.T) {
	withScript(t, 4<<10, func(c *Config) { c.MaxUpstreams = 1 }, func(r *rig) {
		a, p := r.pair(proxytest.ClientConfig{})
		b, c := r.client(proxytest.ClientConfig{}), r.client(proxytest.ClientConfig{Heartbeat: 2})
		r.must(c.Publish(1, "nowhere", "q", nil))
		id := p.OpenChannel()
		p.ExpectContent(amqp.BasicPublish)
		r.fillUpstream(p, a, b)
		r.must(c.SendMethod(1, amqp.ChannelClose, 200, "", 0, 0))
		synctest.Wait()
		p.Send(proxytest.CloseBytes(id, 404, "NOT_FOUND - no exchange 'nowhere'", amqp.BasicPublish))
		synctest.Wait()
		p.Read()
		_, err := c.Await(1, amqp.ChannelCloseOk)
		r.must(err)
		synctest.Wait()
		if n := r.s.Stats().LateErrors; n != 1 {
			t.Errorf("%d late errors are counted, want 1", n)
		}
		for _, rec := range r.sc.Records() {
			if rec.Frame.Channel() == id && isMethod(amqp.ChannelClose)(rec.Frame) {
				t.Error("a channel that the broker had closed was closed once more")
			}
		}
		for _, x := range []*proxytest.Client{a, b, c} {
			_ = x.Hangup()
		}
	})
}

// Who reads after a quiet close has been answered waits for it, though it still waits for its
// own turn to be sent.
func TestReadYourWritesWhileTheCloseWaits(t *testing.T) {
	withScript(t, 4<<10, func(c *Config) { c.MaxUpstreams = 1 }, func(r *rig) {
		a, p := r.pair(proxytest.ClientConfig{})
		b, c := r.client(proxytest.ClientConfig{}), r.client(proxytest.ClientConfig{Heartbeat: 2})
		r.must(c.Publish(1, "", "q", nil))
		id := p.OpenChannel()
		p.ExpectContent(amqp.BasicPublish)
		r.fillUpstream(p, a, b)
		r.must(c.SendMethod(1, amqp.ChannelClose, 200, "", 0, 0))
		_, err := c.Await(1, amqp.ChannelCloseOk) // it leaves with a heartbeat
		r.must(err)
		closes := &r.s.allPools()[0].closes
		if n := closes.n.Load(); n != 1 {
			t.Errorf("%d closes are waited for, want 1", n)
		}
		p.Read()
		r.sc.Wait("channel.close", func(rs []proxytest.Record) bool { return proxytest.Count(rs, amqp.ChannelClose) == 1 })
		p.SendMethod(id, amqp.ChannelCloseOk)
		synctest.Wait()
		if n := closes.n.Load(); n != 0 {
			t.Errorf("%d closes are waited for, want none", n)
		}
		for _, x := range []*proxytest.Client{a, b, c} {
			_ = x.Hangup()
		}
	})
}

// Who waits for a place on a crowded upstream has it as soon as the slow client has caught up.
func TestWaitForACrowdedUpstream(t *testing.T) {
	withScript(t, 0, func(c *Config) { c.ClientQueue, c.MaxUpstreams = 64<<10, 1 }, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		d := r.client(proxytest.ClientConfig{})
		const size = 300_000 // the client's socket holds 256 KiB
		r.must(c.SendMethod(1, amqp.BasicGet, 0, "q", 1))
		id := p.OpenChannel()
		p.Expect(amqp.BasicGet)
		p.Send(proxytest.Method(id, amqp.BasicGetOk, 1, 0, "", "q", 0), proxytest.Header(id, size))
		for left := size; left > 0; left -= 10_000 {
			p.Send(proxytest.Body(id, make([]byte, min(left, 10_000))))
			synctest.Wait()
		}
		u := r.s.allPools()[0].ups[0]
		if n := u.crowded.Load(); n != 1 {
			t.Fatalf("crowded is %d with a client that does not read, want 1", n)
		}
		r.must(d.SendMethod(1, amqp.BasicGet, 0, "q", 1))
		synctest.Wait()
		if _, err := c.Await(1, amqp.BasicGetOk); err != nil {
			t.Fatal(err)
		}
		for got := 0; got < size; {
			f, err := c.Next()
			r.must(err)
			if f.Type() == amqp.FrameBody {
				got += len(f.Payload())
			}
		}
		began := time.Now()
		p.OpenChannel()
		if took := time.Since(began); took > time.Second {
			t.Errorf("it was served after %v", took)
		}
		_ = c.Hangup()
		_ = d.Hangup()
	})
}

// A client that asks on and on and reads none of the answers is not read any more when
// client_queue is full of them; once it reads, it has them all.
func TestAnswersThatNobodyReads(t *testing.T) {
	const limit, asked = 512 << 10, 100_000
	withScript(t, 0, func(c *Config) { c.ClientQueue = limit }, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{Timeout: time.Hour})
		r.must(c.OpenChannel(2))
		r.must(c.SendMethod(1, amqp.BasicGet, 0, "q", 1))
		id := p.OpenChannel()
		p.Expect(amqp.BasicGet)
		const size = 300_000 // the client's socket holds 256 KiB
		p.Send(proxytest.Method(id, amqp.BasicGetOk, 1, 0, "", "q", 0), proxytest.Header(id, size))
		for left := size; left > 0; left -= 100_000 {
			p.Send(proxytest.Body(id, make([]byte, 100_000)))
		}
		synctest.Wait()
		sent := make(chan error)
		go func() {
			many := bytes.Repeat(proxytest.Method(2, amqp.BasicQos, 0, 10, 0), 1000)
			for range asked / 1000 {
				if err := c.Send(many); err != nil {
					sent <- err
					return
				}
			}
			sent <- nil
		}()
		synctest.Wait()
		var waits int
		r.s.mu.Lock()
		for _, x := range r.s.clients.appendTo(nil, nil) {
			x.mu.Lock()
			waits = x.out.LenLocked()
			x.mu.Unlock()
		}
		r.s.mu.Unlock()
		if waits > limit+128<<10 {
			t.Errorf("%d octets wait for a client that does not read, client_queue is %d", waits, limit)
		}
		for answers := 0; answers < asked; {
			f, err := c.Next()
			r.must(err)
			if isMethod(amqp.BasicQosOk)(f) {
				answers++
			}
		}
		r.must(<-sent)
		_ = c.Hangup()
	})
}

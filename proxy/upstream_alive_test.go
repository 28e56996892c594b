// A broker that does not answer: who is told, when, and where the next client goes.

package proxy

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// beat sends what a peer sends now and then, until the test stops it.
func beat(p *proxytest.Peer, every time.Duration, bytes []byte) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for t := time.NewTicker(every); ; {
			select {
			case <-t.C:
				p.Write(bytes)
			case <-end:
				t.Stop()
				return
			}
		}
	}()
	return func() { close(end); <-ended }
}

// declaring has a client declare a queue in the background; what it hears, and after how
// long, comes on the channel.
type heard struct {
	err   error
	after time.Duration
}

func declaring(c *proxytest.Client) <-chan heard {
	got := make(chan heard, 1)
	began := time.Now()
	go func() {
		_, err := c.DeclareQueue(1, "q", 0)
		got <- heard{err, time.Since(began)}
	}()
	return got
}

// stuck is a client whose declaration a broker has read and does not answer.
func (r *rig) stuck(cfg proxytest.ClientConfig, published bool) (*proxytest.Client, *proxytest.Peer, <-chan heard) {
	r.t.Helper()
	c, p := r.pair(cfg)
	if published {
		r.must(c.Publish(1, "", "q", nil))
		p.OpenChannel()
		p.ExpectContent(amqp.BasicPublish)
	} else {
		r.must(c.SendMethod(1, amqp.QueueDeclare, 0, "p", 0, nil))
		p.OpenChannel()
		p.Expect(amqp.QueueDeclare)
		p.SendMethod(1, amqp.QueueDeclareOk, "p", 0, 0)
		_, err := c.Await(1, amqp.QueueDeclareOk)
		r.must(err)
	}
	got := declaring(c)
	p.Expect(amqp.QueueDeclare)
	return c, p, got
}

// asked expects the question whether the upstream is alive.
func asked(p *proxytest.Peer) uint16 {
	f := p.Expect(amqp.ChannelOpen)
	p.ExpectOn(f.Channel(), amqp.ChannelClose)
	return f.Channel()
}

// cutFrame is the beginning of a frame that never ends: what follows cannot be read.
var cutFrame = []byte{amqp.FrameMethod, 0, 1, 0, 1, 0, 0, 0, 20, 0, 40}

func TestUpstreamThatDoesNotAnswer(t *testing.T) {
	for _, x := range []struct {
		name      string
		published bool
		sends     []byte
		every     time.Duration
		within    time.Duration // until the old client hears
	}{
		{"frozen", false, nil, 0, 11 * time.Second},
		{"frozen after publishes", true, nil, 0, 15 * time.Second},
		{"answers only heartbeats", false, amqp.Heartbeat, 7 * time.Second, 11 * time.Second},
		{"answers only heartbeats after publishes", true, amqp.Heartbeat, 7 * time.Second, 36 * time.Second},
		{"a frame that does not end", true, cutFrame, time.Hour, 15 * time.Second},
	} {
		t.Run(x.name, func(t *testing.T) {
			withScript(t, 0, nil, func(r *rig) {
				began := time.Now()
				c, p, got := r.stuck(proxytest.ClientConfig{}, x.published)
				if x.sends != nil {
					p.Write(x.sends)
					defer beat(p, x.every, x.sends)()
				}
				// Who comes at once may be put beside it, and hears in time.
				d := r.client(proxytest.ClientConfig{})
				second := declaring(d)
				p.Expect(amqp.ChannelOpen)
				p.Expect(amqp.QueueDeclare)
				asked(p)
				if took := time.Since(began); took < 5*time.Second || took > 5500*time.Millisecond {
					t.Errorf("asked after %v, want close_timeout = 5 s", took)
				}
				// From now on nobody is.
				time.Sleep(suspectAfter + tick)
				third := make(chan heard, 1)
				go func() {
					e, err := r.login(proxytest.ClientConfig{})
					if err == nil {
						err = e.OpenChannel(1)
					}
					if err != nil {
						third <- heard{err: err}
						return
					}
					h := <-declaring(e)
					_ = e.Close()
					third <- h
				}()
				q := r.sc.AcceptOpen()
				q.OpenChannel()
				q.Expect(amqp.QueueDeclare)
				q.SendMethod(1, amqp.QueueDeclareOk, "q", 0, 0)
				f := q.Expect(amqp.ChannelClose)
				q.SendMethod(f.Channel(), amqp.ChannelCloseOk)
				if h := <-third; h.err != nil || h.after > time.Second {
					t.Errorf("a client that came then heard %v after %v", h.err, h.after)
				}
				beats := beat(q, 7*time.Second, amqp.Heartbeat)
				defer beats()
				h := <-second
				r.hears(h.err, amqp.ConnectionForced, "answer")
				if h.after > 15*time.Second {
					t.Errorf("a client that came first of all waited %v, want at most 15 s", h.after)
				}
				h = <-got
				r.hears(h.err, amqp.ConnectionForced, "answer")
				if h.after > x.within {
					t.Errorf("the client heard after %v, want at most %v", h.after, x.within)
				}
				synctest.Wait()
				if !strings.Contains(r.log(), `msg="upstream lost"`) && h.after > x.within-time.Second {
					t.Error("the log does not tell of it")
				}
				_, _ = c.Hangup(), d.Hangup()
			})
		})
	}
}

// A call that takes long is no sign of death while the broker answers others.
func TestSlowCallIsWaitedFor(t *testing.T) {
	withScript(t, 0, func(c *Config) { c.AuthTTL = time.Hour }, func(r *rig) {
		c, p, got := r.stuck(proxytest.ClientConfig{Timeout: 5 * time.Minute}, true)
		for range 10 {
			id := asked(p)
			time.Sleep(4 * time.Second)
			p.SendMethod(id, amqp.ChannelOpenOk, "")
			p.SendMethod(id, amqp.ChannelCloseOk)
			synctest.Wait()
			time.Sleep(2 * tick)
			if u := r.s.allPools()[0].ups[0]; u.load != 1 || u.closingN.Load() != 0 {
				t.Fatalf("the upstream counts %d channels and %d closes, want the client's channel alone", u.load, u.closingN.Load())
			}
			d := r.client(proxytest.ClientConfig{}) // it takes new channels again
			r.must(d.Publish(1, "", "q", nil))
			id = p.OpenChannel()
			p.ExpectContent(amqp.BasicPublish)
			r.must(d.Hangup())
			p.ExpectOn(id, amqp.ChannelClose)
			p.SendMethod(id, amqp.ChannelCloseOk)
		}
		p.SendMethod(1, amqp.QueueDeclareOk, "q", 0, 0)
		h := <-got
		r.must(h.err)
		if h.after < 60*time.Second || r.sc.Accepted() != 1 {
			t.Errorf("answered after %v on %d connections", h.after, r.sc.Accepted())
		}
		_ = c.Hangup()
	})
}

// A confirm is an answer too: it may take long, but the broker is asked.
func TestConfirmIsOwed(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		r.must(c.Confirm(1))
		r.must(c.Publish(1, "", "q", nil))
		id := p.OpenChannel()
		p.ExpectOn(id, amqp.ConfirmSelect)
		p.SendMethod(id, amqp.ConfirmSelectOk)
		p.ExpectContent(amqp.BasicPublish)
		beats := beat(p, 7*time.Second, amqp.Heartbeat)
		for range 10 {
			ping := asked(p)
			p.SendMethod(ping, amqp.ChannelOpenOk, "")
			p.SendMethod(ping, amqp.ChannelCloseOk)
		}
		p.SendMethod(id, amqp.BasicAck, 1, 0)
		r.must(c.WaitConfirms(1))
		p.ExpectNothing(time.Minute)
		for tag := range 20 { // confirms that keep coming are answers enough
			r.must(c.Publish(1, "", "q", nil))
			r.must(c.Publish(1, "", "q", nil))
			p.ExpectContent(amqp.BasicPublish)
			p.ExpectContent(amqp.BasicPublish)
			time.Sleep(time.Second)
			p.SendMethod(id, amqp.BasicAck, tag+2, 0)
		}
		p.SendMethod(id, amqp.BasicAck, 41, 1)
		r.must(c.WaitConfirms(1))
		beats()
		r.must(c.Publish(1, "", "q", nil))
		p.ExpectContent(amqp.BasicPublish)
		silent := time.Now()
		e, err := c.Closed(0)
		r.must(err)
		r.hears(e, amqp.ConnectionForced, "answer")
		if took := time.Since(silent); took > 15*time.Second {
			t.Errorf("told after %v, want at most 15 s", took)
		}
		_ = c.Hangup()
	})
}

// A broker in an alarm does not read who publishes, for as long as it lasts.
func TestAlarmIsNoDeath(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{Timeout: time.Hour})
		r.must(c.Publish(1, "", "q", nil))
		p.OpenChannel()
		p.ExpectContent(amqp.BasicPublish)
		p.SendMethod(0, amqp.ConnectionBlocked, "low on memory")
		defer beat(p, 7*time.Second, amqp.Heartbeat)()
		got := declaring(c)
		p.Expect(amqp.QueueDeclare)
		p.ExpectNothing(10 * time.Minute)
		p.SendMethod(0, amqp.ConnectionUnblocked)
		p.SendMethod(1, amqp.QueueDeclareOk, "q", 0, 0)
		r.must((<-got).err)
		_ = c.Hangup()
	})
}

// An upstream of which nothing is owed is asked when it has been silent for longer than its
// heartbeat, and not trusted for longer than two.
func TestSilentIdleUpstream(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		r.must(c.Publish(1, "", "q", nil))
		p.OpenChannel()
		p.ExpectContent(amqp.BasicPublish)
		began := time.Now()
		time.Sleep(14 * time.Second)
		asked(p)
		if took := time.Since(began); took < 15*time.Second || took > 16*time.Second {
			t.Errorf("asked after %v, want a little over the heartbeat of 15 s", took)
		}
		e, err := c.Closed(0)
		r.must(err)
		r.hears(e, amqp.ConnectionForced, "answer")
		if took := time.Since(began); took > 31*time.Second {
			t.Errorf("told after %v", took)
		}
		_ = c.Hangup()
	})
}

// Whoever asked for a shorter heartbeat than the upstream has is told as early as straight.
func TestShortHeartbeatOfAClient(t *testing.T) {
	for _, mode := range []PoolMode{PoolAuto, PoolShared, PoolSession} {
		t.Run(string(mode), func(t *testing.T) {
			withScript(t, 0, func(c *Config) { c.Listeners[0].Mode = mode }, func(r *rig) {
				c, p := r.pair(proxytest.ClientConfig{Heartbeat: 4})
				r.must(c.Publish(1, "", "q", nil))
				p.OpenChannel()
				p.ExpectContent(amqp.BasicPublish)
				beats := beat(p, 2*time.Second, amqp.Heartbeat)
				var d *proxytest.Client
				if mode != PoolSession {
					d = r.client(proxytest.ClientConfig{})
					r.must(d.Publish(1, "", "q", nil))
					p.OpenChannel()
					p.ExpectContent(amqp.BasicPublish)
				}
				alive := make(chan struct{})
				go func() {
					defer close(alive)
					for range 60 {
						time.Sleep(time.Second)
						if c.Send(amqp.Heartbeat) != nil {
							return
						}
					}
				}()
				time.Sleep(20 * time.Second)
				beats()
				silent := time.Now()
				e, err := c.Closed(0)
				r.must(err)
				r.hears(e, amqp.ConnectionForced, "silent")
				if took := time.Since(silent); took < 5*time.Second || took > 9*time.Second {
					t.Errorf("told after %v, want a little over two heartbeats of 4 s", took)
				}
				_ = c.Hangup()
				<-alive
				if d != nil { // its heartbeat is that of the upstream
					e, err := d.Closed(0)
					r.must(err)
					r.hears(e, amqp.ConnectionForced, "answer")
					if took := time.Since(silent); took < 9*time.Second || took > 31*time.Second {
						t.Errorf("its neighbour was told after %v", took)
					}
					_ = d.Hangup()
				}
			})
		})
	}
}

// Heartbeats are the proxy's own, or the broker's where that has shorter ones.
func TestHeartbeatAskedOfTheBroker(t *testing.T) {
	for _, x := range []struct{ offered, set, client, want int }{
		{60, 15, 0, 15}, {0, 15, 0, 15}, {300, 15, 60, 15}, {10, 15, 0, 10}, {60, 0, 0, 60}, {60, 30, 0, 30},
	} {
		t.Run(fmt.Sprint(x), func(t *testing.T) {
			withScript(t, 0, func(c *Config) {
				if x.set != 15 {
					c.Heartbeat = time.Duration(x.set) * time.Second
				}
			}, func(r *rig) {
				done := make(chan *proxytest.Client)
				go func() {
					c, err := r.login(proxytest.ClientConfig{Heartbeat: uint16(x.client)})
					if err != nil {
						t.Error(err)
					}
					done <- c
				}()
				p := r.sc.Accept()
				p.OpenTuned(amqp.Tune{ChannelMax: 100, FrameMax: 131072, Heartbeat: uint16(x.offered)})
				if c := <-done; c != nil {
					_ = c.Hangup()
				}
				if got := int(p.Login.Tune.Heartbeat); got != x.want {
					t.Errorf("a heartbeat of %d s was asked for, want %d", got, x.want)
				}
			})
		})
	}
}

// A reader that is halted because its sole tenant is slow is not a broker that is silent.
func TestSlowTenantIsNoSilence(t *testing.T) {
	withScript(t, 16<<10, nil, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{Timeout: time.Hour})
		r.must(c.SendMethod(1, amqp.BasicConsume, 0, "q", "t", 2, nil))
		q := r.sc.AcceptOpen()
		id := q.OpenChannel()
		q.Expect(amqp.BasicConsume)
		q.SendMethod(id, amqp.BasicConsumeOk, "t")
		_, err := c.Await(1, amqp.BasicConsumeOk)
		r.must(err)
		defer beat(p, 7*time.Second, amqp.Heartbeat)()
		body := make([]byte, 100_000)
		go func() {
			for range 8 {
				q.Write(append(append(proxytest.Method(id, amqp.BasicDeliver, "t", 1, 0, "", "q"), proxytest.Header(id, uint64(len(body)))...), proxytest.Body(id, body)...))
			}
		}()
		time.Sleep(20 * time.Second)
		r.must(c.SendMethod(1, amqp.QueueDeclare, 0, "q", 0, nil)) // its answer is behind all that
		for range 20 {
			time.Sleep(5 * time.Second)
			r.must(c.Send(amqp.Heartbeat))
		}
		if strings.Contains(r.log(), "upstream lost") {
			t.Errorf("the upstream was given up")
		}
		_ = c.Hangup()
	})
}

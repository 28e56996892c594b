package proxy

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/ledger"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

func reuse(c *Config) { c.ReuseChannels = true }

// left is a client that has published, or done what do says, on the upstream's channel id, and
// left it; it has had its close-ok.
func left(r *rig, c *proxytest.Client, p *proxytest.Peer) {
	r.t.Helper()
	r.must(c.Publish(1, "", "q", []byte("x")))
	r.must(c.CloseChannel(1))
	r.must(c.Close())
}

// The next client has the channel that the last one left, once the barrier behind its publishes
// is answered: nothing is opened and nothing is closed. Before that it has one of its own.
func TestChannelIsReused(t *testing.T) {
	withScript(t, 0, reuse, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		left(r, c, p)
		id := p.OpenChannel()
		p.ExpectContent(amqp.BasicPublish)
		p.ExpectOn(id, amqp.BasicQos)

		early := r.client(proxytest.ClientConfig{})
		r.must(early.Publish(1, "", "early", nil))
		if other := p.OpenChannel(); other == id {
			t.Fatal("a channel was given away before it was proven clean")
		}
		p.ExpectContent(amqp.BasicPublish)

		p.SendMethod(id, amqp.BasicQosOk)
		synctest.Wait()
		for range 3 {
			next := r.client(proxytest.ClientConfig{})
			r.must(next.Publish(1, "", "next", []byte("y")))
			if m, _, _ := p.ExpectContent(amqp.BasicPublish); m.Channel() != id {
				t.Fatalf("published on channel %d, want %d", m.Channel(), id)
			}
			r.must(next.CloseChannel(1))
			p.ExpectOn(id, amqp.BasicQos)
			p.SendMethod(id, amqp.BasicQosOk)
			synctest.Wait()
			r.must(next.Close())
		}
		st := r.s.Stats()
		if st.ChannelsOpened != 2 || st.ChannelsReused != 3 || st.ChannelBarriers != 4 || st.Kept != 1 {
			t.Errorf("opened %d, reused %d, barriers %d, kept %d; want 2, 3, 4, 1", st.ChannelsOpened, st.ChannelsReused, st.ChannelBarriers, st.Kept)
		}
		_ = early.Hangup()
	})
}

// While as many channels are behind barriers as are kept, who comes waits for one of them, first come first served: nothing
// is opened beside them. Who waits has one of its own when a channel does not come back, and when the broker takes long.
func TestChannelsBehindBarriersAreWaitedFor(t *testing.T) {
	two := func(c *Config) { c.ReuseChannels, c.IdleChannels = true, 2 }
	// behind leaves two channels behind barriers.
	behind := func(r *rig) (p *proxytest.Peer, ids [2]uint16) {
		var cs [2]*proxytest.Client
		cs[0], p = r.pair(proxytest.ClientConfig{})
		cs[1] = r.client(proxytest.ClientConfig{})
		for i, c := range cs {
			r.must(c.Publish(1, "", "q", nil))
			ids[i] = p.OpenChannel()
			p.ExpectContent(amqp.BasicPublish)
		}
		for i, c := range cs {
			r.must(c.CloseChannel(1))
			p.ExpectOn(ids[i], amqp.BasicQos)
			r.must(c.Close())
		}
		return p, ids
	}
	publish := func(r *rig) *proxytest.Client {
		c := r.client(proxytest.ClientConfig{})
		r.must(c.Publish(1, "", "q", nil))
		return c
	}
	t.Run("served in turn", func(t *testing.T) {
		withScript(t, 0, two, func(r *rig) {
			p, ids := behind(r)
			publish(r)
			synctest.Wait()
			publish(r)
			p.ExpectNothing(seatWait / 2)
			publish(r) // one more than are due
			p.OpenChannel()
			p.ExpectContent(amqp.BasicPublish)
			for _, i := range []int{1, 0} {
				p.SendMethod(ids[i], amqp.BasicQosOk)
				if m, _, _ := p.ExpectContent(amqp.BasicPublish); m.Channel() != ids[i] {
					t.Errorf("published on channel %d, want %d", m.Channel(), ids[i])
				}
			}
			st := r.s.Stats()
			if st.ChannelsOpened != 3 || st.ChannelsReused != 2 || st.HeldBehindCloses != 2 || st.HeldTime != seatWait {
				t.Errorf("opened %d, reused %d, held %d for %v; want 3, 2, 2, %v", st.ChannelsOpened, st.ChannelsReused, st.HeldBehindCloses, st.HeldTime, seatWait)
			}
		})
	})
	t.Run("the broker takes long", func(t *testing.T) {
		withScript(t, 0, two, func(r *rig) {
			p, ids := behind(r)
			began := time.Now()
			publish(r)
			if id := p.OpenChannel(); id == ids[0] || id == ids[1] || time.Since(began) != seatWait {
				t.Errorf("channel %d after %v, want one of its own after %v", id, time.Since(began), seatWait)
			}
			p.ExpectContent(amqp.BasicPublish)
			p.SendMethod(ids[0], amqp.BasicQosOk)
			publish(r)
			if m, _, _ := p.ExpectContent(amqp.BasicPublish); m.Channel() != ids[0] {
				t.Errorf("published on channel %d, want %d", m.Channel(), ids[0])
			}
		})
	})
	t.Run("the broker is far away", func(t *testing.T) {
		for _, tc := range []struct {
			way   time.Duration // there and back
			waits bool
		}{{seatFar - time.Millisecond, true}, {seatFar, false}, {50 * time.Millisecond, false}} {
			withScript(t, 0, two, func(r *rig) {
				r.sc.Way = tc.way
				p, ids := behind(r)
				began := time.Now()
				publish(r)
				if id, took := p.OpenChannel(), time.Since(began); id == ids[0] || id == ids[1] || (took == seatWait) != tc.waits || !tc.waits && took != 0 {
					r.t.Errorf("a way of %v: channel %d is opened after %v, want %v", tc.way, id, took, tc.waits)
				}
				p.ExpectContent(amqp.BasicPublish)
			})
		}
	})
	t.Run("a late error", func(t *testing.T) {
		withScript(t, 0, two, func(r *rig) {
			p, ids := behind(r)
			publish(r)
			synctest.Wait()
			p.Send(amqp.AppendClose(nil, ids[0], amqp.Errorf(amqp.NotFound, amqp.BasicPublish, "no exchange 'missing'")))
			p.ExpectOn(ids[0], amqp.ChannelCloseOk)
			if id := p.OpenChannel(); id == ids[1] {
				t.Errorf("it has channel %d", id)
			}
			p.ExpectContent(amqp.BasicPublish)
		})
	})
	t.Run("the client leaves", func(t *testing.T) {
		withScript(t, 0, two, func(r *rig) {
			p, ids := behind(r)
			c := publish(r)
			synctest.Wait()
			_ = c.Hangup()
			publish(r)
			synctest.Wait()
			p.SendMethod(ids[0], amqp.BasicQosOk)
			p.ExpectContent(amqp.BasicPublish) // who has left has published, too
			p.ExpectOn(ids[0], amqp.BasicQos)
			p.SendMethod(ids[1], amqp.BasicQosOk)
			if m, _, _ := p.ExpectContent(amqp.BasicPublish); m.Channel() != ids[1] {
				t.Errorf("published on channel %d, want %d", m.Channel(), ids[1])
			}
			synctest.Wait()
			if st := r.s.Stats(); st.ChannelsOpened != 2 || st.ChannelsReused != 2 {
				t.Errorf("opened %d, reused %d; want 2, 2", st.ChannelsOpened, st.ChannelsReused)
			}
		})
	})
	t.Run("the broker closes one that is promised", func(t *testing.T) {
		withScript(t, 0, two, func(r *rig) {
			p, ids := behind(r)
			var u *upstream
			r.s.mu.Lock()
			for x := range r.s.upstreams {
				u = x
			}
			r.s.mu.Unlock()
			w := &seatWanted{}
			u.mu.Lock()
			u.seatLine.JoinLocked(w)
			u.mu.Unlock()
			p.SendMethod(ids[0], amqp.BasicQosOk)
			synctest.Wait()
			if w.id != ids[0] || u.keptFree.Load() != 0 {
				t.Fatalf("promised is channel %d, and %d are free; want %d, none", w.id, u.keptFree.Load(), ids[0])
			}
			p.Send(amqp.AppendClose(nil, ids[0], amqp.Errorf(amqp.InternalError, 0, "gone")))
			p.ExpectOn(ids[0], amqp.ChannelCloseOk)
			b, _, err := u.bind(&channel{c: nobody.c}, place{}, w.id, nil)
			if err != nil || b.id == ids[0] || b.id == ids[1] {
				t.Errorf("it has channel %d, %v; want one of its own", b.id, err)
			}
			u.mu.Lock()
			u.endLocked(b, ledger.ByUpstream)
			u.mu.Unlock()
		})
	})
	t.Run("the upstream ends", func(t *testing.T) {
		withScript(t, 0, two, func(r *rig) {
			p, _ := behind(r)
			publish(r)
			synctest.Wait()
			p.Cut()
			next := r.sc.AcceptOpen()
			next.OpenChannel()
			next.ExpectContent(amqp.BasicPublish)
		})
	})
	t.Run("confirms", func(t *testing.T) {
		withScript(t, 0, two, func(r *rig) {
			p, ids := behind(r)
			c := r.client(proxytest.ClientConfig{})
			r.must(c.Send(proxytest.Method(1, amqp.ConfirmSelect, 0)))
			r.must(c.Publish(1, "", "q", nil))
			p.ExpectNothing(seatWait / 2)
			p.SendMethod(ids[1], amqp.BasicQosOk)
			p.ExpectOn(ids[1], amqp.ConfirmSelect)
			if m, _, _ := p.ExpectContent(amqp.BasicPublish); m.Channel() != ids[1] {
				t.Errorf("published on channel %d, want %d", m.Channel(), ids[1])
			}
		})
	})
}

// The broker refuses what was published before the barrier: the channel is gone, nobody but the
// log hears of it, and the next client's messages go elsewhere.
func TestErrorInsteadOfTheBarrier(t *testing.T) {
	withScript(t, 0, reuse, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		left(r, c, p)
		id := p.OpenChannel()
		p.ExpectContent(amqp.BasicPublish)
		p.ExpectOn(id, amqp.BasicQos)
		p.Send(amqp.AppendClose(nil, id, amqp.Errorf(amqp.NotFound, amqp.BasicPublish, "no exchange 'missing'")))
		p.ExpectOn(id, amqp.ChannelCloseOk)
		next := r.client(proxytest.ClientConfig{})
		r.must(next.Publish(1, "", "q", nil))
		if again := p.OpenChannel(); again == id {
			t.Errorf("the freed channel %d is used before others", id)
		}
		p.ExpectContent(amqp.BasicPublish)
		synctest.Wait() // the reader logs behind its close-ok
		if st := r.s.Stats(); st.LateErrors != 1 || st.Kept != 0 || st.ChannelsReused != 0 {
			t.Errorf("late errors %d, kept %d, reused %d; want 1, 0, 0", st.LateErrors, st.Kept, st.ChannelsReused)
		}
		if !strings.Contains(r.log(), "no exchange 'missing'") {
			t.Error("the log does not tell the late error")
		}
		_ = next.Hangup()
	})
}

// A channel in confirm mode needs no barrier once all is confirmed. Its next user selects
// confirms too, counts from 1, and meets no user who does not.
func TestConfirmChannelIsReused(t *testing.T) {
	withScript(t, 0, reuse, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		r.must(c.Confirm(1))
		r.must(c.Publish(1, "", "q", nil))
		r.must(c.Publish(1, "", "q", nil))
		id := p.OpenChannel()
		p.Expect(amqp.ConfirmSelect)
		p.SendMethod(id, amqp.ConfirmSelectOk)
		p.ExpectContent(amqp.BasicPublish)
		p.ExpectContent(amqp.BasicPublish)
		p.SendMethod(id, amqp.BasicAck, 2, 1)
		r.must(c.WaitConfirms(1))
		r.must(c.Close())
		p.ExpectNothing(time.Second)

		plain := r.client(proxytest.ClientConfig{})
		r.must(plain.Publish(1, "", "q", nil))
		if other := p.OpenChannel(); other == id {
			t.Fatal("a channel in confirm mode was given to a client that selected none")
		}
		p.ExpectContent(amqp.BasicPublish)

		for base := range 2 {
			next := r.client(proxytest.ClientConfig{})
			r.must(next.Confirm(1))
			r.must(next.Publish(1, "", "q", nil))
			if m, _, _ := p.ExpectContent(amqp.BasicPublish); m.Channel() != id {
				t.Fatalf("published on channel %d, want %d", m.Channel(), id)
			}
			said := []amqp.Method{amqp.BasicNack, amqp.BasicAck}[base]
			p.SendMethod(id, said, 3+base, 0)
			f, err := next.Await(1, said)
			r.must(err)
			if tag := f.Args()[7]; tag != 1 {
				t.Errorf("the client hears tag %d, want 1", tag)
			}
			r.must(next.Close())
		}
		_ = plain.Hangup()
	})
}

// What is not known to be clean is closed, not kept.
func TestChannelIsNotReused(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Config)
		do     func(r *rig, c *proxytest.Client, p *proxytest.Peer)
		reason string
	}{
		"tx": {nil, func(r *rig, c *proxytest.Client, p *proxytest.Peer) {
			r.must(c.SendMethod(1, amqp.TxSelect))
			id := p.OpenChannel()
			p.Expect(amqp.TxSelect)
			p.SendMethod(id, amqp.TxSelectOk)
			_, err := c.Await(1, amqp.TxSelectOk)
			r.must(err)
		}, "transaction"},
		"get": {nil, func(r *rig, c *proxytest.Client, p *proxytest.Peer) {
			r.must(c.SendMethod(1, amqp.BasicGet, 0, "q", 1))
			id := p.OpenChannel()
			p.Expect(amqp.BasicGet)
			p.SendMethod(id, amqp.BasicGetEmpty, "")
			_, err := c.Await(1, amqp.BasicGetEmpty)
			r.must(err)
		}, "consumed"},
		"an ack": {nil, func(r *rig, c *proxytest.Client, p *proxytest.Peer) {
			r.must(c.Publish(1, "", "q", nil))
			r.must(c.Ack(1, 1, false))
		}, "consumed"},
		"idle_channels = 0": {func(c *Config) { c.IdleChannels = 0 }, func(r *rig, c *proxytest.Client, p *proxytest.Peer) {
			r.must(c.Publish(1, "", "q", nil))
		}, ""},
		"reuse_channels is off": {func(c *Config) { c.ReuseChannels = false }, func(r *rig, c *proxytest.Client, p *proxytest.Peer) {
			r.must(c.Publish(1, "", "q", nil))
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			withScript(t, 0, func(c *Config) {
				reuse(c)
				if tc.change != nil {
					tc.change(c)
				}
			}, func(r *rig) {
				c, p := r.pair(proxytest.ClientConfig{})
				tc.do(r, c, p)
				r.must(c.SendMethod(1, amqp.ChannelClose, 200, "", 0, 0))
				r.sc.Wait("channel.close", func(rs []proxytest.Record) bool { return proxytest.Count(rs, amqp.ChannelClose) == 1 })
				counted := r.s.Stats().ChannelsNotReused
				if i := slices.Index(NotReusedReasons[:], tc.reason); i >= 0 && counted[i] != 1 {
					t.Errorf("counted %v, want one for %s", counted, tc.reason)
				}
				_ = c.Hangup()
			})
		})
	}
}

// A client that dies leaves its channel to the next; a publish that has not come whole left
// nothing at the broker, and nothing of it is ever sent.
func TestChannelOfADeadClient(t *testing.T) {
	for _, half := range []bool{false, true} {
		withScript(t, 0, reuse, func(r *rig) {
			c, p := r.pair(proxytest.ClientConfig{})
			r.must(c.Publish(1, "", "q", nil))
			id := p.OpenChannel()
			p.ExpectContent(amqp.BasicPublish)
			if half {
				r.must(c.Send(proxytest.Method(1, amqp.BasicPublish, 0, "", "half", 0), proxytest.Header(1, 10)))
				time.Sleep(time.Second)
			}
			c.Abort()
			p.ExpectOn(id, amqp.BasicQos)
			p.SendMethod(id, amqp.BasicQosOk)
			synctest.Wait()
			next := r.client(proxytest.ClientConfig{})
			r.must(next.Publish(1, "", "whole", nil))
			if m, _, _ := p.ExpectContent(amqp.BasicPublish); m.Channel() != id || !strings.Contains(string(m), "whole") {
				t.Errorf("got %s on channel %d", proxytest.Describe(m), m.Channel())
			}
			_ = next.Hangup()
		})
	}
}

// The prefetch of the last user is not the next one's.
func TestKeptChannelHasItsUsersPrefetch(t *testing.T) {
	withScript(t, 0, reuse, func(r *rig) {
		var p *proxytest.Peer
		var id uint16
		for i, tc := range []struct {
			prefetch uint16
			sent     bool
		}{{3, true}, {3, false}, {0, true}, {7, true}} {
			var c *proxytest.Client
			if i == 0 {
				c, p = r.pair(proxytest.ClientConfig{})
			} else {
				c = r.client(proxytest.ClientConfig{})
			}
			if tc.prefetch > 0 {
				r.must(c.Qos(1, tc.prefetch))
			}
			r.must(c.Publish(1, "", "q", nil))
			if i == 0 {
				id = p.OpenChannel()
			}
			if tc.sent {
				f := p.ExpectOn(id, amqp.BasicQos)
				if got := uint16(f.Args()[5]); got != tc.prefetch {
					t.Fatalf("user %d: prefetch %d, want %d", i, got, tc.prefetch)
				}
				p.SendMethod(id, amqp.BasicQosOk)
				synctest.Wait()
			}
			p.ExpectContent(amqp.BasicPublish)
			r.must(c.CloseChannel(1))
			if f := p.ExpectOn(id, amqp.BasicQos); uint16(f.Args()[5]) != tc.prefetch {
				t.Fatalf("user %d: the barrier changes the prefetch to %d", i, f.Args()[5])
			}
			p.SendMethod(id, amqp.BasicQosOk)
			synctest.Wait()
			r.must(c.Close())
		}
	})
}

// Kept channels are bounded in number and age, and end with what the broker says.
func TestKeptChannelsEnd(t *testing.T) {
	withScript(t, 0, func(c *Config) { reuse(c); c.IdleChannels, c.Heartbeat = 1, 0 }, func(r *rig) {
		a, p := r.pair(proxytest.ClientConfig{})
		b := r.client(proxytest.ClientConfig{})
		r.must(a.Publish(1, "", "q", nil))
		first := p.OpenChannel()
		p.ExpectContent(amqp.BasicPublish)
		r.must(b.Publish(1, "", "q", nil))
		second := p.OpenChannel()
		p.ExpectContent(amqp.BasicPublish)
		r.must(a.CloseChannel(1))
		p.ExpectOn(first, amqp.BasicQos)
		p.SendMethod(first, amqp.BasicQosOk)
		synctest.Wait()
		synctest.Wait()
		r.must(b.CloseChannel(1))
		p.ExpectOn(second, amqp.ChannelClose) // one is kept
		p.SendMethod(second, amqp.ChannelCloseOk)
		time.Sleep(r.s.cfg().AuthTTL)
		p.ExpectOn(first, amqp.ChannelClose) // what it knows of its user is too old
		p.SendMethod(first, amqp.ChannelCloseOk)
		synctest.Wait()
		if st := r.s.Stats(); st.Kept != 0 || st.Bindings != 0 || st.Pools[0].Channels != 0 {
			t.Errorf("kept %d, bindings %d, places %d at the end", st.Kept, st.Bindings, st.Pools[0].Channels)
		}

		r.must(a.OpenChannel(1))
		r.must(a.Publish(1, "", "q", nil))
		third := p.OpenChannel()
		p.ExpectContent(amqp.BasicPublish)
		r.must(a.CloseChannel(1))
		p.ExpectOn(third, amqp.BasicQos)
		p.SendMethod(third, amqp.BasicQosOk)
		synctest.Wait()
		synctest.Wait()
		p.Send(amqp.AppendClose(nil, third, amqp.Errorf(amqp.PreconditionFailed, 0, "away with it")))
		p.ExpectOn(third, amqp.ChannelCloseOk)
		if st := r.s.Stats(); st.Kept != 0 || st.Bindings != 0 {
			t.Errorf("kept %d, bindings %d after the broker's close", st.Kept, st.Bindings)
		}
		_ = a.Hangup()
		_ = b.Hangup()
	})
}

// Read your writes: who gets waits for the barrier as for a close.
func TestReadYourWritesBehindABarrier(t *testing.T) {
	withScript(t, 0, reuse, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		left(r, c, p)
		id := p.OpenChannel()
		p.ExpectContent(amqp.BasicPublish)
		p.ExpectOn(id, amqp.BasicQos)
		d := r.client(proxytest.ClientConfig{})
		r.must(d.SendMethod(1, amqp.BasicGet, 0, "q", 1))
		p.ExpectNothing(time.Second)
		if r.sc.Accepted() != 1 {
			t.Fatal("the reader did not wait")
		}
		p.SendMethod(id, amqp.BasicQosOk)
		synctest.Wait()
		p.ExpectOn(id, amqp.BasicGet)
		_ = d.Hangup()
	})
}

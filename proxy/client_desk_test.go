package proxy

import (
	"bytes"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// A heartbeat shows that a client is there and does not end its rest; whatever else comes does.
func TestHeartbeatsLeaveAClientAtRest(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		c := r.client(proxytest.ClientConfig{Heartbeat: 20})
		time.Sleep(restAfter + 2*tick)
		synctest.Wait()
		x := r.s.clients.appendTo(nil, nil)[0]
		for i := range 20 { // each within two heartbeats of the one before
			frames, seen := r.s.n.framesClients.Load(), x.lastRead.Load()
			r.must(c.Send(amqp.Heartbeat))
			synctest.Wait()
			if !x.rested.Load() || r.s.n.framesClients.Load() != frames+1 || x.lastRead.Load() < seen {
				t.Fatalf("heartbeat %d: at rest %v, %d frames more, seen at %d, before that at %d", i, x.rested.Load(), r.s.n.framesClients.Load()-frames, x.lastRead.Load(), seen)
			}
			time.Sleep(30 * time.Second)
		}
		r.must(c.Publish(1, "", "q", []byte("x")))
		synctest.Wait()
		if x.rested.Load() {
			t.Error("a client that has just published is at rest")
		}
		time.Sleep(restAfter + 2*tick)
		if synctest.Wait(); !x.rested.Load() {
			t.Error("it does not rest again")
		}
		r.must(c.Close())
	})
}

// What is not one whole heartbeat, or not to be passed over, goes the general way.
func TestWhatIsNoLoneHeartbeat(t *testing.T) {
	bad := slices.Clone(amqp.Heartbeat)
	bad[len(bad)-1] = 0
	for _, tc := range []struct {
		what string
		p    []byte
		as   func(*client)
		want bool
	}{
		{"a heartbeat", amqp.Heartbeat, nil, true},
		{"a part of one", amqp.Heartbeat[:7], nil, false},
		{"two", bytes.Repeat(amqp.Heartbeat, 2), nil, false},
		{"one without its end", bad, nil, false},
		{"one on a channel", amqp.AppendFrame(nil, amqp.FrameHeartbeat, 1, nil), nil, false},
		{"one from a client that closes", amqp.Heartbeat, func(c *client) { c.phase.Store(phaseClosing) }, false},
		{"one from a client that is traced", amqp.Heartbeat, func(c *client) { c.traced.Store(&Trace{}) }, false},
		{"one from a client with a rate", amqp.Heartbeat, func(c *client) { c.paces.Store(&dataPaces{}) }, false},
	} {
		c, _, _ := halves(t)
		if tc.as != nil {
			tc.as(c)
		}
		before := c.env.n.framesClients.Load()
		if _, err := c.rd.Fill(bytes.NewReader(tc.p)); err != nil {
			t.Fatal(err)
		}
		left, frames := len(tc.p), uint64(0)
		if tc.want {
			left, frames = 0, 1
		}
		if got := c.beats(); got != tc.want || len(c.rd.Buffered()) != left || c.env.n.framesClients.Load() != before+frames {
			t.Errorf("%s is taken: %v, want %v; %d octets are left, %d frames counted", tc.what, got, tc.want, len(c.rd.Buffered()), c.env.n.framesClients.Load()-before)
		}
		c.traced.Store(nil)
		c.phase.Store(phaseRunning)
	}
}

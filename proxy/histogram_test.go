package proxy

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

func TestHistogram(t *testing.T) {
	var h histogram
	for _, took := range []time.Duration{0, 100 * time.Microsecond, 2 * time.Millisecond, 3 * time.Second, time.Hour} {
		h.observe(took)
	}
	s := h.snapshot()
	if want := [...]uint64{2, 2, 3, 3, 3, 3, 3, 4, 4, 4, 4, 5}; s.Counts != want || s.Sum != time.Hour+3*time.Second+2100*time.Microsecond {
		t.Errorf("got %v, %v; want %v", s.Counts, s.Sum, want)
	}
}

// What clients wait for and are told is counted, on the listener that they came to.
func TestWaitsAndErrorsAreCounted(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		c := r.client(proxytest.ClientConfig{}) // the first login is waited for
		d := r.client(proxytest.ClientConfig{})
		r.must(c.Publish(1, "", "nowhere", nil))
		r.must(c.Publish(1, "", "nowhere", nil))
		r.must(d.Publish(1, "nonsense", "k", nil))
		if e, err := d.Closed(1); err != nil || e.Code != amqp.NotFound {
			t.Fatal(e, err)
		}
		synctest.Wait()
		r.s.Kick(1, "")
		_, err := c.Expect(amqp.ChannelOpenOk)
		r.hears(err, amqp.ConnectionForced)
		_ = c.Hangup()
		synctest.Wait()
		st := r.s.Stats()
		if n := st.Waits.Counts[len(WaitBounds)]; n != 1 {
			t.Errorf("%d waits are counted, want that of the first login", n)
		}
		if n := st.FirstFrames.Counts[len(WaitBounds)]; n != 2 {
			t.Errorf("%d first frames are counted, want 2", n)
		}
		for code, want := range map[uint16][2]uint64{amqp.NotFound: {0, 1}, amqp.ConnectionForced: {1, 0}, 0: {}} {
			i := slices.Index(ErrorCodes[:], code)
			if got := [2]uint64{st.ConnectionErrors[i], st.ChannelErrors[i]}; got != want {
				t.Errorf("%d: %v connections and channels were closed, want %v", code, got, want)
			}
		}
		if l := st.Listeners[0]; l.Clients != 1 || l.Accepted != 2 {
			t.Errorf("the listener has %d clients of %d, want 1 of 2", l.Clients, l.Accepted)
		}
		r.must(d.Close())
	})
}

func TestErrorCodes(t *testing.T) {
	var n errorCounts
	for _, code := range []uint16{amqp.NotFound, 999, 200} {
		n.add(code)
	}
	s := n.snapshot()
	if got := [2]uint64{s[slices.Index(ErrorCodes[:], amqp.NotFound)], s[len(s)-1]}; got != [2]uint64{1, 2} {
		t.Errorf("got %v, want 1 and 2 of others", got)
	}
}

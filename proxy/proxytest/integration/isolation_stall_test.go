// A broker that stalls and goes on (a frozen process, a memory alarm, the flow control that
// follows) under publishers that confirm, some of which send their publishes in halves, and
// clients that come and go. What a broker with so much to catch up on takes for it is its own:
// what must hold is that nobody waits for a confirm that the broker has given. So in the end the
// load is taken away, everybody's confirms come, and the queues hold what was confirmed.

//go:build linux

package integration

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	wire "github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// halving publishes a large message in two halves, with a pause between them, and waits for
// its confirm.
func halving(w *worker, c *proxytest.Client) error {
	if w.ledger.sent == 0 {
		if err := c.Call(proxytest.Method(1, wire.ConfirmSelect, 0), wire.ConfirmSelectOk); err != nil {
			return err
		}
	}
	n := w.ledger.sent
	w.ledger.sent++
	body := append(fmt.Appendf(nil, "%d ", n), bytes.Repeat([]byte("x"), 1000+rand.IntN(150_000))...)
	all := proxytest.Method(1, wire.BasicPublish, 0, "", w.queue, 0)
	all = append(all, proxytest.HeaderWith(1, uint64(len(body)), 1<<12, []byte{2})...)
	for len(body) > 0 {
		k := min(len(body), 100_000)
		all = append(all, proxytest.Body(1, body[:k])...)
		body = body[k:]
	}
	cut := 1 + rand.IntN(len(all)-1)
	if err := c.Send(all[:cut]); err != nil {
		return err
	}
	time.Sleep(time.Duration(rand.IntN(30)) * time.Millisecond) // half a publish is there meanwhile
	if err := c.Send(all[cut:]); err != nil {
		return err
	}
	f, err := c.Await(1, wire.BasicAck)
	if err != nil {
		return err
	}
	a := wire.ReadArgs(f)
	if tag := a.LongLong(); tag != uint64(n+1) {
		return fmt.Errorf("confirm for %d, %d is due", tag, n+1)
	}
	w.ledger.confirmed = append(w.ledger.confirmed, n)
	return nil
}

// passing connects, publishes, closes: a storm of short connections and channels.
func passing(w *worker) error {
	c, err := rawErr(w.cfg)
	if err != nil {
		return err
	}
	defer c.Hangup()
	if err := c.Send(w.message()); err != nil {
		return err
	}
	return c.Close()
}

func TestStalledBrokerLosesNothing(t *testing.T) {
	each(t, "", func(t *testing.T, tg *target) {
		b := tg.broker
		if !full && !straight && (tg.proxy == nil || b.Version != rabbit.V310) {
			t.Skip("what is promised is looked at once: FULL=1")
		}
		o := observe(t, b)
		// Nobody gives up before the broker has caught up.
		cfg := proxytest.ClientConfig{Addr: tg.addr, Timeout: 5 * time.Minute}
		var all []*worker
		for i := range count(4, 24) {
			w := &worker{kind: fmt.Sprintf("confirms %d", i), cfg: cfg, step: confirming}
			switch i % 4 {
			case 1, 2:
				w.kind, w.step = fmt.Sprintf("publishes in halves %d", i), halving
			case 3:
				w.kind, w.step, w.dials = fmt.Sprintf("comes and goes %d", i), nil, passing
			}
			w.queue = o.queue(fmt.Sprintf("stall-%d", i))
			w.ledger.queue = w.queue
			all = append(all, w)
		}
		halt := make(chan struct{})
		var wg sync.WaitGroup
		for _, w := range all {
			wg.Go(func() { w.work(halt) })
		}
		stalls, slowest := 0, time.Duration(0)
		for range count(1, 6) {
			for _, stall := range []struct {
				name     string
				make     func() error
				goOn     func() error
				duration time.Duration
			}{
				{"frozen", b.Pause, b.Resume, time.Duration(500+rand.IntN(2000)) * time.Millisecond},
				{"in an alarm", func() error { alarm(t, b, true); return nil }, func() error { alarm(t, b, false); return nil }, time.Second},
				{"frozen for a moment", b.Pause, b.Resume, 150 * time.Millisecond},
			} {
				if err := stall.make(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(stall.duration) // the stall itself
				began := time.Now()
				if err := stall.goOn(); err != nil {
					t.Fatal(err)
				}
				stalls++
				for _, w := range all {
					goal := w.rounds.Load() + 2
					for w.rounds.Load() < goal && !w.over.Load() && time.Since(began) < patience {
						time.Sleep(10 * time.Millisecond)
					}
					if n := w.rounds.Load(); n < goal {
						// Its broker's word is on its way, or lost: that is seen when all others rest.
						t.Logf("%s, after the broker was %s: %d rounds of %d within %v", w.kind, stall.name, n, goal, patience)
					}
				}
				slowest = max(slowest, time.Since(began))
			}
		}
		close(halt)
		began := time.Now()
		wg.Wait()
		var ledgers []ending
		for _, w := range all {
			if !errors.Is(w.end, errHalted) {
				t.Errorf("%s ended with %v: %d of %d confirmed", w.kind, w.end, len(w.ledger.confirmed), w.ledger.sent)
			}
			if w.dials == nil { // else the order is that of connections
				ledgers = append(ledgers, w.ledger)
			}
		}
		canary(t, tg.addr)
		confirmed, sent := nothingLost(t, observe(t, b), ledgers)
		t.Logf("FIGURE RabbitMQ %s, %s: %d stalls under %d clients, all at work again after %v at most and at rest %v after the load: %d of %d messages confirmed, all there",
			b.Version, tg.via, stalls, len(all), slowest.Round(time.Millisecond), time.Since(began).Round(time.Millisecond), confirmed, sent)
	})
}

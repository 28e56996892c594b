// Losing the broker in the middle of everything that a client can be at: nobody hangs,
// nobody is told of a confirm or commit that the broker did not give, the next is served.

//go:build linux

package integration

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	wire "github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/relay"
)

const (
	lossHeartbeat = 2 * time.Second
	// lossConnect bounds a handshake with the broker.
	lossConnect = time.Second
	// hangs is how long no answer may take after a loss.
	hangs = 2*lossHeartbeat + raceSlack
	// consumable is how many messages a consumer turns over and over.
	consumable = 300
)

// worker does one kind of work over and over until its connection ends.
type worker struct {
	kind  string
	queue string
	cfg   proxytest.ClientConfig
	step  func(w *worker, c *proxytest.Client) error // one round of work; nil for those who connect anew each time
	dials func(w *worker) error                      // the same for these

	rounds atomic.Int64
	over   atomic.Bool // end, at and began are set
	end    error
	at     time.Time
	began  time.Time // the last round of one that connects anew
	ledger ending    // what was published, and what of it was confirmed
}

// errHalted is the end of a worker by the test's own will.
var errHalted = errors.New("halted")

func (w *worker) work(halt <-chan struct{}) {
	defer func() {
		w.at = time.Now()
		w.over.Store(true)
	}()
	var c *proxytest.Client
	if w.dials == nil {
		if c, w.end = rawErr(w.cfg); w.end != nil {
			return
		}
		defer c.Hangup()
	}
	for w.end == nil {
		select {
		case <-halt:
			w.end = errHalted
			return
		default:
		}
		if c != nil {
			w.end = w.step(w, c)
		} else {
			w.began = time.Now()
			w.end = w.dials(w)
		}
		if w.end == nil {
			w.rounds.Add(1)
		}
	}
	// A failed write says less than the close that may have come before it.
	var e *wire.Error
	if c != nil && !errors.As(w.end, &e) {
		if e, _ := c.Closed(0); e != nil {
			w.end = fmt.Errorf("%w (%v)", e, w.end)
		}
	}
}

// message is a persistent publish of the next number.
func (w *worker) message() []byte {
	body := fmt.Appendf(nil, "%d", w.ledger.sent)
	w.ledger.sent++
	b := proxytest.Method(1, wire.BasicPublish, 0, "", w.queue, 0)
	b = append(b, proxytest.HeaderWith(1, uint64(len(body)), 1<<12, []byte{2})...) // delivery-mode 2
	return append(b, proxytest.Body(1, body)...)
}

// stock puts persistent messages into the worker's queue, straight at the broker.
func (w *worker) stock(t *testing.T, addr string) {
	t.Helper()
	c := raw(t, proxytest.ClientConfig{Addr: addr})
	if err := c.Call(proxytest.Method(1, wire.TxSelect), wire.TxSelectOk); err != nil {
		t.Fatal(err)
	}
	var all []byte
	for range consumable {
		all = append(all, w.message()...)
	}
	if err := c.Call(append(all, proxytest.Method(1, wire.TxCommit)...), wire.TxCommitOk); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

func (w *worker) settle(from int) {
	for n := from; n < w.ledger.sent; n++ {
		w.ledger.confirmed = append(w.ledger.confirmed, n)
	}
}

// publishing sends a burst without confirms and a call behind it.
func publishing(w *worker, c *proxytest.Client) error {
	var burst []byte
	for range 20 {
		burst = append(burst, w.message()...)
	}
	if err := c.Send(burst); err != nil {
		return err
	}
	_, err := c.QueueLength(1, w.queue)
	return err
}

// confirming publishes in confirm mode; each ack is written down as it comes.
func confirming(w *worker, c *proxytest.Client) error {
	if w.ledger.sent == 0 {
		if err := c.Call(proxytest.Method(1, wire.ConfirmSelect, 0), wire.ConfirmSelectOk); err != nil {
			return err
		}
	}
	var burst []byte
	for range 20 {
		burst = append(burst, w.message()...)
	}
	if err := c.Send(burst); err != nil {
		return err
	}
	for len(w.ledger.confirmed) < w.ledger.sent {
		f, err := c.Await(1, wire.BasicAck)
		if err != nil {
			return err
		}
		a := wire.ReadArgs(f)
		tag, multiple := a.LongLong(), a.Octet()&1 != 0
		low := len(w.ledger.confirmed)
		if !multiple && int(tag) != low+1 || int(tag) <= low || int(tag) > w.ledger.sent {
			return fmt.Errorf("confirm for %d (multiple: %v) with %d sent and %d confirmed", tag, multiple, w.ledger.sent, low)
		}
		for n := low; n < int(tag); n++ {
			w.ledger.confirmed = append(w.ledger.confirmed, n)
		}
	}
	return nil
}

// transacting publishes in transactions; what commit-ok came for is written down.
func transacting(w *worker, c *proxytest.Client) error {
	if w.ledger.sent == 0 {
		if err := c.Call(proxytest.Method(1, wire.TxSelect), wire.TxSelectOk); err != nil {
			return err
		}
	}
	from := w.ledger.sent
	var burst []byte
	for range 5 {
		burst = append(burst, w.message()...)
	}
	if err := c.Call(append(burst, proxytest.Method(1, wire.TxCommit)...), wire.TxCommitOk); err != nil {
		return err
	}
	w.settle(from)
	return nil
}

// consuming takes deliveries and gives each back, so that they never end.
func consuming(w *worker, c *proxytest.Client) error {
	if w.rounds.Load() == 0 {
		if err := c.Qos(1, 10); err != nil {
			return err
		}
		if _, err := c.Consume(1, w.queue, "t", false); err != nil {
			return err
		}
	}
	m, err := c.Delivery(1)
	if err != nil {
		return err
	}
	return c.SendMethod(1, wire.BasicReject, m.Tag, true)
}

// closing closes a channel that is not quiet, and has the answer only from the broker.
func closing(w *worker, c *proxytest.Client) error {
	if err := c.OpenChannel(2); err != nil {
		return err
	}
	if _, err := c.Get(2, w.queue, false); err != nil {
		return err
	}
	return c.CloseChannel(2)
}

// leaving connects, takes a message, and closes its connection with that unsettled.
func leaving(w *worker) error {
	c, err := rawErr(w.cfg)
	if err != nil {
		return err
	}
	defer c.Hangup()
	if _, err := c.Get(1, w.queue, false); err != nil {
		return err
	}
	return c.Close()
}

// refusedLogin is a handshake that goes to the broker each time. Whatever happens, this
// password is never right.
func refusedLogin(w *worker) error {
	c, err := rawErr(w.cfg)
	if err == nil {
		c.Abort()
		return errors.New("a wrong password was accepted")
	}
	var e *wire.Error
	if errors.As(err, &e) && e.Code == wire.AccessRefused {
		return nil
	}
	return err
}

// owning declares an exclusive queue: a handshake with the broker in the middle of a connection.
func owning(w *worker) error {
	c, err := rawErr(w.cfg)
	if err != nil {
		return err
	}
	defer c.Hangup()
	if _, err := c.DeclareQueue(1, "", proxytest.Exclusive); err != nil {
		return err
	}
	return c.Close()
}

// crew is two of each kind.
func crew(o *observer, addr string) (all []*worker) {
	for i := range 2 {
		cfg := proxytest.ClientConfig{Addr: addr, Timeout: hangs}
		wrong := cfg
		wrong.Password = "wrong"
		add := func(kind string, cfg proxytest.ClientConfig, step func(*worker, *proxytest.Client) error, dials func(*worker) error) {
			w := &worker{kind: fmt.Sprintf("%s %d", kind, i), cfg: cfg, step: step, dials: dials}
			w.queue = o.queue(fmt.Sprintf("%s-%d", kind, i))
			w.ledger.queue = w.queue
			all = append(all, w)
		}
		add("publish", cfg, publishing, nil)
		add("confirm", cfg, confirming, nil)
		add("tx", cfg, transacting, nil)
		add("consume", cfg, consuming, nil)
		add("close", cfg, closing, nil)
		add("leave", cfg, nil, leaving)
		add("login", wrong, nil, refusedLogin)
		add("own", cfg, nil, owning)
	}
	return all
}

// turned tells whether a worker's queue holds messages that go round.
func (w *worker) turned() bool {
	kind, _, _ := strings.Cut(w.kind, " ")
	return kind == "consume" || kind == "close" || kind == "leave"
}

// mayMiss tells whether a worker may not notice that the broker is lost: it connects anew
// each time, or closes its only channel there again and again.
func (w *worker) mayMiss() bool {
	kind, _, _ := strings.Cut(w.kind, " ")
	return w.dials != nil || kind == "close"
}

func TestLossInTheMiddle(t *testing.T) {
	rounds := count(3, 50)
	for _, v := range versions(t) {
		t.Run(string(v), func(t *testing.T) {
			b := rabbit.Get(t, v)
			path, err := relay.New(b.Addr(), 0)
			if err != nil {
				t.Fatal(err)
			}
			defer path.Close()
			faults := []struct {
				name string
				make func(round int) error
				mend func() error
			}{
				{"cut", func(int) error { path.Cut(); return nil }, func() error { return nil }},
				{"silent", func(int) error { path.Stall(true); return nil }, func() error {
					path.Stall(false)
					path.Cut() // what was held back must not come in late
					return nil
				}},
				{"restart", func(round int) error {
					if round%2 == 0 {
						return b.Kill()
					}
					return b.Stop()
				}, b.Restart},
			}
			t.Run("straight", func(t *testing.T) {
				f := faults[2]
				loss(t, b, b.Addr(), 1, f.name, f.make, f.mend, false)
			})
			if straight {
				return
			}
			t.Run("proxy", func(t *testing.T) {
				p := startProxy(t, true, "amqp://"+path.Addr(), fmt.Sprintf(
					"[upstream]\nheartbeat = %q\nretry_delay = \"100ms\"\nconnect_timeout = %q\n", lossHeartbeat, lossConnect))
				canary(t, p.addr)
				for _, f := range faults {
					t.Run(f.name, func(t *testing.T) {
						var confirmed, sent int
						var worst time.Duration
						for i := range rounds {
							c, s, took := loss(t, b, p.addr, i, f.name, f.make, f.mend, true)
							confirmed, sent, worst = confirmed+c, sent+s, max(worst, took)
							if t.Failed() {
								return
							}
						}
						t.Logf("FIGURE RabbitMQ %s: %s, %d times: the last of 16 clients has its answer after %v at worst; %d of %d messages confirmed or committed, all there",
							v, f.name, rounds, worst.Round(10*time.Millisecond), confirmed, sent)
					})
				}
			})
		})
	}
}

// loss has everybody at work, breaks the broker, and looks at what each has heard.
func loss(t *testing.T, b *rabbit.Broker, addr string, round int, fault string, lose func(int) error, mend func() error, proxied bool) (confirmed, sent int, worst time.Duration) {
	t.Helper()
	o := observe(t, b)
	all := crew(o, addr)
	halt := make(chan struct{})
	var connected, connecting sync.WaitGroup
	for _, w := range all {
		if w.turned() {
			w.stock(t, b.Addr())
		}
		if w.dials == nil {
			connected.Go(func() { w.work(halt) })
		} else {
			connecting.Go(func() { w.work(halt) })
		}
	}
	for _, w := range all {
		goal := w.rounds.Load() + int64(3+round%3)
		eventually(t, w.kind+" works", func() error {
			if w.over.Load() {
				t.Fatalf("%s ended before the broker was lost: %v", w.kind, w.end)
			}
			if n := w.rounds.Load(); n < goal {
				return fmt.Errorf("%d rounds", n)
			}
			return nil
		})
	}
	at := time.Now()
	if err := lose(round); err != nil {
		t.Fatal(err)
	}
	// Each of their waits is bounded. Those who connect anew may be served all the time, and
	// so may be who had no channel at the broker when it was lost.
	heard := make(chan struct{})
	go func() { connected.Wait(); close(heard) }()
	select {
	case <-heard:
	case <-time.After(hangs):
	}
	close(halt)
	<-heard
	connecting.Wait()
	if err := mend(); err != nil {
		t.Fatal(err)
	}
	limit := time.Second
	if fault == "silent" {
		limit = 2 * lossHeartbeat
	}
	if fault == "restart" && round%2 == 1 {
		limit += 5 * time.Second // an orderly stop takes its time to tell all
	}
	for _, w := range all {
		took := w.at.Sub(at)
		if w.began.After(at) { // the one before has ended well
			took = w.at.Sub(w.began)
		}
		if !errors.Is(w.end, errHalted) {
			worst = max(worst, took)
		}
		var e *wire.Error
		switch {
		case !proxied: // straight a lost socket is all that there is to hear
		case errors.Is(w.end, errHalted) && w.mayMiss(): // it was served
		case errors.Is(w.end, os.ErrDeadlineExceeded):
			t.Errorf("%s, round %d: %s hangs: %v", fault, round, w.kind, w.end)
		case w.dials != nil && strings.Contains(w.end.Error(), "waiting for connection.start"): // it came while the broker was known to be away
		case !errors.As(w.end, &e) || e.Code != wire.ConnectionForced:
			t.Errorf("%s, round %d: %s heard %v, want 320", fault, round, w.kind, w.end)
		case took > limit+raceSlack:
			t.Errorf("%s, round %d: %s heard %v only after %v", fault, round, w.kind, w.end, took)
		}
		if proxied && (round == 0 || took > limit+time.Second/2 && !errors.Is(w.end, errHalted)) {
			t.Logf("%s: %s, %d rounds, heard after %v: %v", fault, w.kind, w.rounds.Load(), took.Round(time.Millisecond), w.end)
		}
	}
	eventually(t, "the next one is served", func() error {
		c, err := rawErr(proxytest.ClientConfig{Addr: addr, Timeout: 5 * time.Second})
		if err != nil {
			return err
		}
		return c.Close()
	})
	canary(t, addr)
	o = observe(t, b)
	var ledgers []ending
	for _, w := range all {
		if w.turned() {
			eventually(t, w.kind+": its messages are back", func() error {
				q, err := o.ch.QueueDeclarePassive(w.queue, true, false, false, false, nil)
				if err != nil {
					t.Fatal(err)
				}
				if q.Messages != consumable {
					return fmt.Errorf("%d of %d", q.Messages, consumable)
				}
				return nil
			})
			continue
		}
		ledgers = append(ledgers, w.ledger)
	}
	confirmed, sent = nothingLost(t, o, ledgers)
	for _, w := range all {
		o.ch.QueueDelete(w.queue, false, false, false)
	}
	return confirmed, sent, worst
}

// Publishers under load, who know exactly which messages were confirmed to them.

//go:build linux

package integration

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// load is a number of publishers, each with a connection, a queue and a window of
// unconfirmed persistent messages.
type load struct {
	queues    []string
	confirmed atomic.Int64 // in all, so far
	halt      chan struct{}
	wg        sync.WaitGroup
	mu        sync.Mutex
	ends      []ending
}

// ending is how one publisher's connection ended.
type ending struct {
	queue     string
	confirmed []int // numbers of the messages that were confirmed
	sent      int
	err       *amqp.Error // of the connection; nil when it ended by itself
	at        time.Time
}

const window = 100

// start lets a publisher work for each queue until it is stopped or its connection ends.
func startLoad(t testing.TB, addr string, queues []string) *load {
	t.Helper()
	l := &load{queues: queues, halt: make(chan struct{})}
	for _, q := range queues {
		conn, err := dial(addr, amqp.Config{})
		if err != nil {
			t.Fatalf("load: %s", heard(err))
		}
		ch, err := conn.Channel()
		if err != nil {
			t.Fatalf("load: %v", err)
		}
		if err := ch.Confirm(false); err != nil {
			t.Fatalf("load: %v", err)
		}
		l.wg.Add(1)
		go l.publish(conn, ch, q)
	}
	return l
}

func (l *load) publish(conn *amqp.Connection, ch *amqp.Channel, queue string) {
	defer l.wg.Done()
	end := ending{queue: queue}
	closed := conn.NotifyClose(make(chan *amqp.Error, 1))
	var pending []*amqp.DeferredConfirmation
	settle := func(keep int) { // waits for the oldest until keep are left
		for len(pending) > keep {
			c := pending[0]
			pending = pending[1:]
			<-c.Done() // also when the connection ends
			if c.Acked() {
				end.confirmed = append(end.confirmed, int(c.DeliveryTag)-1)
				l.confirmed.Add(1)
			}
		}
	}
work:
	for {
		select {
		case <-l.halt:
			break work
		default:
		}
		c, err := ch.PublishWithDeferredConfirmWithContext(context.Background(), "", queue, true, false,
			amqp.Publishing{DeliveryMode: amqp.Persistent, Body: fmt.Appendf(nil, "%d", end.sent)})
		if err != nil {
			break
		}
		end.sent++
		pending = append(pending, c)
		settle(window)
	}
	settle(0)
	select {
	case <-l.halt:
		conn.Close()
	default:
	}
	end.err = <-closed
	end.at = time.Now()
	l.mu.Lock()
	l.ends = append(l.ends, end)
	l.mu.Unlock()
}

// stop ends the publishers that still work.
func (l *load) stop() { close(l.halt) }

// wait waits until all have ended and returns how.
func (l *load) wait(t testing.TB) []ending {
	t.Helper()
	done := make(chan struct{})
	go func() { l.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(2 * patience):
		t.Fatal("load: publishers hang")
	}
	return l.ends
}

// underway waits until n messages more were confirmed.
func (l *load) underway(t testing.TB, n int64) {
	t.Helper()
	goal := l.confirmed.Load() + n
	eventually(t, "the load is under way", func() error {
		if c := l.confirmed.Load(); c < goal {
			return fmt.Errorf("%d of %d confirmed", c, goal)
		}
		return nil
	})
}

// nothingLost checks in the broker that each confirmed message is in its queue, in order
// and once; messages that were never confirmed may be there or not.
func nothingLost(t testing.TB, o *observer, ends []ending) (confirmed, sent int) {
	t.Helper()
	for _, e := range ends {
		there := map[int]bool{}
		last := -1
		for _, body := range o.rest(e.queue) {
			var n int
			if _, err := fmt.Sscan(body, &n); err != nil {
				t.Fatalf("%s holds %q", e.queue, body)
			}
			if n <= last {
				t.Errorf("%s: message %d comes after %d", e.queue, n, last)
			}
			last = n
			there[n] = true
		}
		missing := 0
		for _, n := range e.confirmed {
			if !there[n] {
				missing++
			}
		}
		if missing > 0 {
			t.Errorf("%s: %d of %d confirmed messages are lost (%d there)", e.queue, missing, len(e.confirmed), len(there))
		}
		confirmed, sent = confirmed+len(e.confirmed), sent+e.sent
	}
	return confirmed, sent
}

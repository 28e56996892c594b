// A cluster of three nodes that are drained, stopped and started one after the other, and killed,
// under confirmed publishing to a quorum queue. Minutes: CLUSTER=1, `make test-cluster`.

//go:build linux

package integration

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// startCluster starts three nodes of a version.
func startCluster(t *testing.T, v rabbit.Version) (nodes []*rabbit.Broker, urls string) {
	if os.Getenv("CLUSTER") == "" {
		t.Skip("CLUSTER=1, or make test-cluster")
	}
	if err := rabbit.Available(v); err != nil {
		rabbit.Skip(t, err)
	}
	var all []string
	for i := range 3 {
		var options []rabbit.Option
		if i > 0 {
			options = append(options, rabbit.Beside(nodes[0]))
		}
		b, err := rabbit.Start(v, options...)
		if err != nil {
			t.Fatalf("node %d: %v", i, err)
		}
		t.Cleanup(b.Close)
		nodes = append(nodes, b)
		all = append(all, b.URL())
	}
	return nodes, strings.Join(all, ",")
}

// connectionsAt are the connections of each node, -1 where it cannot be asked.
func connectionsAt(nodes []*rabbit.Broker) (counts []int) {
	for _, b := range nodes {
		n := -1
		if out, err := b.Eval("length(rabbit_networking:local_connections())."); err == nil {
			n, _ = strconv.Atoi(out)
		}
		counts = append(counts, n)
	}
	return counts
}

// work is confirmed publishing of two kinds: a connection for each message, and one for as long as
// it lasts.
type work struct {
	t     *testing.T
	addr  string
	queue string
	stop  chan struct{}
	wg    sync.WaitGroup

	sent, failed atomic.Int64
	mu           sync.Mutex
	confirmed    map[string]bool
	errs         map[string]int
	pause        map[string]time.Duration // longest between two confirms, by kind
	worst        map[string]time.Duration // likewise, since the last look
}

func newWork(t *testing.T, addr, queue string) *work {
	return &work{t: t, addr: addr, queue: queue, stop: make(chan struct{}), confirmed: map[string]bool{},
		errs: map[string]int{}, pause: map[string]time.Duration{}, worst: map[string]time.Duration{}}
}

func startWork(t *testing.T, addr, queue string) *work {
	w := newWork(t, addr, queue)
	for i := range 6 {
		w.wg.Go(func() { w.publish(fmt.Sprintf("short%d", i), "short", 1) })
	}
	for i := range 6 {
		w.wg.Go(func() { w.publish(fmt.Sprintf("long%d", i), "long", 1<<30) })
	}
	return w
}

func (w *work) ended() bool {
	select {
	case <-w.stop:
		return true
	default:
		return false
	}
}

// publish connects anew after so many messages, and after an error.
func (w *work) publish(name, kind string, each int) {
	last, n := time.Now(), 0
	for !w.ended() {
		conn, err := dial(w.addr, amqp.Config{})
		if err != nil {
			w.lost(err)
			continue
		}
		ch, err := conn.Channel()
		if err == nil {
			err = ch.Confirm(false)
		}
		for i := 0; i < each && err == nil && !w.ended(); i++ {
			id := fmt.Sprintf("%s-%d", name, n)
			n++
			w.sent.Add(1)
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			var c *amqp.DeferredConfirmation
			c, err = ch.PublishWithDeferredConfirmWithContext(ctx, "", w.queue, true, false,
				amqp.Publishing{DeliveryMode: amqp.Persistent, MessageId: id, Body: []byte(id)})
			if err == nil {
				var ok bool
				if ok, err = c.WaitContext(ctx); err == nil && !ok {
					err = fmt.Errorf("nack")
				}
			}
			cancel()
			if err == nil {
				w.mu.Lock()
				w.confirmed[id] = true
				d := time.Since(last)
				w.pause[kind], w.worst[kind] = max(w.pause[kind], d), max(w.worst[kind], d)
				w.mu.Unlock()
				last = time.Now()
				time.Sleep(5 * time.Millisecond)
			}
		}
		if err != nil {
			w.lost(err)
		}
		conn.Close()
	}
}

func (w *work) lost(err error) {
	w.failed.Add(1)
	w.mu.Lock()
	w.errs[err.Error()]++
	w.mu.Unlock()
	time.Sleep(20 * time.Millisecond)
}

// look is the longest pause of each kind since the last look.
func (w *work) look() map[string]time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.worst
	w.worst = map[string]time.Duration{}
	for k := range was {
		was[k] = was[k].Round(time.Millisecond)
	}
	return was
}

// end stops the publishers, reads the queue empty, and tells how many were confirmed, lost and double.
func (w *work) end(from string) (confirmed, lost, double int) {
	w.t.Helper()
	close(w.stop)
	w.wg.Wait()
	seen := map[string]int{}
	w.read(from, seen)
	return w.count(seen)
}

// read reads the queue empty, and counts its messages in seen.
func (w *work) read(from string, seen map[string]int) {
	w.t.Helper()
	conn, err := dial(from, amqp.Config{})
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		w.t.Fatal(err)
	}
	deliveries, err := ch.Consume(w.queue, "", true, false, false, false, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	for quiet := false; !quiet; {
		select {
		case d := <-deliveries:
			seen[string(d.Body)]++
		case <-time.After(5 * time.Second):
			quiet = true
		}
	}
}

// count tells how many messages were confirmed, and how many of all lost and double.
func (w *work) count(seen map[string]int) (confirmed, lost, double int) {
	for id := range w.confirmed {
		if seen[id] == 0 {
			lost++
		}
	}
	for _, n := range seen {
		if n > 1 {
			double++
		}
	}
	return len(w.confirmed), lost, double
}

// idlers are clients that do nothing; unaware counts those that heard nothing.
type idlers []*amqp.Connection

func startIdlers(t *testing.T, addr string) (all idlers) {
	for range 5 {
		conn, err := dial(addr, amqp.Config{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		all = append(all, conn)
	}
	return all
}

func (all idlers) unaware() (n int) {
	for _, conn := range all {
		if !conn.IsClosed() {
			n++
		}
	}
	return n
}

func TestCluster(t *testing.T) {
	v := rabbit.V40
	if asked := os.Getenv("CLUSTER"); asked == "3.10" {
		v = rabbit.V310
	}
	nodes, urls := startCluster(t, v)
	for _, c := range []struct{ name, settings string }{
		{"spread", "[upstream]\nheartbeat = \"5s\"\n"},
		{"spread of 6", "[upstream]\nheartbeat = \"5s\"\n[pool]\nspread = 6\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := startProxy(t, false, urls, c.settings)
			queue := "quorum " + c.name
			declareQuorum(t, p.addr, queue)
			idle := startIdlers(t, p.addr)
			w := startWork(t, p.addr, queue)
			time.Sleep(3 * time.Second)
			t.Logf("FIGURE before: connections %v, longest pauses %v", connectionsAt(nodes), w.look())
			for i, b := range nodes {
				if _, err := b.Eval("rabbit_maintenance:drain()."); err != nil {
					t.Fatalf("drain: %v", err)
				}
				drained := w.look()
				if err := b.Stop(); err != nil {
					t.Fatal(err)
				}
				if err := b.Restart(); err != nil {
					t.Fatal(err)
				}
				if _, err := b.Eval("rabbit_maintenance:revive()."); err != nil {
					t.Logf("revive: %v", err)
				}
				time.Sleep(8 * time.Second) // its replica catches up
				t.Logf("FIGURE node %d drained (pauses %v), stopped, started (pauses %v): connections %v", i+1, drained, w.look(), connectionsAt(nodes))
			}
			time.Sleep(time.Minute)
			after := connectionsAt(nodes)
			t.Logf("FIGURE a minute after the rolling restart: connections %v, idle clients that heard nothing %d of %d", after, idle.unaware(), len(idle))
			if idle.unaware() != len(idle) {
				t.Error("idle clients were told")
			}
			if c.name != "spread" && slices.Max(after) > slices.Min(after)*3/2+1 {
				t.Errorf("connections are %v", after)
			}
			w.look()
			victim := nodes[1]
			straight := newWork(t, nodes[0].Addr(), queue) // what the queue itself takes
			straight.wg.Go(func() { straight.publish("straight", "straight", 1<<30) })
			time.Sleep(time.Second)
			if err := victim.Kill(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(15 * time.Second)
			close(straight.stop)
			straight.wg.Wait()
			t.Logf("FIGURE a node killed: longest pauses %v (straight to another node %v, %v), connections %v", w.look(), straight.look(), straight.errs, connectionsAt(nodes))
			if err := victim.Restart(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
			confirmed, lost, double := w.end(p.addr)
			t.Logf("FIGURE %d sent, %d confirmed, %d of these lost, %d double; %d errors heard: %v; longest pauses %v; idle unaware %d of %d",
				w.sent.Load(), confirmed, lost, double, w.failed.Load(), w.errs, w.pause, idle.unaware(), len(idle))
			if lost > 0 {
				t.Errorf("%d confirmed messages are lost", lost)
			}
		})
	}
	t.Run("in order", func(t *testing.T) { inOrder(t, nodes, urls) })
	t.Run("dropped", func(t *testing.T) { dropped(t, nodes) })
}

func declareQuorum(t *testing.T, addr, name string) {
	t.Helper()
	conn, err := dial(addr, amqp.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ch.QueueDeclare(name, true, false, false, false, amqp.Table{"x-queue-type": "quorum"}); err != nil {
		t.Fatal(err)
	}
}

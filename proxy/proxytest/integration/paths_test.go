// A node whose packets are dropped, connections that are brought back to the first node, and messages spread over
// connections. CLUSTER=1, `make test-cluster`.

//go:build linux

package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// logins are made one after the other until stop is closed.
type logins struct {
	n, slow int // slow: a second or more
	worst   time.Duration
	errs    map[string]int
}

func startLogins(addr string, stop chan struct{}) (end func() logins) {
	got := logins{errs: map[string]int{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
			at := time.Now()
			conn, err := dial(addr, amqp.Config{})
			if err != nil {
				got.errs[err.Error()]++
				continue
			}
			took := time.Since(at)
			conn.Close()
			got.n++
			got.worst = max(got.worst, took)
			if took > time.Second {
				got.slow++
			}
		}
	})
	return func() logins {
		close(stop)
		wg.Wait()
		got.worst = got.worst.Round(time.Millisecond)
		return got
	}
}

// dropped is the first of three nodes whose packets are dropped for a minute: who has a channel there hears of it after two
// heartbeats; logins, each of which opens a connection, are held up once by connect_timeout.
func dropped(t *testing.T, nodes []*rabbit.Broker) {
	e := newElsewhere(t)
	first := e.forward(nodes[0].Addr())
	urls := "amqp://" + first + "," + nodes[1].URL() + "," + nodes[2].URL()
	settings := "[upstream]\nbalance = \"order\"\nheartbeat = \"5s\"\nconnect_timeout = \"5s\"\n"
	p := startProxy(t, false, urls, settings)
	q := startProxy(t, false, urls, settings+"[[listener]]\npool_mode = \"session\"\n")
	declareQuorum(t, p.addr, "dropped")
	idle := startIdlers(t, p.addr)
	w := startWork(t, p.addr, "dropped")
	time.Sleep(3 * time.Second)
	before := w.look()
	e.drop(true)
	end := startLogins(q.addr, make(chan struct{}))
	time.Sleep(time.Minute)
	got := end()
	t.Logf("FIGURE a minute of dropped packets: %d logins with a connection each, %d took a second or more, the worst %v, errors %v; "+
		"longest pauses of publishers before %v, then %v; %d errors heard by 12: %v",
		got.n, got.slow, got.worst, got.errs, before, w.look(), w.failed.Load(), w.errs)
	if len(got.errs) > 0 || got.slow > 2 || got.worst > 8*time.Second {
		t.Errorf("logins: %+v, want at most one held up by connect_timeout", got)
	}
	e.drop(false)
	at := time.Now()
	for p.metric(t, "amqproxysvc_target_up") < 3 && time.Since(at) < 90*time.Second {
		time.Sleep(100 * time.Millisecond)
	}
	back := time.Since(at).Round(time.Second)
	confirmed, lost, double := w.end(nodes[1].Addr())
	t.Logf("FIGURE back in rotation after %v; %d confirmed, %d of these lost, %d double; idle unaware %d of %d", back, confirmed, lost, double, idle.unaware(), len(idle))
	if lost > 0 || idle.unaware() != len(idle) {
		t.Errorf("%d confirmed messages are lost, %d of %d idle clients heard nothing", lost, idle.unaware(), len(idle))
	}
}

// inOrder is a first node that was away: connections go back to it when somebody asks for that, and nobody is cut.
func inOrder(t *testing.T, nodes []*rabbit.Broker, urls string) {
	socket := filepath.Join(t.TempDir(), "s")
	p := startProxy(t, false, urls, fmt.Sprintf("[upstream]\nbalance = \"order\"\n[pool]\nspread = 4\n[admin]\nsocket = %q\n", socket))
	declareQuorum(t, p.addr, "in order")
	idle := startIdlers(t, p.addr)
	w := startWork(t, p.addr, "in order")
	time.Sleep(3 * time.Second)
	first := connectionsAt(nodes)
	if err := nodes[0].Stop(); err != nil {
		t.Fatal(err)
	}
	if err := nodes[0].Restart(); err != nil {
		t.Fatal(err)
	}
	for at := time.Now(); p.metric(t, "amqproxysvc_target_up") < 3 && time.Since(at) < 90*time.Second; {
		time.Sleep(100 * time.Millisecond)
	}
	time.Sleep(time.Second)
	before, errors := connectionsAt(nodes), w.failed.Load()
	w.look()
	said := command(t, "reconnect", "--socket", socket, "--balance")
	time.Sleep(5 * time.Second)
	after := connectionsAt(nodes)
	t.Logf("FIGURE in order: connections %v, after the first node's restart %v, after reconnect --balance (%s) %v; longest pauses %v, %d errors meanwhile",
		first, before, said, after, w.look(), w.failed.Load()-errors)
	if w.failed.Load() != errors {
		t.Errorf("errors were heard: %v", w.errs)
	}
	if before[0] > 0 || after[0] == 0 {
		t.Errorf("connections at the first node are %d before, %d after", before[0], after[0])
	}
	confirmed, lost, double := w.end(p.addr)
	t.Logf("FIGURE in order: %d confirmed, %d of these lost, %d double; idle unaware %d of %d", confirmed, lost, double, idle.unaware(), len(idle))
	if lost > 0 || idle.unaware() != len(idle) {
		t.Errorf("%d confirmed messages are lost, %d of %d idle clients heard nothing", lost, idle.unaware(), len(idle))
	}
}

var received = regexp.MustCompile(`\{pid, *([^}]+)\}, *\{recv_oct, *(\d+)\}`)

// receivedBy are the octets that a broker has received, by connection.
func receivedBy(t *testing.T, b *rabbit.Broker) map[string]int {
	t.Helper()
	out, err := b.Eval("[rabbit_reader:info(P, [pid, recv_oct]) || P <- rabbit_networking:local_connections()].")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]int{}
	for _, m := range received.FindAllStringSubmatch(out, -1) {
		all[m[1]], _ = strconv.Atoi(m[2])
	}
	return all
}

// With spread = 10 each of ten connections carries its share of the messages, of clients that stay and of clients that come
// for one.
func TestSpreadOfMessages(t *testing.T) {
	if os.Getenv("CLUSTER") == "" {
		t.Skip("CLUSTER=1, or make test-cluster")
	}
	const octets = 4000
	b := rabbit.Get(t, rabbit.V310)
	p := startProxy(t, false, b.URL(), "[pool]\nspread = 10\n")
	send := func(ch *amqp.Channel) error {
		return ch.PublishWithContext(context.Background(), "", "nowhere", false, false, amqp.Publishing{Body: make([]byte, octets)})
	}
	var stay []*amqp.Channel
	for range 20 {
		conn, err := dial(p.addr, amqp.Config{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		ch, err := conn.Channel()
		if err == nil {
			err = send(ch)
		}
		if err != nil {
			t.Fatal(err)
		}
		stay = append(stay, ch)
	}
	count := func(name string, messages int, work func() error) {
		before := receivedBy(t, b)
		if err := work(); err != nil {
			t.Fatal(err)
		}
		var shares []int
		eventually(t, "the broker has received all", func() error {
			sum := 0
			shares = shares[:0]
			for pid, n := range receivedBy(t, b) {
				shares = append(shares, (n-before[pid]+octets/2)/octets)
				sum += n - before[pid]
			}
			if sum < messages*octets {
				return fmt.Errorf("%d octets of %d messages", sum, messages)
			}
			return nil
		})
		t.Logf("FIGURE spread = 10, RabbitMQ 3.10, %s: %d messages over %d connections: %v", name, messages, len(shares), shares)
		for _, n := range shares {
			if len(shares) != 10 || n < messages/10*8/10 || n > messages/10*12/10 {
				t.Errorf("%s: messages by connection are %v, want %d each, a fifth less or more", name, shares, messages/10)
				break
			}
		}
	}
	parallel := func(n int, f func(i int) error) error {
		errs := make(chan error, n)
		for i := range n {
			go func() { errs <- f(i) }()
		}
		var first error
		for range n {
			if err := <-errs; first == nil {
				first = err
			}
		}
		return first
	}
	count("20 clients that stay", 20*200, func() error {
		return parallel(len(stay), func(i int) error {
			for range 200 {
				if err := send(stay[i]); err != nil {
					return err
				}
			}
			return nil
		})
	})
	for _, ch := range stay {
		ch.Close()
	}
	count("8 clients at a time that come for one message", 8*100, func() error {
		return parallel(8, func(int) error {
			for range 100 {
				conn, err := dial(p.addr, amqp.Config{})
				if err != nil {
					return err
				}
				ch, err := conn.Channel()
				if err == nil {
					err = send(ch)
				}
				conn.Close()
				if err != nil {
					return err
				}
			}
			return nil
		})
	})
}

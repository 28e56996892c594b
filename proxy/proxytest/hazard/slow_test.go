//go:build linux

// The hazards of clients that are slow or silent: only they feel it.

package hazard

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// A consumer on a shared connection that stops reading is cut off at client_queue, alone,
// and what it had not acked goes back to the queue.
func TestSlowTenant(t *testing.T) {
	const size, count = 32 << 10, 600 // 19 MB, more than sockets and the queue hold
	small := func(c *proxy.Config) { c.ClientQueue = 256 << 10 }
	onBoth(t, small, func(t *testing.T, _ *rabbit.Broker, s *proxy.Server, addr string) {
		queue := unique("hz.slow")
		owner := connect(t, proxytest.ClientConfig{Addr: addr, Name: "owner"})
		_, err := owner.DeclareQueue(1, queue, durable)
		check(t, "declare", err)
		defer owner.DeleteQueue(1, queue) //nolint:errcheck // gone with the broker at the latest
		check(t, "confirm.select", owner.Confirm(1))
		payload := make([]byte, size)
		for i := range count {
			check(t, "publish", owner.Publish(1, "", queue, payload))
			if i%50 == 49 {
				check(t, "confirms", owner.WaitConfirms(1))
			}
		}
		// A neighbour on the readers' connection, so that it has more than one tenant.
		near := connect(t, proxytest.ClientConfig{Addr: addr, Name: "near"})
		q2 := unique("hz.near")
		_, err = owner.DeclareQueue(1, q2, durable)
		check(t, "declare", err)
		defer owner.DeleteQueue(1, q2) //nolint:errcheck // likewise
		check(t, "qos", near.Qos(1, 10))
		_, err = near.Consume(1, q2, "t", false)
		check(t, "consume", err)

		slow := connect(t, proxytest.ClientConfig{Addr: addr, Name: "slow"})
		if tcp, ok := slow.Conn().(*net.TCPConn); ok {
			check(t, "small buffer", tcp.SetReadBuffer(16<<10))
		}
		check(t, "qos", slow.Qos(1, 1000))
		_, err = slow.Consume(1, queue, "t", false)
		check(t, "consume", err)
		for i := range 50 { // the neighbour is served all the while
			check(t, "publish to the neighbour", owner.Publish(1, "", q2, fmt.Appendf(nil, "%d", i)))
			m, err := near.Delivery(1)
			check(t, "delivery to the neighbour", err)
			if string(m.Body) != fmt.Sprint(i) {
				t.Fatalf("the neighbour got %q, want %d", m.Body, i)
			}
			check(t, "ack", near.Ack(1, m.Tag, false))
			if s.Stats().SlowClientCloses > 0 && i > 20 {
				break
			}
			time.Sleep(20 * time.Millisecond) // the stall takes time to show
		}
		check(t, "confirms", owner.WaitConfirms(1))
		for deadline := time.Now().Add(20 * time.Second); ; {
			n, err := owner.QueueLength(1, queue)
			check(t, "length", err)
			if n == count && s.Stats().SlowClientCloses == 1 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d of %d messages are back, %d clients closed for being slow, want all and 1", n, count, s.Stats().SlowClientCloses)
			}
			time.Sleep(50 * time.Millisecond) // polling the broker
		}
		// What the slow one reads at last ends in a close that says why, or the end.
		for {
			f, err := slow.NextWithin(10 * time.Second)
			if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
				break
			}
			check(t, "reading after the end", err)
			if f.Type() == amqp.FrameMethod && f.Method() == amqp.ConnectionClose {
				if e := amqp.ParseClose(f); !strings.Contains(e.Text, "client_queue") {
					t.Errorf("the slow client is told %v, want a text that names client_queue", e)
				}
				break
			}
		}
	})
}

// A client that falls silent is closed after two intervals, one that sends heartbeats is
// not, and both are sent heartbeats, whatever else goes on.
func TestHeartbeats(t *testing.T) {
	onBoth(t, nil, func(t *testing.T, _ *rabbit.Broker, s *proxy.Server, addr string) {
		silent := connect(t, proxytest.ClientConfig{Addr: addr, Name: "silent", Heartbeat: 1})
		alive := connect(t, proxytest.ClientConfig{Addr: addr, Name: "alive", Heartbeat: 1})
		began := time.Now()
		ended := make(chan time.Duration, 1)
		beats := make(chan int, 1)
		go func() { // reads raw, so that heartbeats are counted
			n := 0
			buf := make([]byte, 1024)
			silent.Conn().SetReadDeadline(time.Now().Add(20 * time.Second)) //nolint:errcheck // shows in Read
			for {
				k, err := silent.Conn().Read(buf)
				n += strings.Count(string(buf[:k]), string(amqp.Heartbeat))
				if err != nil {
					beats <- n
					ended <- time.Since(began)
					return
				}
			}
		}()
		for range 10 {
			check(t, "heartbeat", alive.Send(amqp.Heartbeat))
			if _, err := alive.NextWithin(500 * time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("a client that sends heartbeats: %v, want nothing but heartbeats", err)
			}
		}
		select {
		case after := <-ended:
			if n := <-beats; n < 1 {
				t.Errorf("the silent client was sent %d heartbeats in %v", n, after)
			}
			if after < 1500*time.Millisecond || after > 5*time.Second {
				t.Errorf("the silent client was closed after %v, want about 2 to 3 s", after)
			}
		case <-time.After(15 * time.Second):
			t.Error("the silent client was never closed")
		}
		if n := s.Stats().HeartbeatTimeouts; n != 1 {
			t.Errorf("%d heartbeat timeouts are counted, want 1", n)
		}
		check(t, "close", alive.Close())
	})
}

package proxytest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

func TestPipeHoldsItsCapacityAndKeepsDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := Pipe(4)
		start := time.Now()
		a.SetWriteDeadline(start.Add(time.Minute))
		n, err := a.Write([]byte("123456"))
		if n != 4 || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Minute {
			t.Fatalf("got %d, %v after %v, want 4 octets and the deadline after a minute", n, err, time.Since(start))
		}
		a.SetWriteDeadline(time.Time{})
		done := make(chan error)
		go func() { _, err := a.Write([]byte("56")); a.CloseWrite(); done <- err }()
		got, err := io.ReadAll(b)
		if string(got) != "123456" || err != nil || <-done != nil {
			t.Fatalf("got %q, %v", got, err)
		}
		b.SetReadDeadline(time.Now().Add(time.Hour))
		b.SetReadDeadline(time.Now().Add(time.Second)) // the first timer counts for nothing
		b.Write([]byte("x"))
		if k, err := a.Read(make([]byte, 9)); k != 1 || err != nil {
			t.Fatalf("after CloseWrite got %d, %v", k, err)
		}
		b.Reset()
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("got %v, want a reset", err)
		}
		a.Close()
		b.Close()
		if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("write after close: %v", err)
		}
	})
}

func TestScriptInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := ListenMem("broker:5672", 1<<10)
		s := NewScript(t, ln)
		done := make(chan error, 1)
		var c *Client
		go func() {
			var err error
			if c, err = Dial(ClientConfig{Addr: "broker:5672", Dial: s.Dial, User: "u", Password: "p", VHost: "v", Name: "n"}); err == nil {
				err = c.OpenChannel(7)
			}
			done <- err
		}()
		p := s.AcceptOpen()
		if p.Login.User != "u" || p.Login.Password != "p" || p.Login.VHost != "v" || amqp.LookupString(p.Login.Properties, "connection_name") != "n" {
			t.Fatalf("got %+v", p.Login)
		}
		if ch := p.OpenChannel(); ch != 7 {
			t.Fatalf("got channel %d, want 7", ch)
		}
		must(t, <-done)

		c.Publish(7, "x", "k", []byte("hello"))
		m, h, body := p.ExpectContent(amqp.BasicPublish)
		if string(body) != "hello" || h.BodySize() != 5 || m.Channel() != 7 {
			t.Fatalf("got %s %s %q", Describe(m), Describe(h), body)
		}
		c.Send(Hex("01 0007 00000004 0055 000a ce # not whole: the bit of no-wait is missing\n 08 0000 00000000 ce"))
		p.ExpectBytes(Hex("01 0007 00000004 0055000a ce"))
		p.ExpectNothing(time.Hour)

		c.Conn().SetDeadline(time.Time{})
		p.Hold() // a read in progress may bring one more read's worth
		go func() { _, err := c.Conn().Write(PublishBytes(7, "", "", make([]byte, 1<<16), 0)); done <- err }()
		synctest.Wait()
		select {
		case err := <-done:
			t.Fatalf("the write was through (%v) although nobody read", err)
		default:
		}
		p.ReadSlowly(100, time.Second)
		start := time.Now()
		must(t, <-done)
		if d := time.Since(start); d < 600*time.Second || d > 700*time.Second {
			t.Fatalf("65,536 octets went through in %v, want about 650 s at 100 a second", d)
		}
		if n := Count(s.Records(), amqp.BasicPublish); n < 1 {
			t.Fatalf("got %d publishes on record", n)
		}
		p.Cut()
		if _, err := c.Next(); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("got %v, want a reset", err)
		}
		p.ExpectEnd()
		ln.Refuse(syscall.ECONNREFUSED)
		if _, err := Connect(ClientConfig{Dial: s.Dial}); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("got %v, want refused", err)
		}
	})
}

func TestBrokerInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := ListenMem("broker:5672", 0)
		b := StartBroker(t, BrokerConfig{Listener: ln})
		cfg := ClientConfig{Dial: ln.Dial, Heartbeat: 10, Timeout: time.Hour}
		NewCanary(t, ClientConfig{Dial: ln.Dial}).Sing()
		c := dialed(t, cfg)
		start := time.Now()
		if _, err := c.Next(); err == nil { // the client sends no heartbeat
			t.Fatal("a frame came")
		}
		if d := time.Since(start); d < 20*time.Second || d > 30*time.Second {
			t.Fatalf("a client silent from the start was ended after %v, want two intervals of 10 s", d)
		}
		if !b.WaitFor(time.Second, func(n BrokerCounts) bool { return n.Open == 2 }) {
			t.Fatalf("got %+v, want the canary's two connections open", b.Counts())
		}
	})
}

func TestGoldenBytes(t *testing.T) {
	got := PublishBytes(1, "x", "key", []byte("hello"), 4096)
	want := Hex(`01 0001 0000000d 003c 0028  # basic.publish on channel 1
		0000 01 78 03 6b6579 00 ce        # ticket, "x", "key", no bits
		02 0001 0000000e 003c 0000 0000000000000005 0000 ce
		03 0001 00000005 68656c6c6f ce`)
	if d := Diff(got, want); d != "" {
		t.Fatal(d)
	}
	if Diff(got, want[:len(want)-13]) == "" || Diff(got, bytes.Replace(want, []byte("key"), []byte("kex"), 1)) == "" {
		t.Fatal("Diff sees no difference")
	}
}

//go:build unix

package proxy

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// A client that is waited for holds no buffer, nor more than a small one while a frame of it is
// on its way; what it sends then is read as before.
func TestWaitingReaderHoldsNoBuffer(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	far, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	near, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	broker := &heldConn{}
	c, _ := halvesOn(t, DefaultConfig(), near, broker)
	if c.raw == nil {
		t.Fatal("a TCP connection cannot be asked without waiting")
	}
	var sent []byte
	one := proxytest.PublishBytes(1, "", "queue", []byte("a body of some octets"), 0)
	say := func(p []byte) {
		t.Helper()
		sent = append(sent, p...)
		if _, err := far.Write(p); err != nil {
			t.Fatal(err)
		}
		for got := 0; got < len(p); {
			n, err := c.receive()
			if err != nil || !c.chunk() {
				t.Fatal("the client has ended", err)
			}
			got += n
		}
	}
	rests := func(most int) {
		t.Helper()
		_ = c.raw.Control(func(fd uintptr) {
			if c.tryRead(fd) {
				t.Fatalf("there was something to read, or an error: %d, %v", c.took, c.readErr)
			}
		})
		if n := cap(c.rd.Buffered()); n > most {
			t.Errorf("a waiting reader holds %d octets, want at most %d", n, most)
		}
		if c.buf != nil {
			t.Error("a waiting reader still points into the buffer that it gave back: it cannot be collected")
		}
	}
	say(one)
	rests(0)
	say(one[:len(one)-5])
	rests(512)
	say(append(one[len(one)-5:len(one):len(one)], one...))
	rests(512)
	if n := len(broker.p); n <= 3*len(one) || n > 3*len(one)+64 { // channel.open is before them
		t.Errorf("%d octets reached the broker, want those of 3 publishes of %d", n, len(one))
	}
	_ = near.SetReadDeadline(time.Unix(1, 0))
	if _, err := c.receive(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("past its deadline a read gives %v", err)
	}
	_ = near.SetReadDeadline(time.Time{})
	say(one)
	_ = far.(*net.TCPConn).CloseWrite()
	if _, err := c.receive(); err != io.EOF {
		t.Errorf("a connection that has ended gives %v, want EOF", err)
	}
	_ = near.Close()
	if _, err := c.receive(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed connection gives %v", err)
	}
	c.releaseChannels()
}

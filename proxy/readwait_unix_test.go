//go:build unix

package proxy

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// halfway is a connection that keeps what is written, where it is told to.
type halfway struct {
	net.Conn
	keeps bool
	kept  []byte
}

func (h *halfway) Write(p []byte) (int, error) {
	if h.keeps {
		h.kept = append(h.kept, p...)
		return len(p), nil
	}
	return h.Conn.Write(p)
}

// A client that is waited for holds no buffer, nor more than a small one while a frame of it is
// on its way; what it sends then is read as before.
func TestWaitingReaderHoldsNoBuffer(t *testing.T) {
	t.Run("plain", func(t *testing.T) { waitingReader(t, 0) })
	t.Run("TLS 1.2", func(t *testing.T) { waitingReader(t, tls.VersionTLS12) })
	t.Run("TLS 1.3", func(t *testing.T) { waitingReader(t, tls.VersionTLS13) })
}

func waitingReader(t *testing.T, version uint16) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dialed, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer dialed.Close()
	near, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	broker := &heldConn{}
	c, _ := halvesOn(t, DefaultConfig(), near, broker)
	raw, far, wire := c.raw, dialed, &halfway{Conn: dialed}
	if version != 0 {
		openOK := make([]byte, 16) // of the channel, in plain
		if _, err := io.ReadFull(dialed, openOK); err != nil {
			t.Fatal(err)
		}
		certs := newCerts(t)
		c.encrypt(&serverTLS{config: certs.Server()})
		cfg := certs.Client()
		cfg.MaxVersion = version
		secure := tls.Client(wire, cfg)
		shaken := make(chan error, 1)
		go func() { shaken <- secure.Handshake() }()
		if !c.startTLS() || <-shaken != nil {
			t.Fatal("the TLS handshake came to nothing")
		}
		c.loggedIn()
		raw, far = c.under.raw, secure
	}
	if raw == nil {
		t.Fatal("a TCP connection cannot be asked without waiting")
	}
	var sent []byte
	one := proxytest.PublishBytes(1, "", "queue", []byte("a body of some octets"), 0)
	hear := func(all int) {
		t.Helper()
		for got := 0; got < all; {
			n, err := c.receive()
			if err != nil || !c.chunk() {
				t.Fatal("the client has ended", err)
			}
			got += n
		}
	}
	say := func(p []byte) {
		t.Helper()
		sent = append(sent, p...)
		if _, err := far.Write(p); err != nil {
			t.Fatal(err)
		}
		hear(len(p))
	}
	rests := func(most int) {
		t.Helper()
		_ = raw.Control(func(fd uintptr) {
			if c.tryRead(fd) {
				t.Fatalf("there was something to read, or an error: %d, %v", c.took, c.readErr)
			}
		})
		if c.desk == nil {
			return
		}
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
	publishes := 3
	if version != 0 {
		// A record in two parts: the first is kept by TLS, and no buffer is held for the rest of it.
		c.rested.Store(true)
		wire.keeps = true
		if _, err := far.Write(one); err != nil {
			t.Fatal(err)
		}
		for _, part := range [][]byte{wire.kept[:20], wire.kept[20:]} {
			rests(512)
			if _, err := dialed.Write(part); err != nil {
				t.Fatal(err)
			}
			_ = near.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			if len(part) > 20 {
				_ = near.SetReadDeadline(time.Time{})
				hear(len(one))
			} else if n, err := c.receive(); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("of a part of a record %d octets are read, %v", n, err)
			}
		}
		wire.keeps = false
		c.rested.Store(false)
		publishes++
	}
	if n := len(broker.p); n <= publishes*len(one) || n > publishes*len(one)+64 { // channel.open is before them
		t.Errorf("%d octets reached the broker, want those of %d publishes of %d", n, publishes, len(one))
	}
	atRest := func(when string, desk bool) {
		t.Helper()
		rests(512)
		if has := c.desk != nil; has != desk {
			t.Errorf("a client at rest that %s: it has a desk: %v, want %v", when, has, desk)
		}
	}
	c.app = &app{}
	c.rested.Store(true)
	atRest("has published, of which nobody was told", true)
	c.tellApp()
	atRest("has nothing under way", false)
	atRest("was woken for nothing", false)
	say(one[:len(one)-5])
	atRest("is amid a publish", true)
	say(one[len(one)-5:])
	c.tellApp()
	atRest("has published", false)
	c.tellApp() // as at its end, which may come now
	c.sendAgain()
	atRest("was woken and had nothing to send again", false)
	c.takeDesk()
	c.lately = lateChannel{id: 2, content: true}
	atRest("has content under way for a channel that it has closed", true)
	c.lately = lateChannel{id: 2, at: time.Now().Add(time.Hour)} // whenever this is looked at
	atRest("has closed a channel a moment ago", true)
	c.lately.at = time.Now().Add(-closeGrace - time.Second)
	atRest("has closed a channel", false)
	c.takeDesk()
	c.rested.Store(false)
	atRest("does not rest", true)
	publishes++
	if n := len(broker.p); n <= publishes*len(one) || n > publishes*len(one)+64 {
		t.Errorf("%d octets reached the broker, want those of %d publishes of %d", n, publishes, len(one))
	}

	_ = near.SetReadDeadline(time.Unix(1, 0))
	if _, err := c.receive(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("past its deadline a read gives %v", err)
	}
	_ = near.SetReadDeadline(time.Time{})
	say(one)
	c.tellApp()
	c.rested.Store(true)
	atRest("is about to leave", false)
	_ = far.(interface{ CloseWrite() error }).CloseWrite()
	if _, err := c.receive(); err != io.EOF {
		t.Errorf("a connection that has ended gives %v, want EOF", err)
	}
	_ = near.Close()
	if _, err := c.receive(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed connection gives %v", err)
	}
	c.leaveDesk()
	c.tellApp() // at its end it may have none
	c.releaseChannels()
}

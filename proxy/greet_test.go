package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// notGreeted fails the test unless the client's socket was closed without a word.
func (r *rig) notGreeted(err error) {
	r.t.Helper()
	var said *amqp.Error
	if err == nil || errors.As(err, &said) || !strings.Contains(err.Error(), "waiting for connection.start") {
		r.t.Fatalf("got %v, want the end before connection.start", err)
	}
}

// Where nothing is known to be up a client is greeted when the broker has greeted, and its login
// goes over that connection.
func TestGreetedAfterTheBroker(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		var clients []*proxytest.Client
		for range 3 {
			c := r.connect(proxytest.ClientConfig{})
			r.must(c.Send(amqp.ProtocolHeader[:]))
			clients = append(clients, c)
		}
		p := r.sc.Accept()
		time.Sleep(2 * time.Second)
		for _, c := range clients {
			if f, err := c.NextWithin(time.Millisecond); err == nil {
				t.Fatalf("the client heard %s before the broker had greeted", proxytest.Describe(f))
			}
		}
		done := make(chan struct{})
		go func() { p.Open(); close(done) }()
		for i, c := range clients {
			_, err := c.Expect(amqp.ConnectionStart)
			r.must(err)
			if i > 0 {
				r.must(c.Hangup())
			}
		}
		c := clients[0]
		r.must(c.Send(amqp.AppendStartOk(nil, proxytest.ClientProperties(""), "PLAIN", []byte("\x00guest\x00guest"), "en_US")))
		f, err := c.Expect(amqp.ConnectionTune)
		r.must(err)
		c.Offered, _ = amqp.ParseTune(f)
		r.must(c.TuneOk())
		r.must(c.Open())
		<-done
		if n := r.sc.Accepted(); n != 1 {
			t.Errorf("%d connections to the broker, want the one that greeted", n)
		}
		_ = c.Hangup()
	})
}

// While the broker is away clients are closed before connection.start, each counted and logged
// with the reason; when it is back they get in.
func TestNotGreetedWithoutABroker(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		c := r.client(proxytest.ClientConfig{})
		r.to.Refuse(errors.New("connection refused"))
		r.b.Cut()
		synctest.Wait()
		for range 3 {
			_, err := r.login(proxytest.ClientConfig{})
			r.notGreeted(err)
		}
		if n := r.s.Stats().LoginsFailed; n != 3 {
			t.Errorf("%d logins are counted as failed, want 3", n)
		}
		if n := strings.Count(r.log(), "client refused: the broker cannot be reached"); n != 3 {
			t.Errorf("the log tells of %d clients, want 3", n)
		}
		r.to.Refuse(nil)
		time.Sleep(2 * time.Second)
		d, err := r.login(proxytest.ClientConfig{})
		r.must(err)
		_ = d.Close()
		_ = c.Hangup()
	})
}

// A client that hangs up while the broker is being asked leaves nothing behind.
func TestHangsUpBeforeTheGreeting(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		c := r.connect(proxytest.ClientConfig{})
		r.must(c.Send(amqp.ProtocolHeader[:]))
		p := r.sc.Accept()
		c.Abort()
		synctest.Wait()
		if n := r.s.Stats().Clients; n != 0 {
			t.Errorf("%d clients are left while the broker is silent, want 0", n)
		}
		p.Close()
	})
}

// A proxy whose broker is away is well: the watchdog must not restart it for that.
func TestSelfCheckWithoutABroker(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Listeners[0].Address = "127.0.0.1:0"
	cfg.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("nobody is there") }
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(nil); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, err := net.Dial("tcp", s.Addrs()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = conn.Write(amqp.ProtocolHeader[:])
	if b, _ := io.ReadAll(conn); len(b) != 0 {
		t.Errorf("a client heard %q without a broker", b)
	}
	if err := s.SelfCheck(ctx); err != nil {
		t.Errorf("the self-check without a broker: %v", err)
	}
}

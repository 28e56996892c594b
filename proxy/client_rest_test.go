//go:build unix

package proxy

import (
	"bytes"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// What may befall a client at rest, over real sockets: only these can be asked without waiting, so only there its reader
// has no desk.
func TestWhatBefallsAClientAtRest(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	broker := proxytest.StartBroker(t, proxytest.BrokerConfig{Listener: ln})
	ca := newCerts(t)
	cfg := DefaultConfig()
	cfg.Upstream = Upstream{Host: "127.0.0.1", Port: ln.Addr().(*net.TCPAddr).Port}
	cfg.Listeners = []Listener{
		{Address: "127.0.0.1:0", Mode: PoolAuto},
		{Address: "127.0.0.1:0", Mode: PoolAuto, TLS: serverOf(t, ca, "localhost")},
	}
	cfg.Logger = slog.New(slog.DiscardHandler)
	s, err := New(cfg)
	if err == nil {
		err = s.Start(nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()

	one := proxytest.PublishBytes(1, "", "queue", []byte("a body of some octets"), 0)
	large := proxytest.PublishBytes(1, "", "queue", bytes.Repeat([]byte("x"), 100<<10), 0)
	begun := 0 // the method and the content header: whole frames, so that nothing is in the read buffer
	for range 2 {
		n, _, _ := amqp.Split(large[begun:], 0)
		begun += n
	}
	for name, befalls := range map[string]func(*atRest){
		"it publishes": func(a *atRest) {
			a.published(func() { a.must(a.c.Send(one)) })
			a.must(a.c.Close())
		},
		"it publishes in parts": func(a *atRest) {
			a.published(func() {
				for at := 0; at < 200; at += 50 {
					a.must(a.c.Send(large[at : at+50]))
					a.wake(a.x.wakeToSendAgain)
				}
				a.must(a.c.Send(large[200:]))
			})
			a.must(a.c.Close())
		},
		"it sends heartbeats": func(a *atRest) {
			for range 3 {
				n := s.n.framesClients.Load()
				a.must(a.c.Send(amqp.Heartbeat))
				a.until(func() bool { return s.n.framesClients.Load() == n+1 })
			}
			a.must(a.c.Close())
		},
		"it is woken for nothing": func(a *atRest) {
			for range 5 {
				a.wake(a.x.wakeToSendAgain)
			}
			a.must(a.c.Close())
		},
		"its publish is cut for others": func(a *atRest) {
			before := s.n.fromClients.Load()
			a.must(a.c.Send(large[:begun]))
			a.until(func() bool { return s.n.fromClients.Load() == before+uint64(begun) && a.x.reading.Load() })
			a.rest()
			a.x.hoards()
			a.closed("message_buffer")
			a.must(a.c.Hangup())
		},
		"it is closed": func(a *atRest) {
			s.Kick(a.x.n, "")
			a.closed("administrator")
			a.must(a.c.SendMethod(0, amqp.ConnectionCloseOk))
		},
		"it is closed, and woken": func(a *atRest) {
			s.Kick(a.x.n, "")
			a.closed("administrator")
			a.x.wakeToSendAgain()
			a.must(a.c.Hangup())
		},
		"it hangs up": func(a *atRest) { a.must(a.c.Hangup()) },
		"it resets":   func(a *atRest) { a.c.Abort() },
		"the broker has an alarm": func(a *atRest) {
			broker.Block("disk")
			_, err := a.c.Await(0, amqp.ConnectionBlocked)
			a.must(err)
			broker.Unblock()
			_, err = a.c.Await(0, amqp.ConnectionUnblocked)
			a.must(err)
			a.must(a.c.Close())
		},
		"its upstream is lost": func(a *atRest) {
			broker.Cut()
			a.closed("connection to the broker was lost")
			a.must(a.c.SendMethod(0, amqp.ConnectionCloseOk))
		},
		"its upstreams are renewed": func(a *atRest) {
			s.Reconnect(0, "")
			a.must(a.c.Publish(1, "", "queue", []byte("y")))
			a.must(a.c.WaitConfirms(1))
			a.must(a.c.Close())
		},
		"it is looked at": func(a *atRest) {
			trace, err := s.Trace(a.Context(), TraceWanted{Client: a.x.n})
			a.must(err)
			a.must(a.c.Send(amqp.Heartbeat))
			a.must(a.c.Send(one))
			for n := 0; n < 4; { // the heartbeat and three of the publish
				frames, _, err := trace.Next(a.Context())
				a.must(err)
				n += len(frames)
			}
			trace.Close()
			a.must(a.c.Close())
		},
		"it has just closed a channel": func(a *atRest) {
			a.must(a.c.CloseChannel(1))
			a.until(a.x.reading.Load)
			a.rest()
			a.must(a.c.Send(one))
			a.must(a.c.OpenChannel(1))
			a.must(a.c.Close())
		},
	} {
		for i, addr := range s.Addrs() {
			t.Run([]string{"plain/", "TLS/"}[i]+name, func(t *testing.T) {
				a := &atRest{T: t, s: s, broker: broker}
				cc := proxytest.ClientConfig{Addr: addr.String(), Timeout: time.Minute}
				if i == 1 {
					cc.TLS = ca.Client()
				}
				a.c, err = proxytest.Dial(cc)
				a.must(err)
				defer func() { _ = a.c.Hangup() }()
				a.must(a.c.OpenChannel(1))
				_, err = a.c.DeclareQueue(1, "queue", 0)
				a.must(err)
				a.must(a.c.Confirm(1))
				a.must(a.c.Publish(1, "", "queue", []byte("x")))
				a.must(a.c.WaitConfirms(1))
				a.x = s.clients.appendTo(nil, nil)[0]
				a.until(a.x.reading.Load)
				a.rest()
				befalls(a)
				a.until(func() bool { return s.clients.len() == 0 })
			})
		}
	}
}

// atRest is a client at rest.
type atRest struct {
	*testing.T
	s      *Server
	broker *proxytest.Broker
	c      *proxytest.Client
	x      *client // the proxy's side of it
}

func (a *atRest) must(err error) {
	a.Helper()
	if err != nil {
		a.Fatal(err)
	}
}

func (a *atRest) until(cond func() bool) {
	a.Helper()
	for began := time.Now(); !cond(); time.Sleep(time.Millisecond) {
		if time.Since(began) > time.Minute {
			a.Fatal("in vain")
		}
	}
}

// rest has the client rest, if the janitor has not. Its reader reads.
func (a *atRest) rest() {
	a.Helper()
	a.x.rest()
	a.wake(a.x.wakeToSendAgain)
}

// wake interrupts the client's reader, which reads again then.
func (a *atRest) wake(by func()) {
	a.Helper()
	n := a.s.rests.Load()
	by()
	a.until(func() bool { return a.s.rests.Load() > n && a.x.reading.Load() })
}

func (a *atRest) published(by func()) {
	a.Helper()
	n := a.broker.Counts().Published
	by()
	a.until(func() bool { return a.broker.Counts().Published > n })
}

// closed waits for connection.close.
func (a *atRest) closed(why string) {
	a.Helper()
	f, err := a.c.Await(0, amqp.ConnectionClose)
	a.must(err)
	if !strings.Contains(string(f), why) {
		a.Errorf("it hears %q, want %q", f, why)
	}
}

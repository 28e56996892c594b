// How a client's connection ends: as RabbitMQ's would, by a reset where the client broke the
// rules or gave no sign of life, so that its next write fails, and else by an end of file.

package proxy

import (
	"errors"
	"io"
	"syscall"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

func TestEndsOfClients(t *testing.T) {
	deaf := proxytest.ClientConfig{Properties: amqp.AppendTableField(nil, "capabilities", nil), Password: "wrong"}
	for _, x := range []struct {
		name  string
		reset bool
		make  func(r *rig) *proxytest.Client
		wait  time.Duration
	}{
		{"no heartbeat", true, func(r *rig) *proxytest.Client {
			return r.client(proxytest.ClientConfig{Heartbeat: 1})
		}, 3 * time.Second},
		{"no protocol header", true, func(r *rig) *proxytest.Client {
			return r.connect(proxytest.ClientConfig{})
		}, 11 * time.Second},
		{"half a handshake", true, func(r *rig) *proxytest.Client {
			c := r.connect(proxytest.ClientConfig{})
			r.must(c.Send(amqp.ProtocolHeader[:]))
			_, err := c.Await(0, amqp.ConnectionStart)
			r.must(err)
			return c
		}, 11 * time.Second},
		{"no answer to connection.close", true, func(r *rig) *proxytest.Client {
			c := r.client(proxytest.ClientConfig{})
			r.must(c.SendMethod(0, amqp.ConnectionOpenOk, ""))
			_, err := c.Await(0, amqp.ConnectionClose)
			var e *amqp.Error
			if err != nil && !errors.As(err, &e) {
				r.t.Fatal(err)
			}
			return c
		}, 2 * time.Second},
		{"refused without a word", true, func(r *rig) *proxytest.Client {
			c := r.connect(deaf)
			if err := c.Handshake(); !errors.Is(err, syscall.ECONNRESET) {
				r.t.Errorf("the refused client hears %v", err)
			}
			return c
		}, 2 * time.Second},
		{"its own connection.close, and the socket left open", false, func(r *rig) *proxytest.Client {
			c := r.client(proxytest.ClientConfig{})
			r.must(c.SendMethod(0, amqp.ConnectionClose, 200, "", 0, 0))
			_, err := c.Await(0, amqp.ConnectionCloseOk)
			r.must(err)
			return c
		}, 2 * time.Second},
		{"connection.close amid the handshake", false, func(r *rig) *proxytest.Client {
			c := r.connect(proxytest.ClientConfig{})
			r.must(c.Send(amqp.ProtocolHeader[:]))
			_, err := c.Await(0, amqp.ConnectionStart)
			r.must(err)
			r.must(c.SendMethod(0, amqp.ConnectionClose, 200, "", 0, 0))
			_, err = c.Await(0, amqp.ConnectionCloseOk)
			r.must(err)
			return c
		}, 2 * time.Second},
		{"an answer to connection.close", false, func(r *rig) *proxytest.Client {
			c := r.client(proxytest.ClientConfig{})
			r.must(c.SendMethod(0, amqp.ConnectionOpenOk, ""))
			_, err := c.Await(0, amqp.ConnectionClose)
			var e *amqp.Error
			if err != nil && !errors.As(err, &e) {
				r.t.Fatal(err)
			}
			r.must(c.SendMethod(0, amqp.ConnectionCloseOk))
			return c
		}, 2 * time.Second},
	} {
		t.Run(x.name, func(t *testing.T) {
			withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
				c := x.make(r)
				time.Sleep(x.wait)
				_, err := c.Conn().Read(make([]byte, 1))
				if want := map[bool]error{true: syscall.ECONNRESET, false: io.EOF}[x.reset]; !errors.Is(err, want) {
					t.Errorf("the client reads %v, want %v", err, want)
				}
				_ = c.Hangup()
			})
		})
	}
}

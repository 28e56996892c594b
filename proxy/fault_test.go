package proxy

import (
	"errors"
	"strings"
	"testing"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// What is wrong before tune-ok ends as RabbitMQ ends it, by a reset without a word: a library
// whose threads publish while another one recovers takes connection.close there for a refused
// login, and recovers no more. Behind tune-ok it is told, likewise.
func TestFaultAmidTheHandshake(t *testing.T) {
	faults := map[string][]byte{
		"a publish":           proxytest.Method(1, amqp.BasicPublish, 0, "", "q", 0),
		"a content header":    proxytest.Header(1, 0),
		"another method":      proxytest.Method(0, amqp.ConnectionUpdateSecret, "x", ""),
		"an unknown method":   amqp.AppendFrame(nil, amqp.FrameMethod, 0, []byte{0, 10, 0, 99}),
		"a frame of no type":  amqp.AppendFrame(nil, 9, 0, []byte{1}),
		"a frame without end": {1, 0, 0, 0, 0, 0, 4, 0, 10, 0, 40, 'X'},
		"a frame too large":   {1, 0, 0, 0, 16, 0, 0},
	}
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		for name, fault := range faults {
			for _, state := range []string{"start-ok", "tune-ok", "open"} {
				c := r.connect(proxytest.ClientConfig{})
				if state == "start-ok" {
					r.must(c.Send(amqp.ProtocolHeader[:]))
					_, err := c.Expect(amqp.ConnectionStart)
					r.must(err)
				} else {
					r.must(c.Start())
				}
				if state == "open" {
					r.must(c.TuneOk())
				}
				r.must(c.Send(fault))
				f, err := c.Next()
				var said *amqp.Error
				told := err == nil && f.Type() == amqp.FrameMethod && f.Method() == amqp.ConnectionClose
				if !told && (err == nil || errors.As(err, &said)) {
					t.Fatalf("%s where %s was due: heard %v, %v", name, state, f, err)
				}
				if told != (state == "open") {
					t.Errorf("%s where %s was due: connection.close %v (%v)", name, state, told, err)
				}
				if told {
					want := map[string]uint16{"a publish": 505, "a content header": 505, "another method": 504, "an unknown method": 503}[name]
					if e := amqp.ParseClose(f); want == 0 && e.Code != 501 || want != 0 && e.Code != want {
						t.Errorf("%s where %s was due: %v, want %d", name, state, e, want)
					}
				} else if !strings.Contains(err.Error(), "reset") && !strings.Contains(err.Error(), "EOF") {
					t.Errorf("%s where %s was due: %v", name, state, err)
				}
				_ = c.Hangup()
			}
		}
	})
}

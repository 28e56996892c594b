// The properties that the proxy shows: the broker's own to clients, the client's own to
// the broker, each with one field more that names the proxy.

package proxy

import (
	"bytes"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
)

// proxyField is the field that names this proxy and its version, either way.
const proxyField = "proxied_by"

// brokerOrDefault is what the newest handshake with the broker told, or before the first
// one what RabbitMQ would have.
func (s *Server) brokerOrDefault() *broker.Info {
	if info := s.door().Info(); info != nil {
		return info
	}
	return s.noBroker
}

func defaultBroker() *broker.Info {
	var caps []byte
	for _, name := range []string{"publisher_confirms", "exchange_exchange_bindings", "basic.nack",
		"consumer_cancel_notify", "connection.blocked", "consumer_priorities",
		"authentication_failure_close", "per_consumer_qos", "direct_reply_to"} {
		caps = amqp.AppendBoolField(caps, name, true)
	}
	p := amqp.AppendTableField(nil, "capabilities", caps)
	p = amqp.AppendStringField(p, "product", "RabbitMQ")
	p = amqp.AppendStringField(p, "version", "3.10.8")
	p = amqp.AppendStringField(p, "platform", "Erlang/OTP")
	return &broker.Info{Properties: p, Mechanisms: mechanisms, Product: "RabbitMQ", Version: "3.10.8", Confirms: true}
}

// greeting is connection.start for clients, made when first needed.
type greeting struct {
	of         *broker.Info
	mechanisms string
	frame      []byte
}

// startFrame is connection.start for clients: the broker's, and the proxy's field.
func (s *Server) startFrame(info *broker.Info, mechanisms string) []byte {
	if g := s.greeting.Load(); g != nil && g.mechanisms == mechanisms && (g.of == info || bytes.Equal(g.of.Properties, info.Properties)) {
		return g.frame
	}
	g := &greeting{info, mechanisms, amqp.AppendStart(nil, s.withProxy(info.Properties), mechanisms, "en_US")}
	s.greeting.Store(g)
	return g.frame
}

// withProxy is a copy of properties with the field that names this proxy.
func (s *Server) withProxy(properties []byte) []byte {
	p := append(make([]byte, 0, len(properties)+64), properties...)
	return amqp.AppendStringField(p, proxyField, "amqproxysvc "+s.cfg().Version)
}

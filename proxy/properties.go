// The properties that the proxy shows: the broker's own to clients, the client's own to
// the broker, each with one field more that names the proxy.

package proxy

import "github.com/amqproxysvc/amqproxysvc/proxy/amqp"

// proxyField is the field that names this proxy and its version, either way.
const proxyField = "proxied_by"

// brokerOrDefault is what the newest handshake with the broker told, or before the first
// one what RabbitMQ would have.
func (s *Server) brokerOrDefault() *brokerInfo {
	if info := s.broker.Load(); info != nil {
		return info
	}
	return defaultBroker
}

var defaultBroker = func() *brokerInfo {
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
	return &brokerInfo{properties: p, mechanisms: mechanisms, confirms: true}
}()

// startProperties is the inside of the server-properties for clients.
func (s *Server) startProperties(info *brokerInfo) []byte {
	p := append(make([]byte, 0, len(info.properties)+64), info.properties...)
	return amqp.AppendStringField(p, proxyField, "amqproxysvc "+s.cfg().Version)
}

// clientProperties is the inside of a session's client-properties: the client's, and the proxy.
func (s *Server) clientProperties(own []byte) []byte {
	p := append(make([]byte, 0, len(own)+64), own...)
	return amqp.AppendStringField(p, proxyField, "amqproxysvc "+s.cfg().Version)
}

// The PROXY protocol towards a broker that asks for it (RabbitMQ's proxy_protocol): who the
// connection is made for, before TLS and AMQP.

package broker

import (
	"context"
	"net"

	"github.com/pires/go-proxyproto"
)

type clientKey struct{}

// For has a dial tell the broker the address of the client that the connection is made for.
func For(ctx context.Context, client *net.TCPAddr) context.Context {
	return context.WithValue(ctx, clientKey{}, client)
}

func clientOf(ctx context.Context) *net.TCPAddr {
	client, _ := ctx.Value(clientKey{}).(*net.TCPAddr)
	return client
}

// tell sends the header. A connection that many share has the proxy's own address, never none
// (LOCAL): RabbitMQ up to 3.10 fails on that.
func tell(conn net.Conn, version byte, client *net.TCPAddr) error {
	to, _ := conn.RemoteAddr().(*net.TCPAddr)
	from, _ := conn.LocalAddr().(*net.TCPAddr)
	if client != nil {
		from = client
	}
	h := &proxyproto.Header{Version: version, Command: proxyproto.LOCAL, TransportProtocol: proxyproto.UNSPEC}
	if from != nil && to != nil {
		h.Command, h.TransportProtocol = proxyproto.PROXY, proxyproto.TCPv6
		if from.IP.To4() != nil && to.IP.To4() != nil {
			h.TransportProtocol = proxyproto.TCPv4
		}
		// A client of IPv6 at a broker of IPv4 is told with the latter's address in the former's form.
		h.SourceAddr, h.DestinationAddr = &net.TCPAddr{IP: from.IP, Port: from.Port}, &net.TCPAddr{IP: to.IP, Port: to.Port}
	}
	b, err := h.Format()
	if err == nil {
		_, err = conn.Write(b)
	}
	return err
}

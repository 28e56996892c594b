// The broker of the demo: a stand-in behind TLS and a long path, or a real one.

package main

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/relay"
)

// oneWay is half of the simulated round trip.
const oneWay = 25 * time.Millisecond

// standInPassword is that of the stand-in's user guest.
const standInPassword = "guest"

type target struct {
	upstream proxy.Upstream
	client   proxytest.ClientConfig // how to go straight to the broker
	broker   *proxytest.Broker      // nil for a real one
	relay    *relay.Relay
	watching atomic.Bool
	messages chan int // sizes of what the user's clients published to the stand-in
}

// watchMessages has the stand-in tell of messages from now on.
func (t *target) watchMessages() { t.watching.Store(true) }

// see looks at what the stand-in receives: a content header is a message's beginning.
func (t *target) see(_ *proxytest.BrokerConn, f amqp.Frame) bool {
	if t.watching.Load() && f.Type() == amqp.FrameHeader {
		select {
		case t.messages <- int(f.BodySize()):
		default: // a crowd of them: some lines are enough
		}
	}
	return false
}

func (d *demo) target() (*target, error) {
	if d.url != "" {
		return realTarget(d.url)
	}
	certs, err := proxytest.NewCerts()
	if err != nil {
		return nil, err
	}
	t := &target{messages: make(chan int, 16)}
	if t.broker, err = proxytest.NewBroker(proxytest.BrokerConfig{TLS: certs.Server(), Intercept: t.see}); err != nil {
		return nil, err
	}
	if t.relay, err = relay.New(t.broker.Addr(), oneWay); err != nil {
		t.close()
		return nil, err
	}
	host, port, _ := net.SplitHostPort(t.relay.Addr())
	t.upstream = proxy.Upstream{Host: host, TLS: certs.Client()}
	t.upstream.Port, _ = strconv.Atoi(port)
	t.client = proxytest.ClientConfig{Addr: t.relay.Addr(), TLS: certs.Client(), User: "guest", VHost: "/"}
	d.tell("A stand-in broker behind TLS, %v away (round trip); no real one is used.", 2*oneWay)
	return t, nil
}

// realTarget reads the URL. Its secret is never shown.
func realTarget(text string) (*target, error) {
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || (u.Scheme != "amqp" && u.Scheme != "amqps") {
		return nil, fmt.Errorf("-broker is no AMQP URL: %w", errScheme)
	}
	port := 5672
	t := &target{client: proxytest.ClientConfig{User: "guest", Password: "guest", VHost: "/"}}
	if u.Scheme == "amqps" {
		port = 5671
		t.client.TLS = &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12}
	}
	if u.Port() != "" {
		if port, err = strconv.Atoi(u.Port()); err != nil || port < 1 || port > 65535 {
			return nil, fmt.Errorf("-broker has port %q, allowed is 1 to 65535", u.Port())
		}
	}
	if u.User != nil {
		t.client.User = u.User.Username()
		t.client.Password, _ = u.User.Password()
	}
	if len(u.Path) > 1 {
		t.client.VHost = u.Path[1:]
	}
	t.upstream = proxy.Upstream{Host: u.Hostname(), Port: port, TLS: t.client.TLS}
	t.client.Addr = t.upstream.Address()
	return t, nil
}

// opened is how many connections the broker has seen so far; a real one is not asked,
// the proxy's own count stands in.
func (t *target) opened(srv *proxy.Server) int {
	if t.broker != nil {
		return t.broker.Counts().Opened
	}
	return int(srv.Stats().UpstreamsTotal)
}

func (t *target) close() {
	if t.relay != nil {
		_ = t.relay.Close()
	}
	if t.broker != nil {
		t.broker.Close()
	}
}

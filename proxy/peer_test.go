package proxy

import (
	"net"
	"testing"
)

// fixedAddr is a connection from somewhere.
type fixedAddr struct {
	net.Conn
	from net.Addr
}

func (c fixedAddr) RemoteAddr() net.Addr { return c.from }

// text is an address that is none of TCP.
type text string

func (text) Network() string  { return "text" }
func (a text) String() string { return string(a) }

// What counts as one client's address is the same everywhere: an IPv4 address however it is
// written, an IPv6 site, or the balancer's word for it.
func TestPeersAddress(t *testing.T) {
	tcp := func(s string) net.Addr {
		a, err := net.ResolveTCPAddr("tcp", s)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	mapped := &net.TCPAddr{IP: net.ParseIP("::ffff:192.0.2.1"), Port: 5}
	for _, c := range []struct {
		sock                net.Addr
		told                net.Addr
		full, host, network string
		source              string
	}{
		{tcp("192.0.2.1:5"), nil, "192.0.2.1:5", "192.0.2.1", "192.0.2.1/32", "192.0.2.1"},
		{mapped, nil, "192.0.2.1:5", "192.0.2.1", "192.0.2.1/32", "192.0.2.1"},
		{tcp("[2001:db8:1:2:3::4]:5"), nil, "[2001:db8:1:2:3::4]:5", "2001:db8:1:2:3::4", "2001:db8:1:2::/64", "2001:db8:1:2::/64"},
		{&net.TCPAddr{IP: net.ParseIP("fe80::1"), Port: 5, Zone: "eth0"}, nil, "[fe80::1%eth0]:5", "fe80::1%eth0", "fe80::/64", "fe80::/64"},
		{tcp("10.0.0.1:5"), tcp("192.0.2.1:6"), "192.0.2.1:6", "192.0.2.1", "192.0.2.1/32", "192.0.2.1"},
		{text("client:40001"), nil, "client:40001", "client", "", "client:40001"},
		{text("pipe"), nil, "pipe", "pipe", "", "pipe"},
	} {
		var p peer
		p.accepted(fixedAddr{from: c.sock}, nil)
		if c.told != nil {
			p.told.Store(c.told.(*net.TCPAddr))
		}
		network := ""
		if n, ok := p.network(); ok {
			network = n.String()
		}
		if p.address().String() != c.full || p.host() != c.host || network != c.network || hostOf(p.address()) != c.source {
			t.Errorf("%v told %v: %s, host %s, network %s, source %s; want %s, %s, %s, %s", c.sock, c.told,
				p.address(), p.host(), network, hostOf(p.address()), c.full, c.host, c.network, c.source)
		}
	}
}

// goodbye is an encrypted connection whose peer takes no goodbye: Close waits for it.
type goodbye struct {
	net.Conn
	said chan struct{}
}

func (c goodbye) Close() error {
	<-c.said
	return c.Conn.Close()
}

// Who closes a client may be the janitor, who tends all others: it waits for no goodbye.
func TestClosingWaitsForNoGoodbye(t *testing.T) {
	s, err := New(DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	c := func() (*client, goodbye, net.Conn) {
		near, far := net.Pipe()
		c := &client{s: s, env: &s.env, gone: make(chan struct{})}
		c.accepted(near, nil)
		over := goodbye{near, make(chan struct{})}
		c.conn = over
		return c, over, far
	}
	gentle, over, far := c()
	gentle.closeSocket() // returns
	<-gentle.gone
	close(over.said)
	if _, err := far.Read(make([]byte, 1)); err == nil {
		t.Error("closed, and there is something to read")
	}
	hard, _, far := c()
	hard.cutOff() // and the socket is closed though nothing was said
	<-hard.gone
	if _, err := far.Read(make([]byte, 1)); err == nil {
		t.Error("cut off, and there is something to read")
	}
}

// A reload names the listeners that it cannot change, and only those.
func TestChangedListeners(t *testing.T) {
	one, two := Listener{Address: "127.0.0.1:1", Mode: PoolAuto}, Listener{Address: "127.0.0.1:2", Mode: PoolSession, MatchProperties: true}
	other := two
	other.MatchProperties = false
	for _, c := range []struct {
		old, next []Listener
		want      string
	}{
		{[]Listener{one, two}, []Listener{one, two}, ""},
		{[]Listener{one, two}, []Listener{one, other}, "listener 2"},
		{[]Listener{one, two}, []Listener{one}, "listeners"},
	} {
		got := ""
		for _, n := range changedListeners(c.old, c.next) {
			got += n
		}
		if got != c.want {
			t.Errorf("%v to %v: %q, want %q", c.old, c.next, got, c.want)
		}
	}
}

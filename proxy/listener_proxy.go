// The PROXY protocol on a listener: a balancer that is trusted tells the address of each client
// before anything else (haproxy.org, proxy-protocol.txt; versions 1 and 2).

package proxy

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/pires/go-proxyproto"
)

// ProxyProtocol says who may tell the addresses of clients. It is not changed once it was given.
type ProxyProtocol struct {
	// From are the networks whose connections begin with a header, all of them.
	From []netip.Prefix
	// Direct are the networks whose connections begin without one: probes, clients of this
	// machine. A socket from neither is closed without a word.
	Direct []netip.Prefix
}

func (p *ProxyProtocol) validate(address string) error {
	if p != nil && len(p.From) == 0 {
		return fmt.Errorf("listener %s: the PROXY protocol without a network that may speak it", address)
	}
	return nil
}

// speaks reports whether connections from there begin with a header, or with none.
func (p *ProxyProtocol) speaks(from net.Addr) (header, direct bool) {
	ip, ok := ipOf(from)
	if !ok {
		return false, false
	}
	has := func(networks []netip.Prefix) bool {
		return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(ip.WithZone("")) })
	}
	if has(p.From) {
		return true, false
	}
	return false, has(p.Direct)
}

// What comes of headers.
const (
	proxyOK = iota
	proxyLocal
	proxyDirect
	proxyUntrusted
	proxyMalformed
	proxyResults
)

// ProxyResults name the entries of ListenerStats.ProxyHeaders.
var ProxyResults = [proxyResults]string{"ok", "local", "direct", "untrusted", "malformed"}

type proxyCounts [proxyResults]atomic.Uint64

// hearProxy takes the client's address from a balancer's header. False: the client has ended.
func (c *client) hearProxy(p *ProxyProtocol) bool {
	header, direct := p.speaks(c.sock.RemoteAddr())
	result := proxyDirect
	switch {
	case direct:
	case !header && c.s.checking.Load() == 0:
		c.lst.heard[proxyUntrusted].Add(1)
		c.log(slog.LevelInfo, "client refused: no PROXY header from a trusted address", "setting", "listener.proxy_from")
		return false
	default:
		h, err := readProxyHeader(c.sock)
		if errors.Is(err, io.EOF) {
			return false // a probe, that only wanted to see whether somebody is there
		}
		if !header && (err != nil || !c.s.isOwn(c.sock.RemoteAddr())) {
			c.lst.heard[proxyUntrusted].Add(1)
			c.log(slog.LevelInfo, "client refused: no PROXY header from a trusted address", "setting", "listener.proxy_from")
			return false
		}
		if err != nil {
			if !errors.Is(err, net.ErrClosed) { // by the proxy, which has said why
				c.lst.heard[proxyMalformed].Add(1)
				c.log(slog.LevelInfo, "client refused: its PROXY header cannot be read", "reason", err)
			}
			return false
		}
		result = proxyLocal // the balancer's own question, or a client whose address it cannot tell
		if from, _, ok := h.TCPAddrs(); ok && h.Command == proxyproto.PROXY {
			result = proxyOK
			c.told.Store(from)
		}
	}
	c.lst.heard[result].Add(1)
	if !c.mayConnect() {
		return false
	}
	from, known := c.network()
	if !known {
		return true
	}
	if !c.s.limits.place(from, c.s.cfg().MaxHandshakes) {
		c.s.turnedAway(c.address(), "max_handshakes of one address")
		return false
	}
	c.placed = true
	return true
}

// proxyHeaderMost bounds a header of version 2, in octets: what it tells besides addresses is not used.
const proxyHeaderMost = 4 << 10

var (
	proxyV1 = []byte("PROXY ")
	proxyV2 = []byte("\r\n\r\n\x00\r\nQUIT\n")
)

// readProxyHeader reads a header and nothing beyond it, however few octets come at a time: what
// follows is another protocol's. The janitor bounds its time.
func readProxyHeader(r io.Reader) (*proxyproto.Header, error) {
	b := make([]byte, 15, 128) // the shortest header: PROXY UNKNOWN\r\n
	if _, err := io.ReadFull(r, b[:8]); err != nil {
		return nil, fmt.Errorf("it ended: %w", err)
	}
	switch {
	case bytes.HasPrefix(b, proxyV1), bytes.HasPrefix(b, proxyV2[:8]):
	case bytes.HasPrefix(b, []byte("AMQP")):
		return nil, errors.New("it is AMQP")
	case b[0] == 0x16 && b[1] == 3:
		return nil, errors.New("it is a TLS hello")
	default:
		return nil, errors.New("it is none")
	}
	if err := whole(r, b[8:]); err != nil {
		return nil, fmt.Errorf("it ended: %w", err)
	}
	switch {
	case bytes.HasPrefix(b, proxyV2):
		b = b[:16]
		if err := whole(r, b[15:]); err != nil {
			return nil, fmt.Errorf("it ended: %w", err)
		}
		n := int(binary.BigEndian.Uint16(b[14:]))
		if n > proxyHeaderMost {
			return nil, fmt.Errorf("it is longer than %d octets", proxyHeaderMost)
		}
		b = append(b, make([]byte, n)...)
		if err := whole(r, b[16:]); err != nil {
			return nil, fmt.Errorf("it ended: %w", err)
		}
	case bytes.HasPrefix(b, proxyV1):
		const most = 107
		for b[len(b)-1] != '\n' {
			if len(b) == most {
				return nil, fmt.Errorf("it is longer than %d octets", most)
			}
			b = append(b, 0)
			if err := whole(r, b[len(b)-1:]); err != nil {
				return nil, fmt.Errorf("it ended: %w", err)
			}
		}
	default:
		return nil, errors.New("it is none")
	}
	return proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(b), len(b)))
}

// whole reads all of p, of what has begun.
func whole(r io.Reader, p []byte) error {
	_, err := io.ReadFull(r, p)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// ownHeader is what the server's question to itself begins with: it speaks for nobody.
func ownHeader() []byte {
	b, _ := (&proxyproto.Header{Version: 2, Command: proxyproto.LOCAL, TransportProtocol: proxyproto.UNSPEC}).Format()
	return b
}

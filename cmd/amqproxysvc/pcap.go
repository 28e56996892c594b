// Captures for Wireshark: frames as if they had been seen on the network. The format (a header of 24
// octets, 16 before each packet, pcap-savefile(5)) and the headers of IP and TCP are so little that a library
// would be more to read than this, and several times the program's size in sources to look after.

package main

import (
	"bufio"
	"encoding/binary"
	"net/netip"

	"github.com/amqproxysvc/amqproxysvc/proxy/admin"
)

const (
	pcapMagic   = 0xa1b2c3d4 // microseconds
	pcapSnapLen = 256 << 10
	linkTypeRaw = 101   // packets begin with IP
	amqpPort    = 5672  // by which Wireshark knows what it is
	segmentMost = 32768 // of a frame in one packet
)

// pcapWriter writes what a client and the proxy send each other.
type pcapWriter struct {
	w    *bufio.Writer
	ends [2]netip.AddrPort // the client's, the proxy's
	seq  [2]uint32
	buf  []byte
}

func newPcap(w *bufio.Writer, client, proxy string) *pcapWriter {
	p := &pcapWriter{w: w, seq: [2]uint32{1, 1}}
	for i, at := range []string{client, proxy} {
		a, err := netip.ParseAddrPort(at)
		if err != nil { // no TCP
			a = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 40000)
		}
		p.ends[i] = netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
	}
	p.ends[1] = netip.AddrPortFrom(p.ends[1].Addr(), amqpPort)
	if p.ends[0].Addr().Is4() != p.ends[1].Addr().Is4() { // a balancer may speak to us over the other IP
		for i, a := range p.ends {
			p.ends[i] = netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
		}
	}
	return p
}

func (p *pcapWriter) begin() error {
	b := binary.LittleEndian.AppendUint32(nil, pcapMagic)
	b = binary.LittleEndian.AppendUint16(b, 2) // version 2.4
	b = binary.LittleEndian.AppendUint16(b, 4)
	b = append(b, make([]byte, 8)...) // of UTC, and of no accuracy to speak of
	b = binary.LittleEndian.AppendUint32(b, pcapSnapLen)
	b = binary.LittleEndian.AppendUint32(b, linkTypeRaw)
	_, err := p.w.Write(b)
	return err
}

func (p *pcapWriter) flush() error {
	if p == nil {
		return nil
	}
	return p.w.Flush()
}

// frame writes one frame; what is not known of its payload is zero.
func (p *pcapWriter) frame(l *admin.TraceLine) error {
	f := []byte{l.Type, byte(l.Channel >> 8), byte(l.Channel)}
	f = binary.BigEndian.AppendUint32(f, uint32(l.Size))
	f = append(f, l.Payload...)
	f = append(f, make([]byte, max(0, l.Size-len(l.Payload)))...)
	f = append(f, 0xCE)
	from := 0
	if l.From == "proxy" {
		from = 1
	}
	for len(f) > 0 {
		n := min(len(f), segmentMost)
		if err := p.packet(int64(l.Time*1e6), from, f[:n]); err != nil {
			return err
		}
		f = f[n:]
	}
	return nil
}

// packet writes a TCP segment from one of the ends.
func (p *pcapWriter) packet(micros int64, from int, payload []byte) error {
	src, dst := p.ends[from], p.ends[1-from]
	b := p.buf[:0]
	length := 20 + len(payload)
	var pseudo uint32 // sum of what a TCP checksum covers of IP
	add := func(x []byte) { pseudo += sum16(x) }
	if src.Addr().Is4() {
		b = append(b, 0x45, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(20+length))
		b = append(b, 0, 0, 0x40, 0, 64, 6, 0, 0) // not to be cut, 64 hops, TCP
	} else {
		b = append(b, 0x60, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(length))
		b = append(b, 6, 64)
	}
	for _, end := range []netip.AddrPort{src, dst} {
		a := end.Addr().AsSlice()
		b = append(b, a...)
		add(a)
	}
	if src.Addr().Is4() {
		binary.BigEndian.PutUint16(b[10:], checksum(sum16(b)))
	}
	at := len(b)
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint32(b, p.seq[from])
	b = binary.BigEndian.AppendUint32(b, p.seq[1-from])
	b = append(b, 5<<4, 0x18, 0xff, 0xff, 0, 0, 0, 0) // 20 octets of header; PSH, ACK; window
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[at+16:], checksum(pseudo+6+uint32(length)+sum16(b[at:])))
	p.seq[from] += uint32(len(payload))
	p.buf = b

	var head [16]byte
	binary.LittleEndian.PutUint32(head[0:], uint32(micros/1e6))
	binary.LittleEndian.PutUint32(head[4:], uint32(micros%1e6))
	binary.LittleEndian.PutUint32(head[8:], uint32(len(b)))
	binary.LittleEndian.PutUint32(head[12:], uint32(len(b)))
	if _, err := p.w.Write(head[:]); err != nil {
		return err
	}
	_, err := p.w.Write(b)
	return err
}

// sum16 adds up 16 bits at a time, for checksum (RFC 1071).
func sum16(b []byte) (sum uint32) {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

func checksum(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

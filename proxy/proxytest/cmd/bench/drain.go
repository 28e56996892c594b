// The fast stand-in: drops what is published, confirms when asked, floods who
// consumes. It parses as little as it can, so that it is not what is measured.

package main

import (
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// blobSize is what bulk writes are made of, and what a busy reader reads at a time.
const blobSize = 64 << 10

// drainStats is what the drain tells when it is asked.
type drainStats struct {
	Addr, TLSAddr string
	CA            string // PEM
	Conns, Open   int64
	Messages      int64
	Bytes         int64
}

type drain struct {
	conns, open, messages, bytes atomic.Int64
}

func (d *drain) accept(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go d.serve(conn)
	}
}

// drainConn is one connection of the drain.
type drainConn struct {
	d        *drain
	conn     net.Conn
	channels []*drainChannel
	frameMax uint32
	beat     time.Duration // between two heartbeats; 0: none are sent

	mu sync.Mutex // around writes: the flood and the answers
}

type drainChannel struct {
	confirm bool
	seq     uint64 // publishes that are whole
	acked   uint64
	ended   *atomic.Bool // set when its flood is to end; nil: there is none
	left    uint64       // octets of the current body that are to come
}

func (d *drain) serve(conn net.Conn) {
	d.conns.Add(1)
	d.open.Add(1)
	c := &drainConn{d: d, conn: conn}
	defer func() {
		d.open.Add(-1)
		conn.Close()
	}()
	rd := amqp.NewReader(512, 0)
	if err := c.handshake(rd); err != nil {
		return
	}
	if c.beat > 0 {
		ended := make(chan struct{})
		defer close(ended)
		go c.beats(ended)
	}
	c.loop(rd.Buffered())
}

// beats sends heartbeats until the connection ends: a proxy asks a broker that is silent whether it is there.
func (c *drainConn) beats(ended <-chan struct{}) {
	t := time.NewTicker(c.beat)
	defer t.Stop()
	for {
		select {
		case <-ended:
			return
		case <-t.C:
			c.write(amqp.Heartbeat)
		}
	}
}

func (c *drainConn) handshake(rd *amqp.Reader) error {
	for len(rd.Buffered()) < len(amqp.ProtocolHeader) {
		if _, err := rd.Fill(c.conn); err != nil {
			return err
		}
	}
	rd.Skip(len(amqp.ProtocolHeader))
	expect := func(answer []byte) (amqp.Frame, error) {
		if _, err := c.conn.Write(answer); err != nil {
			return nil, err
		}
		for {
			if f, err := rd.Next(); f != nil || err != nil {
				return f, err
			}
			if _, err := rd.Fill(c.conn); err != nil {
				return nil, err
			}
		}
	}
	if _, err := expect(amqp.AppendStart(nil, proxytest.RabbitMQProperties("3.10.8"), "PLAIN AMQPLAIN", "en_US")); err != nil {
		return err
	}
	f, err := expect(amqp.AppendTune(nil, amqp.ConnectionTune, proxytest.DefaultTune))
	if err != nil {
		return err
	}
	tune, _ := amqp.ParseTune(f)
	c.frameMax, c.beat = tune.FrameMax, time.Duration(tune.Heartbeat)*time.Second/2
	if _, err := expect(nil); err != nil {
		return err
	}
	_, err = c.conn.Write(proxytest.Method(0, amqp.ConnectionOpenOk, ""))
	return err
}

// loop reads until the end. Bodies are never waited for: only the first octets of a
// frame are looked at, the rest is skipped as it comes.
func (c *drainConn) loop(first []byte) {
	buf := make([]byte, 512, blobSize)
	n := copy(buf, first)
	skip := 0
	var out []byte
	for {
		var ok bool
		b := buf[:n]
		out = out[:0]
		out, n, ok = c.scan(b, &skip, out)
		if len(out) > 0 && !c.write(out) || !ok {
			return
		}
		if n > 0 {
			copy(buf, b[len(b)-n:])
		}
		if n == len(buf) {
			return // a method of 64 KiB: nobody here sends one
		}
		k, err := c.conn.Read(buf[n:])
		if err != nil {
			return
		}
		c.d.bytes.Add(int64(k))
		if n += k; n == len(buf) && len(buf) < cap(buf) {
			buf = buf[:cap(buf)]
		}
	}
}

// scan takes the frames in b, appends the answers to out, and tells how many octets at
// the end are still needed.
func (c *drainConn) scan(b []byte, skip *int, out []byte) (answers []byte, rest int, ok bool) {
	var messages int64
	var ch *drainChannel
	last := -1
	confirm := false
	for {
		if *skip > 0 {
			k := min(*skip, len(b))
			*skip -= k
			b = b[k:]
		}
		if len(b) < amqp.HeaderLen {
			break
		}
		id := int(binary.BigEndian.Uint16(b[1:]))
		size := int(binary.BigEndian.Uint32(b[3:]))
		if b[0] != amqp.FrameBody && len(b) < size+amqp.FrameOverhead {
			break
		}
		if id != last && id != 0 {
			ch, last = c.channel(id), id
		}
		switch b[0] {
		case amqp.FrameMethod:
			f := amqp.Frame(b[:size+amqp.FrameOverhead])
			if f.Method() != amqp.BasicPublish {
				if out, ok = c.answer(f, ch, out); !ok {
					return out, 0, false
				}
			}
		case amqp.FrameHeader:
			ch.left = binary.BigEndian.Uint64(b[amqp.HeaderLen+4:])
			if ch.left == 0 {
				messages++
				ch.seq++
				confirm = confirm || ch.confirm
			}
		case amqp.FrameBody:
			ch.left -= uint64(size)
			if ch.left == 0 {
				messages++
				ch.seq++
				confirm = confirm || ch.confirm
			}
		}
		*skip = size + amqp.FrameOverhead
	}
	c.d.messages.Add(messages)
	if confirm {
		for id, ch := range c.channels {
			if ch != nil && ch.confirm && ch.acked < ch.seq {
				ch.acked = ch.seq
				out = appendAck(out, uint16(id), ch.seq)
			}
		}
	}
	return out, len(b), true
}

func appendAck(dst []byte, id uint16, seq uint64) []byte {
	start := len(dst)
	dst = amqp.BeginMethod(dst, id, amqp.BasicAck)
	dst = binary.BigEndian.AppendUint64(dst, seq)
	dst = append(dst, 1)
	return amqp.EndMethod(dst, start)
}

func (c *drainConn) channel(id int) *drainChannel {
	for len(c.channels) <= id {
		c.channels = append(c.channels, nil)
	}
	if c.channels[id] == nil {
		c.channels[id] = &drainChannel{}
	}
	return c.channels[id]
}

// answer says what a method that is no publish wants to hear.
func (c *drainConn) answer(f amqp.Frame, ch *drainChannel, out []byte) ([]byte, bool) {
	id := f.Channel()
	reply := func(m amqp.Method, args ...any) { out = append(out, proxytest.Method(id, m, args...)...) }
	switch f.Method() {
	case amqp.ConnectionClose:
		reply(amqp.ConnectionCloseOk)
		c.write(out)
		return nil, false
	case amqp.ConnectionCloseOk:
		return nil, false
	case amqp.ChannelOpen:
		*ch = drainChannel{}
		reply(amqp.ChannelOpenOk, "")
	case amqp.ChannelClose:
		ch.endFlood()
		reply(amqp.ChannelCloseOk)
	case amqp.BasicQos:
		reply(amqp.BasicQosOk)
	case amqp.ConfirmSelect:
		if !ch.confirm { // what was published before has no tag, on a channel that was another client's before
			ch.confirm, ch.seq, ch.acked = true, 0, 0
		}
		reply(amqp.ConfirmSelectOk)
	case amqp.QueueDeclare:
		a := amqp.ReadArgs(f)
		a.Short()
		reply(amqp.QueueDeclareOk, a.Str(), 0, 0)
	case amqp.ExchangeDeclare:
		reply(amqp.ExchangeDeclareOk)
	case amqp.BasicGet:
		reply(amqp.BasicGetEmpty, "")
	case amqp.BasicCancel:
		ch.endFlood()
		a := amqp.ReadArgs(f)
		reply(amqp.BasicCancelOk, a.Str())
	case amqp.BasicConsume:
		a := amqp.ReadArgs(f)
		a.Short()
		queue, tag := string(a.Str()), string(a.Str())
		reply(amqp.BasicConsumeOk, tag)
		if size, err := strconv.Atoi(strings.TrimPrefix(queue, "flood-")); err == nil {
			ch.ended = new(atomic.Bool)
			go c.flood(id, tag, size, ch.ended)
		}
	}
	return out, true
}

func (ch *drainChannel) endFlood() {
	if ch.ended != nil {
		ch.ended.Store(true)
	}
}

// flood sends messages of one size until the channel or the connection ends. A delivery's
// tag counts for nobody here.
func (c *drainConn) flood(id uint16, tag string, size int, ended *atomic.Bool) {
	one := proxytest.Method(id, amqp.BasicDeliver, tag, 1, 0, "", "bench")
	one = append(one, proxytest.Header(id, uint64(size))...)
	one = amqp.AppendBody(one, id, make([]byte, size), c.frameMax)
	blob := repeat(one, max(1, blobSize/len(one)))
	for !ended.Load() && c.write(blob) {
	}
}

func repeat(one []byte, n int) []byte {
	b := make([]byte, 0, n*len(one))
	for range n {
		b = append(b, one...)
	}
	return b
}

// write sends while no other goroutine does.
func (c *drainConn) write(b []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.conn.Write(b)
	return err == nil
}

// drainRole is the process: it tells its addresses and then its counters for each line read.
func drainRole(in io.Reader, out io.Writer) error {
	certs, err := proxytest.NewCerts()
	if err != nil {
		return err
	}
	addr := os.Getenv("BENCH_DRAIN")
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	tlsLn, err := tls.Listen("tcp", "127.0.0.1:0", certs.Server())
	if err != nil {
		return err
	}
	d := &drain{}
	go d.accept(ln)
	go d.accept(tlsLn)
	return answerLines(in, out, func(struct{}) (drainStats, error) {
		return drainStats{Addr: ln.Addr().String(), TLSAddr: tlsLn.Addr().String(), CA: string(certs.CAPEM), Conns: d.conns.Load(),
			Open: d.open.Load(), Messages: d.messages.Load(), Bytes: d.bytes.Load()}, nil
	})
}

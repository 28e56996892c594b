// A client made of raw frames: it sends exactly the bytes of a case and records what
// comes back, in the words of the protocol.

package hazard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// cat joins encoded arguments.
func cat(parts ...[]byte) []byte {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func octet(v ...byte) []byte      { return v }
func short(v uint16) []byte       { return binary.BigEndian.AppendUint16(nil, v) }
func long(v uint32) []byte        { return binary.BigEndian.AppendUint32(nil, v) }
func longlong(v uint64) []byte    { return binary.BigEndian.AppendUint64(nil, v) }
func str(s string) []byte         { return amqp.AppendShortStr(nil, s) }
func longstr(s string) []byte     { return amqp.AppendLongStr(nil, s) }
func table(f ...[]byte) []byte    { return amqp.AppendLongStr(nil, cat(f...)) }
func field(name, v string) []byte { return append(str(name), v...) }
func strField(name, v string) []byte {
	return amqp.AppendStringField(nil, name, v)
}
func intField(name string, v int32) []byte {
	return append(append(str(name), 'I'), long(uint32(v))...)
}

// method is a method frame.
func method(ch uint16, m amqp.Method, args ...[]byte) []byte {
	return amqp.AppendMethod(nil, ch, m, cat(args...)...)
}

// frame is any frame.
func frame(typ byte, ch uint16, payload ...[]byte) []byte {
	return amqp.AppendFrame(nil, typ, ch, cat(payload...))
}

// header is a content header of class basic without properties.
func header(ch uint16, size uint64) []byte {
	return frame(amqp.FrameHeader, ch, short(60), short(0), longlong(size), short(0))
}

// props is a content header of class basic with the given flags and encoded properties.
func props(ch uint16, size uint64, flags uint16, p ...[]byte) []byte {
	return frame(amqp.FrameHeader, ch, short(60), short(0), longlong(size), short(flags), cat(p...))
}

func body(ch uint16, b string) []byte { return frame(amqp.FrameBody, ch, []byte(b)) }

func chanOpen(ch uint16) []byte { return method(ch, amqp.ChannelOpen, str("")) }

func publish(ch uint16, exchange, key string, bits byte) []byte {
	return method(ch, amqp.BasicPublish, short(0), str(exchange), str(key), octet(bits))
}

// message is a whole publish.
func message(ch uint16, exchange, key, b string) []byte {
	return cat(publish(ch, exchange, key, 0), header(ch, uint64(len(b))), body(ch, b))
}

func declare(ch uint16, queue string, bits byte, args ...[]byte) []byte {
	return method(ch, amqp.QueueDeclare, short(0), str(queue), octet(bits), table(args...))
}

func consume(ch uint16, queue, tag string, bits byte, args ...[]byte) []byte {
	return method(ch, amqp.BasicConsume, short(0), str(queue), str(tag), octet(bits), table(args...))
}

// conn is a connection made by hand.
type conn struct {
	c    net.Conn
	rd   *amqp.Reader
	tune amqp.Tune
}

// dial goes as far as open-ok. The name is the connection_name: by it the proxy remembers
// who did harm, so each case has its own and the canary another.
func dial(addr, user, password, vhost, name string) (*conn, error) {
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return nil, err
	}
	k := &conn{c: c, rd: amqp.NewReader(4096, 1<<20)}
	if err := k.handshake(user, password, vhost, name); err != nil {
		c.Close()
		return nil, err
	}
	return k, nil
}

func (k *conn) handshake(user, password, vhost, name string) error {
	k.send(amqp.ProtocolHeader[:])
	if _, err := k.expect(amqp.ConnectionStart, 10*time.Second); err != nil {
		return err
	}
	caps := amqp.AppendTableField(nil, "capabilities", cat(
		amqp.AppendBoolField(nil, "authentication_failure_close", true),
		amqp.AppendBoolField(nil, "basic.nack", true),
		amqp.AppendBoolField(nil, "publisher_confirms", true),
		amqp.AppendBoolField(nil, "consumer_cancel_notify", true),
		amqp.AppendBoolField(nil, "connection.blocked", true)))
	if name != "" {
		caps = amqp.AppendStringField(caps, "connection_name", name)
	}
	k.send(amqp.AppendStartOk(nil, caps, "PLAIN", []byte("\x00"+user+"\x00"+password), "en_US"))
	f, err := k.expect(amqp.ConnectionTune, 10*time.Second)
	if err != nil {
		return err
	}
	k.tune, _ = amqp.ParseTune(f)
	k.send(amqp.AppendTune(nil, amqp.ConnectionTuneOk, k.tune))
	k.send(amqp.AppendOpen(nil, vhost))
	_, err = k.expect(amqp.ConnectionOpenOk, 10*time.Second)
	return err
}

func (k *conn) send(b []byte) error {
	k.c.SetWriteDeadline(time.Now().Add(10 * time.Second))
	_, err := k.c.Write(b)
	return err
}

var errQuiet = errors.New("nothing came")

// next is the next frame that is not a heartbeat; errQuiet when none comes in time.
func (k *conn) next(wait time.Duration) (amqp.Frame, error) {
	end := time.Now().Add(wait)
	for {
		f, err := k.rd.Next()
		if err != nil {
			return nil, err
		}
		if f != nil {
			if f.Type() == amqp.FrameHeartbeat {
				continue
			}
			return f, nil
		}
		k.c.SetReadDeadline(end)
		if _, err := k.rd.Fill(k.c); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil, errQuiet
			}
			return nil, err
		}
	}
}

// expect waits for one method and refuses any other frame.
func (k *conn) expect(m amqp.Method, wait time.Duration) (amqp.Frame, error) {
	f, err := k.next(wait)
	if err != nil {
		return nil, fmt.Errorf("waiting for %s: %w", m, err)
	}
	if f.Type() != amqp.FrameMethod || f.Method() != m {
		return f, fmt.Errorf("waiting for %s: got %s", m, words(f))
	}
	return f, nil
}

// words says what a frame is, closes with all that they carry.
func words(f amqp.Frame) string {
	switch f.Type() {
	case amqp.FrameMethod:
		m := f.Method()
		switch m {
		case amqp.ConnectionClose, amqp.ChannelClose:
			e := amqp.ParseClose(f)
			by := "0.0"
			if e.Method != 0 {
				by = fmt.Sprintf("%d.%d", e.Method.Class(), e.Method.ID())
			}
			return fmt.Sprintf("%s(ch %d) %d by %s %q", m, f.Channel(), e.Code, by, e.Text)
		}
		return fmt.Sprintf("%s(ch %d)", m, f.Channel())
	case amqp.FrameHeader:
		return fmt.Sprintf("header(ch %d, %d)", f.Channel(), f.BodySize())
	case amqp.FrameBody:
		return fmt.Sprintf("body(ch %d, %d)", f.Channel(), len(f.Payload()))
	}
	return fmt.Sprintf("frame type %d (ch %d)", f.Type(), f.Channel())
}

// collect records frames until the connection ends, or until at least n have come and then
// none for the given time; it waits longer for the first n. A close of the connection or
// of a channel is answered, as a client must.
func (k *conn) collect(n int, quiet time.Duration) (all []string) {
	for {
		wait := quiet
		if len(all) < n {
			wait = 10 * time.Second
		}
		f, err := k.next(wait)
		switch {
		case errors.Is(err, errQuiet):
			return all
		case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
			return append(all, "cut")
		case err != nil:
			return append(all, "error: "+err.Error())
		}
		all = append(all, words(f))
		if f.Type() == amqp.FrameMethod {
			switch f.Method() {
			case amqp.ConnectionClose:
				k.send(method(0, amqp.ConnectionCloseOk))
				return all
			case amqp.ChannelClose:
				k.send(method(f.Channel(), amqp.ChannelCloseOk))
			}
		}
	}
}

// do sends one frame and, when it is a method that is answered, waits for the answer.
func (k *conn) do(b []byte) error {
	f := amqp.Frame(b)
	if err := k.send(b); err != nil {
		return err
	}
	if f.Type() != amqp.FrameMethod {
		return nil
	}
	s := f.Method().Spec()
	if !s.Sync {
		return nil
	}
	if bits, err := s.CheckArgs(f.Args()); err != nil {
		return err
	} else if s.NoWait != 0 && bits&s.NoWait != 0 {
		return nil
	}
	_, err := k.expect(s.ID+1, 10*time.Second)
	return err
}

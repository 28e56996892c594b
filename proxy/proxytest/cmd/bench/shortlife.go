// One short life of a client: connect, channel, publish, disconnect, with every byte
// made beforehand; and the counting of bodies.

package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// step is something to send and the method that answers it; 0: nothing does.
type step struct {
	send []byte
	want amqp.Method
}

// dialer leaves out the keep-alive that a connection this short has no use for.
var dialer = net.Dialer{KeepAlive: -1}

type shortLife struct {
	steps []step
	rd    amqp.Reader
	buf   []byte
}

// What a short life does between channel.open and the end.
const (
	lifePublish = "publish"
	lifeDeclare = "declare" // the queue too, as PHP frameworks do at each request
	lifeConfirm = "confirm" // and waits for the confirm
)

// benchQueue is where a real broker puts the messages; the stand-in drops them.
const benchQueue = "bench"

func newShortLife(life string, size int) *shortLife {
	tune := proxytest.DefaultTune
	tune.Heartbeat = 0
	s := &shortLife{buf: make([]byte, 4096)}
	s.steps = []step{
		{amqp.ProtocolHeader[:], amqp.ConnectionStart},
		{amqp.AppendStartOk(nil, proxytest.ClientProperties(""), "PLAIN", []byte("\x00guest\x00guest"), "en_US"), amqp.ConnectionTune},
		{amqp.AppendOpen(amqp.AppendTune(nil, amqp.ConnectionTuneOk, tune), "/"), amqp.ConnectionOpenOk},
		{proxytest.Method(1, amqp.ChannelOpen, ""), amqp.ChannelOpenOk},
	}
	publish := step{proxytest.PublishBytes(1, "", benchQueue, make([]byte, size), tune.FrameMax), 0}
	switch life {
	case lifeDeclare:
		s.steps = append(s.steps, step{proxytest.Method(1, amqp.QueueDeclare, 0, benchQueue, 0, nil), amqp.QueueDeclareOk})
	case lifeConfirm:
		s.steps = append(s.steps, step{proxytest.Method(1, amqp.ConfirmSelect, 0), amqp.ConfirmSelectOk})
		publish.want = amqp.BasicAck
	}
	s.steps = append(s.steps, publish, step{proxytest.Method(0, amqp.ConnectionClose, 200, "bye", 0, 0), amqp.ConnectionCloseOk})
	return s
}

func (s *shortLife) live(addr string) error {
	conn, err := dialer.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	s.rd = amqp.Reader{}
	s.rd.Init(s.buf, 0)
	for _, st := range s.steps {
		if _, err := conn.Write(st.send); err != nil {
			return err
		}
		for st.want != 0 {
			f, err := s.rd.Next()
			if err != nil {
				return err
			}
			if f == nil {
				if _, err := s.rd.Fill(conn); err != nil {
					return fmt.Errorf("waiting for %v: %w", st.want, err)
				}
				continue
			}
			if f.Method() != st.want {
				return fmt.Errorf("got %s, want %v", proxytest.Describe(f), st.want)
			}
			break
		}
	}
	return nil
}

// countBodies counts the body frames that begin in b. skip is what is still to come of a
// frame that began before; rest is how many octets at the end must be seen again.
func countBodies(b []byte, skip int) (bodies, rest, skipNext int) {
	for {
		k := min(skip, len(b))
		skip -= k
		b = b[k:]
		if len(b) < amqp.HeaderLen {
			return bodies, len(b), skip
		}
		if b[0] == amqp.FrameBody {
			bodies++
		}
		skip = int(binary.BigEndian.Uint32(b[3:])) + amqp.FrameOverhead
	}
}

// Publishes that are taken in one look, held against the way of frames by themselves.

package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
	"testing/synctest"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// heldConn keeps what is written to it.
type heldConn struct {
	net.Conn
	p []byte
}

func (c *heldConn) Write(p []byte) (int, error) { c.p = append(c.p, p...); return len(p), nil }
func (*heldConn) Close() error                  { return nil }
func (*heldConn) RemoteAddr() net.Addr          { return &net.TCPAddr{} }

// routed is what came of some octets from a client.
type routed struct {
	toBroker, toClient []byte
	phase              uint32
	frames             uint64
	channels           [3]channelFacts
}

// channelFacts are what the router knows of a channel once its frames are sent.
type channelFacts struct {
	state              channelState
	content            contentState
	remaining          uint64
	discard, mandatory bool
	ledger             string
}

// routeAll feeds the octets in pieces of the given sizes to a client with the channels 1 and 2,
// each bound by a publish. In an alarm of the broker every frame is looked at by itself.
func routeAll(t *testing.T, in, sizes []byte, alarm bool) (r routed) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		cfg.MaxMessageSize = 300
		cfg.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no broker") }
		near, broker := &heldConn{}, &heldConn{}
		c, u := halvesOn(t, cfg, near, broker)
		feedClient(t, c, proxytest.Method(2, amqp.ChannelOpen, ""))
		for id := range uint16(2) {
			feedClient(t, c, proxytest.PublishBytes(id+1, "", "q", []byte("x"), 0))
		}
		u.blocked.Store(alarm)
		for i, left := 0, in; len(left) > 0; i++ {
			n := len(left)
			if len(sizes) > 0 {
				n = min(n, 1+int(sizes[i%len(sizes)]))
			}
			n, err := c.rd.Fill(bytes.NewReader(left[:n]))
			if err != nil {
				t.Fatal(err)
			}
			if left = left[n:]; !c.chunk() {
				break
			}
		}
		synctest.Wait()
		r = routed{toBroker: broker.p, toClient: near.p, phase: c.phase.Load(), frames: c.env.n.framesClients.Load()}
		for i := range r.channels {
			if ch := c.chans.get(uint16(i)); ch != nil {
				if ch.content != wantBody {
					ch.remaining = 0 // of the last publish
				}
				r.channels[i] = channelFacts{ch.state.Load(), ch.content, ch.remaining, ch.discard, ch.mandatory, fmt.Sprintf("%+v", ch.ledger)}
			}
		}
		c.releaseChannels() // and what waits for room
		c.s.stop()
	})
	return r
}

// script makes frames of octets: most are whole publishes, as libraries send them, some are cut
// short, changed or of another kind.
func script(ops []byte) (p []byte) {
	plain, props := []byte{0, 0}, propertiesOfTest()
	for len(ops) >= 2 {
		id, op, v := uint16(1+ops[0]>>7), ops[0]&31, ops[1]
		ops = ops[2:]
		var f []byte
		switch op {
		case 0, 1, 2, 3:
			f = publishWith(id, "", "queue", plain, make([]byte, v))
		case 4, 5:
			f = publishWith(id, "events", "orders.created.eu", props, make([]byte, v))
		case 6:
			f = publishWith(id, "", "queue", plain, make([]byte, 2*int(v)))
		case 7:
			f = publishWith(id, "", "queue", plain, nil)
		case 8:
			f = proxytest.Method(id, amqp.BasicPublish, 0, "", "queue", v&3)
		case 9:
			f = proxytest.Header(id, uint64(v&7))
		case 10:
			f = proxytest.Body(id, make([]byte, v&7))
		case 11: // one octet is another
			f = publishWith(id, "x", "k", props, make([]byte, 10))
			f[int(v)%len(f)]++
		case 12:
			f = publishWith(id, "x", "k", plain, make([]byte, 10))
			f[int(v)%len(f)] = v
		case 13:
			f = proxytest.Method(id, amqp.ConfirmSelect, v&1)
		case 14:
			f = proxytest.Method(id, amqp.TxSelect)
		case 15:
			f = proxytest.Method(id, amqp.TxCommit)
		case 16:
			f = proxytest.Method(id, amqp.BasicAck, int(v), 0)
		case 17:
			f = proxytest.Method(id, amqp.ChannelClose, 0, "", 0, 0)
		case 18:
			f = proxytest.Method(id, amqp.ChannelOpen, "")
		case 19:
			f = bytes.Clone(amqp.Heartbeat)
		case 20: // mandatory
			f = proxytest.Method(id, amqp.BasicPublish, 0, "", "queue", 1)
			f = append(append(f, proxytest.Header(id, 2)...), proxytest.Body(id, []byte("ab"))...)
		case 21: // the body in two frames
			f = proxytest.Method(id, amqp.BasicPublish, 0, "", "queue", 0)
			f = append(append(f, proxytest.Header(id, 2)...), proxytest.Body(id, []byte("a"))...)
			f = append(f, proxytest.Body(id, []byte("b"))...)
		case 22:
			f = publishWith(id, "", "amq.rabbitmq.reply-to."+string(rune('a'+v&15))+".b", plain, []byte("x"))
		case 23: // raw octets
			f = append(f, ops[:min(len(ops), int(v&15))]...)
			ops = ops[min(len(ops), int(v&15)):]
		case 24: // about max_message_size
			f = publishWith(id, "", "queue", plain, make([]byte, 297+int(v&7)))
		default:
			f = publishWith(id, "", "queue", plain, make([]byte, 100))
		}
		p = append(p, f...)
	}
	return p
}

func sameRouting(t *testing.T, ops, sizes []byte) {
	in := script(ops)
	got, want := routeAll(t, in, sizes, false), routeAll(t, in, sizes, true)
	if !bytes.Equal(got.toBroker, want.toBroker) || !bytes.Equal(got.toClient, want.toClient) {
		t.Errorf("the broker hears %x\nframe by frame  %x\nthe client %x\nframe by frame %x", got.toBroker, want.toBroker, got.toClient, want.toClient)
	}
	if got.phase != want.phase || got.frames != want.frames || got.channels != want.channels {
		t.Errorf("phase %d, %d frames, %+v\nframe by frame %d, %d, %+v", got.phase, got.frames, got.channels, want.phase, want.frames, want.channels)
	}
	if t.Failed() {
		t.Fatalf("pieces %v of %x", sizes, in)
	}
}

// Publishes that are taken in one look are taken as their frames would be one by one, whatever
// stands between them and however they are split.
func TestWholePublishesAsFrameByFrame(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	octets := func(n int) []byte {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(rnd.Uint32())
		}
		return p
	}
	for range 1500 {
		ops := octets(2 * (1 + rnd.IntN(24)))
		for i := 0; i < len(ops); i += 2 {
			if rnd.IntN(3) > 0 { // most are publishes
				ops[i] &= 128 | 7
			} else if rnd.IntN(4) == 0 {
				ops[i] = ops[i]&128 | 24
			}
		}
		sameRouting(t, ops, octets(rnd.IntN(4)))
	}
}

func FuzzWholePublishes(f *testing.F) {
	f.Add([]byte{0, 10, 4, 10, 128, 7, 7, 0, 8, 0, 9, 3, 10, 3}, []byte{20, 3})
	f.Add([]byte{13, 0, 0, 5, 0, 6, 132, 7, 15, 0, 0, 1}, []byte{})
	f.Add([]byte{14, 0, 0, 9, 15, 0, 0, 4, 17, 0, 18, 0, 0, 7}, []byte{255})
	f.Fuzz(func(t *testing.T, ops, sizes []byte) {
		if len(ops) > 400 {
			t.Skip("short ones find as much")
		}
		sameRouting(t, ops, sizes)
	})
}

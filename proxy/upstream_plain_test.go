package proxy

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"testing/synctest"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// delivered is what came of some octets from the broker.
type delivered struct {
	toClient       []byte
	tags, confirms [2]uint64
	calls          [2]int32
	frames         uint64
	failed         bool
}

// deliverAll feeds the octets in pieces to an upstream with two channels of a client. Where the
// broker's frame_max is larger than the client's, every frame is looked at by itself.
func deliverAll(t *testing.T, in []byte, sizes []int, larger bool) (r delivered) {
	synctest.Test(t, func(t *testing.T) {
		near := &heldConn{}
		c, u := halvesOn(t, DefaultConfig(), near, &heldConn{})
		feedClient(t, c, proxytest.Method(2, amqp.ChannelOpen, ""))
		for id := range uint16(2) {
			feedClient(t, c, proxytest.PublishBytes(id+1, "", "q", []byte("x"), 0))
		}
		if larger {
			u.tune.FrameMax = c.frameMax + 1
		}
		bs := [2]*binding{u.lookup(1), u.lookup(2)}
		var d delivery
		for i, left := 0, in; len(left) > 0 && !r.failed; i++ {
			n := min(len(left), sizes[i%len(sizes)])
			n, err := u.rd.Fill(bytes.NewReader(left[:n]))
			if err != nil {
				t.Fatal(err)
			}
			left = left[n:]
			r.failed = u.chunk(&d) != nil
			synctest.Wait()
		}
		r.toClient, r.frames = near.p, u.env.n.framesUpstreams.Load()
		for i, b := range bs {
			r.tags[i], r.confirms[i], r.calls[i] = b.broker.LastTag.Load(), b.broker.Confirmed.Load(), b.broker.Calls.Load()
		}
		c.releaseChannels()
		c.s.stop()
	})
	return r
}

// Deliveries and confirms that are gathered in one look reach the client as they would frame by
// frame, whatever stands between them and however they are split.
func TestPlainFramesAsFrameByFrame(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	content := func(id uint16, size int) []byte {
		p := proxytest.Header(id, uint64(size))
		for size > 0 {
			n := 1 + rnd.IntN(size)
			p = append(p, proxytest.Body(id, make([]byte, n))...)
			size -= n
		}
		return p
	}
	for range 1000 {
		var in []byte
		tag := uint64(0)
		for range 1 + rnd.IntN(20) {
			id := uint16(1 + rnd.IntN(2))
			if rnd.IntN(12) == 0 {
				id = 3 // nobody's
			}
			tag++
			var args []byte
			switch op := rnd.IntN(20); op {
			case 0, 1, 2, 3, 4, 5:
				args = binary.BigEndian.AppendUint64(amqp.AppendShortStr(nil, "ctag"[:rnd.IntN(5)]), tag)
				args = amqp.AppendShortStr(amqp.AppendShortStr(append(args, 0), ""), "queue")
				if rnd.IntN(10) == 0 {
					args = args[:rnd.IntN(len(args))] // the broker is believed, but not beyond the frame
				}
				in = append(append(in, method(id, amqp.BasicDeliver, args)...), content(id, rnd.IntN(300))...)
			case 6, 7, 8, 9:
				args = append(binary.BigEndian.AppendUint64(nil, tag-uint64(rnd.IntN(3))), byte(rnd.IntN(4)))
				if rnd.IntN(10) == 0 {
					args = args[:rnd.IntN(len(args))]
				}
				in = append(in, method(id, amqp.BasicAck, args)...)
			case 10:
				in = append(in, method(id, amqp.BasicNack, binary.BigEndian.AppendUint64(nil, tag))...)
			case 11:
				in = append(in, proxytest.Method(id, amqp.QueuePurgeOk, 5)...)
			case 12:
				args = append(binary.BigEndian.AppendUint64(nil, tag), 0, 0, 0, 0, 0, 0, 1)
				in = append(append(in, method(id, amqp.BasicGetOk, args)...), content(id, rnd.IntN(30))...)
			case 13:
				in = append(in, amqp.Heartbeat...)
			case 14:
				in = amqp.AppendFrame(in, amqp.FrameMethod, id, make([]byte, rnd.IntN(6)))
			case 15:
				in = amqp.AppendFrame(in, byte(rnd.IntN(10)), id, make([]byte, rnd.IntN(6)))
			case 16:
				if rnd.IntN(4) == 0 {
					in = append(in, proxytest.Method(id, amqp.ChannelClose, 404, "NOT_FOUND", 0, 0)...)
				}
			case 17:
				if rnd.IntN(20) == 0 {
					in = append(in, proxytest.Body(id, []byte("no end"))...)
					in[len(in)-1] = 0
				}
			default:
				in = append(append(in, proxytest.Method(id, amqp.BasicReturn, 312, "NO_ROUTE", "", "q")...), content(id, 3)...)
			}
		}
		sizes := []int{1 + rnd.IntN(400), 1 + rnd.IntN(40)}
		if rnd.IntN(3) == 0 {
			sizes = []int{len(in) + 1}
		}
		got, want := deliverAll(t, in, sizes, false), deliverAll(t, in, sizes, true)
		if !bytes.Equal(got.toClient, want.toClient) {
			t.Errorf("the client hears %x\nframe by frame    %x", got.toClient, want.toClient)
		}
		got.toClient, want.toClient = nil, nil
		if got.tags != want.tags || got.confirms != want.confirms || got.calls != want.calls || got.frames != want.frames || got.failed != want.failed {
			t.Errorf("got %+v, frame by frame %+v", got, want)
		}
		if t.Failed() {
			t.Fatalf("pieces of %v of %x", sizes, in)
		}
	}
}

// method is a method frame with its arguments as they are on the wire.
func method(id uint16, m amqp.Method, args []byte) []byte {
	return amqp.EndMethod(append(amqp.BeginMethod(nil, id, m), args...), 0)
}

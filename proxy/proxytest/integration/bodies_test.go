// Bodies of every awkward length, by clients of every frame size, both ways.

//go:build linux

package integration

import (
	"bytes"
	"fmt"
	"math/rand"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"

	amqp "github.com/rabbitmq/amqp091-go"
)

// frameMaxes are what clients ask for; RabbitMQ's own is 131072.
var frameMaxes = []int{4096, 8192, 131072}

const frameOverhead = 8 // header and end octet

// bodySizes lie at the boundaries of frames: whole payloads of each size, one octet less
// and one more, one and two frames; and nothing at all.
func bodySizes() []int {
	sizes := []int{0, 1}
	for _, max := range frameMaxes {
		for _, frames := range []int{1, 2} {
			for _, d := range []int{-1, 0, 1} {
				sizes = append(sizes, frames*(max-frameOverhead)+d)
			}
		}
	}
	slices.Sort(sizes)
	return slices.Compact(sizes)
}

// bodies are those made so far, by size: the large ones take a second each under the race detector.
var bodies sync.Map

// body is a body of a size whose octets tell it from every other. It is not to be changed.
func body(size int) []byte {
	if b, ok := bodies.Load(size); ok {
		return b.([]byte)
	}
	b := make([]byte, size)
	rand.New(rand.NewSource(int64(size))).Read(b)
	bodies.Store(size, b)
	return b
}

func TestBodies(t *testing.T) {
	const huge = 20 << 20
	each(t, "", func(t *testing.T, tg *target) {
		o := observe(t, tg.broker)
		chans := map[int]*amqp.Channel{}
		frameMaxes := frameMaxes
		if tg.broker.Version == rabbit.V43 && tg.via == "straight" {
			frameMaxes = frameMaxes[1:] // 4.3 refuses 4096; through the proxy such clients go on
		}
		for _, max := range frameMaxes {
			conn, err := dial(tg.addr, amqp.Config{FrameSize: max})
			if err != nil {
				t.Fatalf("frame_max %d: %v", max, err)
			}
			defer conn.Close()
			if conn.Config.FrameSize != max {
				t.Fatalf("frame_max %d was negotiated to %d", max, conn.Config.FrameSize)
			}
			if chans[max], err = conn.Channel(); err != nil {
				t.Fatal(err)
			}
			if err := chans[max].Confirm(false); err != nil {
				t.Fatal(err)
			}
		}
		for _, from := range frameMaxes {
			for _, to := range frameMaxes {
				t.Run(fmt.Sprintf("%d to %d", from, to), func(t *testing.T) {
					q := (&observer{t, o.conn, o.ch}).queue("q")
					sizes := bodySizes()
					if from == to || from > to && to == frameMaxes[0] { // the rest of the way is that of the smaller ones
						sizes = append(sizes, huge)
					}
					in, out := chans[from], chans[to]
					for _, size := range sizes {
						c, err := in.PublishWithDeferredConfirm("", q, true, false, amqp.Publishing{
							Headers: amqp.Table{"size": int32(size)}, Body: body(size)})
						if err != nil {
							t.Fatalf("publish %d octets: %v", size, err)
						}
						if !wait(c) {
							t.Fatalf("%d octets were not confirmed", size)
						}
					}
					// Half of them by get, the rest by deliveries.
					half := len(sizes) / 2
					for _, size := range sizes[:half] {
						d, ok, err := out.Get(q, true)
						if err != nil || !ok {
							t.Fatalf("get %d octets: %v, %v", size, ok, err)
						}
						same(t, d, size)
					}
					if err := out.Qos(2, 0, false); err != nil {
						t.Fatal(err)
					}
					deliveries, err := out.Consume(q, "c", false, false, false, false, nil)
					if err != nil {
						t.Fatal(err)
					}
					for _, size := range sizes[half:] {
						select {
						case d := <-deliveries:
							same(t, d, size)
							d.Ack(false)
						case <-time.After(patience):
							t.Fatalf("%d octets did not come", size)
						}
					}
					if err := out.Cancel("c", false); err != nil {
						t.Fatal(err)
					}
				})
			}
		}
	})
}

func same(t *testing.T, d amqp.Delivery, size int) {
	t.Helper()
	if d.Headers["size"] != int32(size) || !bytes.Equal(d.Body, body(size)) {
		t.Errorf("%d octets came as %d, header %v, equal: %v", size, len(d.Body), d.Headers["size"], bytes.Equal(d.Body, body(size)))
	}
}

// wait waits for a confirm, but not for ever.
func wait(c *amqp.DeferredConfirmation) bool {
	select {
	case <-c.Done():
		return c.Acked()
	case <-time.After(patience):
		return false
	}
}

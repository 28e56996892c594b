package proxy

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// What depends on a type or queue that the proxy cannot know is left out: it harms those
// beside a channel that can no longer move, see "Known limits" in DESIGN.md.
//
// Whatever a client sends, whole frames, broken ones, noise, in whatever pieces: nothing
// of it makes the broker close a connection that others share.
func TestMutatedFramesHarmNobodyElse(t *testing.T) {
	for seed := range uint64(4) {
		withBroker(t, proxytest.BrokerConfig{}, func(c *Config) {
			c.MaxMessageSize, c.MessageBuffer = 1<<20, 4<<20
		}, func(r *rig) {
			rnd := rand.New(rand.NewPCG(seed, 5))
			canary := r.client(proxytest.ClientConfig{})
			_, err := canary.DeclareQueue(1, "canary", 0)
			r.must(err)
			r.must(canary.Confirm(1))
			for i := range 150 {
				c := r.client(proxytest.ClientConfig{Name: fmt.Sprint(i)})
				r.must(c.OpenChannel(2))
				var sent []byte
				for range 1 + rnd.IntN(12) {
					sent = append(sent, anyFrame(rnd)...)
				}
				if rnd.IntN(3) == 0 {
					sent[rnd.IntN(len(sent))] ^= byte(1 << rnd.IntN(8))
				}
				if rnd.IntN(3) == 0 {
					sent = sent[:rnd.IntN(len(sent))]
				}
				for len(sent) > 0 {
					n := 1 + rnd.IntN(len(sent))
					if c.Send(sent[:n]) != nil {
						break
					}
					sent = sent[n:]
					if rnd.IntN(2) == 0 {
						synctest.Wait()
					}
				}
				synctest.Wait()
				switch rnd.IntN(3) {
				case 0:
					c.Abort()
				case 1:
					_ = c.Send(proxytest.Method(0, amqp.ConnectionClose, 200, "", 0, 0))
					synctest.Wait()
				}
				_ = c.Hangup()
				r.must(canary.Publish(1, "", "canary", []byte("song")))
				if err := canary.WaitConfirms(1); err != nil {
					t.Fatalf("seed %d, client %d: the canary: %v", seed, i, err)
				}
			}
			time.Sleep(2 * time.Second)
			r.must(canary.Close())
		})
	}
}

// anyFrame is a frame that a client may send, or some that belong together.
func anyFrame(rnd *rand.Rand) []byte {
	ch := uint16([]int{1, 1, 1, 2, 2, 3, 0}[rnd.IntN(7)])
	q := []string{"canary", "q", "", "missing"}[rnd.IntN(4)]
	body := make([]byte, rnd.IntN(200))
	switch rnd.IntN(25) {
	case 0:
		return proxytest.Method(ch, amqp.ChannelOpen, "")
	case 1:
		return proxytest.Method(ch, amqp.ChannelClose, 200, "", 0, 0)
	case 2:
		return proxytest.Method(ch, amqp.ChannelCloseOk)
	case 3, 4, 5:
		return proxytest.PublishBytes(ch, "", q, body, 0)
	case 6:
		return proxytest.Method(ch, amqp.BasicPublish, 0, "", q, rnd.IntN(2))
	case 7:
		return proxytest.Header(ch, uint64(rnd.IntN(20)))
	case 8:
		return proxytest.Body(ch, body[:min(len(body), 10)])
	case 9:
		return proxytest.Method(ch, amqp.BasicAck, rnd.IntN(3), rnd.IntN(2))
	case 10:
		return amqp.AppendQos(nil, ch, uint16(rnd.IntN(9)), rnd.IntN(4) == 0)
	case 11:
		return proxytest.Method(ch, amqp.ConfirmSelect, rnd.IntN(2))
	case 12:
		return proxytest.Method(ch, amqp.TxSelect)
	case 13:
		return proxytest.Method(ch, []amqp.Method{amqp.TxCommit, amqp.TxRollback}[rnd.IntN(2)])
	case 14:
		return proxytest.Method(ch, amqp.BasicGet, 0, q, 1)
	case 15:
		return proxytest.Method(ch, amqp.BasicConsume, 0, q, []string{"", "t"}[rnd.IntN(2)], rnd.IntN(16), nil)
	case 16:
		return proxytest.Method(ch, amqp.BasicCancel, "t", rnd.IntN(2))
	case 17:
		return proxytest.Method(ch, amqp.QueueDeclare, 0, "q", rnd.IntN(32), nil)
	case 18:
		return proxytest.Method(ch, amqp.QueueBind, 0, q, "amq.direct", "k", rnd.IntN(2), nil)
	case 19:
		return proxytest.Method(ch, amqp.BasicRecover, rnd.IntN(2))
	case 20:
		return amqp.AppendFrame(nil, byte(rnd.IntN(10)), ch, body[:min(len(body), 9)])
	case 21:
		return amqp.AppendMethod(nil, ch, amqp.Method(uint32(rnd.IntN(10))*10<<16|uint32(rnd.IntN(13))*10), body[:min(len(body), 20)]...)
	case 22:
		return proxytest.Method(ch, amqp.ChannelFlow, rnd.IntN(2))
	case 23:
		return amqp.Heartbeat
	}
	return proxytest.Method(ch, amqp.QueueUnbind, 0, q, "amq.direct", "k", nil)
}

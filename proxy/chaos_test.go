package proxy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// chaosRuns is how many different lives the proxy goes through.
const chaosRuns = 9

// Clients of every kind do anything, badly too, while connections are cut, closed, blocked
// and reloaded. When all is over, every counter is back where it began.
func TestChaos(t *testing.T) {
	for seed := range uint64(chaosRuns) {
		mode := []PoolMode{PoolAuto, PoolShared, PoolSession}[seed%3]
		withBroker(t, proxytest.BrokerConfig{
			Users: map[string]string{"guest": "guest", "b": "b"}, VHosts: []string{"/", "v"},
			Tune: amqp.Tune{ChannelMax: uint16(20 + 100*(seed%2)), FrameMax: 8192, Heartbeat: 10},
		}, func(c *Config) {
			c.Listeners[0].Mode = mode
			c.MaxChannels = []int{10, 3, 1}[seed/3%3]
			c.MaxUpstreams = []int{0, 8, 1, 24}[seed%4]
			c.MaxUpstreamsPerIdentity = []int{0, 1, 6, 2, 12}[seed%5]
			c.MaxClients = []int{0, 12}[seed/2%2]
			c.AuthTTL = time.Second
			c.IdleTimeout, c.MaxLifetime = 3*time.Second, 7*time.Second
			c.MaxMessageSize, c.MessageBuffer, c.ClientQueue = 1<<20, 2<<20, 128<<10
			c.FastClose = seed%7 != 3
		}, func(r *rig) {
			stop := make(chan struct{})
			var weather sync.WaitGroup
			weather.Go(func() { r.weather(rand.New(rand.NewPCG(seed, 99)), stop) })
			var wg sync.WaitGroup
			for i := range 16 {
				wg.Go(func() {
					rnd := rand.New(rand.NewPCG(seed, uint64(i)))
					for range 12 {
						r.misbehave(rnd)
						time.Sleep(time.Duration(rnd.IntN(300)) * time.Millisecond)
					}
				})
			}
			wg.Wait()
			close(stop)
			weather.Wait()
			r.b.Unblock()
			time.Sleep(20 * time.Second) // who waits for a place does not see that its client has gone
			// The canary finds everything in order.
			c := r.client(proxytest.ClientConfig{})
			_, err := c.DeclareQueue(1, "canary", 0)
			r.must(err)
			r.must(c.Confirm(1))
			r.must(c.Publish(1, "", "canary", []byte("song")))
			r.must(c.WaitConfirms(1))
			_, err = c.Get(1, "canary", true)
			r.must(err)
			r.must(c.Close())
		})
		if t.Failed() {
			t.Fatalf("seed %d, mode %s", seed, mode)
		}
	}
}

// weather is what befalls the broker and the path to it.
func (r *rig) weather(rnd *rand.Rand, stop chan struct{}) {
	for {
		select {
		case <-stop:
			r.to.Refuse(nil)
			return
		case <-time.After(time.Duration(rnd.IntN(2000)) * time.Millisecond):
		}
		switch rnd.IntN(8) {
		case 0:
			r.b.Cut()
		case 1:
			r.b.CloseConnections(320, "CONNECTION_FORCED - weather")
		case 2:
			r.b.Block("weather")
		case 3, 4:
			r.b.Unblock()
		case 5, 6:
			r.to.Refuse(fmt.Errorf("weather"))
			time.Sleep(time.Duration(rnd.IntN(200)) * time.Millisecond)
			r.to.Refuse(nil)
		case 7:
			cfg := *r.s.cfg()
			cfg.Upstream.Port = 5672 + rnd.IntN(2)
			if _, err := r.s.Reload(cfg); err != nil {
				r.t.Error(err)
			}
		}
	}
}

// misbehave is the life of one client.
func (r *rig) misbehave(rnd *rand.Rand) {
	cfg := proxytest.ClientConfig{Timeout: 500 * time.Millisecond, Name: fmt.Sprint(rnd.IntN(3))}
	if rnd.IntN(3) == 0 {
		cfg.User, cfg.Password = "b", "b"
	}
	if rnd.IntN(4) == 0 {
		cfg.VHost = "v"
	}
	switch rnd.IntN(20) {
	case 0:
		cfg.Password = "wrong"
	case 1:
		cfg.VHost = "none"
	case 2:
		cfg.FrameMax = 4096
	}
	c := r.connect(cfg)
	defer func() {
		switch rnd.IntN(4) {
		case 0:
			c.Abort()
		case 1:
			_ = c.Hangup()
		case 2:
			_ = c.CloseChannel(1)
			fallthrough
		default:
			_ = c.Close()
		}
	}()
	if rnd.IntN(15) == 0 {
		_ = c.Start()
		return
	}
	if c.Handshake() != nil {
		return
	}
	for ch := range uint16(3) {
		if c.OpenChannel(1+ch) != nil {
			return
		}
	}
	q := fmt.Sprint("q", rnd.IntN(4))
	if rnd.IntN(3) > 0 {
		if _, err := c.DeclareQueue(1, q, 0); err != nil {
			return
		}
	}
	for range 1 + rnd.IntN(25) {
		ch := uint16(1 + rnd.IntN(3))
		var err error
		switch rnd.IntN(35) {
		case 0:
			if rnd.IntN(10) == 0 {
				err = c.OpenChannel(ch)
			}
		case 1:
			_, err = c.DeclareQueue(ch, q, 0)
		case 2, 3, 4:
			err = c.Publish(ch, "", q, make([]byte, rnd.IntN(300)))
		case 5:
			err = c.Publish(ch, "", q, make([]byte, rnd.IntN(200_000)))
		case 6:
			err = c.Confirm(ch)
		case 7:
			err = c.WaitConfirms(ch)
		case 8, 9:
			_, err = c.Get(ch, q, rnd.IntN(2) == 0)
		case 10:
			err = c.Qos(ch, uint16(rnd.IntN(20)))
		case 11:
			_, err = c.Consume(ch, q, "", rnd.IntN(2) == 0)
		case 12:
			_, err = c.Delivery(ch)
		case 13:
			err = c.Ack(ch, uint64(rnd.IntN(3)), rnd.IntN(2) == 0)
		case 14:
			if err = c.CloseChannel(ch); err == nil {
				err = c.OpenChannel(ch)
			}
		case 15:
			if rnd.IntN(3) > 0 {
				continue
			}
			p := proxytest.PublishBytes(ch, "", q, make([]byte, rnd.IntN(20_000)), 8192)
			_ = c.Send(p[:rnd.IntN(len(p))])
			return
		case 16:
			_, err = c.DeclareQueue(ch, "", proxytest.Exclusive)
		case 17:
			_, err = c.Get(ch, "missing", true) // a soft error
		case 18:
			err = c.Publish(ch, "missing", q, []byte("x"))
		case 19:
			if err = c.Call(proxytest.Method(ch, amqp.TxSelect), amqp.TxSelectOk); err == nil {
				err = c.Publish(ch, "", q, nil)
			}
		case 20:
			err = c.Call(proxytest.Method(ch, amqp.TxCommit), amqp.TxCommitOk)
		case 21:
			err = c.Send(proxytest.Method(ch, amqp.BasicPublish, 0, "", q, 1), proxytest.Header(ch, 0), proxytest.Method(ch, amqp.ChannelClose, 200, "", 0, 0))
			if err == nil {
				if _, err = c.Await(ch, amqp.ChannelCloseOk); err == nil {
					err = c.OpenChannel(ch)
				}
			}
		case 22: // a queue without an answer, and what relies on its being the last one
			err = c.Send(proxytest.Method(ch, amqp.QueueDeclare, 0, q, 1<<4, nil))
			if err == nil && rnd.IntN(2) == 0 {
				_, err = c.Get(ch, "", true)
			}
		case 23: // several things at once, in pieces
			p := append(proxytest.PublishBytes(ch, "", q, make([]byte, rnd.IntN(9000)), 4096),
				proxytest.Method(ch, amqp.BasicQos, 0, rnd.IntN(30), 0)...)
			p = append(p, proxytest.PublishBytes(1+ch%3, "", q, make([]byte, rnd.IntN(70_000)), 4096)...)
			for len(p) > 0 && err == nil {
				n := min(len(p), 1+rnd.IntN(30_000))
				err = c.Send(p[:n])
				p = p[n:]
				if rnd.IntN(3) == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		case 24: // publishes of two channels, frame by frame in turns
			a := proxytest.PublishBytes(1, "", q, make([]byte, 1+rnd.IntN(20_000)), 4096)
			b := proxytest.PublishBytes(2, "", q, make([]byte, 1+rnd.IntN(20_000)), 4096)
			err = c.Send(inTurns(rnd, a, b))
		case 25:
			err = c.Send(proxytest.Method(ch, amqp.BasicQos, 0, rnd.IntN(30), 1))
			if err == nil {
				_, err = c.Await(ch, amqp.BasicQosOk)
			}
		case 26:
			err = c.Call(proxytest.Method(ch, amqp.BasicRecover, 1), amqp.BasicRecoverOk)
		case 27:
			tag := fmt.Sprint("t", rnd.IntN(3))
			err = c.Send(proxytest.Method(ch, amqp.BasicConsume, 0, q, tag, rnd.IntN(2)*2, nil),
				proxytest.Method(ch, amqp.BasicCancel, tag, rnd.IntN(2)))
		case 28:
			if rnd.IntN(4) == 0 {
				err = c.Call(proxytest.Method(0, amqp.ConnectionUpdateSecret, "guest", "because"), amqp.ConnectionUpdateSecretOk)
			}
		case 29: // it opens what it closes, without waiting
			err = c.Send(proxytest.Method(ch, amqp.BasicPublish, 0, "", q, 0), proxytest.Header(ch, 3), proxytest.Body(ch, []byte("abc")),
				proxytest.Method(ch, amqp.ChannelClose, 200, "", 0, 0))
			if err == nil {
				if _, err = c.Await(ch, amqp.ChannelCloseOk); err == nil {
					err = c.OpenChannel(ch)
				}
			}
		case 30:
			time.Sleep(time.Duration(rnd.IntN(3000)) * time.Millisecond)
		case 31:
			err = c.Call(proxytest.Method(ch, amqp.TxRollback), amqp.TxRollbackOk)
		case 32:
			err = c.Send(proxytest.Method(ch, amqp.QueueDeclare, 0, "", 1<<4|proxytest.Exclusive, nil))
		case 33:
			err = c.Call(proxytest.Method(ch, amqp.ExchangeDeclare, 0, fmt.Sprint("x", rnd.IntN(2)), []string{"direct", "fanout"}[rnd.IntN(2)], 0, nil), amqp.ExchangeDeclareOk)
		case 34:
			err = c.DeleteQueue(ch, q)
		}
		var e *amqp.Error
		if errors.As(err, &e) && !amqp.IsHard(e.Code) {
			err = c.OpenChannel(ch)
		}
		if err != nil && rnd.IntN(3) > 0 {
			return
		}
	}
}

// inTurns mixes the frames of two channels.
func inTurns(rnd *rand.Rand, streams ...[]byte) (mixed []byte) {
	for len(streams) > 0 {
		i := rnd.IntN(len(streams))
		n, _, _ := amqp.Split(streams[i], 0)
		mixed = append(mixed, streams[i][:n]...)
		if streams[i] = streams[i][n:]; len(streams[i]) == 0 {
			streams = append(streams[:i], streams[i+1:]...)
		}
	}
	return mixed
}

// canaryRuns is how many crowds the canary lives in.
const canaryRuns = 6

// Whatever the others do, one that does nothing wrong is served all the while.
func TestCanaryAmidChaos(t *testing.T) {
	for seed := range uint64(canaryRuns) {
		mode := []PoolMode{PoolAuto, PoolAuto, PoolShared}[seed%3]
		withBroker(t, proxytest.BrokerConfig{
			Users: map[string]string{"guest": "guest", "b": "b"}, VHosts: []string{"/", "v"},
			Tune: amqp.Tune{ChannelMax: 200, FrameMax: 8192, Heartbeat: 10},
		}, func(c *Config) {
			c.Listeners[0].Mode = mode
			c.AuthTTL = time.Second
			c.IdleTimeout, c.MaxLifetime = 3*time.Second, 7*time.Second
			c.MaxMessageSize, c.MessageBuffer, c.ClientQueue = 1<<20, 2<<20, 128<<10
			c.FastClose = seed%5 != 3
		}, func(r *rig) {
			var wg sync.WaitGroup
			for i := range 12 {
				wg.Go(func() {
					rnd := rand.New(rand.NewPCG(seed, uint64(i)))
					for range 12 {
						r.misbehave(rnd)
						time.Sleep(time.Duration(rnd.IntN(300)) * time.Millisecond)
					}
				})
			}
			over := make(chan struct{})
			go func() { wg.Wait(); close(over) }()
			c := r.client(proxytest.ClientConfig{Name: "canary", Timeout: 2 * time.Second})
			_, err := c.DeclareQueue(1, "canary", 0)
			r.must(err)
			r.must(c.Confirm(1))
			r.must(c.OpenChannel(2))
			r.must(c.Qos(2, 1))
			_, err = c.Consume(2, "canary", "c", false)
			r.must(err)
			for i := 0; ; i++ {
				select {
				case <-over:
					r.must(c.Close())
					return
				case <-time.After(50 * time.Millisecond):
				}
				song := fmt.Sprint("song ", i)
				r.must(c.Publish(1, "", "canary", []byte(song)))
				r.must(c.WaitConfirms(1))
				m, err := c.Delivery(2)
				r.must(err)
				if string(m.Body) != song {
					t.Errorf("got %q, want %q", m.Body, song)
				}
				r.must(c.Ack(2, m.Tag, false))
			}
		})
		if t.Failed() {
			t.Fatalf("seed %d, mode %s", seed, mode)
		}
	}
}

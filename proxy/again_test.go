package proxy

import (
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// deaf takes what comes on a channel, and answers only to its open and close.
func deaf(_ *proxytest.BrokerConn, f amqp.Frame) bool {
	return f.Channel() != 0 && (f.Type() != amqp.FrameMethod || f.Method().Class() != amqp.ChannelOpen.Class())
}

// deafNodes are two brokers, of which the first is deaf.
func deafNodes(t *testing.T, mode PoolMode, test func(*rig, *nodes)) {
	withNodes(t, []string{"a:5672", "b:5672"}, func(c *Config, _ *nodes) {
		c.Balance = BalanceOrder
		c.Listeners[0].Mode = mode
	}, func(r *rig, n *nodes) {
		ln := proxytest.ListenMem("a:5672", 0)
		n.b["a:5672"] = proxytest.StartBroker(r.t, proxytest.BrokerConfig{Listener: ln, Intercept: deaf})
		n.at["a:5672"] = ln
		test(r, n)
	})
}

// Publishes that come when the first method is lost, before the reader was woken to send it again, go where the channel
// is bound then.
func TestPublishesAsTheFirstMethodIsLost(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{})
		r.must(c.Send(proxytest.Method(1, amqp.QueueDeclare, 0, "q", 0, "")))
		p.OpenChannel()
		p.Next()
		synctest.Wait()
		b := r.s.clients.appendTo(nil, func(*client) bool { return true })[0].chans.get(1).cur.Load()
		if !b.losesFirst() {
			r.t.Fatal("nothing is unanswered")
		}
		r.must(c.Send(proxytest.PublishBytes(1, "", "q", []byte("x"), 0), proxytest.PublishBytes(1, "", "q", []byte("y"), 0)))
		p.OpenChannel()
		for range 1 + 2*3 {
			if f := p.Next(); f.Channel() != 2 {
				r.t.Errorf("%s came on channel %d, which was lost", proxytest.Describe(f), f.Channel())
			}
		}
	})
}

// What a channel did first is done elsewhere where the broker is lost before its answer, once, if that does no harm; who
// has something behind it, or something that must not be done twice, hears of the loss.
func TestAFirstMethodIsSentAgain(t *testing.T) {
	declare := proxytest.Method(1, amqp.QueueDeclare, 0, "q", 0, "")
	for name, x := range map[string]struct {
		sent    []byte
		drained bool // or lost without a word
		words   string
		again   bool
	}{
		"a declaration":             {sent: declare, drained: true, again: true},
		"a declaration, a cut":      {sent: declare, again: true},
		"an exchange":               {sent: proxytest.Method(1, amqp.ExchangeDeclare, 0, "x", "direct", 0, ""), drained: true, again: true},
		"a hard error":              {sent: declare, words: "INTERNAL_ERROR"},
		"an operator's close":       {sent: declare, words: "CONNECTION_FORCED - Closed via management plugin"},
		"a name of the broker's":    {sent: proxytest.Method(1, amqp.QueueDeclare, 0, "", 0, ""), drained: true},
		"an exclusive queue":        {sent: proxytest.Method(1, amqp.QueueDeclare, 0, "q", proxytest.Exclusive, ""), drained: true},
		"a get":                     {sent: proxytest.Method(1, amqp.BasicGet, 0, "q", 1), drained: true},
		"two":                       {sent: append(append([]byte(nil), declare...), proxytest.Method(1, amqp.QueueDeclare, 0, "q2", 0, "")...), drained: true},
		"a publish behind it":       {sent: append(append([]byte(nil), declare...), proxytest.PublishBytes(1, "", "q", []byte("x"), 0)...), drained: true},
		"without an answer":         {sent: proxytest.Method(1, amqp.QueueDeclare, 0, "q", 16, ""), drained: true},
		"a binding that names none": {sent: append(append([]byte(nil), declare...), proxytest.Method(1, amqp.QueueBind, 0, "", "amq.direct", "k", 0, "")...), drained: true},
	} {
		for _, mode := range []PoolMode{PoolAuto, PoolSession} {
			deafNodes(t, mode, func(r *rig, n *nodes) {
				c := r.client(proxytest.ClientConfig{})
				r.must(c.Send(x.sent))
				synctest.Wait()
				switch {
				case x.drained:
					n.stop("a:5672")
				case x.words != "":
					code := uint16(amqp.ConnectionForced)
					if x.words == "INTERNAL_ERROR" {
						code = amqp.InternalError
					}
					n.b["a:5672"].CloseConnections(code, x.words)
				default:
					n.mu.Lock()
					delete(n.at, "a:5672")
					n.mu.Unlock()
					n.b["a:5672"].Cut()
				}
				f, err := c.NextWithin(20 * time.Second)
				if err != nil {
					r.t.Fatalf("%s, mode %s: heard nothing: %v", name, mode, err)
				}
				if m := f.Method(); (m == amqp.QueueDeclareOk || m == amqp.ExchangeDeclareOk) != x.again || !x.again && m != amqp.ConnectionClose {
					r.t.Errorf("%s, mode %s: heard %s", name, mode, proxytest.Describe(f))
				}
				if !x.again {
					_ = c.Hangup()
					return
				}
				_, err = c.DeclareQueue(1, "next", 0) // and one answer only
				r.must(err)
				r.must(c.Publish(1, "", "next", []byte("x")))
				r.must(c.Close())
			})
		}
	}
}

// More of the channel may come before its first method has been sent again, as may its end or that of the connection.
func TestMoreBehindAFirstMethodThatIsLost(t *testing.T) {
	type step = func(*rig, *proxytest.Client) error
	await := func(m amqp.Method) step {
		return func(_ *rig, c *proxytest.Client) error { _, err := c.Await(1, m); return err }
	}
	send := func(f []byte, then step) step {
		return func(r *rig, c *proxytest.Client) error { r.must(c.Send(f)); return then(r, c) }
	}
	for name, then := range map[string]step{
		"a publish": send(proxytest.PublishBytes(1, "", "q", []byte("x"), 0), func(r *rig, c *proxytest.Client) error {
			if _, err := c.Await(1, amqp.QueueDeclareOk); err != nil {
				return err
			}
			count, err := c.QueueLength(1, "q")
			if err == nil && count != 1 {
				r.t.Errorf("%d messages", count)
			}
			return err
		}),
		"its close":              send(proxytest.Method(1, amqp.ChannelClose, 200, "", 0, 0), await(amqp.ChannelCloseOk)),
		"the connection's close": func(_ *rig, c *proxytest.Client) error { return c.Close() },
		"its hang-up":            func(_ *rig, c *proxytest.Client) error { c.Abort(); return nil },
		"nothing":                await(amqp.QueueDeclareOk),
	} {
		t.Run(name, func(t *testing.T) {
			for range 20 { // whichever of the two is faster
				deafNodes(t, PoolAuto, func(r *rig, n *nodes) {
					c := r.client(proxytest.ClientConfig{})
					r.must(c.Send(proxytest.Method(1, amqp.QueueDeclare, 0, "q", 0, "")))
					synctest.Wait()
					n.mu.Lock()
					delete(n.at, "a:5672")
					n.mu.Unlock()
					go n.b["a:5672"].Cut()
					if err := then(r, c); err != nil { // it was there before the end was noticed, by a read or a write
						r.hears(err, amqp.ConnectionForced, "CONNECTION_FORCED - the ")
					}
					_ = c.Hangup()
				})
			}
		})
	}
}

// sleepy are clients' connections whose reader nobody can wake once they are asleep.
type sleepy struct {
	net.Listener
	asleep *atomic.Bool
}

type sleepyConn struct {
	net.Conn
	asleep *atomic.Bool
}

func (l sleepy) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return sleepyConn{conn, l.asleep}, nil
}

func (c sleepyConn) SetReadDeadline(t time.Time) error {
	if c.asleep.Load() {
		return nil
	}
	return c.Conn.SetReadDeadline(t)
}

// What comes before the reader has been woken finds the first method lost, and has it sent again before itself.
func TestAFirstMethodIsSentAgainBeforeMore(t *testing.T) {
	for name, x := range map[string]struct {
		sent  []byte
		reply amqp.Method
	}{
		"a publish":    {append(proxytest.PublishBytes(1, "", "q", []byte("x"), 0), proxytest.Method(1, amqp.QueueDeclare, 0, "q", proxytest.Passive, "")...), amqp.QueueDeclareOk},
		"a method":     {proxytest.Method(1, amqp.QueueDeclare, 0, "q", proxytest.Passive, ""), amqp.QueueDeclareOk},
		"no name":      {proxytest.Method(1, amqp.QueueBind, 0, "", "amq.direct", "k", 0, ""), amqp.QueueBindOk},
		"its close":    {proxytest.Method(1, amqp.ChannelClose, 200, "", 0, 0), amqp.ChannelCloseOk},
		"its prefetch": {proxytest.Method(1, amqp.BasicQos, 0, 5, 0), amqp.BasicQosOk},
	} {
		synctest.Test(t, func(t *testing.T) {
			var asleep atomic.Bool
			n := &nodes{at: map[string]*proxytest.MemListener{}, b: map[string]*proxytest.Broker{}}
			r := &rig{t: t, to: proxytest.ListenMem("broker:5672", 0), wrap: func(l net.Listener) net.Listener { return sleepy{l, &asleep} }}
			n.start(t, "b:5672")
			ln := proxytest.ListenMem("a:5672", 0)
			n.at["a:5672"], n.b["a:5672"] = ln, proxytest.StartBroker(t, proxytest.BrokerConfig{Listener: ln, Intercept: deaf})
			r.start(func(c *Config) {
				c.Dial, c.Balance = n.dial, BalanceOrder
				c.Upstream, c.Others = Upstream{Host: "a", Port: 5672}, []Upstream{{Host: "b", Port: 5672}}
			})
			c := r.client(proxytest.ClientConfig{})
			r.must(c.Send(proxytest.Method(1, amqp.QueueDeclare, 0, "q", 0, "")))
			synctest.Wait()
			asleep.Store(true)
			n.stop("a:5672")
			synctest.Wait()
			if f, err := c.NextWithin(time.Second); err == nil {
				t.Errorf("%s: heard %s before it has sent anything", name, proxytest.Describe(f))
			}
			r.must(c.Send(x.sent))
			_, err := c.Await(1, amqp.QueueDeclareOk)
			r.must(err)
			_, err = c.Await(1, x.reply)
			r.must(err)
			r.must(c.Close())
			r.settled()
		})
	}
}

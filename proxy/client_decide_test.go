package proxy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
	"github.com/amqproxysvc/amqproxysvc/proxy/ledger"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// What becomes of a method, by itself, its channel and the broker. Nothing is sent, waited for or
// changed: a second look decides the same.
func TestDecisions(t *testing.T) {
	c, u, _ := halves(t)
	infos := map[string]*broker.Info{
		"rabbit": {Product: "RabbitMQ", Version: "3.10.8", Confirms: true}, "lavin": {Product: "LavinMQ", Version: "2.1.0", Confirms: true},
	}
	const (
		open    = "open"    // not bound yet
		bound   = "bound"   // to a shared upstream
		amid    = "amid"    // content is due
		commits = "commits" // bound, tx.commit unanswered
		flowing = "flowing" // bound, the broker's channel.flow unanswered
		none    = "none"    // no such channel
		late    = "late"    // none any more, closed a moment ago
		refusd  = "refused" // closed by the broker
		closing = "closing" // being closed by the client
	)
	channelAs := func(state string) *channel {
		ch := &channel{c: c, id: 1}
		c.lately = lateChannel{}
		switch state {
		case none:
			return nil
		case late:
			c.lately = lateChannel{id: 1, at: time.Now()}
			return nil
		case refusd:
			ch.state.Store(chRefused)
		case closing:
			ch.state.Store(chClosing)
		case bound, commits, flowing:
			b := &binding{u: u, ch: ch, id: 1}
			ch.cur.Store(b)
			if state == commits {
				b.broker.Commits.Add(1)
			}
			if state == flowing {
				b.broker.Flows.Add(1)
			}
		case amid:
			ch.content = wantBody
		}
		return ch
	}
	m := func(m amqp.Method, args ...any) []byte { return proxytest.Method(1, m, args...) }
	publish := func(exchange, key string, bits byte) []byte { return m(amqp.BasicPublish, 0, exchange, key, bits) }
	for _, x := range []struct {
		name   string
		broker string // rabbit
		state  string // bound
		frame  []byte
		do     deed
		needs  need
		lane   lane
		called bool
		code   uint16 // with text
		text   string
	}{
		{name: "a publish", frame: publish("e", "k", 0), do: doPublish},
		{name: "a publish amid content", state: amid, frame: publish("e", "k", 0), do: doRefuse, code: 505, text: "content body"},
		{name: "a publish amid a commit", state: commits, frame: publish("e", "k", 0), do: doPublish, needs: needCommit},
		{name: "a publish, no channel", state: none, frame: publish("e", "k", 0), do: doRefuse, code: 504, text: "expected 'channel.open'"},
		{name: "a publish behind close", state: late, frame: publish("e", "k", 0), do: doSkipLate},
		{name: "a publish, refused", state: refusd, frame: publish("e", "k", 0), do: doSkip},
		{name: "immediate", frame: publish("e", "k", 2), do: doRefuse, code: 540, text: "immediate=true"},
		{name: "immediate", broker: "lavin", frame: publish("e", "k", 2), do: doPublish, needs: needAsk, code: 540, text: "immediate=true"},
		{name: "no reply-to address", frame: publish("", replyToPrefix+"AAAA.key", 0), do: doRefuse, code: 541},
		{name: "an exchange that is no text", frame: publish("\xff", "k", 0), do: doPublish},
		{name: "an exchange that is no text", broker: "lavin", frame: publish("\xff", "k", 0), do: doRefuse, code: 541},
		{name: "ack", frame: m(amqp.BasicAck, uint64(1), 0), do: doPass, lane: laneRead},
		{name: "ack behind close", state: late, frame: m(amqp.BasicAck, uint64(1), 0), do: doDrop},
		{name: "get behind close", state: late, frame: m(amqp.BasicGet, 0, "q", 0), do: doRefuse, code: 504},
		{name: "ack, closing", state: closing, frame: m(amqp.BasicAck, uint64(1), 0), do: doDrop},
		{name: "qos", frame: m(amqp.BasicQos, uint32(0), 10, 0), do: doQos, called: true},
		{name: "qos of a channel", frame: m(amqp.BasicQos, uint32(0), 10, 1), do: doQos, needs: needSession, called: true},
		{name: "qos of a size", frame: m(amqp.BasicQos, uint32(9), 10, 0), do: doRefuse, code: 540, text: "prefetch_size!=0 (9)"},
		{name: "qos of a size", broker: "lavin", frame: m(amqp.BasicQos, uint32(9), 10, 0), do: doQos, needs: needSession | needAsk, called: true, code: 540},
		{name: "get", frame: m(amqp.BasicGet, 0, "q", 0), do: doPass, needs: needWrites | needReaders, lane: laneRead, called: true},
		{name: "get of no name", frame: m(amqp.BasicGet, 0, "", 0), do: doPass, needs: needWrites | needQueue | needReaders, lane: laneRead, called: true},
		{name: "consume without bound", frame: m(amqp.BasicConsume, 0, "q", "t", 0, nil), do: doConsume, needs: needWrites | needSession | needReaders, called: true},
		{name: "cancel", frame: m(amqp.BasicCancel, "t", 0), do: doPass, lane: laneRead, called: true},
		{name: "cancel, no answer", frame: m(amqp.BasicCancel, "t", 1), do: doPass, lane: laneRead},
		{name: "recover", frame: m(amqp.BasicRecover, 1), do: doPass, lane: laneRead, called: true},
		{name: "recover, no requeue", frame: m(amqp.BasicRecover, 0), do: doRefuse, code: 540, text: "requeue=false"},
		{name: "recover-async", broker: "lavin", frame: m(amqp.BasicRecoverAsync, 1), do: doPass, needs: needAsk, lane: laneRead, code: 540},
		{name: "commit", frame: m(amqp.TxCommit), do: doPass, lane: lanePublish, called: true},
		{name: "declare", frame: m(amqp.QueueDeclare, 0, "q", 2, nil), do: doPass, needs: needWrites, called: true},
		{name: "declare exclusive", frame: m(amqp.QueueDeclare, 0, "q", 4, nil), do: doPass, needs: needWrites | needExclusive, called: true},
		{name: "declare exclusive, passive", frame: m(amqp.QueueDeclare, 0, "q", 5, nil), do: doPass, needs: needWrites, called: true},
		{name: "declare transient, no answer", frame: m(amqp.QueueDeclare, 0, "q", 16, nil), do: doPass, needs: needWrites | needPermission},
		{name: "delete if empty", frame: m(amqp.QueueDelete, 0, "q", 2), do: doPass, needs: needWrites | needIsolation, called: true},
		{name: "an exchange type of a plugin", frame: m(amqp.ExchangeDeclare, 0, "e", "x-odd", 2, nil), do: doPass, needs: needWrites | needIsolation, called: true},
		{name: "access.request", broker: "lavin", frame: m(amqp.AccessRequest, "/", 0), do: doPass, needs: needWrites | needAsk, called: true, code: 540},
		{name: "open", state: none, frame: m(amqp.ChannelOpen, ""), do: doOpen},
		{name: "a second open", frame: m(amqp.ChannelOpen, ""), do: doRefuse, code: 504, text: "second 'channel.open'"},
		{name: "close", frame: m(amqp.ChannelClose, 200, "", 0, 0), do: doClose, called: true},
		{name: "close of a refused one", state: refusd, frame: m(amqp.ChannelClose, 200, "", 0, 0), do: doEndClose},
		{name: "close-ok of a refused one", state: refusd, frame: m(amqp.ChannelCloseOk), do: doEnd},
		{name: "close-ok", frame: m(amqp.ChannelCloseOk), do: doRefuse, code: 503},
		{name: "flow-ok", frame: m(amqp.ChannelFlowOk, 1), do: doRefuse, code: 503},
		{name: "flow-ok that is due", state: flowing, frame: m(amqp.ChannelFlowOk, 1), do: doPass},
		{name: "a method of the connection", frame: m(amqp.ConnectionClose, 200, "", 0, 0), do: doRefuse, code: 503},
		{name: "a method of the broker", frame: m(amqp.BasicGetEmpty, ""), do: doRefuse, code: 503},
		{name: "confirms", state: open, frame: m(amqp.ConfirmSelect, 0), do: doConfirm, called: true},
	} {
		if x.broker == "" {
			x.broker = "rabbit"
		}
		c.account.info.Store(infos[x.broker])
		if x.state == "" {
			x.state = bound
		}
		ch := channelAs(x.state)
		before := ledger.Ledger{}
		if ch != nil {
			before = ch.ledger
		}
		for range 2 {
			a := c.decide(ch, amqp.Frame(x.frame))
			if a.do != x.do || a.needs != x.needs ||
				a.do == doPass && (a.lane != x.lane || a.called != x.called) || a.do == doConsume && a.called != x.called {
				t.Errorf("%s, %s: got %+v", x.name, x.broker, a)
			}
			if (a.err != nil) != (x.code != 0) || a.err != nil && (a.err.Code != x.code || !strings.Contains(a.err.Text, x.text)) {
				t.Errorf("%s, %s: got %v, want %d %q", x.name, x.broker, a.err, x.code, x.text)
			}
		}
		if ch != nil && (ch.ledger.Quiet(&ledger.Broker{}) != before.Quiet(&ledger.Broker{}) || c.phase.Load() != phaseRunning) {
			t.Errorf("%s: deciding changed something", x.name)
		}
	}
}

// The short way of an ack and the general one come to the same, or the short one is not taken.
func TestPlainAckIsAnAck(t *testing.T) {
	c, u, _ := halves(t)
	c.account.info.Store(&broker.Info{Product: "LavinMQ", Version: "2.1.0", Confirms: true})
	on := func(change func(*channel, *binding)) *channel {
		ch := &channel{c: c, id: 1}
		b := &binding{u: u, ch: ch, id: 1}
		b.broker.LastTag.Store(5)
		ch.cur.Store(b)
		ch.ledger.Hears(false)
		change(ch, b)
		return ch
	}
	as := func(*channel, *binding) {}
	for _, x := range []struct {
		name   string
		change func(*channel, *binding)
		frame  []byte
		short  bool
	}{
		{"one", as, proxytest.Method(1, amqp.BasicAck, uint64(1), 0), true},
		{"all up to one", as, proxytest.Method(1, amqp.BasicAck, uint64(5), 1), true},
		{"all", as, proxytest.Method(1, amqp.BasicAck, uint64(0), 1), true},
		{"odd bits", as, proxytest.Method(1, amqp.BasicAck, uint64(2), 0xFE), true},
		{"too long", as, append(proxytest.Method(1, amqp.BasicAck, uint64(2), 0), 0), false},
		{"in a transaction", func(ch *channel, b *binding) { ch.ledger.Tx = true }, proxytest.Method(1, amqp.BasicAck, uint64(1), 0), false},
		{"amid a commit", func(ch *channel, b *binding) { b.broker.Commits.Add(1) }, proxytest.Method(1, amqp.BasicAck, uint64(1), 0), false},
		{"amid content", func(ch *channel, b *binding) { ch.content = wantBody }, proxytest.Method(1, amqp.BasicAck, uint64(1), 0), false},
		{"refused", func(ch *channel, b *binding) { ch.state.Store(chRefused) }, proxytest.Method(1, amqp.BasicAck, uint64(1), 0), false},
		{"not bound", func(ch *channel, b *binding) { ch.cur.Store(nil) }, proxytest.Method(1, amqp.BasicAck, uint64(1), 0), false},
	} {
		short, general := on(x.change), on(x.change)
		if got := short.plainAck(x.frame); got != x.short {
			t.Errorf("%s: the short way is taken: %v", x.name, got)
		}
		if !x.short {
			continue
		}
		a := c.decide(general, x.frame)
		if a.do != doPass || a.needs != 0 || a.lane != laneRead || a.called || !c.passNoted(general, x.frame, a) {
			t.Errorf("%s: decided is %+v", x.name, a)
		}
		if a, b := fmt.Sprintf("%+v", short.ledger), fmt.Sprintf("%+v", general.ledger); a != b {
			t.Errorf("%s: the short way notes\n%s, the general one\n%s", x.name, a, b)
		}
	}
}

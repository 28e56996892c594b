// The explorer's world: a broker and two clients, one of them the canary, around a real
// engine, and the rules that what it sends them must keep.

package hazard

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// inbox reads a connection in the background and keeps the frames until they are asked for.
type inbox struct {
	conn net.Conn
	mu   sync.Mutex
	got  []amqp.Frame
	end  error
	skip int // octets before the first frame: the protocol header
}

func newInbox(conn net.Conn, skip int) *inbox {
	b := &inbox{conn: conn, skip: skip}
	go func() {
		head := make([]byte, skip)
		_, err := io.ReadFull(conn, head)
		rd := amqp.NewReader(4096, 1<<20)
		for err == nil {
			_, err = rd.Fill(conn)
			b.mu.Lock()
			for {
				f, ferr := rd.Next()
				if ferr != nil {
					err = ferr
				}
				if f == nil {
					break
				}
				if f.Type() != amqp.FrameHeartbeat {
					b.got = append(b.got, slices.Clone(f))
				}
			}
			b.mu.Unlock()
		}
		b.mu.Lock()
		b.end = err
		b.mu.Unlock()
	}()
	return b
}

func (b *inbox) take() (fs []amqp.Frame, end error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fs, b.got = b.got, nil
	return fs, b.end
}

// brokerChan is an upstream's channel in the broker's eyes.
type brokerChan struct {
	open      bool
	unopened  bool // open-ok not sent yet
	calls     int  // declares not answered
	declares  int  // all of whose it is
	sentClose bool // and waits for close-ok
	told      bool // the proxy has surely seen it
	gotClose  bool // and has not answered
	content   int  // frames of a publish still to come
	dead      bool // closed by the proxy; nothing may come but open
	selects   int  // confirm.select not answered
	confirms  bool
	published uint64
	acked     uint64
	serial    string // of the app's channel that publishes here
	base      uint64 // what those published who had the channel before
	barriers  int    // basic.qos not answered
	asks      bool   // the publish under way is mandatory
	mandatory bool   // something was published that may be returned
	proven    bool   // all that came went well, and the proxy was told so
}

type brokerConn struct {
	*inbox
	n       int
	chans   map[uint16]*brokerChan
	open    bool // open-ok was sent
	closing bool // the proxy said connection.close
	gone    bool
	cut     bool // by the broker
}

// appChan is a client's channel in the client's eyes.
type appChan struct {
	open      bool
	unopened  bool
	calls     int
	sentClose bool
	owes      bool // close-ok
	refused   bool // the server's close came
	serial    string
	selects   int
	confirms  bool
	published uint64
	acked     uint64
}

type appConn struct {
	*inbox
	name   string
	chans  map[uint16]*appChan
	ended  bool // connection.close was sent
	over   bool // and answered
	told   bool // the server said connection.close
	doomed bool // some connection to the broker was cut since the login
}

// world is one run.
type world struct {
	t       *testing.T
	srv     *proxy.Server
	front   *proxytest.MemListener
	back    *proxytest.MemListener
	brokers []*brokerConn
	mu      sync.Mutex
	fresh   []*brokerConn // accepted, not yet looked at
	app     *appConn
	canary  *appConn
	trace   []string
	broken  string
	crossed bool // the broker answers a close that crosses its own, as RabbitMQ does
	reused  map[string]int
	serials int
	chanMax uint16            // small, so that ids come round
	refused map[string]bool   // serials of channels that the broker closed
	acked   map[string]uint64 // how far the broker has confirmed, by serial
	cuts    bool              // the broker may cut connections
	reuse   bool              // channels are kept for the next; the broker then sends only what it has cause for
	served  uint64            // how often a channel went from one to another
	sung    int               // publishes of the canary that arrived
}

func (w *world) note(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf(format, args...))
}

// violation records the first thing that must not be.
func (w *world) violation(format string, args ...any) {
	if w.broken == "" {
		w.broken = fmt.Sprintf(format, args...)
		w.note("VIOLATION: %s", w.broken)
	}
}

func (w *world) settle() {
	synctest.Wait()
	w.mu.Lock()
	w.brokers = append(w.brokers, w.fresh...)
	w.fresh = nil
	w.mu.Unlock()
	for range 10 { // what the broker answers by itself may bring more
		if !w.drain() {
			break
		}
		synctest.Wait()
	}
	for _, c := range w.brokers {
		for _, ch := range c.chans {
			ch.told = ch.sentClose
		}
	}
}

// drain looks at all that has come. True: the broker answered something.
func (w *world) drain() (answered bool) {
	for _, c := range w.brokers {
		fs, end := c.take()
		for _, f := range fs {
			answered = w.atBroker(c, f) || answered
		}
		if end != nil && !c.gone {
			c.gone = true
			if !c.closing && c.open {
				w.violation("the proxy cut connection #%d to the broker: %v", c.n, end)
			}
			c.conn.Close()
		}
	}
	for _, a := range []*appConn{w.app, w.canary} {
		if a == nil {
			continue
		}
		fs, end := a.take()
		for _, f := range fs {
			w.atApp(a, f)
		}
		if end != nil && !a.ended {
			w.violation("%s was cut: %v", a.name, end)
			a.ended = true
		}
	}
	return answered
}

func (w *world) atBroker(c *brokerConn, f amqp.Frame) (answered bool) {
	w.note("    broker#%d <- %s", c.n, words(f))
	id := f.Channel()
	if id == 0 {
		switch f.Method() {
		case amqp.ConnectionStartOk:
			c.send(amqp.AppendTune(nil, amqp.ConnectionTune, amqp.Tune{ChannelMax: w.chanMax, FrameMax: 131072}))
		case amqp.ConnectionTuneOk:
		case amqp.ConnectionOpen:
			c.send(amqp.AppendMethod(nil, 0, amqp.ConnectionOpenOk, 0))
			c.open = true
		case amqp.ConnectionClose:
			c.closing = true
			c.send(amqp.AppendMethod(nil, 0, amqp.ConnectionCloseOk))
			c.conn.(*proxytest.MemConn).CloseWrite()
		default:
			w.violation("broker#%d got %s on channel 0", c.n, words(f))
		}
		return true
	}
	ch := c.chans[id]
	if ch == nil {
		ch = &brokerChan{}
		c.chans[id] = ch
	}
	m := amqp.Method(0)
	if f.Type() == amqp.FrameMethod {
		m = f.Method()
	}
	switch {
	case !ch.open && m == amqp.ChannelOpen:
		w.reused[fmt.Sprintf("%d/%d", c.n, id)]++
		*ch = brokerChan{open: true, unopened: true, proven: true}
	case !ch.open:
		w.violation("broker#%d: %s on a channel that is not open (504 for all)", c.n, words(f))
	case m == amqp.ChannelOpen:
		w.violation("broker#%d: second channel.open on %d (504 for all)", c.n, id)
	case ch.gotClose:
		w.violation("broker#%d: %s behind the proxy's own channel.close", c.n, words(f))
	case ch.content > 0:
		if (f.Type() == amqp.FrameHeader) != (ch.content == 2) || m != 0 {
			w.violation("broker#%d: %s amid content (505 for all)", c.n, words(f))
		}
		if ch.content--; ch.content == 0 {
			w.use(c, id, string(f.Payload()))
			ch.mandatory = ch.mandatory || ch.asks
			if !ch.sentClose {
				ch.published++
			}
			if ch.serial == canarySerial {
				w.sung++
			}
		}
	case ch.sentClose && m == amqp.ChannelClose:
		if ch.dead {
			w.violation("broker#%d: a second channel.close on %d", c.n, id)
		}
		ch.dead = true
		if ch.told {
			w.violation("broker#%d: channel.close on %d, which the proxy knew to be closed", c.n, id)
		}
		if w.crossed {
			c.send(amqp.AppendMethod(nil, id, amqp.ChannelCloseOk))
			return true
		}
	case ch.sentClose && m == amqp.ChannelCloseOk:
		*ch = brokerChan{}
	case ch.sentClose:
		if ch.told {
			w.violation("broker#%d: %s on a channel that the proxy knew to be closed", c.n, words(f))
		}
		if m == amqp.BasicPublish {
			ch.content = 2
		}
	case m == amqp.ChannelClose:
		ch.gotClose = true
	case m == amqp.ChannelCloseOk:
		w.violation("broker#%d: close-ok on %d that nobody asked for (503 for all)", c.n, id)
	case m == amqp.QueueDeclare:
		args := amqp.ReadArgs(f)
		args.Short()
		w.use(c, id, string(args.Str()))
		ch.calls++
		ch.declares++
	case m == amqp.BasicPublish:
		args := amqp.ReadArgs(f)
		args.Short()
		args.Str()
		args.Str()
		ch.asks = args.Octet()&1 != 0
		ch.content = 2
	case m == amqp.BasicQos && w.reuse:
		if ch.barriers++; ch.barriers > 1 {
			w.violation("broker#%d: a second barrier on %d", c.n, id)
		}
	case m == amqp.ConfirmSelect:
		ch.selects++
	default:
		w.violation("broker#%d: %s unasked for", c.n, words(f))
	}
	return false
}

// use notes whose frames come on a channel. One that is kept is another's only when nothing of
// those before can reach it.
func (w *world) use(c *brokerConn, id uint16, serial string) {
	ch := c.chans[id]
	if ch.serial != serial && ch.serial != "" {
		if w.served++; !w.reuse || !ch.proven || ch.mandatory || ch.barriers > 0 {
			w.violation("broker#%d: channel %d serves %q, and %q may have more to come (proven %v, may be returned %v, barriers %d)",
				c.n, id, serial, ch.serial, ch.proven, ch.mandatory, ch.barriers)
		}
		ch.base, ch.declares = ch.published, 0
	}
	ch.serial, ch.proven = serial, false
}

func (w *world) atApp(a *appConn, f amqp.Frame) {
	w.note("    %s <- %s", a.name, words(f))
	m := amqp.Method(0)
	if f.Type() == amqp.FrameMethod {
		m = f.Method()
	}
	id := f.Channel()
	if a.told {
		return // clients discard what follows connection.close
	}
	if id == 0 {
		switch {
		case m == amqp.ConnectionCloseOk && a.ended:
			a.over = true
			a.conn.Close()
			return
		case m == amqp.ConnectionClose && a.doomed && !a.told:
			a.told, a.ended, a.over = true, true, true
			a.send(method(0, amqp.ConnectionCloseOk))
			a.conn.Close()
			return
		}
		w.violation("%s got %s", a.name, words(f))
		a.ended = true
		return
	}
	if a.ended && !a.over {
		return // a client that said connection.close discards all but its answer
	}
	ch := a.chans[id]
	switch {
	case a.over:
		w.violation("%s got %s behind connection.close-ok", a.name, words(f))
	case ch == nil || !ch.open:
		w.violation("%s got %s on a channel it knows to be closed", a.name, words(f))
	case m == amqp.ChannelOpenOk:
		if !ch.unopened {
			w.violation("%s got a second open-ok", a.name)
		}
		ch.unopened = false
	case ch.unopened:
		w.violation("%s got %s before open-ok", a.name, words(f))
	case m == amqp.ChannelClose:
		if ch.refused {
			w.violation("%s got a second channel.close", a.name)
		}
		ch.refused, ch.owes = true, true
	case m == amqp.ChannelCloseOk:
		if !ch.sentClose {
			w.violation("%s got close-ok unasked", a.name)
		}
		ch.sentClose = false
		if (ch.calls > 0 || ch.selects > 0) && !w.refused[ch.serial] && !ch.refused {
			w.violation("%s got close-ok before the answer to its call", a.name)
		}
		if ch.acked < ch.published && ch.confirms && !ch.refused {
			for _, c := range w.brokers {
				for id, b := range c.chans {
					if b.serial == ch.serial && b.open && b.gotClose && !c.gone {
						w.violation("%s got close-ok with %d publishes unconfirmed, before the broker closed channel %d", a.name, ch.published-ch.acked, id)
					}
				}
			}
		}
		if !ch.owes {
			*ch = appChan{}
		} else {
			ch.open = true // its own close-ok is still to be sent
		}
	case ch.refused:
		w.violation("%s got %s on a channel it was told is closed", a.name, words(f))
	case m == amqp.QueueDeclareOk:
		if ch.calls--; ch.calls < 0 {
			w.violation("%s got declare-ok unasked", a.name)
		}
	case m == amqp.ConfirmSelectOk:
		if ch.selects--; ch.selects < 0 {
			w.violation("%s got confirm.select-ok unasked", a.name)
		}
	case m == amqp.BasicAck:
		args := amqp.ReadArgs(f)
		tag := args.LongLong()
		ch.acked = max(ch.acked, tag)
		sent := w.acked[ch.serial]
		if tag > ch.published || tag > sent {
			w.violation("%s got a confirm of %d, published %d, confirmed by the broker %d", a.name, tag, ch.published, sent)
		}
	case m == amqp.BasicReturn, f.Type() == amqp.FrameHeader:
	case f.Type() == amqp.FrameBody:
		if got := string(f.Payload()); got != ch.serial {
			w.violation("%s got what is for %q on its channel %q", a.name, got, ch.serial)
		}
	default:
		w.violation("%s got %s", a.name, words(f))
	}
}

func (b *inbox) send(frames ...[]byte) {
	b.conn.SetWriteDeadline(time.Now().Add(time.Second))
	b.conn.Write(cat(frames...)) //nolint:errcheck // an end shows when it is read
}

// connect logs in as far as open-ok.
func (w *world) connect(name string) *appConn {
	conn, err := w.front.Dial(context.Background(), "tcp", "")
	if err != nil {
		w.t.Fatal(err)
	}
	a := &appConn{inbox: newInbox(conn, 0), name: name, chans: map[uint16]*appChan{}}
	a.send(amqp.ProtocolHeader[:])
	steps := map[amqp.Method]func(amqp.Frame){
		amqp.ConnectionStart: func(amqp.Frame) {
			a.send(amqp.AppendStartOk(nil, amqp.AppendStringField(nil, "connection_name", name), "PLAIN", []byte("\x00u\x00p"), "en_US"))
		},
		amqp.ConnectionTune: func(f amqp.Frame) {
			tune, _ := amqp.ParseTune(f)
			tune.Heartbeat = 0
			a.send(amqp.AppendTune(nil, amqp.ConnectionTuneOk, tune), amqp.AppendOpen(nil, "/"))
		},
		amqp.ConnectionOpenOk: nil,
	}
	for range 10 {
		synctest.Wait()
		w.mu.Lock()
		w.brokers = append(w.brokers, w.fresh...)
		w.fresh = nil
		w.mu.Unlock()
		for range 6 {
			answered := false
			for _, c := range w.brokers {
				fs, _ := c.take()
				for _, f := range fs {
					answered = w.atBroker(c, f) || answered
				}
			}
			synctest.Wait()
			if !answered {
				break
			}
		}
		fs, end := a.take()
		for _, f := range fs {
			step, ok := steps[f.Method()]
			if !ok {
				w.violation("%s: login got %s", name, words(f))
				return a
			}
			if step == nil {
				return a
			}
			step(f)
		}
		if end != nil {
			w.violation("%s: login ended: %v", name, end)
			return a
		}
	}
	w.violation("%s: no login", name)
	return a
}

func (w *world) start() {
	w.front, w.back = proxytest.ListenMem("front", 0), proxytest.ListenMem("back", 0)
	cfg := proxy.DefaultConfig()
	cfg.Dial = w.back.Dial
	cfg.MaxUpstreams = 0
	cfg.Logger = slog.New(slog.DiscardHandler)
	cfg.Upstream = proxy.Upstream{Host: "broker", Port: 5672}
	cfg.DrainTimeout = 0
	cfg.ReuseChannels = w.reuse
	srv, err := proxy.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.srv = srv
	if err := srv.Start([]net.Listener{w.front}); err != nil {
		w.t.Fatal(err)
	}
	go func() {
		for n := 1; ; n++ {
			conn, err := w.back.Accept()
			if err != nil {
				return
			}
			c := &brokerConn{inbox: newInbox(conn, len(amqp.ProtocolHeader)), n: n, chans: map[uint16]*brokerChan{}}
			c.send(amqp.AppendStart(nil, amqp.AppendTableField(nil, "capabilities", cat(
				amqp.AppendBoolField(nil, "publisher_confirms", true), amqp.AppendBoolField(nil, "basic.nack", true))), "PLAIN AMQPLAIN", "en_US"))
			w.mu.Lock()
			w.fresh = append(w.fresh, c)
			w.mu.Unlock()
		}
	}()
	w.newCanary()
	w.app = w.connect("app")
	w.openApp(1)
	w.app.send(w.declareApp(1))
	w.settle()
	w.answerAll()
}

const canarySerial = "can"

func (w *world) newCanary() {
	w.canary = w.connect("canary")
	w.canary.chans[1] = &appChan{open: true, unopened: true, serial: canarySerial}
	w.canary.send(chanOpen(1), message(1, "", "q", canarySerial))
}

func (w *world) openApp(id uint16) {
	w.serials++
	w.app.chans[id] = &appChan{open: true, unopened: true, serial: fmt.Sprintf("%03d", w.serials)}
	w.app.send(chanOpen(id))
}

func (w *world) declareApp(id uint16) []byte {
	w.app.chans[id].calls++
	return declare(id, w.app.chans[id].serial, 0)
}

// step is one thing that one of them may do now.
type step struct {
	name string
	do   func()
}

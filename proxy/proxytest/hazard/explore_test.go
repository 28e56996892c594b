// The close protocol explored: a model of both sides makes every choice of who sends what
// and when, and watches what the real engine sends to each. Time and scheduling belong to
// a synctest bubble; every failure prints the steps that lead to it.

package hazard

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

var (
	exploreDepth = flag.Int("depth", 3, "steps of which every sequence is tried")
	exploreRuns  = flag.Int("walks", 1500, "random sequences tried")
	exploreSeed  = flag.Uint64("seed", 1, "of the random sequences")
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
		*ch = brokerChan{open: true, unopened: true}
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
			ch.serial = string(f.Payload())
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
		ch.serial = string(args.Str())
		ch.calls++
	case m == amqp.BasicPublish:
		ch.content = 2
	case m == amqp.ConfirmSelect:
		ch.selects++
	default:
		w.violation("broker#%d: %s unasked for", c.n, words(f))
	}
	return false
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
		if (ch.calls > 0 || ch.selects > 0) && !w.refused[ch.serial] {
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

// steps are all things that may be done, in a fixed order.
func (w *world) steps() (all []step) {
	add := func(name string, do func()) { all = append(all, step{name, do}) }
	a := w.app
	if a == nil || a.over {
		add("app connects", func() { w.app = w.connect("app") })
	} else if !a.ended {
		for id := uint16(1); id <= 2; id++ {
			ch := a.chans[id]
			switch {
			case ch == nil || !ch.open:
				if id == 1 || a.chans[1] != nil {
					add(fmt.Sprintf("app opens %d", id), func() { w.openApp(id) })
				}
				continue
			case ch.owes:
				add(fmt.Sprintf("app answers close of %d", id), func() {
					ch.owes = false
					if !ch.sentClose {
						*ch = appChan{}
					}
					a.send(method(id, amqp.ChannelCloseOk))
				})
				continue
			case ch.unopened || ch.sentClose:
				continue
			}
			if ch.calls < 1 {
				add(fmt.Sprintf("app declares on %d", id), func() { a.send(w.declareApp(id)) })
			}
			if id == 1 {
				add(fmt.Sprintf("app publishes on %d", id), func() {
					ch.published++
					a.send(message(id, "", "q", ch.serial))
				})
				if !ch.confirms && ch.published == 0 {
					add(fmt.Sprintf("app selects confirms on %d", id), func() {
						ch.confirms = true
						ch.selects++
						a.send(method(id, amqp.ConfirmSelect, octet(0)))
					})
				}
			}
			add(fmt.Sprintf("app closes %d", id), func() {
				ch.sentClose = true
				a.send(method(id, amqp.ChannelClose, short(200), str("bye"), long(0)))
			})
		}
		add("app crashes", func() {
			a.ended = true
			proxytest.Abort(a.conn)
			w.app = nil
		})
		add("app crashes amid a publish", func() {
			if ch := a.chans[1]; ch != nil && ch.open && !ch.unopened && !ch.sentClose && !ch.owes {
				a.send(publish(1, "", "q", 0), header(1, 3))
			}
			a.ended = true
			proxytest.Abort(a.conn)
			w.app = nil
		})
		add("app says connection.close", func() {
			a.ended = true
			a.send(method(0, amqp.ConnectionClose, short(200), str("bye"), long(0)))
		})
	}
	for _, c := range w.brokers {
		if c.gone || c.closing {
			continue
		}
		if w.cuts && c.open {
			add(fmt.Sprintf("broker#%d cuts", c.n), func() { w.cut(c) })
		}
		for id := uint16(1); id <= w.chanMax; id++ {
			ch := c.chans[id]
			if ch == nil || !ch.open || w.canarys(c, id) {
				continue
			}
			who := fmt.Sprintf("broker#%d", c.n)
			if ch.sentClose {
				continue
			}
			if ch.calls > 0 {
				add(fmt.Sprintf("%s answers declare on %d", who, id), func() { w.answer(c, id) })
			}
			if ch.confirms && ch.acked < ch.published {
				add(fmt.Sprintf("%s confirms on %d", who, id), func() {
					w.opened(c, id)
					ch.acked = ch.published
					w.acked[ch.serial] = ch.acked
					c.send(method(id, amqp.BasicAck, longlong(ch.acked), octet(1)))
				})
			}
			if ch.gotClose {
				add(fmt.Sprintf("%s sends something late on %d", who, id), func() { w.opened(c, id); c.send(returned(id, ch.serial)) })
				add(fmt.Sprintf("%s answers close of %d", who, id), func() { w.answerClose(c, id) })
				continue
			}
			add(fmt.Sprintf("%s returns on %d", who, id), func() { w.opened(c, id); c.send(returned(id, ch.serial)) })
			add(fmt.Sprintf("%s closes %d", who, id), func() {
				w.opened(c, id)
				ch.sentClose = true
				w.refused[ch.serial] = true
				c.send(amqp.AppendClose(nil, id, &amqp.Error{Code: 404, Text: "NOT_FOUND - x", Method: amqp.QueueDeclare}))
			})
		}
	}
	return all
}

// canarys tells whether the channel is the canary's.
func (w *world) canarys(c *brokerConn, id uint16) bool {
	return c.chans[id] != nil && c.chans[id].serial == canarySerial
}

// cut ends a connection as a lost broker does. Whoever has a channel there must be told
// at once; nobody may be told a confirm that was not given.
func (w *world) cut(c *brokerConn) {
	c.cut, c.gone = true, true
	for _, a := range []*appConn{w.app, w.canary} {
		if a != nil {
			a.doomed = true
		}
	}
	proxytest.Abort(c.conn)
	w.settle()
	time.Sleep(time.Second)
	w.settle()
	for _, a := range []*appConn{w.app, w.canary} {
		if a == nil || a.ended {
			continue
		}
		for id, ch := range a.chans {
			for _, b := range c.chans {
				if ch.open && !ch.sentClose && !ch.refused && b.open && !b.gotClose && !b.sentClose && b.serial == ch.serial && ch.serial != "" {
					w.violation("%s was not told that the connection of its channel %d is lost", a.name, id)
				}
			}
		}
	}
}

// returned is a message that says whose it is.
func returned(id uint16, serial string) []byte {
	return cat(method(id, amqp.BasicReturn, short(312), str("NO_ROUTE"), str(""), str("q")), header(id, 3), body(id, serial))
}

func (w *world) opened(c *brokerConn, id uint16) {
	if ch := c.chans[id]; ch.unopened {
		ch.unopened = false
		c.send(method(id, amqp.ChannelOpenOk, long(0)))
	}
	for ch := c.chans[id]; ch.selects > 0; ch.selects-- {
		ch.confirms = true
		c.send(method(id, amqp.ConfirmSelectOk))
	}
}

func (w *world) answer(c *brokerConn, id uint16) {
	w.opened(c, id)
	ch := c.chans[id]
	for ; ch.calls > 0; ch.calls-- {
		c.send(method(id, amqp.QueueDeclareOk, str("q"), long(0), long(0)))
	}
}

func (w *world) answerClose(c *brokerConn, id uint16) {
	w.answer(c, id) // in the order in which they came
	*c.chans[id] = brokerChan{}
	c.send(method(id, amqp.ChannelCloseOk))
}

// answerAll has the broker answer all that is asked of it until nothing more comes.
func (w *world) answerAll() {
	for range 20 {
		w.settle()
		busy := false
		for _, c := range w.brokers {
			if c.gone || c.closing {
				continue
			}
			for id := uint16(1); id <= w.chanMax; id++ {
				ch := c.chans[id]
				switch {
				case ch == nil || !ch.open || ch.sentClose:
				case ch.gotClose:
					w.answerClose(c, id)
					busy = true
				case ch.calls > 0 || ch.unopened || ch.selects > 0:
					w.answer(c, id)
					busy = true
				}
			}
		}
		if a := w.app; a != nil && !a.ended {
			for id, ch := range a.chans {
				if ch.owes {
					busy = true
					ch.owes = false
					a.send(method(id, amqp.ChannelCloseOk))
					if !ch.sentClose {
						*ch = appChan{}
					}
				}
			}
		}
		if !busy {
			return
		}
	}
	w.violation("the two sides never come to rest")
}

// finish brings all to an end, and looks that nothing hangs and nothing is left.
func (w *world) finish() {
	w.note("end:")
	w.answerAll()
	if a := w.app; a != nil && !a.ended {
		for id, ch := range a.chans {
			switch {
			case ch.unopened:
				w.violation("open-ok of channel %d never came", id)
			case ch.sentClose:
				w.violation("close-ok of channel %d never came", id)
			case ch.open && ch.calls > 0:
				w.violation("declare-ok on channel %d never came", id)
			case ch.open && ch.selects > 0:
				w.violation("confirm.select-ok on channel %d never came", id)
			case ch.open && !ch.owes:
				a.send(w.declareApp(id))
				w.answerAll()
				w.waitOut()
				if w.broken == "" && ch.open && ch.calls > 0 {
					w.violation("channel %d answers no more", id)
				}
			}
		}
	}
	before := w.sung
	if w.canary.ended { // its connection was lost with the broker's: the next login is served
		w.newCanary()
	} else {
		w.canary.send(message(1, "", "q", canarySerial))
	}
	w.answerAll()
	if w.sung != before+1 {
		w.violation("the canary's publish arrived %d times", w.sung-before)
	}
	if a := w.app; a != nil {
		if !a.ended {
			a.ended = true
			a.send(method(0, amqp.ConnectionClose, short(200), str("bye"), long(0)))
		}
		w.answerAll()
		w.waitOut()
		if !a.over {
			w.violation("connection.close was never answered")
		}
	}
	w.answerAll()
	w.waitOut()
	if got := w.srv.Stats(); got.Bindings != 1 || got.Channels != 1 {
		w.violation("%d bindings and %d channels are left beside the canary's, want none", got.Bindings-1, got.Channels-1)
	}
	for _, c := range w.brokers {
		for id, ch := range c.chans {
			if ch.open && !c.cut && !w.canarys(c, id) && !(ch.sentClose && ch.dead) && !c.gone {
				w.violation("broker#%d: channel %d is still open", c.n, id)
			}
		}
	}
}

// waitOut lets the time pass in which a close-ok that never comes is waited for.
func (w *world) waitOut() {
	if !w.crossed {
		time.Sleep(10 * time.Second)
		w.answerAll()
	}
}

// explore makes one run; pick chooses among n things.
func explore(t *testing.T, crossed, cuts bool, chanMax uint16, length int, pick func(n int) int) (w *world) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w = &world{t: t, crossed: crossed, cuts: cuts, chanMax: chanMax, reused: map[string]int{}, refused: map[string]bool{}, acked: map[string]uint64{}}
		w.start()
		for range length {
			if w.broken != "" {
				break
			}
			all := w.steps()
			if len(all) == 0 {
				break
			}
			n := pick(2 * len(all))
			s := all[n/2]
			w.note("%s", s.name)
			s.do()
			if n%2 == 0 {
				w.settle()
			} else {
				w.note("    (at once:)")
			}
		}
		if w.broken == "" {
			w.finish()
		}
		w.srv.Close()
		w.front.Close()
		w.back.Close()
		for _, c := range w.brokers {
			c.conn.Close()
		}
		w.canary.conn.Close()
		if w.app != nil {
			w.app.conn.Close()
		}
		synctest.Wait()
	})
	return w
}

// findings are the distinct violations of many runs, each with the first run that showed it.
type findings struct {
	count map[string]int
	first map[string]string
}

func (fs *findings) add(w *world, picks []int) {
	if w.broken == "" {
		return
	}
	if fs.count == nil {
		fs.count, fs.first = map[string]int{}, map[string]string{}
	}
	if fs.count[w.broken]++; fs.count[w.broken] == 1 {
		fs.first[w.broken] = fmt.Sprintf("choices %v, crossing closes answered: %v, channel_max %d\n%s", picks, w.crossed, w.chanMax, strings.Join(w.trace, "\n"))
	}
}

func (fs *findings) report(t *testing.T) {
	t.Helper()
	for what, n := range fs.count {
		t.Errorf("%d runs: %s\n%s", n, what, fs.first[what])
	}
}

// Every sequence of a few steps.
func TestCloseProtocolExhaustively(t *testing.T) {
	for _, crossed := range []bool{true, false} {
		var picks, width []int
		runs := 0
		var found findings
		for {
			at := 0
			w := explore(t, crossed, true, 3, *exploreDepth, func(n int) int {
				if at == len(picks) {
					picks, width = append(picks, 0), append(width, n)
				}
				width[at] = n
				at++
				return picks[at-1] % n
			})
			runs++
			found.add(w, picks)
			picks, width = picks[:at], width[:at]
			for len(picks) > 0 && picks[len(picks)-1]+1 >= width[len(picks)-1] {
				picks, width = picks[:len(picks)-1], width[:len(picks)-1]
			}
			if len(picks) == 0 {
				break
			}
			picks[len(picks)-1]++
		}
		found.report(t)
		t.Logf("crossing closes answered: %v: %d sequences of %d steps", crossed, runs, *exploreDepth)
	}
}

// Long random sequences, in which channel ids come round.
func TestCloseProtocolAtRandom(t *testing.T) {
	most := 0
	var found findings
	for run := range *exploreRuns {
		rng := rand.New(rand.NewPCG(*exploreSeed, uint64(run)))
		var picks []int
		w := explore(t, run%4 != 0, run%5 == 0, 2+uint16(run%3), 4+rng.IntN(40), func(n int) int {
			p := rng.IntN(n)
			picks = append(picks, p)
			return p
		})
		for _, n := range w.reused {
			most = max(most, n)
		}
		found.add(w, picks)
	}
	found.report(t)
	t.Logf("%d sequences, an upstream's channel id was used up to %d times", *exploreRuns, most)
	if *exploreRuns >= 1000 && most < 3 {
		t.Error("no id was ever reused: the sequences show nothing about reuse")
	}
}

// What TestSameAsStraight walks with: a client that sends steps, knows from the bytes it
// sends what answers are due, waits for them, and writes down what it hears.

//go:build linux

package integration

import (
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// due bounds the wait for an answer; one that does not come is written down.
const due = 2 * time.Second

// step is one thing a client does. Its bytes are made when it is its turn, for they may
// hold names and delivery tags that were heard before.
type step struct {
	text  string
	bytes func(w *walk) []byte
	// joined steps leave in one write with the step before them.
	joined bool
	// once: what follows has a single connection.
	once bool
	// raw bytes are not looked into; they end the connection.
	raw bool
	// opens is a channel that is opened before it, if it is not open.
	opens uint16
	// ends: the client leaves, "close" or "abort", and connects anew.
	ends string
}

// walk is a client on its way through steps.
type walk struct {
	cfg     proxytest.ClientConfig
	prefix  string // of names, different for each walk, of the same length
	c       *proxytest.Client
	control *proxytest.Client // another client of the identity, which must hear its answers alone
	chans   map[uint16]*walkChannel
	ended   bool
	life    int // connections so far
	group   int
	joined  string // "+" when the group is of several steps
	once    bool   // no new connection
	last    string // the name the server gave last

	names   map[string]string // names that the server made, as they are written down
	streams map[string][]string
	order   []string
	trouble error // of the walk itself or the control client
}

// walkChannel is a channel as the client knows it.
type walkChannel struct {
	id      uint16
	n       int // opened so often: streams of their own
	open    bool
	closing bool
	waits   int // answers due

	content   int // 0 none, 1 header due, 2 body due
	remaining uint64

	confirm    bool
	published  uint64
	unsettled  map[uint64]bool // publishes that are not confirmed
	tags       []uint64        // of deliveries that want an ack and have none
	lastTag    uint64
	consumers  int
	noAck      map[string]bool
	noAckGets  []bool // of the gets under way
	incoming   *incoming
	softInTurn bool // closed by the server in this group
}

// incoming is a message on its way to the client.
type incoming struct {
	line, stream string
	left         uint64
	header       bool
	sum          []byte
}

func (w *walk) say(stream, format string, args ...any) {
	if _, ok := w.streams[stream]; !ok {
		w.order = append(w.order, stream)
	}
	w.streams[stream] = append(w.streams[stream], fmt.Sprintf("[%d%s] ", w.group, w.joined)+w.plain(fmt.Sprintf(format, args...)))
}

var made = regexp.MustCompile(`amq\.(gen|ctag)-[\w-]+`)

// plain has a text with the names of no walk in particular.
func (w *walk) plain(s string) string {
	s = strings.ReplaceAll(s, w.prefix, "")
	return made.ReplaceAllStringFunc(s, func(name string) string {
		if w.names[name] == "" {
			w.names[name] = fmt.Sprintf("made-%d", len(w.names)+1)
		}
		return w.names[name]
	})
}

func (w *walk) name(i int) string { return fmt.Sprintf("%sq%d", w.prefix, i) }

func (w *walk) exchange(i int) string { return fmt.Sprintf("%sx%d", w.prefix, i) }

func (w *walk) channel(id uint16) *walkChannel {
	ch := w.chans[id]
	if ch == nil {
		ch = &walkChannel{id: id}
		w.chans[id] = ch
	}
	return ch
}

func (w *walk) stream(ch *walkChannel, kind string) string {
	return fmt.Sprintf("connection %d channel %d.%d %s", w.life, ch.id, ch.n, kind)
}

func (w *walk) connect() error {
	c, err := rawDial(w.cfg)
	if err != nil {
		return err
	}
	w.c, w.ended = c, false
	w.chans = map[uint16]*walkChannel{}
	w.life++
	return nil
}

func rawDial(cfg proxytest.ClientConfig) (*proxytest.Client, error) {
	cfg.Timeout = patience
	return proxytest.Dial(cfg)
}

// sent follows the bytes of the client's own frames.
func (w *walk) sent(b []byte) {
	frames, err := proxytest.Frames(b)
	if err != nil {
		return
	}
	for _, f := range frames {
		if f.Channel() == 0 {
			continue
		}
		ch := w.channel(f.Channel())
		switch f.Type() {
		case amqp.FrameHeader:
			if ch.content == 1 && len(f.Payload()) >= 14 {
				ch.content, ch.remaining = 2, f.BodySize()
				ch.whole()
			}
		case amqp.FrameBody:
			if ch.content == 2 {
				ch.remaining -= min(ch.remaining, uint64(len(f.Payload())))
				ch.whole()
			}
		case amqp.FrameMethod:
			w.sentMethod(ch, f)
		}
	}
}

func (ch *walkChannel) whole() {
	if ch.remaining > 0 {
		return
	}
	ch.content = 0
	if ch.confirm {
		ch.published++
		ch.unsettled[ch.published] = true
	}
}

func (w *walk) sentMethod(ch *walkChannel, f amqp.Frame) {
	m, spec := f.Method(), f.Method().Spec()
	bits, err := spec.CheckArgs(f.Args())
	if err != nil || spec.Name == "" {
		return
	}
	if spec.Sync && (spec.NoWait == 0 || bits&spec.NoWait == 0) {
		ch.waits++
	}
	switch m {
	case amqp.ChannelOpen:
		if !ch.open {
			*ch = walkChannel{id: ch.id, n: ch.n + 1, open: true, waits: ch.waits, unsettled: map[uint64]bool{}, noAck: map[string]bool{}}
		}
	case amqp.ChannelClose:
		if !ch.open {
			break
		}
		ch.open, ch.closing = false, true
	case amqp.BasicPublish:
		if ch.open {
			ch.content = 1
		}
	case amqp.ConfirmSelect:
		if !ch.confirm {
			ch.confirm = true
		}
	case amqp.BasicConsume:
		ch.consumers++
		a := amqp.ReadArgs(f)
		a.Short()
		a.Str()
		if tag := string(a.Str()); bits&2 != 0 {
			ch.noAck[tag] = true
		}
	case amqp.BasicGet:
		ch.noAckGets = append(ch.noAckGets, bits&1 != 0)
	case amqp.BasicAck, amqp.BasicNack, amqp.BasicReject:
		tag, multiple := ch.settles(f, bits)
		ch.tags = slices.DeleteFunc(ch.tags, func(t uint64) bool { return t == tag || multiple && (t <= tag || tag == 0) })
	}
}

func (ch *walkChannel) settles(f amqp.Frame, bits byte) (tag uint64, multiple bool) {
	a := amqp.ReadArgs(f)
	return a.LongLong(), f.Method() != amqp.BasicReject && bits&1 != 0
}

// barrier waits for what the channel's earlier frames bring about.
func barrier(id uint16) []byte {
	return proxytest.Method(id, amqp.ExchangeDeclare, 0, "amq.direct", "direct", 1, nil)
}

const barrierChannel = 9

// run goes through all steps, and then through what they left at the broker.
func (w *walk) run(steps []step, control *proxytest.Client) {
	w.names, w.streams, w.control = map[string]string{}, map[string][]string{}, control
	if err := w.connect(); err != nil {
		w.trouble = err
		return
	}
	defer func() { w.c.Abort() }()
	for i := 0; i < len(steps) && w.trouble == nil; {
		j := i + 1
		for j < len(steps) && steps[j].joined && steps[i].ends == "" && steps[j].ends == "" && !strings.Contains(steps[j-1].text, "channel.close") {
			j++
		}
		w.turn(steps[i:j])
		w.once = w.once || steps[0].once
		i = j
	}
	if w.trouble == nil && !w.ended {
		w.leave("close")
	}
	w.c.Abort()
	if w.trouble == nil {
		w.left()
	}
}

// turn sends steps in one write and waits for all that they bring about.
func (w *walk) turn(steps []step) {
	w.group++
	w.joined = ""
	if len(steps) > 1 {
		w.joined = "+"
	}
	if w.ended && w.once {
		return
	}
	if w.ended {
		w.c.Abort()
		time.Sleep(20 * time.Millisecond) // until the broker has seen it, too
		if w.trouble = w.connect(); w.trouble != nil {
			return
		}
	}
	if steps[0].ends != "" {
		w.leave(steps[0].ends)
		return
	}
	for _, ch := range w.chans {
		ch.softInTurn = false
	}
	var out []byte
	touched, raw := map[uint16]bool{}, false
	for _, s := range steps {
		if s.opens != 0 && !w.channel(s.opens).open && !w.channel(s.opens).softInTurn {
			open := proxytest.Method(s.opens, amqp.ChannelOpen, "")
			out = append(out, open...)
			w.sent(open)
		}
		b := s.bytes(w)
		out = append(out, b...)
		if raw = raw || s.raw; raw {
			continue
		}
		w.sent(b)
		frames, _ := proxytest.Frames(b)
		for _, f := range frames {
			touched[f.Channel()] = true
		}
	}
	aside := raw
	for _, id := range slices.Sorted(maps.Keys(touched)) {
		ch := w.chans[id]
		switch {
		case raw:
		case ch != nil && ch.open && ch.content == 0:
			out = append(out, barrier(id)...)
			w.sent(barrier(id))
		default:
			aside = true
		}
	}
	if aside && !raw {
		if ch := w.channel(barrierChannel); !ch.open {
			open := proxytest.Method(barrierChannel, amqp.ChannelOpen, "")
			out = append(out, open...)
			w.sent(open)
		}
		out = append(out, barrier(barrierChannel)...)
		w.sent(barrier(barrierChannel))
	}
	_ = w.c.Send(out) // if the connection ends, its end is heard
	w.hear(raw)
	if w.ended {
		return
	}
	w.deliveries()
}

// hear waits for the answers that are due, or for the end.
func (w *walk) hear(end bool) {
	deadline := time.Now().Add(due)
	for !w.ended && (end || w.awaited() != "") {
		if !w.next(time.Until(deadline)) {
			if end {
				w.say(w.conn(), "TIMEOUT: no end")
			} else {
				w.say(w.conn(), "TIMEOUT: %s", w.awaited())
			}
			w.ended = true
		}
	}
}

func (w *walk) conn() string { return fmt.Sprintf("connection %d", w.life) }

func (w *walk) awaited() string {
	for _, id := range slices.Sorted(maps.Keys(w.chans)) {
		ch := w.chans[id]
		switch {
		case ch.waits > 0:
			return fmt.Sprintf("channel %d: %d answers due", ch.id, ch.waits)
		case ch.open && len(ch.unsettled) > 0:
			return fmt.Sprintf("channel %d: %d confirms due", ch.id, len(ch.unsettled))
		case ch.incoming != nil:
			return fmt.Sprintf("channel %d: a message is not whole", ch.id)
		}
	}
	return ""
}

// deliveries waits for those that come by themselves: each queue has done what came
// before, then each channel.
func (w *walk) deliveries() {
	consumers := false
	for _, ch := range w.chans {
		consumers = consumers || ch.open && ch.consumers > 0
	}
	if !consumers {
		for w.next(0) {
		}
		return
	}
	for i := range walkQueues {
		if _, err := w.count(i); err != nil {
			w.trouble = err
			return
		}
	}
	var out []byte
	for _, id := range slices.Sorted(maps.Keys(w.chans)) {
		if ch := w.chans[id]; ch.open && ch.content == 0 && ch.consumers > 0 {
			out = append(out, barrier(id)...)
			w.sent(barrier(id))
		}
	}
	if out != nil {
		_ = w.c.Send(out)
		w.hear(false)
	}
	for !w.ended && w.next(2*time.Millisecond) {
	}
}

// count asks for a queue's messages on the control client.
func (w *walk) count(i int) (string, error) {
	n, err := w.control.QueueLength(1, w.name(i))
	var e *amqp.Error
	if errors.As(err, &e) && e.Method.Class() == amqp.ClassQueue {
		return w.plain(e.Text), w.control.OpenChannel(1)
	}
	return fmt.Sprint(n), err
}

// next takes one frame; false when none comes in time.
func (w *walk) next(within time.Duration) bool {
	if w.ended {
		return false
	}
	f, err := w.c.NextWithin(max(within, 100*time.Microsecond))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	if err != nil {
		w.say(w.conn(), "cut off")
		w.ended = true
		return true
	}
	w.take(f)
	return true
}

func (w *walk) take(f amqp.Frame) {
	id := f.Channel()
	if id == 0 {
		w.say(w.conn(), "%s", proxytest.Describe(f))
		if f.Type() == amqp.FrameMethod && (f.Method() == amqp.ConnectionClose || f.Method() == amqp.ConnectionCloseOk) {
			if f.Method() == amqp.ConnectionClose {
				_ = w.c.SendMethod(0, amqp.ConnectionCloseOk)
			}
			w.ended = true
		}
		return
	}
	ch := w.channel(id)
	if in := ch.incoming; in != nil || f.Type() != amqp.FrameMethod {
		w.takeContent(ch, in, f)
		return
	}
	m, a := f.Method(), amqp.ReadArgs(f)
	said := w.stream(ch, "replies")
	switch m {
	case amqp.BasicDeliver:
		consumer, tag, redelivered, x, key := string(a.Str()), a.LongLong(), a.Octet(), string(a.Str()), string(a.Str())
		ch.incoming = &incoming{stream: w.stream(ch, "deliveries to "+w.plain(consumer)),
			line: fmt.Sprintf("%d redelivered %d exchange %q key %q", tag, redelivered, x, key)}
		ch.lastTag = tag
		if !ch.noAck[consumer] {
			ch.tags = append(ch.tags, tag)
		}
	case amqp.BasicGetOk:
		tag, redelivered, x, key, left := a.LongLong(), a.Octet(), string(a.Str()), string(a.Str()), a.Long()
		ch.incoming = &incoming{stream: said, line: fmt.Sprintf("get-ok %d redelivered %d exchange %q key %q, %d left", tag, redelivered, x, key, left)}
		ch.lastTag = tag
		ch.waits--
		if noAck := ch.got(); !noAck {
			ch.tags = append(ch.tags, tag)
		}
	case amqp.BasicReturn:
		ch.incoming = &incoming{stream: said, line: "return " + proxytest.Describe(f)}
	case amqp.BasicAck, amqp.BasicNack:
		tag, bits := a.LongLong(), a.Octet()
		for _, t := range slices.Sorted(maps.Keys(ch.unsettled)) {
			if t == tag || bits&1 != 0 && t <= tag {
				delete(ch.unsettled, t)
				w.say(w.stream(ch, "confirms"), "%v %d", m, t)
			}
		}
		if tag > ch.published {
			w.say(w.stream(ch, "confirms"), "%v of %d, published %d", m, tag, ch.published)
		}
	case amqp.BasicCancel:
		w.say(w.stream(ch, "cancels"), "%s", proxytest.Describe(f))
	case amqp.ChannelClose:
		if ch.softInTurn && strings.Contains(string(f.Args()), "no previously declared queue") {
			return // RabbitMQ says so even after the close of the channel; the proxy does not
		}
		w.say(said, "%s", proxytest.Describe(f))
		_ = w.c.SendMethod(id, amqp.ChannelCloseOk)
		ch.open, ch.content, ch.softInTurn, ch.waits = false, 0, true, 0
		if ch.closing {
			ch.waits = 1
		}
	default:
		if m == amqp.BasicGetEmpty {
			ch.got()
		}
		if m == amqp.ChannelCloseOk {
			ch.closing, ch.waits = false, 1
		}
		if m == amqp.ExchangeDeclareOk { // most are the walk's own
			ch.waits--
			return
		}
		if m == amqp.QueueDeclareOk {
			if name := string(a.Str()); strings.HasPrefix(name, "amq.gen") {
				w.last = name
			}
		}
		if m == amqp.BasicConsumeOk && ch.noAck[""] {
			ch.noAck[string(a.Str())] = true
			delete(ch.noAck, "")
		}
		// The queue has consume-ok sent, in no order with what the channel says itself.
		if m != amqp.BasicConsumeOk || w.joined == "" {
			w.say(said, "%s", proxytest.Describe(f))
		}
		ch.waits--
	}
}

func (ch *walkChannel) got() (noAck bool) {
	if len(ch.noAckGets) > 0 {
		noAck, ch.noAckGets = ch.noAckGets[0], ch.noAckGets[1:]
	}
	return noAck
}

func (w *walk) takeContent(ch *walkChannel, in *incoming, f amqp.Frame) {
	switch {
	case in != nil && f.Type() == amqp.FrameHeader && !in.header:
		in.header, in.left = true, f.BodySize()
		in.line += fmt.Sprintf(", %d octets, properties %s", in.left, hex.EncodeToString(f.Payload()[12:]))
	case in != nil && f.Type() == amqp.FrameBody && in.header:
		in.left -= min(in.left, uint64(len(f.Payload())))
		in.sum = append(in.sum, f.Payload()...)
	default:
		w.say(w.stream(ch, "replies"), "STRAY %s", proxytest.Describe(f))
		return
	}
	if in.left > 0 {
		return
	}
	if ch.incoming = nil; ch.open || in.stream == w.stream(ch, "replies") { // else too late: clients ignore it
		w.say(in.stream, "%s, body %s", in.line, digest(in.sum))
	}
}

func digest(b []byte) string {
	h := fnv.New32a()
	_, _ = h.Write(b)
	return fmt.Sprintf("%.6q… %08x", b, h.Sum32())
}

// leave ends the connection.
func (w *walk) leave(how string) {
	if how == "close" {
		_ = w.c.SendMethod(0, amqp.ConnectionClose, 200, "", 0, 0)
		w.hear(true)
	}
	w.ended = true
}

// left is what the walk leaves behind: messages in queues.
func (w *walk) left() {
	time.Sleep(5 * time.Millisecond)
	for i := range walkQueues {
		said := fmt.Sprintf("left in q%d", i)
		n, err := w.count(i)
		if err != nil {
			w.trouble = err
			return
		}
		w.say(said, "%s", n)
		if strings.Contains(n, " ") {
			continue
		}
		for {
			m, err := w.control.Get(1, w.name(i), true)
			if errors.Is(err, proxytest.ErrEmpty) {
				break
			}
			if err != nil {
				w.trouble = err
				return
			}
			w.say(said, "redelivered %v exchange %q key %q, properties %x, body %s", m.Redelivered, m.Exchange, m.Key, m.Properties, digest(m.Body))
		}
		if err := w.control.DeleteQueue(1, w.name(i)); err != nil {
			w.trouble = err
			return
		}
	}
	for i := range walkExchanges {
		if err := w.control.Call(proxytest.Method(1, amqp.ExchangeDelete, 0, w.exchange(i), 0), amqp.ExchangeDeleteOk); err != nil {
			w.trouble = err
			return
		}
	}
	for name := range w.names {
		if strings.HasPrefix(name, "amq.gen") {
			if err := w.control.DeleteQueue(1, name); err != nil {
				var e *amqp.Error
				if !errors.As(err, &e) || e.Code != 405 {
					w.trouble = err
					return
				}
				w.trouble = w.control.OpenChannel(1)
			}
		}
	}
	if f, err := w.control.NextWithin(time.Microsecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		w.trouble = fmt.Errorf("the control client heard %v, %v", f, err)
	}
}

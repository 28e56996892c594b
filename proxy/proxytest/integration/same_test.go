// The same random steps of a client, straight to RabbitMQ and through the proxy: what the
// client hears and what it leaves behind must be the same. SEED=n runs one
// sequence again, FROM=n begins there, VERBOSE=1 shows where the broker itself varies.

//go:build linux

package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// queues and exchanges that steps name.
const walkQueues, walkExchanges = 3, 2

var walks atomic.Uint64

// side is one way to the broker, with a client beside those that walk.
type side struct {
	name    string
	addr    string
	fast    bool // closes of quiet channels are answered at once
	control *proxytest.Client
	bird    *proxytest.CanaryBird
}

func newSide(t *testing.T, name, addr string) *side {
	t.Helper()
	s := &side{name: name, addr: addr}
	s.control = raw(t, proxytest.ClientConfig{Addr: addr, Name: "control", Timeout: patience})
	s.bird = proxytest.NewCanary(t, proxytest.ClientConfig{Addr: addr, Timeout: patience})
	return s
}

// heard is what a client heard on its walk, line by line.
func (s *side) heard(t *testing.T, steps []step, fast bool) []string {
	t.Helper()
	n := walks.Add(1)
	w := &walk{prefix: fmt.Sprintf("s%08x%08x-", uint32(os.Getpid()), n)}
	// A name of its own: what the proxy remembers of one must not tell on the next.
	w.cfg = proxytest.ClientConfig{Addr: s.addr, Name: fmt.Sprintf("walk %d", n)}
	w.run(steps, s.control)
	s.bird.Sing()
	if w.trouble != nil {
		t.Fatalf("%s: %v", s.name, w.trouble)
	}
	return w.lines(fast)
}

// lines are the streams, one after another: their order among each other says nothing.
func (w *walk) lines(fast bool) []string {
	w.forgive(fast)
	slices.Sort(w.order)
	var out []string
	for _, name := range w.order {
		if lines := w.streams[name]; strings.HasSuffix(name, "confirms") {
			slices.Sort(lines)
		}
		for _, line := range w.streams[name] {
			out = append(out, name+": "+line)
		}
	}
	return out
}

// alike tells whether both heard the same. What ends a connection is judged without waiting
// for the answers to what was sent right before it: where the broker closes the channel for
// that, and then ignores the rest, the proxy closes the connection.
func alike(got, want []string) bool {
	if slices.Equal(got, want) {
		return true
	}
	for _, line := range got {
		_, turn, ok := strings.Cut(line, ": [")
		turn, what, _ := strings.Cut(turn, "]")
		if !ok || !strings.HasSuffix(turn, "+") || !strings.Contains(what, "connection.close(") {
			continue
		}
		for _, other := range want {
			if strings.Contains(other, ": ["+turn+"]") && strings.Contains(other, "channel.close(") {
				return true
			}
		}
	}
	return false
}

// forgive takes out what may differ: see "Known limits" in DESIGN.md.
func (w *walk) forgive(fast bool) {
	// What a hard error overtakes: answers under way.
	ends := map[string]string{} // connection: the turn of its end
	for name, lines := range w.streams {
		for i, line := range lines {
			if strings.HasPrefix(name, "connection") && !strings.Contains(name, " channel ") {
				turn, what, _ := strings.Cut(line, "] ")
				if strings.Contains(what, "connection.close(") || what == "cut off" {
					ends[name] = turn
				}
				// RabbitMQ says nothing, the proxy says why.
				if what == "cut off" || strings.Contains(what, "connection.close(502") || strings.Contains(what, "connection.close(503, \"COMMAND_INVALID - unknown") {
					lines[i] = turn + "] cut off"
				}
				// RabbitMQ writes out frames that are none.
				for _, code := range []string{"501", "505"} {
					if strings.Contains(what, "connection.close("+code) && !strings.Contains(what, "UNEXPECTED_FRAME - expected") {
						lines[i] = turn + "] " + code
					}
				}
			}
		}
	}
	for name, lines := range w.streams {
		conn, _, ok := strings.Cut(name, " channel ")
		if !ok {
			continue
		}
		turn, ended := ends[conn]
		w.streams[name] = slices.DeleteFunc(lines, func(line string) bool {
			return ended && strings.HasPrefix(line, turn+"]")
		})
	}
	// Answered at once: qos and confirm.select although an earlier frame closes the channel;
	// a channel's close, although the broker has yet to complain.
	for name, lines := range w.streams {
		if !strings.HasSuffix(name, "replies") {
			continue
		}
		closed, left := map[string]bool{}, map[string]bool{}
		for _, line := range lines {
			turn, what, _ := strings.Cut(line, "] ")
			closed[turn] = closed[turn] || strings.Contains(what, "channel.close(")
			left[turn] = left[turn] || strings.Contains(what, "channel.close_ok")
		}
		w.streams[name] = slices.DeleteFunc(lines, func(line string) bool {
			turn, what, _ := strings.Cut(line, "] ")
			return (closed[turn] || fast && left[turn]) && (strings.Contains(what, "basic.qos_ok") || strings.Contains(what, "confirm.select_ok")) ||
				fast && left[turn] && strings.Contains(what, "channel.close(")
		})
	}
}

func TestSameAsStraight(t *testing.T) {
	n := count(25, 3000)
	var seeds []uint64
	if s := os.Getenv("SEED"); s != "" {
		from, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("SEED: %v", err)
		}
		seeds = []uint64{from}
	} else {
		first := uint64(1)
		if full {
			first = uint64(time.Now().UnixNano()) % 1e9
		}
		if s := os.Getenv("FROM"); s != "" {
			first, _ = strconv.ParseUint(s, 10, 64)
		}
		for i := range n {
			seeds = append(seeds, first+uint64(i))
		}
	}
	for _, v := range versions(t) {
		t.Run(string(v), func(t *testing.T) {
			b := rabbit.Get(t, v)
			direct := newSide(t, "straight", b.Addr())
			var sides []*side
			if !straight {
				for _, mode := range []string{"auto", "session"} {
					fast := mode == "auto"
					p := startProxy(t, true, b.URL(), fmt.Sprintf("[[listener]]\npool_mode = %q\n[pool]\nfast_close = %v\n", mode, fast))
					s := newSide(t, mode, p.addr)
					s.fast = fast
					sides = append(sides, s)
				}
			}
			bad, moods := 0, 0
			for _, seed := range seeds {
				for _, s := range sides {
					steps := sequence(seed, s.name)
					want := direct.heard(t, steps, s.fast)
					if os.Getenv("SEED") != "" {
						t.Logf("steps:\n%s\nheard:\n%s", texts(steps), strings.Join(want, "\n"))
					}
					got := s.heard(t, steps, s.fast)
					if alike(got, want) {
						continue
					}
					if !differs(t, direct, s, steps, got, 5) {
						moods++
						if os.Getenv("VERBOSE") != "" {
							t.Logf("seed %d, mode %s, at times\n%s%s", seed, s.name, texts(steps), difference(got, want))
						}
						continue
					}
					bad++
					least := shrink(t, direct, s, steps)
					got, want = s.heard(t, least, s.fast), direct.heard(t, least, s.fast)
					t.Errorf("SEED=%d, mode %s\nsteps:\n%s%s", seed, s.name, texts(least), difference(got, want))
				}
				if bad >= 6 {
					break
				}
			}
			t.Logf("%d sequences of %d steps in the mean; %d times the broker itself said now this, now that", len(seeds), meanSteps(seeds), moods)
		})
	}
}

func meanSteps(seeds []uint64) (mean int) {
	for _, seed := range seeds {
		mean += len(sequence(seed, "auto"))
	}
	return mean / len(seeds)
}

// differs tells whether the broker itself never says what was heard through the proxy.
func differs(t *testing.T, direct, s *side, steps []step, got []string, tries int) bool {
	for range tries {
		if alike(got, direct.heard(t, steps, s.fast)) {
			return false
		}
	}
	// Nor the proxy what the broker says: then neither is it chance.
	want := direct.heard(t, steps, s.fast)
	for range tries {
		if alike(s.heard(t, steps, s.fast), want) {
			return false
		}
	}
	return true
}

// shrink leaves out steps while the difference stays.
func shrink(t *testing.T, direct, s *side, steps []step) []step {
	began := time.Now()
	for size := max(1, len(steps)/2); ; {
		smaller := false
		for at := 0; at < len(steps) && time.Since(began) < 15*time.Second; {
			less := slices.Concat(steps[:at], steps[min(at+size, len(steps)):])
			if len(less) > 0 && differs(t, direct, s, less, s.heard(t, less, s.fast), 1) {
				steps, smaller = less, true
			} else {
				at += size
			}
		}
		if size == 1 && !smaller || time.Since(began) > 15*time.Second {
			return steps
		}
		if !smaller {
			size = max(1, size/2)
		}
	}
}

func texts(steps []step) string {
	var b strings.Builder
	for _, s := range steps {
		join := "- "
		if s.joined {
			join = "  + "
		}
		b.WriteString(join + s.text + "\n")
	}
	return b.String()
}

// difference shows both, where they part.
func difference(got, want []string) string {
	var b strings.Builder
	for _, line := range want {
		if !slices.Contains(got, line) {
			b.WriteString("straight:  " + line + "\n")
		}
	}
	for _, line := range got {
		if !slices.Contains(want, line) {
			b.WriteString("proxy:     " + line + "\n")
		}
	}
	if b.Len() == 0 {
		fmt.Fprintf(&b, "order:\n%s\n---\n%s\n", strings.Join(want, "\n"), strings.Join(got, "\n"))
	}
	return b.String()
}

// maker makes a sequence. It knows roughly what is open, so that most steps make sense.
type maker struct {
	*rand.Rand
	steps  []step
	mode   string
	joined bool
	opens  uint16 // the channel that is opened before a step, if it is not open
	bodies int
	// exclusive is the bit of exclusive queues where the sequence has any. In mode auto they
	// come first, for a channel that has published cannot move.
	exclusive int
	channels  uint16
	once      bool // it is over when the connection is
}

// sequence is the steps of a seed.
func sequence(seed uint64, mode string) []step {
	m := &maker{Rand: rand.New(rand.NewPCG(seed, 1)), mode: mode}
	m.channels = uint16(1 + m.IntN(3))
	n := 5 + m.IntN(36)
	bits := m.bits(2, 8)
	if m.IntN(4) == 0 {
		m.once = true
		bits = 4 | bits&8
		if mode == "session" {
			m.exclusive = 4
		}
	}
	if m.opens = 1; m.once || m.IntN(4) > 0 {
		m.method(1, amqp.QueueDeclare, 0, queueName(0), bits, nil)
		m.steps[0].once = m.once
	}
	for len(m.steps) < n {
		run := 1
		if m.IntN(3) == 0 {
			run += m.IntN(6)
		}
		ch := 1 + uint16(m.IntN(int(m.channels)))
		for i := range run {
			m.joined = i > 0
			if m.any(ch, run == 1) {
				break
			}
		}
		m.joined = false
	}
	return m.steps
}

// queueName stands for a queue of the walk's own.
type (
	queueName    int
	exchangeName int
	lastMade     struct{}
	// tagOf picks a delivery tag.
	tagOf string
)

// resolve has the walk's names and tags in place of what stands for them.
func (w *walk) resolve(ch uint16, args []any) []any {
	out := slices.Clone(args)
	for i, a := range args {
		switch v := a.(type) {
		case queueName:
			out[i] = w.name(int(v))
		case exchangeName:
			out[i] = w.exchange(int(v))
		case lastMade:
			out[i] = w.last
		case tagOf:
			c := w.channel(ch)
			tag := uint64(0)
			switch {
			case v == "first" && len(c.tags) > 0:
				tag = c.tags[0]
			case v == "latest" && len(c.tags) > 0:
				tag = c.tags[len(c.tags)-1]
			case v == "middle" && len(c.tags) > 0:
				tag = c.tags[len(c.tags)/2]
			case v == "wrong":
				tag = c.lastTag + 7
			case v == "again":
				tag = c.lastTag
			}
			out[i] = tag
		}
	}
	return out
}

func (m *maker) add(text string, bytes func(w *walk) []byte) *step {
	m.steps = append(m.steps, step{text: text, bytes: bytes, joined: m.joined, opens: m.opens})
	return &m.steps[len(m.steps)-1]
}

func (m *maker) method(ch uint16, method amqp.Method, args ...any) {
	m.add(fmt.Sprintf("%d: %v %v", ch, method, args), func(w *walk) []byte {
		return proxytest.Method(ch, method, w.resolve(ch, args)...)
	})
}

// bits picks each with a chance of a quarter.
func (m *maker) bits(of ...int) (b int) {
	for _, bit := range of {
		if m.IntN(4) == 0 {
			b |= bit
		}
	}
	return b
}

func (m *maker) pick(of ...any) any { return of[m.IntN(len(of))] }

func (m *maker) queue() any {
	return m.pick(queueName(0), queueName(0), queueName(0), queueName(1), queueName(1), queueName(2), "", lastMade{})
}

func (m *maker) exchange() any {
	return m.pick(exchangeName(0), exchangeName(0), exchangeName(1), "amq.direct", "amq.fanout", "amq.topic", "")
}

func (m *maker) key() any { return m.pick(queueName(0), queueName(1), queueName(2), "key", "") }

func (m *maker) tag() any {
	return m.pick(tagOf("first"), tagOf("first"), tagOf("first"), tagOf("latest"), tagOf("latest"), tagOf("middle"), tagOf("wrong"), tagOf("again"), uint64(0), uint64(1))
}

func (m *maker) table() any {
	switch m.IntN(12) {
	case 0:
		return amqp.AppendStringField(nil, "x-unheard-of", "value")
	case 1:
		return amqp.AppendStringField(nil, "x-max-length", "not a number")
	case 2:
		return append(amqp.AppendShortStr(nil, "x-max-length"), 'I', 0, 0, 0, 3)
	case 3:
		return append(amqp.AppendShortStr(nil, "x-message-ttl"), 'I', 0xff, 0xff, 0xff, 0xf0)
	}
	return nil
}

// any adds one step, now and then a few, on a channel. True: nothing is joined to it.
func (m *maker) any(ch uint16, alone bool) (stop bool) {
	m.opens = ch
	switch p := m.IntN(100); {
	case p < 26:
		m.publish(ch)
	case p < 35:
		m.method(ch, amqp.QueueDeclare, 0, m.queue(), m.bits(1, 8, 16)|m.bits(2)*m.IntN(2)|m.exclusive&m.bits(4), m.table())
	case p < 38:
		m.method(ch, amqp.QueueBind, 0, m.queue(), m.exchange(), m.key(), m.bits(1), nil)
	case p < 39:
		m.method(ch, amqp.QueueUnbind, 0, m.queue(), m.exchange(), m.key(), nil)
	case p < 41:
		m.method(ch, amqp.QueuePurge, 0, m.queue(), m.bits(1))
	case p < 43:
		m.method(ch, amqp.QueueDelete, 0, m.queue(), m.bits(1, 2, 4))
	case p < 47:
		kind := m.pick("direct", "fanout", "topic", "headers", "fanout", "fanout")
		if m.mode == "session" && m.IntN(7) == 0 {
			kind = "nonsense" // a hard error of RabbitMQ 3
		}
		m.method(ch, amqp.ExchangeDeclare, 0, m.pick(exchangeName(0), exchangeName(0), exchangeName(1), "amq.direct", "amq.mine", ""), kind, m.bits(1, 4, 8, 16), nil)
	case p < 48:
		m.method(ch, amqp.ExchangeDelete, 0, m.pick(exchangeName(0), exchangeName(1), "amq.direct", ""), m.bits(1, 2))
	case p < 49:
		method := amqp.ExchangeBind
		if m.IntN(3) == 0 {
			method = amqp.ExchangeUnbind
		}
		m.method(ch, method, 0, m.exchange(), m.exchange(), m.key(), m.bits(1), nil)
	case p < 58:
		m.method(ch, amqp.BasicGet, 0, m.queue(), m.bits(1))
	case p < 65:
		m.method(ch, amqp.BasicConsume, 0, m.queue(), m.pick("a", "b", "c", ""), m.bits(1, 2, 4, 8)&^m.bits(4), nil)
	case p < 68:
		m.method(ch, amqp.BasicCancel, m.pick("a", "b", "c", "none"), m.bits(1))
	case p < 74:
		m.method(ch, amqp.BasicAck, m.tag(), m.bits(1))
	case p < 76:
		m.method(ch, amqp.BasicNack, m.tag(), m.bits(1, 2)|2*m.IntN(2))
	case p < 78:
		m.method(ch, amqp.BasicReject, m.tag(), m.IntN(2))
	case p < 81:
		m.method(ch, amqp.BasicQos, 0, m.pick(0, 1, 2, 5, 2000), m.bits(1)&m.IntN(2))
	case p < 83:
		m.method(ch, m.pick(amqp.BasicRecover, amqp.BasicRecover, amqp.BasicRecoverAsync).(amqp.Method), 1)
	case p < 84:
		m.method(ch, amqp.ChannelFlow, 1)
	case p < 87:
		m.method(ch, amqp.ConfirmSelect, m.bits(1))
	case p < 88:
		m.method(ch, amqp.TxSelect)
	case p < 90:
		m.method(ch, m.pick(amqp.TxCommit, amqp.TxCommit, amqp.TxRollback).(amqp.Method))
	case p < 96:
		m.method(ch, amqp.ChannelClose, 200, "", 0, 0)
		return true
	case p < 98:
		if alone && !m.once {
			s := m.add("", nil)
			m.steps[len(m.steps)-1].opens = 0
			s.ends = m.pick("close", "abort").(string)
			s.text = "connection: " + s.ends
		}
		return true
	default:
		if alone {
			m.hazard(ch)
			return true
		}
	}
	return false
}

var sizes = []int{0, 0, 1, 7, 7, 100, 5000, 131065, 131100, 200_000}

// publish adds a whole publish, its body cut in odd frames.
func (m *maker) publish(ch uint16) {
	x, key, bits := m.pick("", "", "", exchangeName(0), exchangeName(0), "amq.fanout", "amq.direct", exchangeName(1)), m.key(), m.bits(1)
	size := sizes[m.IntN(len(sizes))]
	if size == 0 && m.IntN(2) == 0 {
		size = 3
	}
	m.bodies++
	body := []byte(strings.Repeat(fmt.Sprintf("%04d.", m.bodies), size/5+1)[:size])
	var cuts []int
	for at := 0; at < size; {
		n := min(size-at, 1+m.IntN(131064))
		if m.IntN(3) == 0 {
			n = min(n, 1+m.IntN(3000))
		}
		cuts = append(cuts, n)
		if at += n; len(cuts) > 20 {
			n = min(size-at, 100_000)
			cuts = append(cuts, n)
			at += n
		}
	}
	flags, properties := uint16(0), []byte(nil)
	switch m.IntN(6) {
	case 0:
		flags, properties = 1<<12, []byte{2} // persistent
	case 1:
		flags = 1<<15 | 1<<13
		properties = amqp.AppendShortStr(properties, "text/plain")
		properties = amqp.AppendLongStr(properties, amqp.AppendStringField(nil, "k", "v"))
	case 2:
		flags = 1 << 4
		properties = amqp.AppendShortStr(properties, m.pick("guest", "guest", "other").(string)) // user-id
	case 3:
		flags = 1 << 8
		properties = amqp.AppendShortStr(properties, m.pick("60000", "60000", "never").(string)) // expiration
	}
	m.add(fmt.Sprintf("%d: publish %v, %v, bits %d, %d octets in %v, properties %x", ch, x, key, bits, size, cuts, properties), func(w *walk) []byte {
		args := w.resolve(ch, []any{0, x, key, bits})
		b := proxytest.Method(ch, amqp.BasicPublish, args...)
		b = append(b, proxytest.HeaderWith(ch, uint64(size), flags, properties)...)
		at := 0
		for _, n := range cuts {
			b = append(b, proxytest.Body(ch, body[at:at+n])...)
			at += n
		}
		return b
	})
}

// hazard adds a step that ends the connection, more often than not.
func (m *maker) hazard(ch uint16) {
	c := uint16(4 + m.IntN(3)) // not opened
	bytes := func(text string, b []byte) *step {
		return m.add(text, func(*walk) []byte { return b })
	}
	switch m.IntN(24) {
	case 0:
		m.opens = 0
		switch m.IntN(5) {
		case 0:
			m.method(c, amqp.QueueDeclare, 0, queueName(0), 0, nil)
		case 1:
			m.method(c, amqp.BasicAck, 1, 0)
		case 2:
			m.method(c, amqp.ChannelClose, 200, "", 0, 0)
		case 3:
			m.method(c, amqp.ConfirmSelect, 0)
		case 4:
			m.publish(c)
		}
	case 1:
		m.method(ch, amqp.ChannelOpen, "")
	case 2:
		m.add(fmt.Sprintf("%d: publish with immediate", ch), func(w *walk) []byte {
			return append(proxytest.Method(ch, amqp.BasicPublish, 0, "", w.name(0), 2), proxytest.Header(ch, 0)...)
		})
	case 3:
		m.method(ch, amqp.BasicQos, 1000, 1, 0)
	case 4:
		m.method(ch, amqp.ChannelFlow, 0)
	case 5:
		m.method(ch, amqp.BasicRecover, 0)
	case 6:
		bytes(fmt.Sprintf("%d: header alone", ch), proxytest.Header(ch, 5))
	case 7:
		bytes(fmt.Sprintf("%d: body alone", ch), proxytest.Body(ch, []byte("x")))
	case 8:
		m.add(fmt.Sprintf("%d: publish, no content", ch), func(w *walk) []byte {
			return proxytest.Method(ch, amqp.BasicPublish, 0, "", w.name(0), 0)
		})
		m.joined = m.IntN(2) == 0
		switch m.IntN(4) {
		case 0:
			m.method(ch, amqp.QueueDeclare, 0, queueName(0), 0, nil)
		case 1:
			bytes(fmt.Sprintf("%d: body", ch), proxytest.Body(ch, []byte("x")))
		case 2:
			bytes(fmt.Sprintf("%d: header", ch), proxytest.Header(ch, 0))
		}
	case 9:
		m.add(fmt.Sprintf("%d: publish, header of 10", ch), func(w *walk) []byte {
			return append(proxytest.Method(ch, amqp.BasicPublish, 0, "", w.name(0), 0), proxytest.Header(ch, 10)...)
		})
		switch m.IntN(5) {
		case 0:
			m.method(ch, amqp.BasicGet, 0, queueName(0), 0)
		case 1:
			bytes(fmt.Sprintf("%d: header again", ch), proxytest.Header(ch, 10))
		case 2, 3:
			other := 1 + ch%m.channels
			bytes(fmt.Sprintf("%d: half a body", ch), proxytest.Body(ch, []byte("01234")))
			if other != ch {
				m.opens = other
				m.publish(other)
				m.opens = ch
			}
			bytes(fmt.Sprintf("%d: the other half", ch), proxytest.Body(ch, []byte("56789")))
		case 4:
			m.method(ch, amqp.ChannelClose, 200, "", 0, 0)
		}
	case 10:
		class, id := m.pick(10, 20, 40, 50, 60, 85, 90, 30, 77).(int), m.pick(9, 55, 99, 130).(int)
		p := []byte{0, byte(class), 0, byte(id)}
		bytes(fmt.Sprintf("%d: unknown method %d.%d", ch, class, id), amqp.AppendFrame(nil, amqp.FrameMethod, ch, p)).raw = true
	case 11:
		bytes("0: queue.purge", proxytest.Method(0, amqp.QueuePurge, 0, "x", 0)).raw = true
	case 12:
		bytes("0: content header", proxytest.Header(0, 0)).raw = true
	case 13:
		bytes("5000: channel.open", proxytest.Method(5000, amqp.ChannelOpen, "")).raw = true
	case 14:
		bytes(fmt.Sprintf("%d: a frame too large", ch), amqp.AppendFrame(nil, amqp.FrameBody, ch, make([]byte, 131072-7))).raw = true
	case 15:
		b := proxytest.Method(ch, amqp.ChannelOpen, "")
		b[len(b)-1] = 0
		bytes(fmt.Sprintf("%d: wrong frame end", ch), b).raw = true
	case 16:
		bytes(fmt.Sprintf("%d: frame of type 7", ch), amqp.AppendFrame(nil, 7, ch, []byte("x"))).raw = true
	case 17:
		bytes(fmt.Sprintf("%d: heartbeat", ch), amqp.AppendFrame(nil, amqp.FrameHeartbeat, ch, nil)).raw = true
	case 18:
		m.method(ch, m.pick(amqp.ChannelOpenOk, amqp.BasicQosOk, amqp.TxSelectOk, amqp.ChannelCloseOk).(amqp.Method), []any{"", nil}[:0]...)
		if last := &m.steps[len(m.steps)-1]; strings.Contains(last.text, "open_ok") {
			last.bytes = func(*walk) []byte { return proxytest.Method(ch, amqp.ChannelOpenOk, "") }
		}
	case 19:
		m.method(ch, amqp.BasicConsume, 0, queueName(0), "twice", 0, nil)
		m.method(ch, amqp.BasicConsume, 0, queueName(0), "twice", 0, nil)
	case 20:
		bytes("0: heartbeat", amqp.Heartbeat)
	case 21:
		bytes("0: tune-ok late", proxytest.Method(0, amqp.ConnectionTuneOk, 0, 0, 0)).raw = true
	case 22:
		m.method(ch, amqp.AccessRequest, "/data", 0)
	case 23:
		p := []byte{0, amqp.ClassBasic, 0, 0}
		m.add(fmt.Sprintf("%d: publish with a header cut short", ch), func(w *walk) []byte {
			return append(proxytest.Method(ch, amqp.BasicPublish, 0, "", w.name(0), 0), amqp.AppendFrame(nil, amqp.FrameHeader, ch, p)...)
		}).raw = true
	}
	m.joined = false
}

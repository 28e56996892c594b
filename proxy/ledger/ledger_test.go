package ledger

import (
	"math/rand/v2"
	"testing"
)

// What a channel has done, and the answers to the three questions.
func TestQuestions(t *testing.T) {
	type do func(l *Ledger, b *Broker)
	publish := func(mandatory bool) do {
		return func(l *Ledger, b *Broker) {
			l.Begin()
			if mandatory {
				l.Mandatory()
			}
			l.Published(1, mandatory)
		}
	}
	call := func(l *Ledger, b *Broker) { l.Called(); b.Calls.Add(1) }
	answer := func(l *Ledger, b *Broker) { b.Calls.Add(-1) }
	confirms := func(l *Ledger, b *Broker) { l.Confirms = true }
	tx := func(l *Ledger, b *Broker) { l.Tx = true }
	confirmed := func(tag uint64, multiple bool) do {
		return func(l *Ledger, b *Broker) { b.Confirm(tag, multiple) }
	}
	get := func(noAck bool) do { return func(l *Ledger, b *Broker) { l.Hears(noAck) } }
	delivered := func(tag uint64) do { return func(l *Ledger, b *Broker) { b.LastTag.Store(tag) } }
	ack := func(tag uint64, multiple bool) do { return func(l *Ledger, b *Broker) { l.Settle(tag, multiple, b) } }
	consume := func(l *Ledger, b *Broker) { l.Hears(true); b.Consuming.Add(1) }
	cancel := func(l *Ledger, b *Broker) { b.Consuming.Add(-1) }
	for _, x := range []struct {
		name                      string
		steps                     []do
		quiet, movable, mayAnswer bool
	}{
		{"nothing", nil, true, true, true},
		{"a publish", []do{publish(false)}, true, true, true},
		{"a mandatory publish", []do{publish(true)}, false, false, false},
		{"an unconfirmed publish", []do{confirms, publish(false)}, false, false, true},
		{"a confirmed publish", []do{confirms, publish(false), confirmed(1, false)}, true, false, true},
		{"two publishes, the second confirmed", []do{confirms, publish(false), publish(false), confirmed(2, false)}, false, false, true},
		{"two publishes, both confirmed at once", []do{confirms, publish(false), publish(false), confirmed(2, true)}, true, false, true},
		{"two publishes, confirmed in turn", []do{confirms, publish(false), publish(false), confirmed(2, false), confirmed(1, false)}, true, false, true},
		{"a mandatory publish, confirmed", []do{confirms, publish(true), confirmed(1, false)}, true, false, false},
		{"a call", []do{call}, false, false, false},
		{"a call, answered", []do{call, answer}, true, true, true},
		{"a declaration whose name is due", []do{func(l *Ledger, b *Broker) { b.Declares.Add(1) }}, true, false, true},
		{"a transaction", []do{tx}, true, false, true},
		{"a publish in a transaction", []do{tx, publish(false)}, false, false, true},
		{"a publish, committed", []do{tx, publish(false), func(l *Ledger, b *Broker) { l.Commit() }}, true, false, true},
		{"a publish, rolled back", []do{tx, publish(false), func(l *Ledger, b *Broker) { l.Rollback() }}, true, false, true},
		{"an ack, rolled back", []do{tx, get(false), delivered(1), ack(1, false), func(l *Ledger, b *Broker) { l.Rollback() }}, false, false, false},
		{"a delivery to settle", []do{get(false), delivered(1)}, false, false, false},
		{"a delivery, settled", []do{get(false), delivered(1), ack(1, false)}, true, false, false},
		{"three deliveries, all settled by tag 0", []do{get(false), delivered(3), ack(0, true)}, true, false, false},
		{"three deliveries, the middle one settled", []do{get(false), delivered(3), ack(2, false)}, false, false, false},
		{"three deliveries, recovered", []do{get(false), delivered(3), func(l *Ledger, b *Broker) { l.Recover(b) }}, true, false, false},
		{"a delivery without acks", []do{get(true), delivered(1)}, true, false, false},
		{"deliveries with acks and without", []do{get(true), get(false), delivered(2), ack(0, true)}, false, false, false},
		{"a consumer", []do{consume}, false, false, false},
		{"a consumer, cancelled", []do{consume, cancel}, true, false, false},
		{"an ack of nothing", []do{ack(7, false)}, true, false, true},
		{"what cannot be followed", []do{func(l *Ledger, b *Broker) { l.Untold() }}, false, true, true},
		{"something that stays", []do{func(l *Ledger, b *Broker) { l.Stay() }}, true, false, true},
	} {
		t.Run(x.name, func(t *testing.T) {
			var l Ledger
			var b Broker
			for _, step := range x.steps {
				step(&l, &b)
			}
			if got := l.Quiet(&b); got != x.quiet {
				t.Errorf("quiet: got %v, want %v", got, x.quiet)
			}
			if got := l.Movable(&b); got != x.movable {
				t.Errorf("movable: got %v, want %v", got, x.movable)
			}
			if got := l.MayAnswer(&b); got != x.mayAnswer {
				t.Errorf("may answer: got %v, want %v", got, x.mayAnswer)
			}
			if !l.MayAnswer(nil) {
				t.Error("a channel without a place at the broker must be answered")
			}
		})
	}
}

// Settling out of order is remembered up to a bound; beyond it the channel is never quiet.
func TestSettledOutOfOrder(t *testing.T) {
	var l Ledger
	var b Broker
	l.Hears(false)
	b.LastTag.Store(3 * maxAbove)
	for tag := uint64(2); tag <= maxAbove+1; tag++ {
		l.Settle(tag, false, &b)
	}
	if len(l.settled.above) != maxAbove || l.untold {
		t.Fatalf("remembers %d, gave up %v", len(l.settled.above), l.untold)
	}
	l.Settle(2*maxAbove, false, &b)
	if l.settled.above != nil || !l.untold {
		t.Errorf("remembers %d, gave up %v", len(l.settled.above), l.untold)
	}
	l.Settle(0, true, &b)
	if l.Quiet(&b) {
		t.Error("quiet, though what is settled is not known")
	}
}

// Settling what needs acks among what needs none must not pile up, nor be quiet.
func TestSettledAmongUnacked(t *testing.T) {
	var l Ledger
	var b Broker
	l.Hears(true)
	l.Hears(false)
	for tag := uint64(2); tag < 5000; tag += 2 {
		l.Settle(tag, false, &b)
	}
	if len(l.settled.above) != 0 || l.Quiet(&b) {
		t.Errorf("%d tags kept, quiet %v", len(l.settled.above), l.Quiet(&b))
	}
}

func TestUnheard(t *testing.T) {
	var l Ledger
	for _, x := range []struct {
		name string
		do   func()
		want bool
	}{
		{"at first", func() {}, false},
		{"a publish", func() { l.Begin() }, true},
		{"a call behind it", l.Called, false},
		{"a declaration without an answer", l.Said, true},
		{"left behind", l.Heard, false},
	} {
		x.do()
		if l.Unheard() != x.want {
			t.Errorf("%s: got %v", x.name, l.Unheard())
		}
	}
	if !l.Sent() {
		t.Error("published, and does not know")
	}
}

// Tags against a plain set: every tag up to low is in, and none that was not added.
func TestTagsAgainstSet(t *testing.T) {
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		var s Tags
		want := map[uint64]bool{}
		for range 300 {
			tag, multiple := uint64(1+rnd.IntN(60)), rnd.IntN(12) == 0
			s.Add(tag, multiple)
			want[tag] = true
			for x := uint64(1); multiple && x < tag; x++ {
				want[x] = true
			}
			for x := uint64(1); x <= 62; x++ {
				_, above := s.above[x]
				if in := x <= s.Low || above; in != want[x] {
					t.Fatalf("seed %d: tag %d in the set: %v, want %v (low %d)", seed, x, in, want[x], s.Low)
				}
				if above && x <= s.Low+1 {
					t.Fatalf("seed %d: tag %d is kept though low is %d", seed, x, s.Low)
				}
			}
		}
	}
	var s Tags
	s.Add(0, true)
	s.Add(0, false)
	if s.Low != 0 || len(s.above) != 0 {
		t.Errorf("tag 0 counted: %+v", s)
	}
}

func TestTags(t *testing.T) {
	var s Tags
	for _, x := range []struct {
		tag      uint64
		multiple bool
		low      uint64
		above    int
	}{
		{1, false, 1, 0}, {3, false, 1, 1}, {3, false, 1, 1}, {2, false, 3, 0}, {9, false, 3, 1},
		{6, true, 6, 1}, {8, false, 6, 2}, {7, false, 9, 0}, {5, true, 9, 0}, {20, false, 9, 1}, {30, true, 30, 0},
	} {
		s.Add(x.tag, x.multiple)
		if s.Low != x.low || len(s.above) != x.above {
			t.Errorf("add %d, %v: low %d with %d above, want %d with %d", x.tag, x.multiple, s.Low, len(s.above), x.low, x.above)
		}
	}
}

func TestBits(t *testing.T) {
	var q Bits
	if q.Pop() {
		t.Error("an empty queue gave true")
	}
	q.Push(true)
	q.Push(false)
	q.Push(true)
	if a, b, c := q.Pop(), q.Pop(), q.Pop(); !a || b || !c || !q.Empty() {
		t.Errorf("got %v %v %v, left %v", a, b, c, q)
	}
	// Any number, however full and empty it is in between.
	var want []bool
	for i := range 5000 {
		for range i % 97 {
			v := len(want)*i%3 == 0
			q.Push(v)
			want = append(want, v)
		}
		for range min(i%101, len(want)) {
			if got := q.Pop(); got != want[0] {
				t.Fatalf("step %d: got %v with %d in the queue", i, got, len(want))
			}
			want = want[1:]
		}
		if q.Empty() != (len(want) == 0) {
			t.Fatalf("step %d: empty is %v with %d in the queue", i, q.Empty(), len(want))
		}
		if (q.more == nil) != (len(want) <= fewBits) {
			t.Fatalf("step %d: of %d in the queue, more holds %v", i, len(want), q.more)
		}
	}
}

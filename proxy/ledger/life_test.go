package ledger

import "testing"

// Every state and cause: what follows, and what is done with it. A row left out stays as it is.
func TestStateEnd(t *testing.T) {
	type row struct {
		next State
		act  Act
	}
	want := map[State]map[Cause]row{
		Open: {
			ByClientQuiet:     {Closed, SayCloseOk | Uncount},
			ByClient:          {Closing, Uncount},
			ByConnectionQuiet: {Closed, Uncount},
			ByConnection:      {Closing, Uncount},
			ByCrash:           {Closed, Uncount},
			ByProxy:           {Refused, SayClose},
			ByBroker:          {Refused, SayClose},
		},
		Closing: {
			ByCrash:   {Closed, 0},
			ByBroker:  {Owing, SayClose | SayCloseOk | Wake},
			ByAnswer:  {Closed, SayCloseOk | Wake},
			ByOverdue: {Closed, SayCloseOk | Wake},
		},
		Refused: {
			ByClientQuiet:     {Refused, SayCloseOk},
			ByClient:          {Refused, SayCloseOk},
			ByConnectionQuiet: {Closed, Uncount},
			ByConnection:      {Closed, Uncount},
			ByCrash:           {Closed, Uncount},
			ByClientOk:        {Closed, Uncount},
		},
		Owing: {
			ByClientQuiet:     {Owing, SayCloseOk},
			ByClient:          {Owing, SayCloseOk},
			ByConnectionQuiet: {Closed, 0},
			ByConnection:      {Closed, 0},
			ByCrash:           {Closed, 0},
			ByClientOk:        {Closed, 0},
		},
	}
	leaving := map[Cause]row{ByBroker: {Closed, Wake}, ByAnswer: {Closed, Wake}, ByOverdue: {Closed, Wake}}
	for s := Open; s <= Closed; s++ {
		for by := Cause(0); by < numCauses; by++ {
			w, ok := want[s][by]
			if !ok {
				w = row{s, 0}
			}
			if next, act := s.End(by, false); next != w.next || act != w.act {
				t.Errorf("state %d, cause %d: got %d, acts %#x; want %d, %#x", s, by, next, act, w.next, w.act)
			}
			if s == Closing {
				if l, ok := leaving[by]; ok {
					w = l
				}
			}
			if next, act := s.End(by, true); next != w.next || act != w.act {
				t.Errorf("state %d, cause %d, leaving: got %d, acts %#x; want %d, %#x", s, by, next, act, w.next, w.act)
			}
		}
	}
}

func TestSeatEnd(t *testing.T) {
	type row struct {
		next          Seat
		act, silently Act // silently: where nobody waits for the answer
	}
	same := func(next Seat, act Act) row { return row{next, act, act} }
	quiet := same(SeatClosing, SayClose|Silent|Ticket)
	want := map[Seat]map[Cause]row{
		SeatOpen: {
			ByClientQuiet: quiet, ByConnectionQuiet: quiet, ByCrash: quiet, ByMove: quiet, ByProxy: quiet,
			ByClient: same(SeatClosing, SayClose), ByConnection: same(SeatClosing, SayClose),
			ByBroker:   same(SeatFree, SayCloseOk|Free|Through|Tell),
			ByKeep:     same(SeatProving, SayBarrier|Silent|Ticket),
			ByProven:   same(SeatKept, Keep|Silent|Through),
			ByUpstream: {SeatFree, Through | Tell, Through},
		},
		SeatClosing: {
			ByBroker:   {SeatCrossed, SayCloseOk | Through | Tell, SayCloseOk | Through},
			ByAnswer:   {SeatFree, Free | Through | Tell, Free | Through},
			ByOverdue:  {SeatClosing, Silent | Tell, Through},
			ByUpstream: {SeatFree, Through | Tell, Through},
		},
		SeatCrossed: {
			ByAnswer:   {SeatFree, Free | Through | Tell, Free | Through},
			ByOverdue:  {SeatFree, Silent | Tell | Lose | Through, Lose | Through},
			ByUpstream: {SeatFree, Through | Tell, Through},
		},
	}
	gone := same(SeatFree, SayCloseOk|Free|Through)
	room := same(SeatClosing, SayClose|Silent|Through)
	want[SeatProving] = map[Cause]row{
		ByProven: same(SeatKept, Keep|Silent|Through), ByBroker: gone, ByProxy: room, ByOverdue: same(SeatProving, Through),
		ByUpstream: {SeatFree, Through | Tell, Through},
	}
	want[SeatKept] = map[Cause]row{ByBroker: gone, ByProxy: room, ByUpstream: {SeatFree, Through | Tell, Through}}
	for s := SeatOpen; s <= SeatFree; s++ {
		for by := Cause(0); by < numCauses; by++ {
			w, ok := want[s][by]
			if !ok {
				w = same(s, 0)
			}
			if next, act := s.End(by, false); next != w.next || act != w.act {
				t.Errorf("seat %d, cause %d: got %d, acts %#x; want %d, %#x", s, by, next, act, w.next, w.act)
			}
			if next, act := s.End(by, true); next != w.next || act != w.silently {
				t.Errorf("seat %d, cause %d, silent: got %d, acts %#x; want %d, %#x", s, by, next, act, w.next, w.silently)
			}
		}
	}
}

// However the causes come: a seat is freed or lost once, and close-ok is said to a client once.
func TestEndsOnce(t *testing.T) {
	var walk func(s State, b Seat, silent bool, depth int, oks, frees, counts int)
	walk = func(s State, b Seat, silent bool, depth int, oks, frees, counts int) {
		if oks > 1 || frees > 1 || counts > 1 {
			t.Fatalf("said close-ok %d times, freed %d times, uncounted %d times", oks, frees, counts)
		}
		if depth == 0 {
			return
		}
		for by := Cause(0); by < numCauses; by++ {
			nb, up := b.End(by, silent)
			ns, down := s, Act(0)
			// The client's side hears of the broker only through its seat.
			switch by {
			case ByAnswer, ByOverdue, ByBroker:
				if up.Has(Tell) {
					ns, down = s.End(by, false)
				}
			default:
				ns, down = s.End(by, false)
			}
			o, f, n := oks, frees, counts
			if down.Has(SayCloseOk) {
				o++
			}
			if up&(Free|Lose) != 0 {
				f++
			}
			if down.Has(Uncount) {
				n++
			}
			if ns != s || nb != b || up != 0 {
				walk(ns, nb, silent || up.Has(Silent), depth-1, o, f, n)
			}
		}
	}
	walk(Open, SeatOpen, false, 6, 0, 0, 0)
}

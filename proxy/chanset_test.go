package proxy

import (
	"math/rand/v2"
	"testing"
)

// The set must be a map whatever its size is and was.
func TestChannelSet(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var s channelSet
	want := map[uint16]*channel{}
	for range 20000 {
		id := uint16(r.IntN(30))
		switch ch := want[id]; {
		case ch == nil && r.IntN(3) > 0:
			ch = &channel{id: id}
			want[id] = ch
			s.add(ch)
		case ch != nil && r.IntN(3) > 0:
			delete(want, id)
			s.remove(ch)
		}
		if s.len() != len(want) || s.get(id) != want[id] {
			t.Fatalf("len %d, want %d; channel %d is %v, want %v", s.len(), len(want), id, s.get(id), want[id])
		}
		if r.IntN(50) == 0 {
			seen := 0
			for ch := range s.all() {
				if want[ch.id] != ch {
					t.Fatalf("all yields a channel %d that is not in the set", ch.id)
				}
				if seen++; r.IntN(2) == 0 {
					s.remove(ch)
					delete(want, ch.id)
				}
			}
			if n := s.len(); n != len(want) {
				t.Fatalf("after removing while ranging: len %d, want %d", n, len(want))
			}
		}
	}
}

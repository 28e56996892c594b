package proxy

import (
	"math/rand/v2"
	"testing"
)

// Whoever is in the set is looked at once, whatever the order in which clients come and leave; and a shard gives back
// the room of a crowd that has left.
func TestClientSetLooksAtEachOnce(t *testing.T) {
	var s clientSet
	rng := rand.New(rand.NewPCG(1, 2))
	in := make(map[*client]bool)
	var all []*client
	check := func() {
		t.Helper()
		seen := make(map[*client]bool)
		for _, c := range s.appendTo(nil, nil) {
			if !in[c] || seen[c] {
				t.Fatalf("client %d is looked at: in the set %v, seen before %v", c.n, in[c], seen[c])
			}
			seen[c] = true
		}
		if len(seen) != len(in) || s.len() != len(in) {
			t.Fatalf("%d are looked at and %d counted, of %d", len(seen), s.len(), len(in))
		}
	}
	join := func() {
		c := &client{n: uint64(len(all)) % 3} // three shards
		all = append(all, c)
		s.add(c, func() bool { return true })
		in[c] = true
	}
	leave := func(i int) {
		c := all[i]
		all[i] = all[len(all)-1]
		all = all[:len(all)-1]
		if last := s.remove(c); last != (len(in) == 1) {
			t.Fatalf("the last: %v, with %d in the set", last, len(in))
		}
		delete(in, c)
	}
	for range 2000 {
		if len(all) > 0 && rng.IntN(5) < 2 {
			leave(rng.IntN(len(all)))
		} else {
			join()
		}
		if rng.IntN(20) == 0 {
			check()
		}
	}
	check()
	for len(all) > 0 {
		leave(rng.IntN(len(all)))
		if len(all)%50 == 0 {
			check()
		}
	}
	for i := range 3 {
		if left := cap(s.shards[i].all); left > 128 {
			t.Errorf("shard %d has room for %d and is empty", i, left)
		}
	}
	if got := s.end(); len(got) != 0 {
		t.Errorf("%d at the end", len(got))
	}
	if s.add(&client{}, func() bool { return true }) {
		t.Error("one is let in after the end")
	}
}

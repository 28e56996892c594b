// Sets of delivery tags and queues of booleans.

package ledger

import "math/bits"

// Tags is a set of tags in which all up to Low are, and few above it.
type Tags struct {
	Low   uint64
	above map[uint64]struct{}
}

// Add puts in one tag, or with multiple all up to it.
func (s *Tags) Add(tag uint64, multiple bool) {
	switch {
	case tag <= s.Low:
		return
	case multiple:
		s.Low = tag
		for t := range s.above {
			if t <= tag {
				delete(s.above, t)
			}
		}
	case tag == s.Low+1:
		s.Low = tag
	default:
		if s.above == nil {
			s.above = make(map[uint64]struct{})
		}
		s.above[tag] = struct{}{}
		return
	}
	for len(s.above) > 0 {
		if _, ok := s.above[s.Low+1]; !ok {
			return
		}
		s.Low++
		delete(s.above, s.Low)
	}
}

// Bits is a queue of booleans. Few are all that there ever are; it holds memory besides only while there are more.
type Bits struct {
	few  uint32  // the oldest at the lowest bit, and a one above the last; 0: none
	more *[]bool // those behind
}

// fewBits is how many there are before more is needed.
const fewBits = 31

// Empty reports whether there are none.
func (q *Bits) Empty() bool { return q.few <= 1 }

// Push puts v at the end.
func (q *Bits) Push(v bool) {
	n := bits.Len32(max(q.few, 1)) - 1
	if n == fewBits || q.more != nil {
		if q.more == nil {
			q.more = new([]bool)
		}
		*q.more = append(*q.more, v)
		return
	}
	q.putFew(n, v)
}

func (q *Bits) putFew(n int, v bool) {
	last := uint32(1) << n
	q.few = q.few&(last-1) | last<<1
	if v {
		q.few |= last
	}
}

// Pop takes the oldest; it is false when the queue is empty.
func (q *Bits) Pop() bool {
	if q.Empty() {
		return false
	}
	v := q.few&1 != 0
	q.few >>= 1
	if q.more != nil {
		next := (*q.more)[0]
		if *q.more = (*q.more)[1:]; len(*q.more) == 0 {
			q.more = nil
		}
		q.putFew(fewBits-1, next)
	}
	return v
}

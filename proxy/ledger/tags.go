// Sets of delivery tags and queues of booleans.

package ledger

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

// Bits is a queue of booleans. It holds memory only while it is not empty.
type Bits []bool

// Push puts v at the end.
func (q *Bits) Push(v bool) { *q = append(*q, v) }

// Pop takes the oldest; it is false when the queue is empty.
func (q *Bits) Pop() bool {
	if len(*q) == 0 {
		return false
	}
	v := (*q)[0]
	if *q = (*q)[1:]; len(*q) == 0 {
		*q = nil
	}
	return v
}

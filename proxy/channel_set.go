// The set of a client's channels: most clients have one, some have thousands.

package proxy

import "iter"

// fewChannels is up to how many channels are looked for one by one.
const fewChannels = 8

// channelSet maps numbers to channels. The zero value is empty.
type channelSet struct {
	few  []*channel          // while there are few
	many map[uint16]*channel // nil until there are more
}

func (s *channelSet) get(id uint16) *channel {
	if s.many != nil {
		return s.many[id]
	}
	for _, ch := range s.few {
		if ch.id == id {
			return ch
		}
	}
	return nil
}

// add puts in a channel whose number is not in the set.
func (s *channelSet) add(ch *channel) {
	if s.many == nil && len(s.few) < fewChannels {
		s.few = append(s.few, ch)
		return
	}
	if s.many == nil {
		s.many = make(map[uint16]*channel)
		for _, x := range s.few {
			s.many[x.id] = x
		}
		s.few = nil
	}
	s.many[ch.id] = ch
}

func (s *channelSet) remove(ch *channel) {
	if s.many != nil {
		delete(s.many, ch.id)
		return
	}
	for i, x := range s.few {
		if x == ch {
			last := len(s.few) - 1
			s.few[i], s.few[last] = s.few[last], nil
			s.few = s.few[:last]
			return
		}
	}
}

func (s *channelSet) len() int { return len(s.few) + len(s.many) }

// all yields every channel; the one yielded may be removed meanwhile.
func (s *channelSet) all() iter.Seq[*channel] {
	return func(yield func(*channel) bool) {
		for i := len(s.few) - 1; i >= 0 && i < len(s.few); i-- {
			if !yield(s.few[i]) {
				return
			}
		}
		for _, ch := range s.many {
			if !yield(ch) {
				return
			}
		}
	}
}

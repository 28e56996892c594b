// The chunk reader: one read at a time into a buffer that is small while there is
// little to read and borrowed from a pool while there is much.

package amqp

import (
	"io"
	"sync"
)

const (
	// bigBuffer is what a busy reader borrows. Larger only when one frame needs it.
	bigBuffer = 64 << 10
	// hugeBuffer holds a frame of the usual frame_max, 128 KiB.
	hugeBuffer = 136 << 10
	// idleReads is how many small reads in a row give a borrowed buffer back. One: whoever
	// goes idle after it must not keep the buffer.
	idleReads = 1
	// smallBuffer is what a reader borrows that has little to read: many may hold theirs at a time, while
	// each waits for a channel.
	smallBuffer = 4 << 10
	// restBuffer is the largest part of a frame that Rest keeps outside of a borrowed buffer.
	restBuffer = 512
)

var (
	smallBuffers = sync.Pool{New: func() any { return new([smallBuffer]byte) }}
	bigBuffers   = sync.Pool{New: func() any { return new([bigBuffer]byte) }}
	hugeBuffers  = sync.Pool{New: func() any { return new([hugeBuffer]byte) }}
)

// Reader cuts a stream into frames. A frame that Next returned is valid until the next Fill.
// It is not safe for concurrent use.
type Reader struct {
	// MaxFrame bounds the payload of a frame in octets; 0: no bound.
	MaxFrame uint32
	// MaxBuffer, which has room for a frame of MaxFrame, bounds the buffer, in octets, below
	// what a busy reader borrows; 0: no bound.
	MaxBuffer int

	home   []byte             // the small buffer, owned
	small  *[smallBuffer]byte // borrowed, or nil
	big    *[bigBuffer]byte   // likewise
	huge   *[hugeBuffer]byte  // likewise
	buf    []byte             // home, what is borrowed or one made for a large frame
	r, w   int                // buf[r:w] has been read and not been consumed
	smalls int                // reads in a row that home would have held
	need   int                // length of the frame at r as far as known
	lends  bool               // Borrow is used, not Fill
	much   bool               // the last read into what Borrow gave was a large one
}

// NewReader has a small buffer of the given size, at least HeaderLen+1.
func NewReader(small int, maxFrame uint32) *Reader {
	rd := &Reader{}
	rd.Init(make([]byte, small), maxFrame)
	return rd
}

// Init gives a zero Reader its small buffer.
func (rd *Reader) Init(small []byte, maxFrame uint32) {
	rd.home, rd.buf, rd.MaxFrame = small, small, maxFrame
}

// Fill makes room and reads once. n counts the bytes read.
func (rd *Reader) Fill(src io.Reader) (n int, err error) {
	rd.room()
	n, err = src.Read(rd.buf[rd.w:])
	rd.w += n
	if n > len(rd.home)/2 {
		rd.smalls = 0
	} else {
		rd.smalls++
	}
	return n, err
}

// Borrow makes room for a read that the caller does itself, in a buffer from the pool; Took says
// what came. Who then has to wait gives the buffer back with Rest: an idle reader holds none, and a
// busy one gets one that is in the processor's cache still. It is a small one until a read has filled
// more than half of it. Not for a Reader that is filled too.
func (rd *Reader) Borrow() []byte {
	if !rd.lends {
		rd.lends, rd.home = true, nil
	}
	left := rd.w - rd.r
	want := smallBuffer
	if rd.much || rd.need > smallBuffer {
		want = max(bigBuffer, rd.need)
	}
	if left >= want {
		want = 2 * left // whoever leaves all of it wants more
	}
	switch {
	case len(rd.buf) < want:
		rd.move(want)
	case rd.r > 0:
		copy(rd.buf, rd.buf[rd.r:rd.w])
		rd.r, rd.w = 0, left
	}
	return rd.buf[rd.w:]
}

// Took notes that n octets were read into what Borrow gave.
func (rd *Reader) Took(n int) {
	rd.w += n
	rd.much = n > smallBuffer/2
}

// Rest gives the buffer back. A small part of a frame goes on in a small buffer of the reader's own,
// a large one keeps what it is in.
func (rd *Reader) Rest() {
	left := rd.w - rd.r
	switch {
	case left == 0:
		rd.giveBack()
		rd.buf, rd.r, rd.w = nil, 0, 0
	case left > smallBuffer:
	case left > restBuffer:
		if rd.small == nil {
			rd.move(smallBuffer)
		}
	default:
		if rd.home == nil {
			rd.home = make([]byte, restBuffer)
		}
		rd.move(restBuffer)
	}
}

// room moves what is left to the front and changes the buffer where another fits better.
func (rd *Reader) room() {
	left := rd.w - rd.r
	want := len(rd.buf)
	switch {
	case rd.need > len(rd.buf):
		want = max(bigBuffer, rd.need)
	case left == len(rd.buf): // whoever leaves all of it wants more, and a read needs room
		want = max(bigBuffer, 2*left)
	case len(rd.buf) < bigBuffer && rd.w == len(rd.buf):
		want = bigBuffer // the last read filled it: there is more
	case left == 0 && len(rd.buf) > bigBuffer && rd.smalls > 0:
		want = bigBuffer
	case left <= len(rd.home)/2 && rd.smalls >= idleReads:
		want = len(rd.home)
	}
	if rd.MaxBuffer > 0 && want > len(rd.buf) {
		want = min(max(rd.need, 2*len(rd.buf)), rd.MaxBuffer)
	}
	if want == len(rd.buf) {
		if rd.r > 0 {
			copy(rd.buf, rd.buf[rd.r:rd.w])
			rd.r, rd.w = 0, left
		}
		return
	}
	rd.move(want)
}

// move goes on in a buffer of at least the given size, with what is left at its front.
func (rd *Reader) move(want int) {
	var next []byte
	old := *rd
	rd.small, rd.big, rd.huge = nil, nil, nil
	switch {
	case want <= len(rd.home):
		next = rd.home
	case rd.lends && want == smallBuffer:
		rd.small = smallBuffers.Get().(*[smallBuffer]byte)
		next = rd.small[:]
	case want < bigBuffer:
		next = make([]byte, want)
	case want == bigBuffer:
		rd.big = bigBuffers.Get().(*[bigBuffer]byte)
		next = rd.big[:]
	case want <= hugeBuffer:
		rd.huge = hugeBuffers.Get().(*[hugeBuffer]byte)
		next = rd.huge[:]
	default:
		next = make([]byte, want)
	}
	n := copy(next, old.buf[old.r:old.w])
	rd.buf, rd.r, rd.w = next, 0, n
	old.giveBack()
}

// giveBack returns what is borrowed to its pool.
func (rd *Reader) giveBack() {
	if rd.small != nil {
		smallBuffers.Put(rd.small)
	}
	if rd.big != nil {
		bigBuffers.Put(rd.big)
	}
	if rd.huge != nil {
		hugeBuffers.Put(rd.huge)
	}
	rd.small, rd.big, rd.huge = nil, nil, nil
}

// Next is the next whole frame, or nil when another Fill is needed.
func (rd *Reader) Next() (Frame, error) {
	n, need, err := Split(rd.buf[rd.r:rd.w], rd.MaxFrame)
	rd.need = need
	if err != nil || n == 0 {
		return nil, err
	}
	f := Frame(rd.buf[rd.r : rd.r+n : rd.r+n])
	rd.r += n
	rd.need = 0
	return f, nil
}

// Empty reports whether nothing has been read that was not consumed.
func (rd *Reader) Empty() bool { return rd.r == rd.w }

// Buffered is what has been read and not been consumed.
func (rd *Reader) Buffered() []byte { return rd.buf[rd.r:rd.w] }

// Skip consumes n of the buffered bytes.
func (rd *Reader) Skip(n int) { rd.r += n }

// Mark is the place in the buffer up to which frames have been consumed; Between two of
// them lie consumed frames as one slice. A Fill makes it worthless.
func (rd *Reader) Mark() int { return rd.r }

// Release gives a borrowed buffer back; the Reader must not be used any more.
func (rd *Reader) Release() {
	rd.giveBack()
	rd.buf, rd.home, rd.r, rd.w = nil, nil, 0, 0
}

// Between is what was consumed between two marks.
func (rd *Reader) Between(from, to int) []byte { return rd.buf[from:to:to] }

// Expect notes the length of the frame that comes next, from Split, for who cuts frames
// out of Buffered himself.
func (rd *Reader) Expect(need int) { rd.need = need }

// Cap is how large the buffer is.
func (rd *Reader) Cap() int { return len(rd.buf) }

package outbox

import (
	"io"
	"math"
	"net"
	"sync"
)

const (
	// smallBlock holds what most writes are: an answer, a few small deliveries.
	smallBlock = 2 << 10
	// bigBlock is what a longer queue is made of: as much as a TLS record takes.
	bigBlock = 16 << 10
	// vectorMost is how many blocks leave in one write.
	vectorMost = 16
	// everything is what take takes where nothing bounds it.
	everything = math.MaxInt
)

// block is a piece of a queue. It never grows: what has been queued is not copied again.
type block struct {
	next *block
	p    []byte
	r    int // so much of p has left
	seen int // so much of p was shown to who taps
	// first and last are where the first and the last append end that end in this block; 0: none does.
	first, last int
}

// The pools hold no more than was queued at a time since the last collection but one, which empties them.
var (
	smallBlocks = sync.Pool{New: func() any { return &block{p: make([]byte, 0, smallBlock)} }}
	bigBlocks   = sync.Pool{New: func() any { return &block{p: make([]byte, 0, bigBlock)} }}
)

// newBlock is an empty block for n bytes or more.
func newBlock(n int) *block {
	switch {
	case n <= smallBlock:
		return smallBlocks.Get().(*block)
	case n <= bigBlock:
		return bigBlocks.Get().(*block)
	}
	return &block{p: make([]byte, 0, n)}
}

func (b *block) recycle() {
	*b = block{p: b.p[:0]}
	switch cap(b.p) {
	case smallBlock:
		smallBlocks.Put(b)
	case bigBlock:
		bigBlocks.Put(b)
	}
}

// queue is bytes in order, in blocks. The zero value is empty.
type queue struct {
	head, tail *block
	n          int // bytes
	held       int // what its blocks have room for
}

// add puts a block at the end.
func (q *queue) add(b *block) {
	if q.tail == nil {
		q.head = b
	} else {
		q.tail.next = b
	}
	q.tail = b
	q.n += len(b.p) - b.r
	q.held += cap(b.p)
}

// room is the block at the end, with room for n more bytes in one piece.
func (q *queue) room(n int) *block {
	t := q.last(n)
	if cap(t.p)-len(t.p) < n {
		t = newBlock(max(n, bigBlock))
		q.add(t)
	}
	return t
}

// last is a block at the end that has room, for n bytes if they fit in a usual one.
func (q *queue) last(n int) *block {
	t := q.tail
	switch {
	case t == nil:
		q.add(newBlock(min(n, bigBlock)))
	case cap(t.p)-len(t.p) >= n:
	case q.head == t && cap(t.p) == smallBlock:
		q.widen()
	case len(t.p) == cap(t.p):
		q.add(newBlock(bigBlock))
	}
	return q.tail
}

// widen puts a big block in the place of the small one that is all there is, so that what leaves in one
// piece is not cut for having begun small.
func (q *queue) widen() {
	old := q.head
	b := newBlock(bigBlock)
	b.p = append(b.p, old.p...)
	b.r, b.seen, b.first, b.last = old.r, old.seen, old.first, old.last
	q.head, q.tail = b, b
	q.held += bigBlock - smallBlock
	old.recycle()
}

// append queues a copy of p, which may come to lie in several blocks and is one append.
func (q *queue) append(p []byte) {
	if len(p) == 0 {
		return
	}
	q.n += len(p)
	t := q.tail
	for t == nil || cap(t.p)-len(t.p) < len(p) {
		t = q.last(len(p))
		n := copy(t.p[len(t.p):cap(t.p)], p)
		t.p = t.p[:len(t.p)+n]
		if p = p[n:]; len(p) == 0 {
			t.ends()
			return
		}
	}
	t.p = append(t.p, p...)
	t.ends()
}

// set takes p for what the block at the end holds: that, and one append more.
func (q *queue) set(p []byte) {
	t := q.tail
	n := len(p) - len(t.p)
	if n <= 0 {
		return
	}
	if cap(p) != cap(t.p) { // more was appended than there was room for, and all of it is elsewhere now
		q.append(p[len(t.p):])
		return
	}
	t.p = p
	q.n += n
	t.ends()
}

// ends notes that an append ends here.
func (b *block) ends() {
	b.last = len(b.p)
	if b.first == 0 {
		b.first = b.last
	}
}

// take takes whole blocks from the front: one, and more up to so many bytes.
func (q *queue) take(most int) (t queue) {
	for b := q.head; b != nil; b = b.next {
		n := len(b.p) - b.r
		if t.n > 0 && n > most-t.n {
			break
		}
		if t.head == nil {
			t.head = b
		}
		t.tail = b
		t.n += n
		t.held += cap(b.p)
	}
	if t.tail == nil {
		return queue{}
	}
	q.head, t.tail.next = t.tail.next, nil
	if q.head == nil {
		q.tail = nil
	}
	q.n -= t.n
	q.held -= t.held
	return t
}

// cut is how many bytes follow in rest of the append that the queue, taken from its front, ends amid.
func (q *queue) cut(rest *queue) (n int) {
	if q.tail == nil || q.tail.last == len(q.tail.p) {
		return 0
	}
	for b := rest.head; b != nil; b = b.next {
		if b.first > 0 {
			return n + b.first
		}
		n += len(b.p)
	}
	return n // cannot be: every append ends
}

// putBack puts t, which was taken from the front, there again.
func (q *queue) putBack(t queue) {
	if t.head == nil {
		return
	}
	t.tail.next = q.head
	q.head = t.head
	if q.tail == nil {
		q.tail = t.tail
	}
	q.n += t.n
	q.held += t.held
}

// left drops n bytes from the front, whose blocks are free.
func (q *queue) left(n int) {
	for q.head != nil {
		b := q.head
		rest := len(b.p) - b.r
		if rest > n {
			b.r += n
			q.n -= n
			return
		}
		n -= rest
		q.n -= rest
		q.held -= cap(b.p)
		q.head = b.next
		b.recycle()
	}
	q.tail = nil
}

// keep drops all but the first n bytes, where an append ends.
func (q *queue) keep(n int) {
	first := q.take(0)
	for first.n < n && q.n > 0 {
		more := q.take(0)
		first.tail.next = more.head
		first.tail = more.tail
		first.n += more.n
		first.held += more.held
	}
	q.free()
	if more := first.n - n; more > 0 {
		t := first.tail
		t.p = t.p[:len(t.p)-more]
		t.seen, t.first, t.last = min(t.seen, len(t.p)), min(t.first, len(t.p)), len(t.p)
		first.n = n
	}
	*q = first
}

// show gives what was not shown yet to tap, in order.
func (q *queue) show(tap func([]byte)) {
	for b := q.head; b != nil; b = b.next {
		if p := b.p[max(b.r, b.seen):]; len(p) > 0 {
			tap(p)
		}
		b.seen = len(b.p)
	}
}

// hide has the first n bytes count as shown, and no others.
func (q *queue) hide(n int) {
	for b := q.head; b != nil; b = b.next {
		k := min(n, len(b.p)-b.r)
		b.seen = b.r + k
		n -= k
	}
}

// free empties the queue.
func (q *queue) free() {
	for b := q.head; b != nil; {
		next := b.next
		b.recycle()
		b = next
	}
	*q = queue{}
}

// vector is what leaves in one write. It is used again.
type vector struct {
	bufs net.Buffers
	all  [vectorMost][]byte
}

var vectors = sync.Pool{New: func() any { return new(vector) }}

// vector is the front of the queue, n bytes, to be recycled.
func (q *queue) vector() (v *vector, n int) {
	v = vectors.Get().(*vector)
	v.bufs = v.all[:0]
	for b := q.head; b != nil && len(v.bufs) < vectorMost; b = b.next {
		if p := b.p[b.r:]; len(p) > 0 {
			v.bufs = append(v.bufs, p)
			n += len(p)
		}
	}
	return v, n
}

func (v *vector) recycle() {
	clear(v.all[:]) // a block is its pool's
	v.bufs = nil
	vectors.Put(v)
}

// write writes all there is, of which what has left is free.
func (q *queue) write(w io.Writer) error {
	for q.n > 0 {
		if b := q.head; q.n == len(b.p)-b.r { // one piece
			n, err := w.Write(b.p[b.r:])
			q.left(n)
			if err != nil {
				return err
			}
			continue
		}
		v, _ := q.vector()
		n, err := v.bufs.WriteTo(w)
		v.recycle()
		q.left(int(n))
		if err != nil {
			return err
		}
	}
	return nil
}

// try has a socket take what it does at once.
func (q *queue) try(w Trier) (n int, err error) {
	for q.n > 0 {
		v, all := q.vector()
		k, err := w.TryWrite(v.bufs)
		v.recycle()
		q.left(k)
		n += k
		if err != nil || k < all {
			return n, err
		}
	}
	return n, nil
}

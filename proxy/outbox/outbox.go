// Package outbox is the write queue of one socket: appended bytes leave in order,
// many appends in one write, and nobody writes while holding a lock. The owner's mutex
// guards the queue, so that a decision and the bytes that follow from it are one step.
package outbox

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
	"github.com/amqproxysvc/amqproxysvc/proxy/wait"
)

// ErrClosed is the error of a queue that was closed by its owner.
var ErrClosed = errors.New("outbox: closed")

// ErrCanceled is the error of a wait that its caller called off.
var ErrCanceled = errors.New("outbox: wait called off")

const (
	smallBuffer = 2 << 10
	bigBuffer   = 64 << 10
	hugeBuffer  = 512 << 10
	// writeStep bounds one Write so that a slow peer's progress can be seen.
	writeStep = 256 << 10
)

var (
	smallPool = sync.Pool{New: func() any { return new([smallBuffer]byte) }}
	bigPool   = sync.Pool{New: func() any { return new([bigBuffer]byte) }}
	hugePool  = sync.Pool{New: func() any { return new([hugeBuffer]byte) }}
)

// Box is a write queue. Methods ending in Locked are called with the owner's mutex held,
// all others without it.
type Box struct {
	// LastWrite is when a write last ended or progressed, WriteSince when the one that is
	// under way began or progressed, 0 when none is; both on the owner's clock. They come first: who
	// looks after a crowd of owners has them in one line of the processor's cache with what else it looks at.
	LastWrite, WriteSince atomic.Int64

	mu      lock.Any
	w       io.Writer
	onError func(error)   // called once, without the lock, on the first failed write
	now     *atomic.Int64 // the owner's coarse clock, nanoseconds

	// Written counts the bytes that have left.
	Written atomic.Int64

	// Guarded by mu.
	pending []byte
	flying  int // bytes taken out of pending and being written
	lent    int // the capacity they take
	busy    bool
	err     error
	turns   wait.Line[struct{}] // writers that wait for their turn
	waiters wait.Line[struct{}] // writers that wait for room to append
	room    wait.Signal         // pending has been taken, or there was an error
	tap     func([]byte)        // sees what is about to be written; nil: nobody does
	back    int                 // at the start of pending: what was taken before, and the socket did not take
}

// Init makes a queue for w. mu is the owner's mutex; now its coarse clock. onError may be nil.
func (b *Box) Init(mu lock.Any, w io.Writer, now *atomic.Int64, onError func(error)) {
	b.mu, b.w, b.now, b.onError = mu, w, now, onError
	b.LastWrite.Store(now.Load())
}

// AppendLocked queues a copy of p; KickLocked or Flush sends it. After an error it does nothing.
func (b *Box) AppendLocked(p []byte) {
	if b.err == nil {
		b.pending = append(b.growLocked(len(p)), p...)
	}
}

// BufferLocked returns the queue with room for n more bytes, for appending in place;
// give the result to SetBufferLocked. Asked twice, it gives the same.
func (b *Box) BufferLocked(n int) []byte { return b.growLocked(n) }

// SetBufferLocked takes back what BufferLocked gave, appended to.
func (b *Box) SetBufferLocked(p []byte) {
	if b.err == nil {
		b.pending = p
	}
}

func (b *Box) growLocked(n int) []byte {
	need := len(b.pending) + n
	if need <= cap(b.pending) {
		return b.pending
	}
	var next []byte
	switch {
	case need <= smallBuffer:
		next = smallPool.Get().(*[smallBuffer]byte)[:0]
	case need <= bigBuffer:
		next = bigPool.Get().(*[bigBuffer]byte)[:0]
	case need <= hugeBuffer:
		next = hugePool.Get().(*[hugeBuffer]byte)[:0]
	default:
		next = make([]byte, 0, max(need, 2*cap(b.pending)))
	}
	next = append(next, b.pending...)
	recycle(b.pending)
	b.pending = next // what was recycled is somebody else's now
	return next
}

func recycle(p []byte) {
	switch cap(p) {
	case smallBuffer:
		smallPool.Put((*[smallBuffer]byte)(p[:smallBuffer]))
	case bigBuffer:
		bigPool.Put((*[bigBuffer]byte)(p[:bigBuffer]))
	case hugeBuffer:
		hugePool.Put((*[hugeBuffer]byte)(p[:hugeBuffer]))
	}
}

// TapLocked has every queued byte shown once, in whole appends, before it is written; nil ends that. The
// lock is held meanwhile. What a writer sends past the queue is not shown.
func (b *Box) TapLocked(tap func([]byte)) { b.tap = tap }

// LenLocked is how many bytes wait or are being written.
func (b *Box) LenLocked() int { return len(b.pending) + b.flying }

// MemLocked is LenLocked, or the memory that a long queue takes for it.
func (b *Box) MemLocked() int {
	if n := b.LenLocked(); n <= hugeBuffer {
		return n
	}
	return cap(b.pending) + b.lent
}

// IdleLocked reports whether nothing waits and nobody writes.
func (b *Box) IdleLocked() bool { return !b.busy && len(b.pending) == 0 }

// ErrLocked is why nothing can be sent any more, or nil.
func (b *Box) ErrLocked() error { return b.err }

// DropLocked forgets what waits and is not yet being written. What the socket took a part of stays: it
// may end amid a frame.
func (b *Box) DropLocked() {
	if b.back > 0 && b.err == nil {
		b.pending = b.pending[:b.back]
		return
	}
	recycle(b.pending)
	b.pending, b.back = nil, 0
}

// KickLocked has a goroutine send what waits, unless somebody is writing already.
func (b *Box) KickLocked() {
	if !b.busy && len(b.pending) > 0 && b.err == nil {
		b.busy = true
		go b.drain()
	}
}

// Flush sends what waits from the calling goroutine, unless somebody is writing already;
// it does not wait for that one.
func (b *Box) Flush() {
	b.mu.Lock()
	b.FlushLocked()
}

// FlushAll is Flush that waits where another writes: what was appended has left then, or failed. The
// writer's deadline bounds the wait.
func (b *Box) FlushAll() {
	if b.WaitTurn(nil) != nil {
		return
	}
	b.mu.Lock()
	p := b.takeLocked()
	b.mu.Unlock()
	_ = b.Through(p, nil) // onError is told
}

// FlushLocked is Flush for a caller that has the lock, which it gives up.
func (b *Box) FlushLocked() {
	if b.busy || len(b.pending) == 0 || b.err != nil {
		b.mu.Unlock()
		return
	}
	b.busy = true
	p := b.takeLocked()
	b.mu.Unlock()
	err := b.write(p)
	b.mu.Lock()
	b.wroteLocked(p, err) // unlocks
}

// Trier writes what a socket takes at once and reports how much that was.
type Trier interface {
	TryWrite(p []byte) (n int, err error)
}

// FlushTry is Flush for a caller that must not wait for the socket: what it does not take at once, a
// goroutine sends.
func (b *Box) FlushTry(w Trier) {
	b.mu.Lock()
	if b.busy || len(b.pending) == 0 || b.err != nil {
		b.mu.Unlock()
		return
	}
	b.busy = true
	p := b.takeLocked()
	b.mu.Unlock()
	n, err := w.TryWrite(p)
	b.Written.Add(int64(n))
	b.LastWrite.Store(b.now.Load())
	b.mu.Lock()
	if n < len(p) && err == nil && b.err == nil {
		rest := append(make([]byte, 0, len(p)-n+len(b.pending)), p[n:]...)
		rest = append(rest, b.pending...)
		recycle(b.pending)
		b.pending, b.back = rest, len(p)-n
	}
	b.wroteLocked(p, err) // unlocks
}

// StartLocked makes the caller the one that writes when nobody else is and nothing waits:
// it must then call Through, without the lock. False: append instead.
func (b *Box) StartLocked() bool {
	if b.busy || len(b.pending) > 0 || b.err != nil {
		return false
	}
	b.busy = true
	return true
}

// TakeLocked gives the writer whose turn it is what waits, to be written before its own bytes. Taking
// it is one step with the decision that its own bytes may still be sent: what is appended
// after that leaves after them.
func (b *Box) TakeLocked() []byte { return b.takeLocked() }

// Through writes first, from TakeLocked or nil, and p past the queue and lets the queue go
// on. The caller has the turn, from StartLocked or WaitTurn. p is not kept.
func (b *Box) Through(first, p []byte) error {
	err := b.write(first)
	if err == nil {
		err = b.write(p)
	}
	b.mu.Lock()
	b.wroteLocked(first, err) // unlocks
	return err
}

// WaitTurn makes the caller the one that writes, after those who came before. The caller
// must then call Through (with nothing, to give the turn back unused). On an error, and
// when cancel is closed first, there is no turn.
func (b *Box) WaitTurn(cancel <-chan struct{}) error {
	b.mu.Lock()
	if b.err != nil {
		defer b.mu.Unlock()
		return b.err
	}
	if !b.busy {
		b.busy = true
		b.mu.Unlock()
		return nil
	}
	turn := b.turns.JoinLocked(struct{}{})
	b.mu.Unlock()
	err := error(nil)
	select {
	case <-turn.Served():
	case <-cancel:
		err = ErrCanceled
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		if b.turns.LeaveLocked(turn) {
			return err
		}
	} else if err = b.err; err == nil {
		return nil
	}
	b.nextLocked() // the turn was given, to nobody who wants it
	return err
}

// AwaitRoomLocked waits until at most the given number of bytes wait, an error, or until
// cancel is closed; the first to come is woken first. The lock is not held meanwhile, and is again
// afterwards. After appending the caller calls PassRoomLocked.
func (b *Box) AwaitRoomLocked(most int, cancel <-chan struct{}) error {
	for first := true; b.err == nil && (len(b.pending) > most || first && b.waiters.LenLocked() > 0); first = false {
		var w *wait.Place[struct{}]
		if first {
			w = b.waiters.JoinLocked(struct{}{})
		} else {
			w = b.waiters.RejoinLocked(struct{}{}) // others were quicker
		}
		canceled := false
		b.mu.Unlock()
		select {
		case <-w.Served():
		case <-cancel:
			canceled = true
		}
		b.mu.Lock()
		if canceled {
			if !b.waiters.LeaveLocked(w) {
				b.PassRoomLocked(most) // woken at the same moment
			}
			if b.err != nil {
				return b.err // a caller that goes on after ErrCanceled must not after this
			}
			return ErrCanceled
		}
	}
	return b.err
}

// PassRoomLocked wakes the next that waits for room, if there is still some.
func (b *Box) PassRoomLocked(most int) {
	if len(b.pending) <= most {
		b.waiters.ServeFirstLocked() // one, which wakes the next: there is never a crowd
	}
}

// RoomLocked is a channel that is closed when something waiting has been taken for
// writing, or on an error.
func (b *Box) RoomLocked() <-chan struct{} {
	room := b.room.WaitLocked()
	if b.err != nil {
		b.room.FireLocked()
	}
	return room
}

// FailLocked ends the queue: what waits is dropped, whoever waits is woken. A write that
// is under way is not interrupted; close the socket for that. onError is not called.
func (b *Box) FailLocked(err error) {
	if b.err != nil {
		return
	}
	if err == nil {
		err = ErrClosed
	}
	b.err = err
	b.DropLocked()
	b.room.FireLocked()
	for b.turns.ServeFirstLocked() {
	}
	for b.waiters.ServeFirstLocked() {
	}
}

func (b *Box) takeLocked() []byte {
	p := b.pending
	if b.tap != nil {
		b.tap(p[b.back:])
	}
	b.pending, b.back = nil, 0
	b.flying, b.lent = len(p), cap(p)
	b.room.FireLocked()
	b.waiters.ServeFirstLocked()
	return p
}

// drain is the goroutine that has the turn and keeps it until nothing waits.
func (b *Box) drain() {
	for {
		b.mu.Lock()
		if b.err != nil || len(b.pending) == 0 || b.turns.LenLocked() > 0 {
			b.nextLocked()
			b.mu.Unlock()
			return
		}
		p := b.takeLocked()
		b.mu.Unlock()
		err := b.write(p)
		recycle(p)
		b.mu.Lock()
		b.flying, b.lent = 0, 0
		failed := b.failedLocked(err)
		b.mu.Unlock()
		if failed && b.onError != nil {
			b.onError(err)
		}
	}
}

// nextLocked gives the turn to the writer that waits for it, to a goroutine when bytes wait, or to nobody.
func (b *Box) nextLocked() {
	switch {
	case b.turns.ServeFirstLocked():
	case len(b.pending) > 0 && b.err == nil:
		go b.drain()
	default:
		b.busy = false
		b.room.FireLocked()
		b.waiters.ServeFirstLocked()
	}
}

// wroteLocked ends a write made in the caller's goroutine, passes the turn on and unlocks.
func (b *Box) wroteLocked(p []byte, err error) {
	recycle(p)
	b.flying, b.lent = 0, 0
	failed := b.failedLocked(err)
	b.nextLocked()
	b.mu.Unlock()
	if failed && b.onError != nil {
		b.onError(err)
	}
}

func (b *Box) failedLocked(err error) bool {
	if err == nil || b.err != nil {
		return false
	}
	b.FailLocked(err)
	return true
}

func (b *Box) write(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	for {
		step := p[:min(len(p), writeStep)]
		b.WriteSince.Store(b.now.Load())
		n, err := b.w.Write(step)
		b.Written.Add(int64(n))
		b.LastWrite.Store(b.now.Load())
		if err != nil || len(step) == len(p) {
			b.WriteSince.Store(0)
			return err
		}
		p = p[len(step):]
	}
}

// Package outbox is the write queue of one socket: appended bytes leave in order,
// many appends in one write, and nobody writes while holding a lock. The owner's mutex
// guards the queue, so that a decision and the bytes that follow from it are one step.
package outbox

import (
	"errors"
	"io"
	"net"
	"sync/atomic"

	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
	"github.com/amqproxysvc/amqproxysvc/proxy/wait"
)

// ErrClosed is the error of a queue that was closed by its owner.
var ErrClosed = errors.New("outbox: closed")

// ErrCanceled is the error of a wait that its caller called off.
var ErrCanceled = errors.New("outbox: wait called off")

// writeStep bounds one write, so that a slow peer's progress can be seen, and what it holds of a queue
// that is dropped behind it.
const writeStep = 128 << 10

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
	pending queue
	flying  int // bytes taken out of pending and being written
	busy    bool
	err     error
	turns   wait.Line[struct{}] // writers that wait for their turn
	waiters wait.Line[struct{}] // writers that wait for room to append
	room    wait.Signal         // pending has been taken, or there was an error
	tap     func([]byte)        // sees what is about to be written; nil: nobody does
	begun   int                 // at the start of pending: the rest of an append of which a part was taken
}

// Init makes a queue for w. mu is the owner's mutex; now its coarse clock. onError may be nil.
func (b *Box) Init(mu lock.Any, w io.Writer, now *atomic.Int64, onError func(error)) {
	b.mu, b.w, b.now, b.onError = mu, w, now, onError
	b.LastWrite.Store(now.Load())
}

// AppendLocked queues a copy of p, which is dropped as a whole or not at all; KickLocked or Flush sends
// it. After an error it does nothing.
func (b *Box) AppendLocked(p []byte) {
	if b.err == nil {
		b.pending.append(p)
	}
}

// BufferLocked returns the end of the queue with room for n more bytes, for appending in place;
// give the result to SetBufferLocked. Asked twice, it gives the same. After an error it is nothing of the queue's.
func (b *Box) BufferLocked(n int) []byte {
	if b.err != nil {
		return nil
	}
	return b.pending.room(n).p
}

// SetBufferLocked takes back what BufferLocked gave, appended to.
func (b *Box) SetBufferLocked(p []byte) {
	if b.err == nil {
		b.pending.set(p)
	}
}

// TapLocked has what is queued shown in order, once, before it is written, in pieces that are cut anywhere;
// the first begins where an append does. nil ends that. The lock is held meanwhile. What a writer sends past
// the queue is not shown.
func (b *Box) TapLocked(tap func([]byte)) {
	b.tap = tap
	b.pending.hide(b.begun)
}

// LenLocked is how many bytes wait or are being written.
func (b *Box) LenLocked() int { return b.pending.n + b.flying }

// MemLocked is the memory that is held for them: blocks, and of those that are being written as many as their
// bytes may be in.
func (b *Box) MemLocked() int {
	return b.pending.held + (b.flying+bigBlock-1)/bigBlock*bigBlock
}

// IdleLocked reports whether nothing waits and nobody writes.
func (b *Box) IdleLocked() bool { return !b.busy && b.pending.n == 0 }

// ErrLocked is why nothing can be sent any more, or nil.
func (b *Box) ErrLocked() error { return b.err }

// DropLocked forgets what waits and is not yet being written. What a part of was taken stays: nothing may
// come amid a frame.
func (b *Box) DropLocked() {
	if b.begun > 0 && b.err == nil {
		b.pending.keep(b.begun)
		return
	}
	b.pending.free()
	b.begun = 0
}

// KickLocked has a goroutine send what waits, unless somebody is writing already.
func (b *Box) KickLocked() {
	if !b.busy && b.pending.n > 0 && b.err == nil {
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
	first := b.TakeLocked()
	b.mu.Unlock()
	_ = b.Through(first, nil) // onError is told
}

// FlushLocked is Flush for a caller that has the lock, which it gives up.
func (b *Box) FlushLocked() {
	if b.busy || b.pending.n == 0 || b.err != nil {
		b.mu.Unlock()
		return
	}
	b.busy = true
	b.wroteLocked(b.passLocked()) // unlocks
}

// Trier writes what a socket takes at once and reports how much that was. p is not kept.
type Trier interface {
	TryWrite(p net.Buffers) (n int, err error)
}

// FlushTry is Flush for a caller that must not wait for the socket: what it does not take at once, a
// goroutine sends.
func (b *Box) FlushTry(w Trier) {
	b.mu.Lock()
	if b.busy || b.pending.n == 0 || b.err != nil {
		b.mu.Unlock()
		return
	}
	b.busy = true
	q := b.takeLocked(everything)
	b.mu.Unlock()
	n, err := q.try(w)
	b.Written.Add(int64(n))
	b.LastWrite.Store(b.now.Load())
	b.mu.Lock()
	if q.n > 0 && err == nil && b.err == nil {
		b.begun = q.n
		q.hide(q.n) // from who has come to tap meanwhile: it may begin amid a frame
		b.pending.putBack(q)
	} else {
		q.free()
	}
	b.wroteLocked(err) // unlocks
}

// StartLocked makes the caller the one that writes when nobody else is and nothing waits:
// it must then call Through, without the lock. False: append instead.
func (b *Box) StartLocked() bool {
	if b.busy || b.pending.n > 0 || b.err != nil {
		return false
	}
	b.busy = true
	return true
}

// Taken is what TakeLocked gave, for Through.
type Taken struct{ q queue }

// TakeLocked gives the writer whose turn it is what waits, to be written before its own bytes: these may
// otherwise come amid a frame. Taking it is one step with the decision that its own bytes may still be sent:
// what is appended after that leaves after them.
func (b *Box) TakeLocked() Taken { return Taken{b.takeLocked(everything)} }

// Through writes first, from TakeLocked or nothing, and p past the queue and lets the queue go
// on. The caller has the turn, from StartLocked or WaitTurn. p is not kept.
func (b *Box) Through(first Taken, p []byte) error {
	var err error
	for first.q.n > 0 && err == nil {
		err = b.write(first.q.take(writeStep))
	}
	first.q.free()
	for len(p) > 0 && err == nil {
		step := p[:min(len(p), writeStep)]
		b.WriteSince.Store(b.now.Load())
		var n int
		n, err = b.w.Write(step)
		b.wrote(n)
		p = p[len(step):]
	}
	b.mu.Lock()
	b.wroteLocked(err) // unlocks
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
	for first := true; b.err == nil && (b.pending.n > most || first && b.waiters.LenLocked() > 0); first = false {
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
	if b.pending.n <= most {
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

// takeLocked takes whole blocks, one at least and otherwise at most so many bytes.
func (b *Box) takeLocked(most int) queue {
	q := b.pending.take(most)
	if b.tap != nil {
		q.show(b.tap)
	}
	if b.begun -= q.n; b.begun <= 0 {
		b.begun = q.cut(&b.pending)
	}
	b.flying = q.n
	b.room.FireLocked()
	b.waiters.ServeFirstLocked()
	return q
}

// passLocked writes what waits now, and not what is appended meanwhile: of a busy queue there is no end, nor need
// it be where an append ends. It holds the lock before and after.
func (b *Box) passLocked() (err error) {
	for left := b.pending.n; left > 0 && b.pending.n > 0 && err == nil && b.err == nil; {
		q := b.takeLocked(writeStep)
		left -= q.n
		b.mu.Unlock()
		err = b.write(q)
		b.mu.Lock()
		b.flying = 0
	}
	return err
}

// drain is the goroutine that has the turn and keeps it until nothing waits.
func (b *Box) drain() {
	var err error
	b.mu.Lock()
	for b.err == nil && b.pending.n > 0 && b.turns.LenLocked() == 0 && err == nil {
		err = b.passLocked()
	}
	b.wroteLocked(err) // unlocks
}

// nextLocked gives the turn to the writer that waits for it, to a goroutine when bytes wait, or to nobody.
func (b *Box) nextLocked() {
	switch {
	case b.turns.ServeFirstLocked():
	case b.pending.n > 0 && b.err == nil:
		go b.drain()
	default:
		b.busy = false
		b.room.FireLocked()
		b.waiters.ServeFirstLocked()
	}
}

// wroteLocked ends a turn: it passes it on and unlocks.
func (b *Box) wroteLocked(err error) {
	b.flying = 0
	b.WriteSince.Store(0)
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

// write writes the queue, which is no longer than writeStep or a block, and frees it.
func (b *Box) write(q queue) error {
	b.WriteSince.Store(b.now.Load())
	n := q.n
	err := q.write(b.w)
	b.wrote(n - q.n)
	q.free()
	return err
}

func (b *Box) wrote(n int) {
	b.Written.Add(int64(n))
	b.LastWrite.Store(b.now.Load())
}

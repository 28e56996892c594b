// What the janitor looks after in an upstream: its heartbeat, answers that are overdue.

package proxy

import (
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/ledger"
)

func (u *upstream) tend() {
	now := u.env.now()
	if u.heldUp(now) {
		return
	}
	hb := int64(u.heartbeat)
	if hb != 0 {
		if silent := now - u.lastRead.Load(); silent > 2*hb+int64(tick) && !u.halted.Load() {
			u.silent(amqp.Errorf(amqp.ConnectionForced, 0, "the broker has been silent for %v, its heartbeat is %v",
				time.Duration(silent).Round(time.Millisecond), u.heartbeat))
			return
		}
		if now-u.out.LastWrite.Load() >= hb/2 {
			u.mu.Lock()
			if u.out.IdleLocked() && u.failed == nil {
				u.out.AppendLocked(amqp.Heartbeat)
				u.out.KickLocked()
			}
			u.mu.Unlock()
		}
	}
	u.watch(now)
	u.answerOverdue(now)
	u.dropKept(false)
}

// A broker that leaves closesLate channels unanswered for lateAfter does not keep up with
// clients that come and go: their closes are not waited for, so new channels must be. More than
// closesMost are never under way: a client can send thousands before any is late, and each is some
// processes that a broker has to run beside those of everybody else.
const (
	closesLate = 64
	closesMost = 256
	lateAfter  = 2 * tick
)

// answerOverdue gives close-ok to clients whose channel.close the broker does not answer,
// and ends crossed closes that no broker will answer any more; their ids stay unused.
func (u *upstream) answerOverdue(now int64) {
	if u.closingN.Load() == 0 {
		u.late.Store(0)
		return
	}
	limit := int64(u.env.cfg().CloseTimeout)
	late := int32(0)
	var overdue []*binding
	var lost []*binding
	u.mu.Lock()
	t := u.table.Load()
	for i := range *t {
		b := (*t)[i].Load()
		if b == nil || b.state == bOpen {
			continue
		}
		if now-b.closedAt >= int64(lateAfter) {
			late++
		}
		if now-b.closedAt < limit {
			continue
		}
		act := u.endLocked(b, ledger.ByOverdue)
		if act.Has(ledger.Tell) {
			overdue = append(overdue, b)
		}
		if act.Has(ledger.Lose) {
			lost = append(lost, b)
		}
	}
	u.mu.Unlock()
	u.late.Store(late)
	for _, b := range overdue {
		if b.ch.c.closeAnswered(b, ledger.ByOverdue) {
			b.ch.c.wake()
		}
	}
	for _, b := range lost {
		b.place.lose()
	}
}

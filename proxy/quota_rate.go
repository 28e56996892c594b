// Rates of logins: a login above one waits for its turn, first come first served, for wait_timeout
// at most. It has proved who it is: it leaves its place among max_handshakes to strangers.

package proxy

import (
	"context"
	"errors"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/wait"
)

// loginsWaitMost is how many logins may wait for a rate in all, half of them for one.
const loginsWaitMost = 10_000

// paceTake takes a turn, if one is free. The turns of a rate are one behind the other, each of which lasts each;
// next is when the last one that was taken is over. They may be taken slack ahead.
func paceTake(next *int64, now, each, slack int64) bool {
	from := max(*next, now)
	if from-now > slack {
		return false
	}
	*next = from + each
	return true
}

// takeTurns waits where the login is one above a rate.
func (c *client) takeTurns(mine *clientQuotas, vhost string) *amqp.Error {
	q := &c.s.quotas
	var gone <-chan struct{}
	var ctx context.Context
	for kind, k := range mine.of {
		if k == nil {
			continue
		}
		q.mu.Lock()
		place, refused := q.turnLocked(k)
		q.mu.Unlock()
		if refused != nil {
			return tooManyFor(kind, c.user, vhost, "connection rate", refused.bound(limitConnects))
		}
		if place == nil {
			continue
		}
		if ctx == nil {
			c.handshakeOver()
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(c.s.ctx, c.env.cfg().WaitTimeout)
			defer cancel()
			var stop func()
			gone, stop = c.watch()
			defer stop()
			defer c.waitsForTurn()()
		}
		if err := k.line.Await(&q.mu, place, ctx, gone); err != nil {
			return c.noTurn(k, vhost, err)
		}
	}
	return nil
}

// waitsForTurn notes that the client waits, which handshake_timeout does not count.
func (c *client) waitsForTurn() (over func()) {
	from, came := c.env.now(), time.Now()
	c.paused.Store(true)
	c.waitsFrom.Store(from)
	return func() {
		c.granted.Add(c.env.now() - from)
		c.waitsFrom.Store(0)
		c.paused.Store(false)
		c.env.n.waits.observe(time.Since(came))
	}
}

// turnLocked gives a login its turn (nil and nil), a place in the line for one, or the rule that refuses it.
func (q *quotas) turnLocked(k *quota) (*wait.Place[struct{}], *quotaRule) {
	now := int64(q.now())
	k.came.add(now, 1)
	if r := k.rules.alarm; r != nil && r.each > 0 && !paceTake(&k.alarmTurn, now, r.each, r.slack) {
		q.hitLocked(k, limitConnects, limitAlarm, r)
	}
	r := k.rules.enforce
	if r == nil || r.each == 0 || k.line.LenLocked() == 0 && paceTake(&k.turn, now, r.each, r.slack) {
		return nil, nil
	}
	if q.waiting >= loginsWaitMost || k.line.LenLocked() >= loginsWaitMost/2 {
		q.hitLocked(k, limitConnects, limitRefused, r)
		return nil, r
	}
	q.hitLocked(k, limitConnects, limitDelayed, r)
	place := k.line.JoinLocked(struct{}{})
	q.waiting++
	if q.lines == nil {
		q.lines = make(map[*quota]bool)
	}
	q.lines[k] = true
	q.serveLineLocked(k)
	return place, nil
}

// serveLineLocked gives turns that are due, and looks again when the next one is.
func (q *quotas) serveLineLocked(k *quota) {
	now := int64(q.now())
	r := k.rules.enforce
	for k.line.LenLocked() > 0 && (r == nil || r.each == 0 || paceTake(&k.turn, now, r.each, r.slack)) {
		k.line.ServeFirstLocked()
		q.waiting--
	}
	if k.timer != nil {
		k.timer.Stop()
		k.timer = nil
	}
	if k.line.LenLocked() == 0 {
		delete(q.lines, k)
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(time.Duration(k.turn-r.slack-now), func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if k.timer == timer { // else another looks
			q.serveLineLocked(k)
		}
	})
	k.timer = timer
}

// noTurn is the end of a wait that came to nothing.
func (c *client) noTurn(k *quota, vhost string, err error) *amqp.Error {
	q := &c.s.quotas
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting--
	q.serveLineLocked(k)
	switch {
	case errors.Is(err, wait.ErrGone):
		return errGone
	case c.s.ctx.Err() != nil:
		return errStopping
	}
	r := k.rules.enforce
	if r == nil || r.each == 0 {
		return nil // the limit went at the same moment
	}
	q.hitLocked(k, limitConnects, limitRefused, r)
	return tooManyFor(k.kind, c.user, vhost, "connection rate", r.bound(limitConnects))
}

// loginsWaiting is how many wait for their turn, and how long the first has.
func (q *quotas) loginsWaiting() (n int, longest time.Duration) {
	if q.rules.Load() == nil {
		return 0, 0
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for k := range q.lines {
		_, since := k.line.WaitingLocked()
		longest = max(longest, since)
	}
	return q.waiting, longest
}

// window counts what comes in a second, for those who look.
type window struct {
	second  int64
	n, last int64
}

func (w *window) add(now, n int64) {
	w.turn(now)
	w.n += n
}

func (w *window) turn(now int64) {
	second := now / int64(time.Second)
	switch second - w.second {
	case 0:
		return
	case 1:
		w.last = w.n
	default:
		w.last = 0
	}
	w.second, w.n = second, 0
}

// rate is what came in the last whole second.
func (w *window) rate(now int64) int64 {
	w.turn(now)
	return w.last
}

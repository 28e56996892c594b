// Rates of bytes: what a client sends above one is routed as ever, and then it is not read for so
// long that the rate holds. All clients of a key have one rate together.

package proxy

import (
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
)

// dataPace is the data_rate of one key, shared by its clients' readers.
type dataPace struct {
	q     *quotas
	k     *quota
	rules atomic.Pointer[rulesOf]

	mu              lock.Mutex[lock.Leaf]
	next, alarmNext int64 // see paceTake
	alarmed         int64 // when it was last counted
	came            window
}

// dataPaces are those of one client.
type dataPaces []*dataPace

// refreshDataLocked takes the key's rules for its data_rate.
func (q *quotas) refreshDataLocked(k *quota) {
	has := func(r *quotaRule) bool { return r != nil && r.DataRate > 0 }
	rules := k.rules
	switch {
	case !has(rules.enforce) && !has(rules.alarm):
		k.data = nil
		return
	case k.data == nil:
		k.data = &dataPace{q: q, k: k}
	}
	if !has(rules.enforce) {
		rules.enforce = nil
	}
	if !has(rules.alarm) {
		rules.alarm = nil
	}
	k.data.rules.Store(&rules)
}

// followLocked has the client's reader keep to the rates of its quotas. quotas.mu is held.
func (c *client) followLocked(mine *clientQuotas) {
	var all dataPaces
	for _, k := range mine.of {
		if k != nil && k.data != nil {
			all = append(all, k.data)
		}
	}
	if all == nil {
		c.paces.Store(nil)
		return
	}
	c.paces.Store(&all)
}

// take notes that n bytes have come. It says for how long their reader is to wait.
func (d *dataPace) take(n int) (pause time.Duration) {
	rules := d.rules.Load()
	now := int64(d.q.now())
	over := false
	d.mu.Lock()
	d.came.add(now, int64(n))
	if r := rules.enforce; r != nil {
		d.next = max(d.next, now) + r.dataTime(n)
		pause = time.Duration(max(0, d.next-now-r.dataSlack))
	}
	if r := rules.alarm; r != nil {
		next := max(d.alarmNext, now) + r.dataTime(n)
		if next-now <= r.dataSlack {
			d.alarmNext = next
		} else if d.alarmed == 0 || now-d.alarmed >= int64(time.Second) {
			d.alarmed, over = max(now, 1), true
		}
	}
	d.mu.Unlock()
	if over || pause > 0 {
		d.q.mu.Lock()
		if over {
			d.q.hitLocked(d.k, limitData, limitAlarm, rules.alarm)
		}
		if pause > 0 {
			d.q.hitLocked(d.k, limitData, limitDelayed, rules.enforce)
		}
		d.q.mu.Unlock()
	}
	return pause
}

// dataTime is how long the rate takes for n bytes.
func (r *quotaRule) dataTime(n int) int64 {
	return int64(float64(n) * float64(time.Second) / float64(r.DataRate))
}

// rate is what came in the last whole second.
func (d *dataPace) rate(now int64) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.came.rate(now)
}

// keepPace waits where the client has sent more than its rates allow. Its reader calls it when what came has been
// sent on. A client that is being closed waits for nothing, and new limits count at once, or nearly.
func (c *client) keepPace(paces *dataPaces, n int) {
	pause := time.Duration(0)
	for _, d := range *paces {
		pause = max(pause, d.take(n))
	}
	for pause > 0 && c.phase.Load() == phaseRunning && c.paces.Load() == paces {
		step := min(pause, time.Second)
		timer := time.NewTimer(step)
		select {
		case <-timer.C:
		case <-c.gone:
			timer.Stop()
			return
		}
		pause -= step
	}
}

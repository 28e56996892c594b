// The explorer's choices: what an application and a broker may do next, and how a run is
// brought to its end.

package hazard

import (
	"fmt"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// steps are all things that may be done, in a fixed order.
func (w *world) steps() (all []step) {
	add := func(name string, do func()) { all = append(all, step{name, do}) }
	a := w.app
	if a == nil || a.over {
		add("app connects", func() { w.app = w.connect("app") })
	} else if !a.ended {
		for id := uint16(1); id <= 2; id++ {
			ch := a.chans[id]
			switch {
			case ch == nil || !ch.open:
				if id == 1 || a.chans[1] != nil {
					add(fmt.Sprintf("app opens %d", id), func() { w.openApp(id) })
				}
				continue
			case ch.owes:
				add(fmt.Sprintf("app answers close of %d", id), func() {
					ch.owes = false
					if !ch.sentClose {
						*ch = appChan{}
					}
					a.send(method(id, amqp.ChannelCloseOk))
				})
				continue
			case ch.unopened || ch.sentClose:
				continue
			}
			if ch.calls < 1 {
				add(fmt.Sprintf("app declares on %d", id), func() { a.send(w.declareApp(id)) })
			}
			if id == 1 {
				add(fmt.Sprintf("app publishes on %d", id), func() {
					ch.published++
					a.send(message(id, "", "q", ch.serial))
				})
				if w.reuse {
					add(fmt.Sprintf("app publishes mandatory on %d", id), func() {
						ch.published++
						a.send(publish(id, "", "q", 1), header(id, 3), body(id, ch.serial))
					})
				}
				if !ch.confirms && ch.published == 0 {
					add(fmt.Sprintf("app selects confirms on %d", id), func() {
						ch.confirms = true
						ch.selects++
						a.send(method(id, amqp.ConfirmSelect, octet(0)))
					})
				}
			}
			add(fmt.Sprintf("app closes %d", id), func() {
				ch.sentClose = true
				a.send(method(id, amqp.ChannelClose, short(200), str("bye"), long(0)))
			})
		}
		add("app crashes", func() {
			a.ended = true
			proxytest.Abort(a.conn)
			w.app = nil
		})
		add("app crashes amid a publish", func() {
			if ch := a.chans[1]; ch != nil && ch.open && !ch.unopened && !ch.sentClose && !ch.owes {
				a.send(publish(1, "", "q", 0), header(1, 3))
			}
			a.ended = true
			proxytest.Abort(a.conn)
			w.app = nil
		})
		add("app says connection.close", func() {
			a.ended = true
			a.send(method(0, amqp.ConnectionClose, short(200), str("bye"), long(0)))
		})
	}
	for _, c := range w.brokers {
		if c.gone || c.closing {
			continue
		}
		if w.cuts && c.open {
			add(fmt.Sprintf("broker#%d cuts", c.n), func() { w.cut(c) })
		}
		for id := uint16(1); id <= w.chanMax; id++ {
			ch := c.chans[id]
			if ch == nil || !ch.open || w.canarys(c, id) {
				continue
			}
			who := fmt.Sprintf("broker#%d", c.n)
			if ch.sentClose {
				continue
			}
			if ch.calls > 0 {
				add(fmt.Sprintf("%s answers declare on %d", who, id), func() { w.answer(c, id) })
			}
			if ch.confirms && ch.acked < ch.published {
				add(fmt.Sprintf("%s confirms on %d", who, id), func() {
					w.opened(c, id)
					ch.acked = ch.published
					w.acked[ch.serial] = ch.acked - ch.base
					ch.proven, ch.mandatory = ch.calls == 0, false // returns come before
					c.send(method(id, amqp.BasicAck, longlong(ch.acked), octet(1)))
				})
			}
			if ch.barriers > 0 {
				add(fmt.Sprintf("%s answers the barrier on %d", who, id), func() { w.answer(c, id) })
			}
			mayReturn, mayClose := !w.reuse || ch.mandatory, !w.reuse || !ch.proven
			if ch.gotClose {
				if mayReturn {
					add(fmt.Sprintf("%s sends something late on %d", who, id), func() { w.opened(c, id); c.send(returned(id, ch.serial)) })
				}
				add(fmt.Sprintf("%s answers close of %d", who, id), func() { w.answerClose(c, id) })
				continue
			}
			if mayReturn {
				add(fmt.Sprintf("%s returns on %d", who, id), func() { w.opened(c, id); c.send(returned(id, ch.serial)) })
			}
			if !mayClose {
				continue
			}
			add(fmt.Sprintf("%s closes %d", who, id), func() {
				w.opened(c, id)
				ch.sentClose = true
				w.refused[ch.serial] = true
				c.send(amqp.AppendClose(nil, id, &amqp.Error{Code: 404, Text: "NOT_FOUND - x", Method: amqp.QueueDeclare}))
			})
		}
	}
	return all
}

// canarys tells whether the channel is the canary's.
func (w *world) canarys(c *brokerConn, id uint16) bool {
	return c.chans[id] != nil && c.chans[id].serial == canarySerial
}

// cut ends a connection as a lost broker does. Whoever has a channel there must be told
// at once, unless all that was done on it is done anew; nobody may be told a confirm that was not given.
func (w *world) cut(c *brokerConn) {
	c.cut, c.gone = true, true
	for _, a := range []*appConn{w.app, w.canary} {
		if a != nil {
			a.doomed = true
		}
	}
	proxytest.Abort(c.conn)
	w.settle()
	time.Sleep(time.Second)
	w.settle()
	for _, a := range []*appConn{w.app, w.canary} {
		if a == nil || a.ended {
			continue
		}
		for id, ch := range a.chans {
			for _, b := range c.chans {
				if ch.open && !ch.sentClose && !ch.refused && b.open && !b.gotClose && !b.sentClose && b.serial == ch.serial && ch.serial != "" && !w.anew(c, b) {
					w.violation("%s was not told that the connection of its channel %d is lost", a.name, id)
				}
			}
		}
	}
}

// anew reports whether a channel of a lost connection had done nothing but a declaration that was not answered, and that
// has come on another connection.
func (w *world) anew(lost *brokerConn, ch *brokerChan) bool {
	if ch.declares != 1 || ch.calls != 1 || ch.published != ch.base || ch.content != 0 {
		return false
	}
	for _, c := range w.brokers {
		for _, x := range c.chans {
			if c != lost && !c.gone && x.open && x.serial == ch.serial && x.declares == 1 && x.calls == 1 {
				return true
			}
		}
	}
	return false
}

// returned is a message that says whose it is.
func returned(id uint16, serial string) []byte {
	return cat(method(id, amqp.BasicReturn, short(312), str("NO_ROUTE"), str(""), str("q")), header(id, 3), body(id, serial))
}

func (w *world) opened(c *brokerConn, id uint16) {
	if ch := c.chans[id]; ch.unopened {
		ch.unopened = false
		c.send(method(id, amqp.ChannelOpenOk, long(0)))
	}
	for ch := c.chans[id]; ch.selects > 0; ch.selects-- {
		ch.confirms = true
		c.send(method(id, amqp.ConfirmSelectOk))
	}
}

func (w *world) answer(c *brokerConn, id uint16) {
	w.opened(c, id)
	ch := c.chans[id]
	for ; ch.calls > 0; ch.calls-- {
		c.send(method(id, amqp.QueueDeclareOk, str("q"), long(0), long(0)))
		ch.proven = true
	}
	for ; ch.barriers > 0; ch.barriers-- {
		c.send(method(id, amqp.BasicQosOk))
		ch.proven = true
	}
}

func (w *world) answerClose(c *brokerConn, id uint16) {
	w.answer(c, id) // in the order in which they came
	*c.chans[id] = brokerChan{}
	c.send(method(id, amqp.ChannelCloseOk))
}

// answerAll has the broker answer all that is asked of it until nothing more comes.
func (w *world) answerAll() {
	for range 20 {
		w.settle()
		busy := false
		for _, c := range w.brokers {
			if c.gone || c.closing {
				continue
			}
			for id := uint16(1); id <= w.chanMax; id++ {
				ch := c.chans[id]
				switch {
				case ch == nil || !ch.open || ch.sentClose:
				case ch.gotClose:
					w.answerClose(c, id)
					busy = true
				case ch.calls > 0 || ch.unopened || ch.selects > 0 || ch.barriers > 0:
					w.answer(c, id)
					busy = true
				}
			}
		}
		if a := w.app; a != nil && !a.ended {
			for id, ch := range a.chans {
				if ch.owes {
					busy = true
					ch.owes = false
					a.send(method(id, amqp.ChannelCloseOk))
					if !ch.sentClose {
						*ch = appChan{}
					}
				}
			}
		}
		if !busy {
			return
		}
	}
	w.violation("the two sides never come to rest")
}

// finish brings all to an end, and looks that nothing hangs and nothing is left.
func (w *world) finish() {
	w.note("end:")
	w.answerAll()
	if a := w.app; a != nil && !a.ended {
		for id, ch := range a.chans {
			switch {
			case ch.unopened:
				w.violation("open-ok of channel %d never came", id)
			case ch.sentClose:
				w.violation("close-ok of channel %d never came", id)
			case ch.open && ch.calls > 0:
				w.violation("declare-ok on channel %d never came", id)
			case ch.open && ch.selects > 0:
				w.violation("confirm.select-ok on channel %d never came", id)
			case ch.open && !ch.owes:
				a.send(w.declareApp(id))
				w.answerAll()
				w.waitOut()
				if w.broken == "" && ch.open && ch.calls > 0 {
					w.violation("channel %d answers no more", id)
				}
			}
		}
	}
	before := w.sung
	if w.canary.ended { // its connection was lost with the broker's: the next login is served
		w.newCanary()
	} else {
		w.canary.send(message(1, "", "q", canarySerial))
	}
	w.answerAll()
	if w.sung != before+1 {
		w.violation("the canary's publish arrived %d times", w.sung-before)
	}
	if a := w.app; a != nil {
		if !a.ended {
			a.ended = true
			a.send(method(0, amqp.ConnectionClose, short(200), str("bye"), long(0)))
		}
		w.answerAll()
		w.waitOut()
		if !a.over {
			w.violation("connection.close was never answered")
		}
	}
	w.answerAll()
	w.waitOut()
	if got := w.srv.Stats(); got.Bindings-got.Kept != 1 || got.Channels != 1 {
		w.violation("%d bindings and %d channels are left beside the canary's, want none", got.Bindings-got.Kept-1, got.Channels-1)
	}
	for _, c := range w.brokers {
		kept := 0
		for id, ch := range c.chans {
			if w.reuse && ch.open && ch.proven && !ch.mandatory && !ch.gotClose && !w.canarys(c, id) {
				kept++
				continue
			}
			if ch.open && !c.cut && !w.canarys(c, id) && !(ch.sentClose && ch.dead) && !c.gone {
				w.violation("broker#%d: channel %d is still open", c.n, id)
			}
		}
		if kept > int(w.chanMax)/4 && !c.cut && !c.gone {
			w.violation("broker#%d: %d channels are kept, of %d", c.n, kept, w.chanMax)
		}
	}
}

// waitOut lets the time pass in which a close-ok that never comes is waited for. The broker is
// alive meanwhile: it answers what it is asked, and its heartbeats come.
func (w *world) waitOut() {
	if w.crossed {
		return
	}
	for range 10 {
		time.Sleep(time.Second)
		for _, c := range w.brokers {
			if c.open && !c.gone && !c.closing {
				c.send(amqp.Heartbeat[:])
			}
		}
		w.answerAll()
	}
}

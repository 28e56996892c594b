// A channel of the stand-in broker: contents, acknowledgements, transactions, and the
// methods that are not about exchanges and queues. All under the broker's lock.

package proxytest

import (
	"cmp"
	"slices"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

type brokerChannel struct {
	c  *BrokerConn
	id uint16

	closing   bool // channel.close sent, close-ok awaited
	confirm   bool
	tx        bool
	published uint64     // in confirm mode
	delivered uint64     // the last delivery tag
	unacked   []*unacked // in the order of their tags
	prefetch  int        // of the whole channel (global)
	each      int        // of the consumers to come
	consumers map[string]*consumer
	lastQueue string   // see last
	paused    bool     // channel.flow has stopped deliveries (LavinMQ)
	lost      bool     // the broker has forgotten it (Alibaba)
	content   *content // a publish that is not whole yet
	inTx      []txStep // publishes and acknowledgements until tx.commit
}

// txStep is what tx.commit does and what tx.rollback takes back.
type txStep struct{ do, undo func() }

type unacked struct {
	tag uint64
	m   *message
	q   *queue
	by  *consumer // nil for a get
}

// content is a publish in the making.
type content struct {
	exchange, key string
	mandatory     bool
	immediate     bool // LavinMQ alone knows it
	header        []byte
	size          uint64
	body          []byte
}

func newBrokerChannel(c *BrokerConn, id uint16) *brokerChannel {
	return &brokerChannel{c: c, id: id, consumers: map[string]*consumer{}}
}

// noConsumers is the reply code of a message that was to be delivered at once.
const noConsumers = 313

func (ch *brokerChannel) send(m amqp.Method, args ...any) { ch.c.Send(Method(ch.id, m, args...)) }

// failLocked closes the channel for a soft error.
func (ch *brokerChannel) failLocked(e *amqp.Error) {
	ch.releaseLocked()
	ch.closing = true
	ch.c.b.countLocked(func(n *BrokerCounts) { n.SoftError++ })
	if ch.c.isLavin() {
		ch.lavinClose(e)
		return
	}
	ch.c.Send(amqp.AppendClose(nil, ch.id, e))
}

// endLocked frees the number.
func (ch *brokerChannel) endLocked() {
	ch.releaseLocked()
	delete(ch.c.channels, ch.id)
}

// releaseLocked cancels the consumers and requeues what is not acknowledged.
func (ch *brokerChannel) releaseLocked() {
	if ch.closing || ch.c.channels[ch.id] != ch {
		return
	}
	ch.c.b.countLocked(func(n *BrokerCounts) { n.ChansOpen-- })
	consumers := ch.consumers
	ch.consumers = map[string]*consumer{}
	for _, c := range consumers {
		c.q.removeLocked(c)
	}
	undo(ch.inTx)
	ch.requeueLocked(ch.takeUnacked(0, true))
	ch.content, ch.inTx = nil, nil
	ch.closing = true
}

// take handles one frame of the channel.
func (ch *brokerChannel) take(f amqp.Frame) error {
	if ch.closing {
		switch {
		case is(f, amqp.ChannelCloseOk):
			delete(ch.c.channels, ch.id)
		case is(f, amqp.ChannelClose):
			ch.send(amqp.ChannelCloseOk)
		}
		return nil
	}
	switch f.Type() {
	case amqp.FrameMethod:
		m := f.Method()
		if ch.content != nil {
			return amqp.Errorf(amqp.UnexpectedFrame, amqp.BasicPublish,
				"expected content header or body for class 60, got %v instead", m)
		}
		spec := m.Spec()
		if spec.Name == "" || !spec.Client {
			return amqp.Errorf(amqp.CommandInvalid, m, "%v is not for a server", m)
		}
		bits, err := spec.CheckArgs(f.Args())
		if err != nil && ch.c.isLavin() {
			if loose, lerr := lenientArgs(spec, f.Args()); lerr == nil {
				bits, err = loose, nil
			}
		}
		if err != nil {
			return err
		}
		return errOrNil(ch.method(m, spec, amqp.ReadArgs(f), bits))
	case amqp.FrameHeader:
		if ch.content == nil || ch.content.header != nil {
			return amqp.Errorf(amqp.UnexpectedFrame, 0, "expected method frame, got content header frame instead")
		}
		size, err := amqp.CheckContentHeader(f.Payload())
		if err != nil {
			return err
		}
		ch.content.header, ch.content.size = append([]byte(nil), f.Payload()...), size
	case amqp.FrameBody:
		if ch.content == nil || ch.content.header == nil {
			return amqp.Errorf(amqp.UnexpectedFrame, 0, "expected method frame, got content body frame instead")
		}
		ch.content.body = append(ch.content.body, f.Payload()...)
		if uint64(len(ch.content.body)) > ch.content.size {
			return amqp.Errorf(amqp.FrameError, amqp.BasicPublish, "content body of %d octets, %d were announced", len(ch.content.body), ch.content.size)
		}
	default:
		return amqp.Errorf(amqp.FrameError, 0, "frame of type %d on channel %d", f.Type(), ch.id)
	}
	if uint64(len(ch.content.body)) == ch.content.size {
		p := ch.content
		ch.content = nil
		return errOrNil(ch.publish(p))
	}
	return nil
}

// errOrNil keeps a nil *amqp.Error from becoming an error that is not nil.
func errOrNil(e *amqp.Error) error {
	if e == nil {
		return nil
	}
	return e
}

// method handles a method whose arguments have been checked.
func (ch *brokerChannel) method(m amqp.Method, spec *amqp.Spec, a amqp.Args, bits byte) *amqp.Error {
	wait := spec.NoWait == 0 || bits&spec.NoWait == 0
	switch m {
	case amqp.ChannelOpen:
		return amqp.Errorf(amqp.ChannelError, m, "second 'channel.open' seen")
	case amqp.ChannelClose:
		ch.endLocked()
		ch.send(amqp.ChannelCloseOk)
	case amqp.ChannelFlow:
		if bits&1 == 0 {
			return amqp.Errorf(amqp.NotImplemented, m, "active=false")
		}
		ch.send(amqp.ChannelFlowOk, 1)
	case amqp.AccessRequest:
		ch.send(amqp.AccessRequestOk, 1)
	case amqp.BasicQos:
		return ch.qos(int64(a.Long()), int(a.Short()), bits&1 != 0)
	case amqp.BasicPublish:
		return ch.beginPublish(&a, bits)
	case amqp.BasicGet:
		return ch.get(&a, bits&1 != 0)
	case amqp.BasicConsume:
		return ch.consume(&a, bits, wait)
	case amqp.BasicCancel:
		tag := string(a.Str())
		if c := ch.consumers[tag]; c != nil {
			delete(ch.consumers, tag)
			c.q.removeLocked(c)
		}
		if wait {
			ch.send(amqp.BasicCancelOk, tag)
		}
	case amqp.BasicCancelOk:
	case amqp.BasicAck:
		return ch.settle(m, a.LongLong(), bits&1 != 0, false)
	case amqp.BasicNack:
		return ch.settle(m, a.LongLong(), bits&1 != 0, bits&2 != 0)
	case amqp.BasicReject:
		return ch.settle(m, a.LongLong(), false, bits&1 != 0)
	case amqp.BasicRecover, amqp.BasicRecoverAsync:
		if bits&1 == 0 {
			return amqp.Errorf(amqp.NotImplemented, m, "requeue=false")
		}
		if m == amqp.BasicRecover {
			ch.send(amqp.BasicRecoverOk)
		}
		ch.requeueLocked(ch.takeUnacked(0, true))
	case amqp.ConfirmSelect:
		if ch.tx {
			return amqp.Errorf(amqp.PreconditionFailed, m, "cannot switch from tx to confirm mode")
		}
		ch.confirm = true
		if wait {
			ch.send(amqp.ConfirmSelectOk)
		}
	case amqp.TxSelect, amqp.TxCommit, amqp.TxRollback:
		return ch.transaction(m)
	default:
		return ch.topology(m, &a, bits, wait)
	}
	return nil
}

func (ch *brokerChannel) qos(size int64, count int, global bool) *amqp.Error {
	if size != 0 {
		return amqp.Errorf(amqp.NotImplemented, amqp.BasicQos, "prefetch_size!=0 (%d)", size)
	}
	if global {
		ch.prefetch = count
	} else {
		ch.each = count
	}
	ch.send(amqp.BasicQosOk)
	ch.pumpLocked()
	return nil
}

// pumpLocked lets the channel's consumers have what they may now have.
func (ch *brokerChannel) pumpLocked() {
	for _, c := range ch.consumers {
		c.q.pumpLocked()
	}
}

func (ch *brokerChannel) beginPublish(a *amqp.Args, bits byte) *amqp.Error {
	if bits&2 != 0 && !ch.c.isLavin() {
		return amqp.Errorf(amqp.NotImplemented, amqp.BasicPublish, "immediate=true")
	}
	a.Short()
	ch.content = &content{exchange: string(a.Str()), key: string(a.Str()), mandatory: bits&1 != 0, immediate: bits&2 != 0}
	if !ch.c.published {
		ch.c.published = true
		ch.c.blockLocked()
	}
	return nil
}

// publish routes a whole message, at once or at tx.commit, and confirms it.
func (ch *brokerChannel) publish(p *content) *amqp.Error {
	v := ch.c.vhost
	x := v.exchanges[p.exchange]
	if x == nil {
		return amqp.Errorf(amqp.NotFound, amqp.BasicPublish, "no exchange '%s' in vhost '%s'", p.exchange, v.name)
	}
	if v.b.blocked && ch.c.isLavin() {
		return amqp.Errorf(amqp.PreconditionFailed, amqp.BasicPublish, "Server low on disk space")
	}
	ch.c.b.countLocked(func(n *BrokerCounts) { n.Published++ })
	deliver := func() {
		queues := v.route(x, p.key)
		if len(queues) == 0 && p.mandatory {
			ch.sendContent(Method(ch.id, amqp.BasicReturn, amqp.NoRoute, "NO_ROUTE", p.exchange, p.key), p.header, p.body)
		}
		if p.immediate && !slices.ContainsFunc(queues, func(q *queue) bool { return len(q.consumers) > 0 }) {
			ch.sendContent(Method(ch.id, amqp.BasicReturn, noConsumers, "NO_CONSUMERS", p.exchange, p.key), p.header, p.body)
			return
		}
		for _, q := range queues {
			q.pushLocked(&message{exchange: p.exchange, key: p.key, header: p.header, body: p.body})
		}
	}
	if ch.tx {
		ch.inTx = append(ch.inTx, txStep{do: deliver, undo: func() {}})
		return nil
	}
	deliver()
	if ch.confirm {
		ch.published++
		ch.send(amqp.BasicAck, ch.published, 0)
	}
	return nil
}

func (ch *brokerChannel) sendContent(method, header, body []byte) {
	b := amqp.AppendFrame(method, amqp.FrameHeader, ch.id, header)
	ch.c.Send(amqp.AppendBody(b, ch.id, body, ch.c.frameMax))
}

func (ch *brokerChannel) get(a *amqp.Args, noAck bool) *amqp.Error {
	a.Short()
	q, err := ch.queue(amqp.BasicGet, string(a.Str()))
	if err != nil {
		return err
	}
	if len(q.ready) == 0 {
		ch.send(amqp.BasicGetEmpty, "")
		return nil
	}
	m := q.popLocked()
	tag := ch.handOut(m, q, nil, noAck)
	ch.sendContent(Method(ch.id, amqp.BasicGetOk, tag, m.redelivered, m.exchange, m.key, len(q.ready)), m.header, m.body)
	return nil
}

// handOut gives a message its delivery tag and remembers it until it is acknowledged.
func (ch *brokerChannel) handOut(m *message, q *queue, by *consumer, noAck bool) uint64 {
	ch.delivered++
	ch.c.b.countLocked(func(n *BrokerCounts) { n.Delivered++ })
	if !noAck {
		ch.unacked = append(ch.unacked, &unacked{tag: ch.delivered, m: m, q: q, by: by})
		if by != nil {
			by.unacked++
		}
	}
	return ch.delivered
}

func (ch *brokerChannel) deliverLocked(c *consumer, m *message) {
	tag := ch.handOut(m, c.q, c, c.noAck)
	ch.sendContent(Method(ch.id, amqp.BasicDeliver, c.tag, tag, m.redelivered, m.exchange, m.key), m.header, m.body)
}

func (ch *brokerChannel) consume(a *amqp.Args, bits byte, wait bool) *amqp.Error {
	a.Short()
	q, err := ch.queue(amqp.BasicConsume, string(a.Str()))
	if err != nil {
		return err
	}
	tag := string(a.Str())
	c := &consumer{tag: tag, key: tag, ch: ch, q: q, noAck: bits&2 != 0, exclusive: bits&4 != 0, prefetch: ch.each}
	if c.tag == "" {
		c.tag = ch.c.b.newNameLocked("amq.ctag-standin")
		c.key = c.tag
	}
	if ch.consumers[c.tag] != nil && ch.c.isLavin() {
		c.key = ch.c.b.newNameLocked(c.tag + "\x00") // both go on under one tag
	} else if ch.consumers[c.tag] != nil {
		return amqp.Errorf(amqp.NotAllowed, amqp.BasicConsume, "attempt to reuse consumer tag '%s'", c.tag)
	}
	if len(q.consumers) > 0 && (c.exclusive || q.consumers[0].exclusive) {
		return amqp.Errorf(amqp.AccessRefused, amqp.BasicConsume, "queue '%s' in vhost '%s' in exclusive use", q.name, q.v.name)
	}
	ch.consumers[c.key] = c
	q.consumers = append(q.consumers, c)
	q.consumed = true
	if wait {
		ch.send(amqp.BasicConsumeOk, c.tag)
	}
	q.pumpLocked()
	return nil
}

// takeUnacked removes a delivery, or all up to it; with tag 0 and multiple, all.
func (ch *brokerChannel) takeUnacked(tag uint64, multiple bool) []*unacked {
	var from, to int
	if i := slices.IndexFunc(ch.unacked, func(u *unacked) bool { return u.tag == tag }); i >= 0 {
		from, to = i, i+1
	}
	if multiple && tag == 0 {
		to = len(ch.unacked)
	}
	if multiple {
		from = 0
	}
	taken := slices.Clone(ch.unacked[from:to])
	ch.unacked = slices.Delete(ch.unacked, from, to)
	for _, u := range taken {
		if u.by != nil {
			u.by.unacked--
		}
	}
	return taken
}

// requeueLocked gives messages back to their queues, in their order.
func (ch *brokerChannel) requeueLocked(us []*unacked) {
	back := map[*queue][]*message{}
	for _, u := range us {
		back[u.q] = append(back[u.q], u.m)
	}
	for q, ms := range back {
		q.backLocked(ms)
	}
}

// settle acknowledges, rejects or requeues deliveries, at once or at tx.commit.
func (ch *brokerChannel) settle(m amqp.Method, tag uint64, multiple, requeue bool) *amqp.Error {
	taken := ch.takeUnacked(tag, multiple)
	if len(taken) == 0 && (tag != 0 || !multiple) {
		return amqp.Errorf(amqp.PreconditionFailed, m, "unknown delivery tag %d", tag)
	}
	finish := func() {
		if requeue {
			ch.requeueLocked(taken)
		} else {
			ch.c.b.countLocked(func(n *BrokerCounts) { n.Acked += len(taken) })
		}
		ch.pumpLocked()
	}
	if ch.tx {
		ch.inTx = append(ch.inTx, txStep{do: finish, undo: func() { ch.giveBack(taken) }})
		return nil
	}
	finish()
	return nil
}

func (ch *brokerChannel) transaction(m amqp.Method) *amqp.Error {
	switch {
	case m == amqp.TxSelect && ch.confirm:
		return amqp.Errorf(amqp.PreconditionFailed, m, "cannot switch from confirm to tx mode")
	case m == amqp.TxSelect:
		ch.tx = true
		ch.send(amqp.TxSelectOk)
		return nil
	case !ch.tx:
		return amqp.Errorf(amqp.PreconditionFailed, m, "channel is not transactional")
	}
	steps := ch.inTx
	ch.inTx = nil
	if m == amqp.TxRollback {
		undo(steps)
		ch.send(amqp.TxRollbackOk)
		return nil
	}
	for _, step := range steps {
		step.do()
	}
	ch.send(amqp.TxCommitOk)
	return nil
}

func undo(steps []txStep) {
	for _, step := range slices.Backward(steps) {
		step.undo()
	}
}

// giveBack makes deliveries unacknowledged again.
func (ch *brokerChannel) giveBack(us []*unacked) {
	for _, u := range us {
		if u.by != nil {
			u.by.unacked++
		}
	}
	ch.unacked = append(ch.unacked, us...)
	slices.SortFunc(ch.unacked, func(a, b *unacked) int { return cmp.Compare(a.tag, b.tag) })
}

// queue finds a queue that this connection may use; "" is the channel's last declared one.
func (ch *brokerChannel) queue(m amqp.Method, name string) (*queue, *amqp.Error) {
	if name == "" {
		if name = *ch.last(); name == "" {
			return nil, amqp.Errorf(amqp.NotFound, m, "no previously declared queue")
		}
	}
	q := ch.c.vhost.queues[name]
	if q == nil {
		return nil, amqp.Errorf(amqp.NotFound, m, "no queue '%s' in vhost '%s'", name, ch.c.vhost.name)
	}
	if q.owner != nil && q.owner != ch.c {
		return nil, amqp.Errorf(amqp.ResourceLocked, m, "cannot obtain exclusive access to locked queue '%s' in vhost '%s'. "+
			"It could be originally declared on another connection or the exclusive property value does not match that of the original declaration.", name, q.v.name)
	}
	return q, nil
}

//go:build linux

// Many tenants at random, of whom some mean harm, before a real broker and in each pool
// mode, the proxy with the race detector. Every body says whose it is. What must hold for
// the canaries whatever the others do: no foreign message, delivery tags in order, each
// confirm once, what was confirmed is delivered or still in the queue; and without faults
// and in mode session no canary is cut. One run mixes it with faults of the broker's path.

package hostile

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/relay"
)

// tenant is a canary of the fuzzer: one identity, one queue, its own messages.
type tenant struct {
	addr, user, name string
	rng              *rand.Rand

	sent      int
	confirmed int
	missing   map[string]bool // what was confirmed and did not come yet, by whose and which it is
	cut       int             // connections that ended without being asked to
	messages  int
}

// foreign is a violation: it ends the test, whatever else happened.
type foreign struct{ what string }

func (f foreign) Error() string { return f.what }

func violation(format string, args ...any) error { return foreign{fmt.Sprintf(format, args...)} }

// owns says whether a body is this tenant's.
func (n *tenant) owns(body []byte) bool { return strings.HasPrefix(string(body), n.name+" ") }

// live makes connection after connection until the context ends.
func (n *tenant) live(ctx context.Context) error {
	for ctx.Err() == nil {
		err := n.connection(ctx)
		var f foreign
		if errors.As(err, &f) {
			return err
		}
		if err != nil {
			n.cut++
			rest(ctx, 50*time.Millisecond)
		}
	}
	return nil
}

func (n *tenant) connection(ctx context.Context) error {
	c, err := proxytest.Dial(proxytest.ClientConfig{Addr: n.addr, User: n.user, Password: users()[n.user], Name: n.name, Timeout: 20 * time.Second})
	if err != nil {
		return err
	}
	defer c.Abort()
	for round := 0; round < 40 && ctx.Err() == nil; round++ {
		ch := uint16(1 + n.rng.IntN(3))
		if err := c.OpenChannel(ch); err != nil {
			return err
		}
		steps := []func(*proxytest.Client, uint16) error{n.publish, n.consume, n.get, n.transaction, n.reply}
		if err := steps[n.rng.IntN(len(steps))](c, ch); err != nil {
			return err
		}
		if err := c.CloseChannel(ch); err != nil {
			return err
		}
	}
	return c.Close()
}

// confirm notes that the broker has a message.
func (n *tenant) confirm(body string) {
	n.confirmed++
	n.missing[idOf(body)] = true
}

// idOf is whose a message is and which: an hour of whole bodies would fill the memory.
func idOf(body string) string { return body[:strings.LastIndexByte(body, ' ')] }

func (n *tenant) body() string {
	n.sent++
	return fmt.Sprintf("%s %d %s", n.name, n.sent, strings.Repeat("x", n.rng.IntN(3000)))
}

func (n *tenant) declare(c *proxytest.Client, ch uint16) error {
	_, err := c.DeclareQueue(ch, n.name, proxytest.Durable)
	return err
}

func (n *tenant) publish(c *proxytest.Client, ch uint16) error {
	if err := n.declare(c, ch); err != nil {
		return err
	}
	if err := c.Confirm(ch); err != nil {
		return err
	}
	var bodies []string
	for range 1 + n.rng.IntN(10) {
		b := n.body()
		bodies = append(bodies, b)
		if err := c.Publish(ch, "", n.name, []byte(b)); err != nil {
			return err
		}
	}
	if err := c.WaitConfirms(ch); err != nil { // in range and once each, or it is an error
		if strings.Contains(err.Error(), "confirm for") {
			return violation("%s: %v", n.name, err)
		}
		return err
	}
	for _, b := range bodies {
		n.confirm(b)
	}
	return nil
}

func (n *tenant) take(m *proxytest.Message) error {
	if !n.owns(m.Body) {
		return violation("%s was given %.60q", n.name, m.Body)
	}
	whole := string(m.Body)
	if strings.Trim(whole[len(idOf(whole)):], "x") != " " {
		return violation("%s was given a broken %.60q of %d octets", n.name, whole, len(whole))
	}
	delete(n.missing, idOf(whole))
	n.messages++
	return nil
}

func (n *tenant) consume(c *proxytest.Client, ch uint16) error {
	if err := n.declare(c, ch); err != nil {
		return err
	}
	have, err := c.QueueLength(ch, n.name)
	if err != nil || have == 0 {
		return err
	}
	if err := c.Qos(ch, uint16(1+n.rng.IntN(20))); err != nil {
		return err
	}
	tag, err := c.Consume(ch, n.name, "", false)
	if err != nil {
		return err
	}
	for want := uint64(1); want <= uint64(min(have, 30)); want++ {
		m, err := c.Delivery(ch)
		if err != nil {
			return err
		}
		if m.Tag != want || m.ConsumerTag != tag {
			return violation("%s: delivery %d of %q, want %d of %q", n.name, m.Tag, m.ConsumerTag, want, tag)
		}
		if err := n.take(m); err != nil {
			return err
		}
		if err := c.Ack(ch, m.Tag, false); err != nil {
			return err
		}
	}
	return nil
}

func (n *tenant) get(c *proxytest.Client, ch uint16) error {
	if err := n.declare(c, ch); err != nil {
		return err
	}
	for range 1 + n.rng.IntN(10) {
		m, err := c.Get(ch, n.name, false)
		if errors.Is(err, proxytest.ErrEmpty) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := errors.Join(n.take(m), c.Ack(ch, m.Tag, false)); err != nil {
			return err
		}
	}
	return nil
}

func (n *tenant) transaction(c *proxytest.Client, ch uint16) error {
	if err := n.declare(c, ch); err != nil {
		return err
	}
	if err := c.Call(proxytest.Method(ch, amqp.TxSelect), amqp.TxSelectOk); err != nil {
		return err
	}
	for range 1 + n.rng.IntN(3) {
		b := n.body()
		if err := c.Publish(ch, "", n.name, []byte(b)); err != nil {
			return err
		}
		if n.rng.IntN(3) == 0 {
			if err := c.Call(proxytest.Method(ch, amqp.TxRollback), amqp.TxRollbackOk); err != nil {
				return err
			}
			continue
		}
		if err := c.Call(proxytest.Method(ch, amqp.TxCommit), amqp.TxCommitOk); err != nil {
			return err
		}
		n.confirm(b)
	}
	return nil
}

// reply asks itself over a direct reply-to address.
func (n *tenant) reply(c *proxytest.Client, ch uint16) error {
	if _, err := c.Consume(ch, "amq.rabbitmq.reply-to", "", true); err != nil {
		return err
	}
	asked := n.body()
	rpc := n.name + "-rpc"
	if _, err := c.DeclareQueue(ch, rpc, proxytest.Durable); err != nil {
		return err
	}
	to := amqp.AppendShortStr(nil, "amq.rabbitmq.reply-to")
	b := proxytest.Method(ch, amqp.BasicPublish, 0, "", rpc, 0)
	b = append(b, proxytest.HeaderWith(ch, uint64(len(asked)), 1<<9, to)...)
	if err := c.Send(append(b, proxytest.Body(ch, []byte(asked))...)); err != nil {
		return err
	}
	m, err := c.Get(ch, rpc, true)
	for err == nil && n.owns(m.Body) && string(m.Body) != asked {
		m, err = c.Get(ch, rpc, true) // of a connection that was cut before it had its own
	}
	if err != nil {
		return err
	}
	if !n.owns(m.Body) {
		return violation("%s was asked %.60q", n.name, m.Body)
	}
	// The broker has written a true address where the request had the name of all.
	if len(m.Properties) < 3 || len(m.Properties) < 3+int(m.Properties[2]) {
		return violation("%s: a request without an address to reply to: %x", n.name, m.Properties)
	}
	address := string(m.Properties[3 : 3+int(m.Properties[2])])
	if err := c.Publish(ch, "", address, m.Body); err != nil {
		return err
	}
	answer, err := c.Delivery(ch)
	if err != nil {
		return err
	}
	if string(answer.Body) != string(m.Body) {
		return violation("%s asked %.40q and is answered %.40q", n.name, m.Body, answer.Body)
	}
	n.messages++
	return nil
}

// lost looks, straight at the broker, for what was confirmed and never came.
func (n *tenant) lost(broker string) error {
	c, err := proxytest.Dial(proxytest.ClientConfig{Addr: broker, User: n.user, Password: users()[n.user], Timeout: patience})
	if err != nil {
		return err
	}
	defer c.Abort()
	if err := errors.Join(c.OpenChannel(1), n.declare(c, 1)); err != nil {
		return err
	}
	// What a connection held that was cut goes back into the queue when the broker has
	// seen its end: empty twice with a wait between counts.
	for empty := 0; empty < 20; {
		m, err := c.Get(1, n.name, true)
		switch {
		case errors.Is(err, proxytest.ErrEmpty):
			if len(n.missing) == 0 {
				return c.DeleteQueue(1, n.name)
			}
			empty++
			time.Sleep(500 * time.Millisecond)
		case err != nil:
			return err
		default:
			empty = 0
			if err := n.take(m); err != nil {
				return err
			}
		}
	}
	var one string
	for one = range n.missing {
		break
	}
	return fmt.Errorf("%s: %d of %d confirmed messages are lost, %.40q among them", n.name, len(n.missing), n.confirmed, one)
}

// villain is a tenant that does anything at all.
type villain struct {
	addr, user string
	rng        *rand.Rand
	steps      *atomic.Int64
}

func (v *villain) live(ctx context.Context) {
	for ctx.Err() == nil {
		c, err := proxytest.Dial(proxytest.ClientConfig{Addr: v.addr, User: v.user, Password: users()[v.user], Name: fmt.Sprint("worker ", v.rng.IntN(1000)), Timeout: 2 * time.Second})
		if err != nil {
			rest(ctx, 50*time.Millisecond)
			continue
		}
		var open []byte
		for ch := range uint16(6) {
			open = append(open, proxytest.Method(ch+1, amqp.ChannelOpen, "")...)
		}
		if c.Send(open) != nil {
			continue
		}
		for range v.rng.IntN(60) {
			if c.Send(v.anything()) != nil || ctx.Err() != nil {
				break
			}
			v.steps.Add(1)
			if v.rng.IntN(3) == 0 {
				c.NextWithin(time.Duration(v.rng.IntN(5)) * time.Millisecond) //nolint:errcheck // whatever comes
			}
		}
		switch v.rng.IntN(3) {
		case 0:
			c.Abort()
		case 1:
			c.Hangup()
		default:
			c.SendMethod(0, amqp.ConnectionClose, 200, "", 0, 0) //nolint:errcheck // it may be gone
			c.Hangup()
		}
	}
}

func (v *villain) anything() []byte {
	ch := uint16(1 + v.rng.IntN(6))
	q := fmt.Sprint("villain-", v.rng.IntN(4))
	body := fmt.Append(nil, "villain ", v.rng.IntN(1000))
	b := func() []byte {
		switch v.rng.IntN(24) {
		case 0:
			return append(proxytest.Method(ch, amqp.ChannelClose, 200, "", 0, 0), proxytest.Method(ch, amqp.ChannelOpen, "")...)
		case 1, 2, 3, 4, 5, 6:
			return proxytest.Method(ch, amqp.QueueDeclare, 0, q, []int{0, 1, 2, 4, 8, 12}[v.rng.IntN(6)], nil)
		case 7:
			return proxytest.Method(ch, amqp.QueueDelete, 0, []string{q, ""}[v.rng.IntN(2)], v.rng.IntN(8))
		case 8, 9, 10:
			return proxytest.PublishBytes(ch, "", q, body, 131072)
		case 11:
			return append(proxytest.Method(ch, amqp.BasicPublish, 0, "", q, v.rng.IntN(4)), proxytest.Header(ch, uint64(v.rng.IntN(100000)))...)
		case 12:
			return proxytest.Body(ch, body)
		case 13:
			return proxytest.Method(ch, amqp.BasicConsume, 0, []string{q, ""}[v.rng.IntN(2)], []string{"t", ""}[v.rng.IntN(2)], v.rng.IntN(8), nil)
		case 14:
			return proxytest.Method(ch, amqp.BasicGet, 0, []string{q, ""}[v.rng.IntN(2)], v.rng.IntN(2))
		case 15:
			return proxytest.Method(ch, []amqp.Method{amqp.BasicAck, amqp.BasicNack}[v.rng.IntN(2)], v.rng.IntN(20), v.rng.IntN(4))
		case 16:
			return proxytest.Method(ch, amqp.BasicQos, 0, v.rng.IntN(100), v.rng.IntN(2))
		case 17:
			return proxytest.Method(ch, amqp.ConfirmSelect, v.rng.IntN(2))
		case 18:
			return proxytest.Method(ch, []amqp.Method{amqp.TxSelect, amqp.TxCommit, amqp.TxRollback}[v.rng.IntN(3)])
		case 19:
			return proxytest.Method(ch, amqp.ExchangeDeclare, 0, "villain-x", []string{"direct", "bogus"}[v.rng.IntN(2)], v.rng.IntN(16), nil)
		case 20:
			return proxytest.Method(ch, amqp.QueuePurge, 0, []string{q, ""}[v.rng.IntN(2)], v.rng.IntN(2))
		case 21:
			return proxytest.PublishBytes(ch, "no-exchange", q, body, 131072)
		case 22:
			return proxytest.Method(ch, amqp.BasicRecover, 1)
		}
		if v.rng.IntN(8) > 0 {
			return proxytest.Method(ch, amqp.QueueBind, 0, q, "amq.fanout", "", 0, nil)
		}
		return amqp.AppendFrame(nil, byte(v.rng.IntN(10)), ch, body)
	}()
	if v.rng.IntN(200) == 0 {
		b = b[:len(b)/2] // and what comes next is read in the middle of it
	}
	return b
}

// fuzz runs tenants and villains and says what was not as promised.
func fuzz(t *testing.T, r *rig, broker string, length time.Duration, cutsAllowed bool, faults func(ctx context.Context)) error {
	seed := uint64(time.Now().UnixNano())
	if full {
		t.Logf("seed %d", seed)
	}
	ctx, cancel := context.WithTimeout(context.Background(), length)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	var steps atomic.Int64
	var tenants []*tenant
	for i := range 6 {
		user := []string{attacker, victim}[i%2]
		n := &tenant{addr: r.addr, user: user, name: fmt.Sprintf("tenant-%d-%d", seed%1e6, i), rng: rand.New(rand.NewPCG(seed, uint64(i))),
			missing: map[string]bool{}}
		tenants = append(tenants, n)
		wg.Go(func() {
			if err := n.live(ctx); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
				cancel()
			}
		})
	}
	for i := range 4 {
		v := &villain{addr: r.addr, user: attacker, rng: rand.New(rand.NewPCG(seed, uint64(100+i))), steps: &steps}
		wg.Go(func() { v.live(ctx) })
	}
	if faults != nil {
		wg.Go(func() { faults(ctx) })
	}
	wg.Wait()
	r.alive()
	cuts, messages, confirmed := map[string]int{}, 0, 0
	for _, n := range tenants {
		if err := n.lost(broker); err != nil {
			errs = append(errs, err)
		}
		cuts[n.user] += n.cut
		messages += n.messages
		confirmed += n.confirmed
	}
	t.Logf("FIGURE %s: seed %d, %d messages, %d confirmed, %d steps of the others; canaries of the same identity cut %d times, of another one %d times",
		t.Name(), seed, messages, confirmed, steps.Load(), cuts[attacker], cuts[victim])
	if messages == 0 || steps.Load() == 0 {
		errs = append(errs, errors.New("nothing was tried"))
	}
	if faults == nil && cuts[victim] > 0 {
		errs = append(errs, fmt.Errorf("canaries of another identity were cut %d times", cuts[victim]))
	}
	if !cutsAllowed && cuts[attacker] > 0 {
		errs = append(errs, fmt.Errorf("canaries of the same identity were cut %d times", cuts[attacker]))
	}
	return errors.Join(errs...)
}

// realBroker is a RabbitMQ with the users of the tests.
func realBroker(t *testing.T, v rabbit.Version) *rabbit.Broker {
	b := rabbit.Get(t, v)
	for user, password := range users() { // there from the test before, or made
		expr := fmt.Sprintf(`catch rabbit_auth_backend_internal:add_user(<<"%s">>, <<"%s">>, <<"test">>), `+
			`rabbit_auth_backend_internal:set_permissions(<<"%[1]s">>, <<"/">>, <<".*">>, <<".*">>, <<".*">>, <<"test">>).`, user, password)
		if _, err := b.Eval(expr); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func TestFuzz(t *testing.T) {
	for _, mode := range []string{"auto", "session", "shared"} {
		t.Run(mode, func(t *testing.T) {
			b := realBroker(t, rabbit.V310)
			r := start(t, setup{race: true, broker: b.Addr(), settings: fmt.Sprintf("[[listener]]\npool_mode = %q\n[pool]\nidle_timeout = \"1s\"\n", mode)})
			r.rests()
			err := fuzz(t, r, b.Addr(), time.Duration(count(15, 300))*time.Second, mode != "session", nil)
			promise(t, errors.Join(err, r.returns()))
		})
	}
}

// The same while the path to the broker is cut and stalls.
func TestFuzzWithFaults(t *testing.T) {
	b := realBroker(t, rabbit.V310)
	path, err := relay.New(b.Addr(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer path.Close()
	r := start(t, setup{race: true, broker: path.Addr(), settings: "[upstream]\nconnect_timeout = \"2s\"\nretry_delay = \"100ms\"\n[client]\nclose_timeout = \"1s\"\n[pool]\nidle_timeout = \"1s\"\n"})
	r.rests()
	made := 0
	err = fuzz(t, r, b.Addr(), time.Duration(count(20, 1800))*time.Second, true, func(ctx context.Context) {
		for ctx.Err() == nil {
			rest(ctx, 1500*time.Millisecond)
			switch made++; made % 3 {
			case 0:
				path.Stall(true)
				rest(ctx, 700*time.Millisecond)
				path.Stall(false)
			default:
				path.Cut()
			}
		}
		path.Stall(false)
	})
	t.Logf("FIGURE %s: %d faults", t.Name(), made)
	promise(t, errors.Join(err, r.returns()))
}

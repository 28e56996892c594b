package proxy

import (
	"strings"
	"sync"
	"testing"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// A route has queues declared durable and of a type, those that are there for others than their client alone; it is counted,
// and the log names each once.
func TestDeclarationsRewritten(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]amqp.Frame{}
	bc := proxytest.BrokerConfig{VHosts: []string{"/", "shop"}, Intercept: func(_ *proxytest.BrokerConn, f amqp.Frame) bool {
		if f.Type() == amqp.FrameMethod && f.Method() == amqp.QueueDeclare {
			mu.Lock()
			defer mu.Unlock()
			a := amqp.ReadArgs(f)
			a.Short()
			seen[string(a.Str())] = append(amqp.Frame(nil), f...)
		}
		return false
	}}
	withBroker(t, bc, func(c *Config) {
		c.Routes = []Route{{VHost: "shop", Durable: true, QueueType: "quorum"}}
	}, func(r *rig) {
		c := r.client(proxytest.ClientConfig{VHost: "shop"})
		const autoDelete = 8
		table := func(name, value string) []byte { return amqp.AppendStringField(nil, name, value) }
		for _, x := range []struct {
			queue string
			bits  int
			args  []byte
			want  byte
			typ   string
		}{
			{"transient", 0, nil, 2, "quorum"},
			{"durable", 2, nil, 2, "quorum"},
			{"typed", 2, table("x-queue-type", "classic"), 2, "classic"},
			{"lazy", 0, table("x-queue-mode", "lazy"), 2, ""},
			{"limited", 0, table("x-overflow", "reject-publish"), 2, "quorum"},
			{"exclusive", proxytest.Exclusive, nil, 4, ""},
			{"auto-delete", autoDelete, nil, 8, ""},
			{"transient", 0, nil, 2, "quorum"},
		} {
			r.must(c.Send(proxytest.Method(1, amqp.QueueDeclare, 0, x.queue, x.bits, string(x.args))))
			_, err := c.Await(1, amqp.QueueDeclareOk)
			r.must(err)
			mu.Lock()
			f := seen[x.queue]
			mu.Unlock()
			bits, _ := isKept(f)
			_, typ, _ := amqp.Lookup(argumentsOf(f), "x-queue-type")
			if *bits != x.want || string(typ) != x.typ {
				t.Errorf("%s: the broker is sent bits %d and type %q, want %d and %q", x.queue, *bits, typ, x.want, x.typ)
			}
			if _, over, ok := amqp.Lookup(argumentsOf(f), "x-overflow"); x.queue == "limited" && (!ok || string(over) != "reject-publish") {
				t.Error("what the client said else is lost")
			}
		}
		r.must(c.Publish(1, "", "transient", []byte("x"))) // what follows goes on as ever
		n, err := c.QueueLength(1, "transient")
		r.must(err)
		if n != 1 {
			t.Errorf("%d messages", n)
		}
		_, err = c.DeclareQueue(1, "", 0)
		r.must(err)
		other := r.client(proxytest.ClientConfig{})
		_, err = other.DeclareQueue(1, "elsewhere", 0)
		r.must(err)
		mu.Lock()
		bits, _ := isKept(seen["elsewhere"])
		mu.Unlock()
		if *bits != 0 {
			t.Errorf("where no route is: bits %d", *bits)
		}
		if got := r.s.Stats().DeclaresRewritten; got != 5 {
			t.Errorf("%d are counted, want 5", got)
		}
		if got := strings.Count(r.log(), "a queue is declared otherwise than its client does"); got != 4 {
			t.Errorf("%d are logged, want 4", got)
		}
		r.must(c.Close())
		r.must(other.Close())
	})
}

package proxy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/advice"
	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// theApp is the only application that there is.
func (r *rig) theApp() *app {
	r.t.Helper()
	synctest.Wait()
	r.s.apps.mu.Lock()
	defer r.s.apps.mu.Unlock()
	if len(r.s.apps.all) != 1 {
		r.t.Fatalf("%d applications, want 1", len(r.s.apps.all))
	}
	for _, a := range r.s.apps.all {
		return a
	}
	return nil
}

// What clients do is counted to the last of it, whichever way it goes.
func TestDeedsAreCounted(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		for i := range 3 {
			c := r.client(proxytest.ClientConfig{Name: fmt.Sprintf("cart-%d", i)})
			r.must(c.OpenChannel(2))
			_, err := c.DeclareQueue(1, "orders", 0)
			r.must(err)
			r.must(c.Send(proxytest.PublishBytes(1, "", "nowhere", []byte("x"), 0), proxytest.PublishBytes(1, "", "nowhere", []byte("y"), 0)))
			r.must(c.Publish(2, "", "nowhere", make([]byte, 2<<20)))
			if _, err := c.Get(2, "orders", true); !errors.Is(err, proxytest.ErrEmpty) {
				t.Fatal(err)
			}
			r.must(c.Close())
		}
		a := r.theApp()
		want := advice.Deeds{Logins: 3, Reused: 2, Opened: 6, Published: 9, Big: 3, Declared: 3, Got: 3, Empty: 3}
		if got := a.deeds(); got != want {
			t.Errorf("counted is %+v\nwant %+v", got, want)
		}
		if id := (advice.App{User: "guest", VHost: "/", Name: "cart-", Host: "127.0.0.1"}); a.id != id || *a.queue.Load() != "orders" || a.clients.Load() != 0 {
			t.Errorf("it is %+v, of queue %v, with %d clients", a.id, a.queue.Load(), a.clients.Load())
		}
	})
}

// A publish that goes nowhere for want of its exchange is counted, and which it was.
func TestMissingExchangeIsCounted(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		c := r.client(proxytest.ClientConfig{})
		r.must(c.Publish(1, "nonsense", "k", []byte("x")))
		e, err := c.Closed(1)
		if err != nil || e.Code != amqp.NotFound {
			t.Fatal(e, err)
		}
		if a := r.theApp(); a.missing.Load() != 1 || !strings.Contains(*a.exchange.Load(), "nonsense") {
			t.Errorf("%d are counted", a.missing.Load())
		}
		r.must(c.Close())
	})
}

// How clients are is seen as it is.
func TestSights(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		idle := r.client(proxytest.ClientConfig{})
		reader := r.client(proxytest.ClientConfig{Heartbeat: 2})
		_, err := reader.DeclareQueue(1, "q", 0)
		r.must(err)
		_, err = reader.Consume(1, "q", "", false)
		r.must(err)
		busy := r.client(proxytest.ClientConfig{Name: "busy"})
		look := func() advice.Sight {
			synctest.Wait()
			sum := advice.Sight{}
			for a, x := range r.s.sights() {
				if a.id.Name == "busy" {
					x.Unnamed, x.Silent = 100*x.Unnamed, 0
				}
				sum.Clients, sum.Idle, sum.Unbounded, sum.Silent = sum.Clients+x.Clients, sum.Idle+x.Idle, sum.Unbounded+x.Unbounded, sum.Silent+x.Silent
				sum.Hasty, sum.Unnamed, sum.MostChannels = sum.Hasty+x.Hasty, sum.Unnamed+x.Unnamed, max(sum.MostChannels, x.MostChannels)
			}
			return sum
		}
		if got, want := look(), (advice.Sight{Clients: 3, Unbounded: 1, Hasty: 1, Unnamed: 2, MostChannels: 1}); got != want {
			t.Errorf("seen is %+v\nwant %+v", got, want)
		}
		for range 12 * 60 {
			time.Sleep(time.Second)
			r.must(reader.Send(amqp.Heartbeat))
			r.must(busy.Publish(1, "", "nowhere", nil))
		}
		if got, want := look(), (advice.Sight{Clients: 3, Idle: 1, Unbounded: 1, Hasty: 1, Silent: 1, Unnamed: 2, MostChannels: 1}); got != want {
			t.Errorf("after 12 minutes seen is %+v\nwant %+v", got, want)
		}
		for _, c := range []*proxytest.Client{idle, reader, busy} {
			r.must(c.Close())
		}
	})
}

// Of who polls it is said, in a log line once a day, until he stops or the rule is muted; of who does
// not, nothing.
func TestAdvice(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		c := r.client(proxytest.ClientConfig{Name: "poller-7", Heartbeat: 60})
		fine := r.client(proxytest.ClientConfig{Name: "fine", Heartbeat: 60})
		_, err := c.DeclareQueue(1, "q", 0)
		r.must(err)
		poll := func(minutes int) {
			for range minutes * 240 {
				if _, err := c.Get(1, "q", true); !errors.Is(err, proxytest.ErrEmpty) {
					t.Fatal(err)
				}
				r.must(fine.Publish(1, "", "nowhere", nil))
				time.Sleep(time.Second / 4)
			}
			synctest.Wait()
		}
		poll(1)
		if all := r.s.Advice(); len(all) != 0 {
			t.Errorf("after a minute is said %+v", all)
		}
		poll(3)
		all := r.s.Advice()
		if len(all) != 1 || all[0].Rule != "polling" || all[0].Name != "poller-" || !strings.Contains(all[0].Evidence, "100% of ") {
			t.Fatalf("after four minutes is said %+v", all)
		}
		if n := strings.Count(r.log(), "msg=advice rule=polling user=guest"); n != 1 {
			t.Errorf("the log tells of it %d times, want once", n)
		}
		cfg := *r.s.cfg()
		cfg.AdviceMute = []string{"polling"}
		_, err = r.s.Reload(cfg)
		r.must(err)
		poll(1)
		if all := r.s.Advice(); len(all) != 0 {
			t.Errorf("muted, it is said %+v", all)
		}
		cfg.AdviceMute = nil
		_, err = r.s.Reload(cfg)
		r.must(err)
		poll(1)
		if all := r.s.Advice(); len(all) != 1 {
			t.Errorf("no longer muted, it is said %+v", all)
		}
		for range 8 * 60 {
			time.Sleep(time.Second)
			r.must(c.Send(amqp.Heartbeat))
			r.must(fine.Send(amqp.Heartbeat))
		}
		synctest.Wait()
		if all := r.s.Advice(); len(all) != 0 {
			t.Errorf("when it has stopped is said %+v", all)
		}
		r.must(c.Close())
		r.must(fine.Close())
		time.Sleep(8 * time.Minute)
		synctest.Wait()
		r.s.apps.mu.Lock()
		left := len(r.s.apps.all)
		r.s.apps.mu.Unlock()
		if left != 0 {
			t.Errorf("%d applications are remembered whose clients have gone", left)
		}
	})
}

// A broker that throttles logins (ApsaraMQ's words, told at connection.open) makes an application hear of it: by each login, and in advice.
func TestThrottledAdvice(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{Flavour: proxytest.Alibaba, AccessKeys: map[string]string{"key": "secret"}}, nil, func(r *rig) {
		for range 4 * 60 {
			user, password := proxytest.Sign("instance", "key", "secret", time.Now()) // another at each login, so that none is reused
			r.b.Throttle(1)
			c, err := r.login(proxytest.ClientConfig{User: user, Password: password, Name: "cron-7"})
			var told *amqp.Error
			if !errors.As(err, &told) || told.Code != amqp.NotAllowed || !strings.Contains(told.Text, proxytest.TooManyRequests) {
				t.Fatalf("a throttled login gets %v, %v", c, err)
			}
			time.Sleep(time.Second)
		}
		synctest.Wait()
		all := r.s.Advice()
		i := slices.IndexFunc(all, func(a advice.Advice) bool { return a.Rule == "throttled" })
		if i < 0 || all[i].Name != "cron-" || !strings.HasPrefix(all[i].Evidence, "the broker throttled ") {
			t.Fatalf("after four minutes is said %+v", all)
		}
		if n := strings.Count(r.log(), "msg=advice rule=throttled"); n != 1 {
			t.Errorf("the log tells of it %d times, want once", n)
		}
	})
}

func TestAppName(t *testing.T) {
	for want, props := range map[string][]byte{
		"short--":                  amqp.AppendStringField(nil, "connection_name", "short-4711-65f3ab12cdef7"),
		"worker-@":                 amqp.AppendStringField(nil, "connection_name", "worker-0815@host7"),
		"rabbitmq-c":               amqp.AppendStringField(nil, "product", "rabbitmq-c"),
		"":                         nil,
		strings.Repeat("long", 25): amqp.AppendStringField(nil, "connection_name", strings.Repeat("long", 100)),
		"odd\ufffd":                amqp.AppendStringField(nil, "connection_name", "odd\xff"),
	} {
		if got := appName(props); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

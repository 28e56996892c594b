//go:build linux

// The hazards that take more than one message: dying amid a publish, exclusive queues,
// alarms, logins that change; each through the proxy before both brokers, with a canary.

package hazard

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// onBoth runs f through a proxy before each broker, beside a canary that must not notice.
func onBoth(t *testing.T, change func(*proxy.Config), f func(t *testing.T, b *rabbit.Broker, s *proxy.Server, addr string)) {
	t.Helper()
	besideCanary(t, change, f, true)
}

func besideCanary(t *testing.T, change func(*proxy.Config), f func(t *testing.T, b *rabbit.Broker, s *proxy.Server, addr string), canary bool) {
	t.Helper()
	for _, v := range versions() {
		t.Run(string(v), func(t *testing.T) {
			b := rabbit.Get(t, v)
			s, addr := startProxy(t, b, change)
			if !canary {
				f(t, b, s, addr)
				return
			}
			c, err := newBird(addr, "/")
			if err != nil {
				t.Fatal(err)
			}
			defer c.fly()
			f(t, b, s, addr)
			if err := c.sing(); err != nil {
				t.Error(err)
			}
		})
	}
}

func connect(t *testing.T, cfg proxytest.ClientConfig) *proxytest.Client {
	t.Helper()
	c, err := proxytest.Dial(cfg)
	if err != nil {
		t.Fatalf("connect as %q: %v", cfg.User, err)
	}
	t.Cleanup(func() { c.Hangup() })
	if err := c.OpenChannel(1); err != nil {
		t.Fatalf("channel.open: %v", err)
	}
	return c
}

func check(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// closedWith fails unless err is the close with that code.
func closedWith(t *testing.T, what string, err error, code uint16, text string) {
	t.Helper()
	var e *amqp.Error
	if !errors.As(err, &e) || e.Code != code || !strings.Contains(e.Text, text) {
		t.Errorf("%s: %v, want %d ...%s...", what, err, code, text)
	}
}

var serial int

func unique(prefix string) string {
	serial++
	return fmt.Sprintf("%s-%d-%d", prefix, time.Now().UnixNano(), serial)
}

// A client may die at any octet of a publish: what is not whole never reaches the broker,
// what is whole does, and those beside it go on.
func TestDeathAmidPublish(t *testing.T) {
	onBoth(t, nil, func(t *testing.T, _ *rabbit.Broker, s *proxy.Server, addr string) {
		queue := unique("hz.death")
		owner := connect(t, proxytest.ClientConfig{Addr: addr})
		_, err := owner.DeclareQueue(1, queue, durable)
		check(t, "declare", err)
		defer owner.DeleteQueue(1, queue) //nolint:errcheck // gone with the broker at the latest
		before := s.Stats()
		raw := cat(publish(1, "", queue, 0), header(1, 10), body(1, "01234"), body(1, "56789"))
		deaths := 0
		for cut := 0; cut <= len(raw); cut++ {
			for _, reset := range []bool{true, false} {
				if reset && cut == len(raw) {
					continue // a reset may take octets with it that were sent
				}
				c := connect(t, proxytest.ClientConfig{Addr: addr, Name: "dies"})
				check(t, "send", c.Send(raw[:cut]))
				if reset {
					c.Abort()
				} else {
					c.Hangup()
				}
				deaths++
			}
		}
		deadline := time.Now().Add(10 * time.Second)
		for {
			n, err := owner.QueueLength(1, queue)
			check(t, "length", err)
			if n == 1 && s.Stats().Clients == before.Clients {
				break
			}
			if n > 1 || time.Now().After(deadline) {
				t.Fatalf("%d messages after %d deaths, %d clients left, want the one that was whole and %d clients", n, deaths, s.Stats().Clients, before.Clients)
			}
			time.Sleep(20 * time.Millisecond) // polling the broker
		}
		m, err := owner.Get(1, queue, true)
		check(t, "get", err)
		if string(m.Body) != "0123456789" {
			t.Errorf("the message is %q", m.Body)
		}
		after := s.Stats()
		if after.UpstreamsLost != before.UpstreamsLost {
			t.Errorf("%d upstreams were lost", after.UpstreamsLost-before.UpstreamsLost)
		}
		if after.UpstreamsTotal > before.UpstreamsTotal+2 {
			t.Errorf("%d upstreams were opened for %d clients one after the other", after.UpstreamsTotal-before.UpstreamsTotal, deaths)
		}
	})
}

func TestExclusiveQueues(t *testing.T) {
	onBoth(t, nil, func(t *testing.T, _ *rabbit.Broker, s *proxy.Server, addr string) {
		other := connect(t, proxytest.ClientConfig{Addr: addr, Name: "other"})
		closedBy := func(t *testing.T, queue string, end func(c *proxytest.Client), within time.Duration) {
			t.Helper()
			c := connect(t, proxytest.ClientConfig{Addr: addr, Name: "owner"})
			_, err := c.DeclareQueue(1, queue, exclusive)
			check(t, "declare exclusive", err)
			check(t, "second channel", c.OpenChannel(2))
			check(t, "publish on another channel", c.Publish(2, "", queue, []byte("x")))
			for deadline := time.Now().Add(5 * time.Second); ; {
				m, err := c.Get(2, queue, true)
				if err == nil && string(m.Body) == "x" {
					break
				}
				if !errors.Is(err, proxytest.ErrEmpty) || time.Now().After(deadline) {
					t.Fatalf("get on another channel of the owner: %v", err)
				}
			}
			_, err = other.QueueLength(1, queue)
			closedWith(t, "passive declare by another client", err, 405, "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue")
			check(t, "reopen", other.OpenChannel(1))
			_, err = other.Get(1, queue, true)
			closedWith(t, "get by another client", err, 405, "RESOURCE_LOCKED")
			check(t, "reopen", other.OpenChannel(1))
			end(c)
			began := time.Now()
			for {
				_, err = other.QueueLength(1, queue)
				var e *amqp.Error
				if !errors.As(err, &e) {
					t.Fatalf("the queue after its owner's end: %v, want 404", err)
				}
				check(t, "reopen", other.OpenChannel(1))
				if e.Code == 404 {
					break
				}
				if time.Since(began) > within {
					t.Fatalf("%v after its owner's end the queue says: %v, want 404 within %v", time.Since(began), e, within)
				}
			}
		}
		closedBy(t, unique("hz.excl"), func(c *proxytest.Client) { check(t, "close", c.Close()) }, 0)
		closedBy(t, unique("hz.excl"), func(c *proxytest.Client) { c.Abort() }, time.Second)
		// Its upstream is not reused: nobody inherits the lock.
		// The broker deletes the queue before it answers connection.close.
		deadline := time.Now().Add(time.Second)
		for s.Stats().Pools[0].Sessions != 0 && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
		}
		if n := s.Stats().Pools[0].Sessions; n != 0 {
			t.Errorf("%d sessions are left", n)
		}
	})
}

// deliveries go on while publishers are blocked, and each publisher hears of it once.
func TestAlarm(t *testing.T) {
	// Without a canary: an alarm concerns every publisher.
	besideCanary(t, nil, func(t *testing.T, b *rabbit.Broker, _ *proxy.Server, addr string) {
		queue := unique("hz.alarm")
		seed := connect(t, proxytest.ClientConfig{Addr: addr, Name: "seed"})
		_, err := seed.DeclareQueue(1, queue, durable)
		check(t, "declare", err)
		check(t, "confirm.select", seed.Confirm(1))
		for i := range 40 {
			check(t, "publish", seed.Publish(1, "", queue, fmt.Appendf(nil, "m%d", i)))
		}
		check(t, "confirms", seed.WaitConfirms(1))
		check(t, "close", seed.Close())
		pub := connect(t, proxytest.ClientConfig{Addr: addr, Name: "publisher"})
		check(t, "publish", pub.Publish(1, "", unique("hz.none"), []byte("before the alarm")))
		sub := connect(t, proxytest.ClientConfig{Addr: addr, Name: "consumer"})
		check(t, "qos", sub.Qos(1, 5))
		_, err = sub.Consume(1, queue, "t", false)
		check(t, "consume", err)
		idle := connect(t, proxytest.ClientConfig{Addr: addr, Name: "idle"})
		get := connect(t, proxytest.ClientConfig{Addr: addr, Name: "getter"})

		_, err = b.Eval("rabbit_alarm:set_alarm({{resource_limit, memory, node()}, []}).")
		check(t, "alarm", err)
		clear := func() {
			t.Helper()
			if _, err := b.Eval("rabbit_alarm:clear_alarm({resource_limit, memory, node()})."); err != nil {
				t.Fatalf("the alarm stays: %v", err)
			}
		}
		defer clear()
		// RabbitMQ blocks a connection when it publishes after it has heard of the alarm.
		blocked := func(who string, c *proxytest.Client) {
			t.Helper()
			for range 100 {
				check(t, "publish into the alarm", c.Publish(1, "", queue, []byte("late")))
				f, err := c.NextWithin(100 * time.Millisecond)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					continue
				}
				if err != nil || f.Method() != amqp.ConnectionBlocked {
					t.Fatalf("the %s got %v, %v, want connection.blocked", who, f, err)
				}
				return
			}
			t.Fatalf("the %s was never told of the alarm", who)
		}
		blocked("publisher", pub)
		late := connect(t, proxytest.ClientConfig{Addr: addr, Name: "late publisher"})
		blocked("late publisher", late)
		for i := range 40 {
			m, err := sub.Delivery(1)
			if err != nil {
				t.Fatalf("delivery %d in the alarm: %v", i, err)
			}
			if want := fmt.Sprintf("m%d", i); string(m.Body) != want {
				t.Fatalf("delivery %d is %q, want %q", i, m.Body, want)
			}
			check(t, "ack", sub.Ack(1, m.Tag, false))
		}
		if _, err := get.Get(1, queue, true); err != nil && !errors.Is(err, proxytest.ErrEmpty) {
			t.Errorf("get in the alarm: %v", err)
		}
		clear()
		for who, c := range map[string]*proxytest.Client{"publisher": pub, "late publisher": late} {
			if _, err := c.Await(0, amqp.ConnectionUnblocked); err != nil {
				t.Fatalf("the %s: %v", who, err)
			}
		}
		for who, c := range map[string]*proxytest.Client{"publisher": pub, "late publisher": late, "idle client": idle, "getter": get} {
			if f, err := c.NextWithin(200 * time.Millisecond); err == nil {
				t.Errorf("the %s also got %s", who, proxytest.Describe(f))
			}
		}
	}, false)
}

// What changes about a user reaches those whom it concerns, in the broker's words.
func TestUsers(t *testing.T) {
	short := func(c *proxy.Config) { c.AuthTTL, c.RetryDelay = 0, 0 }
	onBoth(t, short, func(t *testing.T, b *rabbit.Broker, _ *proxy.Server, addr string) {
		// Erlang: rabbitmqctl takes a second for each.
		eval := func(format string, args ...any) {
			t.Helper()
			if got, err := b.Eval(fmt.Sprintf(format, args...) + "."); err != nil || strings.Contains(got, "EXIT") {
				t.Fatalf(format+": %s, %v", append(args, got, err)...)
			}
		}
		addUser := func(name, password string) {
			t.Helper()
			eval(`rabbit_auth_backend_internal:add_user(<<"%s">>, <<"%s">>, <<"test">>)`, name, password)
			t.Cleanup(func() {
				b.Eval(fmt.Sprintf(`rabbit_auth_backend_internal:delete_user(<<"%s">>, <<"test">>).`, name)) //nolint:errcheck // it ends with the broker at the latest
			})
		}
		permit := func(name, vhost, what string) {
			t.Helper()
			eval(`rabbit_auth_backend_internal:set_permissions(<<"%s">>, <<"%s">>, <<"%s">>, <<"%[3]s">>, <<"%[3]s">>, <<"test">>)`, name, vhost, what)
		}
		user := unique("hz-user")
		addUser(user, "old")
		permit(user, "/", ".*")
		as := func(password string) proxytest.ClientConfig {
			return proxytest.ClientConfig{Addr: addr, User: user, Password: password, Name: "user"}
		}
		held := connect(t, as("old"))

		eval(`rabbit_auth_backend_internal:change_password(<<"%s">>, <<"new">>, <<"test">>)`, user)
		for deadline := time.Now().Add(10 * time.Second); ; { // one login is served, behind it the broker is asked
			c, err := proxytest.Dial(as("old"))
			if err == nil {
				c.Hangup()
				if time.Now().After(deadline) {
					t.Fatal("the old password is still served")
				}
				continue
			}
			closedWith(t, "login with the old password", err, 403, "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN")
			break
		}
		fresh := connect(t, as("new"))
		queue := unique("hz.user")
		_, err := held.DeclareQueue(1, queue, durable)
		check(t, "declare by who logged in before", err)

		permit(user, "/", "^$")
		fresh2 := connect(t, as("new"))
		for deadline := time.Now().Add(10 * time.Second); ; { // the broker caches permissions for a moment
			_, err = fresh2.DeclareQueue(1, unique("hz.user"), durable)
			if err != nil || time.Now().After(deadline) {
				break
			}
		}
		closedWith(t, "declare without permission", err, 403, "ACCESS_REFUSED")
		check(t, "the channel after a refusal", fresh2.OpenChannel(1))
		if _, err := fresh.NextWithin(50 * time.Millisecond); err == nil {
			t.Error("another client of the user noticed the refusal")
		}

		vhost := unique("hz-vhost")
		eval(`rabbit_vhost:add(<<"%s">>, <<"test">>)`, vhost)
		cfg := as("new")
		cfg.VHost = vhost
		_, err = proxytest.Dial(cfg)
		closedWith(t, "login to a vhost without permission", err, 530, "NOT_ALLOWED - access to vhost '"+vhost+"' refused for user '"+user+"'")
		permit(user, vhost, ".*")
		in := connect(t, cfg)
		_, err = in.DeclareQueue(1, "q", durable)
		check(t, "declare", err)
		eval(`rabbit_vhost:delete(<<"%s">>, <<"test">>)`, vhost)
		e, err := in.Closed(0)
		if err != nil || e.Code != 320 || !strings.Contains(e.Text, vhost) {
			t.Errorf("a client of a deleted vhost hears %v, %v, want 320 with its name", e, err)
		}
		_, err = proxytest.Dial(cfg)
		closedWith(t, "login to the deleted vhost", err, 530, "vhost "+vhost+" not found")

		full := unique("hz-full")
		addUser(full, "x")
		permit(full, "/", ".*")
		eval(`rabbit_auth_backend_internal:set_user_limits(<<"%s">>, <<"{\"max-connections\": 0}">>, <<"test">>)`, full)
		_, err = proxytest.Dial(proxytest.ClientConfig{Addr: addr, User: full, Password: "x"})
		closedWith(t, "login over the user's limit", err, 530, "NOT_ALLOWED - connection refused for user '"+full+"': user connection limit (0) is reached")
		if _, err := held.NextWithin(50 * time.Millisecond); err == nil {
			t.Error("a client noticed the limit")
		}
	})
}

// A client that reads nothing any more hurts nobody but itself, and is only slow when it
// is alone: reading again, it gets every message.
func TestStalledConsumer(t *testing.T) {
	const size, count = 64 << 10, 800 // 50 MB
	onBoth(t, nil, func(t *testing.T, _ *rabbit.Broker, s *proxy.Server, addr string) {
		queue := unique("hz.stall")
		owner := connect(t, proxytest.ClientConfig{Addr: addr, Name: "owner"})
		_, err := owner.DeclareQueue(1, queue, durable)
		check(t, "declare", err)
		defer owner.DeleteQueue(1, queue) //nolint:errcheck // gone with the broker at the latest
		check(t, "confirm.select", owner.Confirm(1))
		payload := make([]byte, size)
		for i := range count {
			copy(payload, fmt.Sprintf("%08d", i))
			check(t, "publish", owner.Publish(1, "", queue, payload))
			if i%50 == 49 {
				check(t, "confirms", owner.WaitConfirms(1))
			}
		}
		slow := connect(t, proxytest.ClientConfig{Addr: addr, Name: "slow"})
		if tcp, ok := slow.Conn().(*net.TCPConn); ok {
			check(t, "small buffer", tcp.SetReadBuffer(64<<10))
		}
		_, err = slow.Consume(1, queue, "t", true)
		check(t, "consume", err)
		// Reads nothing while another client of its identity works.
		quick := connect(t, proxytest.ClientConfig{Addr: addr, Name: "quick"})
		q2 := unique("hz.quick")
		_, err = quick.DeclareQueue(1, q2, durable)
		check(t, "declare beside", err)
		worst := time.Duration(0)
		for i := range 200 {
			began := time.Now()
			check(t, "publish beside", quick.Publish(1, "", q2, fmt.Appendf(nil, "%d", i)))
			for {
				if _, err = quick.Get(1, q2, true); !errors.Is(err, proxytest.ErrEmpty) {
					break
				}
			}
			check(t, "get beside", err)
			worst = max(worst, time.Since(began))
		}
		check(t, "delete", quick.DeleteQueue(1, q2))
		if worst > 5*time.Second {
			t.Errorf("beside a stalled consumer a publish and get took up to %v", worst)
		}
		for i := range count {
			m, err := slow.Delivery(1)
			if err != nil {
				t.Fatalf("delivery %d after the stall: %v", i, err)
			}
			if want := fmt.Sprintf("%08d", i); string(m.Body[:8]) != want || len(m.Body) != size {
				t.Fatalf("delivery %d is %q of %d octets, want %q of %d", i, m.Body[:8], len(m.Body), want, size)
			}
		}
		if n := s.Stats().SlowClientCloses; n != 0 {
			t.Errorf("%d clients were closed for being slow", n)
		}
		t.Logf("200 publishes and gets beside a stalled consumer: the slowest took %v", worst)
	})
}

package proxytest

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

func dialed(t *testing.T, cfg ClientConfig) *Client {
	t.Helper()
	c, err := Dial(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Hangup() })
	if err := c.OpenChannel(1); err != nil {
		t.Fatal(err)
	}
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func refused(t *testing.T, err error, code uint16, text string) {
	t.Helper()
	var e *amqp.Error
	if !errors.As(err, &e) || e.Code != code || e.Text != text {
		t.Fatalf("got %v, want %d %s", err, code, text)
	}
}

func TestBrokerRefusesAsRabbitMQDoes(t *testing.T) {
	b := StartBroker(t, BrokerConfig{Users: map[string]string{"guest": "guest", "bob": "x"}, Access: map[string][]string{"bob": {}}})
	for name, tc := range map[string]struct {
		cfg  ClientConfig
		code uint16
		text string
	}{
		"password": {ClientConfig{Password: "wrong"}, 403, "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker logfile."},
		"amqplain": {ClientConfig{Password: "wrong", Mechanism: "AMQPLAIN"}, 403, "ACCESS_REFUSED - Login was refused using authentication mechanism AMQPLAIN. For details see the broker logfile."},
		"vhost":    {ClientConfig{VHost: "nowhere"}, 530, "NOT_ALLOWED - vhost nowhere not found"},
		"access":   {ClientConfig{User: "bob", Password: "x"}, 530, "NOT_ALLOWED - access to vhost '/' refused for user 'bob'"},
	} {
		t.Run(name, func(t *testing.T) {
			tc.cfg.Addr = b.Addr()
			_, err := Dial(tc.cfg)
			refused(t, err, tc.code, tc.text)
		})
	}
	if n := b.Counts(); n.Opened != 0 || n.Refused != 4 || n.Logins != 2 {
		t.Fatalf("got %+v, want nothing opened, 4 refused, 2 logins", n)
	}
	if _, err := Dial(ClientConfig{Addr: b.Addr(), Mechanism: "AMQPLAIN"}); err != nil {
		t.Fatalf("AMQPLAIN with the right password: %v", err)
	}
}

func TestBrokerKeepsAndDeliversMessages(t *testing.T) {
	b := StartBroker(t, BrokerConfig{})
	c := dialed(t, ClientConfig{Addr: b.Addr(), FrameMax: 4096})
	_, err := c.DeclareQueue(1, "q", 0)
	must(t, err)
	must(t, c.Confirm(1))
	bodies := [][]byte{{}, []byte("a"), bytes.Repeat([]byte("x"), 4088), bytes.Repeat([]byte("y"), 4089), bytes.Repeat([]byte("z"), 1<<20)}
	for _, body := range bodies {
		must(t, c.Publish(1, "", "q", body))
	}
	must(t, c.WaitConfirms(1))
	for i, body := range bodies[:2] {
		m, err := c.Get(1, "q", false)
		must(t, err)
		if !bytes.Equal(m.Body, body) || m.Tag != uint64(i+1) || m.Redelivered {
			t.Fatalf("got tag %d, redelivered %v, %d octets", m.Tag, m.Redelivered, len(m.Body))
		}
	}
	must(t, c.CloseChannel(1)) // gives both back, in their order
	must(t, c.OpenChannel(1))
	must(t, c.Qos(1, 2))
	tag, err := c.Consume(1, "q", "", false)
	must(t, err)
	for i, body := range bodies {
		m, err := c.Delivery(1)
		must(t, err)
		if !bytes.Equal(m.Body, body) || m.ConsumerTag != tag || m.Redelivered != (i < 2) {
			t.Fatalf("delivery %d: got %d octets for %q, redelivered %v", i, len(m.Body), m.ConsumerTag, m.Redelivered)
		}
		if i == 1 { // the prefetch of 2 is used up
			if f, err := c.NextWithin(20 * time.Millisecond); err == nil {
				t.Fatalf("got %s beyond the prefetch", Describe(f))
			}
			must(t, c.Ack(1, 2, true))
		} else if i > 1 {
			must(t, c.Ack(1, m.Tag, false))
		}
	}
	must(t, c.Close())
	if n := b.Counts(); n.Published != 5 || n.Acked != 5 || n.Channels != 2 || n.ChansOpen != 0 || n.Open != 0 {
		t.Fatalf("got %+v", n)
	}
}

func TestBrokerErrors(t *testing.T) {
	b := StartBroker(t, BrokerConfig{})
	addr := ClientConfig{Addr: b.Addr()}
	soft := func(request []byte, code uint16, text string) {
		t.Helper()
		c := dialed(t, addr)
		must(t, c.Send(request))
		e, err := c.Closed(1)
		must(t, err)
		refused(t, e, code, text)
		must(t, c.OpenChannel(1)) // the number is free again, the connection lives
	}
	soft(PublishBytes(1, "nope", "k", []byte("x"), 0), 404, "NOT_FOUND - no exchange 'nope' in vhost '/'")
	soft(Method(1, amqp.QueueDeclare, 0, "nope", Passive, nil), 404, "NOT_FOUND - no queue 'nope' in vhost '/'")
	soft(Method(1, amqp.BasicAck, 7, 0), 406, "PRECONDITION_FAILED - unknown delivery tag 7")
	hard := func(request []byte, code uint16, text string) {
		t.Helper()
		c := dialed(t, addr)
		must(t, c.Send(request))
		e, err := c.Closed(0)
		must(t, err)
		refused(t, e, code, text)
	}
	hard(Method(1, amqp.ChannelOpen, ""), 504, "CHANNEL_ERROR - second 'channel.open' seen")
	hard(Method(2, amqp.BasicQos, 0, 1, 0), 504, "CHANNEL_ERROR - expected 'channel.open'")
	hard(Method(1, amqp.BasicQos, 5, 1, 0), 540, "NOT_IMPLEMENTED - prefetch_size!=0 (5)")
	hard(Method(1, amqp.BasicPublish, 0, "", "", 2), 540, "NOT_IMPLEMENTED - immediate=true")
	hard(Body(1, []byte("x")), 505, "UNEXPECTED_FRAME - expected method frame, got content body frame instead")
	if n := b.Counts(); n.SoftError != 3 || n.Closes != 5 {
		t.Fatalf("got %+v, want 3 soft errors and 5 closes", n)
	}
	Canary(t, b.Addr())
}

func TestBrokerExclusiveMandatoryTxAndTopic(t *testing.T) {
	b := StartBroker(t, BrokerConfig{})
	c, d := dialed(t, ClientConfig{Addr: b.Addr()}), dialed(t, ClientConfig{Addr: b.Addr()})
	q, err := c.DeclareQueue(1, "", Exclusive)
	must(t, err)
	_, err = d.Get(1, q, true)
	var e *amqp.Error
	if !errors.As(err, &e) || e.Code != amqp.ResourceLocked {
		t.Fatalf("got %v, want 405", err)
	}
	must(t, d.OpenChannel(1))
	must(t, c.Call(Method(1, amqp.QueueBind, 0, q, "amq.topic", "a.*.#", 0, nil), amqp.QueueBindOk))
	must(t, d.Call(Method(1, amqp.TxSelect), amqp.TxSelectOk))
	for _, key := range []string{"a", "a.b", "b.a", "a.b.c.d"} {
		must(t, d.Publish(1, "amq.topic", key, []byte(key)))
	}
	if n, err := c.QueueLength(1, q); n != 0 || err != nil {
		t.Fatalf("got %d messages, %v before tx.commit", n, err)
	}
	must(t, d.Call(Method(1, amqp.TxCommit), amqp.TxCommitOk))
	if got := fmt.Sprintf("%s", b.Bodies("/", q)); got != "[a.b a.b.c.d]" {
		t.Fatalf("got %s, want the keys that match", got)
	}
	must(t, d.CloseChannel(1))
	must(t, d.OpenChannel(1))
	must(t, d.Confirm(1))
	must(t, d.Send(Method(1, amqp.BasicPublish, 0, "", "nowhere", 1), Header(1, 0)))
	m, err := d.Return(1)
	must(t, err)
	if m.Code != amqp.NoRoute || m.Key != "nowhere" {
		t.Fatalf("got %+v", m)
	}
	_, err = d.Await(1, amqp.BasicAck)
	must(t, err)
	must(t, c.Hangup())
	if !b.WaitFor(5*time.Second, func(n BrokerCounts) bool { return n.Open == 1 }) {
		t.Fatal("the connection did not end")
	}
	if n := b.Messages("/", q); n != -1 {
		t.Fatalf("the exclusive queue outlived its connection with %d messages", n)
	}
}

func TestBrokerAlarm(t *testing.T) {
	b := StartBroker(t, BrokerConfig{})
	pub, sub := dialed(t, ClientConfig{Addr: b.Addr()}), dialed(t, ClientConfig{Addr: b.Addr()})
	_, err := sub.DeclareQueue(1, "q", 0)
	must(t, err)
	must(t, pub.Confirm(1))
	b.Block("disk")
	must(t, pub.Publish(1, "", "q", []byte("x")))
	f, err := pub.Expect(amqp.ConnectionBlocked)
	must(t, err)
	if a := amqp.ReadArgs(f); string(a.Str()) != "disk" {
		t.Fatalf("got %s", Describe(f))
	}
	if _, err := sub.QueueLength(1, "q"); err != nil {
		t.Fatalf("a connection that does not publish: %v", err)
	}
	b.Unblock()
	_, err = pub.Expect(amqp.ConnectionUnblocked)
	must(t, err)
	must(t, pub.WaitConfirms(1))
}

func TestBrokerClosesAndCuts(t *testing.T) {
	b := StartBroker(t, BrokerConfig{})
	c := dialed(t, ClientConfig{Addr: b.Addr(), Name: "me"})
	if names := b.Connections(); len(names) != 1 || names[0] != "me" {
		t.Fatalf("got %q", names)
	}
	b.CloseConnections(320, "CONNECTION_FORCED - bye")
	e, err := c.Closed(0)
	must(t, err)
	refused(t, e, 320, "CONNECTION_FORCED - bye")
	d := dialed(t, ClientConfig{Addr: b.Addr()})
	b.Cut()
	if _, err := d.Next(); err == nil {
		t.Fatal("a frame came after the cut")
	}
	if !b.WaitFor(5*time.Second, func(n BrokerCounts) bool { return n.Open == 0 }) {
		t.Fatalf("got %+v", b.Counts())
	}
}

// The method table against the one that RabbitMQ is generated from.

package amqp

import (
	"strings"
	"testing"
)

// reference is amqp-rabbitmq-0.9.1.json as of RabbitMQ 4.x, a line a method: ids, name,
// arguments (bits packed into octets), S: synchronous, C: with content.
const reference = `
10 10 connection.start ooTSS S
10 11 connection.start_ok TsSs
10 20 connection.secure S S
10 21 connection.secure_ok S
10 30 connection.tune hlh S
10 31 connection.tune_ok hlh
10 40 connection.open ssb S
10 41 connection.open_ok s
10 50 connection.close hshh S
10 51 connection.close_ok -
10 60 connection.blocked s
10 61 connection.unblocked -
10 70 connection.update_secret Ss S
10 71 connection.update_secret_ok -
20 10 channel.open s S
20 11 channel.open_ok S
20 20 channel.flow b S
20 21 channel.flow_ok b
20 40 channel.close hshh S
20 41 channel.close_ok -
30 10 access.request sb S
30 11 access.request_ok h
40 10 exchange.declare hssbT S
40 11 exchange.declare_ok -
40 20 exchange.delete hsb S
40 21 exchange.delete_ok -
40 30 exchange.bind hsssbT S
40 31 exchange.bind_ok -
40 40 exchange.unbind hsssbT S
40 51 exchange.unbind_ok -
50 10 queue.declare hsbT S
50 11 queue.declare_ok sll
50 20 queue.bind hsssbT S
50 21 queue.bind_ok -
50 30 queue.purge hsb S
50 31 queue.purge_ok l
50 40 queue.delete hsb S
50 41 queue.delete_ok l
50 50 queue.unbind hsssT S
50 51 queue.unbind_ok -
60 10 basic.qos lhb S
60 11 basic.qos_ok -
60 20 basic.consume hssbT S
60 21 basic.consume_ok s
60 30 basic.cancel sb S
60 31 basic.cancel_ok s
60 40 basic.publish hssb C
60 50 basic.return hsss C
60 60 basic.deliver sqbss C
60 70 basic.get hsb S
60 71 basic.get_ok qbssl C
60 72 basic.get_empty s
60 80 basic.ack qb
60 90 basic.reject qb
60 100 basic.recover_async b
60 110 basic.recover b S
60 111 basic.recover_ok -
60 120 basic.nack qb
85 10 confirm.select b S
85 11 confirm.select_ok -
90 10 tx.select - S
90 11 tx.select_ok -
90 20 tx.commit - S
90 21 tx.commit_ok -
90 30 tx.rollback - S
90 31 tx.rollback_ok -`

func TestMethodTableAgainstReference(t *testing.T) {
	seen := map[Method]bool{}
	for _, line := range strings.Split(strings.TrimSpace(reference), "\n") {
		f := strings.Fields(line)
		var class, id Method
		for _, c := range f[0] {
			class = class*10 + Method(c-'0')
		}
		for _, c := range f[1] {
			id = id*10 + Method(c-'0')
		}
		m := class<<16 | id
		seen[m] = true
		s := m.Spec()
		if s.ID != m || s.Name != f[2] || m.String() != f[2] {
			t.Errorf("%s: the table has %v, %q", line, s.ID, s.Name)
			continue
		}
		want := strings.Trim(f[3], "-")
		if got := strings.ToLower(s.Args); strings.ReplaceAll(s.Args, "O", "o") != want {
			t.Errorf("%s: arguments %q, want %q", s.Name, got, want)
		}
		flags := strings.Join(f[4:], "")
		if got := s.Sync; got != strings.Contains(flags, "S") {
			t.Errorf("%s: Sync is %v", s.Name, got)
		}
		if got := s.Content; got != strings.Contains(flags, "C") {
			t.Errorf("%s: Content is %v", s.Name, got)
		}
		if !s.Client && !s.Server {
			t.Errorf("%s: nobody may send it", s.Name)
		}
		if s.Sync && s.Reply {
			t.Errorf("%s: both asks and answers", s.Name)
		}
		if want := strings.HasSuffix(s.Name, "_ok") || s.Name == "basic.get_empty"; s.Reply != want {
			t.Errorf("%s: Reply is %v", s.Name, s.Reply)
		}
		if (s.NoWait != 0) && !strings.Contains(s.Args, "b") {
			t.Errorf("%s: a no-wait bit without an octet of bits", s.Name)
		}
	}
	if len(seen) != NumMethods-1 {
		t.Errorf("%d methods in the reference, %d in the table", len(seen), NumMethods-1)
	}
	// And nothing beyond it is known, over the whole space of ids near it.
	for class := Method(0); class < 200; class++ {
		for id := Method(0); id < 300; id++ {
			m := class<<16 | id
			if known := m.Index() != 0; known != seen[m] {
				t.Fatalf("%d.%d: known %v, want %v", class, id, known, seen[m])
			}
		}
	}
	for _, m := range []Method{0xFFFFFFFF, 10<<16 | 0xFFFF, 0xFFFF<<16 | 10, 90<<16 | 121, 91<<16 | 10, 95<<16 | 10, 60<<16 | 200} {
		if m.Index() != 0 || m.Spec().Name != "" || m.Spec().Args != "" || !strings.HasPrefix(m.String(), "unknown method ") {
			t.Errorf("%s is in the table", m)
		}
	}
}

// The no-wait bit stands where the spec puts it, after the bits before it. A wrong one
// makes the proxy wait for an answer that never comes, or take one for another's.
func TestNoWaitBits(t *testing.T) {
	want := map[Method]byte{
		ExchangeDeclare: 1 << 4, // passive, durable, auto-delete, internal
		ExchangeDelete:  1 << 1, // if-unused
		ExchangeBind:    1 << 0,
		ExchangeUnbind:  1 << 0,
		QueueDeclare:    1 << 4, // passive, durable, exclusive, auto-delete
		QueueBind:       1 << 0,
		QueuePurge:      1 << 0,
		QueueDelete:     1 << 2, // if-unused, if-empty
		BasicConsume:    1 << 3, // no-local, no-ack, exclusive
		BasicCancel:     1 << 0,
		ConfirmSelect:   1 << 0,
	}
	for i := range specs {
		if got := specs[i].NoWait; got != want[specs[i].ID] {
			t.Errorf("%s: no-wait bit %#x, want %#x", specs[i].Name, got, want[specs[i].ID])
		}
	}
}

func TestWhoSends(t *testing.T) {
	both := map[Method]bool{ConnectionClose: true, ConnectionCloseOk: true, ChannelFlow: true, ChannelFlowOk: true,
		ChannelClose: true, ChannelCloseOk: true, BasicCancel: true, BasicCancelOk: true, BasicAck: true, BasicNack: true}
	client := map[Method]bool{ConnectionStartOk: true, ConnectionSecureOk: true, ConnectionTuneOk: true}
	server := map[Method]bool{ConnectionStart: true, ConnectionSecure: true, ConnectionTune: true, ConnectionBlocked: true,
		ConnectionUnblocked: true, BasicReturn: true, BasicDeliver: true}
	for _, s := range specs[1:] {
		c, v := true, false
		switch {
		case both[s.ID]:
			v = true
		case client[s.ID]:
		case server[s.ID], s.Reply:
			c, v = false, true
		}
		if s.Client != c || s.Server != v {
			t.Errorf("%s: client %v, server %v, want %v, %v", s.Name, s.Client, s.Server, c, v)
		}
	}
}

func TestCodes(t *testing.T) {
	hard := map[uint16]bool{320: true, 402: true, 501: true, 502: true, 503: true, 504: true, 505: true, 506: true, 530: true, 540: true, 541: true}
	for code := range uint16(1000) {
		if IsHard(code) != hard[code] {
			t.Errorf("IsHard(%d) is %v", code, IsHard(code))
		}
	}
	e := Errorf(NotImplemented, BasicPublish, "%s=true", "immediate")
	if e.Text != "NOT_IMPLEMENTED - immediate=true" || e.Code != 540 || e.Method != BasicPublish || e.Error() != "540 NOT_IMPLEMENTED - immediate=true" {
		t.Errorf("Errorf made %+v", *e)
	}
	for code, name := range map[uint16]string{320: "CONNECTION_FORCED", 402: "INVALID_PATH", 403: "ACCESS_REFUSED", 404: "NOT_FOUND",
		405: "RESOURCE_LOCKED", 406: "PRECONDITION_FAILED", 501: "FRAME_ERROR", 502: "SYNTAX_ERROR", 503: "COMMAND_INVALID",
		504: "CHANNEL_ERROR", 505: "UNEXPECTED_FRAME", 506: "RESOURCE_ERROR", 530: "NOT_ALLOWED", 540: "NOT_IMPLEMENTED", 541: "INTERNAL_ERROR", 777: "CODE_777"} {
		if got := CodeName(code); got != name {
			t.Errorf("CodeName(%d) is %s, want %s", code, got, name)
		}
	}
}

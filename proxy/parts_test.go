package proxy

import (
	"encoding/base64"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// Ids come fresh first, then the oldest freed; never twice, never 0, never over the limit.
func TestIDs(t *testing.T) {
	a := ids{limit: 3000}
	used := map[uint16]bool{}
	var freed []uint16
	rnd := rand.New(rand.NewPCG(1, 4))
	for step := range 60_000 {
		if rnd.IntN(2) == 0 || len(used) == 0 {
			id, ok := a.take()
			if !ok {
				if len(used) != 3000 {
					t.Fatalf("step %d: no id though only %d are used", step, len(used))
				}
				continue
			}
			if id == 0 || id > 3000 || used[id] {
				t.Fatalf("step %d: got id %d, used %v", step, id, used[id])
			}
			if a.fresh == 3000 && len(freed) > 0 && step > 10_000 && freed[0] != id && len(used)+len(freed) == 3000 {
				t.Fatalf("step %d: got id %d, the oldest freed is %d", step, id, freed[0])
			}
			if len(freed) > 0 && freed[0] == id {
				freed = freed[1:]
			}
			used[id] = true
		} else {
			for id := range used {
				delete(used, id)
				a.free(id)
				freed = append(freed, id)
				break
			}
		}
	}
	full := ids{limit: 65535}
	for range 65535 {
		if _, ok := full.take(); !ok {
			t.Fatal("ids end early")
		}
	}
	if id, ok := full.take(); ok {
		t.Errorf("a 65536th id was given: %d", id)
	}
}

func TestPendingCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pendingCloses
		u := &upstream{}
		b := &binding{u: u}
		first, second := p.add(b), p.add(b)
		done := make(chan time.Duration, 1)
		wait := func() {
			begin := time.Now()
			go func() { p.wait(nil, 5*time.Second, time.Second, nil); done <- time.Since(begin) }()
			synctest.Wait()
		}
		wait()
		third := p.add(b) // came later: not waited for
		p.finish(first)
		p.finish(first)
		synctest.Wait()
		if len(done) != 0 {
			t.Fatal("the wait ended with a close under way")
		}
		p.finish(second)
		if d := <-done; d != 0 {
			t.Errorf("the wait took %v", d)
		}
		wait()
		if d := <-done; d != 5*time.Second {
			t.Errorf("the wait took %v, want its bound of 5 s", d)
		}
		if p.wait(&upstream{}, 5*time.Second, time.Second, nil) {
			t.Error("another upstream's close was waited for")
		}
		u.blocked.Store(true)
		wait()
		if d := <-done; d != 0 {
			t.Errorf("a close behind an alarm was waited for, %v", d)
		}
		p.finish(third)
		if p.n.Load() != 0 || len(p.open) != 0 {
			t.Errorf("%d closes are left", p.n.Load())
		}
	})
}

func TestChannelLimitIsReadFromTheText(t *testing.T) {
	for text, want := range map[string]int{
		"NOT_ALLOWED - number of channels opened for user 'u' has reached the maximum allowed user limit of (10)":  10,
		"NOT_ALLOWED - number of channels opened for user 'u' has reached the maximum allowed user limit of (0)\n": 0,
		"NOT_ALLOWED - number of channels opened (2047) has reached the negotiated channel_max (2047)":             -1,
		"NOT_ALLOWED - number of channels opened for user 'u' has reached the maximum allowed user limit of (":     -1,
		"NOT_ALLOWED - number of channels opened for user 'u' is 99999999999999999999999999":                       -1,
		"": -1,
	} {
		n, ok := channelLimit(&amqp.Error{Code: amqp.NotAllowed, Text: text})
		if ok != (want >= 0) || (ok && n != want) {
			t.Errorf("%q: got %d, %v; want %d", text, n, ok, want)
		}
	}
}

func TestBadReplyTo(t *testing.T) {
	pid := append([]byte{131, 88, 'w', 3}, "a@b"...)
	pid = append(pid, make([]byte, 12)...)
	good := replyToPrefix + base64.StdEncoding.EncodeToString(pid) + ".key=="
	for key, want := range map[string]bool{
		"q": false, good: false, replyToPrefix + "AAAA.key": true, replyToPrefix + "!!.key": true,
		replyToPrefix + base64.StdEncoding.EncodeToString(pid[:9]) + ".key":                      true,
		replyToPrefix + base64.StdEncoding.EncodeToString([]byte{131, 88, 'd', 255, 255}) + ".k": true,
		"amq.rabbitmq.reply-to": false,
	} {
		if got := badReplyTo(proxytest.Method(1, amqp.BasicPublish, 0, "", key, 0)); got != want {
			t.Errorf("%q: got %v, want %v", key, got, want)
		}
		if badReplyTo(proxytest.Method(1, amqp.BasicPublish, 0, "x", key, 0)) {
			t.Errorf("%q: judged though it goes to an exchange", key)
		}
	}
}

const replyToPrefix = "amq.rabbitmq.reply-to."

func TestIsBearerToken(t *testing.T) {
	for secret, want := range map[string]bool{
		"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln": true, "guest": false, "": false, "eyJ": false, "a.b.c": false, "eyJ.b": false, "eyJ.b.c.d": false,
	} {
		if got := isBearerToken(secret); got != want {
			t.Errorf("%q: got %v, want %v", secret, got, want)
		}
	}
}

func TestParseResponse(t *testing.T) {
	table := amqp.AppendStringField(amqp.AppendStringField(nil, "LOGIN", "u"), "PASSWORD", "p")
	for _, tc := range []struct {
		mechanism string
		response  string
		ok, known bool
	}{
		{"PLAIN", "\x00u\x00p", true, true}, {"PLAIN", "z\x00u\x00p", false, true}, {"PLAIN", "\x00u\x00p\x00", false, true}, {"PLAIN", "u", false, true}, {"PLAIN", "", false, true},
		{"PLAIN", "\x00u", false, true}, {"AMQPLAIN", string(table), true, true}, {"AMQPLAIN", string(table[:9]), false, true},
		{"AMQPLAIN", "", false, true}, {"AMQPLAIN", string(table[:len(table)/2]), false, true}, {"EXTERNAL", "", false, false},
	} {
		c, ok, known := parseResponse(tc.mechanism, []byte(tc.response))
		if ok != tc.ok || known != tc.known || (ok && (c.user != "u" || c.secret != broker.NewSecret("p"))) {
			t.Errorf("%s %q: got %+v, %v, %v", tc.mechanism, tc.response, c, ok, known)
		}
	}
}

// What the broker told of limits and offenders is believed for a time, and not kept longer.
func TestWhatWasLearnedIsForgotten(t *testing.T) {
	c, u, _ := halves(t)
	s := c.s
	u.account.login.user = "u"
	p := &pool{s: s, env: &s.env, id: identity{user: "u"}, account: u.account}
	u.senders[amqp.ChannelOpen.Index()].Store(c)
	u.blame(&amqp.Error{Code: amqp.NotAllowed, Method: amqp.ChannelOpen,
		Text: "NOT_ALLOWED - number of channels opened for user 'u' has reached the maximum allowed user limit of (0)"})
	if !s.atChannelLimit(p) || !s.hasOffended(c) {
		t.Error("neither the limit nor the offender is known")
	}
	s.coarse.Store(int64(offenceTime) + 2)
	s.forgive()
	if s.atChannelLimit(p) || s.hasOffended(c) || len(s.channelLimits)+len(s.offenders) != 0 || s.limited.Load() || s.offences.Load() != 0 {
		t.Errorf("after %v %d limits and %d offenders are kept", offenceTime, len(s.channelLimits), len(s.offenders))
	}
}

// Totals never go down, not even while clients leave: a monitor would take it for a restart.
func TestTotalsOnlyGrow(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{}, nil, func(r *rig) {
		stop, over := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(over)
			for last := uint64(0); ; {
				select {
				case <-stop:
					return
				default:
				}
				n := r.s.Stats().BytesToClients
				if n < last {
					t.Errorf("%d bytes were sent to clients after %d", n, last)
					return
				}
				last = n
			}
		}()
		for range 300 {
			r.must(r.client(proxytest.ClientConfig{}).Close())
		}
		close(stop)
		<-over
	})
}

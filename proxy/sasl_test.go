package proxy

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// A response that RabbitMQ cannot read ends the connection without a word, whatever the client
// announces, and asks the broker nothing; what it can read is read.
func TestResponsesAsRabbitMQReadsThem(t *testing.T) {
	field := func(name string, typ byte, value string) []byte {
		b := amqp.AppendShortStr(nil, name)
		b = append(b, typ, 0, 0, 0, byte(len(value)))
		return append(b, value...)
	}
	for _, tc := range []struct {
		name, mechanism, response string
		in                        bool
	}{
		{"plain", "PLAIN", "\x00guest\x00guest", true},
		{"authorization identity", "PLAIN", "guest\x00guest\x00guest", false},
		{"NUL in the password", "PLAIN", "\x00guest\x00gue\x00st", false},
		{"no password", "PLAIN", "\x00guest", false},
		{"nothing", "PLAIN", "", false},
		{"byte array as password", "AMQPLAIN", string(field("LOGIN", 'S', "guest")) + string(field("PASSWORD", 'x', "guest")), true},
		{"byte array as user", "AMQPLAIN", string(field("LOGIN", 'x', "guest")) + string(field("PASSWORD", 'S', "guest")), true},
		{"byte arrays alone", "AMQPLAIN", string(field("LOGIN", 'x', "guest")) + string(field("PASSWORD", 'x', "guest")), false},
		{"no login", "AMQPLAIN", string(field("PASSWORD", 'S', "guest")), false},
	} {
		for _, mode := range []PoolMode{PoolAuto, PoolSession} {
			withBroker(t, proxytest.BrokerConfig{}, func(c *Config) { c.Listeners[0].Mode = mode }, func(r *rig) {
				c := r.connect(proxytest.ClientConfig{})
				r.must(c.Send(amqp.ProtocolHeader[:]))
				_, err := c.Expect(amqp.ConnectionStart)
				r.must(err)
				r.must(c.Send(amqp.AppendStartOk(nil, proxytest.ClientProperties(""), tc.mechanism, []byte(tc.response), "en_US")))
				_, err = c.Expect(amqp.ConnectionTune)
				var said *amqp.Error
				switch {
				case tc.in && err != nil:
					t.Errorf("%s: %v, want tune", tc.name, err)
				case !tc.in && (!errors.As(err, &said) || said.Code != amqp.AccessRefused):
					t.Errorf("%s: %v, want 403", tc.name, err)
				}
				synctest.Wait()
				st := r.s.Stats()
				if !tc.in && (st.LoginsRefused != 1 || st.LoginsFailed != 0 || r.b.Counts().Logins+r.b.Counts().Refused != 0) {
					t.Errorf("%s: %d refused, %d failed, the broker was asked %d times", tc.name, st.LoginsRefused, st.LoginsFailed, r.b.Counts().Logins)
				}
				_ = c.Hangup()
			})
		}
	}
}

// A wrong password in a session of a client that cannot hear 403 is a refusal, and no outage.
func TestRefusalInASessionIsCountedAsOne(t *testing.T) {
	plain := amqp.AppendStringField(nil, "product", "old")
	withBroker(t, proxytest.BrokerConfig{}, func(c *Config) { c.Listeners[0].Mode = PoolSession }, func(r *rig) {
		_, err := r.login(proxytest.ClientConfig{Password: "wrong", Properties: plain})
		var said *amqp.Error
		if err == nil || errors.As(err, &said) {
			t.Errorf("got %v, want the end without a word", err)
		}
		c, err := r.login(proxytest.ClientConfig{Properties: plain})
		r.must(err)
		r.must(c.Close())
		r.b.SetUser("guest", "new") // one that was accepted before
		r.s.distrust(r.s.ways.Load().all)
		_, err = r.login(proxytest.ClientConfig{Properties: plain, VHost: "/"})
		if err == nil || errors.As(err, &said) {
			t.Errorf("got %v, want the end without a word", err)
		}
		synctest.Wait()
		if st := r.s.Stats(); st.LoginsRefused != 2 || st.LoginsFailed != 0 {
			t.Errorf("%d logins refused, %d failed; want 2, 0", st.LoginsRefused, st.LoginsFailed)
		}
		if l := r.log(); strings.Contains(l, "cannot be reached") || !strings.Contains(l, "client refused") {
			t.Error("the log does not tell of a refusal, or of an outage")
		}
	})
}

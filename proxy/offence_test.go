package proxy

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// offend has the script close the upstream of a client that has just sent what the broker does
// not bear, and tells what the client has heard.
func offend(r *rig, c *proxytest.Client, p *proxytest.Peer, method []byte, e *amqp.Error) {
	r.t.Helper()
	r.must(c.Send(method))
	p.OpenChannel()
	p.Next()
	p.Send(amqp.AppendClose(nil, 0, e))
	p.Expect(amqp.ConnectionCloseOk)
	p.Close()
	got, err := c.Closed(0)
	r.must(err)
	r.hears(got, e.Code, e.Text)
	_ = c.Hangup()
}

// Who closes a shared connection is served apart from then on, whatever name it comes under:
// also where the broker names no method.
func TestOffendersAreKnownByWhatTheyDid(t *testing.T) {
	for name, e := range map[string]*amqp.Error{
		"named":    {Code: amqp.NotImplemented, Text: "NOT_IMPLEMENTED - purge", Method: amqp.QueuePurge},
		"nameless": {Code: amqp.InternalError, Text: "INTERNAL_ERROR"},
	} {
		for _, mode := range []PoolMode{PoolAuto, PoolShared} {
			withScript(t, 0, func(c *Config) { c.Listeners[0].Mode = mode }, func(r *rig) {
				bystander, p := r.pair(proxytest.ClientConfig{Name: "bystander"})
				c := r.client(proxytest.ClientConfig{Name: "one"})
				offend(r, c, p, proxytest.Method(1, amqp.QueuePurge, 0, "stream", 0), e)
				_ = bystander.Hangup()
				if line := lineWith(r.log(), "for an error of a client"); !strings.Contains(line, "name=one") || !strings.Contains(line, "client=2") {
					t.Errorf("%s: the log does not name the client: %s", name, line)
				}
				_, own := r.pair(proxytest.ClientConfig{Name: "two"})
				if name := amqp.LookupString(own.Login.Properties, "connection_name"); name != "two" {
					t.Errorf("mode %s: the offender's next connection is %q, want one of its own", mode, name)
				}
				// And it is over at last.
				time.Sleep(offenceTime + time.Minute)
			})
		}
	}
}

// A client that is connected still when another of its address offends has its next channel
// on a connection of its own.
func TestOffenderThatIsConnected(t *testing.T) {
	withScript(t, 0, nil, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{Name: "one"})
		other := r.client(proxytest.ClientConfig{Name: "other"})
		offend(r, c, p, proxytest.Method(1, amqp.QueuePurge, 0, "stream", 0),
			&amqp.Error{Code: amqp.NotImplemented, Text: "NOT_IMPLEMENTED - purge", Method: amqp.QueuePurge})
		synctest.Wait()
		r.must(other.SendMethod(1, amqp.QueuePurge, 0, "stream", 0))
		own := r.sc.AcceptOpen()
		if name := amqp.LookupString(own.Login.Properties, "connection_name"); name != "other" {
			t.Errorf("the connection is %q, want one of its own", name)
		}
		_ = other.Hangup()
	})
}

// Offenders who come from many addresses are a matter of their user.
func TestOffencesOfAnAccount(t *testing.T) {
	c, u, _ := halves(t)
	c.user = "u"
	other := offender{"elsewhere", "u"}
	for i := 1; ; i++ {
		u.s.offends(c, 1)
		u.s.mu.Lock()
		_, all := u.s.offenders[offender{user: "u"}]
		_, known := u.s.offenders[other]
		u.s.mu.Unlock()
		if known || all != (i >= accountOffences) {
			t.Fatalf("after %d offences all clients of the user are known: %v, those of another address: %v", i, all, known)
		}
		if all {
			break
		}
	}
	u.s.coarse.Store(u.s.now() + int64(offenceTime) + 1)
	u.s.forgive()
	if u.s.hasOffended(c) || len(u.s.accountOffences) != 0 || len(u.s.offenders) != 0 {
		t.Error("offences are kept for ever")
	}
}

// What a client with a connection of its own does is told once, with its name.
func TestOffenceOfASession(t *testing.T) {
	withScript(t, 0, func(c *Config) { c.Listeners[0].Mode = PoolSession }, func(r *rig) {
		c, p := r.pair(proxytest.ClientConfig{Name: "culprit"})
		offend(r, c, p, proxytest.Method(1, amqp.QueuePurge, 0, "stream", 0),
			&amqp.Error{Code: amqp.NotImplemented, Text: "NOT_IMPLEMENTED - purge", Method: amqp.QueuePurge})
		synctest.Wait()
		if line := lineWith(r.log(), "for an error of a client"); !strings.Contains(line, "name=culprit") || !strings.Contains(line, "address=127.0.0.1") {
			t.Errorf("the log does not name the client: %s", line)
		}
		if line := lineWith(r.log(), "upstream lost"); strings.Contains(line, "WARN") {
			t.Errorf("two alarms for one event: %s", line)
		}
		if strings.Contains(r.log(), "hung up") {
			t.Error("the log says that the client hung up, which the proxy did")
		}
	})
}

// lineWith is the first line of a log that has the words.
func lineWith(log, words string) string {
	for line := range strings.Lines(log) {
		if strings.Contains(line, words) {
			return line
		}
	}
	return ""
}

package proxy

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

func TestVerdicts(t *testing.T) {
	const no, verdictOn, limit = 0, 1, 2
	for _, x := range []struct {
		code uint16
		text string
		want int
	}{
		{403, "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker logfile.", verdictOn},
		{403, "ACCESS_REFUSED - user 'too many requests' can only connect via localhost", verdictOn},
		{403, "", verdictOn},
		{403, "ACCESS_REFUSED - Request was denied due to api flow control: Throttling", no},
		{530, "NOT_ALLOWED - access to vhost 'limits' refused for user 'limit'", verdictOn},
		{530, "NOT_ALLOWED - vhost limit exceeded not found", verdictOn},
		{530, "NOT_ALLOWED - vhost not found", verdictOn},
		{530, "NOT_ALLOWED - 'u' doesn't have access to 'v'", verdictOn},
		{530, "NOT_ALLOWED - access to vhost '/' refused for user 'u': connection limit (5) is reached", limit},
		{530, "NOT_ALLOWED - connection refused for user 'u': user connection limit (1) is reached", limit},
		{530, "NOT_ALLOWED - connection refused for user 'u': node connection limit (1) is reached", limit},
		{530, "denied for too many requests, ReqId:5FB4C999314635F952FCBFF6", no},
		{530, "NOT_ALLOWED - something that no broker says today", no},
		{541, "INTERNAL_ERROR - access to vhost 'v' refused for user 'u': vhost 'v' is down", no},
		{320, "the broker cannot be reached", no},
	} {
		e := &amqp.Error{Code: x.code, Text: x.text}
		if got := refuses(e); got != (x.want == verdictOn) {
			t.Errorf("%d %q is a verdict: %v", x.code, x.text, got)
		}
		if got := limitReached(e); got != (x.want == limit) {
			t.Errorf("%d %q is a limit: %v", x.code, x.text, got)
		}
	}
}

// A broker that has had too many logins forgets nobody for us: what is warm stays, and the next
// login finds it.
func TestThrottleForgetsNobody(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{Flavour: proxytest.Alibaba}, nil, func(r *rig) {
		held := r.client(proxytest.ClientConfig{})
		_, err := held.DeclareQueue(1, "q", 0)
		r.must(err)
		time.Sleep(31 * time.Second) // beyond auth_ttl
		r.b.Throttle(1)
		c, err := r.login(proxytest.ClientConfig{})
		r.must(err)
		_ = c.Close()
		synctest.Wait()
		if n := r.b.Counts().Refused; n != 1 {
			t.Fatalf("%d logins were throttled, want that which verifies anew", n)
		}
		_ = held.Close()
		time.Sleep(time.Second)
		opened := r.b.Counts().Opened
		c, err = r.login(proxytest.ClientConfig{})
		r.must(err)
		_ = c.Close()
		if st := r.s.Stats(); st.ReuseHits != 2 || st.Identities != 1 || r.b.Counts().Open == 0 {
			t.Errorf("%d logins found what stood, %d identities, %d connections opened since; want 2, 1", st.ReuseHits, st.Identities, r.b.Counts().Opened-opened)
		}
	})
}

// Who is throttled at the first login hears so, in the broker's words, and gets in when it is over.
func TestThrottledFirstLogin(t *testing.T) {
	withBroker(t, proxytest.BrokerConfig{Flavour: proxytest.Alibaba}, nil, func(r *rig) {
		r.b.Throttle(1)
		_, err := r.login(proxytest.ClientConfig{})
		r.hears(err, amqp.NotAllowed, proxytest.TooManyRequests)
		c, err := r.login(proxytest.ClientConfig{})
		r.must(err)
		_ = c.Close()
	})
}

package proxy

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

func TestVerdicts(t *testing.T) {
	for _, x := range []struct {
		code uint16
		text string
		want ruling
	}{
		{403, "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker logfile.", refused},
		{403, "ACCESS_REFUSED - user 'too many requests' can only connect via localhost", refused},
		{403, "", refused},
		{403, "ACCESS_REFUSED - Request was denied due to api flow control: Throttling", throttled},
		{530, "NOT_ALLOWED - access to vhost 'limits' refused for user 'limit'", refused},
		{530, "NOT_ALLOWED - vhost limit exceeded not found", refused},
		{530, "NOT_ALLOWED - vhost not found", refused},
		{530, "NOT_ALLOWED - 'u' doesn't have access to 'v'", refused},
		{530, "NOT_ALLOWED - access to vhost '/' refused for user 'u': connection limit (5) is reached", full},
		{530, "NOT_ALLOWED - connection refused for user 'u': user connection limit (1) is reached", full},
		{530, "NOT_ALLOWED - connection refused for user 'u': node connection limit (1) is reached", full},
		{530, "denied for too many requests, ReqId:5FB4C999314635F952FCBFF6", throttled},
		{530, "NOT_ALLOWED - something that no broker says today", throttled},
		{541, "INTERNAL_ERROR - access to vhost 'v' refused for user 'u': vhost 'v' is down", away},
		{320, "the broker cannot be reached", away},
	} {
		e := &amqp.Error{Code: x.code, Text: x.text}
		if v := verdictOf(e); v.ruling != x.want || v.words != e || v.ofSecret() != (x.want == refused && x.code == 403) {
			t.Errorf("%d %q: got %v, want %v", x.code, x.text, v.ruling, x.want)
		}
	}
	for e, want := range map[*amqp.Error]ruling{nil: accepted, errGone: calledOff, errStopping: calledOff} {
		if v := verdictOf(e); v.ruling != want || v.words != e {
			t.Errorf("%v: got %v, want %v", e, v.ruling, want)
		}
	}
}

// How far a login is believed, by the verdicts on it and their age.
func TestStanding(t *testing.T) {
	const ttl = 30 * time.Second
	no := func(r ruling) verdict { return verdict{r, &amqp.Error{}} }
	at := func(d time.Duration) int64 { return int64(time.Hour + d) }
	var s standing
	for _, x := range []struct {
		name string
		do   func() bool
		at   time.Duration
		got  bool // by do
		want trust
	}{
		{"nobody has asked", func() bool { return s.recheckDue(at(0), time.Hour) }, 0, false, untrusted},
		{"a renewal of nothing", func() bool { s.renew(at(0)); return false }, 0, false, untrusted},
		{"a limit at its first login", func() bool { return s.hear(no(full), at(0)) }, 0, false, untrusted},
		{"accepted", func() bool { return s.hear(verdict{}, at(0)) }, ttl, false, fresh},
		{"not due yet", func() bool { return s.recheckDue(at(ttl), ttl) }, ttl, false, fresh},
		{"older than auth_ttl", func() bool { return s.recheckDue(at(ttl+1), ttl) }, ttl + 1, true, stale},
		{"which one verifies anew", func() bool { return s.recheckDue(at(ttl+1), ttl) }, ttl + 1, false, stale},
		{"and cannot", func() bool {
			tell, left := s.rechecked(no(away), at(ttl+5), at(ttl+1), ttl)
			return tell && left == recheckFor-1
		}, ttl + 1, true, stale},
		{"which is not tried again at once", func() bool { return s.recheckDue(at(ttl+4), ttl) }, ttl + 4, false, stale},
		{"but later", func() bool { return s.recheckDue(at(ttl+5), ttl) }, ttl + 5, true, stale},
		{"and told once", func() bool { tell, _ := s.rechecked(no(throttled), at(ttl+9), at(ttl+5), ttl); return tell }, ttl + 5, false, stale},
		{"for as long as it is served", func() bool { return false }, ttl + recheckFor, false, stale},
		{"and not longer", func() bool { return false }, ttl + recheckFor + 1, false, overdue},
		{"a throttle says nothing of it", func() bool { return s.hear(no(throttled), at(recheckFor)) }, ttl + recheckFor, false, stale},
		{"a limit does", func() bool { return s.hear(no(full), at(recheckFor)) }, ttl + recheckFor, false, fresh},
		{"and the log may tell again", func() bool {
			s.recheckDue(at(2*recheckFor), ttl)
			tell, _ := s.rechecked(no(away), 0, at(2*recheckFor), ttl)
			return tell
		}, 2 * recheckFor, true, stale},
		{"refused", func() bool { return s.hear(no(refused), at(2*recheckFor)) }, 2 * recheckFor, true, untrusted},
		{"refused again", func() bool { return s.hear(no(refused), at(2*recheckFor)) }, 2 * recheckFor, false, untrusted},
		{"accepted anew", func() bool { return s.hear(verdict{}, at(2*recheckFor)) }, 2 * recheckFor, false, fresh},
		{"another broker", func() bool { s.withdraw(); return false }, 2 * recheckFor, false, untrusted},
	} {
		if got := x.do(); got != x.got {
			t.Errorf("%s: got %v, want %v", x.name, got, x.got)
		}
		if got := s.trust(at(x.at), ttl); got != x.want {
			t.Errorf("%s: trust %v, want %v", x.name, got, x.want)
		}
	}
	if v, heard := s.latest(); s.isRechecking() || v.ruling != accepted || heard != at(2*recheckFor) {
		t.Errorf("in the end: rechecking %v, last %v, heard at %v", s.isRechecking(), v, time.Duration(heard))
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

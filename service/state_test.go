package service

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// What is wrong with the broker stands in systemd's status line, in `status` and in its JSON, and
// goes away with it.
func TestTheBrokersTroubleIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEngine()
		s, told := testSupervisor(e)
		s.state.path = stateFileIn(t.TempDir())
		result := runService(t, s)
		told.take()
		since := time.Date(2026, 11, 22, 11, 30, 9, 0, time.Local)
		for _, c := range []struct {
			is           BrokerState
			line, status string
			json         string
		}{
			{BrokerState{AwaySince: since, Reason: "connection refused", Blocked: 1},
				"STATUS=serving 0 clients over 0 upstreams; broker cannot be reached since 11:30:09: connection refused",
				"  broker     cannot be reached since 2026-11-22 11:30:09: connection refused\n", `"reason":"connection refused"`},
			{BrokerState{Blocked: 2}, "STATUS=serving 0 clients over 0 upstreams; broker blocks publishers on 2 upstreams",
				"  broker     blocks publishers on 2 upstreams\n", `"broker":{"blocked_upstreams":2}`},
			{BrokerState{Out: []string{"b:5671: connection refused", "c:5671: no answer"}},
				"STATUS=serving 0 clients over 0 upstreams; broker out of rotation: b:5671: connection refused; c:5671: no answer",
				"  broker     out of rotation: b:5671: connection refused; c:5671: no answer\n", `"out_of_rotation":["b:5671: connection refused",`},
			{BrokerState{Others: []BrokerAway{{Name: "green", Since: since, Reason: "connection refused"}}, Out: []string{"b:5671: no answer"}},
				"STATUS=serving 0 clients over 0 upstreams; broker green cannot be reached since 11:30:09: connection refused; out of rotation: b:5671: no answer",
				"  broker     green cannot be reached since 2026-11-22 11:30:09: connection refused; out of rotation: b:5671: no answer\n",
				`"others_away":[{"name":"green",`},
			{BrokerState{}, "STATUS=serving 0 clients over 0 upstreams", "  broker     no trouble seen\n", `"broker":{}`},
		} {
			e.mu.Lock()
			e.status.Broker = c.is
			e.mu.Unlock()
			time.Sleep(2 * statusInterval)
			if got := told.take(); len(got) != 1 || got[0] != c.line {
				t.Errorf("systemd heard %q, want %q", got, c.line)
			}
			st, err := ReadState(s.state.path)
			if err != nil {
				t.Fatal(err)
			}
			r := Report{Name: "x", State: StateRunning, Service: &st}
			var b strings.Builder
			r.Print(&b, since)
			if !strings.Contains(b.String(), c.status) {
				t.Errorf("status lacks %q:\n%s", c.status, b.String())
			}
			if j, err := json.Marshal(r); err != nil || !strings.Contains(string(j), c.json) {
				t.Errorf("the JSON lacks %s: %s, %v", c.json, j, err)
			}
		}
		e.mu.Lock()
		e.status.Advice, e.status.Routes = 2, []string{`vhost "shop" to green`}
		e.mu.Unlock()
		time.Sleep(2 * statusInterval)
		st, err := ReadState(s.state.path)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		Report{Name: "x", State: StateRunning, Service: &st}.Print(&b, since)
		if !strings.Contains(b.String(), "  advice     2 pieces: amqproxysvc advise\n") {
			t.Errorf("status lacks the advice:\n%s", b.String())
		}
		if !strings.Contains(b.String(), "  route      vhost \"shop\" to green\n") {
			t.Errorf("status lacks the route:\n%s", b.String())
		}
		s.requestStop()
		if err := <-result; err != nil {
			t.Errorf("stop: %v", err)
		}
	})
}

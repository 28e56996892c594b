package advice

import (
	"strings"
	"testing"
	"time"
)

var (
	shop = App{User: "app", VHost: "/", Name: "shop", Host: "192.0.2.1"}
	day  = time.Unix(1_000_000, 0)
)

// minutes has an application do the same in each of so many minutes, and gives what is said at last.
func minutes(n int, each Deeds, s Sight) []Advice {
	var h History
	h.Begin(day)
	var d Deeds
	var all []Advice
	for i := range n {
		d = Deeds{d.Logins + each.Logins, d.Reused + each.Reused, d.Sessions + each.Sessions, d.Throttled + each.Throttled, d.Opened + each.Opened,
			d.Published + each.Published, d.Big + each.Big, d.Missing + each.Missing, d.Declared + each.Declared, d.Got + each.Got, d.Empty + each.Empty}
		all = h.Look(shop, day.Add(time.Duration(i+1)*time.Minute), d, s)
	}
	return all
}

// Each rule says its piece, with its numbers, of one that does what it is about; and nothing of one that
// does nearly that.
func TestRules(t *testing.T) {
	for _, c := range []struct {
		rule     string
		does     Deeds
		is       Sight
		evidence string
		not      Deeds
		isNot    Sight
	}{
		{"missing-exchange", Deeds{Published: 100, Missing: 30}, Sight{Exchange: "NOT_FOUND - no exchange 'x' in vhost '/'"},
			"150 publishes in 5m0s were refused: NOT_FOUND - no exchange 'x' in vhost '/'", Deeds{Published: 100, Missing: 1}, Sight{}},
		{"throttled", Deeds{Throttled: 4}, Sight{}, "the broker throttled 20 logins in 5m0s", Deeds{Throttled: 1}, Sight{}},
		{"no-reuse", Deeds{Logins: 120, Reused: 12}, Sight{}, "600 logins in 5m0s, 10% of them on a connection that was there", Deeds{Logins: 120, Reused: 60}, Sight{}},
		{"no-reuse", Deeds{Logins: 120}, Sight{Rotating: true}, "600 logins in 5m0s, 0% of them on a connection that was there; its password changes at each login",
			Deeds{Logins: 50}, Sight{Rotating: true}},
		{"no-reuse", Deeds{Logins: 120, Sessions: 100}, Sight{},
			"600 logins in 5m0s, 0% of them on a connection that was there; 500 had a connection of their own from the start (pool_mode session, a token, or errors that it caused)",
			Deeds{Logins: 120, Reused: 100, Sessions: 100}, Sight{}},
		{"channel-per-publish", Deeds{Opened: 2000, Published: 2000}, Sight{}, "10000 channels for 10000 messages in 5m0s",
			Deeds{Logins: 2000, Reused: 2000, Opened: 2000, Published: 2000}, Sight{}}, // connects, each with its channel
		{"polling", Deeds{Got: 100, Empty: 90}, Sight{}, "90% of 500 basic.get in 5m0s found no message", Deeds{Got: 100, Empty: 70}, Sight{}},
		{"declare-per-publish", Deeds{Published: 600, Declared: 600}, Sight{Queue: "orders"}, `3000 declarations for 3000 messages in 5m0s; the last was of queue "orders"`,
			Deeds{Published: 600, Declared: 60}, Sight{Queue: "orders"}},
		{"no-prefetch", Deeds{}, Sight{Clients: 9, Unbounded: 5}, "5 of 9 clients consume without prefetch, with one above shared_prefetch_limit, or without acknowledging",
			Deeds{}, Sight{Clients: 9, Unbounded: 4}},
		{"connection-held-idle", Deeds{}, Sight{Clients: 100, Idle: 51}, "51 of 100 clients did nothing for 10m0s or longer", Deeds{}, Sight{Clients: 104, Idle: 52}},
		{"big-messages", Deeds{Published: 100, Big: 10}, Sight{}, "50 of 500 messages in 5m0s were larger than 1 MiB", Deeds{Published: 100, Big: 5}, Sight{}},
		{"no-heartbeat", Deeds{}, Sight{Clients: 3, Silent: 2}, "2 of 3 clients have been connected for 10m0s or longer without heartbeats", Deeds{}, Sight{Clients: 3}},
		{"no-heartbeat", Deeds{}, Sight{Clients: 3, Hasty: 1}, "1 of 3 clients have a heartbeat of less than 5 s", Deeds{}, Sight{}},
		{"unnamed", Deeds{}, Sight{Clients: 30, Unnamed: 21}, "21 of 30 clients have no connection_name", Deeds{}, Sight{Clients: 30, Unnamed: 20}},
	} {
		all := minutes(8, c.does, c.is)
		if len(all) != 1 || all[0].Rule != c.rule || all[0].Evidence != c.evidence || all[0].App != shop || all[0].Remedy == "" || all[0].Since.Before(day.Add(2*time.Minute)) {
			t.Errorf("%s: got %+v\nwant %s", c.rule, all, c.evidence)
		}
		if all := minutes(8, c.not, c.isNot); len(all) != 0 {
			t.Errorf("%s: of one who nearly does it is said %+v", c.rule, all)
		}
	}
	if all := minutes(8, Deeds{Logins: 3000, Reused: 2990, Opened: 3000, Published: 3000}, Sight{Clients: 5}); len(all) != 0 {
		t.Errorf("of one who connects, publishes and leaves, and finds a connection, is said %+v", all)
	}
}

// Channels that grow are a leak, those that are many are not.
func TestChannelLeak(t *testing.T) {
	var h History
	h.Begin(day)
	said := 0
	for i := range 12 {
		n := 20 * (i + 1)
		if i >= 9 {
			n = 180
		}
		all := h.Look(shop, day.Add(time.Duration(i+1)*time.Minute), Deeds{}, Sight{Clients: 1, MostChannels: n})
		if len(all) > 0 {
			said++
			if all[0].Rule != "channel-leak" || !strings.HasPrefix(all[0].Evidence, "one client has ") {
				t.Errorf("minute %d: %+v", i+1, all)
			}
		}
		if (len(all) > 0) != (i >= 5 && i <= 9) { // from the sixth on; and one look longer than it holds
			t.Errorf("minute %d, %d channels: %+v", i+1, n, all)
		}
	}
	if said == 0 {
		t.Error("nothing is said of a leak")
	}
}

// What holds at one look only is not said, and what does not at one look only is not taken back.
func TestSteady(t *testing.T) {
	var h History
	h.Begin(day)
	at := day
	look := func(unnamed int) int {
		at = at.Add(time.Minute)
		return len(h.Look(shop, at, Deeds{}, Sight{Clients: 50, Unnamed: unnamed}))
	}
	for i, c := range []struct{ unnamed, said int }{{30, 0}, {0, 0}, {0, 0}, {30, 0}, {30, 1}, {0, 1}, {30, 1}, {0, 1}, {0, 0}, {0, 0}, {30, 0}} {
		if said := look(c.unnamed); said != c.said {
			t.Errorf("look %d: %d pieces, want %d", i+1, said, c.said)
		}
	}
}

func TestQuiet(t *testing.T) {
	var h History
	h.Begin(day)
	for i := range 8 {
		d := Deeds{Logins: uint64(min(i, 2))}
		h.Look(shop, day.Add(time.Duration(i)*time.Minute), d, Sight{})
		if h.Quiet() != (i >= 6) {
			t.Errorf("look %d: quiet %v", i+1, h.Quiet())
		}
	}
}

func TestRulesAreNamed(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range Rules {
		if seen[r.ID] || !Known(r.ID) || r.Says == "" || r.Remedy == "" {
			t.Errorf("%+v is named twice, or says nothing", r)
		}
		seen[r.ID] = true
		switch r.Level {
		case Error, Warn, Info:
		default:
			t.Errorf("%s has level %q", r.ID, r.Level)
		}
	}
	if Known("nonsense") {
		t.Error("nonsense is a rule")
	}
}

// Whose password changes at each login hears that, and what to do about it.
func TestNoReuseOfARotatingPassword(t *testing.T) {
	for i := range Rules {
		r := &Rules[i]
		if r.ID != "no-reuse" {
			continue
		}
		evidence := r.holds(&look{Sight: Sight{Rotating: true}, d: Deeds{Logins: 291}, over: 2 * time.Minute})
		if !strings.Contains(evidence, "its password changes at each login") || !strings.Contains(r.Remedy, "password, which stays while it is valid") {
			t.Errorf("evidence %q, remedy %q", evidence, r.Remedy)
		}
	}
}

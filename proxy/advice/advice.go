// Package advice judges what applications do with their connections: rules with thresholds over the
// last five minutes, each with its evidence in numbers and what to do. It counts nothing itself and has
// no clock; it is asked once a minute.
package advice

import (
	"fmt"
	"time"
)

const (
	// window is how many looks, a minute apart, a judgement goes back.
	window = 5
	// steady is how many looks in a row a rule must hold, or not hold, before that is told: what comes and
	// goes within a minute is no habit.
	steady = 2
	// least is how many events a share is made of at least.
	least = 100
	// LongIdle is from when on a client counts as idle, or as one that stays.
	LongIdle = 10 * time.Minute
	// BigBody is from which size on a message is a big one.
	BigBody = 1 << 20
)

// App is an application: clients that are alike.
type App struct {
	User, VHost string
	// Name is the connection_name without the words that have digits, or what library it is.
	Name string
	Host string // it comes from
}

// Deeds are what its clients have done, counted from its first on.
type Deeds struct {
	Logins    uint64
	Reused    uint64 // logins that a connection to the broker which was there has served
	Sessions  uint64 // logins whose client had a connection of its own from the start
	Throttled uint64 // logins that the broker refused because there were too many
	Opened    uint64 // channels
	Published uint64 // messages
	Big       uint64 // of these, larger than BigBody
	Missing   uint64 // of these, refused because there is no such exchange
	Declared  uint64 // queues, exchanges and bindings
	Got       uint64 // basic.get
	Empty     uint64 // of these, with no message in the queue
}

// Sight is how its clients are now.
type Sight struct {
	Clients      int
	Idle         int // neither published nor got anything for LongIdle, and consume nothing
	Unbounded    int // have a connection to the broker of their own, as they consume without bound
	Silent       int // have stayed for LongIdle without heartbeats
	Hasty        int // ask for heartbeats of less than five seconds
	Unnamed      int // have no connection_name
	MostChannels int // of one client
	// Queue and Exchange are what was declared last, and what the broker said of an exchange that is missing.
	Queue, Exchange string
	Rotating        bool // the user's password changes at each login
}

// Advice is one piece.
type Advice struct {
	App
	Rule, Level      string
	Since            time.Time
	Evidence, Remedy string
}

// Levels, the gravest first.
const (
	Error = "error" // messages or logins are lost
	Warn  = "warn"  // the broker or the application pays for it
	Info  = "info"  // it could be better
)

// Rule is one thing that is judged.
type Rule struct {
	ID, Level string
	// Says is what it is about, for the documents.
	Says   string
	Remedy string
	holds  func(*look) string // the evidence; "": it does not hold
}

// look is what a rule judges.
type look struct {
	Sight
	d       Deeds // since the window's begin
	over    time.Duration
	growing int // looks in a row at which MostChannels had grown
}

func (l *look) rate(n uint64) float64 { return float64(n) / l.over.Seconds() }

// share is a part of a whole in percent.
func share(part, whole uint64) float64 {
	if whole == 0 {
		return 0
	}
	return 100 * float64(part) / float64(whole)
}

func (l *look) within() string { return "in " + l.over.Round(time.Second).String() }

// Rules are all there are, in the order in which they are told.
var Rules = []Rule{
	{"missing-exchange", Error, "messages are published to an exchange that does not exist, and are lost",
		"declare the exchange before publishing, or mend its name; with confirms or mandatory the application would hear of it",
		func(l *look) string {
			if l.d.Missing < 10 {
				return ""
			}
			return fmt.Sprintf("%d publishes %s were refused: %s", l.d.Missing, l.within(), l.Exchange)
		}},
	{"throttled", Error, "the broker refuses logins because there are too many",
		"have the application keep its connections, or its password the same so that the proxy can; raise the broker's bound",
		func(l *look) string {
			if l.d.Throttled < 10 {
				return ""
			}
			return fmt.Sprintf("the broker throttled %d logins %s", l.d.Throttled, l.within())
		}},
	{"no-reuse", Warn, "logins find no connection to the broker that is there: pooling does nothing for them",
		"let all clients of the application log in with one user, vhost and password, which stays while it is valid, and in pool_mode auto or shared",
		func(l *look) string {
			if l.d.Logins < least || l.rate(l.d.Logins) <= 1 || share(l.d.Reused, l.d.Logins) >= 50 {
				return ""
			}
			why := ""
			switch {
			case l.Rotating:
				why = "; its password changes at each login"
			case share(l.d.Sessions, l.d.Logins) >= 50:
				why = fmt.Sprintf("; %d had a connection of their own from the start (pool_mode session, a token, or errors that it caused)", l.d.Sessions)
			}
			return fmt.Sprintf("%d logins %s, %.0f%% of them on a connection that was there%s", l.d.Logins, l.within(), share(l.d.Reused, l.d.Logins), why)
		}},
	{"channel-leak", Warn, "channels are opened and not closed",
		"close each channel when its work is done, or keep one for each thread",
		func(l *look) string {
			if l.growing < window || l.MostChannels <= 50 {
				return ""
			}
			return fmt.Sprintf("one client has %d channels open, and had more each minute for %d minutes", l.MostChannels, l.growing)
		}},
	{"channel-per-publish", Warn, "a channel is opened for each message or two",
		"keep a channel open and publish on it again",
		func(l *look) string {
			opened := l.d.Opened - min(l.d.Opened, l.d.Logins) // a connect needs one
			if opened < least || l.rate(l.d.Published) <= 20 || share(opened, l.d.Published) <= 50 {
				return ""
			}
			return fmt.Sprintf("%d channels for %d messages %s", l.d.Opened, l.d.Published, l.within())
		}},
	{"polling", Warn, "queues are asked again and again that have no message",
		"consume (basic.consume with a prefetch): the broker then sends messages as they come",
		func(l *look) string {
			if l.d.Got < least || l.rate(l.d.Got) <= 1 || share(l.d.Empty, l.d.Got) <= 80 {
				return ""
			}
			return fmt.Sprintf("%.0f%% of %d basic.get %s found no message", share(l.d.Empty, l.d.Got), l.d.Got, l.within())
		}},
	{"declare-per-publish", Warn, "queues, exchanges or bindings are declared anew with every few messages",
		"declare once, at the start or at deployment, and only publish after that",
		func(l *look) string {
			if l.d.Declared < least || l.rate(l.d.Published) <= 5 || share(l.d.Declared, l.d.Published) <= 20 {
				return ""
			}
			name := ""
			if l.Queue != "" {
				name = fmt.Sprintf("; the last was of queue %.100q", l.Queue)
			}
			return fmt.Sprintf("%d declarations for %d messages %s%s", l.d.Declared, l.d.Published, l.within(), name)
		}},
	{"no-prefetch", Warn, "consumers without a bound: each has a connection to the broker of its own, and takes all that a queue holds",
		"set a prefetch (basic.qos, 100 to 300 serves most) up to shared_prefetch_limit, and acknowledge",
		func(l *look) string {
			if l.Unbounded < 5 {
				return ""
			}
			return fmt.Sprintf("%d of %d clients consume without prefetch, with one above shared_prefetch_limit, or without acknowledging", l.Unbounded, l.Clients)
		}},
	{"connection-held-idle", Warn, "clients stay connected and do nothing: they cost memory here and gain nothing from pooling",
		"close a connection that is not used for minutes: connecting anew costs less than a millisecond here",
		func(l *look) string {
			if l.Idle <= 50 || 2*l.Idle <= l.Clients {
				return ""
			}
			return fmt.Sprintf("%d of %d clients did nothing for %v or longer", l.Idle, l.Clients, LongIdle)
		}},
	{"big-messages", Warn, "many messages are larger than 1 MiB, which RabbitMQ is not made for",
		"keep large content elsewhere and send where it is",
		func(l *look) string {
			if l.d.Big < 20 || share(l.d.Big, l.d.Published) <= 5 {
				return ""
			}
			return fmt.Sprintf("%d of %d messages %s were larger than 1 MiB", l.d.Big, l.d.Published, l.within())
		}},
	{"no-heartbeat", Info, "connections that stay have no heartbeat, or one so short that a pause ends them",
		"set a heartbeat between 10 and 60 seconds: without one a dead network is not noticed, with a very short one a busy moment counts as death",
		func(l *look) string {
			switch {
			case l.Silent > 0:
				return fmt.Sprintf("%d of %d clients have been connected for %v or longer without heartbeats", l.Silent, l.Clients, LongIdle)
			case l.Hasty > 0:
				return fmt.Sprintf("%d of %d clients have a heartbeat of less than 5 s", l.Hasty, l.Clients)
			}
			return ""
		}},
	{"unnamed", Info, "many clients without a name: nobody can tell them apart",
		"set connection_name in the client-properties",
		func(l *look) string {
			if l.Unnamed <= 20 {
				return ""
			}
			return fmt.Sprintf("%d of %d clients have no connection_name", l.Unnamed, l.Clients)
		}},
}

// Known reports whether there is a rule of that name.
func Known(id string) bool {
	for i := range Rules {
		if Rules[i].ID == id {
			return true
		}
	}
	return false
}

// History is what was seen of one application. The zero value is one that has just come.
type History struct {
	begin   time.Time
	past    [window]moment // the oldest first
	n       int
	most    int // MostChannels at the last look
	growing int
	states  map[string]*state
}

type moment struct {
	at time.Time
	d  Deeds
}

// state is that of one rule.
type state struct {
	for_    int // looks in a row at which it held (above 0) or not
	told    bool
	since   time.Time
	evident string
}

// Begin is when the application came.
func (h *History) Begin(at time.Time) { h.begin = at }

// Look judges the application as it is now, and gives what is to be said of it.
func (h *History) Look(app App, at time.Time, d Deeds, s Sight) (all []Advice) {
	before := moment{at: h.begin}
	if h.n == window {
		before = h.past[0]
	}
	if s.MostChannels > h.most {
		h.growing++
	} else {
		h.growing = 0
	}
	h.most = s.MostChannels
	l := look{Sight: s, d: d.less(before.d), over: max(at.Sub(before.at), time.Second), growing: h.growing}
	if h.n == window {
		copy(h.past[:], h.past[1:])
		h.n--
	}
	h.past[h.n] = moment{at, d}
	h.n++
	if h.states == nil {
		h.states = make(map[string]*state)
	}
	for i := range Rules {
		r := &Rules[i]
		st := h.states[r.ID]
		evidence := r.holds(&l)
		if st == nil {
			if evidence == "" {
				continue
			}
			st = &state{}
			h.states[r.ID] = st
		}
		switch {
		case evidence != "":
			st.for_ = max(st.for_, 0) + 1
			st.evident = evidence
			if st.for_ >= steady && !st.told {
				st.told, st.since = true, at
			}
		default:
			st.for_ = min(st.for_, 0) - 1
			if st.for_ <= -steady {
				delete(h.states, r.ID)
				continue
			}
		}
		if st.told {
			all = append(all, Advice{App: app, Rule: r.ID, Level: r.Level, Since: st.since, Evidence: st.evident, Remedy: r.Remedy})
		}
	}
	return all
}

// Quiet reports whether nothing has been done within the window.
func (h *History) Quiet() bool { return h.n == window && h.past[0].d == h.past[window-1].d }

func (d Deeds) less(o Deeds) Deeds {
	return Deeds{
		Logins: d.Logins - o.Logins, Reused: d.Reused - o.Reused, Sessions: d.Sessions - o.Sessions, Throttled: d.Throttled - o.Throttled,
		Opened: d.Opened - o.Opened, Published: d.Published - o.Published, Big: d.Big - o.Big, Missing: d.Missing - o.Missing,
		Declared: d.Declared - o.Declared, Got: d.Got - o.Got, Empty: d.Empty - o.Empty,
	}
}

// The commands that look at a running proxy, over its admin channel.

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/amqproxysvc/amqproxysvc/proxy/admin"
	"github.com/amqproxysvc/amqproxysvc/service"
	"github.com/amqproxysvc/amqproxysvc/service/control"
	"github.com/amqproxysvc/amqproxysvc/service/terminal"
)

// adminTimeout bounds one question over the admin channel.
const adminTimeout = 10 * time.Second

// asker asks one running proxy.
type asker struct {
	name, socket string
	client       *http.Client
	again        bool // it asks again and again: the connection is kept meanwhile
}

func (a *asker) flags(cmd *cobra.Command) {
	nameFlag(cmd, &a.name)
	cmd.Flags().StringVar(&a.socket, "socket", "", "`PATH` of the proxy's admin socket or pipe, where the settings name one (admin.socket)")
	_ = cmd.MarkFlagFilename("socket", "sock")
}

// ask has the verb done, and puts the answer into it.
func (a *asker) ask(ctx context.Context, method, verb string, q url.Values, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	res, at, err := a.request(ctx, method, verb, q)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	return decodeAnswer(res.Body, at, answer)
}

func decodeAnswer(body io.Reader, at string, answer any) error {
	dec := json.NewDecoder(io.LimitReader(body, 256<<20))
	decode := func() error { return dec.Decode(answer) }
	if c, ok := answer.(*admin.Clients); ok {
		decode = func() error { return decodeClients(dec, c) }
	}
	if err := decode(); err != nil {
		return fmt.Errorf("%s: the answer cannot be read: %w", at, err)
	}
	return nil
}

// decodeClients reads clients one by one while the proxy still writes them: ten thousands held as text first take twice the time.
func decodeClients(dec *json.Decoder, c *admin.Clients) error {
	const object, list = json.Delim('{'), json.Delim('[')
	begins := func(what json.Delim) error {
		if t, err := dec.Token(); err != nil || t != what {
			return cmp.Or(err, fmt.Errorf("there is %.20v where %v is wanted", t, what))
		}
		return nil
	}
	if err := begins(object); err != nil {
		return err
	}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return err
		}
		switch name {
		case "schema":
			err = dec.Decode(&c.Schema)
		case "total":
			err = dec.Decode(&c.Total)
		case "clients":
			c.Clients = []admin.Client{}
			err = begins(list)
			for err == nil && dec.More() {
				c.Clients = append(c.Clients, admin.Client{})
				err = dec.Decode(&c.Clients[len(c.Clients)-1])
			}
			if err == nil {
				_, err = dec.Token()
			}
		default: // a later version's
			var other json.RawMessage
			err = dec.Decode(&other)
		}
		if err != nil {
			return err
		}
	}
	_, err := dec.Token()
	return err
}

// request is ask for an answer that the caller reads, and closes; at is where it comes from.
func (a *asker) request(ctx context.Context, method, verb string, q url.Values) (res *http.Response, at string, err error) {
	at = cmp.Or(a.socket, control.DefaultPath(a.name))
	if a.client == nil {
		a.client = control.Client(at)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://admin/v1/"+verb+"?"+q.Encode(), nil)
	if err != nil {
		return nil, at, err
	}
	req.Close = !a.again
	res, err = a.client.Do(req)
	if errors.Is(err, io.EOF) && (method == http.MethodGet || verb == "reload") {
		// A process that leaves the socket to the next, after an upgrade, closes whom it has not answered; twice does no harm.
		res, err = a.client.Do(req)
	}
	if err != nil {
		return nil, at, notReached(at, err)
	}
	if res.StatusCode == http.StatusOK {
		return res, at, nil
	}
	defer res.Body.Close()
	var failed admin.Failure
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&failed); err != nil || failed.Error == "" {
		return nil, at, fmt.Errorf("%s answers %s: is it a proxy of this version?", at, res.Status)
	}
	return nil, at, &refusal{res.StatusCode, failed.Error}
}

// refusal is what a proxy that was reached says to what it does not do.
type refusal struct {
	status int // of HTTP
	text   string
}

func (r *refusal) Error() string { return r.text }

// notReached says why there is no answer; the exit codes are those of status.
func notReached(at string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &service.ExitError{Code: 3, Err: fmt.Errorf("no proxy is reached at %s: the service does not run, or its admin.socket is off or elsewhere (--name, --socket)", at)}
	case errors.Is(err, fs.ErrPermission):
		return &service.ExitError{Code: service.ExitFailed, Err: fmt.Errorf("%s: permission denied: it is for root and members of the service's group", at)}
	case errors.Is(err, context.DeadlineExceeded):
		return &service.ExitError{Code: service.ExitFailed, Err: fmt.Errorf("%s: no answer within %v", at, adminTimeout)}
	}
	var op *url.Error
	if errors.As(err, &op) {
		err = op.Err
	}
	return &service.ExitError{Code: 3, Err: fmt.Errorf("no proxy answers: %w", err)}
}

// looker is a command that asks once, or again and again, and shows a table or JSON.
type looker struct {
	asker
	asJSON bool
	watch  time.Duration
}

func (l *looker) flags(cmd *cobra.Command) {
	l.asker.flags(cmd)
	cmd.Flags().BoolVar(&l.asJSON, "json", false, "Tell it as JSON, the same fields in every version of its schema")
	cmd.Flags().Var((*timeoutValue)(&l.watch), "watch", "Ask again every `TIME`, until interrupted")
	cmd.Flags().Lookup("watch").NoOptDefVal = "2s"
	cmd.Flags().Lookup("watch").DefValue = ""
}

// run asks the verb and shows each answer.
func (l *looker) run(cmd *cobra.Command, verb string, q url.Values, answer func() any, show func(w io.Writer, width int, answer any) error) error {
	out := cmd.OutOrStdout()
	width, screen := 0, false
	if f, ok := out.(*os.File); ok {
		width = terminal.Columns(f)
		screen = width > 0
	}
	ctx := cmd.Context()
	l.again = l.watch > 0
	for {
		a := answer()
		if err := l.ask(ctx, http.MethodGet, verb, q, a); err != nil {
			return err
		}
		var b bytes.Buffer
		if l.asJSON {
			text := &bytes.Buffer{}
			enc := json.NewEncoder(text)
			if l.watch == 0 {
				enc.SetIndent("", "  ")
			}
			_ = enc.Encode(a) // it has just been decoded
			b.Write(jsonFor(runtime.GOOS, text.Bytes()))
		} else if err := show(&b, width, a); err != nil {
			return err
		}
		if l.watch > 0 && screen && !l.asJSON {
			_, _ = io.WriteString(out, clearScreen)
		}
		if _, err := out.Write(b.Bytes()); err != nil {
			return err
		}
		if l.watch == 0 {
			return nil
		}
		select {
		case <-time.After(l.watch):
		case <-ctx.Done():
			return nil
		}
	}
}

// clearScreen is cursor home and erase to the end (ECMA-48).
const clearScreen = "\x1b[H\x1b[J"

// filters are flags that go into the query as they are.
func filters(cmd *cobra.Command, q url.Values, usage map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(usage)) {
		cmd.Flags().Var(queryValue{q, name}, name, usage[name])
	}
}

type queryValue struct {
	q    url.Values
	name string
}

func (v queryValue) String() string {
	if v.q == nil {
		return ""
	}
	return v.q.Get(v.name)
}
func (v queryValue) Type() string          { return strings.ToUpper(v.name) }
func (v queryValue) Set(text string) error { v.q.Set(v.name, text); return nil }

func lookCommands() []*cobra.Command {
	return []*cobra.Command{clientsCommand(), poolsCommand(), upstreamsCommand(), statsCommand(), limitsCommand(), adviseCommand(), configCommand(), topCommand(), kickCommand(), reconnectCommand(), traceCommand(),
		pauseCommand(), resumeCommand(), drainCommand()}
}

// clientSorts are the orders of clients, the most first.
var clientSorts = map[string]func(a, b admin.Client) int{
	"id":       func(a, b admin.Client) int { return cmp.Compare(a.ID, b.ID) },
	"in":       func(a, b admin.Client) int { return cmp.Compare(b.In, a.In) },
	"out":      func(a, b admin.Client) int { return cmp.Compare(b.Out, a.Out) },
	"queue":    func(a, b admin.Client) int { return cmp.Compare(b.Queue, a.Queue) },
	"channels": func(a, b admin.Client) int { return cmp.Compare(b.Channels, a.Channels) },
	"age":      func(a, b admin.Client) int { return cmp.Compare(b.Age, a.Age) },
	"idle":     func(a, b admin.Client) int { return cmp.Compare(b.Idle, a.Idle) },
	"waiting":  func(a, b admin.Client) int { return cmp.Compare(b.Waiting, a.Waiting) },
}

const sortNames = "id, in, out, queue, channels, age, idle or waiting"

func clientsCommand() *cobra.Command {
	l, q, sort := &looker{}, url.Values{}, "id"
	cmd := &cobra.Command{
		Use:   "clients",
		Short: "List the clients of the running proxy: who they are, what they do, how they are served",
		Long: `Lists the clients of the running proxy. STATE is connecting, running, waiting (for a place on a connection
to the broker, and since when), blocked (by the broker's alarm) or closing; MODE tells whether the client shares a
connection to the broker or has one of its own (session); CH are its channels; IN and OUT what came from it and went
to it, in octets; QUEUE what waits to be sent to it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			order := clientSorts[sort]
			if order == nil {
				return usageErrorOf(cmd, fmt.Errorf("--sort is %.40q, allowed is %s", sort, sortNames))
			}
			return l.run(cmd, "clients", q, func() any { return &admin.Clients{} }, func(w io.Writer, width int, a any) error {
				c := a.(*admin.Clients)
				slices.SortStableFunc(c.Clients, order)
				return showClients(w, width, c)
			})
		},
	}
	l.flags(cmd)
	filters(cmd, q, map[string]string{
		"user": "Only clients of this `USER`", "vhost": "Only clients of this `VHOST`", "address": "Only clients from this `ADDRESS`",
		"state": "Only clients in this `STATE`", "limit": "At most so many, a `NUMBER`",
	})
	cmd.Flags().StringVar(&sort, "sort", sort, "What to sort by: "+sortNames)
	return cmd
}

func showClients(w io.Writer, width int, c *admin.Clients) error {
	rows := make([][]string, 0, len(c.Clients))
	for _, c := range c.Clients {
		state := c.State
		if c.Waiting > 0 {
			state += " " + terminal.Age(duration(c.Waiting))
		}
		rows = append(rows, []string{
			strconv.FormatUint(c.ID, 10), c.User, c.VHost, c.Address, state, c.Mode, strconv.Itoa(c.Channels),
			terminal.Bytes(c.In), terminal.Bytes(c.Out), terminal.Bytes(uint64(c.Queue)), terminal.Age(duration(c.Age)), c.Name,
		})
	}
	err := terminal.Table(w, width, []terminal.Column{
		{Head: "ID", Right: true}, {Head: "USER", Least: 5}, {Head: "VHOST", Least: 5}, {Head: "ADDRESS", Least: 10}, {Head: "STATE", Least: 7},
		{Head: "MODE", Least: 4}, {Head: "CH", Right: true}, {Head: "IN", Right: true}, {Head: "OUT", Right: true}, {Head: "QUEUE", Right: true},
		{Head: "AGE", Right: true}, {Head: "NAME", Least: 4},
	}, rows)
	if err == nil && len(c.Clients) < c.Total {
		_, err = fmt.Fprintf(w, "%d of %d clients\n", len(c.Clients), c.Total)
	}
	return err
}

func poolsCommand() *cobra.Command {
	l, q := &looker{}, url.Values{}
	cmd := &cobra.Command{
		Use:   "pools",
		Short: "List the pools: who waits, and whether connections are reused",
		Long: `Lists the pools of the running proxy, one for each user, password and vhost. CL are its clients, WAIT those
that wait for a place on a connection to the broker, MAXWAIT how long the first of them has; UP are the connections to
the broker, IDLE those that carry nothing, SESS those that belong to one client; CH the channels. REUSE is the part of
the LOGINS that a connection which was there has served: near 100% the proxy does what it is for.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return l.run(cmd, "pools", q, func() any { return &admin.Pools{} }, func(w io.Writer, width int, a any) error {
				return showPools(w, width, a.(*admin.Pools).Pools)
			})
		},
	}
	l.flags(cmd)
	filters(cmd, q, map[string]string{"user": "Only pools of this `USER`", "vhost": "Only pools of this `VHOST`"})
	return cmd
}

func showPools(w io.Writer, width int, pools []admin.Pool) error {
	rows := make([][]string, 0, len(pools))
	for _, p := range pools {
		wait := "-"
		if p.Waiting > 0 {
			wait = terminal.Age(duration(p.MaxWait))
		}
		rows = append(rows, []string{
			p.User, p.VHost, strconv.Itoa(p.Clients), strconv.Itoa(p.Waiting), strconv.Itoa(p.Upstreams), strconv.Itoa(p.Idle),
			strconv.Itoa(p.Sessions), strconv.Itoa(p.Channels), wait, percent(p.Reused, p.Logins), strconv.FormatUint(p.Logins, 10),
		})
	}
	right := func(head string) terminal.Column { return terminal.Column{Head: head, Right: true} }
	return terminal.Table(w, width, []terminal.Column{
		{Head: "USER", Least: 8}, {Head: "VHOST", Least: 5}, right("CL"), right("WAIT"), right("UP"), right("IDLE"), right("SESS"), right("CH"),
		right("MAXWAIT"), right("REUSE"), right("LOGINS"),
	}, rows)
}

// percent is a part of a whole, rounded down: 100% is all of it.
func percent(part, whole uint64) string {
	if whole == 0 {
		return "-"
	}
	return strconv.FormatUint(min(part, whole)*100/whole, 10) + "%"
}

func upstreamsCommand() *cobra.Command {
	l, q := &looker{}, url.Values{}
	cmd := &cobra.Command{
		Use:   "upstreams",
		Short: "List the connections to the broker",
		Long: `Lists the connections of the running proxy to the broker. STATE is shared, session (of the client named), idle,
retired (ends with its last channel), suspect (the broker owes an answer for too long) or blocked (by its alarm); LANE
what a shared one carries; CH the channels of clients, KEPT those that wait for the next client.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return l.run(cmd, "upstreams", q, func() any { return &admin.Upstreams{} }, func(w io.Writer, width int, a any) error {
				return showUpstreams(w, width, a.(*admin.Upstreams).Upstreams)
			})
		},
	}
	l.flags(cmd)
	filters(cmd, q, map[string]string{"user": "Only those of this `USER`", "vhost": "Only those of this `VHOST`", "state": "Only those in this `STATE`"})
	return cmd
}

func showUpstreams(w io.Writer, width int, ups []admin.Upstream) error {
	rows := make([][]string, 0, len(ups))
	for _, u := range ups {
		state := u.State
		if u.Client != 0 {
			state += fmt.Sprintf(" of %d", u.Client)
		}
		rows = append(rows, []string{
			strconv.FormatUint(u.ID, 10), u.Broker, u.User, u.VHost, state, cmp.Or(u.Lane, "-"), strconv.Itoa(u.Channels), strconv.Itoa(u.Kept),
			terminal.Bytes(u.In), terminal.Bytes(u.Out), terminal.Age(duration(u.Age)), terminal.Age(duration(u.Idle)),
		})
	}
	right := func(head string) terminal.Column { return terminal.Column{Head: head, Right: true} }
	return terminal.Table(w, width, []terminal.Column{
		right("ID"), {Head: "BROKER", Least: 9}, {Head: "USER", Least: 5}, {Head: "VHOST", Least: 5}, {Head: "STATE", Least: 7}, {Head: "LANE", Least: 4},
		right("CH"), right("KEPT"), right("IN"), right("OUT"), right("AGE"), right("IDLE"),
	}, rows)
}

func statsCommand() *cobra.Command {
	l := &looker{}
	cmd := &cobra.Command{
		Use:   "stats",
		Short: "Tell the running proxy's counters that say the most",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return l.run(cmd, "stats", nil, func() any { return &admin.Stats{} }, func(w io.Writer, _ int, a any) error {
				return showStats(w, a.(*admin.Stats))
			})
		},
	}
	l.flags(cmd)
	return cmd
}

func showStats(w io.Writer, s *admin.Stats) error {
	broker := "up"
	switch {
	case !s.BrokerUp:
		broker = "cannot be reached: " + terminal.Printable(s.BrokerReason)
	case s.UpstreamsBlocked > 0:
		broker = "blocks publishers on " + service.Plural(s.UpstreamsBlocked, "upstream")
	}
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s %s\n", name, fmt.Sprintf(format, args...))
	}
	line("version", "%s, up %s", s.Version, terminal.Age(duration(s.Uptime)))
	line("broker", "%s", broker)
	for _, b := range s.Brokers {
		if !b.Up {
			line("broker", "%s cannot be reached for %s: %s", terminal.Printable(b.Name), terminal.Age(duration(b.Away)), terminal.Printable(b.Reason))
		}
	}
	for _, t := range s.Targets {
		if len(s.Targets) == 1 {
			break // the line above tells of it
		}
		state := "up"
		if !t.Up {
			state = "out for " + terminal.Age(duration(t.Out)) + ": " + terminal.Printable(t.Reason)
		}
		line(cmp.Or(terminal.Printable(t.Broker), "target"), "%s, %s, %s; %d connects, %d failed", t.Address, state, service.Plural(t.Upstreams, "upstream"), t.Connects, t.Failures)
	}
	for _, r := range s.Routes {
		line("route", "%s", r)
	}
	line("clients", "%d now, %d waiting (the longest %s), %d since the start", s.Clients, s.Waiting, terminal.Age(duration(s.LongestWait)), s.ClientsTotal)
	if u := s.BeforeUpgrade; u != nil {
		text := fmt.Sprintf("process %d, of before it, serves %s more to the end", u.PID, service.Plural(u.Clients, "client"))
		if !u.Until.IsZero() {
			text += ", at most for " + terminal.Age(time.Until(u.Until))
		}
		line("upgrade", "%s", text)
	}
	line("logins", "%d, %s on a connection that was there; %d refused, %d failed", s.LoginsOK, percent(s.Reused, s.LoginsOK), s.LoginsRefused, s.LoginsFailed)
	if s.Reused > 0 {
		waiting := ""
		if s.Connects > 0 {
			each := s.ConnectSeconds / float64(s.Connects)
			waiting = fmt.Sprintf(", %s of waiting at %.1f ms each", terminal.Age(duration(each*float64(s.Reused))), 1000*each)
		}
		line("saved", "%s%s; about %s of the broker's CPU", service.Plural(int(min(s.Reused, math.MaxInt)), "connection"), waiting, terminal.Age(duration(s.BrokerCPUSaved)))
	}
	for _, p := range s.Pauses {
		what, left := "all", ""
		if !p.All {
			what = "vhost " + terminal.Printable(p.VHost)
		}
		if p.Left > 0 {
			left = ", ends in " + terminal.Age(duration(p.Left))
		}
		line("paused", "%s, for %s%s; %s", what, terminal.Age(duration(p.For)), left, service.Plural(s.PausedClients, "client")+" waiting for it")
	}
	line("upstreams", "%d now, %d since the start, %d lost", s.Upstreams, s.UpstreamsTotal, s.UpstreamsLost)
	line("channels", "%d now; at the broker %d opened, %d times one that was there, %d kept", s.Channels, s.ChannelsOpened, s.ChannelsReused, s.Kept)
	line("octets", "clients %s in, %s out; broker %s in, %s out", terminal.Bytes(s.FromClients), terminal.Bytes(s.ToClients), terminal.Bytes(s.FromUpstreams), terminal.Bytes(s.ToUpstreams))
	_, err := io.WriteString(w, b.String())
	return err
}

func configCommand() *cobra.Command {
	l, all := &looker{}, false
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Tell the settings in force in the running proxy, and where each comes from",
		Long: `Tells the settings in force in the running proxy that differ from the defaults, and where each comes from:
FILE:LINE, the environment or the command line. With --all those at their defaults too.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return l.run(cmd, "config", nil, func() any { return &admin.Config{} }, func(w io.Writer, width int, a any) error {
				return settingsTable(w, width, a.(*admin.Config).Settings, all)
			})
		},
	}
	l.flags(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "Those at their defaults too")
	return cmd
}

func settingsTable(w io.Writer, width int, settings []admin.Setting, all bool) error {
	var rows [][]string
	for _, s := range settings {
		if all || s.Origin != "default" {
			rows = append(rows, []string{s.Name, s.Value, s.Origin})
		}
	}
	if len(rows) == 0 {
		_, err := fmt.Fprintln(w, "every setting is at its default; --all shows them")
		return err
	}
	return terminal.Table(w, width, []terminal.Column{{Head: "SETTING"}, {Head: "VALUE", Least: 10}, {Head: "FROM", Least: 10}}, rows)
}

func kickCommand() *cobra.Command {
	a, q := &asker{}, url.Values{}
	cmd := &cobra.Command{
		Use:   "kick ID",
		Short: "Close a client: it hears 320 \"closed by the administrator\"",
		Long:  "Closes the client of that ID (see clients), or with --user all of one user. They hear 320 CONNECTION_FORCED, and may come again.",
		Args:  maximumArgs(1, "the client's ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == q.Has("user") {
				return usageErrorOf(cmd, errors.New("needed is a client's ID, or --user"))
			}
			if len(args) == 1 {
				q.Set("client", args[0])
			}
			return act(cmd, a, "kick", q, "client")
		},
	}
	a.flags(cmd)
	filters(cmd, q, map[string]string{"user": "All clients of this `USER`"})
	return cmd
}

func reconnectCommand() *cobra.Command {
	a, q := &asker{}, url.Values{}
	balance := false
	cmd := &cobra.Command{
		Use:   "reconnect [ID]",
		Short: "Have connections to the broker replaced; no client is cut",
		Long: `Retires the connection to the broker of that ID (see upstreams), those of one user, or all: they take no new
channels and end with their last one, while what comes opens new ones. With --balance those above a broker's share, of
several brokers; where they are asked in an order all but those at the first.`,
		Args: maximumArgs(1, "the connection's ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if balance {
				q.Set("balance", "true")
			}
			if len(args) == 1 {
				q.Set("upstream", args[0])
			}
			return act(cmd, a, "reconnect", q, "upstream")
		},
	}
	a.flags(cmd)
	filters(cmd, q, map[string]string{"user": "Those of this `USER`"})
	cmd.Flags().BoolVar(&balance, "balance", false, "Those above a broker's share, of several brokers")
	return cmd
}

// act has something done and says on how many it fell.
func act(cmd *cobra.Command, a *asker, verb string, q url.Values, what string) error {
	var done admin.Done
	if err := a.ask(cmd.Context(), http.MethodPost, verb, q, &done); err != nil {
		return err
	}
	did := map[string]string{"kick": "closed", "reconnect": "retired"}[verb]
	say(cmd.OutOrStdout(), "%s %s", service.Plural(done.Count, what), did)
	return nil
}

func duration(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }

// The top command: who does how much, redrawn every two seconds.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/amqproxysvc/amqproxysvc/proxy/admin"
	"github.com/amqproxysvc/amqproxysvc/service/terminal"
)

// topEvery is how often top asks.
const topEvery = 2 * time.Second

func topCommand() *cobra.Command {
	a := &asker{again: true}
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show pools and clients by what they do, redrawn until q is pressed",
		Long: `Shows the running proxy's counts, its pools and its clients with what each sends and gets a second, anew every
two seconds. Keys: s sorts by the next column, q ends.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !term.IsTerminal(int(os.Stdout.Fd())) || !term.IsTerminal(int(os.Stdin.Fd())) {
				return usageErrorOf(cmd, errors.New("top needs a terminal; clients, pools and stats have --json and --watch"))
			}
			return runTop(cmd.Context(), a)
		},
	}
	a.flags(cmd)
	return cmd
}

// sample is what top asks for in one go.
type sample struct {
	at      time.Time
	stats   admin.Stats
	pools   admin.Pools
	clients admin.Clients
}

func (a *asker) sample(ctx context.Context) (*sample, error) {
	s := &sample{at: time.Now()}
	err := a.ask(ctx, http.MethodGet, "stats", nil, &s.stats)
	if err == nil {
		err = a.ask(ctx, http.MethodGet, "pools", nil, &s.pools)
	}
	if err == nil {
		err = a.ask(ctx, http.MethodGet, "clients", url.Values{}, &s.clients)
	}
	return s, err
}

func runTop(ctx context.Context, a *asker) error {
	before, err := a.sample(ctx)
	if err != nil {
		return err
	}
	in := int(os.Stdin.Fd())
	was, err := term.MakeRaw(in)
	if err != nil {
		return err
	}
	defer func() { _ = term.Restore(in, was) }()
	undo := drawable(os.Stdout)
	defer undo()
	fmt.Fprint(os.Stdout, "\x1b[?1049h\x1b[?25l")       // the other screen, no cursor
	defer fmt.Fprint(os.Stdout, "\x1b[?25h\x1b[?1049l") // and back
	keys := make(chan byte)
	go func() { // ends with the process: a read of a terminal cannot be taken back
		for b := make([]byte, 1); ; {
			if _, err := os.Stdin.Read(b); err != nil {
				close(keys)
				return
			}
			keys <- b[0]
		}
	}()
	order := 0
	now := before
	tick := time.NewTicker(topEvery)
	defer tick.Stop()
	for {
		width, height, err := term.GetSize(int(os.Stdout.Fd()))
		if err != nil {
			width, height = 80, 24
		}
		draw(os.Stdout, topScreen(now, before, order, width, height))
		select {
		case <-ctx.Done():
			return nil
		case key, open := <-keys:
			switch {
			case !open || key == 'q' || key == 3 || key == 27: // q, Ctrl-C, Esc
				return nil
			case key == 's':
				order = (order + 1) % len(topOrders)
			}
		case <-tick.C:
			next, err := a.sample(ctx)
			if err != nil {
				return err
			}
			before, now = now, next
		}
	}
}

// draw writes a screen over the one before, without clearing it first, which would flicker.
func draw(f *os.File, lines []string) {
	var b strings.Builder
	b.WriteString("\x1b[H")
	for i, line := range lines {
		b.WriteString(line + "\x1b[K")
		if i < len(lines)-1 {
			b.WriteString("\r\n")
		}
	}
	b.WriteString("\x1b[J")
	_, _ = f.WriteString(b.String())
}

// busy is a client with what it does a second.
type busy struct {
	admin.Client
	in, out float64
}

var topOrders = []struct {
	name string
	less func(a, b busy) int
}{
	{"in+out", func(a, b busy) int { return cmp.Compare(b.in+b.out, a.in+a.out) }},
	{"in", func(a, b busy) int { return cmp.Compare(b.in, a.in) }},
	{"out", func(a, b busy) int { return cmp.Compare(b.out, a.out) }},
	{"queue", func(a, b busy) int { return cmp.Compare(b.Queue, a.Queue) }},
	{"channels", func(a, b busy) int { return cmp.Compare(b.Channels, a.Channels) }},
	{"waiting", func(a, b busy) int { return cmp.Compare(b.Waiting, a.Waiting) }},
	{"age", func(a, b busy) int { return cmp.Compare(b.Age, a.Age) }},
}

// topScreen is the lines of one screen.
func topScreen(now, before *sample, order, width, height int) []string {
	s, old := &now.stats, &before.stats
	took := now.at.Sub(before.at).Seconds()
	rate := func(n, o uint64) float64 {
		if took <= 0 || n < o {
			return 0
		}
		return float64(n-o) / took
	}
	broker := "broker up"
	switch {
	case !s.BrokerUp:
		broker = "BROKER AWAY: " + terminal.Printable(s.BrokerReason)
	case s.UpstreamsBlocked > 0:
		broker = fmt.Sprintf("BROKER BLOCKS %d UPSTREAMS", s.UpstreamsBlocked)
	}
	for _, b := range s.Brokers {
		if !b.Up {
			broker += ", BROKER " + terminal.Printable(b.Name) + " AWAY: " + terminal.Printable(b.Reason)
		}
	}
	if len(s.Pauses) > 0 {
		broker += ", PAUSED"
	}
	lines := []string{
		fmt.Sprintf("amqproxysvc %s, up %s, %s", s.Version, terminal.Age(duration(s.Uptime)), broker),
		fmt.Sprintf("clients %d (%d wait), upstreams %d, channels %d; logins %.0f/s, %s reused",
			s.Clients, s.Waiting, s.Upstreams, s.Channels, rate(s.LoginsOK, old.LoginsOK), percent(s.Reused-old.Reused, s.LoginsOK-old.LoginsOK)),
		fmt.Sprintf("from clients %s/s, to clients %s/s; channels %.0f/s opened, %.0f/s reused",
			terminal.Bytes(uint64(rate(s.FromClients, old.FromClients))), terminal.Bytes(uint64(rate(s.ToClients, old.ToClients))),
			rate(s.ChannelsOpened, old.ChannelsOpened), rate(s.ChannelsReused, old.ChannelsReused)),
		"",
	}
	add := func(text string, most int) {
		rows := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		lines = append(lines, rows[:min(len(rows), most)]...)
	}
	var b strings.Builder
	_ = showPools(&b, width-1, now.pools.Pools[:min(len(now.pools.Pools), 50)])
	add(b.String(), 1+max(1, (height-8)/3))
	lines = append(lines, "")
	b.Reset()
	_ = terminal.Table(&b, width-1, []terminal.Column{
		{Head: "ID", Right: true}, {Head: "USER", Least: 5}, {Head: "VHOST", Least: 5}, {Head: "ADDRESS", Least: 10}, {Head: "STATE", Least: 7},
		{Head: "CH", Right: true}, {Head: "IN/s", Right: true}, {Head: "OUT/s", Right: true}, {Head: "QUEUE", Right: true}, {Head: "AGE", Right: true},
		{Head: "NAME", Least: 4},
	}, busyRows(now, before, order, rate))
	add(b.String(), max(2, height-len(lines)-1))
	for i, line := range lines {
		lines[i] = terminal.Cut(line, width-1)
	}
	lines = lines[:min(len(lines), height-1)]
	return append(lines, terminal.Cut(fmt.Sprintf("sorted by %s (s: next, q: quit)", topOrders[order].name), width-1))
}

func busyRows(now, before *sample, order int, rate func(n, o uint64) float64) (rows [][]string) {
	old := make(map[uint64]admin.Client, len(before.clients.Clients))
	for _, c := range before.clients.Clients {
		old[c.ID] = c
	}
	all := make([]busy, 0, len(now.clients.Clients))
	for _, c := range now.clients.Clients {
		o := old[c.ID]
		all = append(all, busy{c, rate(c.In, o.In), rate(c.Out, o.Out)})
	}
	slices.SortStableFunc(all, topOrders[order].less)
	for _, c := range all[:min(len(all), 200)] {
		state := c.State
		if c.Waiting > 0 {
			state += " " + terminal.Age(duration(c.Waiting))
		}
		rows = append(rows, []string{
			strconv.FormatUint(c.ID, 10), c.User, c.VHost, c.Address, state, strconv.Itoa(c.Channels),
			terminal.Bytes(uint64(c.in)), terminal.Bytes(uint64(c.out)), terminal.Bytes(uint64(c.Queue)), terminal.Age(duration(c.Age)), c.Name,
		})
	}
	return rows
}

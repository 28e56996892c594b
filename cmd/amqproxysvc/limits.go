// The limits command: who is at which limit, and what that did.

package main

import (
	"fmt"
	"io"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/amqproxysvc/amqproxysvc/proxy/admin"
	"github.com/amqproxysvc/amqproxysvc/service"
	"github.com/amqproxysvc/amqproxysvc/service/terminal"
)

func limitsCommand() *cobra.Command {
	l, q := &looker{}, url.Values{}
	cmd := &cobra.Command{
		Use:   "limits",
		Short: "List who is at a limit: what each uses, what was refused or had to wait",
		Long: `Lists the users, vhosts, addresses and listeners that a [[limit]] of the settings is for, those that were hit most
first. Of CLIENTS, UPS (connections to the broker), LOGINS/S and IN/S (octets from clients in the last second) each is told with its
bound, where there is one; WAIT are the logins that wait for their turn; REFUSED and DELAYED what the limit did, ALARM how often one with
action = "alarm" would have. Who has not been there for ten minutes is forgotten; the sums of all are in /metrics.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return l.run(cmd, "limits", q, func() any { return &admin.Limits{} }, func(w io.Writer, width int, a any) error {
				return showLimits(w, width, a.(*admin.Limits))
			})
		},
	}
	l.flags(cmd)
	filters(cmd, q, map[string]string{"by": "Only limits by `WHAT`: user, vhost, address or listener", "key": "Only this `USER`, vhost, address or listener",
		"limit": "At most so many, a `NUMBER` (100 by default)"})
	return cmd
}

func showLimits(w io.Writer, width int, a *admin.Limits) error {
	if len(a.Keys) == 0 {
		text := "no limit is set: see [[limit]] in the settings"
		if len(a.Limits) > 0 {
			text = service.Plural(len(a.Limits), "limit") + " set, and nobody is at one"
		}
		_, err := fmt.Fprintln(w, text)
		return err
	}
	of := func(n, bound string, bounded bool) string {
		if !bounded {
			return n
		}
		return n + "/" + bound
	}
	rows := make([][]string, 0, len(a.Keys))
	for _, k := range a.Keys {
		l := &k.Limit
		row := []string{
			l.By, k.Key, of(strconv.Itoa(k.Clients), strconv.Itoa(l.MaxClients), l.MaxClients > 0), "-",
			of(strconv.FormatInt(k.Logins, 10), strconv.FormatFloat(l.ConnectRate, 'g', 3, 64), l.ConnectRate > 0), "-", strconv.Itoa(k.Waiting),
			strconv.FormatUint(k.Refused, 10), strconv.FormatUint(k.Delayed, 10), "-",
		}
		if l.By == "user" || l.By == "vhost" {
			row[3] = of(strconv.Itoa(k.Upstreams), strconv.Itoa(l.MaxUpstreams), l.MaxUpstreams > 0)
		}
		if l.DataRate > 0 {
			row[5] = terminal.Bytes(uint64(k.Bytes)) + "/" + terminal.Bytes(uint64(l.DataRate))
		}
		if l.Action == "alarm" {
			row[7], row[8], row[9] = "-", "-", strconv.FormatUint(k.Alarms, 10)
		}
		rows = append(rows, row)
	}
	right := func(head string) terminal.Column { return terminal.Column{Head: head, Right: true, Least: len(head)} }
	err := terminal.Table(w, width, []terminal.Column{
		{Head: "BY", Least: 4}, {Head: "KEY", Least: 6}, right("CLIENTS"), right("UPS"), right("LOGINS/S"), right("IN/S"), right("WAIT"),
		right("REFUSED"), right("DELAYED"), right("ALARM"),
	}, rows)
	if err == nil && len(a.Keys) < a.Total {
		_, err = fmt.Fprintf(w, "%d of %d\n", len(a.Keys), a.Total)
	}
	return err
}

// The advise command: what applications could do better.

package main

import (
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/amqproxysvc/amqproxysvc/proxy/admin"
	"github.com/amqproxysvc/amqproxysvc/service/terminal"
)

func adviseCommand() *cobra.Command {
	l, q := &looker{}, url.Values{}
	cmd := &cobra.Command{
		Use:   "advise",
		Short: "Tell what applications do that costs them or the broker, and what to do",
		Long: `Tells, of each application, what it does that costs it or the broker, in the numbers of the last five minutes, and
what to do. Applications are told apart by user, vhost, connection_name without its words that have digits (or the library) and the host
they come from. What holds for two minutes is told, the gravest first. advice.mute in the settings silences a rule.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return l.run(cmd, "advise", q, func() any { return &admin.Advise{} }, func(w io.Writer, width int, a any) error {
				return showAdvice(w, width, a.(*admin.Advise).Advice)
			})
		},
	}
	l.flags(cmd)
	filters(cmd, q, map[string]string{"user": "Only of this `USER`", "vhost": "Only of this `VHOST`", "rule": "Only this `RULE`"})
	return cmd
}

func showAdvice(w io.Writer, width int, all []admin.Advice) error {
	if width == 0 {
		width = 80
	}
	var b strings.Builder
	for i, a := range all {
		if i > 0 {
			b.WriteByte('\n')
		}
		who := "user " + a.User + ", vhost " + a.VHost
		if a.Name != "" {
			who += ", " + a.Name
		}
		if a.Address != "" {
			who += ", from " + a.Address
		}
		b.WriteString(terminal.Cut(fmt.Sprintf("%s (%s, for %s): %s", a.Rule, a.Level, terminal.Age(duration(a.Since)), terminal.Printable(who)), width) + "\n")
		b.WriteString(terminal.Wrap(terminal.Printable(a.Evidence)+".", width-1, "  "))
		b.WriteString(terminal.Wrap("Do: "+a.Remedy+".", width-1, "  "))
	}
	if len(all) == 0 {
		b.WriteString("nothing to say: see advice.mute, and that an application is judged by its last five minutes\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

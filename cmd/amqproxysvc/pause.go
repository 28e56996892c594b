// The commands that have clients wait: pause, resume, drain.

package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/amqproxysvc/amqproxysvc/proxy/admin"
	"github.com/amqproxysvc/amqproxysvc/service"
)

// drainLook is how often drain asks whether anything is left.
const drainLook = 500 * time.Millisecond

// pauser is what pause and drain were asked for.
type pauser struct {
	asker
	most time.Duration
}

func (p *pauser) flags(cmd *cobra.Command, q url.Values) {
	p.asker.flags(cmd)
	filters(cmd, q, map[string]string{"vhost": "This `VHOST` alone"})
	cmd.Flags().Var((*timeoutValue)(&p.most), "max", "End the pause by itself after this `TIME`")
	cmd.Flags().Lookup("max").DefValue = ""
}

// pause begins one.
func (p *pauser) pause(cmd *cobra.Command, q url.Values) error {
	if p.most > 0 {
		q.Set("max", strconv.Itoa(int(max(p.most, time.Second)/time.Second)))
	}
	var done admin.Done
	if err := p.ask(cmd.Context(), http.MethodPost, "pause", q, &done); err != nil {
		return err
	}
	ends := "end with their last channel"
	if done.Count == 1 {
		ends = "ends with its last channel"
	}
	say(cmd.OutOrStdout(), "paused; %s %s", service.Plural(done.Count, "upstream"), ends)
	return nil
}

func pauseCommand() *cobra.Command {
	p, q := &pauser{}, url.Values{}
	cmd := &cobra.Command{
		Use:   "pause",
		Short: "Have logins and the first frames of channels wait, while the broker is restarted, say",
		Long: `Has logins, and what clients do first on a channel, wait until resume, or for --max at most. Nobody is cut:
what is at the broker goes on, connections to the broker take no new channels and end with their last. max_handshakes
bounds those who wait to log in.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.pause(cmd, q) },
	}
	p.flags(cmd, q)
	return cmd
}

func resumeCommand() *cobra.Command {
	a, q := &asker{}, url.Values{}
	cmd := &cobra.Command{
		Use:   "resume",
		Short: "End a pause: who waits goes on",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var done admin.Done
			if err := a.ask(cmd.Context(), http.MethodPost, "resume", q, &done); err != nil {
				return err
			}
			say(cmd.OutOrStdout(), "resumed")
			return nil
		},
	}
	a.flags(cmd)
	filters(cmd, q, map[string]string{"vhost": "The pause of this `VHOST`"})
	return cmd
}

func drainCommand() *cobra.Command {
	p, q := &pauser{}, url.Values{}
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "drain",
		Short: "Pause, and wait until no channel is at the broker any more",
		Long: `Pauses (see pause) and returns when no client has a channel at the broker any more; then it can be restarted and
nobody notices but by waiting. Clients that keep a channel do not end by themselves: amqproxysvc clients shows them,
kick closes them. The pause goes on until resume.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := p.pause(cmd, q); err != nil {
				return err
			}
			begun, said := time.Now(), -1
			for {
				var pools admin.Pools
				if err := p.ask(cmd.Context(), http.MethodGet, "pools", vhostOf(q), &pools); err != nil {
					return err
				}
				left := 0
				for _, one := range pools.Pools {
					left += one.Channels
				}
				switch {
				case left == 0:
					say(cmd.OutOrStdout(), "no channel is at the broker any more")
					return nil
				case time.Since(begun) > timeout:
					return &service.ExitError{Code: service.ExitFailed, Err: fmt.Errorf("%s at the broker after %v: see amqproxysvc clients; the pause goes on until amqproxysvc resume", are(left), timeout)}
				case left != said:
					say(cmd.OutOrStdout(), "%s at the broker", are(left))
					said = left
				}
				select {
				case <-time.After(drainLook):
				case <-cmd.Context().Done():
					return errors.New("interrupted; the pause goes on until amqproxysvc resume")
				}
			}
		},
	}
	p.flags(cmd, q)
	timeoutFlag(cmd, &timeout, "How long to wait for it")
	return cmd
}

func are(n int) string {
	if n == 1 {
		return "1 channel is"
	}
	return fmt.Sprintf("%d channels are", n)
}

// vhostOf is the part of the query that pools takes.
func vhostOf(q url.Values) url.Values {
	if !q.Has("vhost") {
		return nil
	}
	return url.Values{"vhost": q["vhost"]}
}

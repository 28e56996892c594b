// The commands reload and status: they ask the running process itself, over its admin channel,
// and where it does not answer there the service manager and the state file.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/amqproxysvc/amqproxysvc/proxy/admin"
	"github.com/amqproxysvc/amqproxysvc/service"
	"github.com/amqproxysvc/amqproxysvc/service/control"
)

func reloadCommand() *cobra.Command {
	a := &asker{}
	var pid pidValue
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Have the running service read its configuration anew; clients stay connected",
		Long: `Has the running service read its configuration anew, and tells which settings are others than before, and which
of them take effect only after a restart. When something is wrong with the configuration, that is told and nothing has
changed. The process is asked over its admin channel; where that cannot be, the service manager is.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			named := a.socket != "" // then nothing else will do
			if pid != 0 && !named {
				a.socket = control.ManagedPath(a.name)
			}
			if pid == 0 || a.socket != "" {
				done, err := askReload(ctx, a, int(pid))
				if err == nil {
					if pid != 0 { // in the service's log, to which this output goes, they are already
						done.Warnings = nil
					}
					printReloaded(cmd, done)
					return nil
				}
				if named || !otherWay(ctx, err) {
					return err
				}
			}
			if pid != 0 {
				r, err := service.ReloadProcess(ctx, int(pid), "")
				r.Warnings = nil // as above
				printReloaded(cmd, reloadOf(r))
				return err
			}
			if err := service.Control(ctx, a.name, "reload"); err != nil {
				return notInstalled(err)
			}
			if r, err := service.Query(ctx, a.name); err == nil && r.Service != nil && r.Service.Reload != nil {
				printReloaded(cmd, reloadOf(*r.Service.Reload))
			}
			return nil
		},
	}
	a.flags(cmd)
	cmd.Flags().Var(&pid, "pid", "Reload the process `PID` itself, as systemd's ExecReload does")
	timeoutFlag(cmd, &timeout, "How long to wait for the outcome")
	return cmd
}

// askReload asks the process itself, for as long as ctx lasts.
func askReload(ctx context.Context, a *asker, pid int) (done admin.Reload, err error) {
	q := url.Values{}
	if pid != 0 {
		q.Set("pid", strconv.Itoa(pid))
	}
	res, at, err := a.requestLast(ctx, "reload", q)
	switch {
	case ctx.Err() != nil:
		return done, errors.New("the reload is not done yet, see the service's log for its outcome")
	case err != nil:
		return done, err
	}
	defer res.Body.Close()
	return done, decodeAnswer(res.Body, at, &done)
}

// requestLast asks again where another process of the program has taken over meanwhile.
func (a *asker) requestLast(ctx context.Context, verb string, q url.Values) (res *http.Response, at string, err error) {
	for {
		res, at, err = a.request(ctx, http.MethodPost, verb, q)
		if r := (*refusal)(nil); !errors.As(err, &r) || r.status != http.StatusConflict {
			return res, at, err
		}
		q.Del("pid")
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return nil, at, err
		}
	}
}

// otherWay reports whether the service manager may succeed where the admin channel did not: there is none, it
// is not for this user, or it is an earlier version's. A process that has answered has the last word.
func otherWay(ctx context.Context, err error) bool {
	if r := (*refusal)(nil); errors.As(err, &r) {
		return r.status == http.StatusNotFound || r.status == http.StatusForbidden
	}
	return ctx.Err() == nil
}

func reloadOf(r service.ReloadState) admin.Reload {
	return admin.Reload{Changed: r.Changed, NeedRestart: r.NeedRestart, Warnings: r.Warnings, TakenOver: r.TakenOver, NoUpgrade: r.NoUpgrade}
}

func printReloaded(cmd *cobra.Command, r admin.Reload) {
	for _, w := range r.Warnings {
		say(cmd.ErrOrStderr(), "warning: %s", w)
	}
	for _, setting := range r.Changed {
		if !slices.Contains(r.NeedRestart, setting) {
			say(cmd.OutOrStdout(), "%s was changed, and holds from now on", setting)
		}
	}
	for _, setting := range r.NeedRestart {
		say(cmd.OutOrStdout(), "%s was changed, but takes effect only after a restart", setting)
	}
	switch {
	case r.TakenOver != 0:
		say(cmd.OutOrStdout(), "the program on the disk is another one than ran: its process %d has taken over, the one before serves its clients to their end", r.TakenOver)
	case r.NoUpgrade != "":
		say(cmd.OutOrStdout(), "the program on the disk is another one than runs, and did not take over: %s", r.NoUpgrade)
	}
}

func statusCommand() *cobra.Command {
	a := &asker{}
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell whether the service runs, and what it carries",
		Long: `Tells whether the service runs, and what it carries. The exit code is 0 when it runs, 3 when it does not, 4 when
it is not installed. With --socket it is about the process that answers there, whoever started it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
			defer cancel()
			r, err := reportOf(ctx, a)
			if err != nil {
				return err
			}
			if asJSON {
				text, err := json.MarshalIndent(r, "", "  ")
				if err != nil {
					return err
				}
				say(cmd.OutOrStdout(), "%s", jsonFor(runtime.GOOS, text))
			} else {
				r.Print(cmd.OutOrStdout(), time.Now())
			}
			if code := r.LSBCode(); code != 0 {
				return &service.ExitError{Code: code}
			}
			return nil
		},
	}
	a.flags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "Tell it as JSON")
	return cmd
}

// reportOf has the service manager's word, and the process's own, or where there is no manager its alone.
func reportOf(ctx context.Context, a *asker) (service.Report, error) {
	if a.socket != "" {
		st, err := askState(ctx, a)
		return service.ReportOfProcess(st), err
	}
	r, err := service.Query(ctx, a.name)
	var usage *service.ExitError
	if errors.As(err, &usage) {
		return r, err
	}
	if err == nil && r.PID == 0 {
		return r, nil
	}
	quick, cancel := context.WithTimeout(ctx, 3*time.Second) // the state file tells nearly as much
	defer cancel()
	st, asked := askState(quick, a)
	switch {
	case asked == nil && err != nil:
		return service.ReportOfProcess(st), nil
	case err != nil:
		return r, &service.ExitError{Code: 4, Err: err}
	case asked == nil && st.PID == r.PID:
		r.Service = &st
	}
	return r, nil
}

func askState(ctx context.Context, a *asker) (service.State, error) {
	var answer struct {
		State service.State `json:"state"`
	}
	err := a.ask(ctx, http.MethodGet, "status", nil, &answer)
	return answer.State, err
}

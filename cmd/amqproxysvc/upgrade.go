// Upgrade: the engine's part in handing its sockets to a new process, and the command.

package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/amqproxysvc/amqproxysvc/proxy/admin"
	"github.com/amqproxysvc/amqproxysvc/service"
)

// exitRestart is the exit code of an upgrade where only a restart can be: the LSB's for what is not there.
const exitRestart = 3

// What sockets are for, before where they are.
const (
	httpAt  = "http "
	adminAt = "admin "
)

var _ service.Upgradable = (*engine)(nil)

// handover is the sockets beside the listeners'.
type handover struct {
	from map[string]net.Listener // the process before had, and nobody has taken yet
	own  map[string]net.Listener
	left bool // they are another process's
}

// taken is one of the process before, nil when it had none.
func (h *handover) taken(name string) net.Listener {
	ln := h.from[name]
	delete(h.from, name)
	return ln
}

func (h *handover) bound(name string, ln net.Listener) {
	if h.own == nil {
		h.own = map[string]net.Listener{}
	}
	h.own[name] = ln
}

// rest closes what the settings do not want any more.
func (h *handover) rest() {
	for _, ln := range h.from {
		_ = ln.Close()
	}
	h.from = nil
}

// Sockets are the HTTP server's and the admin channel's.
func (e *engine) Sockets() map[string]net.Listener { return e.handover.own }

// Take is for those of the process before.
func (e *engine) Take(sockets map[string]net.Listener) { e.handover.from = sockets }

// UpgradeDrain is how long clients may stay after an upgrade.
func (e *engine) UpgradeDrain() time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.settings.UpgradeDrain
}

// Leave stops accepting, on all sockets. Who asked for the upgrade has his answer before the admin channel goes.
func (e *engine) Leave() {
	e.handover.left = true
	e.log.Follow() // the other process rotates the file from now on
	e.server.StopAccepting()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if e.control != nil { // before the HTTP server, whose open pages take all of the time
		e.control.Leave(ctx)
		e.control = nil
	}
	e.certificates.mu.Lock() // a reload under way looks at the HTTP server
	if t := e.certificates.timer; t != nil {
		t.Stop()
	}
	web := e.admin
	e.admin = nil
	e.certificates.mu.Unlock()
	if web != nil {
		_ = web.Shutdown(ctx)
	}
}

// UpgradeNow has what carries the engine do it.
func (e *engine) UpgradeNow(ctx context.Context) (pid int, err error) {
	pid, err = e.host.Upgrade(ctx)
	return pid, leftTo(err)
}

// leftTo is the admin channel's word for it where another process is the one to ask.
func leftTo(err error) error {
	if errors.Is(err, service.ErrTakenOver) {
		return admin.Elsewhere{Err: err}
	}
	return err
}

// BeforeUpgrade is the process of before an upgrade while it serves, nil: there is none.
func (e *engine) BeforeUpgrade() *admin.Before {
	if e.host == nil {
		return nil
	}
	b := e.host.Before()
	if b == nil {
		return nil
	}
	return &admin.Before{PID: b.PID, Clients: b.Clients, Until: b.Until}
}

func upgradeCommand() *cobra.Command {
	a := &asker{}
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Have the program as it is on the disk take over, and cut nobody (Linux)",
		Long: `Has the running process start the program that is now where it was started from, with its listening sockets. New
clients are the new process's; those connected stay with the old one to their end, for upgrade_drain at most, and are
told nothing. When the new process does not start, its settings are wrong say, that is told and nothing has changed.
The exit code is 3 where a restart is the way: on Windows, in a container and in a terminal, of a program that is too
old to know this, and where no admin channel answers.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			done, err := askUpgrade(ctx, a)
			if err != nil {
				return err
			}
			say(cmd.OutOrStdout(), "process %d has taken over from process %d, which serves its clients to their end", done.PID, done.OldPID)
			return nil
		},
	}
	a.flags(cmd)
	timeoutFlag(cmd, &timeout, "How long to wait for the outcome")
	return cmd
}

// askUpgrade waits as long as ctx lasts: a start takes its time on a machine that does much else.
func askUpgrade(ctx context.Context, a *asker) (done admin.Upgrade, err error) {
	res, at, err := a.requestLast(ctx, "upgrade", nil)
	if err != nil {
		var r *refusal
		switch {
		case ctx.Err() != nil:
			return done, errors.New("the upgrade is not done yet, see the service's log for its outcome")
		case !errors.As(err, &r):
		case r.status == http.StatusNotFound: // an earlier version, which does not know the verb
			return done, &service.ExitError{Code: exitRestart, Err: errors.New("the program that runs is an earlier version, which hands nothing over: restart it")}
		case r.status == http.StatusNotImplemented:
			return done, &service.ExitError{Code: exitRestart, Err: err}
		}
		return done, err
	}
	defer res.Body.Close()
	return done, decodeAnswer(res.Body, at, &done)
}

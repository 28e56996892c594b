// Upgrade: the engine's part in handing its sockets to a new process, and the command.

package main

import (
	"context"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/amqproxysvc/amqproxysvc/proxy/admin"
	"github.com/amqproxysvc/amqproxysvc/service"
)

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
	e.server.StopAccepting()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
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
	if e.control != nil {
		e.control.Leave(ctx)
		e.control = nil
	}
}

// UpgradeNow has what carries the engine do it.
func (e *engine) UpgradeNow(ctx context.Context) (pid int, err error) { return e.host.Upgrade(ctx) }

// DrainingClients are those of the process of before an upgrade.
func (e *engine) DrainingClients() int {
	if e.host == nil {
		return 0
	}
	if b := e.host.State().Before; b != nil {
		return b.Clients
	}
	return 0
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
On Windows, in a container and in a terminal a restart is the way.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			var done admin.Upgrade
			if err := a.ask(ctx, http.MethodPost, "upgrade", nil, &done); err != nil {
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

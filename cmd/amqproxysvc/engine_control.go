// The engine's admin channel: where it is, and what it answers from.

package main

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/admin"
	"github.com/amqproxysvc/amqproxysvc/service"
	"github.com/amqproxysvc/amqproxysvc/service/control"
)

var _ admin.Lister = (*engine)(nil)

// openControl binds the admin channel. One that was asked for must be there; without the
// service's own place the proxy does what it is there for.
func (e *engine) openControl() error {
	at := e.settings.Admin.Socket
	own := at == ""
	if own && e.managed {
		at = control.ManagedPath(e.name)
	}
	if at == "" || at == "off" {
		return nil
	}
	if ln := e.handover.taken(adminAt + at); ln != nil {
		e.control = control.Adopt(ln, admin.Control(e, programVersion()), withPeer)
		e.handover.bound(adminAt+at, ln)
		return nil
	}
	s, err := control.New(at, admin.Control(e, programVersion()), withPeer)
	switch {
	case err == nil:
		e.control = s
		e.handover.bound(adminAt+at, s.Listener())
	case own:
		slog.Warn("no admin channel: clients, pools, top and the like cannot ask this proxy", "socket", at, "error", err)
	case errors.Is(err, control.ErrInUse):
		return service.ConfigError(reworded{"admin.socket: " + err.Error(), err})
	default:
		return service.ConfigError(reworded{"admin.socket: cannot be made: " + err.Error(), err})
	}
	return nil
}

func (e *engine) closeControl() {
	if e.control != nil {
		e.control.Close()
		e.control = nil
	}
}

func withPeer(ctx context.Context, p control.Peer) context.Context {
	role := admin.Look
	if p.Admin {
		role = admin.Change
	}
	return admin.WithPeer(ctx, admin.Peer{Role: role, Name: p.Name})
}

// ListClients, ListUpstreams, Kick and Reconnect make the engine the admin channel's.
func (e *engine) ListClients() []proxy.ClientInfo { return e.server.ListClients() }

// ListUpstreams are the connections to the broker.
func (e *engine) ListUpstreams() []proxy.UpstreamInfo { return e.server.ListUpstreams() }

// Kick closes clients.
func (e *engine) Kick(id uint64, user string) int { return e.server.Kick(id, user) }

// Reconnect retires connections to the broker.
func (e *engine) Reconnect(id uint64, user string) int { return e.server.Reconnect(id, user) }

// Balance retires what is above a broker's share of them.
func (e *engine) Balance() int { return e.server.Balance() }

// Pause has logins and first frames wait.
func (e *engine) Pause(vhost string, all bool, most time.Duration) int {
	return e.server.Pause(vhost, all, most)
}

// Resume ends a pause.
func (e *engine) Resume(vhost string, all bool) bool { return e.server.Resume(vhost, all) }

// Trace looks at a client.
func (e *engine) Trace(ctx context.Context, w proxy.TraceWanted) (admin.Tracer, error) {
	t, err := e.server.Trace(ctx, w)
	if err != nil {
		return nil, err // and no tracer: a nil *proxy.Trace in it would be one
	}
	return t, nil
}

// ListLimits are the limits and who is at them.
func (e *engine) ListLimits(most int, which func(by proxy.LimitBy, key string) bool) ([]proxy.Limit, []proxy.LimitKeyInfo, int) {
	return e.server.ListLimits(most, which)
}

// Settings are those in force.
func (e *engine) Settings() []admin.Setting {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make([]admin.Setting, 0, len(e.explained))
	for _, s := range e.explained {
		all = append(all, admin.Setting{Name: s.Name, Value: s.Value, Origin: s.Origin})
	}
	return all
}

// Reload reads the settings anew, and says which are others than before.
func (e *engine) Reload(context.Context) (service.Reloaded, error) {
	before, users := e.Settings(), e.hashes()
	need, warnings, err := e.reload()
	if err != nil {
		return service.Reloaded{}, err
	}
	names := changedSettings(before, e.Settings())
	if !slices.Equal(users, e.hashes()) { // which are shown to nobody
		names = append(names, "user.password_hash")
	}
	return service.Reloaded{Changed: names, NeedRestart: need, Warnings: warnings}, nil
}

// hashes are those of the users' passwords.
func (e *engine) hashes() (all []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range e.settings.Users {
		all = append(all, e.settings.Users[i].PasswordHash)
	}
	return all
}

// changedSettings names the settings whose values differ, where they come from aside.
func changedSettings(before, now []admin.Setting) (names []string) {
	was := make(map[string]string, len(before))
	for _, s := range before {
		was[s.Name] = s.Value
	}
	for _, s := range now {
		if value, known := was[s.Name]; !known || value != s.Value {
			names = append(names, s.Name)
		}
		delete(was, s.Name)
	}
	return append(names, slices.Sorted(maps.Keys(was))...)
}

// ReloadNow is a reload through what carries the engine, which does one at a time and tells the service manager.
func (e *engine) ReloadNow(ctx context.Context) (admin.Reload, error) {
	r, err := e.host.Reload(ctx)
	if err == nil && r.Error != "" {
		err = errors.New("reload failed, the settings from before stay in force: " + r.Error)
	}
	return admin.Reload{Changed: r.Changed, NeedRestart: r.NeedRestart, Warnings: r.Warnings, TakenOver: r.TakenOver, NoUpgrade: r.NoUpgrade}, leftTo(err)
}

// State is what the state file tells of the service.
func (e *engine) State() any { return e.host.State() }

// The engine's admin channel: where it is, and what it answers from.

package main

import (
	"context"
	"errors"
	"log/slog"
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
	s, err := control.New(at, admin.Control(e, programVersion()), withPeer)
	switch {
	case err == nil:
		e.control = s
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

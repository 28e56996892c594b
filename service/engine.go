// Package service runs an engine as a native system service: systemd on Linux, the
// service control manager on Windows, or plainly in the foreground. It knows nothing of
// what the engine does; this file is all that the two know of each other.

package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// Engine is what the service carries. The supervisor calls Start once, then Reload,
// Status, Check and ReopenLog as often as it is asked to, and Drain at the end, never two
// of Start, Reload and Drain at a time. Status, Check and ReopenLog may come at any time.
type Engine interface {
	// Start binds the listeners and returns when clients can connect, or with the first
	// error and nothing bound. ctx bounds the start only. An inherited listener (socket
	// activation) takes the place of the configured address with the same index; a nil
	// entry is bound anew. An error that wraps ErrConfig says that a restart is of no use.
	Start(ctx context.Context, inherited []net.Listener) error

	// Addresses are the configured addresses of the listeners, HOST:PORT, in their order;
	// Listeners, after Start, what is bound in their places. With them a service manager can
	// keep the sockets over a restart.
	Addresses() []string
	Listeners() []net.Listener

	// Reload reads the configuration anew and applies what can be changed live; clients
	// stay connected. It names the settings that changed, and which of them need a restart. On
	// an error nothing has changed: the settings from before stay in force.
	Reload(ctx context.Context) (Reloaded, error)

	// Drain stops accepting, gives clients the engine's drain timeout to finish, closes
	// what is left and returns when everything has ended. When ctx ends sooner, it closes
	// at once what is left. A second concurrent call is not made.
	Drain(ctx context.Context) error

	// Status is a snapshot of what an operator asks first. It must not block on the network.
	Status() Status

	// Check asks the engine whether it still serves, by a login-free handshake through its
	// own listener, say. It feeds the watchdog: an error, or no answer until ctx ends, for
	// long enough gets the process restarted. It must not depend on the broker.
	Check(ctx context.Context) error

	// Done is closed when the engine has ended, by Drain or by a failure of its own.
	Done() <-chan struct{}

	// Err says, after Done, why the engine ended; nil after Drain.
	Err() error

	// ReopenLog closes and opens the log file, so that it may be moved away by others.
	ReopenLog() error
}

// Status is a snapshot of a running engine.
type Status struct {
	// Clients and Upstreams are the connections held now.
	Clients, Upstreams int
	// Listening are the bound addresses, HOST:PORT.
	Listening []string
	// Upstream is the broker as HOST:PORT, without credentials.
	Upstream string
	// Routes say where else vhosts are.
	Routes []string
	// Broker is what is known of the broker.
	Broker BrokerState
	// Advice is how many pieces there are.
	Advice int
	// Since is when the engine started.
	Since time.Time
	// DrainTimeout is how long Drain may leave clients to finish; 0: unknown.
	DrainTimeout time.Duration
}

// BrokerState is what is known of the broker, without credentials.
type BrokerState struct {
	// AwaySince is since when it cannot be reached, zero when nothing is known against it;
	// Reason says why, in one line.
	AwaySince time.Time `json:"away_since,omitzero"`
	Reason    string    `json:"reason,omitempty"`
	// Blocked are the upstreams on which it takes no messages.
	Blocked int `json:"blocked_upstreams,omitempty"`
	// Out are the addresses that are not asked now, of a broker that has others, each with its reason.
	Out []string `json:"out_of_rotation,omitempty"`
	// Others are the brokers of routes that cannot be reached.
	Others []BrokerAway `json:"others_away,omitempty"`
}

// BrokerAway is a broker that cannot be reached.
type BrokerAway struct {
	Name   string    `json:"name"`
	Since  time.Time `json:"away_since"`
	Reason string    `json:"reason"`
}

// ErrConfig marks an error as a wrong configuration: the service ends with ExitConfig and
// is not restarted until someone has changed it.
var ErrConfig = errors.New("wrong configuration")

// ConfigError marks err as a wrong configuration without changing its text; nil stays nil.
func ConfigError(err error) error {
	if err == nil {
		return nil
	}
	return configError{err}
}

type configError struct{ err error }

func (e configError) Error() string   { return e.err.Error() }
func (e configError) Unwrap() []error { return []error{e.err, ErrConfig} }

// Exit codes of the process, as sysexits.h and the unit's RestartPreventExitStatus know them.
const (
	ExitOK     = 0
	ExitFailed = 1
	ExitUsage  = 64 // wrong command line
	ExitConfig = 78 // wrong configuration; a restart is of no use
)

// ExitError carries an exit code up to main.
type ExitError struct {
	Code int
	Err  error // nil: everything there was to say has been said
}

func (e *ExitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

func (e *ExitError) Unwrap() error { return e.Err }

// ExitCode is the code with which a process that ended with err should exit.
func ExitCode(err error) int {
	var coded *ExitError
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &coded):
		return coded.Code
	case errors.Is(err, ErrConfig):
		return ExitConfig
	}
	return ExitFailed
}

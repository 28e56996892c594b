package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/Microsoft/go-winio"
	"golang.org/x/sys/windows"
)

const pipes = `\\.\pipe\`

// DefaultPath is where the service of that name is reached.
func DefaultPath(name string) string { return pipes + "amqproxysvc-" + name }

// ManagedPath is where a process that the service control manager started is to be reached.
func ManagedPath(name string) string { return DefaultPath(name) }

// listen makes the pipe's first instance, for SYSTEM, administrators and the service's own
// account alone, and for nobody over the network. go-winio asks for the first instance, so a
// pipe of that name that somebody else made before is an error.
func listen(at string) (net.Listener, error) {
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return nil, err
	}
	access := "D:P(D;;GA;;;NU)(A;;GA;;;SY)(A;;GA;;;BA)(A;;GA;;;" + user.User.Sid.String() + ")"
	ln, err := winio.ListenPipe(at, &winio.PipeConfig{SecurityDescriptor: access})
	if errors.Is(err, windows.ERROR_ACCESS_DENIED) || errors.Is(err, windows.ERROR_PIPE_BUSY) {
		return nil, fmt.Errorf("%s: %w", at, ErrInUse)
	}
	return ln, err
}

// dial waits a moment for an instance that is free. Who serves it learns nothing of the caller
// (go-winio lets it be anonymous), and hears nothing when it is not the service.
func dial(ctx context.Context, at string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := winio.DialPipeContext(ctx, at)
	if err != nil {
		return nil, err
	}
	if err := checkServer(c, at); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	return c, nil
}

// peerOf: the pipe lets in nobody else, see listen.
func peerOf(net.Conn) (Peer, error) { return Peer{Admin: true, Name: "administrator"}, nil }

// own and disown: pipes are not handed over.
func own(net.Listener)    {}
func disown(net.Listener) {}

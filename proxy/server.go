// The server: listeners, the set of clients, reload and shutdown.

package proxy

import (
	"context"
	"errors"
	"net"
)

// DialFunc opens a connection to the broker at a HOST:PORT address.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Server is one proxy engine. Make it with New, run it with Start, end it with Shutdown.
type Server struct{}

// New checks the configuration; nothing is started.
func New(cfg Config) (*Server, error) { return nil, errors.New("not built yet") }

// Start binds every listener and accepts clients; it returns when all are bound, or
// with the first error and nothing bound. An inherited listener (socket activation)
// serves in place of the configured address with the same index; a nil entry is bound anew.
func (s *Server) Start(inherited []net.Listener) error { return nil }

// Addrs are the bound addresses in the order of Config.Listeners.
func (s *Server) Addrs() []net.Addr { return nil }

// Reload takes a new configuration for what comes after; clients stay connected.
// It names the settings that changed but take effect only after a restart.
// On an error nothing has changed.
func (s *Server) Reload(cfg Config) (needRestart []string, err error) { return nil, nil }

// Shutdown stops accepting, gives clients until the drain timeout (or ctx's end, if
// sooner) to finish, then closes them with 320, flushes, closes the upstreams and returns.
func (s *Server) Shutdown(ctx context.Context) error { return nil }

// Close ends everything at once.
func (s *Server) Close() error { return nil }

// Done is closed when the server has ended, by Shutdown, Close or a failed listener.
func (s *Server) Done() <-chan struct{} { return nil }

// Err says, after Done, why the server ended; nil after Shutdown and Close.
func (s *Server) Err() error { return nil }

// Ready reports whether the broker can be reached, with the reason when not.
func (s *Server) Ready(ctx context.Context) error { return nil }

// SelfCheck makes a login-free handshake with the server's own first listener and
// reports what is wrong, if anything; a watchdog's question.
func (s *Server) SelfCheck(ctx context.Context) error { return nil }

// Stats is a snapshot of the counters.
func (s *Server) Stats() Stats { return Stats{} }

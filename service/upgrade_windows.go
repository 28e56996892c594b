// Windows hands no listening sockets from one process to another: a restart is the way.

package service

import "context"

func (s *supervisor) startSuccessor(context.Context) (*successor, error) {
	return nil, notHere("there is no upgrade on Windows: amqproxysvc restart, clients have drain_timeout to finish")
}

func findPredecessor() *predecessor { return nil }

// upgradesOnReload: a restart starts what is there.
func (s *supervisor) upgradesOnReload() (why string, yes bool) { return "", false }

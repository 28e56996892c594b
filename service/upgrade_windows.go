// Windows hands no listening sockets from one process to another: a restart is the way.

package service

import (
	"context"
	"errors"
)

func (s *supervisor) startSuccessor(context.Context) (*successor, error) {
	return nil, errors.New("there is no upgrade on Windows: amqproxysvc restart, clients have drain_timeout to finish")
}

func findPredecessor() *predecessor { return nil }

// Hold: who comes while the broker is away waits for it for a while, instead of failing.

package broker

import (
	"context"
	"errors"
	"time"
)

type atOnceKey struct{}

// AtOnce has a login not wait for a broker that is away: the caller has something else.
func AtOnce(ctx context.Context) context.Context { return context.WithValue(ctx, atOnceKey{}, true) }

// held is a wait for a broker that is away, from when the caller came.
type held struct{ from time.Time }

// again waits, after err, until it is worth a further attempt. False: err is the end of it.
func (h held) again(ctx context.Context, b *Broker, err error, gone <-chan struct{}) bool {
	var un *Unreachable
	left := b.conf.Load().Hold - time.Since(h.from)
	if left <= 0 || !errors.As(err, &un) || ctx.Value(atOnceKey{}) != nil {
		return false
	}
	timer := time.NewTimer(min(left, b.retryIn()))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-gone:
	case <-ctx.Done():
	}
	return false
}

// retryIn is when a target may be asked next.
func (b *Broker) retryIn() time.Duration {
	const least, most = 50 * time.Millisecond, time.Second
	next := most
	for _, t := range b.conf.Load().targets {
		next = min(next, t.opensIn())
	}
	return max(next, least)
}

// Await waits for a greeting, and where the broker is away for the next ones, within hold. An error is
// why none has come; closing gone ends the wait.
func (b *Broker) Await(g *Greeting, gone <-chan struct{}) error {
	h := held{time.Now()}
	for ; g != nil; g = b.Greet() {
		select {
		case <-g.Done():
		case <-gone:
			return context.Canceled
		}
		if g.Err() == nil || !h.again(b.ctx, b, g.Err(), gone) {
			return g.Err()
		}
	}
	return nil
}

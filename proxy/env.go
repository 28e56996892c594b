// What every part of the engine needs and none owns: configuration, clock, counters, log,
// and the goroutines that the server waits for at its end.

package proxy

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/lock"
)

// env is a leaf: it refers to no other part.
type env struct {
	log    *slog.Logger
	conf   atomic.Pointer[Config]
	ctx    context.Context // ends with the server
	began  time.Time
	coarse atomic.Int64 // nanoseconds since began, set by the janitor
	n      counters
	owners owners
}

func (e *env) cfg() *Config { return e.conf.Load() }

// now is the coarse clock: nanoseconds since the server was made, plus one tick, so that
// it is never 0.
func (e *env) now() int64 { return e.coarse.Load() }

// clock is the coarse clock as a time.
func (e *env) clock() time.Time { return e.began.Add(time.Duration(e.now())) }

// spawn runs f in a goroutine that the server waits for at its end. Any lock may be held.
func (e *env) spawn(f func()) {
	owned := e.owners.add()
	go func() {
		if owned {
			defer e.owners.done()
		}
		f()
	}()
}

// owners counts the goroutines that the server's end waits for.
type owners struct {
	mu     lock.Mutex[lock.Leaf] // a leaf
	closed bool
	wg     sync.WaitGroup
}

// add counts one more. False: the end has come, and waits for those counted before.
func (o *owners) add() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return false
	}
	o.wg.Add(1)
	return true
}

func (o *owners) done() { o.wg.Done() }

// close counts nobody any more.
func (o *owners) close() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
}

// wait returns when all that were counted are done; close comes first.
func (o *owners) wait() { o.wg.Wait() }

// Histograms of what is waited for, and errors by their code: none of it is on the way of a message.

package proxy

import (
	"sync/atomic"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

// WaitBounds are the upper bounds, in seconds, of the histograms of waits.
var WaitBounds = [...]float64{0.0001, 0.001, 0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60}

// Histogram is a snapshot: Counts[i] is how many took at most WaitBounds[i], the last entry counts all.
type Histogram struct {
	Counts [len(WaitBounds) + 1]uint64
	Sum    time.Duration
}

type histogram struct {
	counts [len(WaitBounds) + 1]atomic.Uint64
	sum    atomic.Int64
}

func (h *histogram) observe(took time.Duration) {
	h.sum.Add(int64(took))
	for i := range h.counts {
		if i == len(WaitBounds) || took.Seconds() <= WaitBounds[i] {
			h.counts[i].Add(1)
		}
	}
}

func (h *histogram) snapshot() (s Histogram) {
	for i := len(h.counts) - 1; i >= 0; i-- { // all first: what comes meanwhile must not make a part larger than the whole
		s.Counts[i] = h.counts[i].Load()
		if i < len(WaitBounds) {
			s.Counts[i] = min(s.Counts[i], s.Counts[i+1])
		}
	}
	s.Sum = time.Duration(h.sum.Load())
	return s
}

// ErrorCodes are those that errors are counted by; the last, 0, stands for all others.
var ErrorCodes = [...]uint16{
	amqp.ContentTooLarge, amqp.NoRoute, amqp.NoConsumers, amqp.ConnectionForced, amqp.InvalidPath, amqp.AccessRefused, amqp.NotFound, amqp.ResourceLocked,
	amqp.PreconditionFailed, amqp.FrameError, amqp.SyntaxError, amqp.CommandInvalid, amqp.ChannelError, amqp.UnexpectedFrame, amqp.ResourceError,
	amqp.NotAllowed, amqp.NotImplemented, amqp.InternalError, 0,
}

// errorCounts are by the index of ErrorCodes.
type errorCounts [len(ErrorCodes)]atomic.Uint64

func (n *errorCounts) add(code uint16) {
	for i, c := range ErrorCodes {
		if c == code || c == 0 {
			n[i].Add(1)
			return
		}
	}
}

func (n *errorCounts) snapshot() (s [len(ErrorCodes)]uint64) {
	for i := range n {
		s[i] = n[i].Load()
	}
	return s
}

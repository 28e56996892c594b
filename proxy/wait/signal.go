// Package wait is what the engine's parts wait with: a signal that wakes all, a line that is
// served first come, first served, a bound with such a line, and a flight, which is flown once
// while many wait for its end. It knows nothing of the engine, and no socket.
package wait

import "errors"

// ErrGone is the error of a wait that its caller called off.
var ErrGone = errors.New("wait: called off")

// Signal wakes everybody who waits for something to change. It costs nothing while nobody does.
// The zero value is ready; the owner's lock guards it, so that a look at what may change and the
// wait for it are one step.
type Signal struct{ c chan struct{} }

// WaitLocked is closed by the next FireLocked.
func (s *Signal) WaitLocked() <-chan struct{} {
	if s.c == nil {
		s.c = make(chan struct{})
	}
	return s.c
}

// FireLocked wakes all that wait now.
func (s *Signal) FireLocked() {
	if s.c != nil {
		close(s.c)
		s.c = nil
	}
}

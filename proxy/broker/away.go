// What an operator is told of the broker's absence: since when, and why.

package broker

import (
	"errors"
	"net"
	"os"
	"strings"
	"time"
	"unicode"
)

// longestReason bounds, in octets, what Away tells: it stands in a status line.
const longestReason = 200

// Away tells since when the broker cannot be reached, and why. ok is false while a link stands or
// an address could be reached at the last attempt, and before the first attempt.
func (b *Broker) Away() (since time.Time, reason string, ok bool) {
	if b.standing.Load() > 0 {
		return time.Time{}, "", false
	}
	var why []error
	for _, t := range b.conf.Load().targets {
		at, err := t.away()
		if err == nil {
			return time.Time{}, "", false
		}
		why = append(why, err)
		if at.After(since) { // the last of the addresses to go is when the broker went
			since = at
		}
	}
	if since.IsZero() {
		return since, "", false
	}
	return since, shortReason(nobody(why)), true
}

// away is why the address could not be reached at the last attempt, and when that began.
func (k *breaker) away() (since time.Time, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.failing, k.err
}

// shortReason is one line of an error of Unreachable, without the address that stands beside it.
func shortReason(err error) string {
	var un *Unreachable
	if errors.As(err, &un) {
		err = un.Err
	}
	hint := ""
	if _, several := err.(everyone); !several { // whose reasons are short already
		var h *hinted
		if errors.As(err, &h) {
			err, hint = h.err, " ("+h.hint+")"
		}
		var op *net.OpError
		if errors.As(err, &op) && op.Err != nil {
			err = op.Err
		}
		var call *os.SyscallError
		if errors.As(err, &call) && call.Err != nil {
			err = call.Err
		}
	}
	text := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, err.Error()+hint)
	if len(text) > longestReason {
		text = strings.ToValidUTF8(text[:longestReason], "") + "…"
	}
	return text
}

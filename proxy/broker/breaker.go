// The breaker of one target: closed, open for a while after it could not be reached, then
// half open: one dial probes it, and whoever comes meanwhile waits for the probe. Among several
// targets one whose breaker is not closed is out of rotation: it is probed after a delay that
// doubles, behind everybody's back, and asked by others only where all are out.

package broker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// outcome is what a dial tells of the address.
type outcome int

const (
	reached   outcome = iota
	away              // nobody will reach it now
	slow              // it did not answer in time, which one dial alone does not prove
	noVerdict         // it tells nothing of the address
)

// slowInARow is how many dials without an answer, none of them answered meanwhile, are an outage.
const slowInARow = 3

type breaker struct {
	mu      sync.Mutex
	err     error // why it is open; nil: closed
	until   time.Time
	opens   int           // failures in a row, of probes and of what opened it
	probeAt time.Time     // when a target that is out of rotation is probed
	probe   chan struct{} // half open: closed when the probe has ended
	slow    int
	reached time.Time // when it was last
	failing time.Time // when it first could not be reached since then
	told    time.Time // when why was last logged
	why     string
}

// enter waits for the permission to dial; the caller that has it calls leave. An error: do not dial.
func (k *breaker) enter(ctx context.Context) (probe bool, err error) {
	for {
		k.mu.Lock()
		switch {
		case k.err == nil:
			k.mu.Unlock()
			return false, nil
		case time.Now().Before(k.until):
			defer k.mu.Unlock()
			return false, k.err
		case k.probe == nil:
			k.probe = make(chan struct{})
			k.mu.Unlock()
			return true, nil
		}
		probing := k.probe
		k.mu.Unlock()
		select {
		case <-probing:
		case <-ctx.Done():
			k.mu.Lock()
			defer k.mu.Unlock()
			if k.err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return false, k.err
			}
			return false, ctx.Err()
		}
	}
}

// leave notes how a dial that began at the given time went; slow ones open it after so many in a row.
// opened: the breaker is open now. back: the address could not be reached for so long before this dial did.
func (k *breaker) leave(probe bool, began time.Time, err error, o outcome, slowMost int, delay time.Duration) (opened bool, back time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if probe {
		close(k.probe)
		k.probe = nil
	}
	switch o {
	case reached:
		now := time.Now()
		if !k.failing.IsZero() {
			back = max(now.Sub(k.failing), 1)
		}
		k.err, k.slow, k.opens, k.reached, k.failing, k.why = nil, 0, 0, now, time.Time{}, ""
		return false, back
	case noVerdict:
		return false, 0
	case slow, away:
		if began.Before(k.reached) {
			return false, 0
		}
		if k.failing.IsZero() {
			k.failing = time.Now()
		}
		if o == slow {
			if k.slow++; k.slow < slowMost && !probe {
				return false, 0
			}
		}
	}
	k.openLocked(probe, err, delay)
	return true, 0
}

// The delay of probes begins with retry_delay, or this, and doubles up to the longest.
const (
	leastProbe = 500 * time.Millisecond
	mostProbe  = time.Minute
)

func (k *breaker) openLocked(probe bool, err error, delay time.Duration) {
	now := time.Now()
	if k.err == nil || probe {
		wait := max(delay, leastProbe)
		for range k.opens {
			wait = min(2*wait, mostProbe)
		}
		k.opens++
		// A quarter less or more: what went together must not be asked together.
		k.probeAt = now.Add(wait*3/4 + rand.N(wait/2))
	}
	k.err, k.until = err, now.Add(delay)
}

// eject opens a breaker that is closed, at the broker's own word.
func (k *breaker) eject(err error, delay time.Duration) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err != nil {
		return false
	}
	if k.failing.IsZero() {
		k.failing = time.Now()
	}
	k.openLocked(false, err, delay)
	return true
}

// up reports whether the target is in rotation.
func (k *breaker) up() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.err == nil
}

// probeDue reports whether the target is out of rotation, and time has come to look.
func (k *breaker) probeDue(now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.err != nil && k.probe == nil && !now.Before(k.probeAt) && !now.Before(k.until)
}

// hurry has the target probed now, if it is out of rotation.
func (k *breaker) hurry() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err != nil {
		k.probeAt, k.opens = time.Now(), 0
	}
}

// opensIn is how long the target is not asked at all.
func (k *breaker) opensIn() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err == nil {
		return 0
	}
	return time.Until(k.until)
}

// sayAgain is how often the log tells of an outage that goes on for the same reason.
const sayAgain = time.Minute

// news reports whether the log has not told of this reason lately.
func (k *breaker) news(why string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	if why == k.why && now.Sub(k.told) < sayAgain {
		return false
	}
	k.why, k.told = why, now
	return true
}

// forget has the log tell the next reason, whatever it told before.
func (k *breaker) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.why = ""
}

// hasGreeted reports whether a broker was ever at the address.
func (k *breaker) hasGreeted() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.reached.IsZero()
}

// openFor is why the address is not asked now, or nil.
func (k *breaker) openFor() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err != nil && time.Now().Before(k.until) {
		return k.err
	}
	return nil
}

// judge reads what the error of a dial, up to the broker's greeting, tells of the address.
func judge(err error) outcome {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	var alert tls.AlertError
	var noName *net.DNSError
	switch {
	case errors.Is(err, context.Canceled):
		return noVerdict
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOBUFS),
		errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.EADDRNOTAVAIL):
		return noVerdict // this process or system has run out of something
	case errors.As(err, &unknown), errors.As(err, &invalid), errors.As(err, &host), errors.As(err, &alert):
		return away
	case errors.As(err, &noName) && noName.IsTemporary && !noName.IsNotFound:
		return slow
	case isTimeout(err):
		return slow
	}
	return away // refused, unroutable, not resolved, or something else than a broker is there
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) ||
		errors.As(err, &n) && n.Timeout()
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// isCut reports whether the peer ended the connection, gently or not.
func isCut(err error) bool {
	return isEOF(err) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, wsaConnReset)
}

// wsaConnReset is Windows' WSAECONNRESET, which package syscall names there only.
const wsaConnReset = syscall.Errno(10054)

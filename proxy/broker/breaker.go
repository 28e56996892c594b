// The breaker of one address: closed, open for a while after it could not be reached, then
// half open: one dial probes it, and whoever comes meanwhile waits for the probe.

package broker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
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

// leave notes how a dial that began at the given time went. opened: the breaker is open now. back:
// the address could not be reached for so long before this dial did.
func (k *breaker) leave(probe bool, began time.Time, err error, o outcome, delay time.Duration) (opened bool, back time.Duration) {
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
		k.err, k.slow, k.reached, k.failing, k.why = nil, 0, now, time.Time{}, ""
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
			if k.slow++; k.slow < slowInARow && !probe {
				return false, 0
			}
		}
	}
	k.err, k.until = err, time.Now().Add(delay)
	return true, 0
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

// What an address looks like that leads to something else than a broker, and what would be right.
// Hints are for the operator, who wrote the address; clients do not hear them.

package broker

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
)

// greetError is a greeting that did not come, with the first octets of what came in its stead.
type greetError struct {
	err   error
	heard []byte
}

func (e *greetError) Error() string { return e.err.Error() }
func (e *greetError) Unwrap() error { return e.err }

// tlsError is a TLS handshake that failed.
type tlsError struct{ err error }

func (e *tlsError) Error() string { return "TLS: " + strings.TrimPrefix(e.err.Error(), "tls: ") }
func (e *tlsError) Unwrap() error { return e.err }

// hinted is an error with what may be wrong.
type hinted struct {
	err  error
	hint string
}

func (e *hinted) Error() string { return e.err.Error() + " (" + e.hint + ")" }
func (e *hinted) Unwrap() error { return e.err }

// addHint adds to e what err, with which a dial of t ended, tells of its cause. greeted: a broker
// has been there before, so that nothing is guessed of an address that is right.
func (e *Unreachable) addHint(t Target, err error, greeted bool) {
	var heard []byte
	var greeting *greetError
	var noRecord tls.RecordHeaderError
	var noTLS *tlsError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &greeting):
		heard = greeting.heard
	case errors.As(err, &noRecord):
		heard = noRecord.RecordHeader[:]
	}
	alert := greeting != nil && bytes.HasPrefix(heard, []byte{21, 3}) // a TLS record, of the protocol's versions so far
	switch {
	case bytes.HasPrefix(heard, []byte("HTTP/")):
		e.Err = errors.New("it answers in HTTP: that is no AMQP port")
	case alert:
		e.Err = errors.New("this port speaks TLS: amqps://")
	case errors.As(err, &noRecord):
		e.Err = &hinted{e.Err, "this port speaks no TLS: amqp://, or port 5671"}
	case errors.As(err, &unknown):
		e.Err = &hinted{e.Err, "tls.ca_file names the authorities that are trusted"}
	case greeted || !isCut(err):
	case greeting != nil && len(heard) == 0 && t.TLS == nil:
		e.Err = &hinted{e.Err, "does this port speak TLS? then amqps://"}
	case errors.As(err, &noTLS):
		e.Err = &hinted{e.Err, "does this port speak TLS? if not, amqp://"}
	}
}

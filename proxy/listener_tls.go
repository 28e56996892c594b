// TLS on a listener: what it is spoken with, renewed without a restart; the handshake in the
// client's own goroutine; and what comes of a client that speaks something else.

package proxy

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// ClientCert says whether a listener asks its clients for certificates.
type ClientCert string

const (
	ClientCertNone ClientCert = "none"
	// ClientCertOptional lets clients in without one, and none with one that no authority vouches for.
	ClientCertOptional ClientCert = "optional"
	ClientCertRequired ClientCert = "required"
)

// ServerTLS is what a listener speaks TLS with. It is not changed once it was given.
type ServerTLS struct {
	// Certificates are with their keys. The first is for clients that name no server, or one
	// that none of the others is for.
	Certificates []tls.Certificate
	// Files name the Certificates, for metrics.
	Files      []string
	ClientCert ClientCert
	ClientCAs  *x509.CertPool // for ClientCert other than none
	MinVersion uint16         // tls.VersionTLS12 or more
	// External is what of a client's certificate is its name, for SASL EXTERNAL; "": it is not offered.
	External ExternalUser
}

// validate says what is missing; nil is a plain listener.
func (t *ServerTLS) validate(address string) (errs []error) {
	if t == nil {
		return nil
	}
	bad := func(text string) { errs = append(errs, fmt.Errorf("listener %s: %s", address, text)) }
	if len(t.Certificates) == 0 {
		bad("TLS without a certificate")
	}
	if t.MinVersion < tls.VersionTLS12 || t.MinVersion > tls.VersionTLS13 {
		bad("the lowest version of TLS is neither 1.2 nor 1.3")
	}
	if !t.External.valid() {
		bad("external_user is " + strconv.Quote(string(t.External)) + `, allowed is "off", "cn", "dn", "san_dns", "san_uri" or "san_email"`)
	}
	switch t.ClientCert {
	case ClientCertNone:
		if !t.External.off() {
			bad("external_user needs client_cert: clients are asked for no certificate")
		}
	case ClientCertOptional, ClientCertRequired:
		if t.ClientCAs == nil {
			bad("certificates of clients without an authority that vouches for them")
		}
	default:
		bad("client_cert is " + strconv.Quote(string(t.ClientCert)) + `, allowed is "none", "optional" or "required"`)
	}
	return errs
}

// equal reports whether clients would meet the same.
func (t *ServerTLS) equal(v *ServerTLS) bool {
	if len(t.Certificates) != len(v.Certificates) || t.ClientCert != v.ClientCert || t.MinVersion != v.MinVersion ||
		(t.ClientCAs == nil) != (v.ClientCAs == nil) || t.ClientCAs != nil && !t.ClientCAs.Equal(v.ClientCAs) {
		return false
	}
	for i := range t.Certificates {
		a, b := t.Certificates[i].Certificate, v.Certificates[i].Certificate
		if len(a) != len(b) {
			return false
		}
		for j := range a {
			if !bytes.Equal(a[j], b[j]) {
				return false
			}
		}
	}
	return true
}

// serverTLS is a ServerTLS as it is in force.
type serverTLS struct {
	*ServerTLS
	config *tls.Config
}

// setTLS takes what clients meet from now on. Where that is something else, no session of
// before is resumed: the keys of its tickets are a Config's own, so that a client let in by an
// authority that is no longer there shows a certificate again.
func (l *listener) setTLS(t *ServerTLS, own func(net.Addr) bool) {
	if old := l.tls.Load(); old != nil && old.equal(t) {
		l.tls.Store(&serverTLS{t, old.config})
		return
	}
	// No protocols by ALPN: AMQP clients offer none, and what others offer is passed over.
	c := &tls.Config{Certificates: t.Certificates, MinVersion: t.MinVersion}
	if t.ClientCert == ClientCertOptional || t.ClientCert == ClientCertRequired {
		check := c.Clone() // for the server's questions to itself
		check.SessionTicketsDisabled = true
		c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if own(hello.Conn.RemoteAddr()) {
				return check, nil
			}
			return nil, nil
		}
		c.ClientCAs, c.ClientAuth = t.ClientCAs, tls.VerifyClientCertIfGiven
		if t.ClientCert == ClientCertRequired {
			c.ClientAuth = tls.RequireAndVerifyClientCert
		}
	}
	l.tls.Store(&serverTLS{t, c})
}

// beforeLogin bounds what a client may send, encrypted, before it has logged in: what of it is
// not yet understood is held. A handshake with a chain of certificates and a login with a long
// token take about half.
const beforeLogin = 40 << 10

// encrypted is the socket under TLS.
type encrypted struct {
	net.Conn
	left int // that may still be read before the login; < 0: no bound
	raw  syscall.RawConn
	fd   int  // >= 0: the socket's, which is asked without waiting, see receive
	dry  bool // all that was read has been taken
}

var errBeforeLogin = errors.New("it sends more than 40 KiB before its login")

func (e *encrypted) Read(p []byte) (int, error) {
	if e.fd >= 0 {
		return readNow(e.fd, p)
	}
	if e.left < 0 {
		return e.Conn.Read(p)
	}
	if e.left == 0 {
		return 0, errBeforeLogin
	}
	n, err := e.Conn.Read(p[:min(len(p), e.left)])
	e.left -= n
	return n, err
}

// encrypt has TLS spoken over the socket, with what is in force now. Nothing is sent or read yet.
func (p *peer) encrypt(t *serverTLS) {
	p.under = &encrypted{Conn: p.sock, left: beforeLogin, raw: p.raw, fd: -1}
	p.conn, p.raw = tls.Server(p.under, t.config), nil
}

// The ways in which a TLS handshake ends.
const (
	tlsOK = iota
	tlsFailed
	tlsNoCertificate
	tlsUnknownAuthority
	tlsExpired
	tlsResults
)

// TLSResults name the entries of ListenerStats.TLSHandshakes.
var TLSResults = [tlsResults]string{"ok", "failed", "no_certificate", "unknown_authority", "expired"}

// startTLS is the TLS handshake, which the janitor ends at handshake_timeout. False: the client has ended.
func (c *client) startTLS() bool {
	err := c.conn.(*tls.Conn).Handshake()
	result := tlsResult(err)
	if errors.Is(err, io.EOF) && c.under.left == beforeLogin {
		return false // a probe, that only wanted to see whether somebody is there
	}
	c.lst.shakes[result].Add(1)
	if err == nil {
		return true
	}
	var other tls.RecordHeaderError
	switch {
	case errors.As(err, &other) && other.Conn != nil:
		c.log(slog.LevelInfo, "client refused: it sent "+insteadOfTLS(other.RecordHeader[:])+"; this port speaks TLS")
	case errors.Is(err, net.ErrClosed): // by the proxy, which has said why
	default:
		c.log(slog.LevelInfo, "client refused: TLS", "reason", tlsReason(err))
	}
	return false
}

// insteadOfTLS says what the first octets are of.
func insteadOfTLS(b []byte) string {
	switch {
	case bytes.HasPrefix(b, []byte("AMQP")):
		return "plain AMQP"
	case bytes.HasPrefix(b, []byte("GET ")), bytes.HasPrefix(b, []byte("POST")), bytes.HasPrefix(b, []byte("HEAD")):
		return "an HTTP request"
	case bytes.HasPrefix(b, []byte("PROXY")), bytes.HasPrefix(b, []byte("\r\n\r\n\x00")):
		return "a PROXY header, which listener.proxy_protocol takes"
	}
	return "something else than TLS"
}

func tlsResult(err error) int {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case err == nil:
		return tlsOK
	case errors.As(err, &unknown):
		return tlsUnknownAuthority
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return tlsExpired
	case strings.HasSuffix(err.Error(), "client didn't provide a certificate"): // the library has no other sign of it
		return tlsNoCertificate
	}
	return tlsFailed
}

// tlsReason is one short line: what a client's certificate says of itself may be long.
func tlsReason(err error) string {
	const most = 200
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		return "it said: " + strings.TrimPrefix(op.Err.Error(), "tls: ")
	}
	text := strings.TrimPrefix(err.Error(), "tls: ")
	if errors.Is(err, io.EOF) {
		text = "it hung up amid the handshake"
	}
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

// tlsCounts are a listener's.
type tlsCounts [tlsResults]atomic.Uint64

// From settings to the engine's configuration: addresses, and the TLS to the broker with
// its files read. Called at the start, at each reload, and by check-config.

package config

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
)

// ProxyConfig is what the engine is made from. It reads the files of listeners with TLS, and of
// TLS to the broker, and says which setting and file is wrong.
func (s *Settings) ProxyConfig(version string, logger *slog.Logger) (proxy.Config, error) {
	c := s.Engine
	c.Version, c.Logger = version, logger
	c.Listeners = nil
	var wrong Error
	for i, l := range s.Listeners {
		listener := proxy.Listener{Address: l.HostPort(), Mode: l.PoolMode, MatchProperties: l.MatchProperties, Access: proxy.Access{Allow: l.Allow, Deny: l.Deny}}
		if l.TLS {
			t, problems := l.server()
			for _, p := range problems {
				wrong.Problems = append(wrong.Problems, fmt.Sprintf("listener %d: %s", i+1, p))
			}
			listener.TLS = t
		}
		if l.ProxyProtocol == "required" {
			listener.Proxy = &proxy.ProxyProtocol{From: l.ProxyFrom, Direct: l.DirectFrom}
		}
		c.Listeners = append(c.Listeners, listener)
	}
	c.Limits = s.engineLimits()
	users, problems := s.engineUsers()
	wrong.Problems = append(wrong.Problems, problems...)
	c.Users, c.UnknownUsers = users, proxy.UnknownUsers(s.Auth.UnknownUsers)
	for i, b := range s.Brokers() {
		u := proxy.Upstream{Host: b.Host, Port: b.Port}
		if b.TLS {
			t, err := s.TLS.client(b.Host)
			if err != nil && i == 0 { // of the others the same
				wrong.Problems = append(wrong.Problems, err.Error())
			}
			u.TLS = t
		}
		if i == 0 {
			c.Upstream, c.Others = u, nil
		} else {
			c.Others = append(c.Others, u)
		}
	}
	c.Brokers, c.Routes, problems = s.engineRoutes()
	wrong.Problems = append(wrong.Problems, problems...)
	if len(wrong.Problems) > 0 {
		return proxy.Config{}, &wrong
	}
	// The table's bounds are the engine's (a test holds them equal); a stricter engine has the last word.
	if err := c.Validate(); err != nil {
		return proxy.Config{}, &Error{Problems: []string{err.Error()}}
	}
	return c, nil
}

// systemRoots is x509.SystemCertPool; tests take its place.
var systemRoots = x509.SystemCertPool

// client is the TLS configuration with which the broker is dialled.
func (t *TLS) client(host string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host, InsecureSkipVerify: !t.Verify}
	if t.ServerName != "" {
		c.ServerName = t.ServerName
	}
	switch {
	case t.CAFile != "":
		pem, err := readFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("tls.ca_file: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tls.ca_file: %s: holds no certificate, allowed is PEM (-----BEGIN CERTIFICATE-----)", t.CAFile)
		}
	case t.Verify:
		roots, err := systemRoots()
		if err != nil || roots.Equal(x509.NewCertPool()) {
			if c.RootCAs, err = builtinRoots(); err != nil {
				return nil, fmt.Errorf("the built-in certificate authorities: %w; set tls.ca_file", err)
			}
		}
	}
	if t.CertFile != "" {
		cert, err := readFile(t.CertFile)
		if err != nil {
			return nil, fmt.Errorf("tls.cert_file: %w", err)
		}
		key, err := readFile(t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("tls.key_file: %w", err)
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("tls.cert_file, tls.key_file: %s and %s are no pair in PEM: %w", t.CertFile, t.KeyFile, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// Warnings are settings that are allowed but unwise.
func (s *Settings) Warnings() (warnings []string) {
	if s.usesTLS() && !s.TLS.Verify {
		warnings = append(warnings, "tls.verify is false: the broker's certificate is not verified, anyone on the way can read passwords")
	}
	if !s.usesTLS() && s.TLS != Defaults().TLS {
		warnings = append(warnings, "[tls] is set but upstream.url is "+s.Broker.String()+", without TLS")
	}
	byCertificate := slices.ContainsFunc(s.Listeners, func(l Listener) bool { return l.ExternalUser != string(proxy.ExternalOff) })
	for i := range s.Users {
		if u := &s.Users[i]; u.Certificate != "" && !byCertificate {
			warnings = append(warnings, u.which(i)+": user.certificate is set but no listener has external_user: it lets nobody in")
		}
	}
	for i := range s.Limits {
		if w := s.Limits[i].warning(i, s.Listeners); w != "" {
			warnings = append(warnings, w)
		}
	}
	for i, l := range s.Listeners {
		if l.ProxyProtocol == "off" && len(l.ProxyFrom)+len(l.DirectFrom) > 0 {
			warnings = append(warnings, fmt.Sprintf("listener %d: listener.proxy_from or listener.direct_from is set but listener.proxy_protocol is off", i+1))
		}
		for _, w := range l.warnings(time.Now()) {
			warnings = append(warnings, fmt.Sprintf("listener %d: %s", i+1, w))
		}
	}
	return append(warnings, s.routeWarnings()...)
}

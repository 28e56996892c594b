package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// A renewed certificate is taken by itself; one that is half written is waited for, and one that
// is broken leaves the old one, with one line.
func TestRenewedCertificates(t *testing.T) {
	ca, err := proxytest.NewCerts()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "a.pem"), filepath.Join(dir, "a.key")
	renew := func(only ...string) {
		t.Helper()
		c, k, err := ca.Issue(x509.Certificate{DNSNames: []string{"a.example"}})
		if err != nil {
			t.Fatal(err)
		}
		for path, data := range map[string][]byte{cert: c, key: k} {
			if len(only) == 0 || only[0] == path {
				writeFile(t, path, string(data))
			}
		}
	}
	renew()
	e, fake, _ := startEngine(t, nil, "[[listener]]\nport = 0\ntls = true\ncert_file = '"+cert+"'\nkey_file = '"+key+"'\n[http]\nport = 0\n")
	defer func() { _ = e.Drain(t.Context()) }()
	var log bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	defer slog.SetDefault(before)
	// The clock is the test's: files are as old as it says.
	now := time.Now()
	aged := func() time.Time {
		now = now.Add(time.Hour)
		for _, f := range []string{cert, key} {
			_ = os.Chtimes(f, now, now)
		}
		return now
	}
	look := func(after time.Duration) int {
		n := len(fake.reloaded)
		e.lookAtCertificates(now.Add(after))
		return len(fake.reloaded) - n
	}
	e.certificates.asked = now.Add(1000 * time.Hour)
	if look(time.Minute) != 0 {
		t.Error("nothing has changed, and the proxy was reloaded")
	}
	renew()
	aged()
	if look(time.Second) != 0 {
		t.Error("files that were written a second ago are read")
	}
	if look(time.Minute) != 1 || look(2*time.Minute) != 0 {
		t.Error("renewed files are not taken once")
	}
	got := fake.reloaded[0].Listeners[0].TLS.Certificates[0].Leaf
	written, err := tls.LoadX509KeyPair(cert, key)
	if err != nil || !got.Equal(written.Leaf) || strings.Count(log.String(), "certificates renewed") != 1 {
		t.Errorf("logged\n%s", log.String())
	}
	log.Reset()
	renew(cert) // without its key
	aged()
	if look(time.Minute)+look(2*time.Minute)+look(3*time.Minute) != 0 {
		t.Error("half a renewal is taken")
	}
	if n := strings.Count(log.String(), "renewed certificates are not taken, those from before stay"); n != 1 || strings.Count(log.String(), "\n") != 1 {
		t.Errorf("%d lines of it:\n%s", n, log.String())
	}
	renew()
	aged()
	if look(time.Minute) != 1 {
		t.Error("a renewal after a broken one is not taken")
	}
	log.Reset()
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if look(time.Minute)+look(2*time.Minute) != 0 || strings.Count(log.String(), "are not taken") != 1 {
		t.Errorf("a key that has gone:\n%s", log.String())
	}

	// Once a day it is said what expires.
	log.Reset()
	fake.shows = []proxy.ListenerStats{{Address: "a", Certificates: []proxy.CertificateStats{
		{File: "soon", NotAfter: now.Add(13 * 24 * time.Hour)}, {File: "later", NotAfter: now.Add(15 * 24 * time.Hour)}}}}
	e.certificates.asked = time.Time{}
	for i := range 10 {
		look(time.Duration(i) * time.Minute)
	}
	if n := strings.Count(log.String(), "certificate expires soon"); n != 1 || !strings.Contains(log.String(), "file=soon") {
		t.Errorf("%d lines:\n%s", n, log.String())
	}
}

package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// answering listens on a port whose every connection hears answer after the first octets it sent,
// and then the end.
func answering(t *testing.T, over *tls.Config, answer string) *net.TCPAddr {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().(*net.TCPAddr)
	if over != nil {
		ln = tls.NewListener(ln, over)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_ = conn.SetDeadline(time.Now().Add(time.Minute))
			_, _ = conn.Read(make([]byte, 16<<10))
			_, _ = io.WriteString(conn, answer)
			_ = conn.Close()
		}
	})
	return addr
}

// Each kind of port that is not the broker's: the operator reads what would be right, in the same
// words at all times, and clients do not.
func TestHints(t *testing.T) {
	certs, err := proxytest.NewCerts()
	if err != nil {
		t.Fatal(err)
	}
	const http, noTLS = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n", "AMQP\x00\x00\x09\x01"
	for name, c := range map[string]struct {
		over   *tls.Config // of the listener
		answer string
		with   *tls.Config // of the proxy
		want   string
	}{
		"amqp to TLS":            {certs.Server(), "", nil, "(does this port speak TLS? then amqps://)"},
		"amqp to TLS, alerted":   {nil, "\x15\x03\x03\x00\x02\x02\x0a", nil, "cannot be reached: this port speaks TLS: amqps://"},
		"amqps to plain":         {nil, noTLS, certs.Client(), "TLS: first record does not look like a TLS handshake (this port speaks no TLS: amqp://, or port 5671)"},
		"amqps to plain, silent": {nil, "", certs.Client(), "(does this port speak TLS? if not, amqp://)"},
		"amqp to HTTP":           {nil, http, nil, "cannot be reached: it answers in HTTP: that is no AMQP port"},
		"amqps to HTTP":          {nil, http, certs.Client(), "cannot be reached: it answers in HTTP: that is no AMQP port"},
		"amqps to HTTPS":         {certs.Server(), http, certs.Client(), "cannot be reached: it answers in HTTP: that is no AMQP port"},
		"unknown authority":      {certs.Server(), "", &tls.Config{ServerName: "localhost", MinVersion: tls.VersionTLS12}, "(tls.ca_file names the authorities that are trusted)"},
	} {
		t.Run(name, func(t *testing.T) {
			at := answering(t, c.over, c.answer)
			ctx, stop := context.WithCancel(context.Background())
			defer stop()
			var d net.Dialer
			b := New(ctx, slog.New(slog.DiscardHandler), func(f func()) { go f() }, Config{
				Targets: []Target{{Host: "127.0.0.1", Port: at.Port, TLS: c.with}}, ConnectTimeout: time.Minute,
				RetryDelay: time.Hour, WaitTimeout: time.Minute, Dial: d.DialContext})
			err := b.Check(ctx)
			var un *Unreachable
			if !errors.As(err, &un) || !strings.HasSuffix(err.Error(), c.want) {
				t.Fatalf("the operator reads %v, want it to end with %s", err, c.want)
			}
			if again := b.Check(ctx); again == nil || again.Error() != err.Error() {
				t.Errorf("at first it is %q, then %v", err, again)
			}
			hint := c.want[strings.LastIndexAny(c.want, "(")+1:]
			if for_ := un.ForClients(); strings.Contains(for_, strings.TrimSuffix(hint, ")")) || strings.Contains(for_, "://") {
				t.Errorf("clients hear %q", for_)
			}
			if _, reason, ok := b.Away(); !ok || !strings.Contains(reason, strings.TrimPrefix(c.want, "cannot be reached: ")) {
				t.Errorf("away %v: %q", ok, reason)
			}
		})
	}
}

// An address at which a broker has greeted is right: that it ends connections is no wrong scheme.
func TestNoGuessOfAnAddressThatIsRight(t *testing.T) {
	withBroker(t, func(r *rig) {
		done := r.login(Known, "u")
		r.sc.AcceptOpen()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		done = r.login(Known, "u")
		p := r.sc.Accept()
		p.ExpectHeader()
		p.Cut()
		if err := <-done; err == nil || strings.Contains(err.Error(), "TLS") {
			t.Errorf("heard %v", err)
		}
	})
}

// What a client hears when it is refused, or when the broker cannot be reached: the
// broker's own words where there is a broker, nothing but the end where there is none.

//go:build linux

package integration

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	wire "github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// heard is an error as a client tells it: code and text when the peer sent them.
func heard(err error) string {
	var e *amqp.Error
	if errors.As(err, &e) {
		return fmt.Sprintf("%d %s", e.Code, e.Reason)
	}
	return fmt.Sprint(err)
}

func TestRefusals(t *testing.T) {
	cases := []struct {
		name string
		cfg  proxytest.ClientConfig
	}{
		{"wrong password", proxytest.ClientConfig{Password: "wrong"}},
		// A client that does not know of the notice sees its socket closed, after a moment.
		{"wrong password, without the capability", proxytest.ClientConfig{Password: "wrong",
			Properties: wire.AppendStringField(nil, "product", "old")}},
		{"unknown user", proxytest.ClientConfig{User: "nobody"}},
		{"AMQPLAIN, wrong password", proxytest.ClientConfig{Mechanism: "AMQPLAIN", Password: "wrong"}},
		{"unknown vhost", proxytest.ClientConfig{VHost: "nowhere"}},
		{"vhost without permission", proxytest.ClientConfig{User: "stranger", Password: "secret"}},
	}
	for _, v := range versions(t) {
		t.Run(string(v), func(t *testing.T) {
			b := rabbit.Get(t, v)
			if _, err := b.Ctl("add_user", "stranger", "secret"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { b.Ctl("delete_user", "stranger") })
			addrs := map[string]string{"straight": b.Addr()}
			if !straight {
				addrs["proxy"] = startProxy(t, true, b.URL(), "").addr
			}
			for _, c := range cases {
				t.Run(c.name, func(t *testing.T) {
					got := map[string]string{}
					for via, addr := range addrs {
						c.cfg.Addr = addr
						for range 2 { // the second time it is known to the proxy, if it knows anything
							began := time.Now()
							conn, err := proxytest.Dial(c.cfg)
							if err == nil {
								conn.Abort()
								t.Fatalf("%s: accepted", via)
							}
							if d := time.Since(began); d > 5*time.Second {
								t.Errorf("%s: refused only after %v", via, d)
							}
							got[via] = sockets.ReplaceAllString(err.Error(), "")
						}
						canary(t, addr)
					}
					if p := got["proxy"]; !straight && p != got["straight"] {
						t.Errorf("through the proxy a client hears %q, straight %q", p, got["straight"])
					}
					t.Logf("heard: %s", got["straight"])
				})
			}
		})
	}
}

// sockets are the addresses in an error, which differ between any two connections.
var sockets = regexp.MustCompile(` 127\.0\.0\.1:\d+->127\.0\.0\.1:\d+`)

// canary checks that an ordinary client is served: publish, confirm, get.
func canary(t testing.TB, addr string) {
	t.Helper()
	conn, err := dial(addr, amqp.Config{})
	if err != nil {
		t.Fatalf("canary: %s", heard(err))
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatalf("canary: %v", err)
	}
	q, err := ch.QueueDeclare("", false, true, false, false, amqp.Table{"x-expires": int32(60_000)})
	if err != nil {
		t.Fatalf("canary: declare: %v", err)
	}
	defer ch.QueueDelete(q.Name, false, false, false)
	if err := ch.Confirm(false); err != nil {
		t.Fatalf("canary: confirm: %v", err)
	}
	c, err := ch.PublishWithDeferredConfirm("", q.Name, true, false, amqp.Publishing{Body: []byte("sings")})
	if err != nil || !wait(c) {
		t.Fatalf("canary: publish: %v, or no confirm", err)
	}
	d, ok, err := ch.Get(q.Name, true)
	if err != nil || !ok || string(d.Body) != "sings" {
		t.Fatalf("canary: get: %q, %v, %v", d.Body, ok, err)
	}
}

// Real clients of other kinds hear of a wrong password as such, not as a broken wire.
func TestWrongPasswordInOtherClients(t *testing.T) {
	each(t, "", func(t *testing.T, tg *target) {
		for name, c := range map[string]struct {
			command []string
			says    string
		}{
			"php-amqp": {[]string{"php", "-r", `$c = new AMQPConnection(['host' => '127.0.0.1', 'port' => ` + tg.port() +
				`, 'login' => 'guest', 'password' => 'wrong']); $c->connect();`}, "ACCESS_REFUSED"},
			"php-amqplib": {[]string{"php", "-r", `require 'PhpAmqpLib/autoload.php'; new PhpAmqpLib\Connection\AMQPStreamConnection('127.0.0.1', ` +
				tg.port() + `, 'guest', 'wrong');`}, "ACCESS_REFUSED"},
			"pika": {[]string{"/usr/bin/python3", "-c", `import pika; pika.BlockingConnection(pika.ConnectionParameters('127.0.0.1', ` +
				tg.port() + `, credentials=pika.PlainCredentials('guest', 'wrong')))`}, "ProbableAuthenticationError"},
			"amqp-tools": {[]string{"amqp-get", "-s", "127.0.0.1", "--port", tg.port(), "--username", "guest", "--password", "wrong", "-q", "q"}, "ACCESS_REFUSED"},
		} {
			t.Run(name, func(t *testing.T) {
				if _, err := exec.LookPath(c.command[0]); err != nil {
					rabbit.Skip(t, err)
				}
				out, err := exec.Command(c.command[0], c.command[1:]...).CombinedOutput()
				if err == nil || !strings.Contains(string(out), c.says) {
					t.Errorf("%v, and it says %q; want a failure that says %q", err, out, c.says)
				}
			})
		}
		canary(t, tg.addr)
	})
}

// notGreeted dials and checks that the socket is closed without a word, soon enough, and that the
// proxy's log has the words.
func notGreeted(t *testing.T, p *process, within time.Duration, words string) {
	t.Helper()
	began := time.Now()
	conn, err := net.DialTimeout("tcp", p.addr, within)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(began.Add(within))
	_, _ = conn.Write([]byte("AMQP\x00\x00\x09\x01"))
	b, err := io.ReadAll(conn)
	took := time.Since(began)
	if len(b) != 0 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("heard %q and %v, want the end before connection.start within %v", b, err, within)
	}
	for end := time.Now().Add(30 * time.Second); !strings.Contains(p.log.String(), words); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) { // the line comes beside the end of the socket, not before it
			t.Errorf("the log does not say %q", words)
			break
		}
	}
	t.Logf("closed after %v", took.Round(time.Millisecond))
}

func TestBrokerDown(t *testing.T) {
	if straight {
		t.Skip("STRAIGHT=1")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	silent := ln.Addr().String() // accepts in the kernel and says nothing
	ports, err := rabbit.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("refused", func(t *testing.T) {
		p := startProxy(t, true, fmt.Sprintf("amqp://127.0.0.1:%d", ports[0]), "")
		base := p.usage(t)
		for range 3 {
			notGreeted(t, p, 2*time.Second, "refused")
		}
		p.returnsTo(t, base)
	})
	t.Run("silent", func(t *testing.T) {
		p := startProxy(t, true, "amqp://"+silent, "[upstream]\nconnect_timeout = \"2s\"\n")
		base := p.usage(t)
		notGreeted(t, p, 4*time.Second, "")
		notGreeted(t, p, 4*time.Second, "")
		p.returnsTo(t, base)
	})
	t.Run("unknown host", func(t *testing.T) {
		p := startProxy(t, true, "amqp://no-such-host.invalid", "")
		notGreeted(t, p, 6*time.Second, "no-such-host.invalid")
	})
}

func TestTLS(t *testing.T) {
	through(t, func(t *testing.T, b *rabbit.Broker) {
		t.Run("known CA", func(t *testing.T) {
			p := startProxy(t, true, b.TLSURL(), fmt.Sprintf("[tls]\nca_file = %q\n", b.CAFile))
			canary(t, p.addr)
		})
		t.Run("unknown CA", func(t *testing.T) {
			p := startProxy(t, true, b.TLSURL(), "")
			base := p.usage(t)
			for range 3 {
				notGreeted(t, p, 5*time.Second, "certificate")
			}
			p.returnsTo(t, base)
		})
		t.Run("wrong name", func(t *testing.T) {
			p := startProxy(t, true, b.TLSURL(), fmt.Sprintf("[tls]\nca_file = %q\nserver_name = \"elsewhere.example\"\n", b.CAFile))
			notGreeted(t, p, 5*time.Second, "elsewhere.example")
		})
		t.Run("not verified", func(t *testing.T) {
			p := startProxy(t, true, b.TLSURL(), "[tls]\nverify = false\n")
			canary(t, p.addr)
		})
		t.Run("plain port", func(t *testing.T) {
			p := startProxy(t, true, "amqps://"+b.Addr(), "[upstream]\nconnect_timeout = \"3s\"\n")
			notGreeted(t, p, 5*time.Second, "")
		})
	})
}

// A client that speaks TLS to the proxy's AMQP port is told in AMQP's way, and the log
// helps whoever looks.
func TestTLSHelloToProxy(t *testing.T) {
	through(t, func(t *testing.T, b *rabbit.Broker) {
		p := startProxy(t, true, b.URL(), "")
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", p.addr, &tls.Config{InsecureSkipVerify: true})
		if err == nil {
			conn.Close()
			t.Fatal("TLS was answered")
		}
		if !strings.Contains(err.Error(), "first record does not look like a TLS handshake") {
			t.Errorf("heard %v", err)
		}
		eventually(t, "the log helps", func() error {
			if !strings.Contains(p.log.String(), "TLS") {
				return errors.New("no word of TLS")
			}
			return nil
		})
		canary(t, p.addr)
	})
}

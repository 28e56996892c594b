// Users whose credentials the proxy keeps, before a real RabbitMQ: its password is changed amid
// traffic, and its verdicts on certificates are the proxy's.

//go:build linux

package integration

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// hashOfTest12 is from RabbitMQ's documentation on passwords.
const hashOfTest12 = "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"

// The file first, then the broker: nobody is refused, be it on a shared connection or on one of its own.
func TestPasswordChangedAmidTraffic(t *testing.T) {
	through(t, func(t *testing.T, b *rabbit.Broker) {
		const at = "prod-shop"
		ctl := func(args ...string) {
			t.Helper()
			if said, err := b.Ctl(args...); err != nil {
				t.Fatalf("rabbitmqctl %v: %v\n%s", args, err, said)
			}
		}
		ctl("add_user", at, "0ld-secret")
		t.Cleanup(func() { _, _ = b.Ctl("delete_user", at) })
		ctl("set_permissions", "-p", "/", at, ".*", ".*", ".*")
		dir := t.TempDir()
		secret := filepath.Join(dir, "secret")
		write := func(text string) {
			t.Helper()
			if err := os.WriteFile(secret+".new", []byte(text+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(secret+".new", secret); err != nil {
				t.Fatal(err)
			}
		}
		write("0ld-secret")
		p := startProxy(t, true, b.URL(), fmt.Sprintf("[[listener]]\n[pool]\nauth_ttl = \"1s\"\n[[user]]\nname = \"shop\"\npassword_hash = %q\nbroker_user = %q\nbroker_password_file = %q\n", hashOfTest12, at, secret))
		var served, refused atomic.Int64
		var mu sync.Mutex
		var first error
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for {
					select {
					case <-stop:
						return
					default:
					}
					c, err := proxytest.Dial(proxytest.ClientConfig{Addr: p.addr, User: "shop", Password: "test12", Timeout: patience})
					if err == nil {
						err = c.OpenChannel(1)
						switch {
						case err != nil:
						case i%2 == 0: // a connection of its own
							_, err = c.DeclareQueue(1, "", proxytest.Exclusive)
						default:
							if err = c.Confirm(1); err == nil {
								err = c.Publish(1, "", "nowhere", []byte("x"))
							}
							if err == nil {
								err = c.WaitConfirms(1)
							}
						}
						_ = c.Close()
					}
					if err == nil {
						served.Add(1)
						continue
					}
					var e *amqp.Error
					if !errors.As(err, &e) || e.Code != amqp.AccessRefused {
						t.Logf("a client failed, and was not refused: %v", err)
						continue
					}
					refused.Add(1)
					mu.Lock()
					if first == nil {
						first = err
					}
					mu.Unlock()
				}
			}()
		}
		// Each step is over when clients were served after it, on connections that are opened in it.
		serve := func(what string) {
			t.Helper()
			from := served.Load()
			eventually(t, what, func() error {
				if n := served.Load() - from; n < 100 {
					return fmt.Errorf("%d clients were served", n)
				}
				return nil
			})
		}
		serve("clients are served")
		write("n3w-secret")
		p.signal(syscall.SIGHUP)
		eventually(t, "the reload", func() error {
			if !strings.Contains(p.log.String(), "configuration reloaded") {
				return fmt.Errorf("the log has no such line")
			}
			return nil
		})
		serve("clients are served when the file is changed and the broker is not")
		ctl("change_password", at, "n3w-secret")
		serve("clients are served when both are changed")
		eventually(t, "the new secret is accepted", func() error {
			if !strings.Contains(p.log.String(), "the broker has accepted the new secret") {
				return fmt.Errorf("the log has no such line")
			}
			return nil
		})
		close(stop)
		wg.Wait()
		t.Logf("%d served, %d refused", served.Load(), refused.Load())
		if refused.Load() > 0 {
			t.Errorf("%d of %d clients were refused, the first with %v", refused.Load(), served.Load()+refused.Load(), first)
		}
		for _, s := range []string{"0ld-secret", "n3w-secret", hashOfTest12} {
			if strings.Contains(p.log.String(), s) {
				t.Errorf("the log has %q", s)
			}
		}
	})
}

// The verdicts of rabbitmq_auth_mechanism_ssl, straight, and those of the proxy, by the byte.
func TestExternalAsRabbitMQ(t *testing.T) {
	if os.Getenv("FULL") == "" {
		t.Skip("starts a broker of its own: with FULL=1 only")
	}
	ca, err := proxytest.NewCerts()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "users-test")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	write := func(name string, data []byte, mode os.FileMode) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	clients := write("clients.pem", ca.CAPEM, 0o644)
	b, err := rabbit.Start(rabbit.V310, rabbit.WithPlugins("rabbitmq_auth_mechanism_ssl"), rabbit.WithSettings(fmt.Sprintf(`ssl_options.cacertfile = %s
ssl_options.verify = verify_peer
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = AMQPLAIN
auth_mechanisms.3 = EXTERNAL
ssl_cert_login_from = common_name
`, clients)))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, args := range [][]string{{"add_user", "shop-web", "x"}, {"set_permissions", "-p", "/", "shop-web", ".*", ".*", ".*"}} {
		if said, err := b.Ctl(args...); err != nil {
			t.Fatal(err, said)
		}
	}
	p := startProxy(t, true, b.URL(), fmt.Sprintf("[[listener]]\ntls = true\ncert_file = %q\nkey_file = %q\nclient_cert = \"optional\"\nclient_ca_file = %q\nexternal_user = \"cn\"\n"+
		"[[user]]\nname = \"shop\"\ncertificate = \"shop-web\"\nbroker_user = \"shop-web\"\nbroker_password_file = %q\n",
		write("s.pem", ca.CertPEM, 0o644), write("s.key", ca.KeyPEM, 0o600), clients, write("secret", []byte("x"), 0o600)))
	for _, c := range []struct{ cn, mechanism string }{{"shop-web", "EXTERNAL"}, {"stranger", "EXTERNAL"}, {"", "EXTERNAL"}, {"stranger", "PLAIN"}} {
		var heard []string
		for _, addr := range []string{b.TLSAddr(), p.addr} {
			cfg := &tls.Config{InsecureSkipVerify: true}
			if c.cn != "" {
				cert, key, err := ca.Issue(x509.Certificate{Subject: pkix.Name{CommonName: c.cn}})
				if err != nil {
					t.Fatal(err)
				}
				pair, err := tls.X509KeyPair(cert, key)
				if err != nil {
					t.Fatal(err)
				}
				cfg.Certificates = []tls.Certificate{pair}
			}
			client, err := proxytest.Dial(proxytest.ClientConfig{Addr: addr, TLS: cfg, Mechanism: c.mechanism, User: "nobody", Password: "wrong", Timeout: patience})
			if err == nil {
				_ = client.Close()
			}
			heard = append(heard, fmt.Sprint(err))
		}
		t.Logf("certificate %q, %s: straight %s; through the proxy %s", c.cn, c.mechanism, heard[0], heard[1])
		if heard[0] != heard[1] {
			t.Errorf("certificate %q, %s: straight %s; through the proxy %s", c.cn, c.mechanism, heard[0], heard[1])
		}
	}
}

// Users whose credentials the proxy keeps, before a real RabbitMQ: its password is changed amid
// traffic.

//go:build linux

package integration

import (
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

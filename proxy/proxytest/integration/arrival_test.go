// How clients arrive: over TLS, and through HAProxy that tells who they are.

//go:build linux

package integration

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// secured are the clients whose programs speak TLS where AMQP_CACERT is set.
func secured() (some []client) {
	for _, c := range clients {
		switch c.name {
		case "php-amqp", "php-amqplib", "pika", "amqplib":
			some = append(some, c)
		}
	}
	return some
}

// tlsListener is a [[listener]] that shows the broker's certificate.
func tlsListener(b *rabbit.Broker) string {
	dir := filepath.Dir(b.CAFile)
	return fmt.Sprintf("[[listener]]\ntls = true\ncert_file = %q\nkey_file = %q\n", dir+"/server.pem", dir+"/server.key")
}

func TestClientsOverTLS(t *testing.T) {
	b := rabbit.Get(t, versions(t)[0])
	p := startProxy(t, true, b.URL(), tlsListener(b))
	tg := &target{via: "proxy", addr: p.addr, broker: b, proxy: p}
	for _, c := range secured() {
		t.Run(c.name, func(t *testing.T) {
			c.env = []string{"AMQP_CACERT=" + b.CAFile}
			for op, n := range map[string]int{"publish": 200, "consume": 200, "get": 20, "short": 20} {
				t.Run(op, func(t *testing.T) { operation(t, tg, &c, op, n) })
			}
		})
		t.Run(c.name+" in plain", func(t *testing.T) {
			c := exec.Command(c.command[0], append(c.command[1:len(c.command):len(c.command)], "short", tg.port(), "none", "1")...)
			c.Env = append(os.Environ(), "NODE_PATH="+filepath.Join(rabbit.CacheDir(), "node/node_modules"))
			out, err := c.CombinedOutput()
			if err == nil {
				t.Fatal("it is served")
			}
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			t.Logf("it says: %.200s", lines[len(lines)-1])
			eventually(t, "the line", func() error {
				if !strings.Contains(p.log.String(), "it sent plain AMQP; this port speaks TLS") {
					return fmt.Errorf("the log is\n%s", p.log.String())
				}
				return nil
			})
		})
	}
}

// HAProxy tells the proxy who the clients are, by both versions, with its checks on.
func TestBehindHAProxy(t *testing.T) {
	haproxy, err := exec.LookPath("haproxy")
	if err != nil {
		rabbit.Skip(t, fmt.Errorf("haproxy is not installed (`make deps` installs it): %w", err))
	}
	b := rabbit.Get(t, versions(t)[0])
	for _, how := range []string{"send-proxy", "send-proxy-v2", "send-proxy-v2-ssl-cn"} {
		t.Run(how, func(t *testing.T) {
			ports, err := rabbit.FreePorts(1)
			if err != nil {
				t.Fatal(err)
			}
			p := startProxy(t, true, b.URL(), "[[listener]]\nproxy_protocol = \"required\"\nproxy_from = \"127.0.0.1\"\n[log]\nlevel = \"debug\"\n")
			conf := filepath.Join(t.TempDir(), "haproxy.cfg")
			text := fmt.Sprintf("defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\nlisten a\n bind 127.0.0.1:%d\n"+
				" server p %s %s check check-send-proxy inter 200ms\n", ports[0], p.addr, how)
			if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(haproxy, "-db", "-f", conf)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
			addr := fmt.Sprintf("127.0.0.1:%d", ports[0])
			eventually(t, "HAProxy listens", func() error {
				c, err := net.Dial("tcp", addr)
				if err == nil {
					_ = c.Close()
				}
				return err
			})
			// The client comes from an address that is nobody else's.
			dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 77)}}
			conn, err := dialer.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			from := conn.LocalAddr().String()
			if err := wrongPassword(conn); err == nil {
				t.Fatal("a wrong password is taken")
			}
			eventually(t, "the log has the client's address", func() error {
				if !strings.Contains(p.log.String(), "address="+from) {
					return fmt.Errorf("it is\n%s", p.log.String())
				}
				return nil
			})
			tg := &target{via: "proxy", addr: addr, broker: b, proxy: p}
			operation(t, tg, &clients[1], "short", 50)
		})
	}
}

// wrongPassword tries to log in on a connection.
func wrongPassword(conn net.Conn) error {
	c, err := amqp.Open(conn, amqp.Config{SASL: []amqp.Authentication{&amqp.PlainAuth{Username: "guest", Password: "wrong"}}, Vhost: "/"})
	if err == nil {
		_ = c.Close()
	}
	return err
}

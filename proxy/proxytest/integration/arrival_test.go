// How clients arrive over TLS.

//go:build linux

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

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

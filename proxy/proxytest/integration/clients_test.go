// Client libraries of six kinds publishing, getting, consuming, confirming, doing tx
// and RPC. What they did is checked by themselves and in the broker.

//go:build linux

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// client is a program that takes OP PORT QUEUE N, or a function that does the same.
type client struct {
	name    string
	needs   string   // a file that is there when the client is installed
	command []string // the program and its first arguments
	lacks   []string // operations the library does not have
	env     []string // more of the environment
	inside  func(ctx context.Context, op, port, queue string, n int) error
}

var clients = []client{
	{name: "php-amqp", needs: "/usr/share/doc/php-amqp", command: []string{"php", "clients/php-amqp.php"}},
	{name: "php-amqplib", needs: "/usr/share/php/PhpAmqpLib/autoload.php", command: []string{"php", "clients/php-amqplib.php"}},
	{name: "pika", needs: "/usr/lib/python3/dist-packages/pika", command: []string{"/usr/bin/python3", "clients/pika_client.py"}},
	{name: "kombu", needs: "/usr/lib/python3/dist-packages/kombu", command: []string{"/usr/bin/python3", "clients/kombu_client.py"}},
	{name: "amqplib", needs: filepath.Join(rabbit.CacheDir(), "node/node_modules/amqplib/package.json"),
		command: []string{"node", "clients/amqplib.js"}, lacks: []string{"tx"}},
	{name: "amqp-tools", needs: "/usr/bin/amqp-publish", command: []string{"clients/amqp-tools.sh"},
		lacks: []string{"tx", "rpc", "direct"}},
	{name: "amqp091-go", inside: goClient},
}

// result is what a client program prints.
type result struct {
	N  int
	MS []float64 // per connection, of the operation "short"
}

// run does one operation and returns the program's result.
func (c *client) run(t testing.TB, op, port, queue string, n int) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	if c.inside != nil {
		if err := c.inside(ctx, op, port, queue, n); err != nil {
			t.Fatalf("%s %s: %v", c.name, op, err)
		}
		return result{N: n}
	}
	if _, err := os.Stat(c.needs); err != nil {
		rabbit.Skip(t, fmt.Errorf("%s is not installed (`make deps` installs it): %w", c.name, err))
	}
	cmd := exec.CommandContext(ctx, c.command[0], append(slices.Clone(c.command[1:]), op, port, queue, strconv.Itoa(n))...)
	cmd.Env = append(append(os.Environ(), "NODE_PATH="+filepath.Join(rabbit.CacheDir(), "node/node_modules")), c.env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", c.name, op, errors.Join(err, ctx.Err()), stdout.String(), stderr.String())
	}
	var r result
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil || r.N != n {
		t.Fatalf("%s %s printed %q (%v), want n %d\n%s", c.name, op, stdout.String(), err, n, stderr.String())
	}
	return r
}

func TestClients(t *testing.T) {
	eachAtOnce(t, "", func(t *testing.T, tg *target) {
		many := 10_000
		if tg.via == "straight" {
			many = count(1000, many)
		}
		for _, c := range clients {
			t.Run(c.name, func(t *testing.T) {
				for _, k := range []struct {
					op string
					n  int
				}{
					{"publish", many}, {"consume", many}, {"get", 500}, {"tx", 300}, {"rpc", 200}, {"direct", 200}, {"short", 100},
				} {
					if slices.Contains(c.lacks, k.op) {
						continue
					}
					n := k.n
					if c.name == "amqp-tools" && k.op != "publish" {
						n = min(n, 100) // a process for each message
					}
					t.Run(k.op, func(t *testing.T) { operation(t, tg, &c, k.op, n) })
				}
			})
		}
	})
}

// operation lets a client do one thing n times and checks it in the broker.
func operation(t *testing.T, tg *target, c *client, op string, n int) {
	o := observe(t, tg.broker)
	q := o.queue("q")
	switch op {
	case "consume", "get":
		o.fill(q, n)
	case "rpc", "direct":
		o.answer(q)
	}
	began := time.Now()
	r := c.run(t, op, tg.port(), q, n)
	t.Logf("%s %s ×%d in %v", c.name, op, n, time.Since(began).Round(time.Millisecond))
	switch op {
	case "publish", "tx":
		o.drain(q, n)
	case "short":
		o.drainAny(q, n)
	case "consume", "get":
		o.empty(q)
	}
	if op == "short" && len(r.MS) > 0 {
		t.Logf("per connection: p50 %.2f ms, p99 %.2f ms", percentile(r.MS, 50), percentile(r.MS, 99))
	}
}

// percentile of values, by the nearest rank.
func percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	i := int(float64(len(s))*p/100+0.5) - 1
	return s[min(max(i, 0), len(s)-1)]
}

// TestClientVersions tells which clients were met.
func TestClientVersions(t *testing.T) {
	for _, probe := range [][]string{
		{"php", "-r", `echo "php ", PHP_VERSION, ", php-amqp ", phpversion("amqp"), "\n";`},
		{"/usr/bin/python3", "-c", "import pika,kombu,amqp;print('pika',pika.__version__+', kombu',kombu.__version__+', py-amqp',amqp.__version__)"},
		{"dpkg-query", "-W", "php-amqplib", "amqp-tools"},
		{"node", "-p", "'node '+process.version+', amqplib '+require(process.env.NODE_PATH+'/amqplib/package.json').version"},
	} {
		cmd := exec.Command(probe[0], probe[1:]...)
		cmd.Env = append(os.Environ(), "NODE_PATH="+filepath.Join(rabbit.CacheDir(), "node/node_modules"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			rabbit.Skip(t, fmt.Errorf("%s: %w: %s", probe[0], err, out))
		}
		t.Logf("FIGURE %s", strings.Join(strings.Fields(string(out)), " "))
	}
}

// A broker that is restarted, with hold: a pause for PHP, and no error. CLUSTER=1.

//go:build linux

package integration

import (
	"bufio"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// phpConnects publishes one message per connection, and prints how long each took in ms, or its error.
const phpConnects = `
[, $port, $queue] = $argv;
for ($i = 0; true; $i++) {
    $at = hrtime(true);
    try {
        $conn = new AMQPConnection(['host' => '127.0.0.1', 'port' => (int) $port, 'connect_timeout' => 30, 'read_timeout' => 60, 'rpc_timeout' => 60]);
        $conn->connect();
        $ch = new AMQPChannel($conn);
        $q = new AMQPQueue($ch);
        $q->setName($queue);
        $q->setFlags(AMQP_DURABLE);
        $q->declareQueue();
        (new AMQPExchange($ch))->publish('x', $queue, AMQP_NOPARAM, ['delivery_mode' => 2]);
        $conn->disconnect();
        echo intdiv(hrtime(true) - $at, 1000000), "\n";
    } catch (Exception $e) {
        echo 'error ', strtr($e->getMessage(), "\n", ' '), "\n";
        usleep(100000);
    }
    usleep(20000);
}
`

func TestHoldForPHP(t *testing.T) {
	if os.Getenv("CLUSTER") == "" {
		t.Skip("CLUSTER=1, or make test-cluster")
	}
	for _, hold := range []string{"30s", "0s"} {
		t.Run(hold, func(t *testing.T) {
			b := rabbit.Get(t, rabbit.V310)
			p := startProxy(t, false, b.URL(), "[upstream]\nhold = \""+hold+"\"\n")
			cmd := exec.Command("php", "-d", "display_errors=1", "-r", phpConnects, "--", p.addr[strings.LastIndexByte(p.addr, ':')+1:], "hold")
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
			lines := make(chan string, 1<<16)
			go func() {
				defer close(lines)
				for s := bufio.NewScanner(out); s.Scan(); {
					lines <- s.Text()
				}
			}()
			time.Sleep(3 * time.Second)
			at := time.Now()
			if err := b.Stop(); err != nil {
				t.Fatal(err)
			}
			stopped := time.Since(at)
			if err := b.Restart(); err != nil {
				t.Fatal(err)
			}
			away := time.Since(at)
			time.Sleep(5 * time.Second)
			cmd.Process.Kill()
			n, longest, errs := 0, 0, map[string]int{}
			for line := range lines {
				if text, failed := strings.CutPrefix(line, "error "); failed {
					errs[text]++
				} else if ms, err := strconv.Atoi(line); err == nil {
					n++
					longest = max(longest, ms)
				} else {
					t.Errorf("php says %q", line)
				}
			}
			t.Logf("FIGURE hold = %s, the broker away for %v (stopping took %v): %d served, the longest in %d ms, errors %v", hold,
				away.Round(100*time.Millisecond), stopped.Round(100*time.Millisecond), n, longest, errs)
			if hold != "0s" && len(errs) > 1 {
				t.Errorf("errors: %v", errs)
			}
			if n < 20 {
				t.Errorf("%d served", n)
			}
		})
	}
}

// Limits, for PHP and beside RabbitMQ's own: its words, and a thousand logins at twice the rate. FULL=1.

//go:build linux

package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// What RabbitMQ says at its limits is what the proxy says at its own, byte for byte.
func TestLimitsSayWhatRabbitSays(t *testing.T) {
	through(t, func(t *testing.T, b *rabbit.Broker) {
		ctl := func(args ...string) {
			t.Helper()
			if out, err := b.Ctl(args...); err != nil {
				t.Fatalf("rabbitmqctl %q: %v\n%s", args, err, out)
			}
		}
		says := func(addr string) (code uint16, text string) {
			t.Helper()
			first, err := proxytest.Dial(proxytest.ClientConfig{Addr: addr})
			if err != nil {
				t.Fatal(err)
			}
			defer first.Close()
			_, err = proxytest.Dial(proxytest.ClientConfig{Addr: addr})
			var e *amqp.Error
			if !errors.As(err, &e) {
				t.Fatalf("the second is told %v", err)
			}
			return e.Code, e.Text
		}
		for by, c := range map[string]struct{ set, lift []string }{
			"user":  {[]string{"set_user_limits", "guest", `{"max-connections": 1}`}, []string{"clear_user_limits", "guest", "max-connections"}},
			"vhost": {[]string{"set_vhost_limits", "-p", "/", `{"max-connections": 1}`}, []string{"clear_vhost_limits", "-p", "/"}},
		} {
			ctl(c.set...)
			code, text := says(b.Addr())
			ctl(c.lift...)
			p := startProxy(t, false, b.URL(), fmt.Sprintf("[[limit]]\nby = %q\nmax_clients = 1\n", by))
			if gotCode, got := says(p.addr); gotCode != code || got != text {
				t.Errorf("by %s: the proxy says %d %q, RabbitMQ %d %q", by, gotCode, got, code, text)
			}
			t.Logf("by %s: %d %s", by, code, text)
		}
	})
}

// phpLogins forks a process for each login, at its time, and prints when each began and ended in us, and its error.
const phpLogins = `
[, $port, $n, $every] = $argv;
$start = hrtime(true) + 200000000;
for ($i = 0; $i < $n; $i++) {
    $at = $start + $i * $every * 1000;
    while (($left = $at - hrtime(true)) > 0) usleep(intdiv($left, 1000));
    while (pcntl_waitpid(-1, $status, WNOHANG) > 0);
    if (pcntl_fork() == 0) {
        $error = '';
        $began = hrtime(true);
        try {
            $c = new AMQPConnection(['host' => '127.0.0.1', 'port' => (int) $port, 'connect_timeout' => 30, 'read_timeout' => 60, 'rpc_timeout' => 60]);
            $c->connect();
        } catch (Exception $e) { $error = strtr($e->getMessage(), "\n", ' '); }
        fwrite(STDOUT, intdiv($began - $start, 1000) . ' ' . intdiv(hrtime(true) - $start, 1000) . " $error\n");
        if ($error == '') $c->disconnect();
        posix_kill(posix_getpid(), SIGKILL);
    }
}
while (pcntl_waitpid(-1, $status) > 0);
`

// A thousand PHP processes log in at twice the rate.
func TestConnectRateForPHP(t *testing.T) {
	if os.Getenv("FULL") == "" {
		t.Skip("FULL=1")
	}
	const logins, rate = 1000, 200
	for _, action := range []string{"enforce", "alarm"} {
		t.Run(action, func(t *testing.T) {
			b := rabbit.Get(t, rabbit.V310)
			p := startProxy(t, false, b.URL(), fmt.Sprintf("[[limit]]\nconnect_rate = \"%d/s\"\naction = %q\n", rate, action))
			out, err := exec.Command("php", "-d", "display_errors=1", "-r", phpLogins, "--", portOf(p.addr), strconv.Itoa(logins), strconv.Itoa(1e6/(2*rate))).Output()
			if err != nil {
				t.Fatalf("php: %v\n%s", err, out)
			}
			var n, failed int
			var last, lastBegan, longest time.Duration
			for line := range strings.Lines(string(out)) {
				fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 3)
				began, err1 := strconv.Atoi(fields[0])
				ended, err2 := strconv.Atoi(fields[1])
				if err1 != nil || err2 != nil || len(fields) != 3 {
					t.Fatalf("php says %q", line)
				}
				n++
				if fields[2] != "" {
					failed++
					t.Logf("refused: %s", fields[2])
				}
				last, lastBegan = max(last, time.Duration(ended)*time.Microsecond), max(lastBegan, time.Duration(began)*time.Microsecond)
				longest = max(longest, time.Duration(ended-began)*time.Microsecond)
			}
			delayed := p.metric(t, `amqproxysvc_limited_total{action="delayed",by="user",limit="connect_rate"}`)
			alarms := p.metric(t, `amqproxysvc_limited_total{action="alarm",by="user",limit="connect_rate"}`)
			t.Logf("FIGURE %s %d/s: %d logins of PHP, begun within %v (%.0f/s), were served within %v: %.1f/s; the longest took %v; %d were refused, %v delayed, %v alarms",
				action, rate, n, lastBegan.Round(time.Millisecond), float64(n)/lastBegan.Seconds(), last.Round(time.Millisecond), float64(n)/last.Seconds(),
				longest.Round(time.Millisecond), failed, delayed, alarms)
			if n != logins || failed > 0 {
				t.Errorf("%d logins, %d of them refused", n, failed)
			}
			if action == "enforce" && float64(n)/last.Seconds() > rate*1.05 {
				t.Errorf("they were served at %.1f/s, the limit is %d", float64(n)/last.Seconds(), rate)
			}
		})
	}
}

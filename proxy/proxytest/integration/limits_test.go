// Limits, for PHP and beside RabbitMQ's own: its words, and a thousand logins at twice the rate. FULL=1.

//go:build linux

package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
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
	if os.Getenv("FULL") == "" {
		t.Skip("FULL=1")
	}
	through(t, func(t *testing.T, b *rabbit.Broker) {
		ctl := func(args ...string) {
			t.Helper()
			if out, err := b.Ctl(args...); err != nil {
				t.Fatalf("rabbitmqctl %q: %v\n%s", args, err, out)
			}
		}
		says := func(addr string) (code uint16, text string) {
			t.Helper()
			var first *proxytest.Client
			eventually(t, "the first is let in", func() (err error) { // RabbitMQ counts who has left for a moment
				first, err = proxytest.Dial(proxytest.ClientConfig{Addr: addr})
				return err
			})
			defer first.Close()
			_, err := proxytest.Dial(proxytest.ClientConfig{Addr: addr})
			var e *amqp.Error
			if !errors.As(err, &e) {
				t.Fatalf("the second is told %v", err)
			}
			return e.Code, e.Text
		}
		type said struct {
			code uint16
			text string
		}
		straight := map[string]said{} // first: the proxies have connections that count, too
		for by, c := range map[string]struct{ set, lift []string }{
			"user":  {[]string{"set_user_limits", "guest", `{"max-connections": 1}`}, []string{"clear_user_limits", "guest", "max-connections"}},
			"vhost": {[]string{"set_vhost_limits", "-p", "/", `{"max-connections": 1}`}, []string{"clear_vhost_limits", "-p", "/"}},
		} {
			ctl(c.set...)
			code, text := says(b.Addr())
			ctl(c.lift...)
			straight[by] = said{code, text}
		}
		for by, want := range straight {
			p := startProxy(t, false, b.URL(), fmt.Sprintf("[[limit]]\nby = %q\nmax_clients = 1\n", by))
			if code, text := says(p.addr); (said{code, text}) != want {
				t.Errorf("by %s: the proxy says %d %q, RabbitMQ %d %q", by, code, text, want.code, want.text)
			}
			t.Logf("by %s: %d %s", by, want.code, want.text)
		}
	})
}

// phpLogins are processes that log in again and again, with a connection each time; they print when each login began and
// ended, in us, and its error.
const phpLogins = `
[, $port, $processes, $each] = $argv;
$start = hrtime(true) + 3000000000;
for ($i = 0; $i < $processes; $i++) {
    if (pcntl_fork() != 0) continue;
    while (($left = $start - hrtime(true)) > 0) usleep(intdiv($left, 1000) + 1);
    for ($n = 0; $n < $each; $n++) {
        $error = '';
        $began = hrtime(true);
        try {
            $c = new AMQPConnection(['host' => '127.0.0.1', 'port' => (int) $port, 'connect_timeout' => 30, 'read_timeout' => 60, 'rpc_timeout' => 60]);
            $c->connect();
        } catch (Exception $e) { $error = strtr($e->getMessage(), "\n", ' '); }
        fwrite(STDOUT, intdiv($began - $start, 1000) . ' ' . intdiv(hrtime(true) - $start, 1000) . " $error\n");
        if ($error == '') $c->disconnect();
    }
    exit;
}
while (pcntl_waitpid(-1, $status) > 0);
`

// A thousand logins of a hundred PHP processes, which together would log in at more than twice the rate. Each waits for 2.5 s;
// librabbitmq gives up after twelve.
func TestConnectRateForPHP(t *testing.T) {
	if os.Getenv("FULL") == "" {
		t.Skip("FULL=1")
	}
	const processes, each, rate = 100, 10, 40
	for _, action := range []string{"enforce", "alarm"} {
		t.Run(action, func(t *testing.T) {
			b := rabbit.Get(t, rabbit.V310)
			p := startProxy(t, false, b.URL(), fmt.Sprintf("[[limit]]\nconnect_rate = \"%d/s\"\naction = %q\n", rate, action))
			out, err := exec.Command("php", "-d", "display_errors=1", "-r", phpLogins, "--", portOf(p.addr), strconv.Itoa(processes), strconv.Itoa(each)).Output()
			if err != nil {
				t.Fatalf("php: %v\n%s", err, out)
			}
			var n, failed int
			var longest time.Duration
			var ends []int // in us
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
				ends = append(ends, ended)
				longest = max(longest, time.Duration(ended-began)*time.Microsecond)
			}
			// Of all, and of the nine tenths in the middle: at the end not all processes are there.
			slices.Sort(ends)
			rateOf := func(ends []int) float64 { return float64(len(ends)-1) / float64(ends[len(ends)-1]-ends[0]) * 1e6 }
			middle := rateOf(ends[n/20 : n-n/20])
			delayed := p.metric(t, `amqproxysvc_limited_total{action="delayed",by="user",limit="connect_rate"}`)
			alarms := p.metric(t, `amqproxysvc_limited_total{action="alarm",by="user",limit="connect_rate"}`)
			t.Logf("FIGURE %s %d/s: %d logins of %d PHP processes took %v: %.1f/s, in the middle %.1f/s; the longest took %v; %d were refused, %v delayed, %v alarms",
				action, rate, n, processes, (time.Duration(ends[n-1]) * time.Microsecond).Round(time.Millisecond), rateOf(ends), middle,
				longest.Round(time.Millisecond), failed, delayed, alarms)
			if n != processes*each || failed > 0 {
				t.Errorf("%d logins, %d of them refused", n, failed)
			}
			if action == "enforce" && (rateOf(ends) > rate*1.05 || middle < rate*0.95) {
				t.Errorf("they were served at %.1f/s, in the middle at %.1f/s; the limit is %d", rateOf(ends), middle, rate)
			}
		})
	}
}

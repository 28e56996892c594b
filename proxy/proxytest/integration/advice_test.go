// What amqproxysvc advises against, done by pika and by php-amqp: each habit fires its rule and no
// other, and an application that behaves well hears nothing. Takes twelve minutes, for some rules
// judge by ten: FULL=1.

//go:build linux

package integration

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/advice"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// phpMissing publishes to an exchange that is not there, on a connection for each message.
const phpMissing = `
[, , $port] = $argv;
while (true) {
    $conn = new AMQPConnection(['host' => '127.0.0.1', 'port' => (int) $port, 'connection_name' => 'missing-exchange']);
    $conn->connect();
    $x = new AMQPExchange(new AMQPChannel($conn));
    $x->setName('advised-nowhere');
    $x->publish('x', 'key');
    $conn->disconnect();
    usleep(500000);
}
`

// phpSigned logs in as ApsaraMQ has it, with another password each time.
const phpSigned = `
[, $name, $port, $pause] = $argv;
while (true) {
    $ms = (string) (int) (microtime(true) * 1000);
    $password = base64_encode(strtoupper(hash_hmac('sha1', 'secret', $ms)) . ':' . $ms);
    try {
        $conn = new AMQPConnection(['host' => '127.0.0.1', 'port' => (int) $port, 'login' => base64_encode('0:instance:key'),
            'password' => $password, 'connection_name' => $name]);
        $conn->connect();
        $conn->disconnect();
    } catch (AMQPConnectionException $e) {
    }
    usleep((int) $pause);
}
`

type advised struct {
	Advice []struct{ Name, Rule, Evidence string }
}

func TestAdvised(t *testing.T) {
	if os.Getenv("FULL") == "" {
		t.Skip("FULL=1 has applications do for twelve minutes what is advised against")
	}
	b := rabbit.Get(t, rabbit.V310)
	alibaba := proxytest.BrokerConfig{Flavour: proxytest.Alibaba, AccessKeys: map[string]string{"key": "secret"}}
	cloud, busy := proxytest.StartBroker(t, alibaba), proxytest.StartBroker(t, alibaba)
	proxy := func(name, url string) (port string, rules func() map[string][]string) {
		socket := filepath.Join(t.TempDir(), name)
		p := startProxy(t, false, url, fmt.Sprintf("[admin]\nsocket = %q\n", socket))
		return p.addr[strings.LastIndexByte(p.addr, ':')+1:], func() map[string][]string {
			out, err := exec.Command(binary(t, false), "advise", "--json", "--socket", socket).Output()
			var a advised
			if err == nil {
				err = json.Unmarshal(out, &a)
			}
			if err != nil {
				t.Fatalf("advise: %v\n%s", err, out)
			}
			all := map[string][]string{}
			for _, x := range a.Advice {
				all[x.Name] = append(all[x.Name], x.Rule)
				slices.Sort(all[x.Name])
				t.Logf("%s: %s: %s", x.Name, x.Rule, x.Evidence)
			}
			return all
		}
	}
	stopped, ended := make(chan struct{}), make(chan string, 20)
	run := func(name string, args ...string) {
		cmd := exec.Command(name, args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // they never end by themselves
		cmd.Stderr = &testLog{t: t, name: strings.Join(args[len(args)-2:], " ")}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		over := make(chan struct{})
		go func() {
			err := cmd.Wait()
			select {
			case <-stopped:
			default:
				ended <- fmt.Sprintf("%q: %v", cmd.Args, err)
			}
			close(over)
		}()
		t.Cleanup(func() { _ = cmd.Process.Kill(); <-over })
	}
	port, plain := proxy("plain", b.URL())
	far, signed := proxy("signed", cloud.URL())
	farther, throttled := proxy("throttled", busy.URL())
	want := map[string][]string{"missing-exchange": {"missing-exchange"}, "no-reuse": {"no-reuse"}, "throttled": {"throttled"},
		"Pika Python Client Library": {"unnamed"}}
	for _, habit := range []string{"well-behaved", "channel-leak", "channel-per-publish", "polling", "declare-per-publish", "big-messages", "no-prefetch",
		"unnamed", "connection-held-idle", "no-heartbeat"} {
		run("/usr/bin/python3", filepath.Join("clients", "advised.py"), habit, port)
		if habit != "well-behaved" && habit != "unnamed" {
			want[habit] = []string{habit}
		}
	}
	run("php", "-r", phpMissing, "--", "missing-exchange", port)
	run("php", "-r", phpSigned, "--", "no-reuse", far, "300000")
	run("php", "-r", phpSigned, "--", "throttled", farther, "1500000")
	fired := slices.Concat(slices.Collect(maps.Values(want))...)
	for _, r := range advice.Rules {
		if !slices.Contains(fired, r.ID) {
			t.Errorf("nobody does what %s is about", r.ID)
		}
	}
	var got map[string][]string
	defer close(stopped)
	for began, turn := time.Now(), 0; time.Since(began) < 15*time.Minute; turn++ {
		select {
		case who := <-ended:
			t.Fatal("a client ended: ", who)
		case <-time.After(2 * time.Second):
			busy.Throttle(1) // every second login or so
		}
		if turn%10 != 9 {
			continue
		}
		got = plain()
		for _, others := range []map[string][]string{signed(), throttled()} {
			for name, rules := range others {
				got[name] = rules
			}
		}
		if fmt.Sprint(got) == fmt.Sprint(want) {
			return
		}
	}
	t.Errorf("advised is\n%v\nwant\n%v", got, want)
}

// testLog has a client's complaints in the test's log.
type testLog struct {
	t    *testing.T
	name string
}

func (l *testLog) Write(b []byte) (int, error) {
	l.t.Logf("%s: %s", l.name, b)
	return len(b), nil
}

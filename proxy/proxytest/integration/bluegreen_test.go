// Blue and green: from RabbitMQ 3.10 to 4.0 under confirmed publishing, by a pause, a route and a resume. CLUSTER=1,
// `make test-cluster`.

//go:build linux

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// command runs one of the program's own commands.
func command(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(binary(t, false), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("amqproxysvc %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// startParked are clients that have published and have a channel open on which they have done nothing since.
func startParked(t *testing.T, addr, queue string) (all idlers) {
	for range 5 {
		conn, err := dial(addr, amqp.Config{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		ch, err := conn.Channel()
		if err != nil {
			t.Fatal(err)
		}
		if err := ch.Publish("", "nowhere", false, false, amqp.Publishing{}); err != nil {
			t.Fatal(err)
		}
		if err := ch.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Channel(); err != nil {
			t.Fatal(err)
		}
		all = append(all, conn)
	}
	return all
}

func TestBlueGreen(t *testing.T) {
	if os.Getenv("CLUSTER") == "" {
		t.Skip("CLUSTER=1, or make test-cluster")
	}
	for _, mode := range []string{"auto", "session"} {
		t.Run(mode, func(t *testing.T) {
			blue, green := rabbit.Get(t, rabbit.V310), rabbit.Get(t, rabbit.V40)
			socket := filepath.Join(t.TempDir(), "s")
			settings := fmt.Sprintf("[[listener]]\npool_mode = %q\n[admin]\nsocket = %q\n[[broker]]\nname = \"green\"\nurl = %q\n", mode, socket, green.URL())
			p := startProxy(t, false, blue.URL(), settings)
			queue := "bluegreen-" + mode
			for _, addr := range []string{blue.Addr(), green.Addr()} { // as definitions that were imported
				declareQuorum(t, addr, queue)
			}
			idle, parked := startIdlers(t, p.addr), startParked(t, p.addr, queue)
			w := startWork(t, p.addr, queue)
			time.Sleep(3 * time.Second)
			before := w.look()
			at := time.Now()
			paused := command(t, "pause", "--socket", socket, "--max", "30s")
			time.Sleep(2 * time.Second) // what an administrator does meanwhile
			conf := settings + "[[route]]\nvhost = \"*\"\nbroker = \"green\"\n"
			if err := os.WriteFile(p.conf, []byte(conf), 0o600); err != nil {
				t.Fatal(err)
			}
			p.signal(syscall.SIGHUP)
			eventually(t, "the settings are reloaded", func() error {
				if out := command(t, "config", "--socket", socket); !strings.Contains(out, "route.vhost") {
					return fmt.Errorf("%s", out)
				}
				return nil
			})
			command(t, "resume", "--socket", socket)
			took := time.Since(at)
			time.Sleep(3 * time.Second)
			t.Logf("FIGURE %s: %s; paused for %v: longest pauses before %v, then %v; %d errors heard so far: %v; connections %v",
				mode, paused, took.Round(time.Millisecond), before, w.look(), w.failed.Load(), w.errs, connectionsAt([]*rabbit.Broker{blue, green}))
			if n := w.failed.Load(); n > 0 {
				t.Errorf("%d errors before blue has ended", n)
			}
			// Blue ends: those who have had a channel there since hear it.
			if _, err := blue.Eval(`[rabbit_networking:close_connection(P, "Node was put into maintenance mode") || P <- rabbit_networking:connections()], ok.`); err != nil {
				t.Fatal(err)
			}
			time.Sleep(3 * time.Second)
			connections := connectionsAt([]*rabbit.Broker{blue, green})
			errors := w.failed.Load()
			close(w.stop)
			w.wg.Wait()
			seen := map[string]int{}
			w.read(blue.Addr(), seen)
			ofBlue := len(seen)
			w.read(green.Addr(), seen)
			confirmed, lost, double := w.count(seen)
			t.Logf("FIGURE %s: %d sent, %d confirmed (%d read at blue, %d at green), %d of these lost, %d double; %d errors heard by 6 long and 6 short publishers: %v; "+
				"longest pauses %v; unaware: %d of %d that do nothing, %d of %d with an open channel; connections at blue and green %v",
				mode, w.sent.Load(), confirmed, ofBlue, len(seen)-ofBlue, lost, double, errors, w.errs, w.pause,
				idle.unaware(), len(idle), parked.unaware(), len(parked), connections)
			if lost > 0 {
				t.Errorf("%d confirmed messages are lost", lost)
			}
			if errors > 6 {
				t.Errorf("%d errors, want at most one for each of the 6 long publishers: %v", errors, w.errs)
			}
			if idle.unaware() != len(idle) || parked.unaware() != len(parked) {
				t.Error("clients that do nothing were told")
			}
			if connections[0] != 0 || connections[1] == 0 {
				t.Errorf("connections at blue and green are %v", connections)
			}
		})
	}
}

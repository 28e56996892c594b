// The broker is away for half a minute: client libraries that recover straight do so through
// the proxy, as soon. FULL=1, or when -run names it.

//go:build linux

package integration

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// recoverers publish to a queue and consume from it, and say "served" for each message
// that comes back, until they are ended: programs that take PORT QUEUE, or a function.
var recoverers = []struct {
	name    string
	needs   string
	command []string
	inside  func(ctx context.Context, port, queue string, say func(string))
}{
	{name: "bunny", needs: "/usr/share/doc/ruby-bunny", command: []string{"ruby", "clients/recover.rb"}},
	{name: "pika", needs: "/usr/lib/python3/dist-packages/pika", command: []string{"/usr/bin/python3", "-u", "clients/recover.py"}},
	{name: "php-amqp", needs: "/usr/share/doc/php-amqp", command: []string{"php", "clients/recover.php"}},
	{name: "java", needs: "/usr/share/java/amqp-client.jar", command: []string{"java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", javaPath, "clients/Recover.java"}},
	{name: "amqp091-go", inside: goRecovers},
}

// recovery is one library on one way.
type recovery struct {
	library, via string

	mu     sync.Mutex
	served time.Time // when last
	last   string    // what it said last that was something else
	ended  bool
}

func (r *recovery) say(line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if line == "served" {
		r.served = time.Now()
	} else {
		r.last = line
	}
}

func (r *recovery) servedAfter(at time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.served.After(at) {
		return nil
	}
	return fmt.Errorf("%s %s: not served (ended: %v), said %q", r.library, r.via, r.ended, r.last)
}

func TestRecovery(t *testing.T) {
	const outage = 30 * time.Second
	if named := strings.Contains(flag.Lookup("test.run").Value.String(), "Recovery"); !full && !named {
		t.Skip("half a minute without a broker for each version: FULL=1")
	}
	through(t, func(t *testing.T, b *rabbit.Broker) {
		ways := []struct{ via, port string }{{"straight", portOf(b.Addr())}}
		for _, mode := range []string{"auto", "shared", "session"} {
			p := startProxy(t, false, b.URL(), fmt.Sprintf("[[listener]]\npool_mode = %q\n", mode))
			ways = append(ways, struct{ via, port string }{mode, portOf(p.addr)})
		}
		o := observe(t, b)
		var all []*recovery
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		defer running.Wait()
		defer cancel()
		for _, library := range recoverers {
			if _, err := os.Stat(library.needs); library.inside == nil && err != nil {
				t.Logf("SKIPPED LOUDLY: %s is not installed", library.name)
				continue
			}
			for _, w := range ways {
				r := &recovery{library: library.name, via: w.via}
				all = append(all, r)
				queue := o.queue(r.library + "." + r.via)
				running.Go(func() {
					if library.inside != nil {
						library.inside(ctx, w.port, queue, r.say)
					} else if err := saying(ctx, append(slices.Clone(library.command), w.port, queue), r.say); ctx.Err() == nil {
						t.Logf("%s %s ended: %v", r.library, r.via, err)
					}
					r.mu.Lock()
					r.ended = true
					r.mu.Unlock()
				})
			}
		}
		began := time.Now()
		for _, r := range all {
			eventually(t, r.library+" is served", func() error { return r.servedAfter(began) })
		}
		if err := b.Stop(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(outage)
		if err := b.Restart(); err != nil {
			t.Fatal(err)
		}
		back := time.Now()
		took := map[string]string{}
		good := map[string]bool{}
		for deadline := back.Add(patience); ; time.Sleep(50 * time.Millisecond) {
			missing := 0
			for _, r := range all {
				key := r.library + " " + r.via
				if good[key] {
					continue
				}
				if err := r.servedAfter(back); err != nil {
					missing++
					took[key] = err.Error()
					continue
				}
				good[key], took[key] = true, time.Since(back).Round(100*time.Millisecond).String()
			}
			if missing == 0 || time.Now().After(deadline) {
				break
			}
		}
		o = observe(t, b) // the one before has ended with the broker
		for _, r := range all {
			o.queue(r.library + "." + r.via) // is deleted with the test
			key := r.library + " " + r.via
			t.Logf("FIGURE RabbitMQ %s back after %v, %s: served again after %s", b.Version, outage, key, took[key])
			if !good[key] && good[r.library+" straight"] {
				t.Errorf("%s recovers straight and not in mode %s: %s", r.library, r.via, took[key])
			}
		}
	})
}

// saying runs a program and passes on its lines.
func saying(ctx context.Context, command []string, say func(string)) error {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var stderr syncBuffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		say(lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%w\n%s", err, stderr.String())
	}
	return nil
}

// goRecovers is amqp091-go with the loop of its documentation. What it takes for a refused
// login ends it.
func goRecovers(ctx context.Context, port, queue string, say func(string)) {
	for ctx.Err() == nil {
		err := goServed(ctx, port, queue, say)
		say(fmt.Sprint(err))
		if errors.Is(err, amqp.ErrCredentials) || errors.Is(err, amqp.ErrVhost) {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func goServed(ctx context.Context, port, queue string, say func(string)) error {
	conn, err := dial("127.0.0.1:"+port, amqp.Config{Heartbeat: 4 * time.Second})
	if err != nil {
		return err
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	if err := ch.Qos(10, 0, false); err != nil {
		return err
	}
	if _, err := ch.QueueDeclare(queue, true, false, false, false, nil); err != nil {
		return err
	}
	deliveries, err := ch.Consume(queue, "", false, false, false, false, nil)
	if err != nil {
		return err
	}
	for tick := time.NewTicker(250 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			if err := ch.PublishWithContext(ctx, "", queue, false, false, amqp.Publishing{Body: []byte("x")}); err != nil {
				return err
			}
		case d, ok := <-deliveries:
			if !ok {
				return errors.New("the deliveries ended")
			}
			if err := d.Ack(false); err != nil {
				return err
			}
			say("served")
		}
	}
}

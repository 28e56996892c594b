// The row this proxy exists for: PHP clients, one message per connection, the broker
// behind TLS and 50 ms.

package main

import (
	"context"
	"embed"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/relay"
)

//go:embed php/*.php
var phpScripts embed.FS

const (
	idPHP   = "php"
	phpGoal = 3 * time.Millisecond
)

func (b *bench) php(ctx context.Context) error {
	php, err := exec.LookPath("php")
	if err != nil {
		b.table.note("SKIPPED LOUDLY: the rows of PHP: %v", err)
		return nil
	}
	path, err := relay.New(b.first.TLSAddr, 25*time.Millisecond)
	if err != nil {
		return err
	}
	defer func() { _ = path.Close() }()
	cmd, addr, _, err := startProxy(b.binary, "amqps://"+path.Addr(), trusting(b.caFile)...)
	if err != nil {
		return err
	}
	p := &peer{procs: [ways]*exec.Cmd{cmd}}
	defer p.stop()
	for _, client := range []string{"php-amqp", "php-amqplib"} {
		script := filepath.Join(b.dir, client+".php")
		text, err := phpScripts.ReadFile("php/" + client + ".php")
		if err != nil {
			return err
		}
		if err := os.WriteFile(script, text, 0o600); err != nil {
			return err
		}
		straight, pooled := 10, 500
		if b.o.quick {
			straight, pooled = 2, 60
		}
		cells := make([]string, len(b.peers))
		met := "NO"
		for i, peer := range b.peers {
			cells[i] = "–"
			var times []time.Duration
			var err error
			switch peer.name {
			case "direct":
				times, err = phpTimes(ctx, php, script, path.Addr(), b.caFile, straight)
			case "amqproxysvc":
				before := path.Total()
				if times, err = phpTimes(ctx, php, script, addr, "", pooled+1); err == nil {
					b.table.note("%s: the first connection of all took %s, then %d connections used %d new one(s) to the broker",
						client, micros(times[0]), pooled, path.Total()-before)
					times = times[1:]
				}
			default:
				continue
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				cells[i] = "failed"
				b.table.note("%s, %s: %v", peer.name, client, err)
				continue
			}
			slices.Sort(times)
			p50 := times[len(times)/2]
			cells[i] = fmt.Sprintf("%s/%s", micros(p50), micros(times[len(times)*99/100]))
			if peer.name == "amqproxysvc" {
				met = verdict(p50 <= phpGoal)
			}
		}
		// What the client itself needs: nothing before a broker of this machine could be faster.
		if times, err := phpTimes(ctx, php, script, b.first.Addr, "", pooled); err == nil {
			slices.Sort(times)
			b.table.note("%s before the stand-in itself, without path, TLS or proxy: %s/%s", client, micros(times[len(times)/2]), micros(times[len(times)*99/100]))
		} else {
			b.table.note("%s before the stand-in itself: %v", client, err)
		}
		b.table.text(client+", 1 message per connection, TLS, 50 ms", cells, "p50 ≤ 3 ms", met)
	}
	return nil
}

// phpTimes runs a script that prints the microseconds of each message.
func phpTimes(ctx context.Context, php, script, addr, caFile string, n int) ([]time.Duration, error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, php, script, "localhost", port, caFile, strconv.Itoa(n))
	var problems strings.Builder
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s %s", err, out, problems.String())
	}
	var times []time.Duration
	for _, f := range strings.Fields(string(out)) {
		us, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("the script said %q", out)
		}
		times = append(times, time.Duration(us)*time.Microsecond)
	}
	if len(times) != n {
		return nil, fmt.Errorf("%d times came, want %d: %s", len(times), n, problems.String())
	}
	return times, nil
}

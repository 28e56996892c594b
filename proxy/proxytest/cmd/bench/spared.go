// The rows of what a real broker is spared: its own CPU for one short life of a client,
// straight and through, counted until it is idle again. One run's backlog would fall on
// the next otherwise, and a proxy that leaves its closes to the broker would look cheap.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// sparedRow is one kind of short life and what part of a straight one's CPU it may cost the broker.
type sparedRow struct {
	id, title, life string
	most            float64
}

func sparedRows() []sparedRow {
	return []sparedRow{
		{"spared", "broker's CPU: connect+publish+disconnect", lifePublish, 1.0 / 30},
		{"spared-declare", "… with queue.declare before the publish", lifeDeclare, 1.0 / 12},
		{"spared-confirm", "… with confirm.select and the confirm", lifeConfirm, 1.0 / 25},
	}
}

// spared is what one run gave.
type spared struct {
	rate     float64       // lives a second, until the broker was idle again
	cpu      time.Duration // of the broker, for each
	p99, max time.Duration
}

// spare measures each kind through each peer in turn. HAProxy is left out: it costs the
// broker what a straight client does.
func (b *bench) spare(ctx context.Context) error {
	pid, err := listenerPID(b.o.broker)
	if err != nil {
		b.table.note("SKIPPED LOUDLY: the broker's CPU: %v", err)
		return nil
	}
	br := &brokerCPU{pid: pid}
	if err := br.base(ctx); err != nil {
		return err
	}
	for _, r := range sparedRows() {
		if !b.o.rows.MatchString(r.id) {
			continue
		}
		runs := make([][]spared, len(b.peers))
		cells := make([]string, len(b.peers))
		for round := range b.o.rounds + 1 {
			for i, p := range b.peers {
				if p.name == "haproxy" {
					cells[i] = "–"
				}
				if cells[i] != "" {
					continue
				}
				s, err := b.spareOnce(ctx, br, p, r.life)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if err != nil {
					cells[i] = "failed"
					b.table.note("%s, %s: %v", p.name, r.title, err)
				} else if round > 0 { // the first one warms up
					runs[i] = append(runs[i], s)
				}
			}
		}
		var straight, ours spared
		for i, p := range b.peers {
			m := middleSpared(runs[i])
			if cells[i] == "" {
				cells[i] = fmt.Sprintf("%s, %s/%s, %s CPU", perSecond(m.rate), micros(m.p99), micros(m.max), micros(m.cpu))
			}
			switch p.name {
			case "direct":
				straight = m
			case "amqproxysvc":
				ours = m
			}
		}
		ratio, met := "", "NO"
		if ours.cpu > 0 && straight.cpu > 0 {
			part := float64(ours.cpu) / float64(straight.cpu)
			ratio, met = fmt.Sprintf("1/%.0f", 1/part), verdict(part <= r.most)
		}
		b.table.add(append(append([]string{r.title}, cells...), ratio, fmt.Sprintf("≤ 1/%.0f of direct", 1/r.most), met))
	}
	b.table.note("broker's CPU: lives a second until it was idle again, p99 and slowest of one, its CPU time for one; the ratio is of direct's CPU")
	return nil
}

func (b *bench) spareOnce(ctx context.Context, br *brokerCPU, p *peer, life string) (s spared, err error) {
	w := work{Do: "start", Op: opConnect, Addr: p.addr[plain], Clients: 8, Size: 100, Life: life}
	cpu, start := br.used(), time.Now()
	var c counted
	if err := b.load.ask(w, &c); err != nil {
		return s, err
	}
	waited := pause(ctx, b.o.each)
	w.Do = "stop"
	if err := b.load.ask(w, &c); err != nil || waited != nil {
		return s, errors.Join(err, waited)
	}
	ended, err := br.idle(ctx)
	if err != nil {
		return s, err
	}
	if c.Ops == 0 {
		return s, errors.New("no life came to its end")
	}
	took := ended.Sub(start)
	busy := br.used() - cpu - time.Duration(float64(time.Since(start))*br.rest)
	return spared{rate: float64(c.Ops) / took.Seconds(), cpu: max(0, busy) / time.Duration(c.Ops), p99: c.P99, max: c.Max}, nil
}

func middleSpared(all []spared) (m spared) {
	var rates []float64
	var cpus, p99s, slowest []time.Duration
	for _, s := range all {
		rates, cpus = append(rates, s.rate), append(cpus, s.cpu)
		p99s, slowest = append(p99s, s.p99), append(slowest, s.max)
	}
	return spared{rate: median(rates), cpu: median(cpus), p99: median(p99s), max: median(slowest)}
}

// brokerCPU reads the CPU time of a broker that is not the benchmark's own.
type brokerCPU struct {
	pid  int
	rest float64 // of a core that it uses with nothing to do
}

func (br *brokerCPU) used() time.Duration { return processTime(br.pid) }

// base measures what the broker uses at rest.
func (br *brokerCPU) base(ctx context.Context) error {
	before, start := br.used(), time.Now()
	err := pause(ctx, 3*time.Second)
	br.rest = (br.used() - before).Seconds() / time.Since(start).Seconds()
	return err
}

// idle waits until the broker rests, and returns since when it has: half a second in which
// it used no more than a twentieth of a core beyond its rest.
func (br *brokerCPU) idle(ctx context.Context) (since time.Time, err error) {
	const look, looks = 100 * time.Millisecond, 5
	type point struct {
		at  time.Time
		cpu time.Duration
	}
	points := []point{{time.Now(), br.used()}}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		if err := pause(ctx, look); err != nil {
			return since, err
		}
		points = append(points, point{time.Now(), br.used()})
		if len(points) <= looks {
			continue
		}
		first, last := points[len(points)-1-looks], points[len(points)-1]
		if (last.cpu - first.cpu).Seconds() <= (br.rest+0.05)*last.at.Sub(first.at).Seconds() {
			return first.at, nil
		}
	}
	return since, errors.New("the broker was not idle within a minute")
}

// listenerPID finds the process that listens on a port of this machine.
func listenerPID(addr string) (int, error) {
	_, port, ok := strings.Cut(addr, ":")
	n, err := strconv.ParseUint(port, 10, 16)
	if !ok || err != nil {
		return 0, fmt.Errorf("%q has no port", addr)
	}
	var sockets []string
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := os.ReadFile(table)
		if err != nil {
			continue // a system without IPv6
		}
		for line := range strings.Lines(string(text)) {
			// sl local_address rem_address st … inode; 0A is LISTEN.
			f := strings.Fields(line)
			if len(f) > 9 && f[3] == "0A" && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", n)) {
				sockets = append(sockets, "socket:["+f[9]+"]")
			}
		}
	}
	files, _ := filepath.Glob("/proc/[0-9]*/fd/*") // its only error is a bad pattern
	for _, fd := range files {
		if target, err := os.Readlink(fd); err == nil && slices.Contains(sockets, target) {
			return strconv.Atoi(strings.Split(fd, "/")[2])
		}
	}
	return 0, fmt.Errorf("the process that listens on %s is not to be seen: the broker must run on this machine, and the benchmark as root or as the broker's user", addr)
}

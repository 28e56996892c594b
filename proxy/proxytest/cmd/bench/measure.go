// One measurement, one row, and the rows about memory.

package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"
)

// warmUp is left out of every measurement; settle is the pause between two.
const (
	warmUp = 300 * time.Millisecond
	settle = 150 * time.Millisecond
)

// sample is what one measurement, or the median of several, gave.
type sample struct {
	rate     float64       // operations a second
	cpu      time.Duration // of the proxy for each
	p50, p99 time.Duration
	clients  int   // of the row, or fewer where the peer cannot hold so many
	err      error // why there is no figure
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// measure runs one work through one peer.
func (b *bench) measure(ctx context.Context, p *peer, r row, profile string) (s sample, err error) {
	w := r.work
	w.Addr, w.TLS = p.addr[r.way], r.way == fromClients
	if p.most > 0 {
		w.Clients = min(w.Clients, p.most)
	}
	s.clients = w.Clients
	ask := func(do string) (c counted, err error) {
		w.Do = do
		err = b.load.ask(w, &c)
		return c, err
	}
	if _, err := ask("start"); err != nil {
		return s, err
	}
	defer func() {
		if err != nil {
			_, _ = ask("stop") // its error is the one that is already told
		}
	}()
	if err := pause(ctx, warmUp+time.Duration(w.Clients)*200*time.Microsecond); err != nil {
		return s, err
	}
	profiled := make(chan error, 1)
	if profile != "" {
		go func() { profiled <- fetchProfile(profile, filepath.Join(b.o.profiles, r.id+".pprof"), b.o.each) }()
	} else {
		profiled <- nil
	}
	before, err := ask("count")
	if err != nil {
		return s, err
	}
	var d0, d1 drainStats
	if err := b.drain.ask(struct{}{}, &d0); err != nil {
		return s, err
	}
	proc := p.procs[r.way]
	if p.name == "direct" && r.bare {
		proc = b.drain.cmd
	}
	start, cpu := time.Now(), cpuTime(proc)
	if err := pause(ctx, b.o.each); err != nil {
		return s, err
	}
	// The clocks are read when the answer is there: among thousands of connections it takes its time,
	// and counts what came meanwhile.
	if err := b.drain.ask(struct{}{}, &d1); err != nil {
		return s, err
	}
	took := time.Since(start)
	cpu = cpuTime(proc) - cpu
	after, err := ask("stop")
	if err != nil {
		return s, err
	}
	ops := after.Ops - before.Ops
	if r.atDrain {
		ops = d1.Messages - d0.Messages
	}
	if ops <= 0 {
		return s, fmt.Errorf("nothing came through in %v", took)
	}
	s.rate = float64(ops) / took.Seconds()
	s.cpu = cpu / time.Duration(ops)
	if ops > int64(cpu) { // below a nanosecond
		s.cpu = 0
	}
	s.p50, s.p99 = after.P50, after.P99
	if err := <-profiled; err != nil {
		return s, fmt.Errorf("profile: %w", err)
	}
	return s, pause(ctx, settle+time.Duration(w.Clients)*100*time.Microsecond)
}

// measureRow measures every peer in turn, round by round.
func (b *bench) measureRow(ctx context.Context, r row) error {
	samples := make([][]sample, len(b.peers))
	failed := make([]error, len(b.peers))
	rounds := b.o.rounds
	if r.work.Clients >= 1000 {
		rounds = 1 // to connect them all takes longer than to measure
	}
	for round := range rounds {
		for i, p := range b.peers {
			if p.addr[r.way] == "" || failed[i] != nil {
				continue
			}
			profile := ""
			if b.o.profiles != "" && round == 0 && p.name == "amqproxysvc" {
				profile = p.pprof[r.way]
			}
			s, err := b.measure(ctx, p, r, profile)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				failed[i] = err
				continue
			}
			samples[i] = append(samples[i], s)
		}
	}
	line := make([]sample, len(b.peers))
	for i := range b.peers {
		line[i] = middle(samples[i])
		if failed[i] != nil {
			line[i].err = failed[i]
		}
	}
	b.table.row(r, line)
	return nil
}

// middle takes the median of each figure by itself.
func middle(all []sample) (m sample) {
	var rates []float64
	var cpus, p50s, p99s []time.Duration
	for _, s := range all {
		rates, cpus = append(rates, s.rate), append(cpus, s.cpu)
		p50s, p99s = append(p50s, s.p50), append(p99s, s.p99)
		m.clients = s.clients
	}
	m.rate, m.cpu, m.p50, m.p99 = median(rates), median(cpus), median(p50s), median(p99s)
	return m
}

// Ids of the rows that are about memory, and their goals.
const (
	idMemory    = "memory"
	idIdle      = "idle"
	idIdleTLS   = "idle-tls"
	memoryGoal  = 15 << 10 // kB with nobody connected
	idleGoal    = 8.0      // kB for a client with a channel
	idleTLSGoal = 13.0     // the same over TLS
	idleClients = 10_000
)

// memory looks at fresh processes, alone and with idle clients, and starts them afresh after it.
func (b *bench) memory(ctx context.Context) error {
	if b.o.rows.MatchString(idMemory) || b.o.rows.MatchString(idIdle) {
		if err := b.memoryRows(ctx, plain); err != nil {
			return err
		}
	}
	if b.o.rows.MatchString(idIdleTLS) && (!b.o.quick || b.o.rows.String() != "") {
		return b.memoryRows(ctx, fromClients)
	}
	return nil
}

func (b *bench) memoryRows(ctx context.Context, w way) error {
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	n := len(b.peers)
	alone, each, touched, used := make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	var met [4]string
	clients, goal := idleClients, idleGoal
	if w == fromClients {
		goal = idleTLSGoal
	}
	if b.o.quick {
		clients = 2000
	}
	for i, p := range b.peers {
		alone[i], each[i], touched[i], used[i] = "–", "–", "–", "–"
		if p.addr[w] == "" {
			continue
		}
		base := residentKB(p.procs[w])
		if p.procs[w] != nil {
			alone[i] = fmt.Sprintf("%.1f MB", float64(base)/1024)
		}
		m, err := b.idle(ctx, p, w, clients, base)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			each[i], touched[i], used[i] = "failed", "failed", "failed"
			b.table.note("%s, idle clients: %v", p.name, err)
			continue
		}
		if p.procs[w] != nil {
			each[i], touched[i] = fmt.Sprintf("%.1f kB", m.each), fmt.Sprintf("%.1f kB", m.touched)
		}
		used[i] = fmt.Sprintf("%s for %s", grouped(int(m.upstreams)), grouped(m.clients))
		if p.name == "amqproxysvc" {
			met = [4]string{verdict(base <= memoryGoal), verdict(m.each <= goal), verdict(m.touched <= goal), verdict(m.upstreams <= int64((m.clients+199)/200))}
		}
	}
	if w == fromClients {
		b.table.text("memory per idle TLS client with a channel", each, "≤ 13 kB", met[1])
		b.table.text("… and one message published", touched, "≤ 13 kB", met[2])
		return b.startPeers(b.first)
	}
	b.table.text("memory, nobody connected", alone, "≤ 15 MB", met[0])
	b.table.text("memory per idle client with a channel", each, "≤ 8 kB", met[1])
	b.table.text("… and one message published", touched, "≤ 8 kB", met[2])
	b.table.text("upstreams used for these clients", used, "1 for 200", met[3])
	return b.startPeers(b.first)
}

// idling is what idle clients cost.
type idling struct {
	clients       int
	each, touched float64 // kB for a client, before and after each has published once
	upstreams     int64
}

// rested is what processes take once a crowd has come to rest, in kB: what is given back after a moment does not
// count, and how long that takes depends on the machine.
func rested(ctx context.Context, resident func() int) (kB int, err error) {
	const look, looks, most = time.Second, 3, 20
	least, since := resident(), 0
	for i := 0; i < most && since < looks; i++ {
		if err := pause(ctx, look); err != nil {
			return 0, err
		}
		now := resident()
		if since++; now < least*98/100 {
			since = 0
		}
		least = min(least, now)
	}
	return least, nil
}

func (b *bench) idle(ctx context.Context, p *peer, over way, clients, base int) (m idling, err error) {
	m.clients = clients
	if p.most > 0 {
		m.clients = min(clients, p.most)
	}
	var before, after drainStats
	if err := b.drain.ask(struct{}{}, &before); err != nil {
		return m, err
	}
	var c counted
	w := work{Op: opIdle, Addr: p.addr[over], TLS: over == fromClients, Clients: m.clients, Channels: 1}
	step := func(do string, then time.Duration) error {
		w.Do = do
		if err := b.load.ask(w, &c); err != nil {
			return err
		}
		return pause(ctx, then)
	}
	grown := func() (float64, error) {
		kB, err := rested(ctx, func() int { return residentKB(p.procs[over]) })
		return float64(kB-base) / float64(m.clients), err
	}
	heap := func(when string) error {
		if b.o.profiles == "" || p.pprof[over] == "" {
			return nil
		}
		return fetchHeap(p.pprof[over], filepath.Join(b.o.profiles, map[way]string{plain: "heap-", fromClients: "heap-tls-"}[over]+when))
	}
	if err := heap("nobody"); err != nil {
		return m, err
	}
	if err := step("start", 0); err != nil {
		return m, err
	}
	if m.each, err = grown(); err != nil {
		return m, err
	}
	if err := heap("idle"); err != nil {
		return m, err
	}
	if err := step("touch", 0); err != nil {
		return m, err
	}
	if m.touched, err = grown(); err != nil {
		return m, err
	}
	if err := heap("touched"); err != nil {
		return m, err
	}
	if err := b.drain.ask(struct{}{}, &after); err != nil {
		return m, err
	}
	m.upstreams = after.Open - before.Open
	return m, step("stop", settle+time.Duration(m.clients)*100*time.Microsecond)
}

// A crowd: more idle clients than one process may have descriptors for, held for minutes with heartbeats; then one proxy
// is killed and started again, and its clients come back. Where a process may have many descriptors there is one proxy.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

const (
	crowdHeartbeat = 60 * time.Second
	// crowdBack is how long who was lost may take to come back, crowdLook how often it is looked meanwhile.
	crowdBack = 5 * time.Minute
	crowdLook = 100 * time.Millisecond
)

// crowdProxy is one of the proxies with the process of its clients.
type crowdProxy struct {
	cmd     *exec.Cmd
	port    int
	addr    string
	http    string
	n       int // clients
	clients *child
}

// crowd is the run.
type crowd struct {
	o       options
	binary  string
	broker  string
	drain   *child
	proxies []*crowdProxy

	// Before the first client, in kB: what the proxies take, and the kernel for its objects.
	alone, slab int
}

func runCrowd(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "amqproxysvc-crowd-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c := &crowd{o: o}
	defer c.stop()
	if c.binary, err = buildService(o.binary, dir); err != nil {
		return err
	}
	if c.drain, err = startChild("drain"); err != nil {
		return err
	}
	var d drainStats
	if err := c.drain.ask(struct{}{}, &d); err != nil {
		return err
	}
	c.broker = "amqp://" + d.Addr
	if err := c.startProxies(); err != nil {
		return err
	}
	fmt.Printf("%s; %s clients with heartbeats of %v, %d proxies; broker: a stand-in\n", machine(), grouped(o.crowd), crowdHeartbeat, len(c.proxies))
	for _, part := range []func(context.Context) error{c.gather, c.hold, c.restart} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (c *crowd) startProxies() error {
	most := openFiles() * 9 / 10 // the rest is what a proxy spares, and its connections to the broker
	n := (c.o.crowd + most - 1) / most
	for i := range n {
		port, err := freePort()
		if err != nil {
			return err
		}
		p := &crowdProxy{port: port, n: (c.o.crowd + i) / n}
		c.proxies = append(c.proxies, p)
		if err := c.start(p); err != nil {
			return err
		}
		if p.clients, err = startChild("crowd"); err != nil {
			return err
		}
	}
	return nil
}

func (c *crowd) start(p *crowdProxy) (err error) {
	p.cmd, p.addr, p.http, err = startProxyAt(p.port, c.binary, c.broker)
	return err
}

func (c *crowd) stop() {
	for _, p := range c.proxies {
		if p.clients != nil {
			p.clients.stop()
		}
		if p.cmd != nil {
			_ = p.cmd.Process.Kill() // nobody is left who would be told
			endProcess(p.cmd)
		}
	}
	if c.drain != nil {
		c.drain.stop()
	}
}

// all has the clients of every proxy do something, and adds up what they answer.
func (c *crowd) all(do string) (sum crowdCount, err error) {
	type answer struct {
		crowdCount
		err error
	}
	answers := make(chan answer, len(c.proxies))
	for i, p := range c.proxies {
		go func() {
			var a answer
			a.err = p.clients.ask(crowdWork{Do: do, Addr: p.addr, Net: i + 1, Clients: p.n, Heartbeat: crowdHeartbeat}, &a.crowdCount)
			answers <- a
		}()
	}
	for range c.proxies {
		a := <-answers
		err = errors.Join(err, a.err)
		sum.add(a.crowdCount)
	}
	return sum, err
}

// atBroker is how many connections the broker has.
func (c *crowd) atBroker() (n int64, err error) {
	var d drainStats
	err = c.drain.ask(struct{}{}, &d)
	return d.Open, err
}

// resident is what the proxies take, in kB.
func (c *crowd) resident() (kB int) {
	for _, p := range c.proxies {
		kB += residentKB(p.cmd)
	}
	return kB
}

func (c *crowd) cpu() (used time.Duration) {
	for _, p := range c.proxies {
		used += cpuTime(p.cmd)
	}
	return used
}

// each is a client's part of what the proxies take.
func (c *crowd) each(kB int) float64 { return float64(kB-c.alone) / float64(c.o.crowd) }

// gather connects the clients, and has each publish a message that is confirmed.
func (c *crowd) gather(ctx context.Context) error {
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	c.alone = c.resident()
	c.slab = procField("/proc/meminfo", "Slab:", 0)
	fmt.Printf("nobody connected: %.1f MB a proxy\n", float64(c.alone)/1024/float64(len(c.proxies)))
	for _, step := range [...]struct{ do, what string }{{"connect", "connected, with a channel"}, {"publish", "one message published and confirmed"}} {
		began := time.Now()
		if _, err := c.all(step.do); err != nil {
			return err
		}
		took := time.Since(began)
		kB, err := rested(ctx, c.resident)
		if err != nil {
			return err
		}
		conns, err := c.atBroker()
		if err != nil {
			return err
		}
		fmt.Printf("%s: %.1f kB a client, %s connections at the broker; %s\n", step.what, c.each(kB), grouped(int(conns)), perSecond(float64(c.o.crowd)/took.Seconds()))
	}
	return nil
}

// frames is how many frames the proxies have had of their clients.
func (c *crowd) frames() (sum int, err error) {
	for _, p := range c.proxies {
		text, err := fetch("http://" + p.http + "/metrics")
		if err != nil {
			return 0, err
		}
		_, rest, found := strings.Cut(string(text), "\namqproxysvc_received_frames_total{from=\"clients\"} ")
		value, _, _ := strings.Cut(rest, "\n")
		n, err := strconv.ParseFloat(value, 64)
		if !found || err != nil {
			return 0, fmt.Errorf("the metrics of %s say %q of the frames that came from clients", p.http, value)
		}
		sum += int(n)
	}
	return sum, nil
}

// hold looks at the crowd at rest.
func (c *crowd) hold(ctx context.Context) error {
	before, err := c.all("count")
	if err != nil {
		return err
	}
	frames, err := c.frames()
	if err != nil {
		return err
	}
	began, cpu := time.Now(), c.cpu()
	var most int64
	for minute := 1; time.Since(began) < c.o.held; minute++ {
		if err := pause(ctx, min(time.Minute, c.o.held-time.Since(began))); err != nil {
			return err
		}
		conns, err := c.atBroker()
		if err != nil {
			return err
		}
		most = max(most, conns)
		fmt.Printf("  minute %d: %.0f MB, %.1f %% of a core, %s connections at the broker\n", minute, float64(c.resident())/1024,
			percent(c.cpu()-cpu, time.Since(began)), grouped(int(conns)))
	}
	used, took := c.cpu()-cpu, time.Since(began)
	now, err := c.frames()
	if err != nil {
		return err
	}
	after, err := c.all("count")
	if err != nil {
		return err
	}
	fmt.Printf("held for %v: %s clients there, %d lost; %.2f kB a client, %s connections at the broker at most\n", took.Round(time.Second), grouped(after.Open), after.Lost,
		c.each(c.resident()), grouped(int(most)))
	fmt.Printf("  heartbeats: the clients sent %s, the proxies had %s frames; the clients had %s\n", grouped(after.Sent-before.Sent), grouped(now-frames), grouped(after.Heard-before.Heard))
	fmt.Printf("  CPU of the proxies: %.1f %% of a core, %s for a client and minute\n", percent(used, took), micros(time.Duration(float64(used)/took.Minutes()/float64(c.o.crowd))))
	fmt.Printf("  the kernel, for both ends of a client's connection: %.1f kB of slab; %d kB of buffers in all\n",
		float64(procField("/proc/meminfo", "Slab:", 0)-c.slab)/float64(c.o.crowd), procField("/proc/net/sockstat", "TCP:", 9)*os.Getpagesize()/1024)
	if after.Lost > 0 {
		return fmt.Errorf("%d clients were lost: %s", after.Lost, after.Why)
	}
	return nil
}

func percent(used, took time.Duration) float64 { return 100 * used.Seconds() / took.Seconds() }

// restart kills one proxy and starts it again; its clients come back by themselves.
func (c *crowd) restart(ctx context.Context) error {
	p := c.proxies[0]
	conns, err := c.atBroker()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := p.cmd.Process.Kill(); err != nil {
		return err
	}
	endProcess(p.cmd)
	if err := c.start(p); err != nil {
		return err
	}
	accepts := time.Since(began)
	least, most := conns, conns
	var now crowdCount
	for now.Back < p.n {
		if err := pause(ctx, crowdLook); err != nil {
			return err
		}
		if err := p.clients.ask(crowdWork{Do: "count"}, &now); err != nil {
			return err
		}
		if since := time.Since(began); since > crowdBack {
			return fmt.Errorf("%d of %d clients are not back after %v: %s", p.n-now.Back, p.n, since.Round(time.Second), now.Why)
		}
		conns, err := c.atBroker()
		if err != nil {
			return err
		}
		least, most = min(least, conns), max(most, conns)
	}
	back := time.Since(began)
	sum, err := c.all("count")
	if err != nil {
		return err
	}
	used := cpuTime(p.cmd)
	fmt.Printf("one proxy of %s clients killed and started again: it accepts after %v, all are back, a message confirmed, after %v\n", grouped(p.n),
		accepts.Round(time.Millisecond), back.Round(time.Millisecond))
	fmt.Printf("  away: p50 %v, p99 %v, the last %v; %s tries; %v of the proxy's CPU; %s to %s connections at the broker meanwhile\n", sum.P50.Round(time.Millisecond),
		sum.P99.Round(time.Millisecond), sum.Max.Round(time.Millisecond), grouped(sum.Tries), used.Round(10*time.Millisecond), grouped(int(least)), grouped(int(most)))
	if sum.Lost != p.n {
		return fmt.Errorf("%d clients were lost, want the %d of the proxy that was killed: %s", sum.Lost, p.n, sum.Why)
	}
	return nil
}

//go:build linux

// The sum of memory that the settings' reference promises, and everything that may hold some at once.

package hostile

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// metrics are those of the process that have no labels.
func (r *rig) metrics() (map[string]float64, error) {
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + r.http + "/metrics")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	all := make(map[string]float64)
	for line := range strings.Lines(readAll(resp.Body)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && !strings.HasPrefix(line, "#") {
			all[name], _ = strconv.ParseFloat(value, 64)
		}
	}
	return all, nil
}

// narrow dials with the smallest of receive buffers and segments as on a network: what waits is in the proxy and not in
// the kernel, which begins with room for twenty segments, and on loopback these have 64 kB.
func narrow(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		e := raw.Control(func(fd uintptr) {
			err = errors.Join(syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096),
				syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_MAXSEG, 1400))
		})
		return errors.Join(e, err)
	}}
	return d.DialContext(ctx, network, address)
}

// Handshakes, publishes that lack their end and consumers that do not read ask for several times
// what is promised, of two users at once. What is in use stays below the sum, and what is resident
// below twice that. Readers are ended for it, those for whom most waits: who reads is not.
func TestMemorySum(t *testing.T) {
	const (
		mib            = 1 << 20
		messageBuffer  = 32 * mib
		clientQueues   = 16 * mib
		handshakes     = 400
		program        = 40 * mib
		forClient      = 256 << 10
		forUpstream    = 1 * mib
		forHandshake   = 16 << 10
		songs          = 200 // messages of 100 kB for who reads
		waiting        = 70  // messages of 100 kB for each reader, below its own client_queue and above what the kernel's buffers take (4 MB)
		halfOfItsWhole = 40000
	)
	r := start(t, setup{settings: fmt.Sprintf("[client]\nmax_message_size = \"1MiB\"\nmessage_buffer = %d\nclient_queues = %d\nclient_queue = \"8MiB\"\nmax_handshakes = %d\n[pool]\nidle_timeout = \"1s\"\n",
		messageBuffer, clientQueues, handshakes)})
	r.rests()
	readers, publishers, channels := count(30, 100), count(20, 60), 100

	var inOrder []*proxytest.Client // readers that read
	straight := make(map[string]*proxytest.Client)
	for user := range users() {
		c, err := login(r.broker, user)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Abort()
		straight[user] = c
		for i := range readers {
			q, err := c.DeclareQueue(1, fmt.Sprintf("slow-%s-%d", user, i), 0)
			for range waiting {
				if err == nil {
					err = c.Publish(1, "", q, make([]byte, 100<<10))
				}
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.QueueLength(1, fmt.Sprintf("slow-%s-0", user)); err != nil { // all of it is there
			t.Fatal(err)
		}
		q, err := c.DeclareQueue(1, "read-"+user, 0)
		for range songs {
			if err == nil {
				err = c.Publish(1, "", q, make([]byte, 100<<10))
			}
		}
		var reads *proxytest.Client
		if err == nil {
			reads, err = login(r.addr, user)
		}
		if err == nil {
			defer reads.Abort()
			err = reads.Qos(1, 2)
		}
		if err == nil {
			_, err = reads.Consume(1, q, "", false)
		}
		if err != nil {
			t.Fatal(err)
		}
		inOrder = append(inOrder, reads)
	}

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	again := func(n int, one func(ctx context.Context, i int)) { // who is ended comes back
		wg.Go(func() {
			crowd(ctx, n, n, func(ctx context.Context, i int) {
				for ctx.Err() == nil {
					one(ctx, i)
					rest(ctx, 50*time.Millisecond)
				}
			})
		})
	}
	elsewhere := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}} // an address has half of the places
	again(handshakes/2, func(ctx context.Context, _ int) {
		if c, err := elsewhere.DialContext(ctx, "tcp", r.addr); err == nil {
			b := append(slices.Clone(amqp.ProtocolHeader[:]), startOk("u9", "x", 7800)...)
			c.Write(b[:len(b)-1])
			hold(ctx, c)
		}
	})
	for user := range users() {
		again(readers, func(ctx context.Context, i int) {
			c, err := proxytest.Dial(proxytest.ClientConfig{Addr: r.addr, User: user, Password: users()[user], Timeout: patience, Dial: narrow})
			if err != nil {
				return
			}
			defer c.Abort()
			defer context.AfterFunc(ctx, c.Abort)()
			if c.OpenChannel(1) != nil || c.Qos(1, waiting) != nil || c.SendMethod(1, amqp.BasicConsume, 0, fmt.Sprintf("slow-%s-%d", user, i), "", 0, nil) != nil {
				return
			}
			<-ctx.Done() // it does not read, nor does it hear that it is ended
		})
		again(publishers, func(ctx context.Context, _ int) {
			c, err := login(r.addr, user)
			if err != nil {
				return
			}
			defer c.Abort()
			defer context.AfterFunc(ctx, c.Abort)()
			for ch := 2; ch < 2+channels; ch++ {
				id := uint16(ch)
				b := append(proxytest.Method(id, amqp.ChannelOpen, ""), announce(id, halfOfItsWhole+1000)...)
				if c.Send(append(b, proxytest.Body(id, make([]byte, halfOfItsWhole))...)) != nil {
					return
				}
			}
			rest(ctx, 5*time.Second)
		})
	}

	unheard := make(chan error, len(inOrder))
	for _, c := range inOrder {
		go func() {
			for range songs {
				m, err := c.Delivery(1)
				if err == nil {
					err = c.Ack(1, m.Tag, false)
				}
				if err != nil {
					unheard <- err
					return
				}
				rest(ctx, 20*time.Millisecond)
			}
			unheard <- c.Close()
		}()
	}

	resident, inUse, clients, upstreams, ended := 0, 0, 0.0, 0.0, 0.0
	sum := func() int {
		return messageBuffer + clientQueues + int(clients)*forClient + handshakes*forHandshake + int(upstreams)*forUpstream + program
	}
	look := func() error {
		resident = max(resident, rss(r.cmd.Process.Pid))
		m, err := r.metrics()
		if err != nil {
			return err
		}
		clients, upstreams = max(clients, m["amqproxysvc_clients"]), max(upstreams, m["amqproxysvc_upstreams"])
		ended = m["amqproxysvc_slow_client_closes_total"]
		if all := float64(2 * (readers + publishers)); clients < all {
			return fmt.Errorf("%v clients are there of %v", clients, all)
		}
		return nil
	}
	r.eventually("everybody is there", look)
	for range 40 {
		if err := look(); err != nil {
			t.Fatal(err)
		}
		rest(ctx, 50*time.Millisecond)
	}
	// Last, since it collects the garbage.
	looked := 0
	r.eventually("the bounds are tried", func() error {
		live, _, err := r.heap(http.Client{Timeout: 20 * time.Second})
		if err == nil {
			err = look()
		}
		if err != nil {
			return err
		}
		looked++
		if inUse = max(inUse, live); inUse < messageBuffer/2 || looked < 5 {
			return fmt.Errorf("%d MiB are in use", inUse/mib)
		}
		return nil
	})
	cancel()
	wg.Wait()
	t.Logf("FIGURE %s: %d MiB in use and %d resident, the sum is %d MiB (%v clients, %v upstreams, %v readers ended); asked for were %d MiB", t.Name(),
		inUse/mib, resident/mib, sum()/mib, clients, upstreams, ended, 2*(readers*waiting*100<<10+publishers*channels*halfOfItsWhole)/mib)
	var errs []error
	if ended == 0 || !strings.Contains(r.log.String(), "too much waits for all") {
		errs = append(errs, fmt.Errorf("%v readers were ended for what waits for all", ended))
	}
	for range inOrder {
		if err := <-unheard; err != nil {
			errs = append(errs, fmt.Errorf("who reads: %w", err))
		}
	}
	if inUse > sum() {
		errs = append(errs, fmt.Errorf("%d MiB are in use, the sum is %d", inUse/mib, sum()/mib))
	}
	if most := 2 * sum(); resident > most {
		errs = append(errs, fmt.Errorf("%d MiB are resident, twice the sum is %d", resident/mib, most/mib))
	}
	for user, c := range straight {
		errs = append(errs, c.DeleteQueue(1, "read-"+user))
		for i := range readers {
			errs = append(errs, c.DeleteQueue(1, fmt.Sprintf("slow-%s-%d", user, i)))
		}
	}
	errs = append(errs, r.returns())
	promise(t, errors.Join(errs...))
}

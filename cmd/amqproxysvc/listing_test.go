// A listing of very many clients beside one who publishes: FULL=1, for it takes a minute and
// measures.

package main

import (
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/service/control"
)

func TestListingOfTenThousand(t *testing.T) {
	if os.Getenv("FULL") == "" {
		t.Skip("FULL=1 lists 10,000 clients beside a canary")
	}
	const crowd, each = 10_000, 5 * time.Second
	b := proxytest.StartBroker(t, proxytest.BrokerConfig{})
	socket := adminSocket(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := ln.Addr().String()
	_ = ln.Close()
	_, port, _ := net.SplitHostPort(at)
	// A process of its own, for its descriptors and for its cost.
	proxied := exec.Command(os.Args[0], "-l", "127.0.0.1", "-p", port, "-b", "0", "--set", "admin.socket="+socket, b.URL())
	proxied.Stderr = os.Stderr
	proxied.Env = append(os.Environ(), asProgram+"=real")
	if err := proxied.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = proxied.Process.Kill(), proxied.Wait() }()
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("tcp", at); err == nil {
			_ = c.Close()
			break
		} else if time.Since(began) > 20*time.Second {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	var all []*proxytest.Client
	defer func() {
		for _, c := range all {
			_ = c.Hangup()
		}
	}()
	var dialing sync.WaitGroup
	for range 20 {
		dialing.Go(func() {
			for range crowd / 20 {
				c, err := proxytest.Dial(proxytest.ClientConfig{Addr: at, Name: "crowd"})
				if err == nil {
					err = c.OpenChannel(1)
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				all = append(all, c)
				mu.Unlock()
			}
		})
	}
	dialing.Wait()
	canary, err := proxytest.Dial(proxytest.ClientConfig{Addr: at, Name: "canary"})
	if err == nil {
		err = canary.OpenChannel(1)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = canary.Hangup() }()
	if err := canary.Confirm(1); err != nil {
		t.Fatal(err)
	}
	sing := func() (p50, p99 time.Duration) {
		var took []time.Duration
		for began := time.Now(); time.Since(began) < each; {
			sent := time.Now()
			if err := canary.Publish(1, "", "nowhere", []byte("x")); err != nil {
				t.Fatal(err)
			}
			if err := canary.WaitConfirms(1); err != nil {
				t.Fatal(err)
			}
			took = append(took, time.Since(sent))
			time.Sleep(time.Millisecond)
		}
		slices.Sort(took)
		return took[len(took)/2], took[len(took)*99/100]
	}
	for range 2 {
		p50, p99 := sing()
		t.Logf("nobody looks: the canary's confirms p50 %v, p99 %v", p50, p99)
		stop, looked := make(chan struct{}), make(chan []time.Duration)
		go func() {
			var lists []time.Duration
			defer func() { looked <- lists }()
			c := control.Client(socket)
			defer c.CloseIdleConnections()
			for {
				began := time.Now()
				res, err := c.Get("http://admin/v1/clients")
				if err != nil {
					t.Error(err)
					return
				}
				n, err := io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
				if err != nil || n < crowd*200 {
					t.Errorf("a list of %d octets, %v", n, err)
				}
				lists = append(lists, time.Since(began))
				select {
				case <-stop:
					return
				case <-time.After(time.Second):
				}
			}
		}()
		b50, b99 := sing()
		close(stop)
		lists := <-looked
		slices.Sort(lists)
		t.Logf("beside a listing a second: p50 %v, p99 %v; %d listings, p50 %v, the longest %v", b50, b99, len(lists), lists[len(lists)/2], lists[len(lists)-1])
	} // The command as a person gives it, from its start to its last line.
	var took []time.Duration
	for range 9 {
		command := exec.Command(os.Args[0], "clients", "--socket", socket)
		command.Env = append(os.Environ(), asProgram+"=real")
		began := time.Now()
		out, err := command.Output()
		took = append(took, time.Since(began))
		if lines := bytes.Count(out, []byte("\n")); err != nil || lines != 1+crowd+1 {
			t.Fatalf("clients: %d lines, %v", lines, err)
		}
	}
	slices.Sort(took)
	t.Logf("the command clients: p50 %v, the longest %v", took[len(took)/2], took[len(took)-1])
}

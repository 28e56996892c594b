//go:build linux

// The attacks by name: what one of a crowd does, and crowds, here or in a process of their own.

package hostile

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// attack is what the i-th of a crowd does, once: it ends with the context at the latest.
type attack struct {
	name string
	one  func(ctx context.Context, addr string, i int)
}

// strangers have not logged in and never will.
var strangers = []attack{
	{"silent", func(ctx context.Context, addr string, _ int) {
		if c, err := dial(addr); err == nil {
			hold(ctx, c)
		}
	}},
	{"half a header", func(ctx context.Context, addr string, _ int) {
		if c, err := dial(addr); err == nil {
			c.Write([]byte("AMQP\x00"))
			hold(ctx, c)
		}
	}},
	{"a header and silence", func(ctx context.Context, addr string, _ int) {
		if c, err := greeted(addr); err == nil {
			hold(ctx, c)
		}
	}},
	{"half a start-ok", func(ctx context.Context, addr string, _ int) {
		if c, err := greeted(addr); err == nil {
			b := startOk("u9", "x", 7800)
			c.Write(b[:len(b)-1])
			hold(ctx, c)
		}
	}},
	{"start-ok byte by byte", func(ctx context.Context, addr string, _ int) {
		c, err := greeted(addr)
		if err != nil {
			return
		}
		defer c.Close()
		for _, b := range startOk("u9", "x", 100) {
			if _, err := c.Write([]byte{b}); err != nil || ctx.Err() != nil {
				return
			}
			rest(ctx, 300*time.Millisecond)
		}
	}},
	{"a SASL response of 7 kB", func(ctx context.Context, addr string, _ int) {
		if c, err := greeted(addr); err == nil {
			c.Write(startOk("u9", strings.Repeat("s", 7000), 0))
			hold(ctx, c)
		}
	}},
	{"octets behind start-ok", func(ctx context.Context, addr string, i int) {
		if c, err := greeted(addr); err == nil {
			c.Write(append(startOk("u9", fmt.Sprint("x", i), 0), make([]byte, 60000)...))
			hold(ctx, c)
		}
	}},
	{"garbage", func(ctx context.Context, addr string, i int) {
		if c, err := dial(addr); err == nil {
			fmt.Fprintf(c, "GET /%d HTTP/1.1\r\nHost: x\r\n\r\n", i)
			hold(ctx, c)
		}
	}},
}

// guessers try passwords, each another, and vhosts that are not there.
var guessers = []attack{
	{"hanging up", func(_ context.Context, addr string, i int) {
		if c, err := greeted(addr); err == nil {
			c.Write(startOk(victim, fmt.Sprint("h", i), 0))
			c.Close()
		}
	}},
	{"waiting", func(_ context.Context, addr string, i int) {
		if c, err := proxytest.Dial(proxytest.ClientConfig{Addr: addr, User: victim, Password: fmt.Sprint("w", i), Timeout: patience}); err == nil {
			c.Abort()
		}
	}},
	{"unknown users", func(_ context.Context, addr string, i int) {
		if c, err := proxytest.Dial(proxytest.ClientConfig{Addr: addr, User: fmt.Sprint("nobody", i), Password: "x", Timeout: patience}); err == nil {
			c.Abort()
		}
	}},
	{"unknown vhosts", func(_ context.Context, addr string, i int) {
		if c, err := proxytest.Dial(proxytest.ClientConfig{Addr: addr, User: attacker, Password: users()[attacker], VHost: fmt.Sprint("no", i), Timeout: patience}); err == nil {
			c.Abort()
		}
	}},
}

// hoarders have the proxy hold what never comes to its end.
var hoarders = []attack{
	{"tricklers", func(ctx context.Context, addr string, _ int) { // octet by octet of what was announced as 64 MiB
		c, err := login(addr, attacker)
		if err != nil {
			rest(ctx, 100*time.Millisecond)
			return
		}
		defer c.Abort()
		err = c.Send(announce(1, 64<<20))
		for err == nil && ctx.Err() == nil {
			err = c.Send(proxytest.Body(1, []byte{1}))
			rest(ctx, 500*time.Millisecond)
		}
	}},
	{"half publishes", func(ctx context.Context, addr string, _ int) {
		c, err := login(addr, attacker)
		if err != nil {
			return
		}
		defer c.Abort()
		for ch := 2; ch <= count(100, 300) && ctx.Err() == nil; ch++ {
			id := uint16(ch)
			b := append(proxytest.Method(id, amqp.ChannelOpen, ""), announce(id, 41000)...)
			if c.Send(append(b, proxytest.Body(id, make([]byte, 40000))...)) != nil {
				return
			}
		}
		<-ctx.Done()
	}},
	{"slow readers", func(ctx context.Context, addr string, i int) { // of 6 MB
		c, err := login(addr, attacker)
		if err != nil {
			return
		}
		defer c.Abort()
		q, err := c.DeclareQueue(1, fmt.Sprint("slow", i), proxytest.AutoDelete)
		for k := 0; k < 60 && err == nil; k++ {
			err = c.Publish(1, "", q, make([]byte, 100<<10))
		}
		if err == nil {
			err = c.Qos(1, 1000)
		}
		if err != nil {
			return
		}
		c.SendMethod(1, amqp.BasicConsume, 0, q, "", 0, nil)
		<-ctx.Done()
	}},
}

// floods are requests whose answers nobody reads, and channels that come and go without waiting.
var floods = []attack{
	{"channels", flood(func(n int) []byte {
		id := uint16(2 + n%400)
		b := append(proxytest.Method(id, amqp.ChannelOpen, ""), proxytest.PublishBytes(id, "", "nowhere", []byte("x"), 0)...)
		return append(b, proxytest.Method(id, amqp.ChannelClose, 200, "", 0, 0)...)
	})},
	{"get", flood(func(int) []byte { return proxytest.Method(1, amqp.BasicGet, 0, "flood", 1) })},
	{"qos", flood(func(n int) []byte { return proxytest.Method(1, amqp.BasicQos, 0, n%100, 0) })},
	{"passive", flood(func(int) []byte {
		return proxytest.Method(1, amqp.QueueDeclare, 0, "flood", proxytest.Passive, nil)
	})},
	{"publish", flood(func(int) []byte { return proxytest.PublishBytes(1, "", "nowhere", make([]byte, 1000), 0) })},
}

// flood sends 400 frames at a time and reads nothing.
func flood(frame func(n int) []byte) func(context.Context, string, int) {
	whole := sync.OnceValue(func() (b []byte) {
		for n := range 400 {
			b = append(b, frame(n)...)
		}
		return b
	})
	return func(ctx context.Context, addr string, _ int) {
		c, err := login(addr, attacker)
		if err != nil {
			return
		}
		defer c.Abort()
		defer context.AfterFunc(ctx, c.Abort)()
		if _, err := c.DeclareQueue(1, "flood", proxytest.Durable); err != nil {
			return
		}
		for b := whole(); ctx.Err() == nil && c.Send(b) == nil; {
		}
	}
}

// members are of crowds, which count them and what the process takes for them.
var members = []attack{
	{"a handshake", func(ctx context.Context, addr string, i int) {
		from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i%4))}} // an address has half of the places
		if c, err := from.DialContext(ctx, "tcp", addr); err == nil {
			b := append(slices.Clone(amqp.ProtocolHeader[:]), startOk("u9", "x", 7800)...)
			c.Write(b[:len(b)-1])
			hold(ctx, c)
		}
	}},
	{"a slow reader", func(ctx context.Context, addr string, i int) {
		c, err := proxytest.Dial(proxytest.ClientConfig{Addr: addr, User: attacker, Password: users()[attacker], Timeout: patience, Dial: narrow})
		if err != nil {
			return
		}
		defer c.Abort()
		defer context.AfterFunc(ctx, c.Abort)()
		if c.OpenChannel(1) == nil && c.Qos(1, 10) == nil && c.SendMethod(1, amqp.BasicConsume, 0, fmt.Sprint("slow-", i), "", 0, nil) == nil {
			<-ctx.Done() // it does not read, nor does it hear that it is ended
		}
	}},
	{"half a publish", func(ctx context.Context, addr string, _ int) {
		c, err := login(addr, attacker)
		if err != nil {
			return
		}
		defer c.Abort()
		defer context.AfterFunc(ctx, c.Abort)()
		if c.Send(append(announce(1, 41000), proxytest.Body(1, make([]byte, 40000))...)) == nil {
			hold(ctx, c.Conn()) // who is ended comes back
		}
	}},
}

// allOf is each of the attacks in turn.
func allOf(attacks []attack) func(context.Context, string, int) {
	return func(ctx context.Context, addr string, i int) { attacks[i%len(attacks)].one(ctx, addr, i) }
}

// byName is an attack of any kind.
func byName(name string) func(context.Context, string, int) {
	if name == "of all kinds" {
		return allOf(strangers)
	}
	for _, a := range slices.Concat(strangers, guessers, hoarders, floods, members) {
		if a.name == name {
			return a.one
		}
	}
	panic("no attack is called " + name)
}

// crowd runs n of one kind side by side, some at a time, until the context ends.
func crowd(ctx context.Context, n, side int, one func(ctx context.Context, i int)) {
	var wg sync.WaitGroup
	next := make(chan int)
	for range side {
		wg.Go(func() {
			for i := range next {
				one(ctx, i)
			}
		})
	}
	for i := 0; i < n && ctx.Err() == nil; i++ {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	wg.Wait()
}

// apart is a crowd in a process of its own.
type apart struct {
	Kind    string
	N, Side int
	// Rate is how many begin in a second at most; 0: no bound.
	Rate int
	// Again has each come back, a moment after it was over.
	Again bool
	// From is their address, of loopback; "": the canaries' own, who then share its half of max_handshakes.
	From string
}

// run is crowd, with the least claim to a core: attackers over the network have processors of their
// own. It tells how many came, again or for the first time.
func (a apart) run(ctx context.Context, t *testing.T, addr string) (came int) {
	self, err := os.Executable()
	if err != nil {
		t.Error(err)
		return 0
	}
	cmd := exec.Command("nice", "-n", "19", self)
	cmd.Env = append(os.Environ(), "HOSTILE_CROWD="+a.Kind, "HOSTILE_TO="+addr, "HOSTILE_FROM="+a.From,
		fmt.Sprintf("HOSTILE_COUNTS=%d %d %d %t", a.N, a.Side, a.Rate, a.Again))
	in, err := cmd.StdinPipe() // it ends with it, and so with this process
	if err != nil {
		t.Error(err)
		return 0
	}
	var out, failed bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &failed
	stop := context.AfterFunc(ctx, func() { in.Close() })
	defer stop()
	err = cmd.Run()
	in.Close()
	if err == nil {
		came, err = strconv.Atoi(strings.TrimSpace(out.String()))
	}
	if err != nil {
		t.Errorf("the attackers' process: %v\n%s", err, failed.String())
	}
	return came
}

// crowdApart is the other end of run.
func crowdApart() {
	var a apart
	a.Kind = os.Getenv("HOSTILE_CROWD")
	if _, err := fmt.Sscan(os.Getenv("HOSTILE_COUNTS"), &a.N, &a.Side, &a.Rate, &a.Again); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if ip := net.ParseIP(os.Getenv("HOSTILE_FROM")); ip != nil {
		dialer.LocalAddr = &net.TCPAddr{IP: ip}
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { io.Copy(io.Discard, os.Stdin); cancel() }()
	one, to := byName(a.Kind), os.Getenv("HOSTILE_TO")
	var came atomic.Int64
	began := time.Now()
	crowd(ctx, a.N, a.Side, func(ctx context.Context, i int) {
		if a.Rate > 0 {
			rest(ctx, time.Until(began.Add(time.Duration(i)*time.Second/time.Duration(a.Rate))))
		}
		for again := true; again && ctx.Err() == nil; again = a.Again {
			came.Add(1)
			one(ctx, to, i)
			if a.Again {
				rest(ctx, 50*time.Millisecond)
			}
		}
	})
	fmt.Println(came.Load())
}

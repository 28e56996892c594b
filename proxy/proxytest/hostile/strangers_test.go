//go:build linux

// Strangers: who has not logged in and never will.

package hostile

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

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

// hold keeps a connection until the other side or the context ends it.
func hold(ctx context.Context, c net.Conn) {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	io.Copy(io.Discard, c)
	c.Close()
}

// startOk is one with a secret and properties of a size.
func startOk(user, secret string, size int) []byte {
	props := amqp.AppendStringField(amqp.AppendTableField(nil, "capabilities", amqp.AppendBoolField(nil, "authentication_failure_close", true)), "x", strings.Repeat("p", size))
	return amqp.AppendStartOk(nil, props, "PLAIN", []byte("\x00"+user+"\x00"+secret), "en_US")
}

// greeted connects and waits for connection.start.
func greeted(addr string) (net.Conn, error) {
	c, err := dial(addr)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(amqp.ProtocolHeader[:]); err != nil {
		c.Close()
		return nil, err
	}
	var head [7]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func TestStrangers(t *testing.T) {
	n := count(400, 9000)
	type kind struct {
		name string
		do   func(ctx context.Context, addr string, i int)
	}
	kinds := []kind{
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
	// All of them in one crowd; by itself each takes FULL=1 or a pattern that names it.
	all := kinds
	kinds = append([]kind{{"of all kinds", func(ctx context.Context, addr string, i int) { all[i%len(all)].do(ctx, addr, i) }}}, kinds...)
	for _, k := range kinds {
		if !wanted(t, k.name, "of all kinds") {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			r := start(t, setup{settings: "[client]\nhandshake_timeout = \"5s\"\n[pool]\nidle_timeout = \"1s\"\n"})
			promise(t, r.under(time.Duration(count(6, 25))*time.Second, limits{ratio: 10}, func(ctx context.Context) {
				for ctx.Err() == nil {
					crowd(ctx, n, n, func(ctx context.Context, i int) { k.do(ctx, r.addr, i) })
					rest(ctx, 50*time.Millisecond)
				}
			}))
		})
	}
}

// Passwords that are wrong, each another, some not waiting for the answer, deny nobody a
// login, not even who needs a fresh connection to the broker.
func TestWrongPasswords(t *testing.T) {
	n := count(1500, 12000)
	for _, k := range []struct {
		name string
		do   func(addr string, i int)
	}{
		{"hanging up", func(addr string, i int) {
			if c, err := greeted(addr); err == nil {
				c.Write(startOk(victim, fmt.Sprint("h", i), 0))
				c.Close()
			}
		}},
		{"waiting", func(addr string, i int) {
			if c, err := proxytest.Dial(proxytest.ClientConfig{Addr: addr, User: victim, Password: fmt.Sprint("w", i), Timeout: patience}); err == nil {
				c.Abort()
			}
		}},
		{"unknown users", func(addr string, i int) {
			if c, err := proxytest.Dial(proxytest.ClientConfig{Addr: addr, User: fmt.Sprint("nobody", i), Password: "x", Timeout: patience}); err == nil {
				c.Abort()
			}
		}},
		{"unknown vhosts", func(addr string, i int) {
			if c, err := proxytest.Dial(proxytest.ClientConfig{Addr: addr, User: attacker, Password: users()[attacker], VHost: fmt.Sprint("no", i), Timeout: patience}); err == nil {
				c.Abort()
			}
		}},
	} {
		if !wanted(t, k.name, "hanging up", "waiting") {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			r := start(t, setup{settings: "[pool]\nidle_timeout = \"1s\"\nauth_ttl = \"1s\"\n"})
			promise(t, r.under(time.Duration(count(8, 30))*time.Second, limits{ratio: 10}, func(ctx context.Context) {
				crowd(ctx, n, count(100, 400), func(_ context.Context, i int) { k.do(r.addr, i) })
			}))
		})
	}
}

//go:build linux

// Strangers: who has not logged in and never will.

package hostile

import (
	"context"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
)

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
	// All of them in one crowd; by itself each takes FULL=1 or a pattern that names it.
	for _, k := range slices.Concat([]attack{{"of all kinds", nil}}, strangers) {
		if !wanted(t, k.name, "of all kinds") {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			r := start(t, setup{settings: "[client]\nhandshake_timeout = \"5s\"\n[pool]\nidle_timeout = \"1s\"\n"})
			promise(t, r.under(time.Duration(count(6, 25))*time.Second, limits{ratio: 10}, func(ctx context.Context) {
				for ctx.Err() == nil {
					// A crowd fills its address's half of max_handshakes; the other half is for those from elsewhere.
					apart{Kind: k.name, N: n, Side: n, From: "127.0.0.2"}.run(ctx, t, r.addr)
				}
			}))
		})
	}
}

// Passwords that are wrong, each another, some not waiting for the answer, deny nobody a
// login, not even who needs a fresh connection to the broker.
func TestWrongPasswords(t *testing.T) {
	n := count(1500, 12000)
	for _, k := range guessers {
		if !wanted(t, k.name, "hanging up", "waiting") {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			settings := "[pool]\nidle_timeout = \"1s\"\nauth_ttl = \"1s\"\n"
			if k.name != "unknown vhosts" { // which are tried by who may log in
				settings += "[client]\nmax_clients = 50\n" // of which no stranger has one
			}
			r := start(t, setup{settings: settings})
			promise(t, r.under(time.Duration(count(8, 30))*time.Second, limits{ratio: 10}, func(ctx context.Context) {
				began := time.Now()
				came := apart{Kind: k.name, N: n, Side: count(100, 400)}.run(ctx, t, r.addr)
				t.Logf("FIGURE %s: %d came in %v", t.Name(), came, time.Since(began).Round(time.Millisecond))
			}))
		})
	}
}

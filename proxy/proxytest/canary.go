// The canary: a client of the same identity beside the one that misbehaves. Whatever
// the other does, the canary must not notice.

package proxytest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"
)

var canaries atomic.Uint64

// CanaryBird is a publisher and a getter, held open while somebody else misbehaves.
type CanaryBird struct {
	t        testing.TB
	pub, get *Client
	queue    string
	sung     int
}

// Canary connects to addr as guest, publishes with a confirm and gets the message on
// another connection of the same identity. It fails the test when anything disturbs it.
func Canary(t testing.TB, addr string) {
	t.Helper()
	NewCanary(t, ClientConfig{Addr: addr}).Sing()
}

// NewCanary connects both of its clients; hold it open over the hazard and let it Sing after it.
func NewCanary(t testing.TB, cfg ClientConfig) *CanaryBird {
	t.Helper()
	b := &CanaryBird{t: t, queue: fmt.Sprintf("canary-%d-%d", os.Getpid(), canaries.Add(1))}
	cfg.Name = ""
	b.pub, b.get = b.dial(cfg), b.dial(cfg)
	if _, err := b.pub.DeclareQueue(1, b.queue, 0); err != nil {
		t.Fatalf("canary: declare: %v", err)
	}
	if err := b.pub.Confirm(1); err != nil {
		t.Fatalf("canary: confirm.select: %v", err)
	}
	t.Cleanup(b.fly)
	return b
}

func (b *CanaryBird) dial(cfg ClientConfig) *Client {
	b.t.Helper()
	c, err := Dial(cfg)
	if err != nil {
		b.t.Fatalf("canary: connect: %v", err)
	}
	if err := c.OpenChannel(1); err != nil {
		b.t.Fatalf("canary: channel.open: %v", err)
	}
	return c
}

// Sing publishes, waits for the confirm, gets the message on the other connection, and
// looks that nothing else has come on either.
func (b *CanaryBird) Sing() {
	b.t.Helper()
	b.sung++
	want := fmt.Appendf(nil, "song %d", b.sung)
	if err := b.pub.Publish(1, "", b.queue, want); err != nil {
		b.t.Fatalf("canary: publish: %v", err)
	}
	if err := b.pub.WaitConfirms(1); err != nil {
		b.t.Fatalf("canary: confirm: %v", err)
	}
	m, err := b.get.Get(1, b.queue, true)
	if err != nil {
		b.t.Fatalf("canary: get: %v", err)
	}
	if !bytes.Equal(m.Body, want) {
		b.t.Fatalf("canary: got %q, want %q", m.Body, want)
	}
	for _, c := range []*Client{b.pub, b.get} {
		if f, err := c.NextWithin(time.Millisecond); err == nil {
			b.t.Fatalf("canary: disturbed by %s", Describe(f))
		} else if !errors.Is(err, os.ErrDeadlineExceeded) {
			b.t.Fatalf("canary: connection ended: %v", err)
		}
	}
}

// fly cleans up; what fails now is no disturbance any more.
func (b *CanaryBird) fly() {
	_ = b.pub.DeleteQueue(1, b.queue)
	_ = b.pub.Close()
	_ = b.get.Close()
}

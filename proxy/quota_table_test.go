package proxy

import (
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// Whoever comes and goes leaves a trace that is bounded: a million addresses (with FULL=1) take no more than the first 100,000.
func TestManyAddresses(t *testing.T) {
	s, err := New(configured(func(c *Config) {
		c.Limits = []Limit{{By: ByAddress, Match: "*", MaxClients: 5, ConnectRate: Rate{1, time.Minute}}}
	}))
	if err != nil {
		t.Fatal(err)
	}
	q := &s.quotas
	rules := q.rules.Load()
	heap := func() uint64 {
		runtime.GC()
		runtime.GC() // what is pooled goes at the second
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	come := func(from, to int) {
		for i := from; i < to; i++ {
			name := netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(i >> 16), byte(i >> 8), byte(i)}), 64).String()
			q.mu.Lock()
			k := q.keyLocked(rules, byAddress, name)
			q.useLocked(k)
			k.clients++
			_, _ = q.turnLocked(k)
			k.clients--
			q.leaveLocked(k)
			q.mu.Unlock()
		}
	}
	many := 250_000
	if os.Getenv("FULL") != "" {
		many = 1_000_000
	}
	before := heap()
	come(0, quotaKeysMost)
	full := heap() - before
	come(quotaKeysMost, many)
	all := heap() - before
	t.Logf("100,000 addresses take %d bytes, %d %d: %d for each that is remembered", full, many, all, full/quotaKeysMost)
	if n := len(q.of[byAddress]); n != quotaKeysMost {
		t.Errorf("%d are remembered, want %d", n, quotaKeysMost)
	}
	if all > full+full/2 {
		t.Errorf("100,000 addresses take %d bytes, %d %d", full, many, all)
	}
	if len(q.say) == 0 {
		t.Error("nobody is told that some are forgotten")
	}
	runtime.KeepAlive(s)
}

// Whoever looks at a full table holds up logins for a moment only.
func BenchmarkListLimits(b *testing.B) {
	s, err := New(configured(func(c *Config) { c.Limits = []Limit{{By: ByAddress, Match: "*", MaxClients: 5}} }))
	if err != nil {
		b.Fatal(err)
	}
	q := &s.quotas
	for i := range quotaKeysMost {
		q.mu.Lock()
		q.keyLocked(q.rules.Load(), byAddress, netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String())
		q.mu.Unlock()
	}
	for b.Loop() {
		if _, keys, _ := s.ListLimits(100, func(LimitBy, string) bool { return true }); len(keys) != 100 {
			b.Fatal(len(keys))
		}
	}
}

// Who is at no limit any more is forgotten in time.
func TestQuotasAreForgotten(t *testing.T) {
	fromLoopback(t, func(c *Config) { c.Limits = []Limit{{By: ByUser, Match: "*", MaxClients: 5}} }, func(r *rig) {
		stays, goes := r.client(proxytest.ClientConfig{}), r.client(proxytest.ClientConfig{})
		r.must(goes.Close())
		count := func() int {
			r.s.quotas.mu.Lock()
			defer r.s.quotas.mu.Unlock()
			return len(r.s.quotas.of[byUser])
		}
		time.Sleep(2 * quotaKeepsFor)
		if n := count(); n != 1 {
			t.Errorf("%d are remembered while a client is there, want 1", n)
		}
		r.must(stays.Close())
		time.Sleep(quotaKeepsFor / 2)
		if n := count(); n != 1 {
			t.Errorf("%d are remembered soon after, want 1", n)
		}
		time.Sleep(quotaKeepsFor)
		if n := count(); n != 0 {
			t.Errorf("%d are remembered long after, want none", n)
		}
	})
}

// configured is the default configuration, changed.
func configured(change func(*Config)) Config {
	c := DefaultConfig()
	change(&c)
	return c
}

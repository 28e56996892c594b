package proxy

import (
	"net/netip"
	"os"
	"runtime"
	"slices"
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

// Of a table with more keys than are asked for, those are told of that were hit most, whatever order they are looked through in.
func TestListLimitsOfMany(t *testing.T) {
	s, err := New(configured(func(c *Config) { c.Limits = []Limit{{By: ByAddress, Match: "*", MaxClients: 5}} }))
	if err != nil {
		t.Fatal(err)
	}
	q := &s.quotas
	const keys = 5000
	for i := range keys {
		q.mu.Lock()
		k := q.keyLocked(q.rules.Load(), byAddress, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String())
		k.hits[limitRefused] = uint64(i / 2)
		q.mu.Unlock()
	}
	every := func(LimitBy, string) bool { return true }
	_, all, total := s.ListLimits(2*keys, every)
	if len(all) != keys || total != keys {
		t.Fatalf("%d of %d are told of, want %d", len(all), total, keys)
	}
	for i, k := range all {
		if want := uint64(keys-1-i) / 2; k.Refused != want || i > 0 && k.Refused == all[i-1].Refused && k.Key < all[i-1].Key {
			t.Fatalf("number %d is %s, refused %d, behind %s; want %d, and names in order", i, k.Key, k.Refused, all[max(0, i-1)].Key, want)
		}
	}
	for _, most := range []int{1, 7, 100, 3000} {
		if _, some, total := s.ListLimits(most, every); total != keys || !slices.Equal(some, all[:most]) {
			t.Errorf("the first %d are %v, want %v", most, some[:min(5, len(some))], all[:min(5, most)])
		}
	}
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

// The names of targets: their addresses, which are asked for anew from time to time.

package broker

import (
	"context"
	"net/netip"
	"slices"
	"time"
)

// doubtFor is when a name is asked again whose answer lacks an address that it had: some name
// servers tell a part of the addresses at a time.
const doubtFor = 5 * time.Second

// lookFor is how long a dial waits for a name server. Then it goes by what is known, or by the name, in
// connect_timeout as ever.
const lookFor = time.Second

// LookupFunc asks for the addresses of a name, in the order in which the system prefers them.
type LookupFunc func(ctx context.Context, host string) ([]netip.Addr, error)

// addresses are those of one name.
type addresses struct {
	all     []netip.Addr // the family that is preferred first
	doubted []netip.Addr // those of them that the last answer lacked
}

// looksUp reports whether a target's name is asked for.
func (c *Config) looksUp(t Target) bool {
	if c.Lookup == nil || c.DNSRefresh == 0 {
		return false
	}
	_, err := netip.ParseAddr(t.Host)
	return err != nil
}

// each are the addresses that are targets of their own: those of the family that has more of them,
// or is preferred. A name with one address in each is one target, which is dialled by its name.
func (a *addresses) each() []netip.Addr {
	var first, second []netip.Addr
	for _, ip := range a.all {
		if ip.Is4() == a.all[0].Is4() {
			first = append(first, ip)
		} else {
			second = append(second, ip)
		}
	}
	if len(second) > len(first) {
		return second
	}
	return first
}

// heard takes an answer. An address that it lacks is gone when the next one lacks it too.
func (a *addresses) heard(answer []netip.Addr) (gone, fresh []netip.Addr) {
	var next, doubted []netip.Addr
	for _, ip := range answer {
		ip = ip.Unmap()
		if slices.Contains(next, ip) {
			continue
		}
		next = append(next, ip)
		if !slices.Contains(a.all, ip) {
			fresh = append(fresh, ip)
		}
	}
	for _, ip := range a.all {
		switch {
		case slices.Contains(next, ip):
		case slices.Contains(a.doubted, ip):
			gone = append(gone, ip)
		default:
			doubted = append(doubted, ip)
		}
	}
	// Name servers turn the order round. What stays keeps its place.
	var all []netip.Addr
	for _, ip := range a.all {
		if !slices.Contains(gone, ip) {
			all = append(all, ip)
		}
	}
	all = append(all, fresh...)
	if len(next) > 0 { // the family that the system prefers now
		slices.SortStableFunc(all, func(x, y netip.Addr) int {
			return rank(x, next[0]) - rank(y, next[0])
		})
	}
	a.all, a.doubted = all, doubted
	return gone, fresh
}

func rank(ip, like netip.Addr) int {
	if ip.Is4() == like.Is4() {
		return 0
	}
	return 1
}

// look has the names looked up if it is time. Not nil: that is under way.
func (b *Broker) look() <-chan struct{} {
	cfg := b.conf.Load()
	if !slices.ContainsFunc(cfg.Targets, cfg.looksUp) {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.looking == nil {
		if time.Now().Before(b.lookAt) {
			return nil
		}
		done := make(chan struct{})
		b.looking = done
		b.spawn(func() { b.lookUp(done) })
	}
	return b.looking
}

// awaitLook waits for the names' addresses where nothing is known of them, or what is known is old.
func (b *Broker) awaitLook(ctx context.Context) {
	done := b.look()
	if done == nil {
		return
	}
	timer := time.NewTimer(lookFor)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (b *Broker) lookUp(done chan struct{}) {
	cfg := b.conf.Load()
	ctx, cancel := context.WithTimeout(b.ctx, cfg.ConnectTimeout)
	defer cancel()
	answers := make(map[string][]netip.Addr)
	for _, t := range cfg.Targets {
		if _, asked := answers[t.Host]; asked || !cfg.looksUp(t) {
			continue
		}
		// Without an answer what was known goes on; where nothing was, the dial by name tells why.
		answers[t.Host], _ = cfg.Lookup(ctx, t.Host)
	}
	b.mu.Lock()
	again := cfg.DNSRefresh
	type change struct {
		name        string
		gone, fresh []netip.Addr
	}
	var changes []change
	for host, answer := range answers {
		if len(answer) == 0 {
			again = min(again, doubtFor)
			continue
		}
		a := b.known[host]
		first := a == nil
		if first {
			a = &addresses{}
			if b.known == nil {
				b.known = make(map[string]*addresses)
			}
			b.known[host] = a
		}
		gone, fresh := a.heard(answer)
		if !first && len(gone)+len(fresh) > 0 {
			changes = append(changes, change{host, gone, fresh})
		}
		if len(a.doubted) > 0 {
			again = min(again, doubtFor)
		}
	}
	if b.conf.Load() == cfg { // else other names may be wanted by now
		b.lookAt = time.Now().Add(again)
	}
	b.looking = nil
	b.putLocked(b.conf.Load().Config)
	b.mu.Unlock()
	for _, c := range changes {
		b.log.Info("broker's addresses changed", "name", c.name, "added", c.fresh, "removed", c.gone)
		if len(c.gone) > 0 {
			b.left.Store(true)
		}
	}
	close(done)
}

// heardByDial takes the address that a dial by name has found for an answer. Where it was not among those known, the
// name has another one now: those from before are doubted, and the name is looked up anew.
func (b *Broker) heardByDial(t *target, ip netip.Addr) {
	if t.IP.IsValid() || len(t.at) == 0 || !ip.IsValid() || slices.Contains(t.at, ip) {
		return
	}
	b.mu.Lock()
	a := b.known[t.Host]
	fresh := a != nil && !slices.Contains(a.all, ip)
	if fresh {
		a.doubted = slices.Clone(a.all)
		a.all = append(a.all, ip)
		b.lookAt = time.Time{}
		b.putLocked(b.conf.Load().Config)
	}
	b.mu.Unlock()
	if fresh {
		b.log.Info("broker's addresses changed", "name", t.Host, "added", []netip.Addr{ip})
	}
}

//go:build linux

// The canaries: clients in order, beside those that are not.

package hostile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// song is what a canary measured.
type song struct {
	fresh  []time.Duration // login, confirm of a publish, get, close
	stands []time.Duration // publish, confirm and get on a connection that stands
	large  []time.Duration // the confirm of 300 KiB that come in two pieces
	failed []error
}

func p(ds []time.Duration, q float64) time.Duration {
	if len(ds) == 0 {
		return 0
	}
	ds = slices.Sorted(slices.Values(ds))
	return ds[min(len(ds)-1, int(q*float64(len(ds))))]
}

func (s *song) String() string {
	r := func(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }
	var text strings.Builder
	for _, k := range s.kinds() {
		fmt.Fprintf(&text, "%s n=%d p50=%v p99=%v max=%v, ", k.name, len(k.times), r(p(k.times, .5)), r(p(k.times, .99)), r(p(k.times, 1)))
	}
	return fmt.Sprintf("%sfailed %d", text.String(), len(s.failed))
}

type kind struct {
	name  string
	times []time.Duration
}

func (s *song) kinds() []kind {
	return []kind{{"fresh", s.fresh}, {"standing", s.stands}, {"large", s.large}}
}

// serial makes owners and queues of canaries differ.
var serial atomic.Int64

// sing sings as a user until the context ends; ready is told twice, when who stands stands.
func sing(ctx context.Context, addr, user string, ready func()) *song {
	s := &song{}
	var mu sync.Mutex
	fail := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		s.failed = append(s.failed, err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { // a fresh client ten times a second
		for ctx.Err() == nil {
			began := time.Now()
			if err := once(addr, user); err != nil {
				fail(fmt.Errorf("%s fresh after %v: %w", user, time.Since(began).Round(time.Millisecond), err))
			} else {
				mu.Lock()
				s.fresh = append(s.fresh, time.Since(began))
				mu.Unlock()
			}
			rest(ctx, 100*time.Millisecond)
		}
	})
	wg.Go(func() { // one that stands
		c, err := login(addr, user)
		q := fmt.Sprintf("canary-%d", serial.Add(1))
		if err == nil {
			defer c.Abort()
			_, err = c.DeclareQueue(1, q, proxytest.Durable)
		}
		if err == nil {
			err = c.Confirm(1)
		}
		ready()
		if err != nil {
			fail(fmt.Errorf("%s standing: %w", user, err))
			return
		}
		for n := 0; ctx.Err() == nil; n++ {
			began := time.Now()
			body := fmt.Sprintf("%s %d", q, n)
			err := c.Publish(1, "", q, []byte(body))
			if err == nil {
				err = c.WaitConfirms(1)
			}
			var m *proxytest.Message
			if err == nil {
				m, err = c.Get(1, q, true)
			}
			if err == nil && string(m.Body) != body {
				err = fmt.Errorf("got %q, want %q", m.Body, body)
			}
			if err != nil {
				fail(fmt.Errorf("%s standing after %v: %w", user, time.Since(began).Round(time.Millisecond), err))
				return
			}
			mu.Lock()
			s.stands = append(s.stands, time.Since(began))
			mu.Unlock()
			rest(ctx, 20*time.Millisecond)
		}
		if err := c.DeleteQueue(1, q); err != nil {
			fail(err)
		}
	})
	wg.Go(func() { // one with large messages
		if err := s.sayLarge(ctx, &mu, addr, user, ready); err != nil {
			fail(fmt.Errorf("%s large: %w", user, err))
		}
	})
	wg.Wait()
	return s
}

func (s *song) sayLarge(ctx context.Context, mu *sync.Mutex, addr, user string, ready func()) error {
	c, err := login(addr, user)
	if err == nil {
		defer c.Abort()
		err = c.Confirm(1)
	}
	ready()
	if err != nil {
		return err
	}
	b := proxytest.PublishBytes(1, "", "nowhere", make([]byte, 300<<10), c.Tune.FrameMax)
	for ctx.Err() == nil {
		began := time.Now()
		if err := c.Send(b[:len(b)/2]); err != nil {
			return err
		}
		if err := c.Send(b[len(b)/2:]); err != nil {
			return err
		}
		if _, err := c.Await(1, amqp.BasicAck); err != nil {
			return fmt.Errorf("after %v: %w", time.Since(began).Round(time.Millisecond), err)
		}
		mu.Lock()
		s.large = append(s.large, time.Since(began))
		mu.Unlock()
		rest(ctx, 100*time.Millisecond)
	}
	return nil
}

func rest(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func login(addr, user string) (*proxytest.Client, error) {
	c, err := proxytest.Dial(proxytest.ClientConfig{Addr: addr, User: user, Password: users()[user], Timeout: patience})
	if err != nil {
		return nil, fmt.Errorf("login: %w", err)
	}
	if err := c.OpenChannel(1); err != nil {
		c.Abort()
		return nil, fmt.Errorf("channel.open: %w", err)
	}
	return c, nil
}

// once is a whole short client, who finds its own message and no other.
func once(addr, user string) error {
	c, err := login(addr, user)
	if err != nil {
		return err
	}
	defer c.Abort()
	q := fmt.Sprintf("canary-fresh-%s", user)
	if _, err := c.DeclareQueue(1, q, proxytest.Durable); err != nil {
		return err
	}
	if err := c.Confirm(1); err != nil {
		return err
	}
	if err := c.Publish(1, "", q, []byte(q)); err != nil {
		return err
	}
	if err := c.WaitConfirms(1); err != nil {
		return err
	}
	m, err := c.Get(1, q, true)
	if err != nil {
		return err
	}
	if string(m.Body) != q {
		return fmt.Errorf("got %q, want %q", m.Body, q)
	}
	return c.Close()
}

// choir is the canaries of a time, by user, and the one straight at the broker.
type choir map[string]*song

const straight = "straight"

func (r *rig) listen(ctx context.Context, ready func()) choir {
	var mu sync.Mutex
	var wg sync.WaitGroup
	heard := choir{}
	for who, to := range map[string][2]string{attacker: {r.addr, attacker}, victim: {r.addr, victim}, straight: {r.broker, victim}} {
		wg.Go(func() {
			s := sing(ctx, to[0], to[1], ready)
			mu.Lock()
			defer mu.Unlock()
			heard[who] = s
		})
	}
	wg.Wait()
	return heard
}

// limits are what canaries may notice: p99 as a multiple of what it was when all was quiet
// or of what the straight canary has in the same time, whichever is more.
type limits struct {
	ratio  float64
	spared []string // who need not be unharmed, or which of a song ("fresh")
	most   int      // bytes that may be resident beyond the base; 0: not looked at
}

// under attacks for a time while the canaries sing, and says what was not as promised. The
// attack ends when its context does; it may end before.
func (r *rig) under(length time.Duration, l limits, attack func(ctx context.Context)) error {
	r.t.Helper()
	quietly, cancel := context.WithTimeout(context.Background(), min(length, 3*time.Second))
	quiet := r.listen(quietly, func() {})
	cancel()
	r.rests()

	ctx, cancel := context.WithTimeout(context.Background(), length)
	defer cancel()
	var loud choir
	var wg sync.WaitGroup
	var standing sync.WaitGroup
	standing.Add(6) // two of each singer
	wg.Go(func() { loud = r.listen(ctx, standing.Done) })
	standing.Wait()
	ran, waited := r.onCores()
	wg.Go(func() { attack(ctx) })
	most := 0
	wg.Go(func() {
		for ctx.Err() == nil {
			most = max(most, rss(r.cmd.Process.Pid))
			rest(ctx, 100*time.Millisecond)
		}
	})
	wg.Wait()
	r.alive()
	ranNow, waitedNow := r.onCores()
	r.t.Logf("FIGURE %s: resident at most %d MiB; its threads ran for %v and waited for a core for %v", r.t.Name(), most>>20,
		(ranNow - ran).Round(time.Millisecond), (waitedNow - waited).Round(time.Millisecond))
	errs := []error{judge(r.t, quiet, loud, l)}
	if l.most > 0 && most > r.base.rss+l.most {
		errs = append(errs, fmt.Errorf("%d MiB were resident beside the attack, at most %d are promised (%d before and %d for it)",
			most>>20, (r.base.rss+l.most)>>20, r.base.rss>>20, l.most>>20))
	}
	errs = append(errs, r.returns())
	for user := range users() {
		if err := once(r.addr, user); err != nil {
			errs = append(errs, fmt.Errorf("%s afterwards: %w", user, err))
		}
	}
	return errors.Join(errs...)
}

// floor is what no p99 is held below: the length of a time slice or two.
const floor = 20 * time.Millisecond

func judge(t *testing.T, quiet, loud choir, l limits) error {
	t.Helper()
	var errs []error
	for _, who := range []string{straight, victim, attacker} {
		t.Logf("FIGURE %s: %s quiet: %v", t.Name(), who, quiet[who])
		t.Logf("FIGURE %s: %s under attack: %v", t.Name(), who, loud[who])
		if who == straight || slices.Contains(l.spared, who) {
			continue
		}
		var failed []error
		for _, err := range loud[who].failed {
			if !slices.ContainsFunc(l.spared, func(what string) bool { return strings.Contains(err.Error(), " "+what+" ") }) {
				failed = append(failed, err)
			}
		}
		if n := len(failed); n > 0 {
			errs = append(errs, fmt.Errorf("%s: %d failures beside the attack, the first ones: %w", who, n, errors.Join(failed[:min(n, 5)]...)))
		}
		for i, k := range loud[who].kinds() {
			if slices.Contains(l.spared, k.name) {
				continue
			}
			got, before, beside := p(k.times, .99), p(quiet[who].kinds()[i].times, .99), p(loud[straight].kinds()[i].times, .99)
			most := time.Duration(l.ratio * float64(max(before, beside, floor)))
			if got > most || len(k.times) == 0 {
				errs = append(errs, fmt.Errorf("%s, %s: p99 %v of %d beside the attack, at most %v (quiet %v, straight in the same time %v)",
					who, k.name, got, len(k.times), most, before, beside))
			}
		}
	}
	return errors.Join(errs...)
}

func readAll(r io.Reader) string {
	b, _ := io.ReadAll(io.LimitReader(r, 8<<20)) // what is cut is missed by who looks for it
	return string(b)
}

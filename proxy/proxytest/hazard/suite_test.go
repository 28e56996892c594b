//go:build linux

// The suite: every case runs straight against each broker, where its answer is held
// against the recorded one, and through the proxy, where a client must hear the same and
// the canary beside it must notice nothing.

package hazard

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

var (
	update = flag.Bool("update", false, "record what the brokers answer in testdata/answers.txt")
	mode   = flag.String("mode", string(proxy.PoolAuto), "pool_mode of the proxy under test")
	only   = flag.String("case", "", "run the cases whose names match this expression only")
	broker = flag.String("broker", "", "run on this version of RabbitMQ only")
)

// versions are those that the run is for.
func versions() []rabbit.Version {
	if *broker == "" {
		return rabbit.Versions
	}
	return []rabbit.Version{rabbit.Version(*broker)}
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(rabbit.Main(m))
}

// workers run cases side by side, each in a virtual host of its own: an identity of its
// own, so that a canary that falls tells which case felled it.
const workers = 6

const answersFile = "testdata/answers.txt"

// answers is what each broker said to each case, in words: name → version → items. In the
// file versions that say the same share a line.
type answers map[string]map[rabbit.Version]string

func readAnswers(t *testing.T) answers {
	t.Helper()
	b, err := os.ReadFile(answersFile)
	if err != nil {
		t.Fatalf("%v (run TestStraight with -update)", err)
	}
	all := answers{}
	var name string
	for _, line := range strings.Split(string(b), "\n") {
		if rest, ok := strings.CutPrefix(line, "# "); ok {
			name = rest
			all[name] = map[rabbit.Version]string{}
		} else if v, items, ok := strings.Cut(line, ": "); ok {
			for _, version := range rabbit.Versions {
				if v == "all" || slices.Contains(strings.Fields(v), string(version)) {
					all[name][version] = items
				}
			}
		}
	}
	return all
}

func (a answers) write(t *testing.T, cases []hazard) {
	t.Helper()
	var b bytes.Buffer
	for _, h := range cases {
		fmt.Fprintf(&b, "# %s\n", h.name)
		said := map[string][]string{}
		var order []string
		for _, v := range rabbit.Versions {
			items := a[h.name][v]
			if said[items] == nil {
				order = append(order, items)
			}
			said[items] = append(said[items], string(v))
		}
		for _, items := range order {
			who := strings.Join(said[items], " ")
			if len(order) == 1 {
				who = "all"
			}
			fmt.Fprintf(&b, "%s: %s\n", who, items)
		}
	}
	if err := os.WriteFile(answersFile, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

const nothing = "nothing"

func join(items []string) string {
	if len(items) == 0 {
		return nothing
	}
	return strings.Join(items, "; ")
}

func split(s string) []string {
	if s == nothing || s == "" {
		return nil
	}
	return strings.Split(s, "; ")
}

var vhostName = regexp.MustCompile(`vhost '[^']*'`)

// run runs a case and says what was answered; expect is how many items are awaited.
func run(addr, vhost string, h hazard, expect int) string {
	k, err := dial(addr, "guest", "guest", vhost, h.name)
	if err != nil {
		return "login failed: " + err.Error()
	}
	defer k.c.Close()
	for i, f := range h.setup {
		if err := k.do(f); err != nil {
			return fmt.Sprintf("setup step %d failed: %v", i, err)
		}
	}
	k.send(h.send)
	quiet := 120 * time.Millisecond
	if expect == 0 {
		quiet = 400 * time.Millisecond
	}
	if *update {
		quiet = 1500 * time.Millisecond
	}
	said := join(k.collect(expect, quiet))
	if !strings.Contains(said, "connection.close") {
		k.send(method(0, 10<<16|50, short(200), str("done"), long(0)))
	}
	return vhostName.ReplaceAllString(said, "vhost '/'")
}

// vhosts makes virtual hosts that guest may use, and removes them after the test.
func vhosts(t *testing.T, b *rabbit.Broker, n int) (names []string) {
	t.Helper()
	for i := range n {
		name := fmt.Sprintf("hazard-%d-%d", time.Now().UnixNano(), i)
		expr := fmt.Sprintf(`rabbit_vhost:add(<<"%s">>, <<"test">>), rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<"%[1]s">>, <<".*">>, <<".*">>, <<".*">>, <<"test">>).`, name)
		if _, err := b.Eval(expr); err != nil {
			t.Fatalf("vhost %s: %v", name, err)
		}
		names = append(names, name)
		t.Cleanup(func() {
			if _, err := b.Eval(fmt.Sprintf(`rabbit_vhost:delete(<<"%s">>, <<"test">>).`, name)); err != nil {
				t.Logf("vhost %s stays: %v", name, err)
			}
		})
	}
	return names
}

func selected(t *testing.T) []hazard {
	t.Helper()
	cases := firewallCases()
	seen := map[string]bool{}
	for _, h := range cases {
		if seen[h.name] {
			t.Fatalf("two cases are called %q", h.name)
		}
		seen[h.name] = true
	}
	if *only == "" {
		return cases
	}
	match := regexp.MustCompile(*only)
	var some []hazard
	for _, h := range cases {
		if match.MatchString(h.name) {
			some = append(some, h)
		}
	}
	return some
}

// each has the workers run all cases, each worker in its virtual host.
func each(names []string, cases []hazard, f func(vhost string, h hazard)) {
	work := make(chan hazard)
	var wg sync.WaitGroup
	for _, name := range names {
		wg.Go(func() {
			for h := range work {
				f(name, h)
			}
		})
	}
	for _, h := range cases {
		work <- h
	}
	close(work)
	wg.Wait()
}

func TestStraight(t *testing.T) {
	cases := selected(t)
	want := readAnswers(t)
	var mu sync.Mutex
	for _, v := range versions() {
		t.Run(string(v), func(t *testing.T) {
			if !*update { // each case mostly waits to see that nothing comes
				t.Parallel()
			}
			b := rabbit.Get(t, v)
			each(vhosts(t, b, workers), cases, func(vhost string, h hazard) {
				expected := want[h.name][v]
				got := run(b.Addr(), vhost, h, len(split(expected)))
				mu.Lock()
				defer mu.Unlock()
				if *update {
					if want[h.name] == nil {
						want[h.name] = map[rabbit.Version]string{}
					}
					want[h.name][v] = got
					return
				}
				if why := differs(expected, got, racy[h.name]); why != "" {
					t.Errorf("%s: %s\n got  %s\n want %s", h.name, why, got, expected)
				}
			})
		})
	}
	if *update {
		want.write(t, firewallCases())
	}
}

var closeItem = regexp.MustCompile(`^(\S+\(ch \d+\)) (\d+) by (\S+) "([A-Z_]+)`)

// essence is an item without the free part of its text.
func essence(item string) string {
	if m := closeItem.FindStringSubmatch(item); m != nil {
		return m[1] + " " + m[2] + " by " + m[3] + " " + m[4]
	}
	return item
}

// differs says how an answer differs from the expected one in more than the text.
func differs(want, got string, also []string) string {
	for _, w := range append([]string{want}, also...) {
		a, b := split(w), split(got)
		if n, m := len(a), len(b); n != m && n > 0 && m > 0 && strings.HasPrefix(a[n-1], "connection.close") {
			// A hard error may overtake answers still under way, at the broker too.
			a, b = a[n-1:], b[m-1:]
		}
		if len(a) != len(b) {
			continue
		}
		same := true
		for i := range a {
			same = same && essence(a[i]) == essence(b[i])
		}
		if same {
			return ""
		}
	}
	return "another answer"
}

// proxyDiffers is differs for an answer through the proxy. Where the broker's own answer
// is a failure of its parser (a cut, or 541), the proxy's may be the error that fits.
func proxyDiffers(name string, v rabbit.Version, want, got string) string {
	also := append([]string{}, racy[name]...)
	if v == rabbit.V43 {
		also = append(also, newest(name)...)
	}
	if other, ok := exceptionOf(name); ok {
		also = append(also, other.answer)
	}
	a, b := split(want), split(got)
	if len(a) == len(b) && len(a) > 0 {
		last := a[len(a)-1]
		allowed := ""
		switch {
		case last == "cut":
			allowed = "501 502 503 540 541"
		case strings.Contains(last, "connection.close(ch 0) 541"):
			allowed = "501 502 505 541"
		}
		if m := closeItem.FindStringSubmatch(b[len(b)-1]); m != nil && m[1] == "connection.close(ch 0)" && strings.Contains(allowed, m[2]) && allowed != "" {
			a[len(a)-1], b[len(b)-1] = "refused", "refused"
			want, got = join(a), join(b)
		}
	}
	return differs(want, got, also)
}

// bird is a canary of one identity: a publisher with confirms and a getter.
type bird struct {
	pub, get *proxytest.Client
	queue    string
	sung     int
}

var birds atomic.Int64

func newBird(addr, vhost string) (*bird, error) {
	b := &bird{queue: fmt.Sprintf("canary-%d", birds.Add(1))}
	for _, c := range []**proxytest.Client{&b.pub, &b.get} {
		var err error
		if *c, err = proxytest.Dial(proxytest.ClientConfig{Addr: addr, VHost: vhost, Name: "canary"}); err != nil {
			return nil, fmt.Errorf("canary's login: %w", err)
		}
		if err = (*c).OpenChannel(1); err != nil {
			return nil, fmt.Errorf("canary's channel.open: %w", err)
		}
	}
	if _, err := b.pub.DeclareQueue(1, b.queue, durable); err != nil {
		return nil, fmt.Errorf("canary's declare: %w", err)
	}
	if err := b.pub.Confirm(1); err != nil {
		return nil, fmt.Errorf("canary's confirm.select: %w", err)
	}
	return b, b.sing()
}

// sing publishes, waits for the confirm, gets the message, and looks that nothing else came.
func (b *bird) sing() error {
	b.sung++
	want := fmt.Appendf(nil, "song %d", b.sung)
	if err := b.pub.Publish(1, "", b.queue, want); err != nil {
		return fmt.Errorf("canary's publish: %w", err)
	}
	if err := b.pub.WaitConfirms(1); err != nil {
		return fmt.Errorf("canary's confirm: %w", err)
	}
	m, err := b.get.Get(1, b.queue, true)
	if err != nil {
		return fmt.Errorf("canary's get: %w", err)
	}
	if !bytes.Equal(m.Body, want) {
		return fmt.Errorf("canary got %q, want %q", m.Body, want)
	}
	for _, c := range []*proxytest.Client{b.pub, b.get} {
		if f, err := c.NextWithin(time.Millisecond); err == nil {
			return fmt.Errorf("canary disturbed by %s", proxytest.Describe(f))
		} else if !errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("canary's connection: %w", err)
		}
	}
	return nil
}

func (b *bird) fly() {
	b.pub.Hangup()
	b.get.Hangup()
}

// startProxy runs the engine in this process before a broker.
func startProxy(t *testing.T, b *rabbit.Broker, change func(*proxy.Config)) (*proxy.Server, string) {
	t.Helper()
	cfg := proxy.DefaultConfig()
	cfg.Listeners = []proxy.Listener{{Address: "127.0.0.1:0", Mode: proxy.PoolMode(*mode)}}
	cfg.Upstream = proxy.Upstream{Host: "127.0.0.1", Port: b.Port}
	cfg.DrainTimeout = 0
	var logged bytes.Buffer
	var mu sync.Mutex
	cfg.Logger = slog.New(slog.NewTextHandler(writer(func(p []byte) {
		mu.Lock()
		defer mu.Unlock()
		if logged.Len() < 1<<20 {
			logged.Write(p)
		}
	}), &slog.HandlerOptions{Level: slog.LevelWarn}))
	if change != nil {
		change(&cfg)
	}
	s, err := proxy.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if path := os.Getenv("HAZARD_LOG"); path != "" {
			mu.Lock()
			defer mu.Unlock()
			os.WriteFile(path+"-"+strings.ReplaceAll(t.Name(), "/", "-"), logged.Bytes(), 0o644)
		}
	})
	return s, s.Addrs()[0].String()
}

type writer func(p []byte)

func (w writer) Write(p []byte) (int, error) { w(p); return len(p), nil }

func TestThroughProxy(t *testing.T) {
	cases := selected(t)
	want := readAnswers(t)
	for _, v := range versions() {
		t.Run(string(v), func(t *testing.T) {
			t.Parallel()
			b := rabbit.Get(t, v)
			s, addr := startProxy(t, b, nil)
			var mu sync.Mutex
			cage := map[string]*bird{}
			defer func() {
				for _, c := range cage {
					if c != nil {
						c.fly()
					}
				}
			}()
			texts := 0
			var fell int32
			each(vhosts(t, b, workers), cases, func(vhost string, h hazard) {
				fail := func(format string, args ...any) {
					t.Helper()
					t.Errorf("%s: %s", h.name, fmt.Sprintf(format, args...))
				}
				mu.Lock()
				c := cage[vhost]
				mu.Unlock()
				if c == nil {
					var err error
					if c, err = newBird(addr, vhost); err != nil {
						fail("no canary: %v", err)
						return
					}
				}
				expected := want[h.name][v]
				got := run(addr, vhost, h, len(split(expected)))
				if why := proxyDiffers(h.name, v, expected, got); why != "" {
					fail("%s\n through the proxy %s\n straight          %s", why, got, expected)
				}
				if err := c.sing(); err != nil {
					if atomic.AddInt32(&fell, 1); !spreads(h.name) || !strings.Contains(expected, "connection.close") {
						fail("the canary noticed: %v", err)
					}
					c.fly()
					c = nil
				}
				mu.Lock()
				defer mu.Unlock()
				cage[vhost] = c
				if got != expected {
					texts++
				}
			})
			t.Logf("%d cases, %d of them answered in other words than the broker's; %d reached a co-tenant as they may; %d hard errors answered by the proxy, %d upstreams opened, %d lost",
				len(cases), texts, fell, s.Stats().FirewallCloses, s.Stats().UpstreamsTotal, s.Stats().UpstreamsLost)
		})
	}
}

// A tier of proxies: three behind HAProxy, which tells who the clients are, as OPERATIONS.md has it.
// FULL=1: 30,000 clients of several processes, since one may have 20,000 descriptors.

//go:build linux

package integration

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// crowdEnv makes the test's program a crowd of clients: FROM TO N.
const crowdEnv = "TIER_CROWD"

// crowdMember is one of them.
type crowdMember struct{ c *proxytest.Client }

func (m *crowdMember) login(from, to string) error {
	c, err := proxytest.Dial(proxytest.ClientConfig{Addr: to, Dial: proxytest.DialerFrom(from).DialContext, Timeout: patience})
	m.c = c
	return err
}

func (m *crowdMember) open(string, string) error {
	if m.c == nil {
		return errors.New("it is not logged in")
	}
	if err := m.c.OpenChannel(1); err != nil {
		return err
	}
	return m.c.Confirm(1)
}

// publish has what it says confirmed; who cannot is gone.
func (m *crowdMember) publish(string, string) error {
	if m.c == nil {
		return errors.New("it is not logged in")
	}
	err := m.c.Publish(1, "", "nowhere", []byte("x"))
	if err == nil {
		err = m.c.WaitConfirms(1)
	}
	if err != nil {
		m.c.Abort()
		m.c = nil
	}
	return err
}

// back is who was lost and comes again.
func (m *crowdMember) back(from, to string) error {
	if m.c != nil {
		return nil
	}
	if err := m.login(from, to); err != nil {
		return err
	}
	err := m.open(from, to)
	if err != nil {
		m.c.Abort()
		m.c = nil
	}
	return err
}

// crowdMain does what stdin says, each member once, and answers "DONE FAILED FIRST-ERROR".
func crowdMain(spec string) {
	var from, to string
	var n int
	if _, err := fmt.Sscan(spec, &from, &to, &n); err != nil {
		fmt.Fprintln(os.Stderr, crowdEnv, err)
		os.Exit(2)
	}
	members := make([]crowdMember, n)
	does := map[string]func(*crowdMember, string, string) error{"login": (*crowdMember).login, "open": (*crowdMember).open,
		"publish": (*crowdMember).publish, "back": (*crowdMember).back}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		do := does[lines.Text()]
		var next, failed atomic.Int64
		var first atomic.Pointer[error]
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
					if err := do(&members[i], from, to); err != nil {
						failed.Add(1)
						first.CompareAndSwap(nil, &err)
					}
				}
			})
		}
		wg.Wait()
		why := ""
		if e := first.Load(); e != nil {
			why = strings.ReplaceAll((*e).Error(), "\n", " ")
		}
		fmt.Println(n, failed.Load(), why)
	}
}

// crowds are several processes of clients.
type crowds []*struct {
	in  io.WriteCloser
	out *bufio.Reader
}

// startCrowds has n clients in all come from as many processes as there are addresses to go to.
func startCrowds(t *testing.T, n int, to ...string) crowds {
	t.Helper()
	all := make(crowds, len(to))
	for i := range all {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=127.0.0.%d %s %d", crowdEnv, 9+i, to[i], n/len(to)))
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
		all[i] = &struct {
			in  io.WriteCloser
			out *bufio.Reader
		}{in, bufio.NewReader(out)}
	}
	return all
}

// all has each client do something once, and tells how many failed, one of the errors, and how long it took.
func (cs crowds) all(t *testing.T, what string) (failed int, why string, took time.Duration) {
	t.Helper()
	began := time.Now()
	for _, c := range cs {
		if _, err := fmt.Fprintln(c.in, what); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range cs {
		line, err := c.out.ReadString('\n')
		f := strings.SplitN(strings.TrimSpace(line), " ", 3)
		if err != nil || len(f) < 2 {
			t.Fatalf("a crowd answers %q: %v", line, err)
		}
		n, err := strconv.Atoi(f[1])
		if err != nil {
			t.Fatal(err)
		}
		if failed += n; n > 0 && len(f) == 3 {
			why = f[2]
		}
	}
	return failed, why, time.Since(began)
}

func (cs crowds) leave() {
	for _, c := range cs {
		_ = c.in.Close()
		_, _ = io.Copy(io.Discard, c.out)
	}
}

// startTier runs so many HAProxies on one port before the proxies: the kernel shares the clients out among them.
func startTier(t *testing.T, balancers int, proxies []*process) string {
	t.Helper()
	program, err := exec.LookPath("haproxy")
	if err != nil {
		program, err = exec.LookPath("/usr/sbin/haproxy")
	}
	if err != nil {
		rabbit.Skip(t, fmt.Errorf("haproxy is not installed (`make deps` installs it): %w", err))
	}
	ports, err := rabbit.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", ports[0])
	var conf strings.Builder
	fmt.Fprintf(&conf, "global\n maxconn %d\n nbthread 1\ndefaults\n mode tcp\n option redispatch 1\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n"+
		"listen amqp\n bind %s\n balance leastconn\n option httpchk GET /readyz\n default-server send-proxy-v2 check inter 200ms rise 1\n", count(1000, 9900), addr)
	for i, p := range proxies {
		fmt.Fprintf(&conf, " server p%d %s port %s\n", i, p.addr, portOf(p.http))
	}
	path := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(path, []byte(conf.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	var said syncBuffer
	for range balancers {
		cmd := exec.Command(program, "-db", "-f", path)
		cmd.Stdout, cmd.Stderr = &said, &said
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	}
	eventually(t, "a client gets through HAProxy", func() error {
		c, err := proxytest.Dial(proxytest.ClientConfig{Addr: addr, Timeout: patience})
		if err != nil {
			return fmt.Errorf("%w\n%s", err, said.String())
		}
		return c.Close()
	})
	return addr
}

func TestTier(t *testing.T) {
	if straight {
		t.Skip("STRAIGHT=1")
	}
	const members = 3
	n := count(300, 30000)
	b := proxytest.StartBroker(t, proxytest.BrokerConfig{})
	proxies := make([]*process, members)
	to := make([]string, members)
	for i := range proxies {
		proxies[i] = startProxy(t, !full, "amqp://"+b.Addr(),
			"[[listener]]\nproxy_protocol = \"required\"\nproxy_from = \"127.0.0.1\"\ndirect_from = \"127.0.0.8/29\"\n")
		to[i] = proxies[i].addr
	}
	has := func(name string) (each [members]int, sum int) {
		for i, p := range proxies {
			if p != nil {
				each[i] = int(p.metric(t, name))
				sum += each[i]
			}
		}
		return each, sum
	}
	work := func(cs crowds, where string) {
		t.Helper()
		for _, what := range []string{"login", "open", "publish"} {
			failed, why, took := cs.all(t, what)
			clients, all := has("amqproxysvc_clients")
			_, upstreams := has("amqproxysvc_upstreams")
			t.Logf("FIGURE %s: %d clients %s: %s: %.0f/s, then %v clients, %d upstreams", t.Name(), n, where, what, float64(n)/took.Seconds(), clients, upstreams)
			if failed > 0 || all < n {
				t.Fatalf("%d of %d failed to %s: %s; the proxies have %v", failed, n, what, why, clients)
			}
		}
	}
	cs := startCrowds(t, n, to...)
	work(cs, "straight at the proxies")
	cs.leave()
	eventually(t, "all have gone", func() error {
		if each, sum := has("amqproxysvc_clients"); sum > 0 {
			return fmt.Errorf("%v are left", each)
		}
		return nil
	})

	addr := startTier(t, count(1, 4), proxies)
	cs = startCrowds(t, n, addr, addr, addr)
	work(cs, "through HAProxy")
	each, _ := has("amqproxysvc_clients")
	for _, has := range each {
		if has < n/members*9/10 {
			t.Errorf("leastconn shares %v out", each)
		}
	}

	// One proxy dies: its clients with it, nobody else's; they come back to the others.
	dead := proxies[0]
	proxies[0] = nil
	_ = dead.cmd.Process.Kill()
	<-dead.done
	failed, why, _ := cs.all(t, "publish")
	if failed != each[0] {
		t.Errorf("%d clients have lost their connection, want the %d of the proxy that died; one of them: %s", failed, each[0], why)
	}
	began := time.Now()
	const rounds = 10 // no time: one round of many clients is longer than patience
	for round := 0; ; round++ {
		if failed, why, _ = cs.all(t, "back"); failed == 0 {
			break
		}
		if round == rounds {
			t.Fatalf("%d of those who were lost do not come back: %s", failed, why)
		}
	}
	took := time.Since(began)
	if failed, why, _ := cs.all(t, "publish"); failed > 0 {
		t.Errorf("%d of those who are back cannot publish: %s", failed, why)
	}
	left, _ := has("amqproxysvc_clients")
	t.Logf("FIGURE %s: a proxy with %d clients died, the others' had nothing; back within %v: %v", t.Name(), each[0], took.Round(time.Millisecond), left)
}

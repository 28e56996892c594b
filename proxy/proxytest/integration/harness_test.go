// The proxy as a process, and the ways a case can take: straight and through it.

//go:build linux

package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// patience bounds every wait of these tests.
const patience = 30 * time.Second

// target is where a case's clients connect to.
type target struct {
	via    string // "straight" or "proxy"
	addr   string // HOST:PORT for clients
	broker *rabbit.Broker
	proxy  *process // nil when straight
}

func (tg *target) port() string { return portOf(tg.addr) }

// portOf is the port of an address that a listener gave.
func portOf(addr string) string {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		panic(err)
	}
	return port
}

// each runs a case on every broker, straight and through a proxy with these settings.
func each(t *testing.T, settings string, f func(t *testing.T, tg *target)) {
	onEach(t, false, settings, f)
}

// eachAtOnce is each with the versions side by side: for what counts and does not measure.
func eachAtOnce(t *testing.T, settings string, f func(t *testing.T, tg *target)) {
	onEach(t, true, settings, f)
}

func onEach(t *testing.T, atOnce bool, settings string, f func(t *testing.T, tg *target)) {
	for _, v := range versions(t) {
		t.Run(string(v), func(t *testing.T) {
			if atOnce {
				t.Parallel()
			}
			b := rabbit.Get(t, v)
			t.Run("straight", func(t *testing.T) {
				f(t, &target{via: "straight", addr: b.Addr(), broker: b})
			})
			if straight {
				return
			}
			t.Run("proxy", func(t *testing.T) {
				p := startProxy(t, true, b.URL(), settings)
				f(t, &target{via: "proxy", addr: p.addr, broker: b, proxy: p})
			})
		})
	}
}

// through runs a case through the proxy alone, on every broker; for what exists only there.
func through(t *testing.T, f func(t *testing.T, b *rabbit.Broker)) {
	if straight {
		t.Skip("STRAIGHT=1")
	}
	for _, v := range versions(t) {
		t.Run(string(v), func(t *testing.T) { f(t, rabbit.Get(t, v)) })
	}
}

// process is a running amqproxysvc.
type process struct {
	addr string // where clients connect
	http string // where metrics are
	conf string // its settings file
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how; read after done
	log  syncBuffer
}

var listening = regexp.MustCompile(`Proxy listening on (127\.0\.0\.1:\d+)`)

// startProxy runs the binary in front of upstream with settings in TOML (sections but
// [http] and the listener's address) and waits until it listens. When the test ends, it
// is stopped, and must have been free of races and panics.
func startProxy(t testing.TB, race bool, upstream, settings string) *process {
	t.Helper()
	ports, err := rabbit.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{http: "127.0.0.1:" + strconv.Itoa(ports[0]), done: make(chan struct{})}
	conf := filepath.Join(t.TempDir(), "amqproxysvc.toml")
	p.conf = conf
	if err := os.WriteFile(conf, []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	p.cmd = exec.Command(binary(t, race), "--config", conf, "-l", "127.0.0.1", "-p", "0",
		"--http-port", strconv.Itoa(ports[0]), upstream)
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "GORACE=halt_on_error=0 exitcode=66 atexit_sleep_ms=0"}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() { p.finish(t) })
	eventually(t, "the proxy listens", func() error {
		if m := listening.FindStringSubmatch(p.log.String()); m != nil {
			p.addr = m[1]
			return nil
		}
		select {
		case <-p.done:
			t.Fatalf("the proxy ended at its start: %v\n%s", p.err, p.log.String())
		default:
		}
		return errors.New("no such line in its log")
	})
	return p
}

// signal asks the proxy to stop, reload or the like.
func (p *process) signal(sig syscall.Signal) { p.cmd.Process.Signal(sig) }

// ended waits for the proxy's end and returns its exit code, -1 when a signal ended it;
// false when it does not end in time.
func (p *process) ended(within time.Duration) (int, bool) {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode(), true
	case <-time.After(within):
		return 0, false
	}
}

func (p *process) finish(t testing.TB) {
	p.signal(syscall.SIGTERM)
	if _, ok := p.ended(time.Second); !ok {
		p.signal(syscall.SIGTERM) // a second signal: at once
	}
	if _, ok := p.ended(patience); !ok {
		t.Errorf("the proxy did not end within %v of two SIGTERMs; its stacks:", patience)
		p.signal(syscall.SIGQUIT)
		p.ended(5 * time.Second)
		p.cmd.Process.Kill()
		<-p.done
	}
	log := p.log.String()
	for _, sign := range []string{"DATA RACE", "panic:", "fatal error:"} {
		if strings.Contains(log, sign) {
			t.Errorf("the proxy's log holds %q", sign)
		}
	}
	if t.Failed() {
		if len(log) > 20_000 {
			log = "…" + log[len(log)-20_000:]
		}
		t.Logf("the proxy's log:\n%s", log)
	}
}

// metric is a value on /metrics; several lines of one name are added up.
func (p *process) metric(t testing.TB, name string) float64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+p.http+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true // no idle connection is left that would count as a descriptor
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("metrics: %v", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("metrics: %v", err)
	}
	sum, found := 0.0, false
	for line := range strings.Lines(string(body)) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' '):]), 64)
		if err != nil {
			t.Fatalf("metrics: %q: %v", line, err)
		}
		sum, found = sum+v, true
	}
	if !found {
		t.Fatalf("no metric %s in:\n%s", name, body)
	}
	return sum
}

// usage is what a process holds.
type usage struct{ goroutines, descriptors int }

func (p *process) usage(t testing.TB) usage {
	t.Helper()
	g := int(p.metric(t, "go_goroutines"))
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return usage{g, len(fds)}
}

// returnsTo waits until the proxy holds no more than base again.
func (p *process) returnsTo(t testing.TB, base usage) {
	t.Helper()
	eventually(t, "the proxy holds no more than before", func() error {
		if u := p.usage(t); u.goroutines > base.goroutines+2 || u.descriptors > base.descriptors+1 {
			return fmt.Errorf("%+v, before %+v", u, base)
		}
		return nil
	})
}

// memory is the resident set of a process in bytes.
func (p *process) memory(t testing.TB) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kb, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// eventually asks every few milliseconds until the condition holds.
func eventually(t testing.TB, what string, holds func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s: %v", patience, what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// syncBuffer is a buffer that one side writes while another reads.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

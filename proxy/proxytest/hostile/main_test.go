//go:build linux

package hostile

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

var full = os.Getenv("FULL") != ""

// owed has what is promised and not yet kept, by test. With PROMISED=1 these fail too.
var owed = map[string]string{}

// patience bounds every wait; it is no measure of anything.
const patience = 60 * time.Second

// wanted says whether a case runs: in CI some stand for their kind.
func wanted(t *testing.T, name string, usual ...string) bool {
	return full || slices.Contains(usual, name) || strings.Contains(flag.Lookup("test.run").Value.String(), t.Name()+"/")
}

// count is n in CI and on a desk, long with FULL=1.
func count(n, long int) int {
	if full {
		return long
	}
	return n
}

func TestMain(m *testing.M) {
	if os.Getenv("HOSTILE_CROWD") != "" {
		crowdApart()
		return
	}
	if os.Getenv("HOSTILE") == "" {
		fmt.Println("hostile: `make hostile` runs these")
		os.Exit(0)
	}
	dir, err := os.MkdirTemp("", "amqproxysvc-hostile-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	built.dir = dir
	code := rabbit.Main(m)
	os.RemoveAll(dir)
	os.Exit(code)
}

var built struct {
	dir  string
	once [2]sync.Once
	err  [2]error
}

// program is the proxy as users get it, or with the race detector. HOSTILE_PROXY names another
// one, to see what an earlier one did.
func program(t *testing.T, race bool) string {
	t.Helper()
	if path := os.Getenv("HOSTILE_PROXY"); path != "" {
		return path
	}
	i, name, args := 0, filepath.Join(built.dir, "amqproxysvc"), []string{"build"}
	if race {
		i, name, args = 1, name+"-race", []string{"build", "-race"}
	}
	built.once[i].Do(func() {
		cmd := exec.Command("go", append(args, "-o", name, "./cmd/amqproxysvc")...)
		cmd.Dir = "../../.."
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err[i] = fmt.Errorf("%w\n%s", err, out)
		}
	})
	if built.err[i] != nil {
		t.Fatalf("the proxy does not build: %v", built.err[i])
	}
	return name
}

// The users: the attacker's, of whom a canary sings too, and another one.
const attacker, victim = "u1", "u2"

func users() map[string]string { return map[string]string{attacker: "p1", victim: "p2"} }

// rig is a proxy as a process, and the broker behind it.
type rig struct {
	t      *testing.T
	race   bool
	broker string // HOST:PORT
	addr   string // of the proxy
	http   string
	cmd    *exec.Cmd
	done   chan struct{}
	log    logBuffer
	base   usage
	crowd  int // how many goroutines there may have been at once: Go keeps what it made for each, about 600 octets
}

type logBuffer struct {
	mu  sync.Mutex
	buf []byte
}

// Write keeps the first and the last of the log: a flood of lines is no reason to hold all.
func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.buf = append(b.buf, p...); len(b.buf) > 4<<20 {
		b.buf = append(b.buf[:1<<20], b.buf[len(b.buf)-1<<20:]...)
	}
	return len(p), nil
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.buf)
}

var listening = regexp.MustCompile(`Proxy listening on (127\.0\.0\.1:\d+)`)

type setup struct {
	race        bool
	broker      string // "": a stand-in of the test's
	settings    string // TOML, but [http] and the listener's address
	descriptors int    // 0: as many as the test has
}

// start runs a proxy; it is stopped with the test and must have been free of races.
func start(t *testing.T, s setup) *rig {
	t.Helper()
	r := &rig{t: t, race: s.race, broker: s.broker, done: make(chan struct{})}
	if r.broker == "" {
		r.broker = proxytest.StartBroker(t, proxytest.BrokerConfig{Users: users()}).Addr()
	}
	ports, err := rabbit.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	r.http = "127.0.0.1:" + strconv.Itoa(ports[0])
	conf := filepath.Join(t.TempDir(), "amqproxysvc.toml")
	if err := os.WriteFile(conf, []byte(s.settings), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{program(t, s.race), "--config", conf, "-l", "127.0.0.1", "-p", "0", "--http-port", strconv.Itoa(ports[0]), "--set", "http.pprof=true", "amqp://" + r.broker}
	if s.descriptors > 0 {
		args = append([]string{"prlimit", "--nofile=" + strconv.Itoa(s.descriptors)}, args...)
	}
	r.cmd = exec.Command(args[0], args[1:]...)
	r.cmd.Stdout, r.cmd.Stderr = &r.log, &r.log
	r.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "GORACE=halt_on_error=0 exitcode=66 atexit_sleep_ms=0"}
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { r.cmd.Wait(); close(r.done) }()
	t.Cleanup(r.finish)
	r.eventually("the proxy listens", func() error {
		if m := listening.FindStringSubmatch(r.log.String()); m != nil {
			r.addr = m[1]
			return nil
		}
		return errors.New("no such line")
	})
	return r
}

func (r *rig) finish() {
	for range 2 {
		r.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-r.done:
		case <-time.After(time.Second):
		}
	}
	select {
	case <-r.done:
	case <-time.After(patience):
		r.t.Errorf("the proxy does not end; its stacks are in the log")
		r.cmd.Process.Signal(syscall.SIGQUIT)
		time.Sleep(time.Second)
		r.cmd.Process.Kill()
		<-r.done
	}
	log := r.log.String()
	for _, sign := range []string{"DATA RACE", "panic:", "fatal error:"} {
		if strings.Contains(log, sign) {
			r.t.Errorf("the proxy's log holds %q", sign)
		}
	}
	if r.t.Failed() {
		if path := os.Getenv("HOSTILE_LOG"); path != "" {
			os.WriteFile(path+"-"+strings.ReplaceAll(r.t.Name(), "/", "-"), []byte(log), 0o600)
		}
		r.t.Logf("the proxy's log ends:\n%s", log[max(0, len(log)-4000):])
	}
}

// alive fails the test when the proxy has ended.
func (r *rig) alive() {
	r.t.Helper()
	select {
	case <-r.done:
		r.t.Fatalf("the proxy has ended: %v", r.cmd.ProcessState)
	default:
	}
}

func (r *rig) eventually(what string, holds func() error) {
	r.t.Helper()
	if err := within(patience, holds); err != nil {
		r.t.Fatalf("not within %v: %s: %v", patience, what, err)
	}
}

func within(limit time.Duration, holds func() error) error {
	for deadline := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		err := holds()
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// usage is what a process holds. In bytes: resident, what its heap has from the system, and what of
// that is in use after a collection.
type usage struct{ goroutines, descriptors, rss, heap, live int }

// usage asks the process and the kernel.
func (r *rig) usage() (u usage, err error) {
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + r.http + "/metrics")
	if err != nil {
		return u, err
	}
	defer resp.Body.Close()
	body := readAll(resp.Body)
	if _, rest, ok := strings.Cut(body, "\ngo_goroutines "); ok {
		line, _, _ := strings.Cut(rest, "\n")
		n, err := strconv.ParseFloat(line, 64)
		if err != nil {
			return u, err
		}
		u.goroutines = int(n)
	}
	if u.live, u.heap, err = r.heap(client); err != nil {
		return u, err
	}
	pid := r.cmd.Process.Pid
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return u, err
	}
	u.descriptors = len(fds)
	u.rss = rss(pid)
	return u, nil
}

// heap has the process collect its garbage, twice since pools give up what is idle only then, and
// tells what is left and what the heap has from the system.
func (r *rig) heap(client http.Client) (live, system int, err error) {
	of := make(map[string]int)
	for range 2 {
		resp, err := client.Get("http://" + r.http + "/debug/pprof/heap?debug=1&gc=1")
		if err != nil {
			return 0, 0, err
		}
		text := readAll(resp.Body)
		resp.Body.Close()
		for line := range strings.Lines(text) {
			if f := strings.Fields(line); len(f) == 4 && f[0] == "#" && f[2] == "=" {
				of[f[1]], _ = strconv.Atoi(f[3])
			}
		}
	}
	if of["HeapAlloc"] == 0 {
		return 0, 0, errors.New("no figures in the heap profile")
	}
	return of["HeapAlloc"], of["HeapSys"] - of["HeapReleased"], nil
}

// save keeps a profile for `go tool pprof` where HOSTILE_LOG names a place: its name with this ending.
func (r *rig) save(profile, ending string) {
	path := os.Getenv("HOSTILE_LOG")
	if path == "" {
		return
	}
	resp, err := http.Get("http://" + r.http + "/debug/pprof/" + profile)
	if err != nil {
		r.t.Log(err)
		return
	}
	defer resp.Body.Close()
	if err := os.WriteFile(path+"-"+strings.ReplaceAll(r.t.Name(), "/", "-")+ending, []byte(readAll(resp.Body)), 0o600); err != nil {
		r.t.Log(err)
	}
}

func rss(pid int) int {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kb, _ := strconv.Atoi(f[1])
			return kb << 10
		}
	}
	return 0
}

// onCores is for how long the threads of the process ran, and for how long they could have and no core was free.
func (r *rig) onCores() (ran, waited time.Duration) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", r.cmd.Process.Pid))
	for _, f := range files {
		var a, b time.Duration
		text, _ := os.ReadFile(f)
		fmt.Sscan(string(text), &a, &b)
		ran, waited = ran+a, waited+b
	}
	return ran, waited
}

// rests waits until the idle upstreams of a quiet run have gone and keeps what is held.
func (r *rig) rests() {
	r.t.Helper()
	r.eventually("what is held stands still", func() error {
		a, err := r.usage()
		if err != nil {
			return err
		}
		time.Sleep(1500 * time.Millisecond)
		if r.base, err = r.usage(); err != nil || r.base.descriptors < a.descriptors || r.base.goroutines < a.goroutines {
			return fmt.Errorf("%+v, then %+v, %w", a, r.base, err)
		}
		return nil
	})
}

// returns waits until the proxy holds no more than before: descriptors and goroutines but for one or
// two of who asks, what its heap has in use but for tables that have grown, and what is resident half
// as much again and what a heap keeps at hand. With the race detector that is not looked at: its
// shadow of all memory that was ever in use (four times as much) stays resident.
func (r *rig) returns() error {
	const grown, slack = 4 << 20, 48 << 20
	var u usage
	err := within(patience, func() (err error) {
		if u, err = r.usage(); err != nil {
			return err
		}
		if u.descriptors > r.base.descriptors+2 || u.goroutines > r.base.goroutines+3 || u.live > r.base.live+grown+r.crowd<<10 ||
			!r.race && u.rss > r.base.rss*3/2+slack {
			return fmt.Errorf("holds %+v, before %+v", u, r.base)
		}
		return nil
	})
	r.t.Logf("FIGURE %s: held before %+v, after %+v", r.t.Name(), r.base, u)
	r.save("heap?gc=1", ".heap")
	return err
}

// promise ends a test with an error or without: what is owed is only told.
func promise(t *testing.T, err error) {
	t.Helper()
	why, open := owed[t.Name()]
	switch {
	case err != nil && open && os.Getenv("PROMISED") == "":
		t.Skipf("SKIPPED LOUDLY: owed: %s: %v", why, err)
	case err != nil:
		t.Error(err)
	case open:
		t.Logf("kept now, it can leave the list of what is owed")
	}
}

// dial opens a bare connection that ends with the attack at the latest.
func dial(addr string) (net.Conn, error) { return dialer.Dial("tcp", addr) }

var dialer = net.Dialer{Timeout: 20 * time.Second}

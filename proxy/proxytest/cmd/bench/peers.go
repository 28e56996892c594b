// The proxies under test: HAProxy in TCP mode, amqproxysvc, others by address; and
// what the system knows about their processes.

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// way says what is encrypted between clients and broker.
type way int

const (
	plain       way = iota
	toBroker        // TLS from the proxy to the broker
	fromClients     // TLS from the clients to the proxy
	ways
)

// peer is what stands before the drain, on each of the ways that it has. The process is nil where it is not the
// benchmark's.
type peer struct {
	name  string
	addr  [ways]string // HOST:PORT; "" where there is none
	procs [ways]*exec.Cmd
	pprof [ways]string // HOST:PORT of its profiles
	most  int          // clients it can hold; 0: any number
}

// stop ends the peer's processes and waits.
func (p *peer) stop() {
	for i, cmd := range p.procs {
		if cmd == nil || slices.Contains(p.procs[:i], cmd) {
			continue
		}
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			_ = cmd.Process.Kill()
		}
		endProcess(cmd)
	}
	p.procs = [ways]*exec.Cmd{}
}

// freePort is a port nobody listens on; somebody may take it before it is used.
func freePort() (int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port, nil
}

// awaitPort waits until somebody accepts there.
func awaitPort(addr string) error {
	for deadline := time.Now().Add(10 * time.Second); ; {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			return conn.Close()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("nobody listens on %s: %w", addr, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

const haproxyConfig = `global
    maxconn %d
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
frontend plain
    bind 127.0.0.1:%d
    default_backend plain
backend plain
    server drain %s
frontend tls
    bind 127.0.0.1:%d
    default_backend tls
backend tls
    server drain %s ssl verify none
frontend clients
    bind 127.0.0.1:%d ssl crt %s
    default_backend plain
`

func startHAProxy(dir string, d drainStats) (*peer, error) {
	path, err := exec.LookPath("haproxy")
	if err != nil {
		path = "/usr/sbin/haproxy"
		if _, err := os.Stat(path); err != nil {
			return nil, errors.New("haproxy is not installed (Debian: apt-get install haproxy)")
		}
	}
	p := &peer{name: "haproxy", most: openFiles()/2 - 50} // two sockets each
	var ports [ways]int
	for i := range ports {
		if ports[i], err = freePort(); err != nil {
			return nil, err
		}
		p.addr[i] = fmt.Sprintf("127.0.0.1:%d", ports[i])
	}
	config := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(config, fmt.Appendf(nil, haproxyConfig, p.most, ports[plain], d.Addr, ports[toBroker], d.TLSAddr, ports[fromClients], serverPEM(dir)), 0o600); err != nil {
		return nil, err
	}
	var log bytes.Buffer
	cmd := exec.Command(path, "-db", "-f", config)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p.procs = [ways]*exec.Cmd{cmd, cmd, cmd}
	if err := awaitPort(p.addr[plain]); err != nil {
		p.stop()
		return nil, fmt.Errorf("%w\n%s", err, log.String())
	}
	return p, nil
}

// startProxy runs the amqproxysvc binary before an AMQP URL. It returns its address and
// that of its profiles.
func startProxy(binary, url string, more ...string) (cmd *exec.Cmd, addr, pprof string, err error) {
	port, err := freePort()
	if err != nil {
		return nil, "", "", err
	}
	return startProxyAt(port, binary, url, more...)
}

// startProxyAt is startProxy at a port.
func startProxyAt(port int, binary, url string, more ...string) (cmd *exec.Cmd, addr, pprof string, err error) {
	httpPort, err := freePort()
	if err != nil {
		return nil, "", "", err
	}
	args := []string{"-l", "127.0.0.1", "-p", strconv.Itoa(port), "-b", strconv.Itoa(httpPort), "--set", "http.pprof=true", "--set", "log.level=warn"}
	var log bytes.Buffer
	cmd = exec.Command(binary, append(append(args, more...), url)...)
	cmd.Stdout, cmd.Stderr = io.Discard, &log
	if err := cmd.Start(); err != nil {
		return nil, "", "", err
	}
	addr = fmt.Sprintf("127.0.0.1:%d", port)
	if err := awaitPort(addr); err != nil {
		_ = cmd.Process.Kill()
		endProcess(cmd)
		return nil, "", "", fmt.Errorf("%w\n%s", err, log.String())
	}
	return cmd, addr, fmt.Sprintf("127.0.0.1:%d", httpPort), nil
}

func startService(binary, dir, caFile string, d drainStats) (*peer, error) {
	p := &peer{name: "amqproxysvc"}
	settings := filepath.Join(dir, "amqproxysvc.toml")
	err := os.WriteFile(settings, fmt.Appendf(nil, "[[listener]]\ntls = true\ncert_file = %q\nkey_file = %[1]q\n", serverPEM(dir)), 0o600)
	if err != nil {
		return nil, err
	}
	for w, start := range [ways]struct {
		url  string
		args []string
	}{
		plain:       {url: "amqp://" + d.Addr},
		toBroker:    {"amqps://" + d.TLSAddr, trusting(caFile)},
		fromClients: {"amqp://" + d.Addr, []string{"--config", settings}},
	} {
		if p.procs[w], p.addr[w], p.pprof[w], err = startProxy(binary, start.url, start.args...); err != nil {
			p.stop()
			return nil, err
		}
	}
	return p, nil
}

// trusting are the flags of a proxy whose broker has a certificate of that authority for localhost.
func trusting(caFile string) []string {
	return []string{"--set", "tls.ca_file=" + caFile, "--set", "tls.server_name=localhost"}
}

// serverPEM is the certificate that clients are shown, with its key.
func serverPEM(dir string) string { return filepath.Join(dir, "server.pem") }

// writeServerPEM makes it.
func writeServerPEM(dir string) error {
	certs, err := proxytest.NewCerts()
	if err != nil {
		return err
	}
	return os.WriteFile(serverPEM(dir), append(certs.CertPEM, certs.KeyPEM...), 0o600)
}

// buildService makes the binary, unless one was given.
func buildService(given, dir string) (string, error) {
	if given != "" {
		return given, nil // "none" too
	}
	binary := filepath.Join(dir, "amqproxysvc")
	out, err := exec.Command("go", "build", "-o", binary, "github.com/amqproxysvc/amqproxysvc/cmd/amqproxysvc").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return binary, nil
}

// clockTick is the unit of /proc/PID/stat (USER_HZ, 100 on every Linux that Go runs on).
const clockTick = 10 * time.Millisecond

// cpuTime is what a process has used, user and system.
func cpuTime(cmd *exec.Cmd) time.Duration {
	if cmd == nil {
		return 0
	}
	return processTime(cmd.Process.Pid)
}

func processTime(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * clockTick
}

// residentKB is the memory of a process that is in RAM.
func residentKB(cmd *exec.Cmd) int {
	if cmd == nil {
		return 0
	}
	return procField(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid), "VmRSS:", 0)
}

// openFiles is how many descriptors a process may have.
func openFiles() int {
	if n := procField("/proc/self/limits", "Max open files", 1); n > 0 {
		return n
	}
	return 1024
}

// procField is a number in the line of a file that begins with the name.
func procField(file, name string, index int) int {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			if f := strings.Fields(rest); len(f) > index {
				n, _ := strconv.Atoi(f[index])
				return n
			}
		}
	}
	return 0
}

// fetchProfile saves a profile of the time to come.
func fetchProfile(addr, file string, d time.Duration) error {
	return fetchFile(fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", addr, max(1, int(d.Seconds()))), file)
}

// fetchHeap saves what the heap holds, as a profile and as text, at whose end stands what else the runtime has taken.
func fetchHeap(addr, file string) error {
	return errors.Join(fetchFile("http://"+addr+"/debug/pprof/heap?gc=1", file+".pprof"), fetchFile("http://"+addr+"/debug/pprof/heap?debug=1&gc=1", file+".txt"))
}

func fetchFile(url, file string) error {
	b, err := fetch(url)
	if err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o644)
}

func fetch(url string) ([]byte, error) {
	resp, err := http.Get(url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

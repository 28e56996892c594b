//go:build linux

// Package rabbit is a testbed: RabbitMQ 3.10 (Debian 12), 4.0 (Debian 13) and 4.3 (Debian
// sid), the latter two in root directories of their own, on private ports and directories,
// each started when a test first asks for it and ended with the test, however that ends.
// The script "install" beside this file brings what is missing.
package rabbit

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Version names a release of RabbitMQ that the tests run against.
type Version string

const (
	// V310 is Debian 12's RabbitMQ, on Erlang 25.
	V310 Version = "3.10"
	// V40 is Debian 13's RabbitMQ, on Erlang 27.
	V40 Version = "4.0"
	// V43 is Debian sid's RabbitMQ, on Erlang 27, with its metadata in Khepri.
	V43 Version = "4.3"
)

// Versions are all of them, oldest first.
var Versions = []Version{V310, V40, V43}

const (
	// startTimeout bounds a start; ten seconds are usual on an idle machine.
	startTimeout = 120 * time.Second
	// stopTimeout is how long a broker may take to stop before it is killed.
	stopTimeout = 30 * time.Second
	// ctlTimeout bounds one call of rabbitmqctl.
	ctlTimeout = 60 * time.Second
)

// Broker is one running RabbitMQ node. Its default user is guest with password guest
// in the virtual host "/".
type Broker struct {
	Version Version
	Port    int    // AMQP on 127.0.0.1
	TLSPort int    // AMQPS on 127.0.0.1, its certificate names localhost and 127.0.0.1
	CAFile  string // the authority that signed it, PEM
	Node    string // the Erlang node's name
	NoProc  error  // why /proc is not there although WithProc asked for it

	first    *Broker // of the cluster that it joins, or nil
	seesProc bool
	proxied  bool
	settings string // more of rabbitmq.conf
	files    map[string]string
	plugins  string // names, parted by commas

	root   string // a directory to change the root to, or ""
	dir    string // private directory, as this process sees it
	inner  string // the same, as the broker sees it
	user   *syscall.Credential
	dist   int
	epmd   int
	cookie string

	mu      sync.Mutex
	proc    *process
	epmdPro *process
}

// CacheDir is where "install" keeps what is no Debian package.
func CacheDir() string {
	if dir := os.Getenv("AMQPROXYSVC_TEST_CACHE"); dir != "" {
		return dir
	}
	if os.Getuid() == 0 {
		return "/var/cache/amqproxysvc-test"
	}
	base, err := os.UserCacheDir()
	if err != nil {
		base = os.TempDir()
	}
	return filepath.Join(base, "amqproxysvc-test")
}

// rootOf is the root directory that holds a version's installation.
func rootOf(v Version) string {
	if v == V310 {
		return ""
	}
	return filepath.Join(CacheDir(), "rabbitmq-"+string(v))
}

// ErrGone is the error of a version that the package archives had and have no more, so
// that nobody can install it: its tests are skipped, in CI too.
var ErrGone = errors.New("it is in no archive any more")

const bin = "/usr/lib/rabbitmq/bin/"

// Available says why a version cannot be started here; nil when it can.
func Available(v Version) error {
	root := rootOf(v)
	if root != "" && os.Getuid() != 0 {
		return fmt.Errorf("RabbitMQ %s runs in a root directory of its own, which only root can enter", v)
	}
	if _, err := os.Stat(root + bin + "rabbitmq-server"); err != nil {
		if why, gone := os.ReadFile(root + ".gone"); root != "" && gone == nil {
			return fmt.Errorf("RabbitMQ %s: %w: %s", v, ErrGone, strings.TrimSpace(string(why)))
		}
		return fmt.Errorf("RabbitMQ %s is not installed (`make deps` installs it): %w", v, err)
	}
	return nil
}

// Option changes what Start starts.
type Option func(*Broker)

// WithProc gives the broker /proc in its root directory too, without which its memory
// monitor does not run and the management plugin does not start. Where mounting is not
// allowed the broker starts all the same; NoProc then says why.
func WithProc(b *Broker) { b.seesProc = true }

// Beside makes the broker a further node of the cluster of first.
func Beside(first *Broker) Option { return func(b *Broker) { b.first = first } }

// WithSettings adds lines to the broker's rabbitmq.conf. In them DIR/ is the broker's own directory.
func WithSettings(lines string) Option { return func(b *Broker) { b.settings = lines } }

// WithFile puts a file into the broker's own directory.
func WithFile(name, text string) Option {
	return func(b *Broker) {
		if b.files == nil {
			b.files = map[string]string{}
		}
		b.files[name] = text
	}
}

// BehindBalancer has the broker ask for the PROXY protocol on both ports.
func BehindBalancer(b *Broker) { b.proxied = true }

// WithPlugins has the broker run with plugins.
func WithPlugins(names ...string) Option {
	return func(b *Broker) { b.plugins = strings.Join(names, ",") }
}

// Start starts a broker and waits until it answers AMQP on both ports.
func Start(v Version, options ...Option) (_ *Broker, err error) {
	if err := Available(v); err != nil {
		return nil, err
	}
	b := &Broker{Version: v, root: rootOf(v)}
	for _, option := range options {
		option(b)
	}
	b.cookie = fmt.Sprintf("test%d%d", os.Getpid(), time.Now().UnixNano())
	defer func() {
		if err != nil {
			b.Close()
		}
	}()
	if err := b.makeDir(); err != nil {
		return nil, err
	}
	ports, err := FreePorts(4)
	if err != nil {
		return nil, err
	}
	b.Port, b.TLSPort, b.dist, b.epmd = ports[0], ports[1], ports[2], ports[3]
	b.Node = fmt.Sprintf("test%d@localhost", b.Port)
	if first := b.first; first != nil {
		b.cookie, b.epmd = first.cookie, first.epmd
	}
	if err := b.configure(); err != nil {
		return nil, err
	}
	if b.first != nil {
		if err := b.run(); err != nil {
			return nil, err
		}
		for _, step := range [][]string{{"stop_app"}, {"join_cluster", b.first.Node}, {"start_app"}} {
			if out, err := b.Ctl(step...); err != nil {
				return nil, fmt.Errorf("%s: %w: %s", step[0], err, out)
			}
		}
		return b, nil
	}
	b.epmdPro, err = b.spawn("/usr/bin/epmd", "-address", "127.0.0.1", "-port", strconv.Itoa(b.epmd))
	if err != nil {
		return nil, err
	}
	if err := b.run(); err != nil {
		return nil, err
	}
	return b, nil
}

// makeDir makes the private directory, owned by the user the broker runs as, and
// removes those of test runs that were killed.
func (b *Broker) makeDir() error {
	base := os.TempDir()
	if b.root != "" {
		base = b.root + "/tmp"
	}
	old, _ := filepath.Glob(base + "/amqproxysvc-rabbit-*")
	for _, dir := range old {
		pid, err := strconv.Atoi(strings.Split(filepath.Base(dir), "-")[2])
		if err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			os.RemoveAll(dir)
		}
	}
	dir, err := os.MkdirTemp(base, fmt.Sprintf("amqproxysvc-rabbit-%d-", os.Getpid()))
	if err != nil {
		return err
	}
	b.dir, b.inner = dir, strings.TrimPrefix(dir, b.root)
	if os.Getuid() != 0 {
		return nil
	}
	uid, gid, err := rabbitUser(b.root)
	if err != nil {
		return err
	}
	b.user = &syscall.Credential{Uid: uid, Gid: gid}
	return nil
}

// rabbitUser looks up the package's user in the broker's own root.
func rabbitUser(root string) (uid, gid uint32, err error) {
	var u, g string
	if root == "" {
		found, err := user.Lookup("rabbitmq")
		if err != nil {
			return 0, 0, err
		}
		u, g = found.Uid, found.Gid
	} else {
		passwd, err := os.ReadFile(root + "/etc/passwd")
		if err != nil {
			return 0, 0, err
		}
		for line := range strings.Lines(string(passwd)) {
			if f := strings.Split(line, ":"); f[0] == "rabbitmq" && len(f) > 3 {
				u, g = f[2], f[3]
			}
		}
	}
	un, err := strconv.ParseUint(u, 10, 32)
	if err != nil {
		return 0, 0, fmt.Errorf("user rabbitmq in %s/etc/passwd: %w", root, err)
	}
	gn, err := strconv.ParseUint(g, 10, 32)
	return uint32(un), uint32(gn), err
}

// configure writes what the broker reads at its start.
func (b *Broker) configure() error {
	if err := writeCertificates(b.dir); err != nil {
		return err
	}
	b.CAFile = b.dir + "/ca.pem"
	conf := fmt.Sprintf(`listeners.tcp.1 = 127.0.0.1:%d
listeners.ssl.1 = 127.0.0.1:%d
ssl_options.cacertfile = %[3]s/ca.pem
ssl_options.certfile = %[3]s/server.pem
ssl_options.keyfile = %[3]s/server.key
ssl_options.verify = verify_none
ssl_options.fail_if_no_peer_cert = false
tcp_listen_options.backlog = 4096
tcp_listen_options.nodelay = true
tcp_listen_options.linger.on = true
tcp_listen_options.linger.timeout = 0
tcp_listen_options.exit_on_close = false
max_message_size = 134217728
vm_memory_high_watermark.absolute = 4GB
disk_free_limit.absolute = 10MB
log.file = rabbit.log
log.file.level = info
log.connection.level = warning
`, b.Port, b.TLSPort, b.inner) + strings.ReplaceAll(b.settings, "DIR/", b.inner+"/")
	files := map[string]string{
		"rabbitmq.conf":   conf,
		"enabled_plugins": "[" + b.plugins + "].\n",
		"env.conf":        "",
		".erlang.cookie":  b.cookie,
		// Many connections are opened and closed; a name server for hosts is not needed.
		"inetrc": "{lookup, [file]}.\n{host, {127,0,0,1}, [\"localhost\"]}.\n",
	}
	if b.proxied {
		files["rabbitmq.conf"] += "proxy_protocol = true\n"
	}
	maps.Copy(files, b.files)
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o400); err != nil {
			return err
		}
	}
	if b.user == nil {
		return nil
	}
	return filepath.WalkDir(b.dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, int(b.user.Uid), int(b.user.Gid))
	})
}

// environ is what the broker's programs are told; nothing else of ours reaches them.
func (b *Broker) environ() []string {
	return []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
		"LANG=C.UTF-8",
		"HOME=" + b.inner,
		"RABBITMQ_NODENAME=" + b.Node,
		"RABBITMQ_DIST_PORT=" + strconv.Itoa(b.dist),
		"ERL_EPMD_PORT=" + strconv.Itoa(b.epmd),
		"ERL_EPMD_ADDRESS=127.0.0.1",
		"RABBITMQ_BASE=" + b.inner,
		"RABBITMQ_MNESIA_BASE=" + b.inner + "/mnesia",
		"RABBITMQ_LOG_BASE=" + b.inner + "/log",
		"RABBITMQ_CONFIG_FILE=" + b.inner + "/rabbitmq.conf",
		"RABBITMQ_ADVANCED_CONFIG_FILE=" + b.inner + "/advanced.config",
		"RABBITMQ_CONF_ENV_FILE=" + b.inner + "/env.conf",
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + b.inner + "/enabled_plugins",
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}" +
			" -kernel inetrc '" + b.inner + "/inetrc' +S 2:2",
		// The start script then becomes the Erlang machine instead of waiting for it:
		// the process that is killed is the broker.
		"RUNNING_UNDER_SYSTEMD=true",
	}
}

// command is a program of the broker's, in its root and as its user.
func (b *Broker) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = b.environ()
	cmd.Dir = b.inner
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Chroot:     b.root,
		Credential: b.user,
		Setpgid:    true,
		Pdeathsig:  syscall.SIGKILL,
	}
	if b.root == "" {
		return cmd
	}
	cmd.Path, cmd.Err = name, nil // not looked up outside its root
	return cmd
}

// run starts the server and waits until it serves.
func (b *Broker) run() error {
	proc, err := b.spawn(bin + "rabbitmq-server")
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.proc = proc
	b.mu.Unlock()
	deadline := time.Now().Add(startTimeout)
	for {
		err := b.ask()
		if err == nil {
			return nil
		}
		select {
		case <-proc.done:
			return fmt.Errorf("RabbitMQ %s ended while it started: %w\n%s", b.Version, proc.err, b.Log(60))
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("RabbitMQ %s did not answer within %v: %w\n%s", b.Version, startTimeout, err, b.Log(60))
		}
	}
}

// ask asks for connection.start on both ports.
func (b *Broker) ask() error {
	for _, addr := range []string{b.Addr(), b.TLSAddr()} {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if b.proxied {
			if _, err := io.WriteString(c, "PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n"); err != nil {
				return err
			}
		}
		if addr == b.TLSAddr() {
			c = tls.Client(c, &tls.Config{InsecureSkipVerify: true}) // only whether it is up
		}
		if _, err := io.WriteString(c, "AMQP\x00\x00\x09\x01"); err != nil {
			return err
		}
		head := make([]byte, 11)
		if _, err := io.ReadFull(c, head); err != nil {
			return err
		}
		if !bytes.Equal(head[7:], []byte{0, 10, 0, 10}) {
			return fmt.Errorf("answered % x, not connection.start", head)
		}
	}
	return nil
}

// Addr is HOST:PORT of the plain listener.
func (b *Broker) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(b.Port)) }

// TLSAddr is HOST:PORT of the TLS listener.
func (b *Broker) TLSAddr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(b.TLSPort)) }

// URL is the plain listener's, without user and virtual host.
func (b *Broker) URL() string { return "amqp://" + b.Addr() }

// TLSURL is the TLS listener's, without user and virtual host.
func (b *Broker) TLSURL() string {
	return "amqps://" + net.JoinHostPort("localhost", strconv.Itoa(b.TLSPort))
}

// Ctl runs rabbitmqctl against the broker and returns what it printed; about a second.
func (b *Broker) Ctl(args ...string) (string, error) {
	return b.call("", bin+"rabbitmqctl", append([]string{"-q", "-n", b.Node}, args...)...)
}

// Eval evaluates an Erlang expression, ended by a full stop, in the broker and returns
// its value as text; some milliseconds.
func (b *Broker) Eval(expr string) (string, error) {
	out, err := b.call(expr+"\n", "/usr/bin/erl_call", "-sname", b.Node, "-c", b.cookie, "-timeout", "30", "-e")
	if err != nil {
		return out, err
	}
	value, ok := strings.CutPrefix(strings.TrimSpace(out), "{ok, ")
	if !ok {
		return "", fmt.Errorf("eval %s: %s", expr, out)
	}
	return strings.TrimSuffix(value, "}"), nil
}

func (b *Broker) call(stdin, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), ctlTimeout)
	defer cancel()
	cmd := b.command(ctx, name, args...)
	cmd.SysProcAttr.Pdeathsig = 0 // the thread that starts it may end before it does
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return string(out), nil
}

// Stop ends the broker as an operator does; its queues and messages are kept for Restart.
func (b *Broker) Stop() error { return b.end(syscall.SIGTERM) }

// Kill ends the broker as a power cut does.
func (b *Broker) Kill() error { return b.end(syscall.SIGKILL) }

// Pause stops the broker's process where it is: sockets stay open and nothing answers.
func (b *Broker) Pause() error { return b.signal(syscall.SIGSTOP) }

// Resume lets a paused broker go on.
func (b *Broker) Resume() error { return b.signal(syscall.SIGCONT) }

// Restart starts the broker again after Stop or Kill, on the same ports, and waits
// until it serves.
func (b *Broker) Restart() error { return b.run() }

// Running reports whether the broker's process lives.
func (b *Broker) Running() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.proc != nil && !b.proc.ended()
}

func (b *Broker) signal(sig syscall.Signal) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.proc == nil || b.proc.ended() {
		return fmt.Errorf("RabbitMQ %s does not run", b.Version)
	}
	return syscall.Kill(b.proc.pid, sig)
}

func (b *Broker) end(sig syscall.Signal) error {
	if err := b.signal(sig); err != nil {
		return err
	}
	b.mu.Lock()
	proc := b.proc
	b.proc = nil
	b.mu.Unlock()
	select {
	case <-proc.done:
	case <-time.After(stopTimeout):
		proc.kill()
		return fmt.Errorf("RabbitMQ %s did not end within %v of signal %v and was killed", b.Version, stopTimeout, sig)
	}
	proc.kill() // helpers of the Erlang machine that are left in its group
	return nil
}

// Close ends everything and removes the private directory.
func (b *Broker) Close() {
	b.mu.Lock()
	procs := []*process{b.proc, b.epmdPro}
	b.proc, b.epmdPro = nil, nil
	b.mu.Unlock()
	for _, p := range procs {
		if p != nil {
			p.kill()
		}
	}
	if b.dir != "" {
		os.RemoveAll(b.dir)
	}
}

// Log is the last lines of the broker's log.
func (b *Broker) Log(lines int) string {
	var last []string
	files, _ := filepath.Glob(b.dir + "/log/*.log")
	for _, name := range append([]string{b.dir + "/output"}, files...) {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			last = append(last, s.Text())
			if len(last) > lines {
				last = last[1:]
			}
		}
	}
	return strings.Join(last, "\n")
}

// CtlScript writes a program that is rabbitmqctl for this broker, for test suites of
// others that want to call one, and returns its path.
func (b *Broker) CtlScript(dir string) (string, error) {
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
	line := []string{"exec"}
	switch {
	case b.root != "":
		line = append(line, "chroot", fmt.Sprintf("--userspec=%d:%d", b.user.Uid, b.user.Gid), quote(b.root))
	case b.user != nil:
		line = append(line, "setpriv", fmt.Sprintf("--reuid=%d", b.user.Uid), fmt.Sprintf("--regid=%d", b.user.Gid), "--clear-groups")
	}
	line = append(line, "env", "-i")
	for _, v := range b.environ() {
		line = append(line, quote(v))
	}
	line = append(line, bin+"rabbitmqctl", "-n", b.Node, `"$@"`)
	path := filepath.Join(dir, "rabbitmqctl-"+string(b.Version))
	return path, os.WriteFile(path, []byte("#!/bin/sh\n"+strings.Join(line, " ")+"\n"), 0o700)
}

// The whole program on a real pseudo-terminal and with real signals.

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// output collects what a process writes, and wakes who waits for something in it.
type output struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	more chan struct{}
}

func newOutput() *output { return &output{more: make(chan struct{}, 1)} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buf.Write(p)
	select {
	case o.more <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// wait gives the output once the pattern is in it.
func (o *output) wait(t *testing.T, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	limit := time.After(patience)
	for {
		if m := re.FindStringSubmatch(o.String()); m != nil {
			return m
		}
		select {
		case <-o.more:
		case <-limit:
			t.Fatalf("no %q within %v in %q", pattern, patience, o.String())
		}
	}
}

// startProgram starts the test binary as the program; it is killed at the test's end.
func startProgram(t *testing.T, stdout, stderr *output, tty *os.File, env []string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*patience) // for who waits for its end
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(append(os.Environ(), asProgram+"=fake"), env...) // of two equal names the last counts
	cmd.Stderr = stderr
	if tty != nil {
		cmd.Stdout = tty
	} else {
		cmd.Stdout = stdout
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd
}

// ended checks the exit code.
func ended(t *testing.T, cmd *exec.Cmd, want int, outputs ...*output) {
	t.Helper()
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != want {
		t.Errorf("exit code %d (%v), want %d", got, cmd.ProcessState, want)
		for _, o := range outputs {
			t.Log(o)
		}
	}
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// openPTY opens a pseudo-terminal; what is written to tty comes out of screen, byte for byte.
func openPTY(t *testing.T) (tty *os.File, screen *output) {
	t.Helper()
	_, tty, screen = openTerminal(t)
	return tty, screen
}

// openTerminal is openPTY with the master, whose end is the terminal's.
func openTerminal(t *testing.T) (master, tty *os.File, screen *output) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		skipLoudly(t, "no pseudo-terminal: "+err.Error())
	}
	t.Cleanup(func() { _ = master.Close() })
	conn, err := master.SyscallConn() // Fd would make it blocking, and closing would wait for who reads
	if err != nil {
		t.Fatal(err)
	}
	var n int
	var unlocked error
	if err := conn.Control(func(fd uintptr) {
		unlocked = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0)
		n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
	}); errors.Join(err, unlocked) != nil {
		t.Fatal(err, unlocked)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		skipLoudly(t, "no pseudo-terminal: "+err.Error())
	}
	t.Cleanup(func() { _ = tty.Close() })
	screen = newOutput()
	go func() { // ends when the master is closed
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			if err != nil {
				return
			}
			_, _ = screen.Write(buf[:n])
		}
	}()
	return master, tty, screen
}

// Whoever closes the window ends what runs in it; a SIGHUP before that reloads.
func TestTerminalCloses(t *testing.T) {
	own := make(chan os.Signal, 1) // tests may run under nohup: what is not ignored here is not there either
	signal.Notify(own, unix.SIGHUP)
	defer signal.Stop(own)
	master, tty, screen := openTerminal(t)
	stderr := newOutput()
	cmd := startProgram(t, nil, stderr, tty, nil, "-l", "127.0.0.1", "-p", "0", "-b", "0", "--set", "log.level=info", "amqp://127.0.0.1:1")
	screen.wait(t, `Proxy listening on`)
	if err := cmd.Process.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	screen.wait(t, `configuration reloaded`)
	if err := master.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(unix.SIGHUP); err != nil { // which the kernel sends to whom the terminal controls
		t.Fatal(err)
	}
	ended(t, cmd, 0, stderr)
}

func skipLoudly(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip("SKIPPED LOUDLY: " + why)
}

// On a terminal: AMQProxy's lines, and its line with the counts, kept up to date.
func TestTerminal(t *testing.T) {
	tty, screen := openPTY(t)
	stderr := newOutput()
	cmd := startProgram(t, nil, stderr, tty, nil, "-l", "127.0.0.1", "-p", "0", "-b", "0", "--set", "tls.verify=false", "amqps://broker.example.com")
	m := screen.wait(t, `Proxy listening on (127\.0\.0\.1:\d+)\r\n\r0 clients\t\t 1 upstreams`)
	if got := screen.String(); !strings.Contains(got, "\r\nProxy upstream: broker.example.com:5671 TLS\r\nProxy listening on ") {
		t.Errorf("the screen shows %q", got)
	}
	dial(t, m[1])
	screen.wait(t, `\r1 clients\t\t 1 upstreams`)
	second := dial(t, m[1])
	screen.wait(t, `\r2 clients\t\t 1 upstreams`)
	if got := strings.Count(screen.String(), "\r\n"); got != 3 { // a warning and the two lines
		t.Errorf("the line with the counts was not kept in place: %q", screen.String())
	}
	_ = second.Close()
	screen.wait(t, `\r1 clients\t\t 1 upstreams *$`)
	if err := cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	ended(t, cmd, 0, screen, stderr)
	if _, err := tty.WriteString("the prompt"); err != nil {
		t.Fatal(err)
	}
	screen.wait(t, `the prompt$`) // all that came before it is there too
	if !strings.Contains(screen.String(), "INFO service stopped") || !strings.HasSuffix(screen.String(), "\r\nthe prompt") {
		t.Errorf("the cursor is left amid a line: %q", screen.String())
	}
	if stderr.String() != "" {
		t.Errorf("standard error: %q", stderr)
	}
}

// A reload that asks for debug lines shows the informative ones on a terminal too, as -d does.
func TestDebugOnATerminalAfterAReload(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.toml")
	settings := "[[listener]]\nport = 0\n[http]\nport = 0\n"
	writeFile(t, file, settings)
	tty, screen := openPTY(t)
	stderr := newOutput()
	cmd := startProgram(t, nil, stderr, tty, []string{asProgram + "=real"}, "-c", file, "amqp://127.0.0.1:1")
	m := screen.wait(t, `Proxy listening on (127\.0\.0\.1:\d+)\r\n\r0 clients\t\t 0 upstreams`)
	writeFile(t, file, settings+"[log]\nlevel = \"debug\"\n")
	if err := cmd.Process.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	screen.wait(t, `INFO configuration reloaded`)
	c := dial(t, m[1])
	if _, err := c.Write([]byte("GET / HTTP/1.1\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	screen.wait(t, `INFO client refused: it sent an HTTP request`)
	if err := cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	ended(t, cmd, 0, screen, stderr)
}

func TestBusyPortOnATerminal(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	tty, screen := openPTY(t)
	stderr := newOutput()
	cmd := startProgram(t, nil, stderr, tty, nil, "-p", port, "-b", "0")
	ended(t, cmd, 1, screen, stderr)
	if got := stderr.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "another program uses this address") {
		t.Errorf("standard error: %q", got)
	}
	if screen.String() != "" {
		t.Errorf("the screen shows %q, want nothing: it was said on standard error", screen)
	}
}

// Into a pipe: structured lines with the same words; reload, reopen and stop by signals.
func TestSignals(t *testing.T) {
	dir := t.TempDir()
	file, logFile := filepath.Join(dir, "a.toml"), filepath.Join(dir, "a.log")
	httpPort := freePort(t)
	settings := "[[listener]]\nport = 0\n[http]\nport = " + httpPort + "\n[log]\nfile = 'a.log'\n[upstream]\nurl = \"amqp://first\"\n"
	writeFile(t, file, settings)
	stdout, stderr := newOutput(), newOutput()
	cmd := startProgram(t, stdout, stderr, nil, nil, "--config", file)
	signal := func(s os.Signal) {
		t.Helper()
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	m := stdout.wait(t, `level=INFO msg="Proxy upstream: first:5672"\n.* level=INFO msg="Proxy listening on (127\.0\.0\.1:\d+)"\n`)
	stdout.wait(t, `msg="HTTP server listening on 127\.0\.0\.1:`+httpPort+`"`)
	if strings.Contains(stdout.String(), "\r") {
		t.Errorf("a pipe was taken for a terminal: %q", stdout)
	}
	res, err := http.Get("http://127.0.0.1:" + httpPort + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	dial(t, m[1])

	writeFile(t, file, strings.Replace(settings, "first", "second", 1))
	signal(unix.SIGHUP)
	stdout.wait(t, `msg="configuration reloaded"`)
	writeFile(t, file, "nonsense = 1\n")
	signal(unix.SIGHUP)
	stdout.wait(t, `level=ERROR msg="reload failed.*a\.toml:1: unknown setting`)

	if err := os.Rename(logFile, logFile+".1"); err != nil {
		t.Fatal(err)
	}
	signal(unix.SIGUSR1)
	stdout.wait(t, `msg="log file reopened"`)
	signal(unix.SIGTERM)
	ended(t, cmd, 0, stdout, stderr)
	old, err := os.ReadFile(logFile + ".1")
	if err != nil {
		t.Fatal(err)
	}
	now, err := os.ReadFile(logFile)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(old), "configuration reloaded") || strings.Contains(string(old), "service stopped") || !strings.Contains(string(now), "service stopped") {
		t.Errorf("old log file %q, new one %q", old, now)
	}
	if stderr.String() != "" {
		t.Errorf("standard error: %q", stderr)
	}
}

// The journal gets priorities, and an error at the start too.
func TestJournal(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = r.Close(), w.Close() }()
	info, err := w.Stat()
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "run", "--service", "-c", filepath.Join(t.TempDir(), "none.toml"))
	cmd.Env = append(os.Environ(), asProgram+"=1", fmt.Sprintf("JOURNAL_STREAM=%d:%d", stat.Dev, stat.Ino))
	cmd.Stdout, cmd.Stderr = w, w
	_ = cmd.Run()
	if got := cmd.ProcessState.ExitCode(); got != 78 {
		t.Errorf("exit code %d, want 78", got)
	}
	_ = w.Close()
	var said bytes.Buffer
	if _, err := said.ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	if got := said.String(); !strings.HasPrefix(got, "<3>amqproxysvc: ") || !strings.HasSuffix(got, "there is no such file\n") {
		t.Errorf("the journal was told %q", got)
	}
}

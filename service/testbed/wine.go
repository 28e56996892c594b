//go:build linux

// The service's life under the service control manager of Wine. What Wine does not have
// (access lists, virtual accounts, recovery, delayed start, the event viewer) is tested as
// data in service/scm_test.go.

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/hash"
	"github.com/amqproxysvc/amqproxysvc/service"
)

// forwarder lends Wine 8 the one function of bcryptprimitives.dll that Go's runtime needs.
// It is for the test's Windows alone.
const forwarder = `#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID, ULONG);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE p, SIZE_T n) { return SystemFunction036(p, (ULONG)n); }
`

const winProg = `C:\Program Files\amqproxysvc\amqproxysvc.exe`

type winLife struct {
	*bed
	prefix                   string
	port, http, port2, http2 int
}

func wineBed(b *bed) {
	w := &winLife{bed: b, prefix: filepath.Join(b.work, "prefix"), port: b.ports[0], http: b.ports[1], port2: b.ports[2], http2: b.ports[3]}
	w.must("a fresh Windows (Wine)", w.prepare)
	b.lastWords = func() string {
		text, _ := os.ReadFile(w.path(winLog(unit)))
		return last(string(text), 10)
	}
	w.step("unit tests of the SCM handler and settings pass on it", func(s *step) {
		build := exec.CommandContext(w.ctx, "go", "test", "-c", "-o", w.path(`C:\service.test.exe`), "./service")
		build.Env = append(os.Environ(), "GOOS=windows", "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			s.fail("%w: %s", err, out)
		}
		out, code := w.run(s, `C:\service.test.exe`, "-test.timeout=150s", "-test.v", "-test.run=Handler|SCM|CommandLine|SID|AccessLists|Unit|Drain|Watchdog")
		if code != 0 {
			s.fail("exit code %d: %s", code, last(out, 40))
		}
		s.note("%d tests", strings.Count(out, "--- PASS"))
	})
	w.installing()
	w.running()
	w.looking()
	w.reloading()
	w.upgrading()
	w.stopping()
	w.failing()
	w.several()
	w.removing()
}

func (w *winLife) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "TMPDIR="+w.work, "WINEPREFIX="+w.prefix, "WINEDEBUG=-all", "WINEARCH=win64", "DISPLAY=", "LC_ALL=C.UTF-8")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// run runs a Windows program and gives its words and exit code.
func (w *winLife) run(s *step, args ...string) (string, int) { return w.typed(s, "", args...) }

// typed is run with words on its standard input.
func (w *winLife) typed(s *step, words string, args ...string) (string, int) {
	ctx, cancel := context.WithTimeout(w.ctx, 3*time.Minute)
	defer cancel()
	cmd := w.command(ctx, append([]string{"wine"}, args...)...)
	// Not a pipe: what Wine leaves running in the background would hold it open.
	out, err := os.CreateTemp(w.work, "out-")
	s.check(err)
	defer os.Remove(out.Name())
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if words != "" {
		cmd.Stdin = strings.NewReader(words)
	}
	err = cmd.Run()
	text, rerr := os.ReadFile(out.Name())
	s.check(rerr)
	words = strings.ReplaceAll(string(text), "\r", "")
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() >= 0 {
		return words, exit.ExitCode()
	}
	if err != nil {
		s.fail("wine %s: %w: %s", strings.Join(args, " "), err, words)
	}
	return words, 0
}

// ok runs the program under test.
func (w *winLife) ok(s *step, args ...string) string { return w.exits(s, 0, args...) }

func (w *winLife) exits(s *step, code int, args ...string) string {
	out, got := w.run(s, append([]string{winProg}, args...)...)
	if got != code {
		s.fail("amqproxysvc %s: exit code %d, want %d: %s", strings.Join(args, " "), got, code, out)
	}
	return out
}

func (w *winLife) sc(s *step) string {
	out, _ := w.run(s, "sc.exe", "query", unit)
	return out
}

func (w *winLife) path(windows string) string {
	return filepath.Join(w.prefix, "drive_c", strings.ReplaceAll(strings.TrimPrefix(windows, `C:\`), `\`, "/"))
}

func (w *winLife) prepare(s *step) {
	source, dll := filepath.Join(w.work, "forwarder.c"), filepath.Join(w.work, "bcryptprimitives.dll")
	s.check(os.WriteFile(source, []byte(forwarder), 0o644))
	if out, err := exec.CommandContext(w.ctx, "x86_64-w64-mingw32-gcc", "-shared", "-O2", "-s", "-o", dll, source, "-ladvapi32").CombinedOutput(); err != nil {
		s.fail("the forwarder: %w: %s", err, out)
	}
	// The server first, and to stay (-p): else it ends all services with the last program.
	s.check(os.MkdirAll(w.prefix, 0o755))
	s.check(w.command(w.ctx, "wineserver", "-p").Run())
	w.cleanup(func() { _ = w.command(context.Background(), "wineserver", "-k").Run() }) // this prefix's alone
	// Any program makes Wine fill the prefix first. (wineboot would do it a second time, and
	// leave two service control managers.)
	first := w.command(w.ctx, "wine", "cmd", "/c", "exit")
	// What services report to the SCM and the event log goes to a file: Wine keeps neither checkpoints nor events.
	trace, err := os.Create(filepath.Join(w.work, "scm.log"))
	s.check(err)
	defer trace.Close()
	first.Stderr = trace
	first.Env = append(first.Env, "WINEDEBUG=-all,+service,+eventlog,fixme+advapi")
	s.check(first.Run())
	for from, to := range map[string]string{
		dll:                                     `C:\windows\system32\bcryptprimitives.dll`,
		filepath.Join(w.bin, "amqproxysvc.exe"): winProg,
	} {
		b, err := os.ReadFile(from)
		s.check(err)
		s.check(os.MkdirAll(filepath.Dir(w.path(to)), 0o755))
		s.check(os.WriteFile(w.path(to), b, 0o755))
	}
	probe := exec.CommandContext(w.ctx, "go", "build", "-o", w.path(`C:\probe.exe`), "./service/testbed/wineprobe")
	probe.Env = append(os.Environ(), "GOOS=windows", "CGO_ENABLED=0")
	if out, err := probe.CombinedOutput(); err != nil {
		s.fail("the probe: %w: %s", err, out)
	}
	version, _ := w.run(s, "cmd", "/c", "ver")
	wine, err := exec.CommandContext(w.ctx, "wine", "--version").Output()
	s.check(err)
	s.note("%s, %s", strings.TrimSpace(string(wine)), strings.TrimSpace(version))
}

// config and log file of an instance, as Windows and as this side name them.
func winConfig(name string) string { return `C:\ProgramData\amqproxysvc\` + name + ".toml" }
func winLog(name string) string {
	return `C:\ProgramData\amqproxysvc\logs\` + name + `\` + name + ".log"
}

func (w *winLife) log(s *step) string {
	b, err := os.ReadFile(w.path(winLog(unit)))
	s.check(err)
	return string(b)
}

// reports are the checkpoints of all StopPending that services reported to the SCM so far.
func (w *winLife) reports(s *step) (points []int) {
	b, err := os.ReadFile(filepath.Join(w.work, "scm.log"))
	s.check(err)
	for line := range strings.Lines(string(b)) {
		_, args, ok := strings.Cut(line, ":SetServiceStatus ")
		f := strings.Fields(args) // handle, type, state, accepted, exit code, specific code, checkpoint, wait hint
		if !ok || len(f) < 8 || f[2] != "0x3" {
			continue
		}
		point, err := strconv.ParseInt(f[6], 0, 32)
		s.check(err)
		points = append(points, int(point))
	}
	return points
}

// told fails unless the event log was told an event of that number, and those words the last time.
func (w *winLife) told(s *step, id int, words string) {
	b, err := os.ReadFile(filepath.Join(w.work, "scm.log"))
	s.check(err)
	var text strings.Builder
	found := false
	for line := range strings.Lines(string(b)) {
		_, args, event := strings.Cut(line, ":ReportEventW ")
		switch {
		case event && strings.Contains(args, "stub"): // handle, type, category, number: a new one
			if found = strings.Contains(args, fmt.Sprintf(",0x%08x,", id)); found {
				text.Reset()
			}
		case event && found:
			text.WriteString(args)
		}
	}
	s.contains(text.String(), words)
}

func (w *winLife) change(s *step, f func(text string) string) (restore func()) {
	path := w.path(winConfig(unit))
	old, err := os.ReadFile(path)
	s.check(err)
	s.check(os.WriteFile(path, []byte(f(string(old))), 0o640))
	return func() { s.check(os.WriteFile(path, old, 0o640)) }
}

func (w *winLife) report(s *step, name string) service.Report {
	out := w.ok(s, "status", "--json", "--name", name)
	var r service.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		s.fail("status --json: %w: %s", err, out)
	}
	return r
}

func (w *winLife) installing() {
	w.step("status of what is not installed: 4", func(s *step) {
		s.contains(w.exits(s, 4, "status"), "not installed")
		s.contains(w.exits(s, 5, "start"), "not installed")
		s.contains(w.exits(s, 5, "uninstall"), "not installed")
	})
	w.step("an install that fails leaves nothing (the port is taken)", func(s *step) {
		taken, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(w.port)))
		s.check(err)
		defer taken.Close()
		out := w.exits(s, 1, "install", "-p", strconv.Itoa(w.port), "-b", strconv.Itoa(w.http), "--start")
		s.contains(out, "another program uses this address")
		w.exits(s, 4, "status")
		if _, err := os.Stat(w.path(winConfig(unit))); err == nil {
			s.fail("the configuration is left")
		}
	})
	w.must("install by command", func(s *step) {
		out := w.ok(s, "install", "--upstream", "amqp://"+w.broker.Addr(), "-p", strconv.Itoa(w.port), "-b", strconv.Itoa(w.http),
			"--term-client-close-timeout", "4s")
		s.contains(out, "(written)", `account NT SERVICE\amqproxysvc`)
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "warning") {
				s.note("%s", strings.TrimSpace(line))
			}
		}
	})
	w.step("the SCM has it as it was asked to: quoted path, account, automatic start", func(s *step) {
		out, _ := w.run(s, "reg", "query", `HKLM\SYSTEM\CurrentControlSet\Services\`+unit)
		s.contains(out, `"`+winProg+`" run --service --name amqproxysvc --config `+winConfig(unit), `NT SERVICE\amqproxysvc`, "Start    REG_DWORD    0x2", "AMQP 0-9-1")
		s.contains(w.sc(s), "STOPPED")
		s.contains(w.exits(s, 3, "status"), "stopped", "at boot    yes")
	})
	w.step("the event log source is registered, and the program has the texts of its events", func(s *step) {
		out, _ := w.run(s, "reg", "query", `HKLM\SYSTEM\CurrentControlSet\Services\EventLog\Application\`+unit)
		s.contains(out, "EventMessageFile    REG_SZ    "+winProg+"\n", "TypesSupported")
		for _, id := range []int{service.EventStarted, service.EventUpgradeFailed, service.EventOther} { // the first, one of the midst, the last
			const text = "what happened, in its own words"
			if shown, _ := w.run(s, `C:\probe.exe`, unit, strconv.Itoa(id), text); shown != text+"\n" {
				s.fail("event %d is shown as %q", id, shown)
			}
		}
		if shown, code := w.run(s, `C:\probe.exe`, unit, "999", "x"); code == 0 {
			s.fail("an event that is none is shown as %q", shown)
		}
	})
	w.step("install again: refused without --force", func(s *step) {
		s.contains(w.exits(s, 1, "install"), "installed already", "--force")
		s.contains(w.ok(s, "install", "--force"), "(kept)")
	})
}

func (w *winLife) running() {
	w.must("start: running only when it listens", func(s *step) {
		w.ok(s, "start")
		if !accepts(w.port) {
			s.fail("it says that it runs, and nobody listens on %d", w.port)
		}
		s.contains(w.sc(s), "RUNNING")
		w.told(s, service.EventStarted, "service started")
	})
	w.step("PHP traffic through the service", func(s *step) { s.traffic(w.port, 200) })
	w.step("status, for people and as JSON", func(s *step) {
		c := s.start("hold", w.port)
		defer s.end(c)
		var r service.Report
		s.until("one client", func() bool {
			r = w.report(s, unit)
			return r.Service != nil && r.Service.Clients == 1
		})
		if r.State != service.StateRunning || !r.Enabled || r.PID == 0 || r.Service.Upstreams < 1 {
			s.fail("status --json tells %+v, %+v", r, r.Service)
		}
		s.contains(w.ok(s, "status"), "running, pid ", "clients    1", "127.0.0.1:"+strconv.Itoa(w.port), w.broker.Addr())
	})
	w.step("a secret by protect (DPAPI): read on this machine, its words nowhere in the file", func(s *step) {
		const secret, settings = `C:\ProgramData\amqproxysvc\shop.password`, `C:\ProgramData\amqproxysvc\protected.toml`
		typed := func(words string, args ...string) string {
			out, code := w.typed(s, words, append([]string{winProg}, args...)...)
			if code != 0 {
				s.fail("%s: exit code %d: %s", args[0], code, out)
			}
			return out
		}
		s.contains(typed("guest\r\n", "protect", secret), "written")
		data, err := os.ReadFile(w.path(secret))
		s.check(err)
		if !bytes.HasPrefix(data, []byte("dpapi:")) || bytes.Contains(data, []byte("guest")) {
			s.fail("the file holds %.60q", data)
		}
		s.check(os.WriteFile(w.path(settings), []byte("[upstream]\nurl = \"amqp://"+w.broker.Addr()+"\"\n[[user]]\nname = \"shop\"\nbroker_user = \"guest\"\n"+
			"broker_password_file = \"shop.password\"\npassword_hash = \""+hash.New("local")+"\"\n"), 0o600))
		s.contains(typed("local\r\n", "check-login", "shop", "--config", settings, "--broker"), "the password is right, and the broker at amqp://"+w.broker.Addr()+" accepts")
		data[14] ^= 2 // in what names the key: Wine looks at no more
		s.check(os.WriteFile(w.path(secret), data, 0o600))
		s.contains(w.exits(s, 78, "check-config", settings), "user.broker_password_file: "+secret, "cannot be decrypted")
		for _, own := range []string{secret, settings} { // the administrator's, which no uninstall takes away
			s.check(os.Remove(w.path(own)))
		}
		s.note("%d octets", len(data))
	})
	w.step("Interrogate is answered", func(s *step) {
		answers, _ := w.run(s, `C:\probe.exe`, unit)
		s.contains(answers, "running 0 0")
	})
}

func (w *winLife) reloading() {
	w.step("reload under load, good files and broken ones: no client is dropped", func(s *step) {
		all := s.load(w.port)
		pid := w.report(s, unit).PID
		w.change(s, func(text string) string { return set(text, "log", "format", `"json"`) })
		w.ok(s, "reload")
		s.contains(w.log(s), `"msg":"configuration reloaded"`)
		restore := w.change(s, func(text string) string { return text + "\nnonsense = 1\n" })
		words := w.exits(s, 1, "reload")
		s.contains(words, "the settings from before stay in force", "nonsense")
		s.contains(w.ok(s, "status"), "running", "failed at", "nonsense")
		restore()
		w.ok(s, "reload")
		s.endAll(all)
		if w.report(s, unit).PID != pid {
			s.fail("it was restarted")
		}
		s.note("%s", strings.TrimSpace(words))
	})
	w.step("reload says what needs a restart", func(s *step) {
		restore := w.change(s, func(text string) string { return set(text, "http", "port", strconv.Itoa(w.http2)) })
		s.contains(w.ok(s, "reload"), "http.port", "only after a restart")
		restore()
		w.ok(s, "reload")
	})
}

func (w *winLife) stopping() {
	w.step("stop with a client that stays: checkpoints rise, and it is told 320 at 4 s", func(s *step) {
		c := s.start("stay", w.port)
		before := len(w.reports(s)) // on a machine that has much to do the stop is over before sc.exe has started
		stopped := make(chan string, 1)
		began := time.Now()
		var took time.Duration
		go func() {
			var out bytes.Buffer
			cmd := w.command(w.ctx, "wine", winProg, "stop")
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Run(); err != nil {
				out.WriteString(err.Error())
			}
			took = time.Since(began)
			stopped <- out.String()
		}()
		if words := <-stopped; words != "" {
			s.fail("stop: %s", words)
		}
		points := w.reports(s)[before:]
		if len(points) < 3 || !slices.IsSorted(points) || points[len(points)-1] == points[0] {
			s.fail("the checkpoints were %v", points)
		}
		words := s.end(c)
		s.contains(words, "320", "shutting down")
		s.note("stopped after %.1f s; checkpoints %s; the client: %s", took.Seconds(), fmt.Sprint(points), words)
		s.contains(w.sc(s), "STOPPED", "WIN32_EXIT_CODE    : 0")
	})
	w.step("stop under load: clients finish, then it is stopped", func(s *step) {
		restore := w.change(s, func(text string) string { return set(text, "", "drain_timeout", `"3m"`) }) // there is time to look
		defer restore()
		w.ok(s, "start")
		all := []*client{s.start("hold", w.port), s.start("hold", w.port)}
		stopped := make(chan struct{})
		go func() {
			cmd := w.command(w.ctx, "wine", winProg, "stop")
			_ = cmd.Run() // looked at below
			close(stopped)
		}()
		s.until("stop pending", func() bool { return strings.Contains(w.sc(s), "STOP_PENDING") })
		s.endAll(all)
		<-stopped
		s.contains(w.exits(s, 3, "status"), "stopped")
	})
	w.step("the log file is rotated by size", func(s *step) {
		w.change(s, func(text string) string {
			return set(set(text, "log", "max_size", `"1MiB"`), "log", "level", `"debug"`)
		})
		s.fill(w.path(winLog(unit)))
		w.ok(s, "start")
		s.traffic(w.port, 30)
		var files []string
		s.until("a second file", func() bool {
			files, _ = filepath.Glob(filepath.Dir(w.path(winLog(unit))) + "/amqproxysvc-*")
			return len(files) > 0
		})
		s.note("%s", filepath.Base(files[0]))
	})
}

func (w *winLife) failing() {
	w.step("broken configuration: the service fails with 78 and the reason", func(s *step) {
		restore := w.change(s, func(text string) string { return set(text, "", "drain_timeout", `"soon"`) })
		defer restore()
		w.ok(s, "stop")
		words := w.exits(s, 78, "start")
		s.contains(words, "78 (wrong configuration)", "drain_timeout")
		s.contains(w.exits(s, 3, "status"), "failed", "78 (wrong configuration)", "drain_timeout")
		s.contains(w.sc(s), "WIN32_EXIT_CODE    : 1066", "SERVICE_EXIT_CODE  : 78")
		w.told(s, service.EventConfigWrong, "drain_timeout")
		s.note("%s", strings.TrimSpace(words))
	})
	w.step("port taken: exit code 1 and the reason", func(s *step) {
		taken, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(w.port)))
		s.check(err)
		defer taken.Close()
		words := w.exits(s, 1, "start")
		s.contains(words, "another program uses this address")
		s.contains(w.sc(s), "SERVICE_EXIT_CODE  : 1 ")
		w.told(s, service.EventStartFailed, "another program uses this address")
		taken.Close()
		w.ok(s, "start")
		s.traffic(w.port, 5)
	})
	w.step("run --service outside of the SCM falls back to the console", func(s *step) {
		ctx, cancel := context.WithCancel(w.ctx)
		defer cancel()
		cmd := w.command(ctx, "wine", winProg, "run", "--service", "--config", winConfig(unit), "-p", strconv.Itoa(w.port2), "-b", strconv.Itoa(w.http2), "--set", "log.file=")
		s.check(cmd.Start())
		s.until("it listens", func() bool { return accepts(w.port2) })
		s.traffic(w.port2, 5)
		cancel()
		_ = cmd.Wait() // killed
	})
}

func (w *winLife) several() {
	w.step("a second instance, stopped and removed by itself", func(s *step) {
		const eu = "amqproxysvc-eu"
		w.ok(s, "install", "--name", eu, "--upstream", "amqp://"+w.broker.Addr(), "-p", strconv.Itoa(w.port2), "-b", strconv.Itoa(w.http2), "--start")
		s.traffic(w.port2, 5)
		for name, port := range map[string]int{unit: w.port, eu: w.port2} {
			if r := w.report(s, name); r.Service == nil || r.Service.Name != name || r.Service.Listening[0] != fmt.Sprintf("127.0.0.1:%d", port) {
				s.fail("status --name %s tells %+v", name, r.Service)
			}
		}
		w.ok(s, "uninstall", "--name", eu, "--purge")
		w.exits(s, 4, "status", "--name", eu)
		if accepts(w.port2) || !accepts(w.port) {
			s.fail("removing one touched another")
		}
		if _, err := os.Stat(w.path(winConfig(eu))); err == nil {
			s.fail("--purge left the configuration")
		}
	})
}

func (w *winLife) removing() {
	w.step("uninstall leaves no service, process or event source, and keeps the configuration", func(s *step) {
		s.contains(w.ok(s, "uninstall"), "kept: "+winConfig(unit))
		w.exits(s, 4, "status")
		if accepts(w.port) {
			s.fail("its process goes on")
		}
		if out, code := w.run(s, "reg", "query", `HKLM\SYSTEM\CurrentControlSet\Services\EventLog\Application\`+unit); code == 0 {
			s.fail("the event source is left: %s", out)
		}
		if _, err := os.Stat(w.path(winConfig(unit))); err != nil {
			s.fail("the configuration has gone: %w", err)
		}
	})
	w.step("install over the kept configuration; uninstall --purge removes all", func(s *step) {
		w.ok(s, "install", "--start")
		w.ok(s, "uninstall", "--purge")
		if _, err := os.Stat(w.path(`C:\ProgramData\amqproxysvc`)); err == nil {
			out, _ := exec.CommandContext(w.ctx, "find", w.path(`C:\ProgramData\amqproxysvc`)).Output()
			s.fail("left is:\n%s", out)
		}
	})
}

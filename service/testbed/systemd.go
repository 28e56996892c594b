//go:build linux

// The service's life under systemd.

package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/amqproxysvc/amqproxysvc/service"
)

const (
	unit   = "amqproxysvc"
	config = "/etc/amqproxysvc/amqproxysvc.toml"
	prog   = "/usr/local/bin/amqproxysvc"
)

// life is the state of the bed.
type life struct {
	*bed
	m                                      *machine
	port, http, port2, http2, port3, http3 int
}

// sh runs a command in the machine; wantOK fails the step when it fails.
func (l *life) sh(s *step, args ...string) string {
	out, err := l.m.run(l.ctx, args...)
	if err != nil {
		s.fail("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// exits runs a command, and gives its words and exit code.
func (l *life) exits(s *step, args ...string) (string, int) {
	out, err := l.m.run(l.ctx, args...)
	code := 0
	if exit, ok := err.(*exec.ExitError); ok {
		code = exit.ExitCode()
	} else if err != nil {
		s.fail("%s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(out), code
}

// fails runs a command that must exit with a code, and gives its words.
func (l *life) fails(s *step, code int, args ...string) string {
	out, got := l.exits(s, args...)
	if got != code {
		s.fail("%s: exit code %d, want %d: %s", strings.Join(args, " "), got, code, out)
	}
	return out
}

// comes runs a command until it exits with a code and says the words: what it tells of is a moment late where
// another process has it from the one that was asked.
func (l *life) comes(s *step, code int, words []string, args ...string) {
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		out, got := l.exits(s, args...)
		if got == code && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(out, w) }) {
			return
		}
		if l.ctx.Err() != nil || time.Since(began) > patience {
			s.fail("%s: not within %v exit code %d and %q, but %d: %s", strings.Join(args, " "), patience, code, words, got, out)
		}
	}
}

// show is one property of the unit, as systemd has it.
func (l *life) show(s *step, property string) string {
	return strings.TrimSpace(l.sh(s, "systemctl", "show", "--value", "-p", property, unit))
}

func (l *life) pid(s *step) int {
	pid, _ := strconv.Atoi(l.show(s, "MainPID"))
	return pid
}

// journal waits until the service's journal has the words, written since the mark.
func (l *life) journal(s *step, since time.Time, words ...string) {
	l.comes(s, 0, words, "journalctl", "--quiet", "--no-pager", "-u", unit, "--since=@"+strconv.FormatFloat(float64(since.UnixMicro())/1e6, 'f', 6, 64))
}

// becomes waits until systemd has a property so.
func (l *life) becomes(s *step, property, value string) {
	s.until(property+" is "+value, func() bool { return l.show(s, property) == value })
}

// deaf waits until nobody listens: systemd, which may have the socket too, lets it go beside what it says.
func (l *life) deaf(s *step, port int) {
	s.until(fmt.Sprintf("port %d takes no more clients", port), func() bool { return !accepts(port) })
}

// dropin adds lines to the unit, until the func is called.
func (l *life) dropin(s *step, text string) (remove func()) {
	file := l.m.path("/etc/systemd/system/" + unit + ".service.d/test.conf")
	s.check(os.MkdirAll(filepath.Dir(file), 0o755))
	s.check(os.WriteFile(file, []byte(text), 0o644))
	l.sh(s, "systemctl", "daemon-reload")
	return func() {
		s.check(os.Remove(file))
		l.sh(s, "systemctl", "daemon-reload")
	}
}

func (l *life) report(s *step, name string) service.Report {
	out := l.sh(s, prog, "status", "--json", "--name", name)
	var r service.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		s.fail("status --json: %w: %s", err, out)
	}
	return r
}

// change rewrites the configuration file in place, keeping owner and mode.
func (l *life) change(s *step, f func(text string) string) (restore func()) {
	path := l.m.path(config)
	old, err := os.ReadFile(path)
	s.check(err)
	s.check(os.WriteFile(path, []byte(f(string(old))), 0o640))
	return func() { s.check(os.WriteFile(path, old, 0o640)) }
}

// set gives a setting of the sample file a value.
func set(text, section, key, value string) string {
	at := 0
	if section != "" {
		at = strings.Index(text, "\n["+section+"]\n") + 1
	}
	line := regexp.MustCompile(`(?m)^(# )?` + key + ` = .*$`)
	where := line.FindStringIndex(text[at:])
	if where == nil {
		panic(bedFailed{fmt.Errorf("the sample configuration has no %s.%s", section, key)})
	}
	return text[:at+where[0]] + key + " = " + value + text[at+where[1]:]
}

func systemdBed(b *bed) {
	l := &life{bed: b}
	l.port, l.http, l.port2, l.http2, l.port3, l.http3 = b.ports[0], b.ports[1], b.ports[2], b.ports[3], b.ports[4], b.ports[5]
	b.must("a Debian root boots with systemd as PID 1", func(s *step) {
		var err error
		l.m, err = newMachine(b.ctx, b.name, filepath.Join(b.work, "root"))
		s.check(err)
		b.cleanup(l.m.halt)
		s.check(l.m.boot(b.ctx))
		s.note("%s", strings.SplitN(l.sh(s, "systemctl", "--version"), "\n", 2)[0])
	})
	b.lastWords = func() string {
		out, _ := l.m.run(b.ctx, "journalctl", "--quiet", "--no-pager", "-o", "short-precise", "-n", "25", "-u", "amqproxysvc*")
		return strings.TrimSpace(out)
	}
	l.installing()
	l.running()
	l.reloading()
	l.upgrading()
	l.stopping()
	l.failing()
	l.sandboxed()
	l.several()
	l.removing()
}

func (l *life) installing() {
	l.step("install refuses where systemd does not run", func(s *step) {
		out, err := exec.CommandContext(l.ctx, filepath.Join(l.bin, "amqproxysvc"), "install").CombinedOutput()
		if _, serr := os.Stat("/run/systemd/system"); serr == nil {
			s.note("systemd runs on this machine too: not tried")
			return
		}
		if err == nil {
			s.fail("installed without systemd: %s", out)
		}
		s.contains(string(out), "systemd does not run here")
	})
	l.must("the program is copied in", func(s *step) {
		b, err := os.ReadFile(filepath.Join(l.bin, "amqproxysvc"))
		s.check(err)
		for _, path := range []string{prog, "/root/amqproxysvc"} {
			s.check(os.MkdirAll(filepath.Dir(l.m.path(path)), 0o755))
			s.check(os.WriteFile(l.m.path(path), b, 0o755))
		}
	})
	l.step("install refuses a program that the sandbox hides, and says what to do", func(s *step) {
		s.contains(l.fails(s, 1, "/root/amqproxysvc", "install"), "install -m 755 /root/amqproxysvc /usr/local/bin/amqproxysvc")
	})
	l.step("status of what is not installed: 4", func(s *step) {
		s.contains(l.fails(s, 4, prog, "status"), "not installed")
		s.contains(l.fails(s, 5, prog, "start"), "not installed")
	})
	l.step("install refuses where a package owns the service", func(s *step) {
		vendor := l.m.path("/usr/lib/systemd/system/amqproxysvc.service")
		s.check(os.WriteFile(vendor, []byte(service.UnitText), 0o644))
		defer os.Remove(vendor)
		s.contains(l.fails(s, 1, prog, "install"), "a package installed the service", "systemctl enable --now amqproxysvc")
	})
	l.step("an install that fails leaves nothing (the port is taken)", func(s *step) {
		taken, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(l.port)))
		s.check(err)
		defer taken.Close()
		s.contains(l.fails(s, 1, prog, "install", "-p", strconv.Itoa(l.port), "-b", strconv.Itoa(l.http), "--start"),
			"another program uses this address")
		l.gone(s, "/etc/amqproxysvc")
		l.unregistered(s, unit)
	})
	l.must("install by command, started", func(s *step) {
		out := l.sh(s, prog, "install", "--upstream", "amqp://"+l.broker.Addr(), "-p", strconv.Itoa(l.port), "-b", strconv.Itoa(l.http),
			"--term-client-close-timeout", "4s", "--start")
		s.contains(out, "(written)", "(enabled)", "running")
		if !accepts(l.port) {
			s.fail("it says that it runs, and nobody listens on %d", l.port)
		}
		s.contains(l.sh(s, "stat", "-c", "%U:%G %a", config), "root:amqproxysvc 640")
	})
	l.step("install again: refused without --force, the same with it", func(s *step) {
		s.contains(l.fails(s, 1, prog, "install"), "installed already", "--force")
		before := l.sh(s, "cat", "/etc/systemd/system/amqproxysvc.service")
		pid := l.pid(s)
		s.contains(l.sh(s, prog, "install", "--force"), "(kept)")
		if after := l.sh(s, "cat", "/etc/systemd/system/amqproxysvc.service"); after != before {
			s.fail("the unit changed:\n%s", after)
		}
		if l.pid(s) != pid {
			s.fail("the running service was touched")
		}
		s.contains(l.fails(s, 78, prog, "install", "--force", "--upstream", "amqp://elsewhere"), "sets otherwise")
	})
	l.step("another program's service is neither replaced nor removed", func(s *step) {
		other := l.m.path("/etc/systemd/system/other.service")
		s.check(os.WriteFile(other, []byte("[Service]\nExecStart=/bin/sleep 1000\n"), 0o644))
		l.sh(s, "systemctl", "daemon-reload")
		s.contains(l.fails(s, 1, prog, "install", "--name", "other", "--force"), "another program's")
		s.contains(l.fails(s, 1, prog, "uninstall", "--name", "other", "--purge"), "another program's")
		s.check(os.Remove(other))
		l.sh(s, "systemctl", "daemon-reload")
		l.gone(s, "/etc/amqproxysvc/other.toml")
	})
	l.step("active only when it listens", func(s *step) {
		for range 5 {
			l.sh(s, "systemctl", "restart", unit)
			if !accepts(l.port) {
				s.fail("systemctl restart is done, and nobody listens")
			}
		}
	})
}

func (l *life) running() {
	l.step("PHP traffic through the service", func(s *step) { s.traffic(l.port, 200) })
	l.step("status, for people and as JSON; systemd has the live counts", func(s *step) {
		c := s.start("hold", l.port)
		defer s.end(c)
		s.until("one client in the status text", func() bool {
			return strings.HasPrefix(l.show(s, "StatusText"), "serving 1 client over ")
		})
		r := l.report(s, unit)
		if r.State != service.StateRunning || r.PID != l.pid(s) || !r.Enabled || r.Service == nil || r.Service.Clients != 1 || r.Service.Upstreams < 1 {
			s.fail("status --json tells %+v, %+v", r, r.Service)
		}
		s.contains(l.sh(s, prog, "status"), "running, pid ", "clients    1", "127.0.0.1:"+strconv.Itoa(l.port), l.broker.Addr())
		s.note("%s", l.show(s, "StatusText"))
	})
	l.step("the admin channel: root acts, the group looks, a stranger is kept out", func(s *step) {
		mark := time.Now()
		c := s.start("hold", l.port)
		defer c.stop() // it is cut, and says so
		s.until("the client is listed", func() bool { return strings.Contains(l.sh(s, prog, "clients"), "guest") })
		s.contains(l.sh(s, prog, "pools"), "REUSE", "guest")
		as := func(user string, group ...string) []string {
			return append([]string{"setpriv", "--reuid", user, "--regid", "nogroup"}, append(group, prog)...)
		}
		member := as("nobody", "--groups", unit)
		s.contains(l.sh(s, append(member, "clients", "--json")...), `"user": "guest"`)
		stranger := as("nobody", "--clear-groups")
		for _, look := range []string{"clients", "pools", "upstreams", "stats", "advise", "config"} {
			l.sh(s, prog, look)
			l.sh(s, append(member, look)...)
			s.contains(l.fails(s, 1, append(stranger, look)...), "permission denied")
		}
		for _, who := range [][]string{{prog}, member, stranger} { // a stranger's is the state file's word, which is a second late
			l.comes(s, 0, []string{"running, pid ", "clients    1"}, append(who, "status")...)
		}
		for _, change := range [][]string{{"kick", "--user", "guest"}, {"reconnect"}, {"pause"}, {"resume"}, {"drain"}, {"trace", "--user", "guest", "--for", "1s"}} {
			s.contains(l.fails(s, 1, append(member, change...)...), " is for root")
			s.contains(l.fails(s, 1, append(stranger, change...)...), "permission denied")
		}
		for _, who := range [][]string{member, stranger} {
			s.contains(l.fails(s, 1, append(who, "reload")...), "reload needs root")
		}
		s.contains(l.fails(s, 78, append(stranger, "check-config")...), config+": cannot be read by this user: use sudo")
		l.sh(s, prog, "pause", "--vhost", "none")
		l.sh(s, prog, "drain", "--vhost", "none")
		l.sh(s, prog, "resume", "--vhost", "none")
		s.contains(l.sh(s, prog, "clients"), "guest")
		s.contains(l.sh(s, prog, "config"), config+":")
		s.contains(l.sh(s, prog, "kick", "--user", "guest"), "1 client closed")
		l.journal(s, mark, "admin command", "uid 0")
		s.contains(l.sh(s, prog, "reconnect"), "retired")
		s.traffic(l.port, 5)
	})
	kill := []string{"systemctl", "kill", "--kill-who=main", "--signal=SIGKILL", unit}
	l.step("kill -9: status says so", func(s *step) {
		restore := l.dropin(s, "[Service]\nRestartSec=1h\n") // there is time to look
		defer func() { restore(); l.sh(s, "systemctl", "restart", unit) }()
		l.sh(s, kill...)
		l.comes(s, 3, []string{"killed     by signal 9 (KILL)"}, prog, "status")
	})
	l.step("kill -9: back after 2 s", func(s *step) {
		if wait := l.show(s, "RestartUSec"); wait != "2s" {
			s.fail("systemd starts it again after %s", wait)
		}
		pid := l.pid(s)
		l.sh(s, kill...)
		took := s.until("another process that listens", func() bool { now := l.pid(s); return now != pid && now != 0 && accepts(l.port) })
		s.note("after %.1f s", took.Seconds())
		s.traffic(l.port, 5)
	})
	l.step("SIGSTOP: the watchdog (30 s) restarts it", func(s *step) {
		l.becomes(s, "ActiveState", "active")
		pid := l.pid(s)
		l.sh(s, "systemctl", "kill", "--kill-who=main", "--signal=SIGSTOP", unit)
		took := s.until("another process that listens", func() bool {
			p := l.pid(s)
			return p != pid && p != 0 && l.show(s, "ActiveState") == "active" && accepts(l.port)
		})
		s.note("after %.1f s", took.Seconds())
		s.traffic(l.port, 5)
	})
	l.step("it starts with the machine", func(s *step) {
		before := l.sh(s, "systemctl", "show", "--value", "-p", "UserspaceTimestampMonotonic")
		l.m.halt()
		s.check(l.m.boot(l.ctx))
		if l.sh(s, "systemctl", "show", "--value", "-p", "UserspaceTimestampMonotonic") == before {
			s.fail("the machine was not restarted")
		}
		l.becomes(s, "ActiveState", "active")
		s.traffic(l.port, 5)
	})
}

func (l *life) reloading() {
	l.step("reload under load, good files and broken ones: no client is dropped", func(s *step) {
		pid := l.pid(s)
		all := s.load(l.port)
		for i := range 4 {
			restore := l.change(s, func(text string) string {
				return set(set(text, "", "drain_timeout", fmt.Sprintf(`"%ds"`, 3+i%2)), "log", "level", []string{`"debug"`, `"info"`}[i%2])
			})
			_ = restore
			l.sh(s, prog, "reload")
		}
		restore := l.change(s, func(text string) string { return text + "\nnonsense = 1\n" })
		words := l.fails(s, 1, prog, "reload")
		s.contains(words, "the settings from before stay in force", "nonsense")
		l.fails(s, 1, "systemctl", "reload", unit)
		restore()
		s.endAll(all)
		if l.pid(s) != pid {
			s.fail("it was restarted")
		}
		s.note("%s", words)
	})
	l.step("a log file that cannot be opened fails the reload too, with the reason in the journal", func(s *step) {
		mark := time.Now()
		restore := l.change(s, func(text string) string { return set(text, "log", "file", `"/proc/no/such.log"`) })
		defer restore()
		s.contains(l.fails(s, 1, prog, "reload"), "settings from before stay in force")
		s.contains(l.sh(s, prog, "status"), "running")
		l.journal(s, mark, "/proc/no")
	})
	l.step("reload says what needs a restart", func(s *step) {
		restore := l.change(s, func(text string) string { return set(text, "http", "port", strconv.Itoa(l.http3)) })
		s.contains(l.sh(s, prog, "reload"), "http.port", "only after a restart")
		s.contains(l.sh(s, prog, "status"), "a restart is needed for: http.port")
		restore()
		l.sh(s, prog, "reload")
		if strings.Contains(l.sh(s, prog, "status"), "a restart is needed") {
			s.fail("changed back, and status still asks for a restart")
		}
	})
	l.step("without an admin channel reload and status go through systemd and the state file", func(s *step) {
		restore := l.change(s, func(text string) string { return set(text, "admin", "socket", `"off"`) })
		l.sh(s, "systemctl", "restart", unit)
		l.sh(s, prog, "reload")
		l.sh(s, "systemctl", "reload", unit)
		s.contains(l.sh(s, prog, "status"), "running, pid ", "reload     done at")
		s.contains(l.fails(s, 3, prog, "clients"), "admin.socket is off")
		restore()
		l.sh(s, "systemctl", "restart", unit)
	})
	l.step("SIGHUP by itself reloads: RELOADING and READY reach systemd", func(s *step) {
		mark := time.Now()
		l.sh(s, "systemctl", "kill", "--kill-who=main", "--signal=SIGHUP", unit)
		l.journal(s, mark, "configuration reloaded")
		l.becomes(s, "ActiveState", "active")
	})
	l.step("the upstream can be changed live, for new connections", func(s *step) {
		held := s.start("hold", l.port)
		restore := l.change(s, func(text string) string { return set(text, "upstream", "url", `"amqp://127.0.0.1:1"`) })
		l.sh(s, prog, "reload")
		s.contains(l.sh(s, prog, "status"), "127.0.0.1:1")
		restore()
		l.sh(s, prog, "reload")
		s.note("PHP: hold %s", s.end(held))
	})
}

func (l *life) stopping() {
	// patient is a drain that nobody here waits for: what ends in time has ended by itself.
	patient := func(text string) string { return set(text, "", "drain_timeout", `"3m"`) }
	l.step("stop under load: clients finish, then it is stopped", func(s *step) {
		restore := l.change(s, patient)
		defer restore()
		l.sh(s, prog, "reload")
		all := []*client{s.start("hold", l.port), s.start("hold", l.port)}
		stopped := make(chan error, 1)
		go func() { _, err := l.m.run(l.ctx, prog, "stop"); stopped <- err }()
		s.until("draining", func() bool { return strings.HasPrefix(l.show(s, "StatusText"), "draining 2 clients") })
		l.deaf(s, l.port)
		l.comes(s, 3, []string{"stopping", "draining"}, prog, "status")
		s.endAll(all)
		ended := time.Now()
		s.check(<-stopped)
		s.note("stopped %.1f s after its last client", time.Since(ended).Seconds())
		s.contains(l.fails(s, 3, prog, "status"), "stopped")
	})
	l.step("stop with a client that stays: told 320 at the drain timeout (4 s)", func(s *step) {
		l.sh(s, prog, "start")
		c := s.start("stay", l.port)
		began := time.Now()
		l.sh(s, prog, "stop")
		took := time.Since(began)
		words := s.end(c)
		s.contains(words, "320", "shutting down")
		if took < 2500*time.Millisecond || took > 15*time.Second { // the default is 20 s
			s.fail("the drain took %v", took)
		}
		if r := l.show(s, "Result"); r != "success" {
			s.fail("systemd calls the stop %s", r)
		}
		s.note("stopped after %.1f s; the client: %s", took.Seconds(), words)
	})
	l.step("a drain longer than TimeoutStopSec is not cut off", func(s *step) {
		defer l.dropin(s, "[Service]\nTimeoutStopSec=1\n")()
		l.sh(s, prog, "start")
		c := s.start("stay", l.port)
		began := time.Now()
		l.sh(s, prog, "stop")
		s.contains(s.end(c), "320")
		s.note("stopped after %.1f s", time.Since(began).Seconds())
	})
	l.step("a second SIGTERM ends it at once", func(s *step) {
		restore := l.change(s, patient)
		defer restore()
		l.sh(s, prog, "start")
		c := s.start("stay", l.port)
		l.sh(s, "systemctl", "stop", "--no-block", unit)
		s.until("draining", func() bool { return strings.HasPrefix(l.show(s, "StatusText"), "draining") })
		time.Sleep(1100 * time.Millisecond) // two within a second are one request
		began := time.Now()
		l.sh(s, "systemctl", "kill", "--kill-who=main", "--signal=SIGTERM", unit)
		l.becomes(s, "ActiveState", "inactive")
		s.note("after %.2f s; the client: %s", time.Since(began).Seconds(), s.end(c))
	})
	l.step("a restart refuses no connect: systemd keeps the socket", func(s *step) {
		l.sh(s, prog, "start")
		mark := time.Now()
		churn := []*client{s.start("churn", l.port), s.start("churn", l.port), s.start("churn", l.port)}
		for range 6 {
			time.Sleep(400 * time.Millisecond)
			l.sh(s, "systemctl", "restart", unit)
		}
		s.endAll(churn)
		l.journal(s, mark, "kept_sockets=1")
	})
	l.step("a stop lets the kept socket go", func(s *step) {
		l.sh(s, prog, "stop")
		l.deaf(s, l.port)
		l.sh(s, prog, "start")
		s.contains(l.sh(s, prog, "status"), "running")
	})
	l.step("restart with a broken file leaves the running service alone", func(s *step) {
		pid := l.pid(s)
		restore := l.change(s, func(text string) string { return text + "\nnonsense = 1\n" })
		words := l.fails(s, 78, prog, "restart")
		restore()
		s.contains(words, "is not restarted and runs on as before", "nonsense")
		if l.pid(s) != pid {
			s.fail("it was restarted")
		}
		s.contains(l.sh(s, prog, "check-config"), "(service amqproxysvc): ok")
	})
	l.step("restart with socket activation refuses no connect", func(s *step) {
		text, err := os.ReadFile("service/amqproxysvc.socket")
		s.check(err)
		sock := strings.Replace(string(text), "127.0.0.1:5673", fmt.Sprintf("127.0.0.1:%d", l.port), 1)
		s.check(os.WriteFile(l.m.path("/etc/systemd/system/amqproxysvc.socket"), []byte(sock), 0o644))
		l.sh(s, prog, "stop") // a socket unit does not take over from a service that runs
		l.sh(s, "systemctl", "daemon-reload")
		l.sh(s, "systemctl", "enable", "--now", "amqproxysvc.socket")
		defer func() {
			_, _ = l.m.run(l.ctx, "systemctl", "disable", "--now", "amqproxysvc.socket")
			_ = os.Remove(l.m.path("/etc/systemd/system/amqproxysvc.socket"))
			_, _ = l.m.run(l.ctx, "systemctl", "daemon-reload")
			_, _ = l.m.run(l.ctx, "systemctl", "restart", unit)
		}()
		s.traffic(l.port, 3) // the first connect starts the service
		churn := []*client{s.start("churn", l.port), s.start("churn", l.port), s.start("churn", l.port)}
		for range 6 {
			time.Sleep(400 * time.Millisecond)
			l.sh(s, "systemctl", "restart", unit)
		}
		s.endAll(churn)
		l.journal(s, l.began, "socket_activated=1")
	})
}

func (l *life) failing() {
	l.step("broken configuration: failed at once, the reason in journal and status, no loop", func(s *step) {
		restore := l.change(s, func(text string) string { return set(text, "", "drain_timeout", `"soon"`) })
		defer restore()
		l.sh(s, prog, "stop")
		mark := time.Now()
		words := l.fails(s, 78, prog, "start")
		took := time.Since(mark)
		s.contains(words, "drain_timeout")
		l.journal(s, mark, "drain_timeout", "status=78")
		s.contains(l.fails(s, 3, prog, "status"), "failed", "78 (wrong configuration)", "drain_timeout")
		time.Sleep(4 * time.Second)
		if n := l.show(s, "NRestarts"); n != "0" || l.show(s, "ActiveState") != "failed" {
			s.fail("restarted %s times", n)
		}
		s.note("failed after %.2f s: %s", took.Seconds(), words)
	})
	l.step("port taken: a clear reason; it comes up by itself once the port is free", func(s *step) {
		taken, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(l.port)))
		s.check(err)
		defer taken.Close()
		mark := time.Now()
		words := l.fails(s, 1, prog, "start")
		s.contains(words, "another program uses this address", strconv.Itoa(l.port))
		l.journal(s, mark, "another program uses this address")
		time.Sleep(3 * time.Second)
		taken.Close()
		took := s.until("listening", func() bool { return l.show(s, "ActiveState") == "active" && accepts(l.port) })
		s.note("up %.1f s after the port was free", took.Seconds())
	})
}

func (l *life) sandboxed() {
	l.step("systemd-analyze security is 1.5 or less", func(s *step) {
		out := l.sh(s, "systemd-analyze", "security", "--no-pager", unit)
		m := regexp.MustCompile(`exposure level for \S+: ([0-9.]+)`).FindStringSubmatch(out)
		if m == nil {
			s.fail("no score in %s", out)
		}
		if score, err := strconv.ParseFloat(m[1], 64); err != nil || score > 1.5 {
			s.fail("the score is %s", m[1])
		}
		s.note("score %s", m[1])
	})
	l.step("inside the sandbox: TLS upstream (its authority by LoadCredential), file log", func(s *step) {
		ca, err := os.ReadFile(l.broker.CAFile)
		s.check(err)
		s.check(os.WriteFile(l.m.path("/root/ca.pem"), ca, 0o600))
		dropin := l.m.path("/etc/systemd/system/amqproxysvc.service.d/ca.conf")
		s.check(os.MkdirAll(filepath.Dir(dropin), 0o755))
		s.check(os.WriteFile(dropin, []byte("[Service]\nLoadCredential=ca.pem:/root/ca.pem\n"), 0o644))
		l.change(s, func(text string) string {
			text = set(text, "upstream", "url", fmt.Sprintf(`"amqps://127.0.0.1:%d"`, l.broker.TLSPort))
			text = set(text, "tls", "ca_file", `"/run/credentials/amqproxysvc.service/ca.pem"`)
			return set(text, "log", "file", `"/var/log/amqproxysvc/amqproxysvc.log"`)
		})
		l.sh(s, "systemctl", "daemon-reload")
		l.sh(s, "systemctl", "restart", unit)
		s.traffic(l.port, 20)
		s.contains(l.sh(s, "cat", "/var/log/amqproxysvc/amqproxysvc.log"), "service started")
	})
	l.step("the log file is rotated by size, and reopened on SIGUSR1 when it was moved away", func(s *step) {
		dir := l.m.path("/var/log/amqproxysvc")
		l.change(s, func(text string) string {
			return set(set(text, "log", "max_size", `"1MiB"`), "log", "level", `"debug"`)
		})
		l.sh(s, prog, "stop")
		s.fill(filepath.Join(dir, "amqproxysvc.log"))
		l.sh(s, prog, "start")
		s.traffic(l.port, 30)
		s.until("a second file", func() bool { files, _ := filepath.Glob(dir + "/amqproxysvc-*"); return len(files) > 0 })
		s.check(os.Rename(filepath.Join(dir, "amqproxysvc.log"), filepath.Join(dir, "moved")))
		l.sh(s, "systemctl", "kill", "--kill-who=main", "--signal=SIGUSR1", unit)
		s.until("a new file with a line", func() bool {
			b, err := os.ReadFile(filepath.Join(dir, "amqproxysvc.log"))
			return err == nil && strings.Contains(string(b), "reopened")
		})
		files, _ := filepath.Glob(dir + "/*")
		for i := range files {
			files[i] = filepath.Base(files[i])
		}
		s.note("%s", strings.Join(files, " "))
	})
}

func (l *life) several() {
	l.step("a second instance by install --name, a third by the template unit", func(s *step) {
		l.sh(s, prog, "install", "--name", "amqproxysvc-eu", "--upstream", "amqp://"+l.broker.Addr(),
			"-p", strconv.Itoa(l.port2), "-b", strconv.Itoa(l.http2), "--start")
		s.check(os.WriteFile(l.m.path("/usr/lib/systemd/system/amqproxysvc@.service"),
			[]byte(strings.ReplaceAll(service.TemplateUnitText, "/usr/bin/amqproxysvc", prog)), 0o644))
		text, err := os.ReadFile(l.m.path("/etc/amqproxysvc/amqproxysvc-eu.toml"))
		s.check(err)
		us := strings.NewReplacer(strconv.Itoa(l.port2), strconv.Itoa(l.port3), strconv.Itoa(l.http2), strconv.Itoa(l.http3)).Replace(string(text))
		s.check(os.WriteFile(l.m.path("/etc/amqproxysvc/us.toml"), []byte(us), 0o640))
		l.sh(s, "chgrp", "amqproxysvc", "/etc/amqproxysvc/us.toml")
		l.sh(s, "systemctl", "daemon-reload")
		l.sh(s, "systemctl", "start", "amqproxysvc@us")
		for name, port := range map[string]int{unit: l.port, "amqproxysvc-eu": l.port2, "amqproxysvc@us": l.port3} {
			s.traffic(port, 5)
			if r := l.report(s, name); r.Service == nil || r.Service.Name != name || r.Service.Listening[0] != fmt.Sprintf("127.0.0.1:%d", port) {
				s.fail("status --name %s tells %+v", name, r.Service)
			}
			l.sh(s, prog, "reload", "--name", name)
		}
	})
	l.step("they are stopped and removed one by one", func(s *step) {
		l.sh(s, prog, "stop", "--name", "amqproxysvc@us")
		l.deaf(s, l.port3)
		if !accepts(l.port2) || !accepts(l.port) {
			s.fail("stopping one stopped another")
		}
		l.sh(s, prog, "uninstall", "--name", "amqproxysvc-eu", "--purge")
		l.gone(s, "/etc/amqproxysvc/amqproxysvc-eu.toml", "/var/log/amqproxysvc-eu")
		l.unregistered(s, "amqproxysvc-eu")
		l.deaf(s, l.port2)
		if !accepts(l.port) {
			s.fail("removing one touched another")
		}
	})
}

func (l *life) removing() {
	l.step("uninstall leaves no process, unit or link, and keeps the configuration", func(s *step) {
		pid := l.pid(s)
		socket, err := os.ReadFile("service/amqproxysvc.socket")
		s.check(err)
		s.check(os.WriteFile(l.m.path("/etc/systemd/system/amqproxysvc.socket"), socket, 0o644))
		l.sh(s, "systemctl", "enable", "amqproxysvc.socket")
		s.contains(l.sh(s, prog, "uninstall"), "kept: "+config)
		l.gone(s, "/etc/systemd/system/amqproxysvc.socket", "/etc/systemd/system/sockets.target.wants/amqproxysvc.socket")
		l.gone(s, "/proc/"+strconv.Itoa(pid))
		l.unregistered(s, unit)
		l.fails(s, 4, prog, "status")
		l.fails(s, 5, prog, "uninstall")
		if _, err := os.Stat(l.m.path(config)); err != nil {
			s.fail("the configuration has gone: %w", err)
		}
	})
	l.step("install over the kept configuration; uninstall --purge removes all", func(s *step) {
		l.sh(s, prog, "install", "--start")
		if !accepts(l.port) {
			s.fail("it does not listen")
		}
		l.sh(s, prog, "uninstall", "--purge")
		l.gone(s, config, "/var/log/amqproxysvc", "/var/lib/amqproxysvc")
		l.unregistered(s, unit)
	})
}

// gone waits until the machine has none of the paths; systemd removes its own beside what it answers.
func (l *life) gone(s *step, paths ...string) {
	for _, p := range paths {
		l.comes(s, 1, nil, "test", "-e", p)
		l.comes(s, 1, nil, "test", "-L", p)
	}
}

// unregistered checks that no unit, link or runtime directory of the service is left.
func (l *life) unregistered(s *step, name string) {
	l.gone(s, "/etc/systemd/system/"+name+".service", "/etc/systemd/system/multi-user.target.wants/"+name+".service", "/run/"+name)
	s.until("systemd no longer knows "+name, func() bool {
		return l.sh(s, "systemctl", "list-units", "--all", "--plain", "--no-legend", name+".service") == ""
	})
}

// Bad input: one line that says what, where and what is allowed, the documented exit code,
// nothing started.

package main

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/service/config"
)

// neverStarted fails the test when an engine is made.
func neverStarted(t *testing.T) {
	t.Helper()
	before := newServer
	newServer = func(proxy.Config) (proxyServer, error) {
		t.Error("an engine was made in spite of bad input")
		return nil, errTest
	}
	t.Cleanup(func() { newServer = before })
}

// oneLine checks exit code and message.
func oneLine(t *testing.T, code, wantCode int, stderr string, parts ...string) {
	t.Helper()
	if code != wantCode {
		t.Errorf("exit code %d, want %d", code, wantCode)
	}
	if strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "amqproxysvc: ") {
		t.Errorf("standard error is %q, want one line", stderr)
	}
	for _, part := range parts {
		if !strings.Contains(stderr, part) {
			t.Errorf("standard error is %q, want %q in it", stderr, part)
		}
	}
}

func TestBadCommandLine(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "missing.toml")
	cases := []struct {
		name string
		args []string
		code int
		want []string
	}{
		{"port not a number", []string{"-p", "x"}, 64, []string{"--port", `"x"`, "0 to 65535"}},
		{"port too large", []string{"--port=65536"}, 64, []string{"--port", "65536", "0 to 65535"}},
		{"port negative", []string{"--port=-1"}, 64, []string{"--port", "-1", "0 to 65535"}},
		{"listen", []string{"-l", "not an address"}, 64, []string{"--listen", "not an address", "a host name or an IP address"}},
		{"listen with port", []string{"-l", "127.0.0.1:5673"}, 64, []string{"--listen", "a host name or an IP address; the port goes to -p, listener.port"}},
		{"listen on all with port", []string{"-l", ":5673"}, 64, []string{"--listen", "the port goes to -p"}},
		{"long flag, one dash", []string{"-port", "5673"}, 64, []string{"-port: did you mean --port?"}},
		{"long flag of a command, one dash", []string{"status", "-name", "x"}, 64, []string{"-name: did you mean --name?"}},
		{"two letters with values", []string{"-lp", "5673"}, 64, []string{"-lp: each takes a value of its own: -l ADDRESS -p PORT"}},
		{"IPv6 without brackets", []string{"amqp://fe80::1"}, 64, []string{"in brackets, amqp://[fe80::1]"}},
		{"its own listener", []string{"-p", "5994", "amqp://127.0.0.1:5994"}, 64, []string{"upstream.url is amqp://127.0.0.1:5994", "connect to itself"}},
		{"its own listener by name", []string{"-p", "5994", "-l", "0.0.0.0", "amqp://localhost:5994"}, 64, []string{"connect to itself"}},
		{"http port", []string{"-b", "65536"}, 64, []string{"--http-port", "65536", "0 to 65535"}},
		{"idle timeout", []string{"-t", "0"}, 64, []string{"--idle-connection-timeout", "1s to 365d"}},
		{"idle timeout not a time", []string{"--idle-connection-timeout", "soon"}, 64, []string{"--idle-connection-timeout", `"soon"`}},
		{"max upstream channels", []string{"--max-upstream-channels", "65536"}, 64, []string{"--max-upstream-channels", "1 to 65535"}},
		{"no upstream channels", []string{"--max-upstream-channels", "0"}, 64, []string{"1 to 65535"}},
		{"term timeout", []string{"--term-timeout", "-2"}, 64, []string{"--term-timeout", "-1 (no bound) or 0 to 24h"}},
		{"term client close timeout", []string{"--term-client-close-timeout", "-1"}, 64, []string{"--term-client-close-timeout", "0 to 24h"}},
		{"set without value", []string{"--set", "log.level"}, 64, []string{"NAME=VALUE"}},
		{"set of an unknown name", []string{"--set", "pool.idle_timout=3"}, 64, []string{`did you mean "pool.idle_timeout"?`}},
		{"set of a bad value", []string{"--set", "log.level=loud"}, 64, []string{"--set log.level", "debug, info, warn or error"}},
		{"unknown flag", []string{"--bogus"}, 64, []string{"--bogus", "--help"}},
		{"unknown letter", []string{"-z"}, 64, []string{"'z'", "--help"}},
		{"flag without value", []string{"-p"}, 64, []string{"-p", "--help"}},
		{"two arguments", []string{"amqp://a", "b:5672"}, 64, []string{"2 arguments", "AMQP_URLs", `"b:5672"`, "no scheme"}},
		{"two schemes", []string{"amqp://a", "amqps://b"}, 64, []string{"AMQP_URL", "amqps://b:5671 beside amqp://a:5672", "amqp URLs alone"}},
		{"one broker twice", []string{"amqp://a", "amqp://a:5672"}, 64, []string{"AMQP_URL", "amqp://a:5672 twice"}},
		{"another scheme", []string{"http://broker"}, 64, []string{"AMQP_URL", `"http"`, "amqp://HOST[:PORT] or amqps://HOST[:PORT]"}},
		{"no scheme", []string{"broker:5672"}, 64, []string{"AMQP_URL", "no scheme"}},
		{"no host", []string{"amqp://"}, 64, []string{"AMQP_URL", "host"}},
		{"URL's port", []string{"amqp://h:70000"}, 64, []string{"AMQP_URL", "70000", "1 to 65535"}},
		{"command misspelt", []string{"check-cfg"}, 64, []string{`did you mean "check-config"?`}},
		{"flag misspelt", []string{"--prot", "1"}, 64, []string{"--prot", "did you mean --port?"}},
		{"unknown shell", []string{"completion", "tcsh"}, 64, []string{`"tcsh"`, "see amqproxysvc completion --help"}},
		{"help of nothing", []string{"help", "stauts"}, 64, []string{`unknown command "stauts", did you mean "status"?`}},
		{"a name of two parts", []string{"status", "--name", "foo/bar"}, 64, []string{"--name", "foo/bar"}},
		{"upstream to install", []string{"install", "--upstream", "user:s3cr3t@h"}, 64, []string{"--upstream: upstream.url has no scheme"}},
		{"time to wait", []string{"stop", "--timeout", "soon"}, 64, []string{"--timeout", `"90s"`}},
		{"no time to wait", []string{"stop", "--timeout", "0"}, 64, []string{"--timeout", "above 0"}},
		{"missing file", []string{"-c", missing}, 78, []string{missing, "there is no such file"}},
		{"file is a directory", []string{"-c", dir}, 78, []string{dir, "is a directory"}},
		{"log file is a directory", []string{"--set", "log.file=" + dir}, 78, []string{"log.file", dir}},
		{"no CA file", []string{"--set", "tls.ca_file=" + missing, "amqps://h"}, 78, []string{"tls.ca_file", missing}},
		{"buffer below message", []string{"--set", "client.message_buffer=1"}, 64, []string{"client.message_buffer", "client.max_message_size"}},
		{"check-config with two files", []string{"check-config", "a", "b"}, 64, []string{"2 arguments, allowed is one, the FILE", "see amqproxysvc check-config --help"}},
		{"check-config of a missing file", []string{"check-config", missing}, 78, []string{missing, "there is no such file"}},
		{"import-config without a file", []string{"import-config"}, 64, []string{"0 arguments, needed is one, the FILE"}},
		{"import-config of a missing file", []string{"import-config", missing}, 78, []string{missing, "there is no such file"}},
		{"version with an argument", []string{"version", "x"}, 64, []string{"unknown command"}},
		{"unknown flag of a command", []string{"check-config", "--bogus"}, 64, []string{"--bogus"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			neverStarted(t)
			code, stderr := program(c.args...)
			oneLine(t, code, c.code, stderr, c.want...)
		})
	}
}

// The command that is named is the nearest, not the first that is near.
func TestNearestCommand(t *testing.T) {
	commands := subcommandNames(newRootCommand())
	for word, want := range map[string]string{
		"statu": "status", "stat": "stats", "stauts": "status", "sttaus": "status", "star": "start", "strat": "start",
		"sotp": "stop", "re": "reload", "relaod": "reload", "restrat": "restart", "unistall": "uninstall", "check": "check-config",
		"broker": "", "x": "", "foo": "", "amqp://h": "",
	} {
		if got := nearestCommand(word, commands); got != want {
			t.Errorf("%s: got %q, want %q", word, got, want)
		}
	}
}

// Each flag of the table must be among the cases above.
func TestEveryFlagIsTested(t *testing.T) {
	for i := range config.Table {
		if flag := config.Table[i].Flag; flag != "" {
			neverStarted(t)
			value := "\x00 nonsense"
			code, stderr := program("--" + flag + "=" + value)
			oneLine(t, code, 64, stderr, "--"+flag, "allowed is "+config.Table[i].Allowed())
		}
	}
}

// kill(2) takes what is no process's number for many processes. The flag is asked, not the
// command run: a test that fails must not do so.
func TestPIDIsOfOneProcess(t *testing.T) {
	for text, ok := range map[string]bool{"1": true, "4194304": true, "0": false, "-1": false, "-17": false, "4294967295": false, "x": false, "": false} {
		cmd := reloadCommand()
		err := cmd.Flags().Set("pid", text)
		if (err == nil) != ok || err != nil && !strings.Contains(err.Error(), "the number of a process") {
			t.Errorf("--pid %q: got %v", text, err)
		}
	}
}

func TestBadEnvironment(t *testing.T) {
	for name, c := range map[string]struct{ value, want string }{
		"LISTEN_ADDRESS":            {"a b", "a host name or an IP address"},
		"LISTEN_PORT":               {"x", "0 to 65535"},
		"HTTP_PORT":                 {"-1", "0 to 65535"},
		"LOG_LEVEL":                 {"loud", "debug, info, warn or error"},
		"IDLE_CONNECTION_TIMEOUT":   {"0", "1s to 365d"},
		"MAX_UPSTREAM_CHANNELS":     {"65536", "1 to 65535"},
		"TERM_TIMEOUT":              {"-2", "-1 (no bound) or 0 to 24h"},
		"TERM_CLIENT_CLOSE_TIMEOUT": {"-1", "0 to 24h"},
		"AMQP_URL":                  {"redis://h", "amqp://HOST[:PORT] or amqps://HOST[:PORT]"},
	} {
		t.Run(name, func(t *testing.T) {
			neverStarted(t)
			t.Setenv(name, c.value)
			code, stderr := program()
			oneLine(t, code, 78, stderr, "environment variable "+name, c.want)
		})
	}
}

func TestBadFile(t *testing.T) {
	neverStarted(t)
	file := filepath.Join(t.TempDir(), "a.toml")
	if err := os.WriteFile(file, []byte("[pool]\nidle_timout = 3\n[http]\nport = \"x\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, stderr := program("-c", file)
	oneLine(t, code, 78, stderr, file+":2: ", `did you mean "idle_timeout"?`, "(and 1 more")
	limits := filepath.Join(t.TempDir(), "limits.toml")
	if err := os.WriteFile(limits, []byte("[[limit]]\nby = \"address\"\nmax_upstreams = 5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	limitCode, limitErr := program("-c", limits)
	oneLine(t, limitCode, 78, limitErr, limits+": limit 1 (address *): limit.max_upstreams is for limits by user or vhost")
	// check-config tells them all, a line each.
	code, stderr = program("check-config", file)
	if code != 78 || strings.Count(stderr, "\n") != 2 || !strings.Contains(stderr, file+":4: http.port is \"x\"") {
		t.Errorf("check-config: exit code %d, %q", code, stderr)
	}
}

func TestBusyPort(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	port := strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"listener":        {[]string{"-p", port, "-b", "0"}, "listener.address, listener.port"},
		"second listener": {[]string{"-c", twoListeners(t, port), "-b", "0"}, "listener.address, listener.port"},
		"http":            {[]string{"-p", "0", "-b", port}, "http.address, http.port (-b), which are of health and metrics"},
	} {
		t.Run(name, func(t *testing.T) {
			fake := useFake(t, nil)
			code, stderr := program(c.args...)
			oneLine(t, code, 1, stderr, "cannot listen on 127.0.0.1:"+port, "another program uses this address"+busyBy(), "change "+c.want)
			for _, l := range fake.listeners {
				if conn, err := net.Dial("tcp", l.Addr().String()); err == nil {
					_ = conn.Close()
					t.Errorf("%s is left open", l.Addr())
				}
			}
		})
	}
}

// busyBy is how the test's own process is named where that can be seen.
func busyBy() string {
	if runtime.GOOS != "linux" {
		return " (which: "
	}
	return ": amqproxysvc.tes, pid " + strconv.Itoa(os.Getpid())
}

func TestWhoListensOnAPort(t *testing.T) {
	if got := listenerOf(1); !strings.Contains(got, "which: ") {
		t.Errorf("of a port that nobody uses: %q", got)
	}
}

func twoListeners(t *testing.T, busy string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "a.toml")
	if err := os.WriteFile(file, []byte("[[listener]]\nport = 0\n[[listener]]\nport = "+busy+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestAddressNotOfThisMachine(t *testing.T) {
	useFake(t, nil)
	code, stderr := program("-l", "192.0.2.1", "-p", "0", "-b", "0")
	oneLine(t, code, 1, stderr, "cannot listen on 192.0.2.1:0", "change listener.address")
}

func TestNameWithoutAddress(t *testing.T) {
	useFake(t, nil)
	code, stderr := program("-l", "name.invalid", "-p", "0", "-b", "0")
	oneLine(t, code, 1, stderr, "cannot listen on name.invalid: no address is known of that name", "change listener.address")
}

// A password on the command line is in no message.
func TestNoSecretIsTold(t *testing.T) {
	for _, args := range [][]string{
		{"amqp://user:s3cr3t@h:99999"},
		{"amqp://user:s3cr3t/x@h"},
		{"user:s3cr3t@h"},
		{"-l", "amqp://user:s3cr3t@h"},
		{"--set", "upstream.url=http://user:s3cr3t@h"},
		{"amqp://user:s3cr3t@h", "x"},
	} {
		neverStarted(t)
		code, stderr := program(args...)
		oneLine(t, code, 64, stderr)
		if strings.Contains(stderr, "s3cr3t") {
			t.Errorf("%q: %q", args, stderr)
		}
	}
}

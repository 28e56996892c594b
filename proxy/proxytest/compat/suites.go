// The suites: where each comes from, what it needs, how its tests are run.

//go:build linux

package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// suite is a client library's tests. A unit, in only, is a test or a file of tests that
// can be run alone; none means all.
type suite struct {
	name, version string
	packages      []string // Debian's, that must be installed
	origin        origin
	prepare       func(dir string, t ports) error
	run           func(ctx context.Context, dir string, t target, only []string) (results, error)
}

// origin is where a suite's source comes from: a Go module, a Debian source package, or
// neither, when only somebody's own copy has the tests.
type origin struct{ module, debian string }

// ports are what a suite finds in place of the usual ones.
type ports struct{ amqp, management int }

var suites = []*suite{
	{
		name: "amqp091-go", version: "1.16.0",
		origin:  origin{module: "github.com/rabbitmq/amqp091-go@v1.16.0"},
		prepare: replacePorts("integration_test.go", "example*_test.go", "recovery_test.go", "http.go"),
		run:     runGo,
	},
	{
		name: "php-amqp", version: "1.11.0",
		packages: []string{"php-cli", "php-amqp", "php8.2-dev"},
		origin:   origin{debian: "php-amqp"},
		prepare:  replacePorts("*.phpt"),
		run:      runPHPT,
	},
	{
		name: "php-amqplib", version: "3.5.3",
		packages: []string{"php-cli", "phpunit", "php-phpseclib3"},
		origin:   origin{debian: "php-amqplib"},
		prepare:  preparePHPAmqplib,
		run:      runPHPUnit,
	},
	{
		name: "pika", version: "1.2.0",
		packages: []string{"python3-pytest", "python3-mock", "python3-tornado"},
		origin:   origin{debian: "python-pika"},
		prepare:  replacePorts("*.py"),
		run:      runPytest,
	},
	{
		name: "bunny", version: "2.19.0",
		packages: []string{"ruby-bunny", "ruby-rspec"},
		origin:   origin{debian: "ruby-bunny"},
		prepare:  prepareBunny,
		run:      runRSpec,
	},
	{
		name: "amqplib", version: "2.0.1",
		packages: []string{"nodejs"},
		prepare:  replacePorts("connect.js"), // the library's default,
		run:      runNode,
	},
}

// runLogged runs a suite's command; that tests fail is no error. The error says that
// none could be run.
func runLogged(cmd *exec.Cmd, t target) ([]byte, error) {
	log, err := os.Create(t.log)
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = log, log
	err = cmd.Run()
	_ = log.Close()
	out, readErr := os.ReadFile(t.log)
	if readErr != nil {
		return nil, readErr
	}
	if cmd.ProcessState == nil {
		return nil, err
	}
	return out, nil
}

// report reads a runner's report; when there is none, the end of what it printed says why.
func report(path string, out []byte) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w; it printed: %s", err, out[max(0, len(out)-1500):])
	}
	return text, nil
}

func runGo(ctx context.Context, dir string, t target, only []string) (results, error) {
	args := []string{"test", "-json", "-count=1", "-timeout=14m", "-tags=integration"}
	if len(only) > 0 {
		args = append(args, "-run=^("+strings.Join(only, "|")+")$")
	}
	if t.quick { // waits for the broker's statistics; opens 65,535 channels one after another
		args = append(args, "-skip=^(TestConnectionRecovery|TestChannelCounterShouldNotPanicIssue136$)")
	}
	out, err := runLogged(child(ctx, dir, []string{
		fmt.Sprintf("AMQP_URL=amqp://guest:guest@127.0.0.1:%d/", t.port), "GOWORK=off",
		"RABBITMQ_RABBITMQCTL_PATH=" + t.ctl,
	}, "go", append(args, ".")...), t)
	if err != nil {
		return nil, err
	}
	got := parseGo(out)
	if len(got) == 0 {
		return nil, fmt.Errorf("go test ran nothing: %s", out[max(0, len(out)-1500):])
	}
	return got, nil
}

func runPHPT(ctx context.Context, dir string, t target, only []string) (results, error) {
	runner, err := filepath.Glob("/usr/lib/php/*/build/run-tests.php")
	if err != nil || len(runner) == 0 {
		return nil, fmt.Errorf("php-dev's run-tests.php is not there")
	}
	if len(only) == 0 {
		only = []string{"tests"}
	}
	args := append([]string{
		runner[len(runner)-1], "-q", "--set-timeout", "60",
		"-d", fmt.Sprintf("amqp.port=%d", t.port), "-d", "amqp.host=localhost",
	}, only...)
	out, err := runLogged(child(ctx, dir, []string{"TEST_PHP_EXECUTABLE=/usr/bin/php", "NO_INTERACTION=1"}, "php", args...), t)
	if err != nil {
		return nil, err
	}
	got := parsePHPT(out)
	if len(got) == 0 {
		return nil, fmt.Errorf("run-tests.php ran nothing: %s", out[max(0, len(out)-1500):])
	}
	return got, nil
}

func preparePHPAmqplib(dir string, p ports) error {
	// Composer's loader, in place of the one that comes from a registry not in use here.
	loader := `<?php
spl_autoload_register(function ($class) {
	foreach (['PhpAmqpLib\\Tests\\' => 'tests/', 'PhpAmqpLib\\' => 'PhpAmqpLib/'] as $prefix => $folder) {
		if (strncmp($class, $prefix, strlen($prefix)) === 0) {
			$file = __DIR__ . '/../' . $folder . strtr(substr($class, strlen($prefix)), '\\', '/') . '.php';
			if (is_file($file)) { require $file; return; }
		}
	}
});
require_once '/usr/share/php/phpseclib3/autoload.php';
`
	if err := os.MkdirAll(filepath.Join(dir, "vendor"), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "vendor/autoload.php"), []byte(loader), 0o644)
}

func runPHPUnit(ctx context.Context, dir string, t target, only []string) (results, error) {
	xml := filepath.Join(dir, "report.xml")
	// phpunit takes one folder or file: those wanted are named by a suite of their own.
	if len(only) == 0 {
		only = []string{"tests/Functional"}
	}
	var config strings.Builder
	config.WriteString(`<phpunit bootstrap="tests/bootstrap.php"><php><ini name="error_reporting" value="8191"/></php><testsuites><testsuite name="s">`)
	for _, unit := range only {
		kind := "directory"
		if strings.HasSuffix(unit, ".php") {
			kind = "file"
		}
		fmt.Fprintf(&config, "<%s>%s</%[1]s>", kind, unit)
	}
	config.WriteString("</testsuite></testsuites></phpunit>\n")
	if err := os.WriteFile(filepath.Join(dir, "compat.xml"), []byte(config.String()), 0o644); err != nil {
		return nil, err
	}
	out, err := runLogged(child(ctx, dir, []string{
		"TEST_RABBITMQ_HOST=127.0.0.1", fmt.Sprintf("TEST_RABBITMQ_PORT=%d", t.port),
	}, "phpunit", "-c", "compat.xml", "--verbose", "--log-junit", xml), t)
	if err != nil {
		return nil, err
	}
	text, err := report(xml, out)
	if err != nil {
		return nil, err
	}
	return parseJUnit(text, func(c junitCase) (string, string) {
		unit, err := filepath.Rel(dir, c.File)
		if err != nil {
			unit = c.File
		}
		return c.Class[strings.LastIndexAny(c.Class, `.\`)+1:] + "::" + c.Name, unit
	})
}

func runPytest(ctx context.Context, dir string, t target, only []string) (results, error) {
	if len(only) == 0 {
		files, err := filepath.Glob(filepath.Join(dir, "tests/acceptance/*test*.py"))
		if err != nil {
			return nil, err
		}
		// twisted's need nose, which no Python of today has.
		only = slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, "/twisted_adapter_tests.py") })
	}
	xml := filepath.Join(dir, "report.xml")
	args := append([]string{"-m", "pytest", "-p", "no:cacheprovider", "-q", "--junitxml", xml, "-o", "junit_logging=no"}, only...)
	out, err := runLogged(child(ctx, dir, []string{"PYTHONPATH=" + dir, "PYTHONDONTWRITEBYTECODE=1"}, "/usr/bin/python3", args...), t)
	if err != nil {
		return nil, err
	}
	text, err := report(xml, out)
	if err != nil {
		return nil, err
	}
	return parseJUnit(text, func(c junitCase) (string, string) {
		file, class := c.Class, ""
		if i := strings.LastIndex(file, "."); i >= 0 {
			file, class = file[:i], file[i+1:]
		}
		return class + "." + c.Name, strings.ReplaceAll(file, ".", "/") + ".py::" + class + "::" + c.Name
	})
}

func prepareBunny(dir string, p ports) error {
	// The gems that the Gemfile adds for the maintainers' machines are no packages.
	helper := filepath.Join(dir, "spec/spec_helper.rb")
	text, err := os.ReadFile(helper)
	if err != nil {
		return err
	}
	for _, line := range []string{"require 'bundler'\n", "Bundler.require(:default, :test)\n"} {
		text = []byte(strings.Replace(string(text), line, "", 1))
	}
	if err := os.WriteFile(helper, text, 0o644); err != nil {
		return err
	}
	// Most specs name no port: the library's default becomes the one in use, and so do
	// those that specs expect.
	session := filepath.Join(dir, "lib/bunny/session.rb")
	if text, err = os.ReadFile(session); err != nil {
		return err
	}
	text = []byte(strings.ReplaceAll(string(text), "AMQ::Protocol::DEFAULT_PORT", strconv.Itoa(p.amqp)))
	if err := os.WriteFile(session, text, 0o644); err != nil {
		return err
	}
	return replacePorts("*_spec.rb")(dir, p)
}

func runRSpec(ctx context.Context, dir string, t target, only []string) (results, error) {
	if len(only) == 0 {
		files, err := filesOf(dir, "*_spec.rb")
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			text, err := os.ReadFile(filepath.Join(dir, f))
			if err != nil {
				return nil, err
			}
			// Gems that Debian does not have, a certificate's authority of their own, hours.
			if !regexp.MustCompile(`RabbitMQ::HTTP|[tT]oxiproxy|BUNNY_CERTIFICATE_DIR`).Match(text) &&
				!strings.Contains(f, "/stress/") && !strings.Contains(f, "/issues/issue97_") {
				only = append(only, f)
			}
		}
	}
	out := filepath.Join(dir, "report.json")
	args := append([]string{"-O", "/dev/null", "-I", "lib", "-I", "spec", "-f", "json", "-o", out, "-f", "documentation"}, only...)
	printed, err := runLogged(child(ctx, dir, []string{"RABBITMQ_PORT=" + strconv.Itoa(t.port)}, "rspec", args...), t)
	if err != nil {
		return nil, err
	}
	text, err := report(out, printed)
	if err != nil {
		return nil, err
	}
	// Some descriptions have the port in them, which is another through the proxy.
	return parseRSpec([]byte(strings.ReplaceAll(string(text), strconv.Itoa(t.port), "PORT")))
}

func runNode(ctx context.Context, dir string, t target, only []string) (results, error) {
	if len(only) == 0 {
		// The others meet no broker.
		only = []string{"test/channel_api.test.js", "test/callback_api.test.js", "test/connect.test.js", "test/recovery.test.js"}
	}
	got := results{}
	// A file at a time: the report does not say in which one a test stands.
	for _, file := range only {
		xml := filepath.Join(dir, "report.xml")
		_ = os.Remove(xml)
		one := t
		one.log = strings.TrimSuffix(t.log, ".log") + "." + filepath.Base(file) + ".log"
		out, err := runLogged(child(ctx, dir, []string{fmt.Sprintf("URL=amqp://localhost:%d", t.port)},
			"node", "--test", "--test-timeout=20000", "--test-reporter=junit", "--test-reporter-destination="+xml, file), one)
		if err != nil {
			return nil, err
		}
		text, err := report(xml, out)
		if err != nil {
			return nil, err
		}
		part, err := parseJUnit(text, func(c junitCase) (string, string) {
			return strings.TrimSuffix(filepath.Base(file), ".test.js") + ": " + strings.Join(append(c.Suites, c.Name), ", "), file
		})
		if err != nil {
			return nil, err
		}
		for name, r := range part {
			got[name] = r
		}
	}
	return got, nil
}

// replacePorts puts the ports in use in the place of the usual ones in files whose name
// matches one of the patterns.
func replacePorts(patterns ...string) func(string, ports) error {
	usual := map[*regexp.Regexp]func(ports) int{
		regexp.MustCompile(`\b5672\b`):  func(p ports) int { return p.amqp },
		regexp.MustCompile(`\b15672\b`): func(p ports) int { return p.management },
	}
	return func(dir string, p ports) error {
		var files []string
		for _, pattern := range patterns {
			some, err := filesOf(dir, pattern)
			if err != nil {
				return err
			}
			files = append(files, some...)
		}
		for _, f := range files {
			path := filepath.Join(dir, f)
			old, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text := old
			for re, port := range usual {
				text = re.ReplaceAll(text, []byte(strconv.Itoa(port(p))))
			}
			if err := os.WriteFile(path, text, 0o644); err != nil {
				return err
			}
		}
		return nil
	}
}

// filesOf are the files below dir whose name matches, relative to dir.
func filesOf(dir, pattern string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if ok, err := filepath.Match(pattern, d.Name()); err != nil || !ok {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		files = append(files, rel)
		return err
	})
	return files, err
}

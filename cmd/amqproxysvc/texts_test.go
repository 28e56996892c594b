// The manual pages and the help are what the repository says they are.

package main

import (
	"bytes"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/amqproxysvc/amqproxysvc/service/config"
)

var update = flag.Bool("update", false, "write the golden files anew")

// output runs a command and gives its standard output.
func stdoutOf(t *testing.T, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	root := newRootCommand()
	root.SetOut(&out)
	root.SetErr(io.Discard)
	root.SetArgs(args)
	if err := root.Execute(); err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return out.String()
}

func TestManPages(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the pages name paths of Linux")
	}
	before := version
	version = "0.0.0"
	t.Cleanup(func() { version = before })
	dir := t.TempDir()
	stdoutOf(t, "man", "--dir", dir)
	for _, name := range []string{"amqproxysvc.8", "amqproxysvc.toml.5"} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what the program prints: look at it, then run go test ./cmd/amqproxysvc -run TestManPages -update", path)
		}
	}
	if page := stdoutOf(t, "man"); !strings.HasPrefix(page, ".") {
		t.Errorf("man prints %.40q, want roff", page)
	}
}

// Each command, flag, setting and variable is in the manual.
func TestManualIsWhole(t *testing.T) {
	root := newRootCommand()
	plain := func(roff []byte) string {
		return strings.NewReplacer(`\-`, "-", `\_`, "_", `\fB`, "", `\fP`, "", `\fR`, "", `\fI`, "", `\(bu`, "", `\&`, "").Replace(string(roff))
	}
	commands, settings := plain(commandPage(root)), plain(settingsPage())
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() && !strings.Contains(commands, "amqproxysvc "+c.Name()) {
			t.Errorf("amqproxysvc.8 lacks the command %s", c.Name())
		}
	}
	for i := range config.Table {
		d := &config.Table[i]
		if d.Flag != "" && !strings.Contains(commands, "--"+d.Flag) {
			t.Errorf("amqproxysvc.8 lacks the flag --%s", d.Flag)
		}
		if d.Env != "" && !strings.Contains(commands, d.Env) {
			t.Errorf("amqproxysvc.8 lacks the variable %s", d.Env)
		}
		if !strings.Contains(settings, "\n"+d.Key+"\n") {
			t.Errorf("amqproxysvc.toml.5 lacks %s", d.Key)
		}
	}
}

// AMQProxy's flags, letters and variables are all there.
func TestDropIn(t *testing.T) {
	flags := newRootCommand().Flags()
	for letter, name := range map[string]string{"l": "listen", "p": "port", "b": "http-port", "t": "idle-connection-timeout",
		"c": "config", "d": "debug", "h": "help", "v": "version", "1": "max-upstream-channels", "2": "term-timeout", "3": "term-client-close-timeout"} {
		f := flags.Lookup(name)
		if f == nil {
			t.Errorf("no flag --%s", name)
		} else if letter > "9" && f.Shorthand != letter {
			t.Errorf("--%s has the letter %q, want %q", name, f.Shorthand, letter)
		}
	}
	for _, name := range []string{"LISTEN_ADDRESS", "LISTEN_PORT", "HTTP_PORT", "LOG_LEVEL", "IDLE_CONNECTION_TIMEOUT",
		"MAX_UPSTREAM_CHANNELS", "TERM_TIMEOUT", "TERM_CLIENT_CLOSE_TIMEOUT", "AMQP_URL"} {
		found := false
		for i := range config.Table {
			found = found || config.Table[i].Env == name
		}
		if !found {
			t.Errorf("the variable %s is not read", name)
		}
	}
	if got := stdoutOf(t, "-v"); got != version+"\n" {
		t.Errorf("-v prints %q, want the version alone", got)
	}
	if got := stdoutOf(t, "version"); !strings.HasPrefix(got, "amqproxysvc "+version+" ") {
		t.Errorf("version prints %q", got)
	}
}

// No line of any help is wider than a window of 80 columns, and all of the text is there.
func TestHelpFits(t *testing.T) {
	for _, c := range allCommands(newRootCommand()) {
		args := append(strings.Fields(c.CommandPath())[1:], "--help")
		if args[0] == "help" {
			continue
		}
		help := stdoutOf(t, args...)
		for line := range strings.Lines(help) {
			if n := len([]rune(strings.TrimRight(line, "\n"))); n > helpWidth {
				t.Errorf("%v: a line of %d columns: %s", args, n, line)
			}
		}
		for _, text := range []string{c.Long, c.Short} {
			if text == "" {
				continue
			}
			if all := strings.Join(strings.Fields(help), " "); !strings.Contains(all, strings.Join(strings.Fields(text), " ")) {
				t.Errorf("%v: the help lacks %q, it is\n%s", args, text, help)
			}
			break
		}
	}
}

func TestHelpInANarrowWindow(t *testing.T) {
	fs := newRootCommand().LocalFlags()
	narrow := fitFlags(fs, 39)
	for line := range strings.Lines(narrow) {
		if n := len(strings.TrimRight(line, "\n")); n > 39 {
			t.Errorf("a line of %d columns: %s", n, line)
		}
	}
	words := func(text string) string { return strings.Join(strings.Fields(text), " ") }
	if words(narrow) != words(fitFlags(fs, helpWidth)) {
		t.Errorf("the narrow help says something else:\n%s", narrow)
	}
}

func TestHelpAndCompletion(t *testing.T) {
	help := stdoutOf(t, "--help")
	for _, want := range []string{"amqproxysvc [flags] [AMQP_URL...]", "-l, --listen ADDRESS", "-p, --port PORT", "(default 5673)", "check-config", "import-config"} {
		if !strings.Contains(help, want) {
			t.Errorf("help lacks %q", want)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "completion", shell) // cobra writes past the command's own output
		cmd.Env = append(os.Environ(), asProgram+"=1")
		if script, err := cmd.Output(); err != nil || !bytes.Contains(script, []byte("amqproxysvc")) {
			t.Errorf("completion %s prints %d bytes, %v", shell, len(script), err)
		}
	}
	if got := stdoutOf(t, "__complete", "--set", "log.l"); !strings.Contains(got, "log.level=") {
		t.Errorf("--set completes to %q", got)
	}
	for ending, args := range map[string][]string{"toml": {"__complete", "check-config", ""}, "ini": {"__complete", "import-config", ""}} {
		if got := stdoutOf(t, args...); !strings.HasPrefix(got, ending+"\n:8\n") { // 8: the files of that ending
			t.Errorf("%q completes to %q", args, got)
		}
	}
	if got := stdoutOf(t, "__complete", "amq"); !strings.Contains(got, "amqps://") {
		t.Errorf("the URL completes to %q", got)
	}
}

func TestCheckAndImport(t *testing.T) {
	dir := t.TempDir()
	sample := filepath.Join(dir, "sample.toml")
	writeFile(t, sample, stdoutOf(t, "sample-config"))
	for _, args := range [][]string{{"check-config", sample}, {"check-config", "-c", sample}} {
		if got, want := stdoutOf(t, args...), sample+": ok, upstream amqp://localhost:5672, listening on 127.0.0.1:5673\n"; got != want {
			t.Errorf("%q prints %q, want %q", args, got, want)
		}
	}
	short := filepath.Join(dir, "short.toml")
	writeFile(t, short, stdoutOf(t, "sample-config", "--short"))
	if got, want := stdoutOf(t, "check-config", short), short+": ok, upstream amqp://localhost:5672, listening on 127.0.0.1:5673\n"; got != want {
		t.Errorf("check-config prints %q, want %q", got, want)
	}
	ini := filepath.Join(dir, "amqproxy.ini")
	writeFile(t, ini, "[main]\nupstream = amqp://broker\n[listen]\nport = 5674\n")
	imported := filepath.Join(dir, "imported.toml")
	writeFile(t, imported, stdoutOf(t, "import-config", ini))
	if got, want := stdoutOf(t, "check-config", imported), imported+": ok, upstream amqp://broker:5672, listening on 127.0.0.1:5674\n"; got != want {
		t.Errorf("check-config prints %q, want %q", got, want)
	}
}

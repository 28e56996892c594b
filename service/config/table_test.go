// The table against the engine it describes, and the texts made from it.

package config

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with a file, and writes it with -update.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want = bytes.ReplaceAll(want, []byte("\r\n"), []byte("\n"))
	if got != string(want) {
		t.Errorf("%s is not what the table gives: look at it, then run go test ./service/config -update\ngot:\n%s", path, got)
	}
}

func TestGoldenTexts(t *testing.T) {
	sample, err := Sample(nil)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, filepath.Join("testdata", "sample.toml"), sample)
	golden(t, filepath.Join("testdata", "short.toml"), ShortSample())
	golden(t, "SETTINGS.md", Page())
}

func TestTableRowsAreWhole(t *testing.T) {
	seen := map[string]bool{}
	for i := range Table {
		d := &Table[i]
		if seen[d.Name()] {
			t.Errorf("%s stands twice in the table", d.Name())
		}
		seen[d.Name()] = true
		s := Defaults()
		if d.FileOnly() && (d.Env != "" || d.Flag != "") {
			t.Errorf("%s is for the file only and has a flag or a variable", d.Name())
		}
		if d.at == nil || d.at(&s, &s.Listeners[0]) == nil {
			t.Errorf("%s is kept nowhere", d.Name())
		}
		if len(d.Help) < 20 || !strings.HasSuffix(d.Help, ".") {
			t.Errorf("%s: help %q is no sentence", d.Name(), d.Help)
		}
		if (d.Kind == KindChoice) != (len(d.Values) > 0) {
			t.Errorf("%s: values %q do not suit its kind", d.Name(), d.Values)
		}
		switch d.Kind {
		case KindInt, KindSize, KindDuration:
			if d.Max <= d.Min {
				t.Errorf("%s: bounds %d to %d hold nothing", d.Name(), d.Min, d.Max)
			}
		}
	}
}

// Every default must be allowed, be read back from its own text, and stay the same.
func TestDefaultsRoundTrip(t *testing.T) {
	for i := range Table {
		d := &Table[i]
		if d.FileOnly() {
			continue // there is none
		}
		text := d.DefaultText()
		dir := t.TempDir()
		path := filepath.Join(dir, "x.toml")
		body := d.Key + " = " + text + "\n"
		if d.Section != "" {
			body = header(d.Section) + "\n" + body
		}
		if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		s, warnings, err := Load(Source{File: path})
		if err != nil || len(warnings) > 0 {
			t.Errorf("%s: default %s is not accepted: %v %v", d.Name(), text, err, warnings)
			continue
		}
		if got := d.TOML(&s, &s.Listeners[0]); got != text {
			t.Errorf("%s: default %s came back as %s", d.Name(), text, got)
		}
	}
}

func TestSampleIsTheDefaults(t *testing.T) {
	sample, err := Sample(nil)
	if err != nil {
		t.Fatal(err)
	}
	// As it is, and with every setting's comment sign removed.
	live := sample
	for section := range optional {
		if n := strings.Count(live, "\n# [["+section+"]]\n"); n != 1 {
			t.Errorf("the sample has %d commented [[%s]]", n, section)
		}
		live = strings.ReplaceAll(live, "\n# [["+section+"]]\n", "\n[["+section+"]]\n")
	}
	for i := range Table {
		live = strings.ReplaceAll(live, "\n# "+Table[i].Key+" = ", "\n"+Table[i].Key+" = ")
	}
	if n := strings.Count(live, "\n# "); strings.Count(sample, "\n# ")-n != len(Table)+len(optional) {
		t.Errorf("%d settings could be switched on, want %d", strings.Count(sample, "\n# ")-n, len(Table)+len(optional))
	}
	switchedOn := live
	// A broker is whole with a name and a URL, a route with a vhost and to be of use that broker, a user with a name, a hash and a file.
	for _, whole := range [][2]string{{"\nname = \"\"", "\nname = \"b\""}, {"\nurl = \"\"", "\nurl = \"amqp://b\""}, {"\nvhost = \"\"", "\nvhost = \"v\""}, {"\nbroker = \"\"", "\nbroker = \"b\""},
		{"\nname = \"\"", "\nname = \"u\""}, {"\npassword_hash = \"\"", "\npassword_hash = \"kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR\""},
		{"\nbroker_password_file = \"\"", "\nbroker_password_file = \"x\""}} {
		switchedOn = strings.Replace(switchedOn, whole[0], whole[1], 1)
	}
	for name, text := range map[string]string{"as it is": sample, "all switched on": switchedOn, "in short": ShortSample()} {
		path := filepath.Join(t.TempDir(), "s.toml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s, warnings, err := Load(Source{File: path})
		if err != nil || len(warnings) > 0 {
			t.Fatalf("sample %s: %v %v", name, err, warnings)
		}
		want := Defaults()
		for i := range Table {
			d := &Table[i]
			if got, want := d.TOML(&s, &s.Listeners[0]), d.TOML(&want, &want.Listeners[0]); got != want {
				t.Errorf("sample %s: %s is %s, want %s", name, d.Name(), got, want)
			}
		}
	}
}

func TestSampleWithValues(t *testing.T) {
	text, err := Sample(map[string]string{"upstream.url": "amqps://broker", "log.file": `C:\logs\a.log`, "max_clients": "7"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\nurl = \"amqps://broker:5671\"\n", "\nfile = 'C:\\logs\\a.log'\n", "\nmax_clients = 7\n", "\n# level = \"info\"\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("sample lacks %q", want)
		}
	}
	for name, value := range map[string]string{"upstream.url": "http://x", "nonsense": "1", "max_clients": "-1"} {
		if _, err := Sample(map[string]string{name: value}); err == nil {
			t.Errorf("Sample took %s = %s", name, value)
		}
	}
}

func TestDefaultsAreTheEngines(t *testing.T) {
	s := Defaults()
	got, err := s.ProxyConfig("dev", nil)
	if err != nil {
		t.Fatal(err)
	}
	want := proxy.DefaultConfig()
	if len(got.Listeners) != 1 || !reflect.DeepEqual(got.Listeners[0], want.Listeners[0]) {
		t.Errorf("listeners are %v, want %v", got.Listeners, want.Listeners)
	}
	if got.Upstream.Address() != want.Upstream.Address() || got.Upstream.TLS != nil {
		t.Errorf("upstream is %v, want %v", got.Upstream, want.Upstream)
	}
}

// The table's bounds are the engine's: what the table allows, the engine takes; one beyond
// is refused by both.
func TestBoundsAreTheEngines(t *testing.T) {
	for i := range Table {
		d := &Table[i]
		ours := d.Section == "log" || d.Section == "http" || d.Key == "term_timeout" || d.Key == "drain_delay" || d.Key == "upgrade_drain" // not the engine's
		if d.Kind != KindInt && d.Kind != KindSize && d.Kind != KindDuration && d.Kind != KindByteRate || ours {
			continue
		}
		set := func(n int64) error {
			s := Defaults()
			s.Engine.MessageBuffer = 1 << 42 // so that max_message_size may be anything
			if d.Key == "message_buffer" {
				s.Engine.MaxMessageSize = 1
			}
			l := &s.Listeners[0]
			switch p := d.at(&s, l).(type) {
			case *int:
				*p = int(n)
			case *int64:
				*p = n
			case *time.Duration:
				*p = time.Duration(n)
			}
			if d.Section == "limit" {
				s.Limits = []Limit{s.limit}
			}
			_, err := s.ProxyConfig("dev", nil)
			return err
		}
		step := int64(1)
		if d.Kind == KindDuration {
			step = int64(time.Millisecond)
		}
		if d.Kind == KindByteRate && set(0) != nil {
			t.Errorf("%s: the engine does not allow 0, for none", d.Name())
		}
		for _, n := range []int64{d.Min, d.Max} {
			if err := set(n); err != nil {
				t.Errorf("%s: the table allows %s, the engine does not: %v", d.Name(), d.number(n), err)
			}
		}
		for _, n := range []int64{d.Min - step, d.Max + step} {
			if d.Special != nil && n == d.Special.Value {
				continue
			}
			if set(n) == nil {
				t.Errorf("%s: the engine allows %d, the table does not", d.Name(), n)
			}
		}
		if d.Special != nil {
			if err := set(d.Special.Value); err != nil {
				t.Errorf("%s: the table allows %d, the engine does not: %v", d.Name(), d.Special.Value, err)
			}
		}
	}
}

// Every setting refuses what lies beyond its bounds, in the file, in the environment and on
// the command line, with a line that says what, where and what is allowed.
func TestEverySettingRefuses(t *testing.T) {
	for i := range Table {
		d := &Table[i]
		var bad []string // as text
		var badTOML []string
		switch d.Kind {
		case KindInt, KindSize:
			bad = []string{"x", "", "1.5", "99999999999999999999"}
			badTOML = []string{"true", "1.5", "[1]"}
		case KindDuration:
			bad = []string{"x", "5 parsecs", "99999999999999999999", "-5s"}
			badTOML = []string{"true", "1.5", "1979-05-27", "-5"}
		case KindBool:
			bad = []string{"perhaps", "2"}
			badTOML = []string{"1", `"true"`}
		case KindChoice:
			bad = []string{"nonsense", ""}
			badTOML = []string{"1", "true"}
		case KindHost:
			bad = []string{"", "a b", "[::1", "1:2", "host:80", "-x", "a/b"}
			badTOML = []string{"1", "{a = 1}"}
		case KindURL:
			bad = []string{"", "broker", "http://broker", "amqp://", "amqp://a:0", "amqp://a:65536", "amqp://a:b", "amqp://a b"}
			badTOML = []string{"5672"}
		case KindNetworks:
			bad = []string{"x", "10.0.0.0/33", "a.example", "10.0.0.1, ::1/129", "fe80::1%eth0", "::ffff:10.0.0.0/104"}
			badTOML = []string{"1", `["10.0.0.0/8", "x"]`, "{a = 1}"}
		case KindRate:
			badTOML = []string{"5", "true", `"200"`, `"0/s"`, `"1000001/s"`, `"-1/s"`, `"1.5/s"`, `"5/d"`, `"/s"`, "[1]"}
		case KindByteRate:
			badTOML = []string{"100000", "true", `"20MiB"`, `"1KiB/s"`, `"20MiB/m"`, `"2TiB/s"`, `"x/s"`, `""`}
		case KindPaths, KindNames:
			bad = []string{"a\x00b"}
			badTOML = []string{"1", "false", "[1]", `["a", ""]`}
		case KindPath, KindSecret, KindText:
			bad = []string{"a\x00b"}
			badTOML = []string{"1", "false"}
		}
		switch d.Kind {
		case KindInt, KindSize, KindDuration:
			for _, n := range []int64{d.Min - 1, d.Max + 1} {
				if d.Special != nil && n == d.Special.Value {
					n--
				}
				text := d.number(n)
				if d.Kind == KindDuration {
					text = time.Duration(n).String()
				}
				bad = append(bad, text)
			}
		}
		for _, text := range bad {
			if text == "" && d.Env != "" || d.FileOnly() {
				continue // an empty variable is one that is not set
			}
			o := Override{Setting: d, Value: text, Origin: "--set " + d.Name()}
			_, _, err := Load(Source{CommandLine: []Override{o}})
			refused(t, d, "command line "+text, err, "--set "+d.Name()+": "+d.Name()+" ", d.allowedShort())
			if wrong, ok := err.(*Error); ok && !wrong.CommandLine {
				t.Errorf("%s: an error of the command line is not marked as one", d.Name())
			}
			if d.Env != "" {
				env := func(name string) (string, bool) { return text, name == d.Env }
				_, _, err := Load(Source{Env: env})
				refused(t, d, "environment "+text, err, "environment variable "+d.Env+": "+d.Name()+" ", d.allowedShort())
			}
		}
		for _, value := range badTOML {
			path := filepath.Join(t.TempDir(), "x.toml")
			body, line := d.Key+" = "+value+"\n", ":1: "
			if d.Section != "" {
				body, line = "# a comment\n"+header(d.Section)+"\n"+body, ":3: "
			}
			if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
				t.Fatal(err)
			}
			_, _, err := Load(Source{File: path})
			refused(t, d, "file "+value, err, path+line+d.Name()+" ", d.allowedShort())
		}
	}
}

// allowedShort is the part of Allowed that every error must hold.
func (d *Setting) allowedShort() string {
	if d.Kind == KindURL {
		return "allowed is "
	}
	return "allowed is " + d.Allowed()
}

func refused(t *testing.T, d *Setting, what string, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: %s was accepted", d.Name(), what)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %s: error %q lacks %q", d.Name(), what, err, part)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: %s: error %q is not one line", d.Name(), what, err)
	}
}

func TestNearest(t *testing.T) {
	for wrote, want := range map[string]string{
		"pool.idle_timout":        "pool.idle_timeout",
		"idle_timeout":            "pool.idle_timeout",
		"client.idle_timeout":     "pool.idle_timeout",
		"idle_connection_timeout": "pool.idle_timeout",
		"IDLE_CONNECTION_TIMEOUT": "pool.idle_timeout",
		"max_upstream_channels":   "pool.max_channels",
		"listen.bind":             "listener.address",
		"main.upstream":           "upstream.url",
		"http.prot":               "http.port",
		"listener.mode":           "listener.pool_mode",
		"quux":                    "",
		"":                        "",
	} {
		if got := Nearest(wrote); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", wrote, got, want)
		}
	}
}

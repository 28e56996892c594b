package service

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestProvideConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.toml")
	var said strings.Builder
	wrong := errors.New("wrong")
	var check error
	o := InstallOptions{Config: path, Out: &said,
		NewConfig:   func(logFile string) ([]byte, error) { return []byte("file = " + logFile), nil },
		CheckConfig: func(string) error { return check }}

	check = wrong
	if _, err := o.provideConfig("x.log"); !errors.Is(err, wrong) || !errors.Is(err, ErrConfig) {
		t.Errorf("a new file that is wrong: got %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("it was left")
	}
	check = nil
	if written, err := o.provideConfig("x.log"); err != nil || !written {
		t.Errorf("a new file: got %v, %v", written, err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "file = x.log" {
		t.Errorf("it holds %q, %v", b, err)
	}
	if written, err := o.provideConfig("other.log"); err != nil || written {
		t.Errorf("a file that is there: got %v, %v", written, err)
	}
	if b, _ := os.ReadFile(path); string(b) != "file = x.log" {
		t.Errorf("it was changed to %q", b)
	}
	check = wrong
	if _, err := o.provideConfig(""); !errors.Is(err, wrong) {
		t.Errorf("a file that is there and wrong: got %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error("a file of the user's was removed")
	}
}

func TestUndoTakesBackTheLastFirst(t *testing.T) {
	var order []int
	failing := errors.New("busy")
	var u undo
	u.add(func() error { order = append(order, 1); return failing })
	u.add(func() error { order = append(order, 2); return os.ErrNotExist })
	var err error
	u.roll(&err)
	if order != nil {
		t.Fatal("taken back without an error")
	}
	cause := errors.New("cause")
	err = cause
	u.roll(&err)
	if !slices.Equal(order, []int{2, 1}) || !errors.Is(err, cause) || !errors.Is(err, failing) || errors.Is(err, os.ErrNotExist) {
		t.Errorf("order %v, error %v", order, err)
	}
}

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{"amqproxysvc": true, "amqproxysvc-eu": true, "a.b_c": true, "": false, "-x": false, "a b": false,
		"a/b": false, `a\b`: false, "a%i": false, "a@b": false, strings.Repeat("x", 81): false} {
		if err := checkName(name); (err == nil) != ok || !ok && ExitCode(err) != ExitUsage {
			t.Errorf("%q: got %v", name, err)
		}
	}
}

func TestOtherProgramsServicesAreLeftAlone(t *testing.T) {
	settings := scmSettingsFor("a", `C:\a b.exe`, `C:\a.toml`, `NT AUTHORITY\LocalService`, 0)
	for _, runs := range []string{UnitText, TemplateUnitText, settings.ImagePath} {
		if err := needOurs("a", runs); err != nil {
			t.Errorf("%.60q: %v", runs, err)
		}
	}
	for _, runs := range []string{"", "[Service]\nExecStart=/usr/sbin/nginx\n", `C:\Windows\System32\spoolsv.exe`} {
		if err := needOurs("nginx", runs); err == nil || !strings.Contains(err.Error(), "nginx is another program's") {
			t.Errorf("%q: %v", runs, err)
		}
	}
}

// Without Purge the configuration stays, and is said to.
func TestPurgeConfig(t *testing.T) {
	var out strings.Builder
	o := UninstallOptions{Config: filepath.Join(t.TempDir(), "a.toml"), Out: &out}
	if err := o.purgeConfig(); err != nil || out.String() != "" {
		t.Errorf("of no file: %v, %q", err, out.String())
	}
	if err := os.WriteFile(o.Config, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := o.purgeConfig(); err != nil || !strings.Contains(out.String(), "kept: "+o.Config) {
		t.Errorf("%v, %q", err, out.String())
	}
	o.Purge = true
	for range 2 { // one that is gone is no error
		if err := o.purgeConfig(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(o.Config); err == nil {
		t.Error("the configuration is left")
	}
}

func TestExitCodes(t *testing.T) {
	for want, err := range map[int]error{
		0:  nil,
		1:  errors.New("x"),
		78: ConfigError(errors.New("x")),
		5:  &ExitError{Code: 5, Err: ErrNotInstalled},
	} {
		if got := ExitCode(err); got != want {
			t.Errorf("%v: got %d, want %d", err, got, want)
		}
	}
	cause := errors.New("a.toml:3")
	if err := ConfigError(cause); err.Error() != "a.toml:3" || !errors.Is(err, cause) {
		t.Errorf("got %q", err)
	}
}

func TestStateFileIsReplacedWhole(t *testing.T) {
	f := &stateFile{path: stateFileIn(t.TempDir())}
	for n := range 3 {
		if !f.write(State{Name: "x", Clients: n, Since: time.Unix(1, 0)}) {
			t.Fatal("not written")
		}
		if st, err := ReadState(f.path); err != nil || st.Clients != n {
			t.Errorf("got %+v, %v", st, err)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(f.path))
	if err != nil || len(entries) != 1 {
		t.Errorf("left beside it: %v, %v", entries, err)
	}
	f.remove()
	if f.write(State{}); f.failed {
		t.Error("it cannot be written again")
	}
	gone := &stateFile{path: filepath.Join(t.TempDir(), "no", "status.json")}
	if gone.write(State{}) {
		t.Error("a write into a directory that is not there is called a success")
	}
	gone.remove() // and does no harm
}

// Where lines go, how they look, what is kept back, what is taken out.

package logging

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/service/config"
)

// open makes a log and closes it at the test's end.
func open(t *testing.T, o Options) *Log {
	t.Helper()
	if o.Settings == (config.Log{}) {
		o.Settings = config.Defaults().Log
	}
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestStyles(t *testing.T) {
	for name, c := range map[string]struct {
		style Style
		want  string
	}{
		"terminal": {StyleTerminal, "WARN broker lost upstream=h:1 user=\"a b\"\n"},
		"journal":  {StyleJournal, "<4>broker lost upstream=h:1 user=\"a b\" event_id=7\n"},
		"plain":    {StylePlain, "level=WARN msg=\"broker lost\" upstream=h:1 user=\"a b\" event_id=7\n"},
	} {
		var out bytes.Buffer
		l := open(t, Options{Output: &out, Style: c.style})
		l.Logger().With("upstream", "h:1").Warn("broker lost", "user", "a b", "event_id", 7)
		if got := out.String(); !strings.HasSuffix(got, c.want) || strings.Count(got, "\n") != 1 {
			t.Errorf("%s: got %q, want it to end in %q", name, got, c.want)
		}
	}
}

func TestJournalPriorities(t *testing.T) {
	var out bytes.Buffer
	s := config.Defaults().Log
	s.Level = slog.LevelDebug
	l := open(t, Options{Output: &out, Style: StyleJournal, Settings: s}).Logger()
	l.Debug("d")
	l.Info("i")
	l.Warn("w")
	l.Error("e", "err", errors.New("x"))
	if got, want := out.String(), "<7>d\n<6>i\n<4>w\n<3>e err=x\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// What a peer sends must not make a line of its own.
func TestNoForgedLines(t *testing.T) {
	var out bytes.Buffer
	l := open(t, Options{Output: &out, Style: StyleJournal}).Logger()
	l.Info("one\n<0>two", "user", "three\n<0>four")
	if got, want := out.String(), "<6>one\\n<0>two user=\"three\\n<0>four\"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSecretsAreTakenOut(t *testing.T) {
	const secret = "s3cr3t"
	for _, style := range []Style{StylePlain, StyleTerminal, StyleJournal} {
		var out bytes.Buffer
		file := filepath.Join(t.TempDir(), "a.log")
		s := config.Defaults().Log
		s.File, s.Format = file, "json"
		l := open(t, Options{Output: &out, Style: style, Settings: s})
		log := l.Logger()
		log.With("password", secret).Info("dialled amqp://u:"+secret+"@h/", "url", "amqps://u:"+secret+"@h/v",
			"error", fmt.Errorf("dial amqp://u:%s@h", secret), slog.Group("g", "Token", secret))
		got := out.String() + read(t, file)
		if strings.Contains(got, secret) {
			t.Errorf("style %d: the secret is told: %s", style, got)
		}
		if strings.Count(got, "[redacted]") != 10 {
			t.Errorf("style %d: want 5 values taken out of each line: %s", style, got)
		}
	}
}

func TestFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "logs", "a.log")
	s := config.Defaults().Log
	l := open(t, Options{Settings: s})
	l.Logger().Info("before")
	s.File = file
	if err := l.Apply(s); err != nil {
		t.Fatal(err)
	}
	l.Logger().Info("as text", "k", "v")
	s.Format = "json"
	if err := l.Apply(s); err != nil {
		t.Fatal(err)
	}
	with := l.Logger().With("k", "v")
	with.Info("as json")
	with.Debug("too fine")
	s.Level = slog.LevelDebug
	if err := l.Apply(s); err != nil {
		t.Fatal(err)
	}
	with.Debug("fine now")
	lines := strings.Split(strings.TrimSpace(read(t, file)), "\n")
	if len(lines) != 3 || !strings.HasSuffix(lines[0], `level=INFO msg="as text" k=v`) {
		t.Fatalf("got %q, want 3 lines, the first as text", lines)
	}
	for i, want := range []string{"as json", "fine now"} {
		var record map[string]any
		if err := json.Unmarshal([]byte(lines[i+1]), &record); err != nil || record["msg"] != want || record["k"] != "v" {
			t.Errorf("got %q, %v, want JSON with msg %q and k", lines[i+1], err, want)
		}
	}
	s.File = ""
	if err := l.Apply(s); err != nil {
		t.Fatal(err)
	}
	with.Info("nowhere")
	if got := read(t, file); strings.Contains(got, "nowhere") {
		t.Errorf("a file that is no longer set was written: %s", got)
	}
}

func TestFileIsReopened(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.log")
	s := config.Defaults().Log
	s.File = file
	l := open(t, Options{Settings: s})
	l.Logger().Info("one")
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	l.Logger().Info("two")
	if got := read(t, file); strings.Count(got, "\n") != 2 {
		t.Errorf("got %q, want both lines: reopening appends", got)
	}
	moved := file + ".1"
	_ = l.file.open.Close() // Windows moves no open file
	if err := os.Rename(file, moved); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	l.Logger().Info("three")
	if old, now := read(t, moved), read(t, file); strings.Contains(old, "three") || !strings.Contains(now, "three") {
		t.Errorf("moved file holds %q, new one %q: want three in the new one", old, now)
	}
}

// Applying the settings anew, as a reload does, takes up a file that was moved away.
func TestApplyReopensTheFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.log")
	s := config.Defaults().Log
	s.File = file
	l := open(t, Options{Settings: s})
	l.Logger().Info("one")
	_ = l.file.open.Close() // Windows moves no open file
	if err := os.Rename(file, file+".1"); err != nil {
		t.Fatal(err)
	}
	if err := l.Apply(s); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("the file was not opened anew: %v", err)
	}
	_ = l.file.open.Close()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(file, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := l.Apply(s); err == nil || !strings.Contains(err.Error(), "log.file: "+file) {
		t.Errorf("of a file that cannot be opened anew: got %v", err)
	}
}

func TestFileIsRotated(t *testing.T) {
	dir := t.TempDir()
	s := config.Defaults().Log
	s.File, s.MaxSize, s.MaxBackups, s.Compress = filepath.Join(dir, "a.log"), 1<<20, 2, false
	l := open(t, Options{Settings: s})
	s.Level = slog.LevelDebug // debug lines are not rate-limited
	if err := l.Apply(s); err != nil {
		t.Fatal(err)
	}
	for range 600 {
		l.Logger().Debug(strings.Repeat("x", 2000))
	}
	files, err := filepath.Glob(filepath.Join(dir, "a*.log"))
	if err != nil || len(files) != 2 {
		t.Errorf("got %q, %v, want the file and one put aside", files, err)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Size() > 1<<20 {
			t.Errorf("%s: %v, %v, want at most 1 MiB", f, info.Size(), err)
		}
	}
}

// Before and after an upgrade two processes write to one file. One of them rotates it; no line of either
// is lost, written over, or told twice.
func TestTwoProcessesWriteToOneFile(t *testing.T) {
	dir := t.TempDir()
	s := config.Defaults().Log
	s.Level = slog.LevelDebug // debug lines are not rate-limited
	s.File, s.MaxSize, s.MaxBackups, s.Compress = filepath.Join(dir, "a.log"), 1<<20, 0, false
	old := open(t, Options{Settings: s})
	written := 0
	line := func(l *Log) {
		l.Logger().Debug(strings.Repeat("x", 2000), "n", written)
		written++
	}
	for range 600 { // it has rotated once
		line(old)
	}
	next := open(t, Options{Settings: s})
	line(old)
	old.Follow()
	if err := next.Reopen(); err != nil {
		t.Fatal(err)
	}
	for i := range 1500 {
		line([]*Log{old, next}[i%2])
	}
	for _, last := range []int{written - 2, written - 1} {
		if !strings.Contains(read(t, s.File), fmt.Sprintf(" n=%d\n", last)) {
			t.Errorf("line %d is not in the file, but in one put aside", last)
		}
	}
	if err := old.Reopen(); err != nil { // as on SIGUSR1
		t.Fatal(err)
	}
	line(old)
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) < 3 {
		t.Errorf("got %q, %v, want the file and two or more put aside", files, err)
	}
	var all strings.Builder
	for _, f := range files {
		all.WriteString(read(t, f))
	}
	for n := range written {
		if got := strings.Count(all.String(), fmt.Sprintf(" n=%d\n", n)); got != 1 {
			t.Fatalf("line %d of %d is there %d times", n, written, got)
		}
	}
	// The one that rotates counts what it writes itself.
	if got := strings.Count(read(t, s.File), "\n"); got == 0 || got > 2<<20/2000 {
		t.Errorf("the file has %d lines", got)
	}
}

func TestFileErrors(t *testing.T) {
	dir := t.TempDir()
	block := filepath.Join(dir, "file")
	if err := os.WriteFile(block, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	good := filepath.Join(dir, "good.log")
	for _, bad := range []string{dir, filepath.Join(block, "a.log")} {
		s := config.Defaults().Log
		s.File = bad
		if _, err := New(Options{Settings: s}); err == nil || !strings.Contains(err.Error(), "log.file: "+bad) {
			t.Errorf("New with file %s: got %v, want an error that names log.file", bad, err)
		}
		s.File = good
		l := open(t, Options{Settings: s})
		s.File, s.Level = bad, slog.LevelDebug
		if err := l.Apply(s); err == nil {
			t.Errorf("Apply with file %s: no error", bad)
		}
		l.Logger().Debug("must not appear")
		l.Logger().Info("still here " + filepath.Base(bad))
		if got := read(t, good); !strings.Contains(got, "still here "+filepath.Base(bad)) || strings.Contains(got, "must not") {
			t.Errorf("after a failed Apply the old settings are not in force: %q", got)
		}
	}
}

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }
func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func TestRateLimit(t *testing.T) {
	var out bytes.Buffer
	c := &clock{now: time.Unix(1000, 0)}
	l := open(t, Options{Output: &out, Style: StyleJournal, Now: c.Now})
	log := l.Logger()
	lines := func() int { n := strings.Count(out.String(), "\n"); return n }

	for i := range 100 {
		log.With("i", i).Warn("broker unreachable")
	}
	if got := lines(); got != limitLines {
		t.Fatalf("%d lines passed, want %d", got, limitLines)
	}
	log.Error("broker unreachable") // another level, another line
	log.Warn("other")
	if got := lines(); got != limitLines+2 {
		t.Fatalf("%d lines passed, want %d: other lines are not held back", got, limitLines+2)
	}
	out.Reset()
	c.add(limitWindow + time.Second)
	log.Warn("broker unreachable")
	if got := out.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got, `<4>log lines suppressed line="broker unreachable" suppressed=90 within=11s`) {
		t.Fatalf("got %q, want the count of suppressed lines and the new line", got)
	}
	out.Reset()
	for range limitLines + 5 {
		log.Warn("broker unreachable")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !strings.Contains(got, "suppressed=") {
		t.Errorf("got %q, want what was suppressed to be told at the end", got)
	}
}

// One client's errors do not hide another's: after the first lines, each cause has its own.
func TestRateLimitByCause(t *testing.T) {
	var out bytes.Buffer
	c := &clock{now: time.Unix(1000, 0)}
	l := open(t, Options{Output: &out, Style: StyleJournal, Now: c.Now})
	refused := func(user, address string) {
		l.Logger().With("vhost", "/").Info("client refused", "user", user, "code", 403, "address", address)
	}
	for i := range 60 {
		refused("noisy", fmt.Sprint("10.0.0.1:", 40000+i))
	}
	for range 3 {
		refused("other", "10.0.0.2:1")
	}
	refused("noisy", "10.0.0.3:1")
	if got := out.String(); strings.Count(got, "\n") != limitLines+2 || strings.Count(got, "user=other") != 1 || strings.Count(got, "10.0.0.3") != 1 {
		t.Fatalf("want %d lines of one cause and one of each other:\n%s", limitLines, got)
	}
	out.Reset()
	c.add(limitWindow + time.Second)
	refused("noisy", "10.0.0.1:1")
	if got, want := out.String(), `line="client refused" suppressed=52 within=11s most_from="user=noisy vhost=/ code=403 address=10.0.0.1" of_these=50`; !strings.Contains(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
	// A stranger who makes up users has the causes of one address.
	out.Reset()
	c.add(limitWindow + time.Second)
	for i := range 1000 {
		refused(fmt.Sprint("u", i), "10.9.9.9:1")
	}
	refused("victim", "10.0.0.2:1")
	if got := out.String(); strings.Count(got, "10.9.9.9") != limitPerAddress || !strings.Contains(got, "victim") {
		t.Errorf("%d lines of the stranger, want %d, and the other's:\n%s", strings.Count(got, "10.9.9.9"), limitPerAddress, got)
	}
	for i := range 10000 {
		refused("u", fmt.Sprintf("10.%d.%d.1:1", i/200, i%200))
	}
	if n := len(l.limit.entries); n > 3 {
		t.Errorf("%d entries", n)
	}
	for _, e := range l.limit.entries {
		if len(e.causes) > limitCauses || len(e.addresses) > limitCauses {
			t.Errorf("%d causes and %d addresses are kept", len(e.causes), len(e.addresses))
		}
	}
}

// Names that a peer chose are cut, and cannot turn a line around, in every format.
func TestLongAndInvisibleValues(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.log")
	s := config.Defaults().Log
	s.File, s.Format = file, "json"
	var out, extra bytes.Buffer
	l := open(t, Options{Output: &out, Style: StyleJournal, Settings: s, Extra: []slog.Handler{slog.NewJSONHandler(&extra, nil)}})
	l.Logger().With("name", strings.Repeat("é", 2000)).Info("x\u202ey", "user", "evil\u202e\x7f\u0085name", "took", 1500*time.Millisecond,
		slog.Group("g", "token", "s3cr3t", "text", "a\nb"))
	for place, got := range map[string]string{"journal": out.String(), "file": read(t, file), "extra": extra.String()} {
		if len(got) > 900 || strings.ContainsAny(got, "\u202e\x7f\u0085") || strings.Count(got, "\n") != 1 || !strings.Contains(got, "...") || strings.Contains(got, "s3cr3t") {
			t.Errorf("%s: %d octets: %q", place, len(got), got)
		}
	}
	if got := read(t, file); !strings.Contains(got, `"took_seconds":1.5`) || !strings.Contains(got, `evil\\u202e\\x7f\\u0085name`) {
		t.Errorf("the file holds %s", got)
	}
}

func TestALinkIsNoLogFile(t *testing.T) {
	dir := t.TempDir()
	link, target := filepath.Join(dir, "a.log"), filepath.Join(dir, "other")
	if err := os.WriteFile(target, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		t.Skip("no symbolic links here: ", err)
	}
	s := config.Defaults().Log
	s.File = link
	if _, err := New(Options{Settings: s}); err == nil || !strings.Contains(err.Error(), "symbolic link") {
		t.Errorf("got %v, want it refused", err)
	}
	if got := read(t, target); got != "kept" {
		t.Errorf("the link's target holds %q", got)
	}
}

func TestRateLimitSparesDebug(t *testing.T) {
	var out bytes.Buffer
	s := config.Defaults().Log
	s.Level = slog.LevelDebug
	l := open(t, Options{Output: &out, Style: StyleJournal, Settings: s})
	for range 50 {
		l.Logger().Debug("frame")
	}
	if got := strings.Count(out.String(), "\n"); got != 50 {
		t.Errorf("%d lines, want 50", got)
	}
}

func TestHideAndExtra(t *testing.T) {
	var out, extra bytes.Buffer
	file := filepath.Join(t.TempDir(), "a.log")
	s := config.Defaults().Log
	s.File = file
	l := open(t, Options{Settings: s, Output: &out, Style: StyleJournal,
		Hide:  func(r slog.Record) bool { return r.Message == "hidden" },
		Extra: []slog.Handler{slog.NewTextHandler(&extra, nil)}})
	l.Logger().With("a", 1).Info("hidden")
	l.Logger().WithGroup("g").Info("shown", "b", 2)
	if got, want := out.String(), "<6>shown g.b=2\n"; got != want {
		t.Errorf("output is %q, want %q", got, want)
	}
	for name, got := range map[string]string{"file": read(t, file), "extra": extra.String()} {
		if !strings.Contains(got, "hidden") || !strings.Contains(got, "g.b=2") {
			t.Errorf("%s is %q, want both records", name, got)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	s := config.Defaults().Log
	s.File = filepath.Join(t.TempDir(), "a.log")
	l := open(t, Options{Settings: s})
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for j := range 100 {
				switch {
				case j%25 == 0 && i == 0:
					if err := l.Reopen(); err != nil {
						t.Error(err)
					}
				case j%25 == 0 && i == 1:
					next := s
					next.MaxBackups = j
					if err := l.Apply(next); err != nil {
						t.Error(err)
					}
				default:
					l.Logger().Info(fmt.Sprint(i, " ", j))
				}
			}
		})
	}
	all.Wait()
	if got := strings.Count(read(t, s.File), "\n"); got != 392 {
		t.Errorf("%d lines, want 392", got)
	}
}

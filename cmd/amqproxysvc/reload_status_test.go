package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/amqproxysvc/amqproxysvc/service"
	"github.com/amqproxysvc/amqproxysvc/service/config"
	"github.com/amqproxysvc/amqproxysvc/service/logging"
)

// serveReloadable runs the proxy, with a fake server in it, as it runs in the foreground.
func serveReloadable(t *testing.T, settings string) (socket, file string, fake *fakeServer) {
	t.Helper()
	useFake(t, func(f *fakeServer) { fake = f })
	socket = adminSocket(t)
	file = filepath.Join(t.TempDir(), "a.toml")
	writeFile(t, file, settings)
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	o := runOptions{Name: "shop", Log: logging.Options{Output: &bytes.Buffer{}}, Ready: func(*engine) { close(ready) }}
	src := config.Source{File: file, CommandLine: []config.Override{{Setting: config.Find("admin.socket"), Value: socket, Origin: "--set admin.socket"}}}
	go func() { ended <- runProxy(ctx, src, o) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return socket, file, fake
}

// reload and status are answered by the process itself, whoever started it.
func TestReloadAndStatusOverTheAdminChannel(t *testing.T) {
	socket, file, fake := serveReloadable(t, ports)
	ask := func(want int, args ...string) string {
		t.Helper()
		code, out, errs := tells(t, append(args, "--socket", socket)...)
		if code != want {
			t.Errorf("%q: exit code %d, want %d: %s%s", args, code, want, out, errs)
		}
		return out + errs
	}
	if got := ask(0, "reload"); got != "" {
		t.Errorf("of a reload that changes nothing: %q", got)
	}
	writeFile(t, file, "[client]\nmax_clients = 7\n"+ports+"pprof = true\n")
	if got, want := ask(0, "reload"), "client.max_clients was changed, and holds from now on\nhttp.pprof was changed, but takes effect only after a restart\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := ask(0, "status"); !strings.HasPrefix(got, "shop: running, pid "+strconv.Itoa(os.Getpid())+", since ") ||
		!strings.Contains(got, "a restart is needed for: http.pprof") || strings.Contains(got, "at boot") {
		t.Errorf("status tells\n%s", got)
	}
	writeFile(t, file, "nonsense = 1\n")
	if got := ask(1, "reload"); !strings.Contains(got, "reload failed, the settings from before stay in force") || !strings.Contains(got, "nonsense") {
		t.Errorf("of nonsense: %s", got)
	}
	writeFile(t, file, ports)
	if got := ask(1, "reload", "--pid", "1"); !strings.Contains(got, "not 1") {
		t.Errorf("of another process: %s", got)
	}
	if got := ask(0, "reload", "--pid", strconv.Itoa(os.Getpid())); !strings.Contains(got, "max_clients was changed") {
		t.Errorf("of this process: %s", got)
	}
	if len(fake.reloaded) != 3 {
		t.Errorf("reloaded %d times, want 3", len(fake.reloaded))
	}
	var r service.Report
	if err := json.Unmarshal([]byte(ask(0, "status", "--json")), &r); err != nil || r.Manager != "none" || r.State != service.StateRunning ||
		r.Service == nil || r.Service.Reload == nil || r.Service.Reload.Count != 4 || len(r.Service.Reload.Changed) != 2 {
		t.Errorf("status --json: %+v, %v", r, err)
	}
	// What is not used is told to who reloads, and by ExecReload, whose output the log is, not once more.
	writeFile(t, file, "[upstream]\nurl = \"amqp://someone@broker\"\n"+ports)
	for _, by := range [][]string{{}, {"--pid", strconv.Itoa(os.Getpid())}} {
		var errs bytes.Buffer
		root := newRootCommand()
		root.SetOut(io.Discard)
		root.SetErr(&errs)
		root.SetArgs(append([]string{"reload", "--socket", socket}, by...))
		if err := root.Execute(); err != nil || strings.Contains(errs.String(), "warning: "+file+":2: upstream.url: user") != (len(by) == 0) {
			t.Errorf("reload %q of a user in the URL: %v, %q", by, err, errs.String())
		}
	}
}

// Who is asked and is not there, or is another version's, is told apart from who has answered.
func TestReloadWithoutAnAdminChannel(t *testing.T) {
	nowhere := adminSocket(t)
	for _, args := range [][]string{{"reload"}, {"status"}, {"status", "--json"}} {
		if code, out, errs := tells(t, append(args, "--socket", nowhere)...); code != 3 || out != "" || errs == "" {
			t.Errorf("%q at no socket: exit code %d, %s%s", args, code, out, errs)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		ctx  context.Context
		err  error
		want bool
	}{
		{t.Context(), &refusal{404, `"reload" is not known`}, true},
		{t.Context(), &refusal{403, "reload is for root"}, true},
		{t.Context(), &refusal{400, "reload failed"}, false},
		{t.Context(), notReached("x", os.ErrNotExist), true},
		{gone, errors.New("not done yet"), false},
	} {
		if got := otherWay(c.ctx, c.err); got != c.want {
			t.Errorf("%v: %v", c.err, got)
		}
	}
	if runtime.GOOS == "linux" {
		t.Setenv("RUNTIME_DIRECTORY", filepath.Dir(nowhere)) // as in ExecReload, where the admin channel is off
		if code, _, errs := tells(t, "reload", "--pid", "1"); code != 1 || !strings.Contains(errs, "nothing was sent") {
			t.Errorf("of a stranger's process: %d, %s", code, errs)
		}
	}
}

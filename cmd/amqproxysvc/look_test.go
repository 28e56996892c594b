package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/url"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/admin"
	"github.com/amqproxysvc/amqproxysvc/proxy/advice"
	"github.com/amqproxysvc/amqproxysvc/service/config"
	"github.com/amqproxysvc/amqproxysvc/service/logging"
	"github.com/amqproxysvc/amqproxysvc/service/terminal"
)

// adminSocket is a place for a test's admin channel.
func adminSocket(t *testing.T) string {
	t.Helper()
	if runtime.GOOS == "windows" {
		return `\\.\pipe\amqproxysvc-test-` + filepath.Base(t.TempDir())
	}
	return filepath.Join(t.TempDir(), "s.sock")
}

// withAdmin runs an engine with an admin channel, before a fake server.
func withAdmin(t *testing.T, prepare func(*fakeServer)) (socket string, e *engine) {
	t.Helper()
	useFake(t, prepare)
	socket = adminSocket(t)
	src := config.Source{CommandLine: []config.Override{
		{Setting: config.Find("admin.socket"), Value: socket, Origin: "--set admin.socket"},
		{Setting: config.Find("listener.port"), Value: "0", Origin: "--port"},
		{Setting: config.Find("http.port"), Value: "0", Origin: "--http-port"},
	}}
	e, err := openEngine(src, logging.Options{Output: &bytes.Buffer{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.log.Close() })
	if err := e.Start(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Drain(context.Background()) })
	return socket, e
}

// tells runs a command and gives what it says.
func tells(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	root := newRootCommand()
	root.SetOut(&out)
	root.SetArgs(args)
	if err := root.Execute(); err != nil {
		complain(&errs, err)
		code = exitCode(err)
	}
	return code, out.String(), errs.String()
}

var someClients = []proxy.ClientInfo{
	{ID: 1, User: "shop", VHost: "/", Address: "127.0.0.1:40001", Name: "cart", State: proxy.ClientRunning, Channels: 2, In: 1200, Out: 340, Age: 90 * time.Second},
	{ID: 12, User: "mail", VHost: "prod", Address: "[2001:db8::17]:40002", State: proxy.ClientWaiting, Session: true, Waiting: 3 * time.Second, Queue: 70_000, In: 5_000_000, Age: 50 * time.Hour},
}

func TestLookCommands(t *testing.T) {
	socket, _ := withAdmin(t, func(f *fakeServer) {
		f.list = someClients
		f.ups = []proxy.UpstreamInfo{{ID: 3, Broker: "192.0.2.9:5671", User: "mail", VHost: "prod", State: proxy.UpstreamSession, Client: 12, Channels: 1}}
	})
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"clients"}, "" +
			"ID  USER  VHOST  ADDRESS               STATE       MODE     CH    IN  OUT  QUEUE  AGE  NAME\n" +
			" 1  shop  /      127.0.0.1:40001       running     shared    2  1.2k  340      0   1m  cart\n" +
			"12  mail  prod   [2001:db8::17]:40002  waiting 3s  session   0  5.0M    0    70k   2d\n"},
		{[]string{"clients", "--sort", "in", "--limit", "1", "--user", "mail"}, "" +
			"ID  USER  VHOST  ADDRESS               STATE       MODE     CH    IN  OUT  QUEUE  AGE  NAME\n" +
			"12  mail  prod   [2001:db8::17]:40002  waiting 3s  session   0  5.0M    0    70k   2d\n"},
		{[]string{"upstreams"}, "" +
			"ID  BROKER          USER  VHOST  STATE          LANE  CH  KEPT  IN  OUT  AGE  IDLE\n" +
			" 3  192.0.2.9:5671  mail  prod   session of 12  -      1     0   0    0   0s    0s\n"},
		{[]string{"kick", "12"}, "1 client closed\n"},
		{[]string{"kick", "--user", "shop"}, "1 client closed\n"},
		{[]string{"reconnect"}, "1 upstream retired\n"},
		{[]string{"pause", "--max", "1m"}, "paused; 1 upstream ends with its last channel\n"},
		{[]string{"resume"}, "resumed\n"},
		{[]string{"drain", "--vhost", "v"}, "paused; 1 upstream ends with its last channel\nno channel is at the broker any more\n"},
	} {
		code, out, errs := tells(t, append(c.args, "--socket", socket)...)
		if code != 0 || errs != "" || out != c.want {
			t.Errorf("%q: exit code %d, %s\ngot\n%s\nwant\n%s", c.args, code, errs, out, c.want)
		}
	}
	_, out, _ := tells(t, "config", "--socket", socket)
	if !strings.Contains(out, "listener.port") || !strings.Contains(out, "command line --port") || strings.Contains(out, "max_clients") {
		t.Errorf("config tells\n%s", out)
	}
	if _, all, _ := tells(t, "config", "--all", "--socket", socket); strings.Count(all, "\n") < len(config.Table)-fileOnly() {
		t.Errorf("config --all tells\n%s", all)
	}
	_, out, _ = tells(t, "clients", "--json", "--socket", socket)
	var got admin.Clients
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.Schema != admin.Schema || len(got.Clients) != 2 || got.Clients[1].Waiting != 3 {
		t.Errorf("clients --json: %v\n%s", err, out)
	}
	if _, out, _ := tells(t, "stats", "--socket", socket); !strings.Contains(out, "broker") || strings.Count(out, "\n") != 7 {
		t.Errorf("stats tells\n%s", out)
	}
	for n := range 60 { // more than the channel holds connections: a command leaves none
		if code, _, errs := tells(t, "stats", "--socket", socket); code != 0 {
			t.Fatalf("stats, the %dth time: %d %s", n, code, errs)
		}
	}
	var saved strings.Builder
	if err := showStats(&saved, &admin.Stats{BrokerUp: true, Reused: 1000, Connects: 4, ConnectSeconds: 1, BrokerCPUSaved: 1.8}); err != nil ||
		!strings.Contains(saved.String(), "1000 connections, 4m of waiting at 250.0 ms each; about 1s of the broker's CPU\n") {
		t.Errorf("stats of a reused connection: %v\n%s", err, &saved)
	}
	if code, _, errs := tells(t, "kick", "99", "--socket", socket); code != 1 || !strings.Contains(errs, "there is no client 99") {
		t.Errorf("kick of nobody: %d %s", code, errs)
	}
	for _, wrong := range [][]string{{"kick"}, {"kick", "1", "--user", "a"}, {"clients", "--sort", "size"}, {"clients", "extra"}} {
		if code, _, errs := tells(t, append(wrong, "--socket", socket)...); code != 64 || strings.Count(errs, "\n") != 1 {
			t.Errorf("%q: exit code %d %s, want 64 and a line", wrong, code, errs)
		}
	}
	if code, _, errs := tells(t, "clients", "--socket", adminSocket(t)); code != 3 || strings.Count(errs, "\n") != 1 {
		t.Errorf("nobody there: %d %s", code, errs)
	}
}

func TestAdviseCommand(t *testing.T) {
	socket, _ := withAdmin(t, func(f *fakeServer) {
		f.advice = []advice.Advice{{App: advice.App{User: "shop", VHost: "/", Name: "cart-", Host: "192.0.2.1"}, Rule: "polling", Level: advice.Warn,
			Since: time.Now().Add(-12*time.Minute - time.Second), Evidence: "97% of 1200 basic.get in 5m0s found no message", Remedy: "consume"}}
	})
	const want = "polling (warn, for 12m): user shop, vhost /, cart-, from 192.0.2.1\n  97% of 1200 basic.get in 5m0s found no message.\n  Do: consume.\n"
	if code, out, errs := tells(t, "advise", "--socket", socket); code != 0 || errs != "" || out != want {
		t.Errorf("exit code %d, %s\ngot\n%s\nwant\n%s", code, errs, out, want)
	}
	if _, out, _ := tells(t, "advise", "--rule", "unnamed", "--socket", socket); !strings.HasPrefix(out, "nothing to say") {
		t.Errorf("of another rule it tells %s", out)
	}
}

func TestLimitsCommand(t *testing.T) {
	socket, _ := withAdmin(t, func(f *fakeServer) {
		f.limited = []proxy.LimitKeyInfo{
			{Key: "shop", Limit: proxy.Limit{By: proxy.ByUser, Match: "*", MaxClients: 500, MaxUpstreams: 20, ConnectRate: proxy.Rate{N: 200, Per: time.Second}, DataRate: 20 << 20},
				Clients: 12, Upstreams: 3, Waiting: 14, Logins: 180, Bytes: 1_200_000, Refused: 1, Delayed: 120},
			{Key: "2001:db8::/64", Limit: proxy.Limit{By: proxy.ByAddress, Match: "*", ConnectRate: proxy.Rate{N: 10, Per: time.Minute}, Alarm: true}, Clients: 1, Alarms: 7},
		}
	})
	const want = "" +
		"BY       KEY            CLIENTS   UPS  LOGINS/S      IN/S  WAIT  REFUSED  DELAYED  ALARM\n" +
		"user     shop            12/500  3/20   180/200  1.2M/21M    14        1      120      -\n" +
		"address  2001:db8::/64        1     -   0/0.167         -     0        -        -      7\n" +
		"2 of 3\n"
	if code, out, errs := tells(t, "limits", "--socket", socket); code != 0 || errs != "" || out != want {
		t.Errorf("exit code %d, %s\ngot\n%s\nwant\n%s", code, errs, out, want)
	}
	if code, out, errs := tells(t, "limits", "--by", "color", "--socket", socket); code != 1 || out != "" || !strings.Contains(errs, "allowed is user, vhost") {
		t.Errorf("by color: %d %s %s", code, out, errs)
	}
	_, out, _ := tells(t, "limits", "--json", "--socket", socket)
	var got admin.Limits
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.Schema != admin.Schema || len(got.Keys) != 2 || got.Keys[0].Limit.ConnectRate != 200 {
		t.Errorf("limits --json: %v\n%s", err, out)
	}
	none, _ := withAdmin(t, nil)
	if _, out, _ := tells(t, "limits", "--socket", none); out != "no limit is set: see [[limit]] in the settings\n" {
		t.Errorf("without a limit it tells %s", out)
	}
}

// Every table fits 80 columns.
func TestTablesFit(t *testing.T) {
	long := strings.Repeat("long-name-", 8)
	var b strings.Builder
	_ = showClients(&b, 80, &admin.Clients{Clients: []admin.Client{{ID: 123456, User: long, VHost: long, Address: "[2001:db8:1:2:3:4:5:6]:50000",
		State: "connecting", Mode: "session", Channels: 1000, In: 1e12, Out: 1e12, Queue: 1e9, Age: 1e7, Name: long}}})
	_ = showPools(&b, 80, []admin.Pool{{User: long, VHost: long, Clients: 10000, Waiting: 1000, Upstreams: 1000, Idle: 100, Sessions: 1000,
		Channels: 10000, MaxWait: 100, Logins: 1e9, Reused: 1e9}})
	_ = showUpstreams(&b, 80, []admin.Upstream{{ID: 123456, Broker: long, User: long, VHost: long, State: "session", Client: 123456, Lane: "publish",
		Channels: 1000, Kept: 100, In: 1e12, Out: 1e12, Age: 1e7, Idle: 1e7}})
	_ = showLimits(&b, 80, &admin.Limits{Keys: []admin.LimitKey{{Key: long, Limit: admin.Limit{By: "listener", MaxClients: 10_000_000, ConnectRate: 1_000_000, DataRate: 1 << 40},
		Clients: 1_000_000, Waiting: 10000, Logins: 1_000_000, Bytes: 1e12, Refused: 1e9, Delayed: 1e9}}})
	for line := range strings.Lines(b.String()) {
		if n := terminal.Width(strings.TrimSuffix(line, "\n")); n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}

func TestTopScreen(t *testing.T) {
	at := time.Unix(1000, 0)
	before := &sample{at: at, clients: admin.Clients{Clients: []admin.Client{{ID: 1, In: 1000}, {ID: 2, In: 5000}}}}
	now := &sample{at: at.Add(2 * time.Second), stats: admin.Stats{Version: "1", BrokerUp: true, Clients: 2, LoginsOK: 10, Reused: 9, FromClients: 4000, ChannelsReused: 8},
		pools: admin.Pools{Pools: []admin.Pool{{User: "shop", VHost: "/"}}}}
	for n := range 50 {
		now.clients.Clients = append(now.clients.Clients, admin.Client{ID: uint64(n + 1), User: "shop", State: "running", In: 5000})
	}
	for _, size := range [][2]int{{80, 24}, {40, 10}, {200, 60}, {20, 3}} {
		lines := topScreen(now, before, 0, size[0], size[1])
		if len(lines) > size[1] {
			t.Errorf("%d lines in a window of %d", len(lines), size[1])
		}
		for _, line := range lines {
			if terminal.Width(line) >= size[0] {
				t.Errorf("a line of %d columns in a window of %d: %q", terminal.Width(line), size[0], line)
			}
		}
	}
	busy := *now
	busy.stats.Pauses = []admin.Pause{{All: true}}
	if text := strings.Join(topScreen(&busy, before, 0, 80, 24), "\n"); !strings.Contains(text, "broker up, PAUSED") || !strings.Contains(text, "0/s opened, 4/s reused\n") {
		t.Errorf("of a pause, in 80 columns:\n%s", text)
	}
	text := strings.Join(topScreen(now, before, 0, 100, 24), "\n")
	for _, want := range []string{"broker up", "clients 2 (0 wait)", "logins 5/s, 90% reused", "from clients 2.0k/s", "0/s opened, 4/s reused", "sorted by in+out"} {
		if !strings.Contains(text, want) {
			t.Errorf("the screen lacks %q:\n%s", want, text)
		}
	}
	first := strings.Index(text, "2.5k") // who is new sent all of it in these 2 s
	if one := strings.Index(text, "2.0k   "); first < 0 || one >= 0 && one < first {
		t.Errorf("the order is wrong:\n%s", text)
	}
}

// A socket that was asked for and cannot be had ends the start; one that is served by another
// process is not taken away.
func TestAdminSocketInTheWay(t *testing.T) {
	socket, _ := withAdmin(t, nil)
	second := &engine{settings: config.Defaults()}
	second.settings.Admin.Socket = socket
	if err := second.openControl(); err == nil || !strings.Contains(err.Error(), "admin.socket") {
		t.Errorf("a second engine on the same socket: %v", err)
	}
	second.settings.Admin.Socket = ""
	if err := second.openControl(); err != nil || second.control != nil {
		t.Errorf("in the foreground there is none unless asked for: %v", err)
	}
	var a asker
	a.socket = socket
	var st admin.Stats
	if err := a.ask(context.Background(), "GET", "stats", url.Values{}, &st); err != nil {
		t.Errorf("the first engine no longer answers: %v", err)
	}
}

// fileOnly is how many settings are shown only where the file has their tables.
func fileOnly() (n int) {
	for i := range config.Table {
		if config.Table[i].FileOnly() {
			n++
		}
	}
	return n
}

// The list of clients is read one by one, and is the same as read whole; what is no list is said so.
func TestDecodeClients(t *testing.T) {
	whole := admin.Clients{Schema: 1, Total: 3, Clients: []admin.Client{{ID: 1, User: "a", Upstreams: []uint64{}}, {ID: 2, Name: "<b>", Upstreams: []uint64{3, 4}, Waiting: 0.5}}}
	text, err := json.Marshal(whole)
	if err != nil {
		t.Fatal(err)
	}
	var got admin.Clients
	if err := decodeAnswer(bytes.NewReader(text), "at", &got); err != nil || !reflect.DeepEqual(got, whole) {
		t.Errorf("got %+v, %v, want %+v", got, err, whole)
	}
	later := `{"schema":1,"new":{"clients":[1]},"total":0,"clients":[],"more":[]}`
	if err := decodeAnswer(strings.NewReader(later), "at", &got); err != nil || got.Total != 0 || len(got.Clients) != 0 {
		t.Errorf("a later version's: got %+v, %v", got, err)
	}
	for n := range len(text) {
		if err := decodeAnswer(bytes.NewReader(text[:n]), "at", &admin.Clients{}); err == nil {
			t.Errorf("%q is taken for an answer", text[:n])
		}
	}
	for _, wrong := range []string{"[]", "1", "null", `{"clients":1}`, `{"clients":{}}`, `{"clients":[1]}`, `{"total":"x"}`, `{"clients":[{}}`, "<html>"} {
		if err := decodeAnswer(strings.NewReader(wrong), "at", &admin.Clients{}); err == nil {
			t.Errorf("%q is taken for an answer", wrong)
		}
	}
}

func TestSettingsAtTheirDefaults(t *testing.T) {
	at := []admin.Setting{{Name: "log.level", Value: `"info"`, Origin: "default"}}
	var out bytes.Buffer
	if err := settingsTable(&out, 80, at, false); err != nil || out.String() != "every setting is at its default; --all shows them\n" {
		t.Errorf("%v, %q", err, out.String())
	}
	out.Reset()
	if err := settingsTable(&out, 80, at, true); err != nil || !strings.Contains(out.String(), "log.level") {
		t.Errorf("%v, %q", err, out.String())
	}
}

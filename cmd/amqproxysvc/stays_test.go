// The names that MONITORING.md promises are in what the program really says.

package main

import (
	"encoding/json"
	"log/slog"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/admin"
	"github.com/amqproxysvc/amqproxysvc/proxy/advice"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/service/config"
	"github.com/amqproxysvc/amqproxysvc/service/logging"
)

// promised are the names of the page's table, by what says them.
func promised(t *testing.T) map[string][]string {
	t.Helper()
	_, page, found := strings.Cut(document(t, monitoring), "\n## What stays\n")
	if !found {
		t.Fatal("MONITORING.md has no section What stays")
	}
	word := regexp.MustCompile("`([a-z_]+)`")
	names := map[string][]string{}
	for line := range strings.Lines(page) {
		cells := strings.Split(line, "|")
		if len(cells) != 4 || !strings.Contains(cells[2], "`") {
			continue
		}
		for _, m := range word.FindAllStringSubmatch(cells[2], -1) {
			output := strings.Trim(strings.TrimSpace(cells[1]), "`")
			names[output] = append(names[output], m[1])
		}
	}
	return names
}

func TestPromisedNames(t *testing.T) {
	log := aRealLog(t)
	socket, file, fake := serveReloadable(t, ports)
	fake.list = someClients
	fake.ups = []proxy.UpstreamInfo{{ID: 3, State: proxy.UpstreamSession, Client: 12, Blocked: "low on memory"}}
	fake.advice = []advice.Advice{{Rule: "polling", Since: time.Now()}}
	fake.shows = []proxy.ListenerStats{{Address: "127.0.0.1:5673"}}
	fake.more = func(s *proxy.Stats) {
		s.Pools, s.BrokerReason = []proxy.PoolStats{{User: "shop"}}, "refused"
		s.Pauses = []proxy.PauseInfo{{All: true, Since: time.Now(), Until: time.Now().Add(time.Hour)}}
		s.ChannelErrors[0] = 1
		since := time.Now().Add(-time.Minute)
		s.Targets = []proxy.TargetStats{{Broker: "green", Address: "g:5672", Since: since, Reason: "refused"}}
		s.Brokers = []proxy.BrokerStats{{Name: "green", AwaySince: since, Reason: "refused"}}
		s.Routes = []proxy.Route{{VHost: "a", ToVHost: "b", Broker: "green", Durable: true, QueueType: "quorum"}}
	}
	fake.need = []string{"http.pprof"}
	writeFile(t, file, "[client]\nmax_clients = 7\n"+ports)
	if code, _, errs := tells(t, "reload", "--socket", socket); code != 0 {
		t.Fatal(errs)
	}
	names := promised(t)
	if len(names) != 9 {
		t.Errorf("the table promises names of %d outputs, want 9", len(names))
	}
	for output, keys := range names {
		var said string
		switch args := strings.Fields(strings.TrimPrefix(output, "amqproxysvc ")); args[0] {
		case "trace":
			said = wholeJSON(t, admin.TraceStart{}) + wholeJSON(t, admin.TraceLine{})
		case "the":
			said = log
		default:
			code, out, errs := tells(t, append(args, "--socket", socket)...)
			if said = out; code != 0 {
				t.Errorf("%s: exit code %d, %s", output, code, errs)
			}
		}
		for _, key := range keys {
			if !strings.Contains(said, `"`+key+`":`) {
				t.Errorf("%s has no %q, which MONITORING.md promises:\n%s", output, key, said)
			}
		}
	}
}

// wholeJSON is a struct with something in each field.
func wholeJSON(t *testing.T, of any) string {
	t.Helper()
	v := reflect.New(reflect.TypeOf(of)).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.String:
			f.SetString("x")
		case reflect.Interface:
			f.Set(reflect.ValueOf("x"))
		case reflect.Slice:
			f.SetBytes([]byte("x"))
		case reflect.Struct:
		default:
			f.Set(reflect.ValueOf(1).Convert(f.Type()))
		}
	}
	said, err := json.Marshal(v.Interface())
	if err != nil {
		t.Fatal(err)
	}
	return string(said)
}

// aRealLog is that of a proxy with a client that is let in and one that is not.
func aRealLog(t *testing.T) string {
	t.Helper()
	b := proxytest.StartBroker(t, proxytest.BrokerConfig{Users: map[string]string{"shop": "right"}})
	log, before := &lockedBuffer{}, slog.Default()
	defer slog.SetDefault(before)
	src := config.Source{CommandLine: []config.Override{
		{Setting: config.Find("upstream.url"), Value: "amqp://" + b.Addr(), Origin: "--upstream"},
		{Setting: config.Find("log.format"), Value: "json", Origin: "--set log.format"},
		{Setting: config.Find("listener.port"), Value: "0", Origin: "--port"},
		{Setting: config.Find("http.port"), Value: "0", Origin: "--http-port"},
	}}
	e, err := openEngine(src, logging.Options{Output: log})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.log.Close() }()
	if err := e.Start(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	for _, password := range []string{"right", "wrong"} {
		c, err := proxytest.Dial(proxytest.ClientConfig{Addr: e.server.Addrs()[0].String(), User: "shop", Password: password})
		if err == nil {
			_ = c.OpenChannel(1)
			_ = c.Close()
		} else if password == "right" {
			t.Error(err)
		}
	}
	_ = e.Drain(t.Context())
	return log.String()
}

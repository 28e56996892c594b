// What `pools` says to "are my connections reused at all?", as MONITORING.md shows it.

package main

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/service/config"
	"github.com/amqproxysvc/amqproxysvc/service/logging"
)

func TestAreMyConnectionsReused(t *testing.T) {
	b := proxytest.StartBroker(t, proxytest.BrokerConfig{Users: map[string]string{"shop": "s", "cloud": "0", "jobs": "j"}})
	socket := adminSocket(t)
	src := config.Source{CommandLine: []config.Override{
		{Setting: config.Find("upstream.url"), Value: b.URL(), Origin: "--upstream"},
		{Setting: config.Find("admin.socket"), Value: socket, Origin: "--set admin.socket"},
		{Setting: config.Find("listener.port"), Value: "0", Origin: "--port"},
		{Setting: config.Find("http.port"), Value: "0", Origin: "--http-port"},
	}}
	e, err := openEngine(src, logging.Options{Output: &lockedBuffer{}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.log.Close() }()
	if err := e.Start(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.server.Close() }()
	dial := func(user, password string) *proxytest.Client {
		t.Helper()
		c, err := proxytest.Dial(proxytest.ClientConfig{Addr: e.server.Addrs()[0].String(), User: user, Password: password})
		if err == nil {
			err = c.OpenChannel(1)
		}
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for range 200 { // as PHP does for each page
		c := dial("shop", "s")
		if err := c.Publish(1, "", "mails", []byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 3 { // a signed password, anew for each login
		b.SetUser("cloud", fmt.Sprint("signed", n))
		if err := dial("cloud", fmt.Sprint("signed", n)).Close(); err != nil {
			t.Fatal(err)
		}
	}
	for range 4 { // workers, for which no prefetch was set
		c := dial("jobs", "j")
		defer func() { _ = c.Hangup() }()
		queue, err := c.DeclareQueue(1, "work", 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Consume(1, queue, "", false); err != nil {
			t.Fatal(err)
		}
	}
	_, page, _ := strings.Cut(document(t, monitoring), "\n## Are my connections reused?\n")
	page, _, _ = strings.Cut(page, "\n## ")
	for _, user := range []string{"shop", "cloud", "jobs"} {
		shown := ""
		for block := range strings.SplitSeq(page, "```") {
			if strings.HasPrefix(block, "text\n") && strings.Contains(block, "\n"+user+" ") {
				shown = strings.TrimPrefix(block, "text\n")
			}
		}
		out := ""
		for range 500 { // what was closed last may be on its way
			var code int
			if code, out, _ = tells(t, "pools", "--user", user, "--socket", socket); code != 0 || shape(shown) == shape(out) {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if shape(shown) != shape(out) {
			t.Errorf("MONITORING.md shows of %s\n%s\nand the program says\n%s", user, shown, out)
		}
	}
}

// shape is a table but for how many logins there were, and how wide its columns are.
func shape(table string) string {
	table = regexp.MustCompile(` \d+\n`).ReplaceAllString(table, " N\n")
	return regexp.MustCompile(` +`).ReplaceAllString(table, " ")
}

// The demo's screens, in a window of 80 columns and in one of 40.

package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/service/terminal"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestScreens(t *testing.T) {
	straight := result{"straight to the broker", []time.Duration{231 * time.Millisecond, 210 * time.Millisecond, 1234567 * time.Microsecond}, 20}
	pooled := result{"through the proxy", []time.Duration{212 * time.Millisecond, 480 * time.Microsecond, 1070 * time.Microsecond}, 1}
	standIn := &target{broker: &proxytest.Broker{}, client: proxytest.ClientConfig{User: "guest", VHost: "/"}}
	real := &target{client: proxytest.ClientConfig{User: `o'neil`, Password: "s3cr3t", VHost: "shop"}}
	for _, columns := range []int{80, 40, 0} {
		screen := table(columns, straight, pooled) + "\n" + invitation(columns, 5673, standIn) + "\n" + invitation(columns, 65535, real)
		if strings.Contains(screen, "s3cr3t") {
			t.Error("a real broker's password is shown")
		}
		limit := columns
		if limit == 0 {
			limit = 80
		}
		for _, line := range strings.Split(screen, "\n") {
			code := strings.HasPrefix(line, "    ") // PHP is for pasting: as wide as it needs to be, below 80
			if w := terminal.Width(line); w > limit && !(code && w <= wide) {
				t.Errorf("%d columns: %d are needed for %q", columns, w, line)
			}
		}
		path := filepath.Join("testdata", fmt.Sprintf("screen-%d.txt", columns))
		if *update {
			if err := os.WriteFile(path, []byte(screen), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := []byte(screen); !bytes.Equal(got, bytes.ReplaceAll(want, []byte("\r\n"), []byte("\n"))) {
			t.Errorf("%s: the screen is (-update writes it)\n%s", path, got)
		}
	}
}

// What is told while the demo runs breaks between words.
func TestSentencesFit(t *testing.T) {
	var said bytes.Buffer
	d := &demo{out: &said, columns: func() int { return 40 }}
	to, err := d.target()
	if err != nil {
		t.Fatal(err)
	}
	to.close()
	d.tell("Your client's message arrived at the stand-in broker: %d bytes.", 12345678)
	if want := "A stand-in broker behind TLS, 50ms away\n(round trip); no real one is used.\nYour client's message arrived at the\nstand-in broker: 12345678 bytes.\n"; said.String() != want {
		t.Errorf("it says\n%swant\n%s", said.String(), want)
	}
}

func TestProgressFits(t *testing.T) {
	for _, columns := range []int{80, 40} {
		if got := terminal.Cut(progress("straight to the broker", 200, 200), columns-1); terminal.Width(got) >= columns || !strings.Contains(got, "200/200") {
			t.Errorf("%d columns: %q", columns, got)
		}
	}
}

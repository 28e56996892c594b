// The live page in a browser: `make page`, and with FULL=1 the events of an hour.

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// pageProxy is the program itself with its page, before a broker of our own.
func pageProxy(t *testing.T) (amqp, page string) {
	t.Helper()
	if os.Getenv("PAGE") == "" && os.Getenv("FULL") == "" {
		t.Skip("make page looks at the page in a browser")
	}
	b := proxytest.StartBroker(t, proxytest.BrokerConfig{})
	free := func() string {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = ln.Close() }()
		return ln.Addr().String()
	}
	amqp, page = free(), free()
	port := func(at string) string { _, p, _ := net.SplitHostPort(at); return p }
	proxied := exec.Command(os.Args[0], "-l", "127.0.0.1", "-p", port(amqp), "--set", "http.address=127.0.0.1", "--set", "http.port="+port(page),
		"--set", "admin.socket="+adminSocket(t), b.URL())
	proxied.Env = append(os.Environ(), asProgram+"=real")
	if err := proxied.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = proxied.Process.Kill(), proxied.Wait() })
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if res, err := http.Get("http://" + page + "/healthz"); err == nil {
			_ = res.Body.Close()
			return amqp, "http://" + page
		} else if time.Since(began) > browserTimeout {
			t.Fatal(err)
		}
	}
}

// busyClients come, stay, publish and go; some ask for what is not there, one user's name is long.
func busyClients(t *testing.T, at string) {
	t.Helper()
	for i := range 60 {
		c, err := proxytest.Dial(proxytest.ClientConfig{Addr: at, Name: fmt.Sprintf("%s-%d", []string{"shop", "billing-worker", "newsletter of the northern branch office"}[i%3], i)})
		if err == nil {
			err = c.OpenChannel(1)
		}
		if err == nil {
			_, err = c.DeclareQueue(1, "orders", 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Abort)
		if i%10 == 0 { // 404, and its channel is closed
			_ = c.OpenChannel(2)
			_ = c.Publish(2, "no-such-exchange", "x", []byte("lost"))
		}
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() { // one message for each connection
		defer close(ended)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
			c, err := proxytest.Dial(proxytest.ClientConfig{Addr: at, Name: "php"})
			if err != nil {
				return
			}
			if c.OpenChannel(1) == nil {
				_ = c.Publish(1, "", "orders", make([]byte, 200+i%7*300))
			}
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { close(stop); <-ended })
}

// On a telephone and on a screen, by day and by night, with nobody there and with many: nothing is wider than the window,
// and the browser has nothing to complain of. The pictures are in dist/page.
func TestPageInABrowser(t *testing.T) {
	amqp, page := pageProxy(t)
	b := startBrowser(t)
	pictures, err := filepath.Abs("../../dist/page")
	if err == nil {
		err = os.MkdirAll(pictures, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	look := func(state string) {
		for _, width := range []int{360, 520, 768, 1280, 1920} {
			for _, theme := range []string{"light", "dark"} {
				b.window(width, 800, theme)
				b.until(fmt.Sprintf("innerWidth === %d && matchMedia('(prefers-color-scheme: %s)').matches", width, theme))
				name := fmt.Sprintf("%s-%d-%s", state, width, theme)
				for _, tab := range []string{"clients", "upstreams", "pools"} {
					value[bool](b, "document.getElementById('tab-"+tab+"').click(), true")
					b.until("document.querySelector('thead tr').dataset.tab === '" + tab + "'")
					if state == "busy" {
						b.until("document.querySelectorAll('tbody tr').length > 0")
					}
					if wide := value[string](b, wider); wide != "" {
						t.Errorf("%s, %s: wider than the window: %s", name, tab, wide)
					}
					if tab == "clients" || tab == "pools" {
						b.picture(filepath.Join(pictures, name+"-"+tab+".png"))
					}
				}
			}
		}
		if err := b.silent(); err != nil {
			t.Error(state+":", err)
		}
	}
	b.window(1280, 800, "light")
	b.do("Page.navigate", map[string]any{"url": page + "/"}, nil)
	b.until("document.getElementById('link')?.className === 'on' && document.querySelector('#t-broker b').textContent !== '…'")
	look("empty")
	busyClients(t, amqp)
	b.until("document.querySelector('#c-logins')?.previousElementSibling.textContent.match(/all [1-9]/) !== null")
	time.Sleep(5 * liveTick) // lines in the charts, for the pictures
	look("busy")
	if text := value[string](b, "document.getElementById('troubles').textContent"); !strings.Contains(text, "404 not found") {
		t.Errorf("what is wrong does not tell of 404: %q", text)
	}
	// The keyboard goes through the lists.
	value[bool](b, "document.getElementById('tab-pools').focus(), true")
	b.do("Input.dispatchKeyEvent", map[string]any{"type": "keyDown", "key": "ArrowRight", "code": "ArrowRight", "windowsVirtualKeyCode": 39}, nil)
	b.until("document.activeElement.id === 'tab-clients' && document.getElementById('tab-clients').getAttribute('aria-selected') === 'true'")
}

// liveTick is how often the page hears.
const liveTick = 1500 * time.Millisecond

// wider names what reaches beyond the window; the lists roll in their own box.
const wider = `(() => {
	const w = innerWidth, root = document.documentElement;
	const out = [...document.querySelectorAll('body *')].filter((e) => !e.closest('#list') || e.id === 'list').filter((e) => e.getBoundingClientRect().right > w + .5);
	return root.scrollWidth > w || out.length ? root.scrollWidth + ' of ' + w + ': ' + out.map((e) => e.tagName + '#' + e.id).join(' ') : '';
})()`

// An hour's events in a minute: what the page holds does not grow. The events are the program's own, with the time and counters moved on.
func TestAnHourOfEvents(t *testing.T) {
	if os.Getenv("FULL") == "" {
		t.Skip("FULL=1 has the page hear an hour's events")
	}
	const hour, settled, every = 2400, 600, 25 * time.Millisecond
	amqp, page := pageProxy(t)
	busyClients(t, amqp)
	b := startBrowser(t)
	at, err := url.Parse(page)
	if err != nil {
		t.Fatal(err)
	}
	forward := httputil.NewSingleHostReverseProxy(at)
	var sent atomic.Int64
	var upTo atomic.Int64
	upTo.Store(settled)
	front := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path != "/live" {
			forward.ServeHTTP(w, req)
			return
		}
		res, err := http.Get(page + "/live")
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = res.Body.Close() }()
		lines := bufio.NewScanner(res.Body)
		lines.Buffer(nil, 1<<20)
		var event map[string]any
		for lines.Scan() && event == nil {
			if text, ok := strings.CutPrefix(lines.Text(), "data: "); ok && json.Unmarshal([]byte(text), &event) != nil {
				t.Errorf("an event is %q", text)
			}
		}
		w.Header().Set("Content-Type", "text/event-stream")
		stats := event["stats"].(map[string]any)
		for {
			for sent.Load() >= upTo.Load() {
				select {
				case <-req.Context().Done():
					return
				case <-time.After(every):
				}
			}
			n := float64(sent.Add(1))
			event["time"] = event["time"].(float64) + liveTick.Seconds()
			stats["uptime_seconds"] = stats["uptime_seconds"].(float64) + liveTick.Seconds()
			for _, counter := range []string{"logins_ok", "logins_reused", "channels_opened", "channels_reused", "received_from_clients_bytes", "sent_to_clients_bytes", "late_errors"} {
				stats[counter] = stats[counter].(float64) + float64(int(n)*7919%1000)
			}
			stats["clients"] = float64(int(n) * 7919 % 500)
			text, err := json.Marshal(event)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := fmt.Fprintf(w, "data: %s\n\n", text); err != nil || http.NewResponseController(w).Flush() != nil {
				return
			}
			time.Sleep(every)
		}
	})}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = front.Serve(ln) }()
	t.Cleanup(func() { _ = front.Close() })

	type held struct {
		heap           float64
		nodes, listens int
	}
	measure := func(events int) (h held) {
		t.Helper()
		for began := time.Now(); sent.Load() < int64(events); time.Sleep(every) {
			if time.Since(began) > 10*time.Minute {
				t.Fatalf("%d events have come of %d", sent.Load(), events)
			}
		}
		// The newest has been drawn: it tells the number of clients.
		b.until(fmt.Sprintf("document.querySelector('#t-wait p').textContent.startsWith('%d client')", events*7919%500))
		// The least of some looks: a list that is being made anew is there twice.
		for n := range 5 {
			b.do("HeapProfiler.collectGarbage", nil, nil)
			var heap struct{ UsedSize float64 }
			b.do("Runtime.getHeapUsage", nil, &heap)
			var dom struct{ Nodes, JSEventListeners int }
			b.do("Memory.getDOMCounters", nil, &dom)
			if n == 0 {
				h = held{heap.UsedSize, dom.Nodes, dom.JSEventListeners}
			}
			h = held{min(h.heap, heap.UsedSize), min(h.nodes, dom.Nodes), min(h.listens, dom.JSEventListeners)}
			time.Sleep(10 * every)
		}
		t.Logf("after %d events: %.0f kB of heap, %d nodes, %d listeners", events, h.heap/1000, h.nodes, h.listens)
		return h
	}
	b.window(1280, 800, "light")
	b.do("Page.navigate", map[string]any{"url": "http://" + ln.Addr().String() + "/"}, nil)
	b.until("document.getElementById('link')?.className === 'on'")
	value[bool](b, "document.getElementById('tab-clients').click(), true") // the list is asked for and made anew, too
	before := measure(settled)                                             // the charts' five minutes are full since 200
	for events := settled * 2; events <= hour+settled; events += settled {
		upTo.Store(int64(events))
		now := measure(events)
		if now.heap > before.heap*1.1+100_000 || now.nodes > before.nodes*11/10+100 || now.listens > before.listens*11/10+10 {
			t.Errorf("after %d events the page holds %+v, %+v after %d", events, now, before, settled)
		}
	}
	if err := b.silent(); err != nil {
		t.Error(err)
	}
}

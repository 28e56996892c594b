// A headless Chromium, told what to do over the DevTools protocol on two pipes.

package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"
)

// browserTimeout bounds one answer of the browser, which a loaded machine makes slow.
const browserTimeout = time.Minute

// browser is one tab of a Chromium.
type browser struct {
	t       *testing.T
	to      io.Writer
	session string

	mu      sync.Mutex
	n       int
	answers map[int]chan devMessage
	said    []string // of console, log and exceptions
	gone    error
}

type devMessage struct {
	ID     int             `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
	Result json.RawMessage `json:"result"`
	Error  *struct {
		Message string `json:"message"`
	} `json:"error"`
}

// startBrowser skips the test where there is no Chromium, but not where all that the tests need can be installed.
func startBrowser(t *testing.T) *browser {
	t.Helper()
	program, err := exec.LookPath("chromium")
	if err != nil {
		why := "there is no chromium here (Debian's package), the page was looked at by nobody"
		if os.Getenv("CI") == "true" && os.Getuid() == 0 {
			t.Fatal(why)
		}
		t.Skip("SKIPPED LOUDLY: " + why)
	}
	in, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	from, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
		"--disable-background-networking", "--disable-component-update", "--force-color-profile=srgb", "--user-data-dir="+t.TempDir(), "--remote-debugging-pipe", "about:blank")
	cmd.ExtraFiles = []*os.File{in, out} // it reads from 3 and writes to 4
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = in.Close(), out.Close()
	b := &browser{t: t, to: to, answers: map[int]chan devMessage{}}
	ended := make(chan struct{})
	go func() { defer close(ended); b.listen(from) }()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		_ = to.Close()
		<-ended
		_ = from.Close()
	})
	var target struct{ TargetID string }
	b.do("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.do("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Runtime", "Log", "HeapProfiler"} {
		b.do(domain+".enable", nil, nil)
	}
	return b
}

func (b *browser) listen(from io.Reader) {
	r := bufio.NewReaderSize(from, 1<<20)
	for {
		text, err := r.ReadBytes(0)
		if err != nil {
			b.mu.Lock()
			b.gone = errors.New("the browser has ended")
			for _, a := range b.answers {
				close(a)
			}
			b.answers = map[int]chan devMessage{}
			b.mu.Unlock()
			return
		}
		var m devMessage
		if json.Unmarshal(text[:len(text)-1], &m) != nil {
			continue
		}
		b.mu.Lock()
		switch m.Method {
		case "":
			if a := b.answers[m.ID]; a != nil {
				a <- m
				delete(b.answers, m.ID)
			}
		case "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded":
			b.said = append(b.said, string(m.Params))
		}
		b.mu.Unlock()
	}
}

// do has the browser do something, and ends the test where it does not.
func (b *browser) do(method string, params map[string]any, result any) {
	b.t.Helper()
	a := make(chan devMessage, 1)
	b.mu.Lock()
	b.n++
	id := b.n
	gone := b.gone
	if gone == nil {
		b.answers[id] = a
	}
	b.mu.Unlock()
	if gone != nil {
		b.t.Fatalf("%s: %v", method, gone)
	}
	ask := map[string]any{"id": id, "method": method}
	if params != nil {
		ask["params"] = params
	}
	if b.session != "" {
		ask["sessionId"] = b.session
	}
	text, err := json.Marshal(ask)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.to.Write(append(text, 0)); err != nil {
		b.t.Fatalf("%s: %v", method, err)
	}
	ctx, cancel := context.WithTimeout(b.t.Context(), browserTimeout)
	defer cancel()
	select {
	case m, ok := <-a:
		switch {
		case !ok:
			b.t.Fatalf("%s: the browser has ended", method)
		case m.Error != nil:
			b.t.Fatalf("%s: %s", method, m.Error.Message)
		case result != nil:
			if err := json.Unmarshal(m.Result, result); err != nil {
				b.t.Fatalf("%s: %v", method, err)
			}
		}
	case <-ctx.Done():
		b.t.Fatalf("%s: no answer", method)
	}
}

// value is what an expression gives in the page.
func value[T any](b *browser, expression string) T {
	b.t.Helper()
	var answer struct {
		Result           struct{ Value T }
		ExceptionDetails json.RawMessage
	}
	b.do("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}, &answer)
	if answer.ExceptionDetails != nil {
		b.t.Fatalf("%s: %s", expression, answer.ExceptionDetails)
	}
	return answer.Result.Value
}

// until waits for an expression to hold.
func (b *browser) until(what string) {
	b.t.Helper()
	for began := time.Now(); !value[bool](b, what); time.Sleep(50 * time.Millisecond) {
		if time.Since(began) > browserTimeout {
			b.t.Fatalf("it never came that %s", what)
		}
	}
}

// window gives the page a size and a theme.
func (b *browser) window(width, height int, theme string) {
	b.t.Helper()
	b.do("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false}, nil)
	b.do("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": theme}}}, nil)
}

// picture is the whole page as a PNG.
func (b *browser) picture(file string) {
	b.t.Helper()
	var answer struct{ Data string }
	b.do("Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": true}, &answer)
	png, err := base64.StdEncoding.DecodeString(answer.Data)
	if err == nil {
		err = os.WriteFile(file, png, 0o644)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// silent is that the page has had nothing to complain of: no error, no breach of its policy.
func (b *browser) silent() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.said) > 0 {
		return fmt.Errorf("the console is not empty: %q", b.said)
	}
	return nil
}

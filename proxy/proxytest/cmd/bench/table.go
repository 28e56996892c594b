// The table, printed row by row and written as Markdown.

package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

type table struct {
	peers []string
	lines [][]string
	notes []string
	about string
}

func newTable(peers []string) *table { return &table{peers: peers} }

var widths = []int{52, 18, 30, 34}

func (t *table) head(about string) {
	t.about = about
	fmt.Println(about)
	fmt.Println()
	t.add(append(append([]string{"work"}, t.peers...), "vs haproxy", "goal", "met"))
}

func (t *table) add(cells []string) {
	t.lines = append(t.lines, cells)
	var b strings.Builder
	for i, c := range cells {
		width := 20
		switch {
		case i < len(widths) && i <= len(t.peers):
			width = widths[i]
		case i > len(t.peers):
			width = 16
		}
		b.WriteString(c)
		b.WriteString(strings.Repeat(" ", max(1, width-utf8.RuneCountInString(c))))
	}
	fmt.Println(strings.TrimRight(b.String(), " "))
}

// text adds a row of cells made elsewhere.
func (t *table) text(title string, cells []string, goal, met string) {
	t.add(append(append([]string{title}, cells...), "", goal, met))
}

// row adds a measured row: the ratio and the goal are about amqproxysvc.
func (t *table) row(r row, samples []sample) {
	cells := []string{r.title}
	var ours, haproxy sample
	for i, s := range samples {
		cells = append(cells, cell(r, s))
		switch t.peers[i] {
		case "haproxy":
			haproxy = s
		case "amqproxysvc":
			ours = s
		}
		if s.err != nil {
			t.note("%s, %s: %v", t.peers[i], r.title, s.err)
		} else if s.clients > 0 && s.clients < r.work.Clients {
			t.note("%s, %s: %d clients, the most its descriptors allow", t.peers[i], r.title, s.clients)
		}
	}
	ratio, met := "", ""
	if haproxy.rate > 0 && ours.rate > 0 {
		ratio = fmt.Sprintf("%.2f×", ours.rate/haproxy.rate)
	}
	if r.goal != (goal{}) {
		good := ours.rate > 0
		if r.goal.ratio > 0 {
			good = good && haproxy.rate > 0 && ours.rate >= r.goal.ratio*haproxy.rate
		}
		if r.goal.cpu > 0 {
			good = good && ours.cpu <= r.goal.cpu
		}
		met = verdict(good)
	}
	t.add(append(cells, ratio, r.goal.String(), met))
}

func verdict(good bool) string {
	if good {
		return "yes"
	}
	return "NO"
}

func cell(r row, s sample) string {
	switch {
	case s.err != nil:
		return "failed"
	case s.rate == 0:
		return "–"
	}
	out := perSecond(s.rate)
	if r.latency {
		out += fmt.Sprintf(", %s/%s", micros(s.p50), micros(s.p99))
	}
	if s.cpu > 0 {
		out += ", " + micros(s.cpu) + " CPU"
	}
	return out
}

func (t *table) note(format string, args ...any) {
	t.notes = append(t.notes, fmt.Sprintf(format, args...))
}

const legend = "rate, p50/p99 where it is about latency, CPU time of the proxy for one operation; median of the rounds; direct: the stand-in's own CPU, a bare Go server's, where connects are counted"

func (t *table) foot(took time.Duration) {
	fmt.Println()
	fmt.Println(legend)
	for _, n := range t.notes {
		fmt.Println("- " + n)
	}
	fmt.Printf("took %v\n", took.Round(time.Second))
}

// markdown is the same table for proxy/BENCHMARK.md.
func (t *table) markdown() string {
	var b strings.Builder
	for i, cells := range t.lines {
		b.WriteString("| " + strings.Join(cells, " | ") + " |\n")
		if i == 0 {
			b.WriteString("|" + strings.Repeat("---|", len(cells)) + "\n")
		}
	}
	fmt.Fprintf(&b, "\n%s (%s).\n", t.about, legend)
	for _, n := range t.notes {
		b.WriteString("\n- " + n)
	}
	if len(t.notes) > 0 {
		b.WriteString("\n")
	}
	return b.String()
}

func perSecond(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.2f M/s", v/1e6)
	case v >= 1e5:
		return fmt.Sprintf("%.0f k/s", v/1e3)
	case v >= 1e3:
		return fmt.Sprintf("%.1f k/s", v/1e3)
	}
	return fmt.Sprintf("%.0f /s", v)
}

func micros(d time.Duration) string {
	us := float64(d.Nanoseconds()) / 1000
	switch {
	case us >= 10_000:
		return fmt.Sprintf("%.1f ms", us/1000)
	case us >= 100:
		return fmt.Sprintf("%.0f µs", us)
	case us >= 10:
		return fmt.Sprintf("%.1f µs", us)
	}
	return fmt.Sprintf("%.2f µs", us)
}

// grouped writes a number with commas.
func grouped(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// machine names the processor and the kernel.
func machine() string {
	cpu := runtime.GOARCH
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				cpu = strings.TrimSpace(value)
				break
			}
		}
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return fmt.Sprintf("%d × %s, Linux %s, %s", runtime.NumCPU(), cpu, strings.TrimSpace(string(kernel)), runtime.Version())
}

// Package terminal writes for people: lines above one line that is kept up to date, cut to
// the window, and texts wrapped to a width.

package terminal

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/term"
)

// Terminal writes lines above one line that is kept up to date. It uses nothing but
// carriage returns and spaces, which every console knows.
type Terminal struct {
	w       io.Writer
	columns func() int

	mu     sync.Mutex
	status string
}

// New writes to w. columns tells the window's width at the time; 0: it is not known, and
// nothing is cut.
func New(w io.Writer, columns func() int) *Terminal { return &Terminal{w: w, columns: columns} }

// Of writes to a terminal's file.
func Of(f *os.File) *Terminal { return New(f, func() int { return Columns(f) }) }

// Columns is the width of the window that a file is shown in, 0 where it is none or not known.
func Columns(f *os.File) int {
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// Write writes whole lines above the one that is kept up to date.
func (t *Terminal) Write(lines []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.status == "" {
		return t.w.Write(lines)
	}
	if _, err := fmt.Fprintf(t.w, "\r%s\r%s%s", strings.Repeat(" ", Width(t.status)), lines, t.status); err != nil {
		return 0, err
	}
	return len(lines), nil
}

// SetStatus writes the line anew if it changed, as much of it as the window holds: one that
// is broken over two rows cannot be written over.
func (t *Terminal) SetStatus(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	columns := t.columns()
	if columns > 0 {
		line = Cut(line, columns-1) // the last column makes some consoles go to the next row
	}
	if line == t.status {
		return
	}
	pad := max(0, Width(t.status)-Width(line))
	if columns > 0 {
		pad = min(pad, max(0, columns-1-Width(line))) // the window may have shrunk
	}
	home := ""
	if line == "" {
		home = "\r" // for the line that comes in its place
	}
	_, _ = fmt.Fprintf(t.w, "\r%s%s%s", line, strings.Repeat(" ", pad), home)
	t.status = line
}

// End leaves the cursor on a line of its own.
func (t *Terminal) End() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.status == "" {
		return
	}
	_, _ = io.WriteString(t.w, "\n")
	t.status = ""
}

// Width is how many columns a line takes, tabs included.
func Width(line string) (n int) {
	if plain(line) {
		return len(line)
	}
	for _, r := range line {
		n = after(n, r)
	}
	return n
}

// Cut is as much of a line as columns hold.
func Cut(line string, columns int) string {
	n := 0
	for i, r := range line {
		if n = after(n, r); n > columns {
			return strings.TrimRight(line[:i], " \t")
		}
	}
	return line
}

func after(column int, r rune) int {
	if r == '\t' {
		return column + 8 - column%8
	}
	return column + 1
}

// Wrap breaks a text into lines of at most width columns, each behind the prefix, and ends
// it with a newline. A longer word stands alone.
func Wrap(text string, width int, prefix string) string {
	var b strings.Builder
	line := prefix
	for _, word := range strings.Fields(text) {
		if len(line) > len(prefix) && Width(line)+1+Width(word) > width {
			b.WriteString(strings.TrimRight(line, " ") + "\n")
			line = prefix
		}
		if len(line) > len(prefix) {
			line += " "
		}
		line += word
	}
	b.WriteString(line + "\n")
	return b.String()
}

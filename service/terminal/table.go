// Tables that fit the window.

package terminal

import (
	"bytes"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Column is one column of a table.
type Column struct {
	Head  string
	Right bool // numbers
	// Least is how narrow it may become where the window is too narrow for all, at least the
	// head's width is kept; 0: its content is never cut.
	Least int
}

// Table writes rows below their heads, in at most width columns where the shrinkable ones
// allow it (0: nothing is cut). What is cut ends in an ellipsis; what is not printable in a
// cell, which others may have written, is shown as a question mark.
func Table(w io.Writer, width int, columns []Column, rows [][]string) error {
	widths := make([]int, len(columns))
	for i, c := range columns {
		widths[i] = Width(c.Head)
	}
	clean := make([]string, 0, len(rows)*len(columns)) // row behind row
	for _, row := range rows {
		for i := range columns {
			cell := Printable(row[i])
			clean = append(clean, cell)
			widths[i] = max(widths[i], Width(cell))
		}
	}
	gap := "  "
	if width > 0 && shrink(widths, columns, width, len(gap)) > width {
		gap = " "
		shrink(widths, columns, width, len(gap))
	}
	line := 1
	for _, n := range widths {
		line += n + len(gap)
	}
	out := make([]byte, 0, (len(rows)+1)*line)
	pad := func(n int) {
		for ; n > 0; n-- {
			out = append(out, ' ')
		}
	}
	row := func(cell func(int) string) {
		for i, c := range columns {
			if i > 0 {
				out = append(out, gap...)
			}
			text, more := cell(i), ""
			n := Width(text)
			if n > widths[i] {
				text, more = Cut(text, widths[i]-1), "…"
				n = Width(text) + 1
			}
			if c.Right {
				pad(widths[i] - n)
			}
			out = append(append(out, text...), more...)
			if !c.Right {
				pad(widths[i] - n)
			}
		}
		out = append(bytes.TrimRight(out, " "), '\n') // a line's own: the one before ends in a newline
	}
	row(func(i int) string { return columns[i].Head })
	for ; len(clean) > 0; clean = clean[len(columns):] {
		row(func(i int) string { return clean[i] })
	}
	_, err := w.Write(out)
	return err
}

// shrink takes columns from the widest that may give one, until all fit, and gives the width
// of all.
func shrink(widths []int, columns []Column, width, gap int) (total int) {
	total = gap * (len(widths) - 1)
	for _, n := range widths {
		total += n
	}
	for ; total > width; total-- {
		widest := -1
		for i, c := range columns {
			if c.Least > 0 && widths[i] > max(c.Least, Width(c.Head)) && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			break
		}
		widths[widest]--
	}
	return total
}

// Printable is a text that cannot move the cursor or change the terminal.
func Printable(text string) string {
	if plain(text) {
		return text
	}
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

// plain reports whether a text is of ASCII's printable characters alone, one column each.
func plain(text string) bool {
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

// Bytes is a number of octets in at most five columns: "999", "1.2k", "34M".
func Bytes(n uint64) string {
	if n < 1000 {
		return strconv.FormatUint(n, 10)
	}
	v := float64(n)
	for _, unit := range "kMGTPE" {
		if v /= 1000; v < 999.5 {
			decimals := 0
			if v < 9.95 {
				decimals = 1
			}
			return strconv.FormatFloat(v, 'f', decimals, 64) + string(unit)
		}
	}
	return "much"
}

// Age is a time in at most four columns: "12s", "3m", "5h", "14d".
func Age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return strconv.Itoa(int(d/time.Second)) + "s"
	case d < time.Hour:
		return strconv.Itoa(int(d/time.Minute)) + "m"
	case d < 48*time.Hour:
		return strconv.Itoa(int(d/time.Hour)) + "h"
	}
	return strconv.Itoa(int(d/(24*time.Hour))) + "d"
}

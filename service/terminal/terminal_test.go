// What a window of so many columns shows.

package terminal

import (
	"strings"
	"testing"
)

// window plays a terminal: rows that break at its last column, carriage returns, tabs.
type window struct {
	columns int
	rows    []string
	column  int
}

func (w *window) Write(p []byte) (int, error) {
	if len(w.rows) == 0 {
		w.rows = []string{""}
	}
	put := func(r rune) {
		if w.column == w.columns {
			w.rows = append(w.rows, "")
			w.column = 0
		}
		row := []rune(w.rows[len(w.rows)-1])
		for len(row) <= w.column {
			row = append(row, ' ')
		}
		row[w.column] = r
		w.rows[len(w.rows)-1] = string(row)
		w.column++
	}
	for _, r := range string(p) {
		switch r {
		case '\r':
			w.column = 0
		case '\n':
			w.rows = append(w.rows, "")
			w.column = 0
		case '\t':
			for next := after(w.column, r); w.column < next && w.column < w.columns; {
				put(' ')
			}
		default:
			put(r)
		}
	}
	return len(p), nil
}

func (w *window) String() string {
	rows := make([]string, len(w.rows))
	for i, r := range w.rows {
		rows[i] = strings.TrimRight(r, " ")
	}
	return strings.Join(rows, "\n")
}

func TestTheStatusLineStaysOnItsRow(t *testing.T) {
	for _, c := range []struct {
		columns int
		want    string
	}{
		{80, "one line\n4 clients                1 upstreams\n"},
		{20, "one line\n4 clients\n"},
		{5, "one l\nine\n4 cl\n"},
	} {
		w := &window{columns: c.columns}
		term := New(w, func() int { return c.columns })
		for _, n := range []string{"1000", "50", "4"} {
			term.SetStatus(n + " clients\t\t 1 upstreams")
		}
		if _, err := term.Write([]byte("one line\n")); err != nil {
			t.Fatal(err)
		}
		term.SetStatus("4 clients\t\t 1 upstreams")
		term.End()
		term.End()
		if got := w.String(); got != c.want {
			t.Errorf("%d columns show\n%s\nwant\n%s", c.columns, got, c.want)
		}
	}
}

func TestWithoutAWidthNothingIsCut(t *testing.T) {
	w := &window{columns: 200}
	long := strings.Repeat("x", 150)
	New(w, func() int { return 0 }).SetStatus(long)
	if w.String() != long {
		t.Errorf("got %q", w)
	}
}

func TestAStatusTakenAwayLeavesItsRow(t *testing.T) {
	w := &window{columns: 80}
	term := New(w, func() int { return 80 })
	term.SetStatus("working")
	term.SetStatus("")
	if _, err := term.Write([]byte("done\n")); err != nil {
		t.Fatal(err)
	}
	if got := w.String(); got != "done\n" {
		t.Errorf("got %q", got)
	}
}

func TestWrap(t *testing.T) {
	got := Wrap("a text of some words andonethatislongerthantheline at its end", 16, "# ")
	if want := "# a text of some\n# words\n# andonethatislongerthantheline\n# at its end\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Results of a suite, compared test by test, and the table they become.

//go:build linux

package main

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

type outcome int

const (
	failed outcome = iota
	passed
	skipped
)

// straight is the run without a proxy.
const straight = "straight"

// result is one test's: what came of it, and the unit that must run to repeat it.
type result struct {
	outcome outcome
	unit    string
}

// results are a run's, by the test's name.
type results map[string]result

func (r results) count(o outcome) int {
	n := 0
	for _, one := range r {
		if one.outcome == o {
			n++
		}
	}
	return n
}

// comparison is a run through the proxy beside the one straight.
type comparison struct {
	passed    int                 // of those that passed straight
	explained map[string][]string // reason → tests
	differing map[string]*difference
	// Filled by judge: the tests of differing that are no chance, and the others.
	unexplained []string
	unsteady    []string
}

// difference is a test that passed straight and failed through the proxy.
type difference struct {
	unit              string
	straight, through tally
}

// tally counts how often a test passed of how many times it was run.
type tally struct{ passed, runs int }

func (t *tally) add(o outcome) {
	t.runs++
	if o == passed {
		t.passed++
	}
}

// decided reports whether a majority of most runs is reached.
func (t tally) decided(most int) bool { return 2*t.passed > most || 2*(t.runs-t.passed) > most }

func (t tally) mostly() bool { return 2*t.passed > t.runs }

// newComparison compares; a test that has no result through the proxy has failed there.
// reason says why a test may differ, or "".
func newComparison(direct, through results, reason func(test string) string) *comparison {
	c := &comparison{differing: map[string]*difference{}, explained: map[string][]string{}}
	for name, d := range direct {
		if d.outcome != passed {
			continue
		}
		if through[name].outcome == passed {
			c.passed++
			continue
		}
		if why := reason(name); why != "" {
			c.explained[why] = append(c.explained[why], name)
			continue
		}
		c.differing[name] = &difference{unit: d.unit}
	}
	for _, tests := range c.explained {
		slices.Sort(tests)
	}
	return c
}

// units are what must run to repeat the tests that differ, as far as further repetitions,
// of most in all, can still change what is thought of them.
func (c *comparison) units(most int) []string {
	set := map[string]bool{}
	for _, d := range c.differing {
		if !d.straight.decided(most) || !d.through.decided(most) {
			set[d.unit] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// repeated adds a repetition of the units that differ.
func (c *comparison) repeated(direct, through results) {
	for name, d := range c.differing {
		if _, ran := direct[name]; !ran {
			continue
		}
		d.straight.add(direct[name].outcome)
		d.through.add(through[name].outcome)
	}
}

// judge says which differences are the proxy's: those that in the repetitions mostly
// pass straight and mostly do not through the proxy. The first run decides nothing, for
// it is what chose them.
func (c *comparison) judge() {
	for _, name := range slices.Sorted(maps.Keys(c.differing)) {
		d := c.differing[name]
		if d.straight.runs > 0 && (d.through.mostly() || !d.straight.mostly()) {
			if d.through.mostly() {
				c.passed++
			}
			c.unsteady = append(c.unsteady, fmt.Sprintf("%s (again: straight %d of %d, through %d of %d)", name,
				d.straight.passed, d.straight.runs, d.through.passed, d.through.runs))
			continue
		}
		c.unexplained = append(c.unexplained, name)
	}
}

// explanation is the reason why a test may differ, or "".
func explanation(suite, broker, mode, test string) string {
	for _, k := range known {
		if k.suite == suite && (k.broker == "" || k.broker == broker) && (k.mode == "" || k.mode == mode) &&
			regexp.MustCompile(k.tests).MatchString(test) {
			return k.reason
		}
	}
	return ""
}

// row is a suite on a broker.
type row struct {
	suite    *suite
	broker   string
	missing  string // why it could not run
	straight results
	through  map[string]*comparison // by mode
}

func (r *row) unexplained() int {
	n := 0
	for _, c := range r.through {
		n += len(c.unexplained)
	}
	return n
}

// table is the rows in Markdown, and below it what was unsteady.
func table(rows []*row) string {
	if len(rows) == 0 {
		return ""
	}
	var b, notes strings.Builder
	b.WriteString("| suite | version | RabbitMQ | passed straight | through, `session` | through, `auto` | differences |\n")
	b.WriteString("|---|---|---|---:|---:|---:|---|\n")
	for _, r := range rows {
		if r.missing != "" {
			why, _, _ := strings.Cut(r.missing, "\n")
			fmt.Fprintf(&b, "| %s | %s | %s | not run | | | %s |\n", r.suite.name, r.suite.version, r.broker, cell(why))
			continue
		}
		cells := map[string]string{}
		var differences []string
		for _, mode := range modes {
			c := r.through[mode]
			if c == nil {
				continue
			}
			cells[mode] = fmt.Sprint(c.passed)
			for _, reason := range slices.SortedFunc(maps.Keys(c.explained), cmp.Compare) {
				differences = append(differences, fmt.Sprintf("`%s`: %s: %s", mode, strings.Join(c.explained[reason], ", "), reason))
			}
			if len(c.unexplained) > 0 {
				differences = append(differences, fmt.Sprintf("**`%s`, unexplained**: %s", mode, strings.Join(c.unexplained, ", ")))
			}
			for _, u := range c.unsteady {
				fmt.Fprintf(&notes, "- %s, RabbitMQ %s, `%s`: %s\n", r.suite.name, r.broker, mode, u)
			}
		}
		if len(differences) == 0 {
			differences = []string{"none"}
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %d | %s | %s | %s |\n", r.suite.name, r.suite.version, r.broker,
			r.straight.count(passed), cells["session"], cells["auto"], cell(strings.Join(differences, "; ")))
	}
	if notes.Len() > 0 {
		b.WriteString("\nUnsteady, and so no difference:\n\n" + notes.String())
	}
	return b.String()
}

func cell(s string) string { return strings.ReplaceAll(s, "|", "\\|") }

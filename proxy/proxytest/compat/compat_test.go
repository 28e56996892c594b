// The judge of differences is judged, and the readers of the runners' reports.

//go:build linux

package main

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	junit := func(c junitCase) (string, string) { return strings.Join(append(c.Suites, c.Name), "/"), c.File }
	want := results{
		"good": {passed, "a"}, "bad": {failed, "a"}, "left": {skipped, "a"},
	}
	for _, c := range []struct {
		name string
		got  func() (results, error)
		want results
	}{
		{"go", func() (results, error) {
			return parseGo([]byte(`not JSON
{"Action":"run","Test":"A/good"}
{"Action":"output","Test":"A/good","Output":"x"}
{"Action":"pass","Test":"A/good"}
{"Action":"fail","Test":"A/bad"}
{"Action":"skip","Test":"left"}
{"Action":"run","Test":"Panicked"}
{"Action":"fail"}`)), nil
		}, results{"A/good": {passed, "A"}, "A/bad": {failed, "A"}, "left": {skipped, "left"}, "Panicked": {failed, "Panicked"}}},
		{"junit", func() (results, error) {
			return parseJUnit([]byte(`<testsuites><testcase name="good" file="a"/>
				<testcase name="bad" file="a"><error>x</error></testcase>
				<testsuite name="s"><testcase name="in" file="b"><failure/></testcase>
				<testcase name="in" file="b"/></testsuite>
				<testcase name="left" file="a"><skipped/></testcase></testsuites>`), junit)
		}, with(want, "s/in", result{failed, "b"})},
		{"junit, cut short", func() (results, error) {
			return parseJUnit([]byte(`<testsuites><testcase name="good" file="a"/><testcase name="b`), junit)
		}, results{"good": {passed, "a"}}},
		{"rspec", func() (results, error) {
			return parseRSpec([]byte(`{"examples":[
				{"full_description":"good","status":"passed","file_path":"./a"},
				{"full_description":"bad","status":"failed","file_path":"./a"},
				{"full_description":"bad","status":"passed","file_path":"./a"},
				{"full_description":"left","status":"pending","file_path":"./a"}]}`))
		}, want},
		{"phpt", func() (results, error) {
			return parsePHPT([]byte("TEST 1/3 [tests/a.phpt]\rPASS It [does] that [tests/a.phpt] \n" +
				"FAIL x [/tmp/some/tests/b.phpt] \nSKIP y [tests/c.phpt] reason: none\nFAILED TEST SUMMARY\nx [tests/a.phpt]\n")), nil
		}, results{"a": {passed, "tests/a.phpt"}, "b": {failed, "tests/b.phpt"}, "c": {skipped, "tests/c.phpt"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.got()
			if err != nil || !maps.Equal(got, c.want) {
				t.Errorf("got %v, %v, want %v", got, err, c.want)
			}
		})
	}
	if got, err := parseJUnit([]byte("not begun"), junit); err == nil {
		t.Errorf("a report without a test: got %v, want an error", got)
	}
}

func with(r results, name string, one result) results {
	r = maps.Clone(r)
	r[name] = one
	return r
}

func TestDifferences(t *testing.T) {
	defer func(old []knownDifference) { known = old }(known)
	known = []knownDifference{{suite: "s", mode: "auto", tests: "^meant$", reason: "so it is"}}
	direct := results{
		"same": {passed, "a"}, "broken": {passed, "b"}, "gone": {passed, "c"}, "shaky": {passed, "d"},
		"meant": {passed, "e"}, "worse straight": {passed, "f"}, "fails anyway": {failed, "g"}, "left out": {skipped, "g"},
	}
	through := results{
		"same": {passed, "a"}, "broken": {failed, "b"}, "shaky": {failed, "d"},
		"meant": {skipped, "e"}, "worse straight": {failed, "f"}, "fails anyway": {failed, "g"}, "left out": {skipped, "g"},
	}
	c := newComparison(direct, through, func(test string) string { return explanation("s", "3.10", "auto", test) })
	if got, want := c.units(3), []string{"b", "c", "d", "f"}; !slices.Equal(got, want) {
		t.Errorf("to repeat: got %v, want %v", got, want)
	}
	for range 2 {
		c.repeated(
			results{"broken": {passed, ""}, "gone": {passed, ""}, "shaky": {passed, ""}, "meant": {passed, ""}, "worse straight": {failed, ""}},
			results{"broken": {failed, ""}, "shaky": {passed, ""}, "meant": {failed, ""}, "worse straight": {failed, ""}})
	}
	if got := c.units(3); len(got) != 0 {
		t.Errorf("2 of 3 decide: got %v to repeat", got)
	}
	c.judge()
	if c.passed != 2 {
		t.Errorf("passed through: got %d, want 2: same and shaky", c.passed)
	}
	if want := []string{"broken", "gone"}; !slices.Equal(c.unexplained, want) {
		t.Errorf("unexplained: got %v, want %v", c.unexplained, want)
	}
	if got := c.explained["so it is"]; !slices.Equal(got, []string{"meant"}) {
		t.Errorf("explained: got %v", c.explained)
	}
	if len(c.unsteady) != 2 || !strings.HasPrefix(c.unsteady[0], "shaky (again: straight 2 of 2, through 2 of 2)") {
		t.Errorf("unsteady: got %q", c.unsteady)
	}
	if explanation("s", "3.10", "session", "meant") != "" {
		t.Error("a reason for auto explains session")
	}
	out := table([]*row{{suite: &suite{name: "s"}, broker: "3.10", straight: direct, through: map[string]*comparison{"auto": c}}})
	if !strings.Contains(out, "| s |  | 3.10 | 6 |  | 2 |") || !strings.Contains(out, "**`auto`, unexplained**: broken, gone") {
		t.Errorf("the table: %s", out)
	}
}

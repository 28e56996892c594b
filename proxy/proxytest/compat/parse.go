// What test runners report, read into results: go test -json, JUnit's XML (phpunit,
// pytest, node), rspec's JSON and the lines of PHP's run-tests.

//go:build linux

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// parseGo reads `go test -json`. A test that began and did not end has failed, as when
// the whole run panics. The unit is the test without its subtests.
func parseGo(out []byte) results {
	got := results{}
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var e struct{ Action, Package, Test string }
		if json.Unmarshal(lines.Bytes(), &e) != nil || e.Test == "" {
			continue
		}
		unit, _, _ := strings.Cut(e.Test, "/")
		one := result{unit: unit}
		switch e.Action {
		case "run", "fail":
		case "pass":
			one.outcome = passed
		case "skip":
			one.outcome = skipped
		default:
			continue
		}
		got[e.Test] = one
	}
	return got
}

// junitCase is a test in JUnit's XML, which has no schema: these are what the runners
// in use agree on.
type junitCase struct {
	Name    string    `xml:"name,attr"`
	Class   string    `xml:"classname,attr"`
	File    string    `xml:"file,attr"`
	Failure *struct{} `xml:"failure"`
	Error   *struct{} `xml:"error"`
	Skipped *struct{} `xml:"skipped"`
	Suites  []string  `xml:"-"` // the suites it stands in, outermost first
}

// parseJUnit reads every testcase; name and unit are made of it by the suite.
func parseJUnit(out []byte, naming func(junitCase) (name, unit string)) (results, error) {
	got := results{}
	var within []string
	d := xml.NewDecoder(bytes.NewReader(out))
	for {
		token, err := d.Token()
		if token == nil && err != nil {
			if len(got) == 0 {
				return nil, fmt.Errorf("no test in the report: %w", err)
			}
			return got, nil // the runner may have ended amid its report
		}
		if end, ok := token.(xml.EndElement); ok && end.Name.Local == "testsuite" {
			within = within[:len(within)-1]
			continue
		}
		start, ok := token.(xml.StartElement)
		if ok && start.Name.Local == "testsuite" {
			within = append(within, attribute(start, "name"))
		}
		if !ok || start.Name.Local != "testcase" {
			continue
		}
		c := junitCase{Suites: slices.Clone(within)}
		if err := d.DecodeElement(&c, &start); err != nil {
			return got, nil
		}
		name, unit := naming(c)
		one := result{outcome: passed, unit: unit}
		switch {
		case c.Failure != nil || c.Error != nil:
			one.outcome = failed
		case c.Skipped != nil:
			one.outcome = skipped
		}
		if old, twice := got[name]; twice && old.outcome < one.outcome {
			one.outcome = old.outcome // the worst of several with the same name
		}
		got[name] = one
	}
}

func attribute(e xml.StartElement, name string) string {
	for _, a := range e.Attr {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

// parseRSpec reads rspec's JSON. The unit is the file.
func parseRSpec(out []byte) (results, error) {
	var report struct {
		Examples []struct {
			Description string `json:"full_description"`
			Status      string `json:"status"`
			File        string `json:"file_path"`
		} `json:"examples"`
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return nil, err
	}
	got := results{}
	for _, e := range report.Examples {
		one := result{unit: strings.TrimPrefix(e.File, "./")}
		switch e.Status {
		case "passed":
			one.outcome = passed
		case "pending":
			one.outcome = skipped
		}
		name := e.Description
		if old, twice := got[name]; twice && old.outcome < one.outcome {
			one.outcome = old.outcome
		}
		got[name] = one
	}
	return got, nil
}

var phptLine = regexp.MustCompile(`(?m)(PASS|FAIL|SKIP|XFAIL|XLEAK|BORK|WARN|LEAK)[^\n\r]* \[(?:[^\]\n]*/)?(tests/[^\]\n]+\.phpt)\]`)

// parsePHPT reads what PHP's run-tests prints. Name and unit are the file.
func parsePHPT(out []byte) results {
	got := results{}
	for _, m := range phptLine.FindAllSubmatch(out, -1) {
		file := string(m[2])
		one := result{unit: file}
		switch string(m[1]) {
		case "PASS":
			one.outcome = passed
		case "SKIP", "XFAIL":
			one.outcome = skipped
		}
		got[strings.TrimSuffix(strings.TrimPrefix(file, "tests/"), ".phpt")] = one
	}
	return got
}

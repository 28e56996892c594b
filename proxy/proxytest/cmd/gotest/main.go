// Command gotest runs "go test" with the arguments given and shows what a person wants
// to see of it: the closing line of each package, all output of tests that failed,
// every test skipped loudly, and the lines in which tests print figures ("FIGURE").
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// event is a line of test2json.
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64 // seconds, of what has ended
}

// took is a test, not one within another, and how long it did.
type took struct {
	test    string
	seconds float64
}

const (
	slow    = 20 // seconds; which tests take longer is told, so that who wants a faster run knows where to look
	slowest = 12
)

func main() {
	began := time.Now()
	args, dir := os.Args[1:], []string(nil)
	if len(args) > 1 && args[0] == "-C" { // which go wants first
		args, dir = args[2:], args[:2]
	}
	cmd := exec.Command("go", slices.Concat([]string{"test"}, dir, []string{"-json"}, args)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gotest:", err)
		os.Exit(1)
	}
	passed, failed, skipped, long := show(out, os.Stdout)
	err = cmd.Wait()
	fmt.Print(longest(long))
	fmt.Printf("%d tests passed, %d failed, %d skipped in %v\n", passed, failed, skipped, time.Since(began).Round(time.Second))
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(max(exit.ExitCode(), 1)) // -1 when a signal ended it
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gotest:", err)
		os.Exit(1)
	}
}

// show filters events from in to out and counts tests and their subtests.
func show(in io.Reader, out io.Writer) (passed, failed, skipped int, long []took) {
	held := map[string][]string{} // output of tests that have not ended, by package and test
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return passed, failed, skipped, long
		}
		var e event
		if json.Unmarshal([]byte(line), &e) != nil {
			fmt.Fprint(out, line) // of the go command itself: a build error, say
			continue
		}
		key := e.Package + " " + e.Test
		switch e.Action {
		case "build-output":
			fmt.Fprint(out, e.Output)
		case "output":
			held[key] = append(held[key], e.Output)
			if strings.Contains(e.Output, "FIGURE") {
				fmt.Fprint(out, e.Output)
			}
		case "pass", "fail", "skip":
			output := held[key]
			delete(held, key)
			if e.Test == "" {
				closing(out, output, e.Action == "fail")
				break
			}
			if e.Elapsed >= slow && !strings.Contains(e.Test, "/") {
				long = append(long, took{e.Test, e.Elapsed})
			}
			switch e.Action {
			case "pass":
				passed++
			case "fail":
				failed++
				fmt.Fprintf(out, "%s", strings.Join(output, ""))
			case "skip":
				skipped++
				if text := strings.Join(output, ""); strings.Contains(text, "SKIPPED LOUDLY") {
					fmt.Fprintf(out, "%s\n%s", e.Package, text)
				}
			}
		}
	}
}

// longest is a line of the tests that took longest.
func longest(all []took) string {
	if len(all) == 0 {
		return ""
	}
	slices.SortFunc(all, func(a, b took) int { return cmp.Compare(b.seconds, a.seconds) })
	var names []string
	for _, t := range all[:min(len(all), slowest)] {
		names = append(names, fmt.Sprintf("%s %.0f s", t.test, t.seconds))
	}
	return "longest: " + strings.Join(names, ", ") + "\n"
}

// closing prints a package's last line; all that it said outside of tests when it failed.
func closing(out io.Writer, output []string, failed bool) {
	for i, line := range output {
		last := i == len(output)-1
		if line == "PASS\n" || strings.Contains(line, "[no test files]") {
			continue
		}
		if failed || last {
			fmt.Fprint(out, line)
		}
	}
}

// Command gotest runs "go test" with the arguments given and shows what a person wants
// to see of it: the closing line of each package, all output of tests that failed,
// every test skipped loudly, and the lines in which tests print figures ("FIGURE").
package main

import (
	"bufio"
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
}

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
	passed, failed, skipped := show(out, os.Stdout)
	err = cmd.Wait()
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
func show(in io.Reader, out io.Writer) (passed, failed, skipped int) {
	held := map[string][]string{} // output of tests that have not ended, by package and test
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return passed, failed, skipped
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

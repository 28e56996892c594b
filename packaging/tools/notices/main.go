// Prints the licences of what programs are linked with: notices PROGRAM... The modules
// are read from the programs themselves, so that nothing is forgotten; the texts come from
// Go's module cache. Go's own library is among them.
package main

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: notices PROGRAM...")
		os.Exit(64)
	}
	out, err := notices(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "notices:", err)
		os.Exit(1)
	}
	os.Stdout.Write(out)
}

func notices(programs []string) ([]byte, error) {
	var modules []string
	for _, program := range programs {
		info, err := buildinfo.ReadFile(program)
		if err != nil {
			return nil, err
		}
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			modules = append(modules, m.Path+"@"+m.Version)
		}
	}
	slices.Sort(modules)
	modules = slices.Compact(modules)

	var b bytes.Buffer
	b.WriteString("amqproxysvc is linked statically with what follows, each under its own licence.\n")
	root, err := output("go", "env", "GOROOT")
	if err != nil {
		return nil, err
	}
	if err := add(&b, "Go's standard library and runtime", strings.TrimSpace(string(root))); err != nil {
		return nil, err
	}
	for _, m := range modules {
		said, err := output("go", "mod", "download", "-json", m)
		if err != nil {
			return nil, err
		}
		var at struct{ Dir string }
		if err := json.Unmarshal(said, &at); err != nil {
			return nil, fmt.Errorf("%s: %w", m, err)
		}
		if err := add(&b, m, at.Dir); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// legal are the names under which licences and what they ask to be passed on are kept.
var legal = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|patents|copyright)([-.].*)?$`)

// add writes what a directory holds of licences. A module without one must not be shipped.
func add(b *bytes.Buffer, name, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	found := false
	for _, e := range entries {
		if e.IsDir() || !legal.MatchString(e.Name()) || strings.HasSuffix(e.Name(), ".go") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // a link to somewhere else
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		found = true
		fmt.Fprintf(b, "\n%s\n%s: %s\n\n%s\n", strings.Repeat("=", 78), name, e.Name(),
			strings.TrimSpace(strings.ReplaceAll(string(text), "\r\n", "\n")))
	}
	if !found {
		return fmt.Errorf("%s has no licence in %s", name, dir)
	}
	return nil
}

func output(name string, args ...string) ([]byte, error) {
	cmd := exec.Command(name, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return out, nil
}

//go:build linux

// The operations chapter, as a new user would follow it: every command in it, in order, on
// a freshly booted machine with a network of its own.

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

const chapter = "service/OPERATIONS.md"

func operationsBed(b *bed) {
	var m *machine
	b.must("a Debian root boots with systemd as PID 1, with a network of its own", func(s *step) {
		var err error
		m, err = newMachine(b.ctx, filepath.Join(b.work, "root"))
		s.check(err)
		m.private = true
		b.cleanup(m.halt)
		s.check(m.boot(b.ctx))
		prog, err := os.ReadFile(filepath.Join(b.bin, "amqproxysvc"))
		s.check(err)
		s.check(os.WriteFile(m.path("/usr/local/bin/amqproxysvc"), prog, 0o755))
		// What the package ca-certificates brings, and the root lacks.
		const bundle = "/etc/ssl/certs/ca-certificates.crt"
		certs, err := os.ReadFile(bundle)
		s.check(err)
		s.check(os.MkdirAll(filepath.Dir(m.path(bundle)), 0o755))
		s.check(os.WriteFile(m.path(bundle), certs, 0o644))
	})
	text, err := os.ReadFile(chapter)
	if err != nil {
		panic(bedFailed{err})
	}
	for _, c := range commandsOf(string(text)) {
		b.step("# "+c.line, func(s *step) {
			out, err := m.run(b.ctx, "sh", "-c", c.line)
			if err != nil {
				s.fail("%w: %s", err, out)
			}
			if !c.output.MatchString(strings.TrimSpace(out)) {
				s.fail("the chapter promises\n%s\nit says\n%s", c.promised, out)
			}
		})
	}
}

type documented struct {
	line     string
	promised string
	output   *regexp.Regexp
}

// commandsOf finds the lines that begin with "# " in console blocks, each with the output
// that follows it: … stands for anything, a line of its own for any lines.
func commandsOf(text string) (all []documented) {
	inside := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "```"):
			inside = line == "```console"
		case !inside:
		case strings.HasPrefix(line, "# "):
			all = append(all, documented{line: line[2:]})
		default:
			c := &all[len(all)-1]
			c.promised += line + "\n"
		}
	}
	for i := range all {
		pattern := regexp.QuoteMeta(strings.TrimSpace(all[i].promised))
		all[i].output = regexp.MustCompile(`(?s)^` + strings.ReplaceAll(pattern, "…", ".*") + `$`)
	}
	return all
}

// Package console reads the console blocks of the documents: commands behind a prompt, and
// what they print. Behind "$ " anybody may run one, behind "# " or "$ sudo " root does, in a
// machine of its own, and "> " is Windows' prompt. A block that no test runs says so and why:
// ```console untried: WHY.
package console

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// Block is one console block of a page.
type Block struct {
	Page     string
	Line     int
	Untried  string // why no test runs it
	Root     bool   // it needs a machine of its own
	Commands []Command
}

// Command is one command with what the page promises of its output.
type Command struct {
	Line     string
	Promised string
	output   *regexp.Regexp
}

// Matches reports whether a command said what is promised: … stands for anything, and a line of
// its own for any lines.
func (c *Command) Matches(said string) bool { return c.output.MatchString(strings.TrimSpace(said)) }

// Read gives the console blocks of a page in their order.
func Read(path string) ([]Block, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, string(text))
}

// Parse is Read of a text.
func Parse(page, text string) (blocks []Block, err error) {
	var b *Block
	fenced := false
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimRight(line, "\r\n")
		switch {
		case strings.HasPrefix(line, "```") && fenced:
			if b != nil && len(b.Commands) == 0 {
				return nil, fmt.Errorf("%s:%d: a console block without a command: it begins with $ or #", page, b.Line)
			}
			fenced, b = false, nil
		case strings.HasPrefix(line, "```"):
			fenced = true
			kind, why, _ := strings.Cut(strings.TrimPrefix(line, "```"), " ")
			if kind != "console" {
				continue
			}
			blocks = append(blocks, Block{Page: page, Line: n})
			b = &blocks[len(blocks)-1]
			if why != "" {
				var ok bool
				if b.Untried, ok = strings.CutPrefix(why, "untried: "); !ok {
					return nil, fmt.Errorf("%s:%d: behind console stands %q, allowed is untried: WHY", page, n, why)
				}
			}
		case b == nil:
		case strings.HasPrefix(line, "> ") && b.Untried == "":
			return nil, fmt.Errorf("%s:%d: nothing here runs a command of Windows: say untried", page, n)
		case strings.HasPrefix(line, "# "), strings.HasPrefix(line, "$ "), strings.HasPrefix(line, "> "):
			b.Root = b.Root || line[0] == '#' || strings.HasPrefix(line, "$ sudo ")
			b.Commands = append(b.Commands, Command{Line: line[2:]})
		case len(b.Commands) == 0:
			return nil, fmt.Errorf("%s:%d: output without a command before it", page, n)
		default:
			c := &b.Commands[len(b.Commands)-1]
			if strings.HasSuffix(c.Line, `\`) {
				c.Line += "\n" + line
				continue
			}
			c.Promised += line + "\n"
		}
	}
	for i := range blocks {
		for j := range blocks[i].Commands {
			c := &blocks[i].Commands[j]
			pattern := regexp.QuoteMeta(strings.TrimSpace(c.Promised))
			c.output = regexp.MustCompile(`(?s)^` + strings.ReplaceAll(pattern, "…", ".*") + `$`)
		}
	}
	return blocks, nil
}

// README's tables of log lines, metrics, flags and commands against the source.

package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/amqproxysvc/amqproxysvc/proxy/admin"
	"github.com/amqproxysvc/amqproxysvc/service/config"
)

// logLines are the messages of all calls that log at Info or above in a package's files.
func logLines(t *testing.T, dir string) (lines []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no source in %s: %v", dir, err)
	}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			at := -1
			switch sel.Sel.Name {
			case "Info", "Warn", "Error":
				at = 0
			case "log": // the engine's helper: level, message
				if len(call.Args) > 1 {
					if level, ok := call.Args[0].(*ast.SelectorExpr); ok && level.Sel.Name != "LevelDebug" {
						at = 1
					}
				}
			}
			if at < 0 || len(call.Args) <= at {
				return true
			}
			arg := call.Args[at]
			if sum, ok := arg.(*ast.BinaryExpr); ok {
				arg = sum.X
			}
			if lit, ok := arg.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				text, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Fatal(err)
				}
				lines = append(lines, strings.TrimSpace(text))
			}
			return true
		})
	}
	return lines
}

func TestReadme(t *testing.T) {
	data, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	readme := strings.ReplaceAll(string(data), "\r\n", "\n")
	var lines []string
	for _, dir := range []string{".", "../../proxy", "../../service"} {
		lines = append(lines, logLines(t, dir)...)
	}
	slices.Sort(lines)
	lines = slices.Compact(lines)
	if len(lines) < 20 {
		t.Errorf("only %d log lines found in the source: %q", len(lines), lines)
	}
	for _, line := range lines {
		if !strings.Contains(readme, "`"+line) {
			t.Errorf("README's table of log lines lacks %q", line)
		}
	}
	for _, name := range admin.Names() {
		if !strings.Contains(readme, "| `"+name+"`") && !strings.Contains(readme, "| `"+name+"{") {
			t.Errorf("README's table of metrics lacks %s", name)
		}
	}
	for i := range config.Table {
		d := &config.Table[i]
		for _, word := range []string{d.Env, d.Flag} {
			if word != "" && !strings.Contains(readme, word) {
				t.Errorf("README lacks %s", word)
			}
		}
	}
	for _, name := range subcommandNames(newRootCommand()) {
		if name != "help" && !strings.Contains(readme, "`amqproxysvc "+name) && !strings.Contains(readme, "`"+name+"`") {
			t.Errorf("README lacks the command %s", name)
		}
	}
}

// The documents against the source and against one another: tables of log lines, metrics,
// flags and commands are whole, links lead somewhere, the README stays short.

package main

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"github.com/amqproxysvc/amqproxysvc/proxy/admin"
	"github.com/amqproxysvc/amqproxysvc/service/config"
)

const (
	top        = "../.."
	commandsMD = "COMMANDS.md"
	monitoring = top + "/service/MONITORING.md"
)

// document is a file of the tree as every system reads it.
func document(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(data), "\r\n", "\n")
}

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

func TestLogLinesAreDocumented(t *testing.T) {
	page := document(t, monitoring)
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
		if !strings.Contains(page, "`"+line) {
			t.Errorf("MONITORING.md's table of log lines lacks %q", line)
		}
	}
}

func TestMetricsAreDocumented(t *testing.T) {
	page := document(t, monitoring)
	names := admin.Names()
	for _, name := range names {
		if !strings.Contains(page, "| `"+name+"`") && !strings.Contains(page, "| `"+name+"{") {
			t.Errorf("MONITORING.md's table of metrics lacks %s", name)
		}
	}
	// What a page tells people to watch must be there to be watched.
	named := regexp.MustCompile(`\bamqproxy(svc)?_[a-z_]+[a-z]`)
	for _, path := range documents(t) {
		if strings.HasSuffix(path, "CHANGELOG.md") {
			continue // tells of names that went
		}
		for _, name := range named.FindAllString(document(t, path), -1) {
			name = strings.TrimSuffix(name, "_bucket")
			if !slices.Contains(names, name) && strings.Count(name, "_") > 1 {
				t.Errorf("%s names the metric %s, which there is not", path, name)
			}
		}
	}
}

// The dashboard and the rules name metrics that there are, and runbooks that lead somewhere.
func TestBoardAndRules(t *testing.T) {
	const dir = top + "/packaging/monitoring/"
	var board struct {
		Title  string `json:"title"`
		Panels []struct {
			Targets []struct {
				Expr string `json:"expr"`
			} `json:"targets"`
		} `json:"panels"`
	}
	if err := json.Unmarshal([]byte(document(t, dir+"grafana.json")), &board); err != nil {
		t.Fatalf("grafana.json: %v", err)
	}
	queries := 0
	for _, p := range board.Panels {
		queries += len(p.Targets)
	}
	if board.Title != "amqproxysvc" || queries < 20 {
		t.Errorf("the board %q has %d queries", board.Title, queries)
	}
	named := regexp.MustCompile(`\bamqproxysvc_[a-z_]+[a-z]`)
	names, used := admin.Names(), map[string]bool{}
	for _, file := range []string{"grafana.json", "amqproxysvc.rules.yml", "amqproxysvc.rules.test.yml"} {
		for _, name := range named.FindAllString(document(t, dir+file), -1) {
			name = strings.TrimSuffix(name, "_bucket")
			used[name] = true
			if !slices.Contains(names, name) {
				t.Errorf("%s names %s, which there is not", file, name)
			}
		}
	}
	if len(used) < 20 {
		t.Errorf("only %d metrics are used: %v", len(used), used)
	}
	rules := document(t, dir+"amqproxysvc.rules.yml")
	found := regexp.MustCompile(`runbook: (\S+)#(\S+)`).FindAllStringSubmatch(rules, -1)
	if alerts := strings.Count(rules, "- alert: "); len(found) != alerts || alerts < 10 {
		t.Errorf("%d alerts have %d runbooks", alerts, len(found))
	}
	for _, m := range found {
		if !anchors(document(t, top+"/"+m[1]))[m[2]] {
			t.Errorf("the runbook %s#%s leads nowhere", m[1], m[2])
		}
	}
}

func TestCommandLineIsDocumented(t *testing.T) {
	page := document(t, commandsMD)
	for i := range config.Table {
		d := &config.Table[i]
		for _, word := range []string{d.Env, d.Flag} {
			if word != "" && !strings.Contains(page, word) {
				t.Errorf("COMMANDS.md lacks %s", word)
			}
		}
	}
	for _, name := range subcommandNames(newRootCommand()) {
		if name != "help" && !strings.Contains(page, "`amqproxysvc "+name) && !strings.Contains(page, "`"+name+"`") {
			t.Errorf("COMMANDS.md lacks the command %s", name)
		}
	}
}

// The README is read first, and only once: what is looked up again stands elsewhere.
func TestReadmeIsShort(t *testing.T) {
	if n := strings.Count(document(t, top+"/README.md"), "\n"); n > 200 {
		t.Errorf("README.md has %d lines, at most 200 are wanted", n)
	}
}

// documents are the tree's Markdown files.
func documents(t *testing.T) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == "dist" || d.Name() == "node_modules") {
			return fs.SkipDir
		}
		if strings.HasSuffix(path, ".md") {
			paths = append(paths, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) < 10 {
		t.Fatalf("only %d documents found: %q", len(paths), paths)
	}
	return paths
}

// Links must lead to a file of the tree, and to a heading in it, without a network.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^()\s]+)\)`)
	known := map[string]map[string]bool{}
	headings := func(path string) map[string]bool {
		if known[path] == nil {
			known[path] = anchors(document(t, path))
		}
		return known[path]
	}
	links := 0
	for _, path := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(prose(document(t, path)), -1) {
			to, err := url.Parse(m[1])
			if err != nil {
				t.Errorf("%s: %q is no link: %v", path, m[1], err)
				continue
			}
			if to.Scheme != "" {
				continue
			}
			links++
			target := path
			if to.Path != "" {
				target = filepath.Join(filepath.Dir(path), filepath.FromSlash(to.Path))
				if _, err := os.Stat(target); err != nil {
					t.Errorf("%s: the link %s leads nowhere", path, m[1])
					continue
				}
			}
			if to.Fragment != "" && !headings(target)[to.Fragment] {
				t.Errorf("%s: the link %s leads to no heading", path, m[1])
			}
		}
	}
	if links < 50 {
		t.Errorf("only %d links found", links)
	}
}

// prose is a document without its blocks of code.
func prose(text string) string {
	var b strings.Builder
	inside := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			inside = !inside
		} else if !inside {
			b.WriteString(line)
		}
	}
	return b.String()
}

// anchors are the names under which a page's headings are linked, as GitHub makes them.
func anchors(text string) map[string]bool {
	all := map[string]bool{}
	for line := range strings.Lines(prose(text)) {
		title := strings.TrimLeft(line, "#")
		if title == line || !strings.HasPrefix(title, " ") {
			continue
		}
		name := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
				return unicode.ToLower(r)
			}
			return -1
		}, strings.TrimSpace(title))
		for n, base := 1, name; all[name]; n++ {
			name = base + "-" + strconv.Itoa(n)
		}
		all[name] = true
	}
	return all
}

// A page too long to be seen at a glance names its sections at its head.
func TestLongPagesHaveContents(t *testing.T) {
	section := regexp.MustCompile(`(?m)^## .*\n`)
	long := 0
	for _, path := range documents(t) {
		text := prose(document(t, path))
		if strings.Count(document(t, path), "\n") < 150 || strings.HasSuffix(path, "CHANGELOG.md") {
			continue
		}
		long++
		_, contents, found := strings.Cut(text, "\nContents: ")
		if !found {
			t.Errorf("%s is long and has no line that begins with Contents:", path)
			continue
		}
		contents, _, _ = strings.Cut(contents, "\n\n")
		for _, heading := range section.FindAllString(text, -1) {
			for name := range anchors(heading) {
				if !strings.Contains(contents, "(#"+name+")") {
					t.Errorf("%s: Contents lacks #%s", path, name)
				}
			}
		}
	}
	if long < 5 {
		t.Errorf("only %d long pages found", long)
	}
}

// What the page on troubleshooting has people look for is said somewhere, in these words.
func TestTroubleshootingNamesWhatIsSaid(t *testing.T) {
	var source strings.Builder
	for _, dir := range []string{".", top + "/proxy", top + "/service"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Name() == "proxytest" {
				return fs.SkipDir
			}
			if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
				source.WriteString(strings.ReplaceAll(document(t, path), `\"`, `"`))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	others := map[string]bool{ // brokers say it, or it is put together
		"broker forced connection closure …": true, "NOT_FOUND - no exchange 'orders'": true, "unknown exchange type": true,
		"… connection limit (…) is reached": true, "no connection to the broker is free: max_upstreams = …": true,
		"client refused: it sent plain AMQP; this port speaks TLS": true, "exit code 78": true, "tcp_nodelay = true": true,
	}
	looked := 0
	_, page, _ := strings.Cut(document(t, top+"/service/TROUBLESHOOTING.md"), "\n## No connection\n") // libraries' words are tried by integration's tests
	for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(prose(page), -1) {
		text := m[1]
		if strings.Count(text, " ") < 2 || strings.HasPrefix(text, "ss ") {
			continue
		}
		if others[text] {
			delete(others, text)
			continue
		}
		for _, piece := range regexp.MustCompile(`…|\.\.\.|= `).Split(text, -1) {
			piece = strings.Trim(piece, " .")
			if looked++; len(piece) > 2 && !strings.Contains(source.String(), piece) {
				t.Errorf("TROUBLESHOOTING.md has %q, and nothing says %q", text, piece)
			}
		}
	}
	if looked < 30 || len(others) > 0 {
		t.Errorf("%d texts found, and not %v", looked, others)
	}
}

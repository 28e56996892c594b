// Makes one page of HTML of all the project's documents: manual TOP PAGE [DIR]. It needs
// nothing else to be read, so its links work without a network: those between documents
// lead to their places in the page. With DIR the documents are copied there, as they lie in
// the tree.
package main

import (
	"bytes"
	"fmt"
	"html"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/text"
	"github.com/yuin/goldmark/util"
)

// chapters are the documents in the order in which one would read them.
var chapters = []string{
	"README.md", "packaging/INSTALL.md", "packaging/kubernetes/README.md", "service/RECIPES.md", "cmd/amqproxysvc/COMMANDS.md", "service/config/SETTINGS.md",
	"service/OPERATIONS.md", "service/MONITORING.md", "service/TROUBLESHOOTING.md", "SECURITY.md", "proxy/BEHAVIOUR.md",
	"proxy/BENCHMARK.md", "proxy/proxytest/compat/README.md", "installer/README.md", "CHANGELOG.md", "CONTRIBUTING.md",
	"proxy/DESIGN.md",
}

const style = `body{font:16px/1.5 sans-serif;max-width:62em;margin:1em auto;padding:0 1em}
pre,code{font:14px/1.4 monospace;background:#f3f3f3}pre{padding:.6em;overflow-x:auto}
table{border-collapse:collapse;display:block;overflow-x:auto}td,th{border:1px solid #ccc;padding:.2em .5em;text-align:left;vertical-align:top}
h1{border-top:3px solid #444;padding-top:.5em;margin-top:2em}nav h1{border:0}`

func main() {
	if len(os.Args) != 3 && len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: manual TOP PAGE [DIR]")
		os.Exit(64)
	}
	page, err := manual(os.Args[1])
	if err == nil {
		err = os.WriteFile(os.Args[2], page, 0o644)
	}
	if err == nil && len(os.Args) == 4 {
		err = copies(os.Args[1], os.Args[3])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "manual:", err)
		os.Exit(1)
	}
}

// copies puts the documents below dir.
func copies(top, dir string) error {
	for _, name := range chapters {
		name = filepath.FromSlash(name)
		data, err := os.ReadFile(filepath.Join(top, name))
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func manual(top string) ([]byte, error) {
	md := goldmark.New(goldmark.WithExtensions(extension.GFM))
	var contents, body bytes.Buffer
	ids := map[string]bool{}
	var links []string
	for _, name := range chapters {
		source, err := os.ReadFile(filepath.Join(top, filepath.FromSlash(name)))
		if err != nil {
			return nil, err
		}
		source = bytes.ReplaceAll(source, []byte("\r\n"), []byte("\n"))
		doc := md.Parser().Parse(text.NewReader(source))
		title, err := place(doc, source, name, ids, &links)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&contents, "<li><a href=\"#%s\">%s</a></li>\n", slug(name), html.EscapeString(title))
		if err := md.Renderer().Render(&body, source, doc); err != nil {
			return nil, err
		}
	}
	for _, to := range links {
		if !ids[to] {
			return nil, fmt.Errorf("a link leads to %q, which is no heading", to)
		}
	}
	var page bytes.Buffer
	fmt.Fprintf(&page, "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>amqproxysvc</title><style>%s</style></head>\n"+
		"<body>\n<nav><h1>amqproxysvc</h1><ol>\n%s</ol></nav>\n%s</body>\n</html>\n", style, contents.String(), body.String())
	return page.Bytes(), nil
}

// place gives every heading of a chapter an id of the whole page, turns links between
// documents into links within it, and returns the chapter's title.
func place(doc ast.Node, source []byte, name string, ids map[string]bool, links *[]string) (title string, err error) {
	err = ast.Walk(doc, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if !entering {
			return ast.WalkContinue, nil
		}
		switch n := n.(type) {
		case *ast.Heading:
			words := plain(n, source)
			id := slug(name)
			if n.Level > 1 || title != "" {
				id += "-" + anchor(words)
			} else {
				title = words
			}
			for i, base := 1, id; ids[id]; i++ {
				id = base + "-" + strconv.Itoa(i)
			}
			ids[id] = true
			n.SetAttributeString("id", []byte(id))
		case *ast.Link:
			to, err := target(name, string(n.Destination))
			if err != nil {
				return ast.WalkStop, err
			}
			if to != "" {
				*links = append(*links, to)
				n.Destination = []byte("#" + to)
			}
		}
		return ast.WalkContinue, nil
	})
	if err == nil && title == "" {
		err = fmt.Errorf("%s has no title", name)
	}
	return title, err
}

// target is the id that a link of a chapter leads to; none for the world outside.
func target(name, dest string) (string, error) {
	file, fragment, _ := strings.Cut(dest, "#")
	switch {
	case strings.Contains(dest, "://"):
		return "", nil
	case file == "":
		file = name
	default:
		file = path.Join(path.Dir(name), file)
	}
	if file == "LICENSE" { // lies beside the page
		return "", nil
	}
	if !slices.Contains(chapters, file) {
		return "", fmt.Errorf("%s links to %s, which is no chapter of the manual", name, dest)
	}
	if fragment == "" {
		return slug(file), nil
	}
	return slug(file) + "-" + fragment, nil
}

// slug is a document's name as a part of an id.
func slug(name string) string {
	return strings.NewReplacer("/", "-", ".md", "").Replace(name)
}

// anchor is a heading's name in links, as GitHub makes it.
func anchor(words string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			return unicode.ToLower(r)
		}
		return -1
	}, words)
}

// plain is a heading without its marks.
func plain(n ast.Node, source []byte) string {
	var b strings.Builder
	_ = ast.Walk(n, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if t, ok := n.(*ast.Text); ok && entering {
			b.Write(util.UnescapePunctuations(t.Segment.Value(source)))
		}
		return ast.WalkContinue, nil
	})
	return b.String()
}

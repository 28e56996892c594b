// The page is whole, and a link that leads nowhere is an error.

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestManual(t *testing.T) {
	page, err := manual("../../..")
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for _, m := range regexp.MustCompile(` id="([^"]*)"`).FindAllStringSubmatch(string(page), -1) {
		if ids[m[1]] {
			t.Errorf("the id %s stands twice", m[1])
		}
		ids[m[1]] = true
	}
	links := regexp.MustCompile(`href="([^"]*)"`).FindAllStringSubmatch(string(page), -1)
	if len(links) < 100 || len(ids) < 100 {
		t.Errorf("%d links and %d headings, many more were expected", len(links), len(ids))
	}
	for _, m := range links {
		switch {
		case strings.HasPrefix(m[1], "#"):
			if !ids[m[1][1:]] {
				t.Errorf("the link %s leads nowhere", m[1])
			}
		case m[1] != "LICENSE" && !strings.HasPrefix(m[1], "https://"):
			t.Errorf("the link %s leaves the page", m[1])
		}
	}
	for _, words := range []string{"<table>", "amqproxysvc_late_errors_total", "drain_timeout", "LOCKED"} {
		if !strings.Contains(string(page), words) {
			t.Errorf("the page lacks %s", words)
		}
	}
}

func TestBrokenLinks(t *testing.T) {
	for link, want := range map[string]string{
		"[x](service/NOWHERE.md)":          "no chapter",
		"[x](service/OPERATIONS.md#not)":   "no heading",
		"[x](#not-here)":                   "no heading",
		"[x](https://example.com/#nobody)": "",
	} {
		dir := t.TempDir()
		if err := copies("../../..", dir); err != nil {
			t.Fatal(err)
		}
		readme := filepath.Join(dir, "README.md")
		text, err := os.ReadFile(readme)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(readme, append(text, "\n"+link+"\n"...), 0o644); err != nil {
			t.Fatal(err)
		}
		switch _, err := manual(dir); {
		case want == "" && err != nil:
			t.Errorf("%s: %v", link, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: error %v, want %s", link, err, want)
		}
	}
}

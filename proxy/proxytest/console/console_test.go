package console

import (
	"strings"
	"testing"
)

const page = "text\n```console\n$ one --a \\\n    --b\nfirst … last\n$ two\n```\n```\n$ no command\n```\n" +
	"```console untried: no network\n$ sudo three\n```\n```console\n# four\n```\n"

func TestParse(t *testing.T) {
	blocks, err := Parse("PAGE.md", page)
	if err != nil {
		t.Fatal(err)
	}
	if len(blocks) != 3 {
		t.Fatalf("%d blocks: %+v", len(blocks), blocks)
	}
	one := blocks[0]
	if one.Root || one.Untried != "" || one.Line != 2 || len(one.Commands) != 2 || one.Commands[0].Line != "one --a \\\n    --b" {
		t.Errorf("the first block is %+v", one)
	}
	for said, want := range map[string]bool{"first and last\n": true, "first \n last": true, "first": false, "the first and last": false} {
		if one.Commands[0].Matches(said) != want {
			t.Errorf("%q: matches %v", said, !want)
		}
	}
	if one.Commands[1].Matches("something") || !one.Commands[1].Matches("\n") {
		t.Error("where nothing is promised, nothing may be said")
	}
	if !blocks[1].Root || blocks[1].Untried != "no network" || !blocks[2].Root || blocks[2].Untried != "" {
		t.Errorf("the others are %+v", blocks[1:])
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"```console\noutput\n```\n":        "PAGE.md:2: output without",
		"```console\n> dir\n```\n":         "PAGE.md:2: nothing here runs",
		"```console\n```\n":                "PAGE.md:1: a console block without",
		"```console skipped\n$ one\n```\n": `PAGE.md:1: behind console stands "skipped"`,
	} {
		if _, err := Parse("PAGE.md", text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

package main

import (
	"encoding/json"
	"strings"
	"testing"
)

// What the program says by itself is ASCII, which every console and pipe of Windows takes alike.
func TestHelpIsASCII(t *testing.T) {
	root := newRootCommand()
	for _, c := range allCommands(root) {
		text := c.Long + c.Short + c.Example + c.UsageString()
		if i := strings.IndexFunc(text, func(r rune) bool { return r > '~' }); i >= 0 {
			t.Errorf("%s: ...%.20q", c.CommandPath(), text[i:])
		}
	}
}

// JSON for Windows is ASCII and means the same; elsewhere it is left alone.
func TestJSONForASystem(t *testing.T) {
	for _, want := range []string{"", "guest", "m\u00fcller\u2192\U0001f407", "\u00fc\"\\", "\x7f", "a\xffb"} {
		text, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if got := jsonFor("linux", text); string(got) != string(text) {
			t.Errorf("%s is %s on Linux", text, got)
		}
		got := jsonFor("windows", text)
		if i := strings.IndexFunc(string(got), func(r rune) bool { return r > '~' && r != '\x7f' }); i >= 0 {
			t.Errorf("%s is %s on Windows", text, got)
		}
		var is, was string
		if json.Unmarshal(got, &is) != nil || json.Unmarshal(text, &was) != nil || is != was {
			t.Errorf("%s means %q on Windows, want %q", got, is, was)
		}
	}
}

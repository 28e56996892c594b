// An AMQProxy ini file: taken for a settings file as it is, or made TOML: the values that
// differ from our defaults, and a comment for each that has no equivalent or no meaning here.

package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// Import reads an AMQProxy ini file and returns the TOML that means the same. Notes are
// what the user should look at; they stand in the TOML as comments too.
func Import(path string) (tomlText string, notes []string, err error) {
	data, err := readFile(path)
	if err != nil {
		return "", nil, &Error{Problems: []string{err.Error()}}
	}
	im := importer{path: path, values: map[string]string{}, lines: map[string]int{}}
	if err := im.read(string(data)); err != nil {
		return "", nil, err
	}
	return im.toml(), im.notes, nil
}

// isINI tells AMQProxy's settings from ours: by the name, or because it is no TOML and has
// AMQProxy's sections and none of ours.
func isINI(path, text string) bool {
	if strings.EqualFold(filepath.Ext(path), ".ini") {
		return true
	}
	theirs := false
	for line := range strings.Lines(text) {
		switch line = strings.TrimSpace(strings.TrimPrefix(line, "\ufeff")); {
		case line == "[main]" || line == "[listen]":
			theirs = true
		case strings.HasPrefix(line, "["):
			return false
		}
	}
	if !theirs {
		return false
	}
	var tree map[string]any
	_, err := toml.Decode(text, &tree)
	return err != nil
}

// loadINI puts the values of an ini file into s, as loadFile does those of our own.
func loadINI(path, text string, s *Settings) (warnings, problems []string, inFile map[string]int) {
	im := importer{path: path, values: map[string]string{}, lines: map[string]int{}}
	if err := im.read(text); err != nil {
		return nil, []string{err.Error()}, nil
	}
	warnings = []string{path + ": an ini file of AMQProxy, taken as it is; `amqproxysvc import-config " + path + "` prints it in the format that has all settings"}
	for i, n := range im.notes {
		if slices.Contains(im.wrongNotes, i) {
			problems = append(problems, path+": "+n)
		} else {
			warnings = append(warnings, path+": "+n)
		}
	}
	for name, value := range im.values {
		_, _ = Find(name).setText(s, &s.Listeners[0], value) // was checked
	}
	return warnings, problems, im.lines
}

// read takes every line; an error is what is no ini file.
func (im *importer) read(text string) error {
	section := ""
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(strings.TrimPrefix(line, "\ufeff"))
		switch {
		case line == "" || line[0] == ';' || line[0] == '#':
		case line[0] == '[':
			name, _, closed := strings.Cut(line[1:], "]")
			if !closed {
				return im.wrong(i, "a section's header is not closed, allowed is [main] or [listen]")
			}
			section = strings.TrimSpace(name)
		default:
			key, value, found := strings.Cut(line, "=")
			if !found {
				return im.wrong(i, "neither [SECTION] nor KEY = VALUE")
			}
			im.take(i, section, strings.TrimSpace(key), strings.TrimSpace(value))
		}
	}
	return nil
}

type importer struct {
	path   string
	values map[string]string // our name to text
	lines  map[string]int    // where they stand
	notes  []string
	// wrongNotes are the notes on values that nobody can take.
	wrongNotes []int
}

func (im *importer) wrong(index int, text string) error {
	return &Error{Problems: []string{fmt.Sprintf("%s:%d: %s", im.path, index+1, text)}}
}

func (im *importer) note(index int, text string) {
	im.notes = append(im.notes, fmt.Sprintf("line %d: %s", index+1, text))
}

// take translates one value. Checked as our own settings are, on a scratch copy.
func (im *importer) take(index int, section, key, value string) {
	name := ""
	switch section + "." + key {
	case "main.upstream", ".upstream":
		name = "upstream.url"
	case "main.log_level", "listen.log_level", ".log_level":
		name = "log.level"
	case "main.idle_connection_timeout", ".idle_connection_timeout":
		name = "pool.idle_timeout"
	case "main.max_upstream_channels", ".max_upstream_channels":
		name = "pool.max_channels"
	case "main.term_timeout", ".term_timeout":
		name = "term_timeout"
	case "main.term_client_close_timeout", ".term_client_close_timeout":
		name = "drain_timeout"
	case "listen.address", "listen.bind":
		name = "listener.address"
	case "listen.port":
		name = "listener.port"
	case "listen.http_port", "main.http_port", ".http_port":
		name = "http.port"
	case "listen.http_bind", "main.http_bind", ".http_bind":
		name = "http.address"
	default:
		// The value of a key that nobody knows may be anything, a secret too: not shown.
		im.note(index, fmt.Sprintf("%q in [%s] has no equivalent and is left out", key, section))
		return
	}
	if value == "" {
		im.note(index, fmt.Sprintf("%q in [%s] is empty and left out", key, section))
		return
	}
	d, scratch := Find(name), Defaults()
	warning, err := d.setText(&scratch, &scratch.Listeners[0], value)
	if err != nil {
		im.wrongNotes = append(im.wrongNotes, len(im.notes))
		im.note(index, fmt.Sprintf("%q in [%s] is left out, for %s", key, section, err))
		return
	}
	if warning != "" {
		im.note(index, fmt.Sprintf("%q in [%s]: %s", key, section, warning))
	}
	if name == "log.level" && strings.ToLower(value) != strings.Trim(d.TOML(&scratch, nil), `"`) {
		im.note(index, fmt.Sprintf("log level %q is called %s here", value, d.TOML(&scratch, nil)))
	}
	im.values[name] = value
	im.lines[name] = index + 1
}

func (im *importer) toml() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Settings of amqproxysvc, imported from %s of AMQProxy.\n", strings.Map(printable, filepath.Base(im.path)))
	b.WriteString("# What is not here has its default; `amqproxysvc sample-config` prints all settings.\n")
	for _, n := range im.notes {
		fmt.Fprintf(&b, "# NOTE %s\n", strings.Map(printable, n))
	}
	s := Defaults()
	l := &s.Listeners[0]
	for name, text := range im.values {
		_, _ = Find(name).setText(&s, l, text) // was checked
	}
	for _, sec := range Sections {
		began := false
		for i := range Table {
			d := &Table[i]
			if _, set := im.values[d.Name()]; !set || d.Section != sec.Name {
				continue
			}
			if !began {
				b.WriteByte('\n')
				if sec.Name != "" {
					b.WriteString(header(sec.Name) + "\n")
				}
				began = true
			}
			fmt.Fprintf(&b, "%s = %s\n", d.Key, d.TOML(&s, l))
		}
	}
	return b.String()
}

// printable keeps a comment on its line.
func printable(r rune) rune {
	if r < ' ' || r == 127 {
		return '?'
	}
	return r
}

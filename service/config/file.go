// The settings file. The TOML library reads it into a tree, and the tree is held against
// the table, so that an unknown or mistyped key is an error that names its line and the
// nearest valid name.

package config

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// loadFile puts the file's values into s. Problems begin with FILE:LINE. inFile has the line
// of each setting of the file, of the first listener's among those of listeners.
func loadFile(path string, env func(string) (string, bool), s *Settings) (warnings, problems []string, inFile map[string]int) {
	data, err := readFile(path)
	if err != nil {
		return nil, []string{err.Error()}, nil
	}
	if isINI(path, string(data)) {
		return loadINI(path, string(data), s)
	}
	dir := "."
	if abs, err := filepath.Abs(path); err == nil {
		dir = filepath.Dir(abs)
	}
	f := fileLoader{path: path, dir: dir, env: env, text: string(data), lines: linesOf(string(data)), s: s, inFile: map[string]int{}}
	f.load()
	return f.warnings, f.problems, f.inFile
}

type fileLoader struct {
	path, dir, text    string
	env                func(string) (string, bool) // nil: none is looked at
	lines              map[place]int
	inFile             map[string]int
	s                  *Settings
	warnings, problems []string
}

func (f *fileLoader) bad(line int, text string) {
	f.problems = append(f.problems, fmt.Sprintf("%s:%d: %s", f.path, max(line, 1), text))
}

func (f *fileLoader) load() {
	var tree map[string]any
	if _, err := toml.Decode(f.text, &tree); err != nil {
		var syntax toml.ParseError
		if errors.As(err, &syntax) {
			f.bad(syntax.Position.Line, "not valid TOML: "+hintBackslash(syntax.Message))
		} else {
			f.bad(1, "not valid TOML: "+err.Error())
		}
		return
	}
	for _, key := range f.inFileOrder(tree, "", 0) {
		value := tree[key]
		if d := find("", key); d != nil {
			f.set(d, nil, 0, value)
			continue
		}
		if key == "listener" {
			f.listeners(value)
			continue
		}
		if take := map[string]func(any){"user": f.users, "broker": f.brokers, "route": f.routes}[key]; take != nil {
			take(value)
			continue
		}
		if key == "limit" {
			f.limits(value)
			continue
		}
		table, isTable := value.(map[string]any)
		if !slices.ContainsFunc(Sections, func(sec Section) bool { return sec.Name == key && key != "" }) {
			if isTable || isTables(value) {
				f.unknownSection(key)
			} else {
				f.unknown("", key, 0)
			}
			continue
		}
		if !isTable {
			f.bad(f.line("", key, 0), fmt.Sprintf("%s is a section, write [%s] and its settings below", key, key))
			continue
		}
		f.section(key, nil, 0, table)
	}
}

// listeners takes the [[listener]] tables; they replace the default one.
func (f *fileLoader) listeners(value any) {
	tables, ok := f.tables("listener", value)
	if !ok {
		return
	}
	f.s.Listeners = nil
	for i, table := range tables {
		l := defaultListener()
		f.section("listener", &l, i, table)
		f.s.Listeners = append(f.s.Listeners, l)
	}
	if len(f.s.Listeners) == 0 {
		f.bad(f.line("listener", "", 0), "no listener is set, at least one is needed")
		f.s.Listeners = Defaults().Listeners
	}
}

// tables are those of a section of which there may be several, or none.
func (f *fileLoader) tables(section string, value any) (tables []map[string]any, ok bool) {
	tables, ok = value.([]map[string]any)
	if list, isList := value.([]any); isList && len(list) == 0 {
		ok = true // user = []
	}
	if !ok {
		f.bad(f.line(section, "", 0), fmt.Sprintf("%[1]s is repeatable, write [[%[1]s]] with two brackets and its settings below", section))
	}
	return tables, ok
}

func (f *fileLoader) section(section string, l *Listener, index int, table map[string]any) {
	for _, key := range f.inFileOrder(table, section, index) {
		if d := find(section, key); d != nil {
			f.set(d, l, index, table[key])
		} else {
			f.unknown(section, key, index)
		}
	}
}

func (f *fileLoader) set(d *Setting, l *Listener, index int, value any) {
	line := f.line(d.Section, d.Key, index)
	if index == 0 {
		f.inFile[d.Name()] = max(line, 1)
	}
	if d.Kind == KindPath || d.Kind == KindPaths {
		value = f.absolute(value)
	}
	if d.Kind == KindSecret {
		value = f.secretPath(value)
	}
	warning, err := d.setTOML(f.s, l, value)
	if err != nil {
		f.bad(line, err.Error())
	} else if warning != "" {
		f.warnings = append(f.warnings, fmt.Sprintf("%s:%d: %s: %s", f.path, max(line, 1), d.Name(), warning))
	}
}

// absolute has a path begin where the file is; of a list, each.
func (f *fileLoader) absolute(value any) any {
	switch v := value.(type) {
	case string:
		if v != "" && !filepath.IsAbs(v) {
			return filepath.Join(f.dir, v)
		}
	case []any:
		all := make([]any, len(v))
		for i, x := range v {
			all[i] = f.absolute(x)
		}
		return all
	}
	return value
}

func (f *fileLoader) unknown(section, key string, index int) {
	name, where := key, "at the top of the file"
	if section != "" {
		name, where = section+"."+key, "in "+header(section)
	}
	text := fmt.Sprintf("unknown setting %q %s", key, where)
	if near := Find(Nearest(name)); near != nil {
		text += fmt.Sprintf(", did you mean %q", near.Key)
		switch {
		case near.Section != section && near.Section == "":
			text += " at the top of the file"
		case near.Section != section:
			text += " in " + header(near.Section)
		}
		text += "?"
	} else {
		text += ", allowed are " + strings.Join(keysOf(section), ", ")
	}
	f.bad(f.line(section, key, index), text)
}

func (f *fileLoader) unknownSection(name string) {
	best, bestDistance := "", len(name)/3+2
	var all []string
	for _, sec := range Sections[1:] {
		if n := Distance(name, sec.Name); n < bestDistance {
			best, bestDistance = sec.Name, n
		}
		all = append(all, header(sec.Name))
	}
	text := fmt.Sprintf("unknown section [%s]", name)
	if best != "" {
		text += fmt.Sprintf(", did you mean %s?", header(best))
	} else {
		text += ", allowed are " + strings.Join(all, " ")
	}
	f.bad(f.line(name, "", 0), text)
}

// inFileOrder are the keys of a table in the order in which they stand in the file.
func (f *fileLoader) inFileOrder(table map[string]any, section string, index int) []string {
	keys := slices.Sorted(maps.Keys(table))
	line := func(key string) int {
		if section == "" {
			if n := f.line("", key, 0); n > 0 {
				return n
			}
			return f.line(key, "", 0)
		}
		return f.line(section, key, index)
	}
	slices.SortStableFunc(keys, func(a, b string) int { return line(a) - line(b) })
	return keys
}

func find(section, key string) *Setting {
	for i := range Table {
		if d := &Table[i]; d.Section == section && d.Key == key {
			return d
		}
	}
	return nil
}

func keysOf(section string) (keys []string) {
	for i := range Table {
		if Table[i].Section == section {
			keys = append(keys, Table[i].Key)
		}
	}
	return keys
}

// header is a section as it is written in the file.
func header(section string) string {
	if section == "listener" || isOptional(section) {
		return "[[" + section + "]]"
	}
	return "[" + section + "]"
}

func isTables(value any) bool {
	_, ok := value.([]map[string]any)
	return ok
}

// hintBackslash helps with the commonest slip on Windows.
func hintBackslash(message string) string {
	if strings.Contains(message, "escape") {
		return message + `; write paths in single quotes: 'C:\dir\file'`
	}
	return message
}

// place is where something stands in the file: the key of the section's table of that
// number, or the section's header where key is "".
type place struct {
	section, key string
	index        int
}

// linesOf finds the line, from 1, of everything. The TOML library gives no positions for
// keys that it has read; what this reading misses (keys within lists and within texts of
// many lines) is the line of a message, not a value.
func linesOf(text string) map[place]int {
	lines := map[place]int{}
	note := func(p place, line int) {
		if _, known := lines[p]; !known {
			lines[p] = line
		}
	}
	section, tables := "", map[string]int{}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			name, _, _ := strings.Cut(strings.TrimLeft(line, "["), "]")
			section = unquoteKey(name)
			note(place{section, "", tables[section]}, i+1)
			tables[section]++
			continue
		}
		left, _, found := strings.Cut(line, "=")
		if !found || strings.HasPrefix(line, "#") {
			continue
		}
		first, rest, dotted := strings.Cut(unquoteKey(left), ".")
		if section != "" {
			note(place{section, first, tables[section] - 1}, i+1)
			continue
		}
		note(place{"", first, 0}, i+1) // a key, or the name of an inline table
		if dotted {
			key, _, _ := strings.Cut(rest, ".")
			note(place{first, key, 0}, i+1)
		}
	}
	return lines
}

// line is where a key stands, else where its section begins; 0 when neither is found.
func (f *fileLoader) line(section, key string, index int) int {
	for _, p := range []place{{section, key, index}, {section, "", index}, {"", section, 0}} {
		if n, known := f.lines[p]; known && p != (place{}) {
			return n
		}
	}
	return 0
}

// unquoteKey undoes the quotes and spaces of a key or a dotted key.
func unquoteKey(text string) string {
	parts := strings.Split(text, ".")
	for i, p := range parts {
		p = strings.TrimSpace(p)
		if u, err := strconv.Unquote(p); err == nil {
			p = u
		}
		parts[i] = strings.Trim(p, "'")
	}
	return strings.Join(parts, ".")
}

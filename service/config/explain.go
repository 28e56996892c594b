// Where the settings in force come from: for who looks at a running proxy.

package config

import "fmt"

// Explained is one setting in force.
type Explained struct {
	Name   string // section.key; of listeners after the first, section[2].key
	Value  string // as TOML
	Origin string // "default", "FILE:LINE", "environment NAME", "command line FLAG"
}

// Explain says where each value of s came from, which Load has just read from src.
func Explain(src Source, s *Settings) []Explained {
	scratch := Defaults()
	var inFile map[string]int
	if src.File != "" {
		_, _, inFile = loadFile(src.File, src.Env, &scratch)
	}
	all := make([]Explained, 0, len(Table))
	for i := range Table {
		d := &Table[i]
		if isOptional(d.Section) {
			all = append(all, d.ofTables(src, s, inFile)...)
			continue
		}
		if d.Section != "listener" {
			all = append(all, Explained{d.Name(), d.TOML(s, &s.Listeners[0]), originOf(d, src, inFile)})
			continue
		}
		for j := range s.Listeners {
			e := Explained{d.Name(), d.TOML(s, &s.Listeners[j]), originOf(d, src, inFile)}
			if j > 0 {
				e.Name = fmt.Sprintf("%s[%d].%s", d.Section, j+1, d.Key)
				e.Origin = "default"
				if first := defaultListener(); d.TOML(s, &first) != e.Value {
					e.Origin = src.File
				}
			}
			all = append(all, e)
		}
	}
	return all
}

// ofTables is a setting of [[user]], [[limit]], [[broker]] or [[route]], once for each.
func (d *Setting) ofTables(src Source, s *Settings, inFile map[string]int) (all []Explained) {
	none := Defaults()
	with := *s
	of := optional[d.Section]
	for i := range of.n(s) {
		of.pick(&with, i)
		e := Explained{d.Name(), d.shown(&with, nil), originOf(d, src, inFile)}
		if i > 0 {
			e.Name = fmt.Sprintf("%s[%d].%s", d.Section, i+1, d.Key)
			e.Origin = "default"
			if d.TOML(&with, nil) != d.TOML(&none, nil) {
				e.Origin = src.File
			}
		}
		all = append(all, e)
	}
	return all
}

func originOf(d *Setting, src Source, inFile map[string]int) string {
	for i := len(src.CommandLine) - 1; i >= 0; i-- {
		if o := src.CommandLine[i]; o.Setting == d {
			return "command line " + o.Origin
		}
	}
	if src.Env != nil && d.Env != "" {
		if value, set := src.Env(d.Env); set && value != "" {
			return "environment " + d.Env
		}
	}
	if line, set := inFile[d.Name()]; set {
		return fmt.Sprintf("%s:%d", src.File, line)
	}
	return "default"
}

// What an installed service would run with: its command line, its environment, and where
// its sandbox lets it write. `check-config` and `restart` look before they leap with it.

package service

import (
	"strings"
)

// Installed is how a service manager would start the service now.
type Installed struct {
	Name string
	// Args is the command line behind the program.
	Args []string
	// Env looks up the service's environment.
	Env func(string) (string, bool)
	// EnvFiles are the files that Env was read from.
	EnvFiles []string
	// Sockets are the addresses on which a socket unit listens for it, HOST:PORT.
	Sockets []string
	// User runs it; empty: not known.
	User string
	// Writable are the directories that its sandbox lets it write to; nil: all.
	Writable []string
	// Running: there is a process of it.
	Running bool
}

// MayWrite reports whether the service's sandbox lets it write to a file.
func (i *Installed) MayWrite(file string) bool {
	if i.Writable == nil {
		return true
	}
	for _, dir := range i.Writable {
		if file == dir || strings.HasPrefix(file, strings.TrimSuffix(dir, "/")+"/") {
			return true
		}
	}
	return false
}

// parseEnvironment reads what systemd.exec(5) calls an environment file: NAME=VALUE, with
// quotes, backslashes and comments, and without expansion.
func parseEnvironment(text string) map[string]string {
	env := map[string]string{}
	for len(text) > 0 {
		text = strings.TrimLeft(text, " \t\r\n")
		if text == "" {
			break
		}
		if text[0] == '#' || text[0] == ';' {
			_, text, _ = strings.Cut(text, "\n")
			continue
		}
		end := strings.IndexAny(text, "=\n")
		if end < 0 || text[end] == '\n' {
			_, text, _ = strings.Cut(text, "\n")
			continue
		}
		name := strings.TrimSpace(text[:end])
		var value string
		value, text = environmentValue(text[end+1:])
		env[name] = value
	}
	return env
}

// environmentValue reads up to the end of the line.
func environmentValue(text string) (value, rest string) {
	var b strings.Builder
	text = strings.TrimLeft(text, " \t")
	quote := byte(0)
	solid := 0 // length without the blanks at the end
	i := 0
	for ; i < len(text); i++ {
		c := text[i]
		switch {
		case quote == 0 && c == '\n':
			return b.String()[:solid], text[i+1:]
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
			solid = b.Len()
		case quote != 0 && c == quote:
			quote = 0
			solid = b.Len()
		case c == '\\' && quote != '\'' && i+1 < len(text):
			i++
			switch next := text[i]; {
			case next == '\n': // goes on in the next line
			case quote == '"' && !strings.ContainsRune("\"\\`$", rune(next)):
				b.WriteByte('\\')
				b.WriteByte(next)
			default:
				b.WriteByte(next)
			}
			solid = b.Len()
		default:
			b.WriteByte(c)
			if quote != 0 || c != ' ' && c != '\t' && c != '\r' {
				solid = b.Len()
			}
		}
	}
	return b.String()[:solid], ""
}

// words splits what systemctl shows of a list: blanks between, quotes around a word.
func words(text string) (list []string) {
	for text = strings.TrimSpace(text); text != ""; text = strings.TrimSpace(text) {
		word, rest := "", ""
		if text[0] == '"' || text[0] == '\'' {
			if end := strings.IndexByte(text[1:], text[0]); end >= 0 {
				word, rest = text[1:end+1], text[end+2:]
			} else {
				word = text[1:]
			}
		} else {
			word, rest, _ = strings.Cut(text, " ")
		}
		list = append(list, word)
		text = rest
	}
	return list
}

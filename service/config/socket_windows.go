package config

import "strings"

const socketPathAllowed = `the name of a pipe, as \\.\pipe\amqproxysvc-eu`

// socketPath reports whether it names a pipe of this machine.
func socketPath(path string) bool {
	name, ok := strings.CutPrefix(strings.ToLower(path), `\\.\pipe\`)
	return ok && name != "" && !strings.Contains(name, `\`)
}

//go:build unix

package config

import "path/filepath"

const socketPathAllowed = "a full path of at most 107 letters, as /run/amqproxysvc/control.sock"

// socketPath reports whether a Unix socket can have that path (unix(7): sun_path).
func socketPath(path string) bool { return filepath.IsAbs(path) && len(path) <= 107 }

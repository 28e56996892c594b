// The live page's settings: whether it is served, and its password.

package config

import (
	"fmt"
	"net"
	"strings"
)

// ServesPage reports whether the live page is served: on loopback, or with a password.
func (h HTTP) ServesPage() bool {
	if !h.Page || h.Port == 0 {
		return false
	}
	host := strings.TrimSuffix(strings.TrimPrefix(h.Address, "["), "]")
	ip := net.ParseIP(host)
	return h.PasswordFile != "" || strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}

// Password is the first line of the password file, "" where none is set.
func (h HTTP) Password() (string, error) {
	if h.PasswordFile == "" {
		return "", nil
	}
	data, err := readSecretFile(h.PasswordFile)
	if err != nil {
		return "", &Error{Problems: []string{"http.password_file: " + err.Error()}}
	}
	line, _, _ := strings.Cut(string(data), "\n")
	if line = strings.TrimSuffix(line, "\r"); line == "" {
		return "", &Error{Problems: []string{fmt.Sprintf("http.password_file: %s: its first line is empty, it is the password", h.PasswordFile)}}
	}
	return line, nil
}

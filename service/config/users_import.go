// Users out of the definitions that RabbitMQ exports: their hashes as they are, and the vhosts for which
// they have permissions.

package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/amqproxysvc/amqproxysvc/proxy/hash"
)

// definitions are as much of RabbitMQ's as is looked at.
type definitions struct {
	Users []struct {
		Name         string `json:"name"`
		PasswordHash string `json:"password_hash"`
		Algorithm    string `json:"hashing_algorithm"`
	} `json:"users"`
	Permissions []struct {
		User  string `json:"user"`
		VHost string `json:"vhost"`
	} `json:"permissions"`
}

// ImportUsers makes [[user]] tables of a file of definitions. notes say who cannot be taken.
func ImportUsers(path string) (text string, notes []string, err error) {
	data, err := readFile(path)
	if err != nil {
		return "", nil, err
	}
	var d definitions
	if err := json.Unmarshal(data, &d); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			line := 1 + strings.Count(string(data[:min(int(syntax.Offset), len(data))]), "\n")
			return "", nil, fmt.Errorf("%s:%d: not valid JSON: %s", path, line, syntax.Error())
		}
		return "", nil, fmt.Errorf("%s: not definitions of RabbitMQ's: %s", path, strings.TrimPrefix(err.Error(), "json: "))
	}
	if d.Users == nil {
		return "", nil, fmt.Errorf("%s: has no users, allowed are definitions of RabbitMQ's (rabbitmqctl export_definitions FILE)", path)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Users of RabbitMQ, imported from %s. For each, the file named needs\n# the password that the broker is sent.\n", strings.Map(printable, filepath.Base(path)))
	seen, files := map[string]bool{}, map[string]bool{}
	for _, u := range d.Users {
		note := func(why string) { notes = append(notes, fmt.Sprintf("user %q is left out: %s", u.Name, why)) }
		switch {
		case u.Name == "":
			note("it has no name")
			continue
		case seen[u.Name]:
			note("it stands there twice")
			continue
		case u.PasswordHash == "":
			note("it has no password")
			continue
		}
		if _, err := hash.Parse(u.PasswordHash); err != nil {
			note("its password_hash " + err.Error())
			continue
		}
		seen[u.Name] = true
		var vhosts []string
		for _, p := range d.Permissions {
			if p.User == u.Name && !slices.Contains(vhosts, p.VHost) {
				vhosts = append(vhosts, p.VHost)
			}
		}
		file := secretName(u.Name)
		for n := 2; files[file]; n++ {
			file = fmt.Sprintf("%s-%d", secretName(u.Name), n)
		}
		files[file] = true
		fmt.Fprintf(&b, "\n[[user]]\nname = %s\npassword_hash = %s\n", quoteTOML(u.Name), quoteTOML(u.PasswordHash))
		if len(vhosts) > 0 {
			fmt.Fprintf(&b, "vhosts = %s\n", listTOML(vhosts))
		}
		fmt.Fprintf(&b, "broker_password_file = %s\n", quoteTOML(file))
	}
	return b.String(), notes, nil
}

// secretName is a name of a file for the secret of a user.
func secretName(user string) string {
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
			return r
		}
		return '_'
	}, user)
	return name[:min(len(name), 60)] + ".password"
}

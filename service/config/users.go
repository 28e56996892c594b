// Users whose credentials the proxy keeps: the [[user]] tables, what goes together in them, and
// the files in which their secrets for the broker are.

package config

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
	"github.com/amqproxysvc/amqproxysvc/proxy/hash"
)

// User is one [[user]] table.
type User struct {
	Name         string
	PasswordHash string
	Certificate  string
	VHosts       []string

	BrokerUser         string // "": Name
	BrokerPasswordFile string
}

// users takes the [[user]] tables.
func (f *fileLoader) users(value any) {
	tables, ok := value.([]map[string]any)
	if list, isList := value.([]any); isList && len(list) == 0 {
		ok = true // user = []
	}
	if !ok {
		f.bad(f.line("user", "", 0), "user is repeatable, write [[user]] with two brackets and its settings below")
		return
	}
	for i, table := range tables {
		f.s.user = User{}
		f.section("user", nil, i, table)
		f.s.Users = append(f.s.Users, f.s.user)
	}
	f.s.user = User{}
}

// brokerUser is whom the broker knows the user as.
func (u *User) brokerUser() string {
	if u.BrokerUser != "" {
		return u.BrokerUser
	}
	return u.Name
}

// which names a user in a problem, by its number from 1.
func (u *User) which(i int) string {
	if u.Name == "" {
		return fmt.Sprintf("user %d", i+1)
	}
	return fmt.Sprintf("user %d (%s)", i+1, Redact(u.Name))
}

// checkUsers looks at what goes together.
func (s *Settings) checkUsers() (problems []string) {
	first, shown := map[string]int{}, map[string]int{}
	for i := range s.Users {
		u := &s.Users[i]
		bad := func(format string, args ...any) {
			problems = append(problems, u.which(i)+": "+fmt.Sprintf(format, args...))
		}
		if j, twice := first[u.Name]; twice && u.Name != "" {
			bad("user.name is that of user %d too, allowed is one [[user]] for a name", j+1)
		} else {
			first[u.Name] = i
		}
		if u.Name == "" {
			bad("user.name is not set, it is the name that its clients send")
		}
		if u.Certificate != "" {
			if j, twice := shown[u.Certificate]; twice {
				bad("user.certificate is that of user %d too, allowed is one [[user]] for a certificate", j+1)
			}
			shown[u.Certificate] = i
		}
		if u.PasswordHash == "" && u.Certificate == "" {
			bad("neither user.password_hash nor user.certificate is set: amqproxysvc hash-password makes a hash")
		} else if u.PasswordHash == "" {
		} else if _, err := hash.Parse(u.PasswordHash); err != nil {
			bad("user.password_hash %s", err)
		}
		if u.BrokerPasswordFile == "" {
			bad("user.broker_password_file is not set, it holds the password that the broker knows %s by", Redact(u.brokerUser()))
		}
	}
	if s.Auth.UnknownUsers == string(proxy.UnknownRefuse) && len(s.Users) == 0 {
		problems = append(problems, "auth.unknown_users is refuse, which needs a [[user]]: nobody could log in")
	}
	return problems
}

// engineUsers reads the files. Problems name setting and file, and nothing of what is in it.
func (s *Settings) engineUsers() (users []proxy.User, problems []string) {
	for i := range s.Users {
		u := &s.Users[i]
		var h hash.Hash
		if u.PasswordHash != "" {
			var err error
			if h, err = hash.Parse(u.PasswordHash); err != nil {
				problems = append(problems, u.which(i)+": user.password_hash "+err.Error())
				continue
			}
		}
		p, err := u.provider()
		if err != nil {
			problems = append(problems, u.which(i)+": "+err.Error())
			continue
		}
		users = append(users, proxy.User{Name: u.Name, Password: h, Certificate: u.Certificate, VHosts: u.VHosts, Broker: p})
	}
	return users, problems
}

func (u *User) provider() (proxy.Provider, error) {
	secret, err := readSecret("user.broker_password_file", u.BrokerPasswordFile)
	if err != nil {
		return nil, err
	}
	return proxy.Password{User: u.brokerUser(), Secret: broker.NewSecret(secret)}, nil
}

// readSecret is the first line of a file that only its owner and group may read.
func readSecret(setting, file string) (string, error) {
	if mode, open := readableByAll(file); open {
		return "", fmt.Errorf("%s: %s: everybody on this machine may read or change it (mode %04o), allowed is 0640 or stricter", setting, file, mode)
	}
	data, err := readFile(file)
	if err != nil {
		return "", fmt.Errorf("%s: %w", setting, err)
	}
	line, _, _ := strings.Cut(string(data), "\n")
	line = strings.TrimSuffix(line, "\r")
	switch {
	case line == "":
		return "", fmt.Errorf("%s: %s: its first line is empty, it is the secret", setting, file)
	case strings.ContainsRune(line, 0):
		return "", fmt.Errorf("%s: %s: has a NUL in its first line, which no password has", setting, file)
	}
	return line, nil
}

// secretPath is where a secret is: a name without a directory is that of a credential of systemd, where there is one.
func (f *fileLoader) secretPath(value any) any {
	name, ok := value.(string)
	if !ok || name == "" || filepath.Base(name) != name || f.env == nil {
		return f.absolute(value)
	}
	if dir, set := f.env("CREDENTIALS_DIRECTORY"); set && dir != "" {
		if path := filepath.Join(dir, name); exists(path) {
			return path
		}
	}
	return f.absolute(value)
}

// SecretFiles are the files that secrets are in.
func (s *Settings) SecretFiles() (files []string) {
	for i := range s.Users {
		files = append(files, s.Users[i].BrokerPasswordFile)
	}
	return files
}

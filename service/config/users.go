// Users whose credentials the proxy keeps: the [[user]] tables, what goes together in them, and
// the files in which their secrets for the broker are.

package config

import (
	"fmt"
	"net"
	"net/url"
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

	Provider                  string // "": password
	InstanceID                string
	AccessKeyFile             string
	SecurityTokenFile         string // "": the key is not a temporary one
	TokenURL, ClientID, Scope string
	ClientSecretFile          string
}

// The ways to what the broker is sent for a user.
const (
	providerPassword = "password"
	providerAlibaba  = "alibaba"
	providerOAuth2   = "oauth2"
	providerExternal = "external"
)

// users takes the [[user]] tables.
func (f *fileLoader) users(value any) {
	tables, _ := f.tables("user", value)
	for i, table := range tables {
		f.s.user = defaultUser()
		f.section("user", nil, i, table)
		f.s.Users = append(f.s.Users, f.s.user)
	}
	f.s.user = defaultUser()
}

func defaultUser() User { return User{Provider: providerPassword} }

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
		if u.PasswordHash == "" && u.Certificate == "" && u.Provider != providerAlibaba { // there its key lets it in
			bad("neither user.password_hash nor user.certificate is set: amqproxysvc hash-password makes a hash")
		} else if u.PasswordHash == "" {
		} else if _, err := hash.Parse(u.PasswordHash); err != nil {
			bad("user.password_hash %s", err)
		}
		u.checkProvider(s, bad)
	}
	if s.Auth.UnknownUsers == string(proxy.UnknownRefuse) && len(s.Users) == 0 {
		problems = append(problems, "auth.unknown_users is refuse, which needs a [[user]]: nobody could log in")
	}
	return problems
}

// checkProvider looks at what a provider needs, and at what it has no use for.
func (u *User) checkProvider(s *Settings, bad func(string, ...any)) {
	for _, needs := range []struct{ provider, setting, value, is string }{
		{providerPassword, "broker_password_file", u.BrokerPasswordFile, "it holds the password that the broker knows " + Redact(u.brokerUser()) + " by"},
		{providerAlibaba, "instance_id", u.InstanceID, "it is that of the ApsaraMQ instance"},
		{providerAlibaba, "access_key_file", u.AccessKeyFile, "it holds the AccessKey id and its secret, a line each"},
		{providerOAuth2, "token_url", u.TokenURL, "it is where the issuer gives tokens"},
		{providerOAuth2, "client_id", u.ClientID, "it is how the issuer knows the proxy"},
		{providerOAuth2, "client_secret_file", u.ClientSecretFile, "it holds the secret for the issuer"},
	} {
		switch {
		case u.Provider == needs.provider && needs.value == "":
			bad("user.%s is not set, %s", needs.setting, needs.is)
		case u.Provider != needs.provider && needs.value != "":
			bad("user.%s is for provider = %q, user.provider is %q", needs.setting, needs.provider, u.Provider)
		}
	}
	if u.Provider == providerOAuth2 && u.TokenURL != "" && !safeURL(u.TokenURL) {
		bad("user.token_url is %q, allowed is https://HOST/PATH, or http:// on loopback: the secret goes there", Redact(u.TokenURL))
	}
	switch {
	case u.Scope != "" && u.Provider != providerOAuth2:
		bad("user.scope is for provider = %q, user.provider is %q", providerOAuth2, u.Provider)
	case u.SecurityTokenFile != "" && u.Provider != providerAlibaba:
		bad("user.security_token_file is for provider = %q, user.provider is %q", providerAlibaba, u.Provider)
	case u.Provider == providerAlibaba && u.BrokerUser != "":
		bad("user.broker_user is set, and user.provider is alibaba, whose names are made of the AccessKey")
	case u.Provider == providerExternal && (!s.Broker.TLS || s.TLS.CertFile == ""):
		bad("user.provider is external, which needs an amqps URL and tls.cert_file: the broker is shown that certificate")
	}
}

// safeURL reports whether a secret may be sent there.
func safeURL(text string) bool {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Scheme == "https" || u.Scheme == "http" && (u.Hostname() == "localhost" || ip != nil && ip.IsLoopback())
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
	switch u.Provider {
	case providerExternal:
		return proxy.Certificate{User: u.brokerUser()}, nil
	case providerOAuth2:
		secret, err := readSecret("user.client_secret_file", u.ClientSecretFile)
		if err != nil {
			return nil, err
		}
		return proxy.OAuth2{User: u.brokerUser(), TokenURL: u.TokenURL, ClientID: u.ClientID, Secret: broker.NewSecret(secret), Scope: u.Scope}, nil
	case providerAlibaba:
		id, secret, err := readTwo("user.access_key_file", u.AccessKeyFile)
		if err != nil {
			return nil, err
		}
		key := proxy.AccessKey{Instance: u.InstanceID, ID: id, Secret: broker.NewSecret(secret)}
		if u.SecurityTokenFile != "" {
			token, err := readSecret("user.security_token_file", u.SecurityTokenFile)
			if err != nil {
				return nil, err
			}
			key.Token = broker.NewSecret(token)
		}
		return key, nil
	}
	secret, err := readSecret("user.broker_password_file", u.BrokerPasswordFile)
	if err != nil {
		return nil, err
	}
	return proxy.Password{User: u.brokerUser(), Secret: broker.NewSecret(secret)}, nil
}

// readSecret is the first line of a file that only its owner and group may read.
func readSecret(setting, file string) (string, error) {
	lines, err := readSecrets(setting, file)
	if err != nil {
		return "", err
	}
	return lines[0], nil
}

// readTwo are the first two lines.
func readTwo(setting, file string) (first, second string, err error) {
	lines, err := readSecrets(setting, file)
	if err != nil {
		return "", "", err
	}
	if len(lines) < 2 || lines[1] == "" || strings.ContainsRune(lines[1], 0) {
		return "", "", fmt.Errorf("%s: %s: has no second line, it is the secret", setting, file)
	}
	return lines[0], lines[1], nil
}

func readSecrets(setting, file string) (lines []string, err error) {
	if mode, open := readableByAll(file); open {
		return nil, fmt.Errorf("%s: %s: everybody on this machine may read or change it (mode %04o), allowed is 0640 or stricter", setting, file, mode)
	}
	data, err := readSecretFile(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", setting, err)
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		lines = append(lines, strings.TrimSuffix(line, "\r"))
	}
	switch {
	case lines[0] == "":
		return nil, fmt.Errorf("%s: %s: its first line is empty, it is the secret", setting, file)
	case strings.ContainsRune(lines[0], 0):
		return nil, fmt.Errorf("%s: %s: has a NUL in its first line, which no password has (is it UTF-16, as PowerShell's > writes it? wanted is UTF-8)", setting, file)
	}
	return lines, nil
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
		u := &s.Users[i]
		for _, f := range []string{u.BrokerPasswordFile, u.AccessKeyFile, u.SecurityTokenFile, u.ClientSecretFile} {
			if f != "" {
				files = append(files, f)
			}
		}
	}
	return files
}

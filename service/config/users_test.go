package config

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/hash"
)

// aHash is RabbitMQ's of "test12", from its documentation.
const aHash = "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"

// usersFile writes a settings file and the secret x.password beside it.
func usersFile(t *testing.T, text string) (dir, file string) {
	t.Helper()
	dir = t.TempDir()
	file = filepath.Join(dir, "a.toml")
	for name, data := range map[string]string{"a.toml": text, "x.password": "s3cr3t\nand a comment\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, file
}

func TestUsers(t *testing.T) {
	dir, file := usersFile(t, fmt.Sprintf(`
[auth]
unknown_users = "refuse"
[[user]]
name = "shop"
password_hash = %q
vhosts = ["a", "b"]
broker_user = "prod-shop"
broker_password_file = "x.password"
[[user]]
name = "till"
password_hash = %q
broker_password_file = "x.password"
`, aHash, aHash))
	s, warnings, err := Load(Source{File: file})
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	c, err := s.ProxyConfig("dev", nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.UnknownUsers != proxy.UnknownRefuse || len(c.Users) != 2 {
		t.Fatalf("%+v", c.Users)
	}
	for i, want := range []struct {
		name, at string
		vhosts   []string
	}{{"shop", "prod-shop", []string{"a", "b"}}, {"till", "till", nil}} {
		u := c.Users[i]
		p, ok := u.Broker.(proxy.Password)
		if !ok || u.Name != want.name || p.User != want.at || p.Secret.Reveal() != "s3cr3t" || !slices.Equal(u.VHosts, want.vhosts) || !u.Password.Matches("test12") {
			t.Errorf("user %d is %+v", i+1, u)
		}
	}
	if files := s.SecretFiles(); len(files) != 2 || files[0] != filepath.Join(dir, "x.password") {
		t.Errorf("secrets are in %q", files)
	}
	// Nothing that shows the settings shows a hash.
	shown := map[string]Explained{}
	for _, e := range Explain(Source{File: file}, &s) {
		shown[e.Name] = e
		if strings.Contains(e.Value, aHash) || strings.Contains(e.Value, "s3cr3t") {
			t.Errorf("%s is shown as %s", e.Name, e.Value)
		}
	}
	for name, want := range map[string]Explained{
		"user.name":             {"user.name", `"shop"`, file + ":5"},
		"user.password_hash":    {"user.password_hash", `"[redacted]"`, file + ":6"},
		"user[2].name":          {"user[2].name", `"till"`, file},
		"user[2].password_hash": {"user[2].password_hash", `"[redacted]"`, file},
		"user[2].vhosts":        {"user[2].vhosts", "[]", "default"},
		"auth.unknown_users":    {"auth.unknown_users", `"refuse"`, file + ":3"},
	} {
		if shown[name] != want {
			t.Errorf("%s is explained as %+v, want %+v", name, shown[name], want)
		}
	}
	if runtime.GOOS == "windows" {
		return
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, warnings, err := Load(Source{File: file}); err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "hashes of its [[user]] (mode 0644)") {
		t.Errorf("a file that everybody may read: %v %q", err, warnings)
	}
}

// A name without a directory is that of a credential, if there is one.
func TestSecretsThatAreCredentials(t *testing.T) {
	dir, file := usersFile(t, "[[user]]\nname = \"u\"\npassword_hash = \""+aHash+"\"\nbroker_password_file = \"x.password\"\n")
	credentials := t.TempDir()
	env := func(name string) (string, bool) { return credentials, name == "CREDENTIALS_DIRECTORY" }
	where := func() string {
		s, _, err := Load(Source{File: file, Env: env})
		if err != nil {
			t.Fatal(err)
		}
		return s.Users[0].BrokerPasswordFile
	}
	if got := where(); got != filepath.Join(dir, "x.password") {
		t.Errorf("without such a credential it is %s", got)
	}
	at := filepath.Join(credentials, "x.password")
	if err := os.WriteFile(at, []byte("of systemd"), 0o400); err != nil {
		t.Fatal(err)
	}
	if got := where(); got != at {
		t.Errorf("it is %s, want the credential %s", got, at)
	}
}

// A certificate that lets nobody in is said, and a name that is asked of none refused.
func TestCertificatesOfUsers(t *testing.T) {
	const certified = "[[user]]\nname = \"a\"\ncertificate = \"x\"\nbroker_password_file = \"x.password\"\n"
	_, file := usersFile(t, certified)
	s, _, err := Load(Source{File: file})
	if err != nil {
		t.Fatal(err)
	}
	if w := s.Warnings(); len(w) != 1 || !strings.Contains(w[0], "user 1 (a): user.certificate is set but no listener has external_user") {
		t.Errorf("warnings are %q", w)
	}
	c, err := s.ProxyConfig("dev", nil)
	if err != nil || len(c.Users) != 1 || c.Users[0].Certificate != "x" || !c.Users[0].Password.IsZero() {
		t.Errorf("%v: %+v", err, c.Users)
	}
	_, file = usersFile(t, "[[listener]]\ntls = true\ncert_file = \"c\"\nkey_file = \"k\"\nexternal_user = \"cn\"\n"+certified)
	if _, _, err := Load(Source{File: file}); err == nil || !strings.Contains(err.Error(), "listener 1: listener.external_user is cn, which needs listener.client_cert") {
		t.Errorf("names out of no certificate: %v", err)
	}
}

// What the broker is sent: a password, a pair made of an AccessKey, a certificate.
func TestProviders(t *testing.T) {
	const head = "[[user]]\nname = \"a\"\npassword_hash = \"" + aHash + "\"\n"
	const key = "provider = \"alibaba\"\ninstance_id = \"amqp-cn-1\"\naccess_key_file = \"k\"\n"
	load := func(text string, files map[string]string) (proxy.Provider, error) {
		dir, file := usersFile(t, text)
		for name, data := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s, _, err := Load(Source{File: file})
		if err != nil {
			return nil, err
		}
		c, problems := s.engineUsers()
		if len(problems) > 0 {
			return nil, &Error{Problems: problems}
		}
		return c[0].Broker, nil
	}
	keys := map[string]string{"k": "LTAI5t\nk3y\n", "t": "st5\n"}
	p, err := load(head+key, keys)
	if k, ok := p.(proxy.AccessKey); err != nil || !ok || k.Instance != "amqp-cn-1" || k.ID != "LTAI5t" || k.Secret.Reveal() != "k3y" || k.Token.Reveal() != "" {
		t.Errorf("%v: %+v", err, p)
	}
	p, err = load(head+key+"security_token_file = \"t\"\n", keys)
	if k, ok := p.(proxy.AccessKey); err != nil || !ok || k.Token.Reveal() != "st5" {
		t.Errorf("%v: %+v", err, p)
	}
	// With a key applications may be let in by what they sign with it, and by nothing else.
	if p, err = load("[[user]]\nname = \"a\"\n"+key, keys); err != nil || p == nil {
		t.Errorf("a user with a key alone: %v", err)
	}
	p, err = load("[upstream]\nurl = \"amqps://b\"\n[tls]\ncert_file = \"c\"\nkey_file = \"k\"\n"+head+"provider = \"external\"\nbroker_user = \"b\"\n", nil)
	if c, ok := p.(proxy.Certificate); err != nil || !ok || c.User != "b" {
		t.Errorf("%v: %+v", err, p)
	}
	const issuer = "provider = \"oauth2\"\nclient_id = \"proxy\"\nclient_secret_file = \"t\"\nscope = \"a b\"\ntoken_url = "
	p, err = load(head+issuer+"\"https://issuer.example/token\"\n", keys)
	if o, ok := p.(proxy.OAuth2); err != nil || !ok || o.User != "a" || o.TokenURL != "https://issuer.example/token" || o.ClientID != "proxy" || o.Secret.Reveal() != "st5" || o.Scope != "a b" {
		t.Errorf("%v: %+v", err, p)
	}
	if _, err = load(head+issuer+"\"http://127.0.0.1:8080/token\"\n", keys); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]struct{ text, want string }{
		"plain issuer":   {head + issuer + "\"http://issuer.example/token\"\n", "user.token_url is \"http://issuer.example/token\", allowed is https://HOST/PATH"},
		"issuer's user":  {head + issuer + "\"https://u:s3cr3t@issuer.example/\"\n", "user.token_url is \"https://[redacted]@issuer.example/\""},
		"no issuer":      {head + issuer + "\"\"\n", "user.token_url is not set"},
		"a scope":        {head + "broker_password_file = \"x.password\"\nscope = \"a\"\n", `user.scope is for provider = "oauth2"`},
		"unknown":        {head + "provider = \"vault\"\n", `user.provider is "vault", allowed is `},
		"no instance":    {head + "provider = \"alibaba\"\naccess_key_file = \"k\"\n", "user.instance_id is not set"},
		"no key":         {head + "provider = \"alibaba\"\ninstance_id = \"i\"\n", "user.access_key_file is not set"},
		"key, no second": {head + "provider = \"alibaba\"\ninstance_id = \"i\"\naccess_key_file = \"t\"\n", "has no second line, it is the secret"},
		"a name":         {head + key + "broker_user = \"b\"\n", "user.provider is alibaba, whose names are made of the AccessKey"},
		"a password":     {head + key + "broker_password_file = \"x.password\"\n", `user.broker_password_file is for provider = "password", user.provider is "alibaba"`},
		"a key":          {head + "broker_password_file = \"x.password\"\naccess_key_file = \"k\"\n", `user.access_key_file is for provider = "alibaba"`},
		"a token":        {head + "broker_password_file = \"x.password\"\nsecurity_token_file = \"t\"\n", `user.security_token_file is for provider = "alibaba"`},
		"no certificate": {head + "provider = \"external\"\n", "user.provider is external, which needs an amqps URL and tls.cert_file"},
	} {
		_, err := load(c.text, keys)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "s3cr3t") || len(err.(*Error).Problems) != 1 {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// Each of these is one line that names user and setting, and has nothing of a secret.
func TestUsersThatAreWrong(t *testing.T) {
	const whole = "password_hash = \"" + aHash + "\"\nbroker_password_file = \"x.password\"\n"
	for name, c := range map[string]struct{ text, want string }{
		"no table":         {`user = "a"`, "a.toml:1: user is repeatable, write [[user]]"},
		"one bracket":      {"[user]\nname = \"a\"\n", "a.toml:1: user is repeatable, write [[user]]"},
		"unknown key":      {"[[user]]\nname = \"a\"\npassword = \"hunter2\"\n", `a.toml:3: unknown setting "password" in [[user]], did you mean "password_hash"?`},
		"no name":          {"[[user]]\n" + whole, "user 1: user.name is not set"},
		"twice":            {"[[user]]\nname = \"a\"\n" + whole + "[[user]]\nname = \"a\"\n" + whole, "user 2 (a): user.name is that of user 1 too, allowed is one [[user]] for a name"},
		"no hash":          {"[[user]]\nname = \"a\"\nbroker_password_file = \"x.password\"\n", "user 1 (a): neither user.password_hash nor user.certificate is set"},
		"one certificate":  {strings.Repeat("[[user]]\nname = \"a\"\ncertificate = \"x\"\nbroker_password_file = \"x.password\"\n", 1) + "[[user]]\nname = \"b\"\ncertificate = \"x\"\nbroker_password_file = \"x.password\"\n", "user 2 (b): user.certificate is that of user 1 too"},
		"a password":       {"[[user]]\nname = \"a\"\npassword_hash = \"hunter2\"\nbroker_password_file = \"x.password\"\n", "user 1 (a): user.password_hash is no hash of a password, allowed is what hash-password prints"},
		"a number as hash": {"[[user]]\nname = \"a\"\npassword_hash = 31337\n", "a.toml:3: user.password_hash is not readable as such"},
		"MD5":              {"[[user]]\nname = \"a\"\npassword_hash = \"AAAAAAAAAAAAAAAAAAAAAAAAAAA=\"\nbroker_password_file = \"x.password\"\n", "rabbit_password_hashing_md5, which is not taken"},
		"no secret":        {"[[user]]\nname = \"a\"\npassword_hash = \"" + aHash + "\"\n", "user 1 (a): user.broker_password_file is not set"},
		"nobody":           {"[auth]\nunknown_users = \"refuse\"\n", "auth.unknown_users is refuse, which needs a [[user]]"},
		"unknown":          {"[auth]\nunknown_users = \"ask\"\n", `auth.unknown_users is "ask", allowed is broker or refuse`},
	} {
		_, file := usersFile(t, c.text)
		_, _, err := Load(Source{File: file})
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "31337") || len(err.(*Error).Problems) != 1 {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if _, _, err := Load(Source{CommandLine: []Override{{Find("user.name"), "a", "--set user.name"}}}); err == nil || !strings.Contains(err.Error(), "only the settings file has") {
		t.Errorf("a user on the command line: %v", err)
	}
	for name, c := range map[string]struct {
		spoil func(path string) error
		want  string
	}{
		"missing":        {os.Remove, "there is no such file"},
		"a directory":    {func(p string) error { return joinErrors(os.Remove(p), os.Mkdir(p, 0o700)) }, "is a directory"},
		"empty":          {func(p string) error { return os.WriteFile(p, nil, 0o600) }, "its first line is empty"},
		"an empty line":  {func(p string) error { return os.WriteFile(p, []byte("\ns3cr3t\n"), 0o600) }, "its first line is empty"},
		"a NUL":          {func(p string) error { return os.WriteFile(p, []byte("s3c\x00r3t"), 0o600) }, "has a NUL"},
		"world-readable": {func(p string) error { return os.Chmod(p, 0o644) }, "everybody on this machine may read or change it (mode 0644), allowed is 0640 or stricter"},
		"unreadable":     {func(p string) error { return os.Chmod(p, 0) }, "permission denied"},
	} {
		if runtime.GOOS == "windows" && strings.HasSuffix(name, "readable") || name == "unreadable" && os.Getuid() == 0 {
			continue
		}
		dir, file := usersFile(t, "[[user]]\nname = \"a\"\n"+whole)
		path := filepath.Join(dir, "x.password")
		if err := c.spoil(path); err != nil {
			t.Fatal(err)
		}
		s, _, err := Load(Source{File: file})
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.ProxyConfig("dev", nil)
		if err == nil || !strings.Contains(err.Error(), "user 1 (a): user.broker_password_file: "+path+": ") || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "s3c") {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func joinErrors(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func TestImportUsers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "definitions.json")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"rabbit_version": "3.10.8", "users": [
 {"name": "shop", "password_hash": "` + aHash + `", "hashing_algorithm": "rabbit_password_hashing_sha256", "tags": ["administrator"], "limits": {}},
 {"name": "a/b \"c\"", "password_hash": "` + aHash + `", "tags": ""},
 {"name": "a_b__c_", "password_hash": "` + aHash + `"},
 {"name": "empty", "password_hash": ""}, {"name": "old", "password_hash": "AAAAAAAAAAAAAAAAAAAAAAAAAAA="}, {"name": "shop", "password_hash": "` + aHash + `"}],
 "permissions": [{"user": "shop", "vhost": "/", "configure": ".*"}, {"user": "shop", "vhost": "b"}, {"user": "gone", "vhost": "/"}]}`)
	text, notes, err := ImportUsers(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(notes) != 3 || !strings.Contains(strings.Join(notes, "\n"), `"empty" is left out: it has no password`) || !strings.Contains(strings.Join(notes, "\n"), "md5") {
		t.Errorf("notes are %q", notes)
	}
	// What is printed is taken, once the files are there.
	dir, file := usersFile(t, text)
	s, _, err := Load(Source{File: file})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range s.SecretFiles() {
		if filepath.Dir(f) != dir {
			t.Errorf("a secret would be in %s", f)
		}
		if err := os.WriteFile(f, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := s.ProxyConfig("dev", nil)
	if err != nil || len(c.Users) != 3 || !slices.Equal(c.Users[0].VHosts, []string{"/", "b"}) || c.Users[1].Name != `a/b "c"` || !c.Users[2].Password.Matches("test12") {
		t.Errorf("%v: %+v from\n%s", err, c.Users, text)
	}
	if files := s.SecretFiles(); len(files) != 3 || files[1] == files[2] {
		t.Errorf("two users have one file: %q", files)
	}
	for bad, want := range map[string]string{"": "not valid JSON", "{\n\n,}": "definitions.json:3: not valid JSON", `{"users": 3}`: "not definitions of RabbitMQ's", `{"queues": []}`: "has no users", `[]`: "not definitions"} {
		write(bad)
		if _, _, err := ImportUsers(path); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want %q", bad, err, want)
		}
	}
	if _, _, err := ImportUsers(path + "x"); err == nil || !strings.Contains(err.Error(), "there is no such file") {
		t.Errorf("no file: %v", err)
	}
	if h, err := hash.Parse(aHash); err != nil || h.Reveal() != aHash {
		t.Error(err)
	}
}

package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Files as Windows' tools write them: UTF-8 behind a byte order mark is read, with lines that end as they do there;
// UTF-16, which PowerShell's > makes of a secret, is told to be that.
func TestFilesOfWindows(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	settings := write("a.toml", "\ufeffdrain_timeout = \"7s\"\r\n[http]\r\npassword_file = \"x.password\"\r\n")
	for text, want := range map[string]string{"\ufeffm\u00fcller\r\n": "m\u00fcller", "\ufeffm\u00fcller": "m\u00fcller", "s3cr3t": "s3cr3t"} {
		write("x.password", text)
		s, _, err := Load(Source{File: settings})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.HTTP.Password(); err != nil || got != want {
			t.Errorf("%q: the password is %q, %v; want %q", text, got, err, want)
		}
	}
	secret := write("x.password", "\xff\xfes\x003\x00\r\x00\n\x00")
	if _, err := readSecret("user.broker_password_file", secret); err == nil || !strings.Contains(err.Error(), "UTF-16") {
		t.Errorf("a secret in UTF-16: %v", err)
	}
	wrong := write("b.toml", "\xff\xfe[\x00h\x00t\x00t\x00p\x00]\x00")
	if _, _, err := Load(Source{File: wrong}); err == nil || !strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("settings in UTF-16: %v", err)
	}
}

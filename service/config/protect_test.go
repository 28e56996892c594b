package config

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// A file with what is none of the secrets of this machine is one problem that names setting and file.
func TestProtectedElsewhere(t *testing.T) {
	want := "can read"
	if runtime.GOOS == "windows" {
		want = "cannot be decrypted"
	}
	for name, text := range map[string]string{"no base64": "dpapi:%%\n", "not encrypted": "dpapi:aHVudGVyMg==\n", "nothing": "dpapi:"} {
		dir, file := usersFile(t, "[http]\npassword_file = \"x.password\"\n[[user]]\nname = \"a\"\npassword_hash = \""+aHash+"\"\nbroker_password_file = \"x.password\"\n")
		path := filepath.Join(dir, "x.password")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s, _, err := Load(Source{File: file})
		if err != nil {
			t.Fatal(err)
		}
		_, problems := s.engineUsers()
		_, err = s.HTTP.Password()
		if len(problems) != 1 || err == nil {
			t.Fatalf("%s: %v and %v, want a problem each", name, problems, err)
		}
		for setting, said := range map[string]string{"user.broker_password_file: ": problems[0], "http.password_file: ": err.Error()} {
			if !strings.Contains(said, setting+path+": ") || !strings.Contains(said, want) && !strings.Contains(said, "cannot be decrypted") || strings.Contains(said, "hunter2") {
				t.Errorf("%s: %s", name, said)
			}
		}
	}
}

func TestProtect(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.secret")
	for _, wrong := range []string{"", "\n", "\r\nx\n", "a\x00b", "dpapi:AAAA", strings.Repeat("x", MostProtected+1)} {
		if err := Protect(file, []byte(wrong)); err == nil || exists(file) {
			t.Errorf("%.10q is taken for a secret: %v", wrong, err)
		}
	}
	if runtime.GOOS != "windows" {
		if err := Protect(file, []byte("s3cr3t")); err == nil || !strings.Contains(err.Error(), "systemd-creds encrypt") || strings.Contains(err.Error(), "\n") || exists(file) {
			t.Errorf("protect where there is no DPAPI: %v", err)
		}
		return
	}
	for _, secret := range []string{"s3cr3t", "LTAI5t\r\nk3y\r\n", strings.Repeat("x", MostProtected)} { // the next takes the place of the one before
		if err := Protect(file, []byte(secret)); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(file)
		if err != nil || !bytes.HasPrefix(data, []byte(protectedBy)) || bytes.Contains(data, []byte(secret)) {
			t.Errorf("%v: the file is %.40q", err, data)
		}
		if got, err := readSecretFile(file); err != nil || string(got) != secret {
			t.Errorf("%v: read %.40q, want %.40q", err, got, secret)
		}
		data[len(protectedBy)+8] ^= 2 // in what names the key: Wine looks at no more
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := readSecretFile(file); err == nil {
			t.Errorf("one that is damaged is read: %.40q", got)
		}
	}
}

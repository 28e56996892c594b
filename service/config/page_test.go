package config

import (
	"strings"
	"testing"
)

func TestServesPage(t *testing.T) {
	for _, c := range []struct {
		h    HTTP
		want bool
	}{
		{HTTP{Address: "127.0.0.1", Port: 1, Page: true}, true},
		{HTTP{Address: "[::1]", Port: 1, Page: true}, true},
		{HTTP{Address: "localhost", Port: 1, Page: true}, true},
		{HTTP{Address: "127.0.0.1", Port: 1}, false},
		{HTTP{Address: "127.0.0.1", Port: 0, Page: true}, false},
		{HTTP{Address: "0.0.0.0", Port: 1, Page: true}, false},
		{HTTP{Address: "::", Port: 1, Page: true}, false},
		{HTTP{Address: "broker.example.com", Port: 1, Page: true}, false},
		{HTTP{Address: "0.0.0.0", Port: 1, Page: true, PasswordFile: "/x"}, true},
	} {
		if got := c.h.ServesPage(); got != c.want {
			t.Errorf("%+v: %v, want %v", c.h, got, c.want)
		}
	}
}

func TestPagePassword(t *testing.T) {
	for content, want := range map[string]string{"secret": "secret", "secret\n": "secret", "with blanks \r\nsecond": "with blanks "} {
		if got, err := (HTTP{PasswordFile: write(t, "p", content)}).Password(); err != nil || got != want {
			t.Errorf("%q: got %q, %v", content, got, err)
		}
	}
	for file, want := range map[string]string{write(t, "empty", "\nx"): "first line is empty", "/nonexistent/p": "no such file"} {
		if _, err := (HTTP{PasswordFile: file}).Password(); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "http.password_file") {
			t.Errorf("%s: %v, want %q", file, err, want)
		}
	}
	if got, err := (HTTP{}).Password(); got != "" || err != nil {
		t.Errorf("none set: %q, %v", got, err)
	}
}

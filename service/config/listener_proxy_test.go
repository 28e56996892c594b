package config

import (
	"fmt"
	"strings"
	"testing"
)

// Who may tell the addresses of clients is a list of networks; without one nobody may.
func TestListenerProxyProtocol(t *testing.T) {
	load := func(text string) (Settings, error) {
		s, _, err := Load(Source{File: write(t, "a.toml", "[[listener]]\n"+text)})
		return s, err
	}
	s, err := load("proxy_protocol = \"required\"\nproxy_from = [\"10.1.2.3/8\", \"::1\", \"::ffff:192.0.2.1\"]\ndirect_from = \"127.0.0.0/8\"\n")
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.ProxyConfig("1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(*c.Listeners[0].Proxy); got != "{[10.0.0.0/8 ::1/128 192.0.2.1/32] [127.0.0.0/8]}" {
		t.Errorf("got %s", got)
	}
	if _, err := load("proxy_protocol = \"required\"\n"); err == nil || !strings.Contains(err.Error(), "which needs listener.proxy_from") {
		t.Errorf("required of nobody: %v", err)
	}
	s, err = load("proxy_from = \"10.0.0.0/8\"\n")
	if err != nil {
		t.Fatal(err)
	}
	if w := s.Warnings(); len(w) != 1 || !strings.Contains(w[0], "listener.proxy_protocol is off") {
		t.Errorf("warnings: %q", w)
	}
	if c, err := s.ProxyConfig("1", nil); err != nil || c.Listeners[0].Proxy != nil {
		t.Errorf("off, and %v, %v", c.Listeners[0].Proxy, err)
	}
}

// The list of loopback users can be another, or none.
func TestLoopbackUsers(t *testing.T) {
	for text, want := range map[string]string{"": "[guest]", "[client]\nloopback_users = []\n": "[]", "[client]\nloopback_users = \"admin\"\n": "[admin]",
		"[client]\nloopback_users = [\"admin\", \"guest\"]\n": "[admin guest]"} {
		s, _, err := Load(Source{File: write(t, "a.toml", text)})
		if got := fmt.Sprint(s.Engine.LoopbackUsers); err != nil || got != want {
			t.Errorf("%q: %s, %v, want %s", text, got, err, want)
		}
	}
}

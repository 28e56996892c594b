package proxy

import (
	"log/slog"
	"testing"
)

// 0.0.0.0 is what the settings page says, the addresses of IPv4; the rest is left to Go.
func TestListenNetwork(t *testing.T) {
	for address, want := range map[string]string{
		"0.0.0.0:5673": "tcp4", "127.0.0.1:0": "tcp4", "[::]:5673": "tcp", "[::1]:0": "tcp", "localhost:5673": "tcp", ":5673": "tcp",
	} {
		if got := ListenNetwork(address); got != want {
			t.Errorf("%s: got %s, want %s", address, got, want)
		}
	}
	cfg := DefaultConfig()
	cfg.Listeners = []Listener{{Address: "0.0.0.0:0", Mode: PoolAuto}}
	cfg.Logger = slog.New(slog.DiscardHandler)
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(nil); err != nil {
		t.Fatal(err)
	}
	defer s.Shutdown(t.Context())
	if got := s.Addrs()[0].String()[:8]; got != "0.0.0.0:" {
		t.Errorf("clients are accepted on %s", got)
	}
}

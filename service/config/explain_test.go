package config

import (
	"path/filepath"
	"testing"
)

func TestExplain(t *testing.T) {
	file := write(t, "a.toml", "[[listener]]\nport = 1\n[[listener]]\nport = 2\n[pool]\nidle_timeout = 11\nmax_channels = 12\n")
	src := Source{
		File: file, Env: environment(map[string]string{"IDLE_CONNECTION_TIMEOUT": "22", "HTTP_PORT": ""}),
		CommandLine: []Override{{Find("listener.port"), "3", "--port"}},
	}
	s, _, err := Load(src)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]Explained{}
	for _, e := range Explain(src, &s) {
		if _, twice := got[e.Name]; twice {
			t.Errorf("%s comes twice", e.Name)
		}
		got[e.Name] = e
	}
	want := 0
	for i := range Table {
		switch d := &Table[i]; {
		case d.FileOnly(): // there is none
		case d.Section == "listener":
			want += 2
		default:
			want++
		}
	}
	if len(got) != want {
		t.Errorf("%d settings are explained, want %d: all, those of listeners twice", len(got), want)
	}
	name := filepath.Clean(file)
	for _, want := range []Explained{
		{"listener.port", "3", "command line --port"},
		{"listener[2].port", "2", name},
		{"listener[2].address", `"127.0.0.1"`, "default"},
		{"pool.idle_timeout", `"22s"`, "environment IDLE_CONNECTION_TIMEOUT"},
		{"pool.max_channels", "12", name + ":7"},
		{"http.port", "15673", "default"},
	} {
		if got[want.Name] != want {
			t.Errorf("got %+v, want %+v", got[want.Name], want)
		}
	}
}

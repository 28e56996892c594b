package service

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestParseEnvironment(t *testing.T) {
	got := parseEnvironment("# comment\n; another\nA=1\n  B = two words  \nC=\"quoted \\\"x\\\" \\n \\$\"\nD='single \\n'\nE=a\\\nb\nF=\nG=x\" y \"z\nno equals\nA=2\nH=last")
	want := map[string]string{"A": "2", "B": "two words", "C": `quoted "x" \n $`, "D": `single \n`, "E": "ab", "F": "", "G": "x y z", "H": "last"}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s: got %q, want %q", k, got[k], v)
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %q", got)
	}
}

func FuzzParseEnvironment(f *testing.F) {
	f.Add("A=1\nB=\"x\\\n'")
	f.Fuzz(func(t *testing.T, text string) { parseEnvironment(text) })
}

func TestInstalledFromSystemd(t *testing.T) {
	env := filepath.Join(t.TempDir(), "default")
	if err := os.WriteFile(env, []byte("AMQP_URL=amqp://envbroker\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	show := "LoadState=loaded\nMainPID=42\nUser=amqproxysvc\nEnvironment=LOG_LEVEL=debug \"X=a b\" AMQP_URL=amqp://unit\nEnvironmentFiles=/no/such (ignore_errors=yes)\n" +
		"EnvironmentFiles=" + env + " (ignore_errors=yes)\n" +
		"ProtectSystem=strict\nReadWritePaths=-/srv/logs\nLogsDirectory=amqproxysvc\nStateDirectory=amqproxysvc\nRuntimeDirectory=amqproxysvc\n" +
		"ExecStart={ path=/usr/bin/amqproxysvc ; argv[]=/usr/bin/amqproxysvc run --service --name amqproxysvc --config /etc/my dir/a.toml ; ignore_errors=no ; start_time=[n/a] ; stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }\n"
	var in Installed
	if !in.fromSystemd(show) {
		t.Fatal("it is not taken for ours")
	}
	if want := []string{"run", "--service", "--name", "amqproxysvc", "--config", "/etc/my dir/a.toml"}; !slices.Equal(in.Args, want) {
		t.Errorf("arguments %q, want %q", in.Args, want)
	}
	for name, want := range map[string]string{"AMQP_URL": "amqp://envbroker", "LOG_LEVEL": "debug", "X": "a b"} {
		if got, _ := in.Env(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	for file, want := range map[string]bool{"/var/log/amqproxysvc/a.log": true, "/srv/logs/x": true, "/srv/x.log": false, "/var/log/amqproxysvcx": false} {
		if in.MayWrite(file) != want {
			t.Errorf("%s: may write is %v", file, !want)
		}
	}
	if !in.Running || in.User != "amqproxysvc" {
		t.Errorf("got %+v", in)
	}
	other := Installed{}
	if other.fromSystemd("LoadState=loaded\nExecStart={ path=/bin/sleep ; argv[]=/bin/sleep 1000 ; ignore_errors=no }\n") {
		t.Error("another program's service is taken for ours")
	}
	if got := socketAddresses("Listen=127.0.0.1:5673 (Stream)\nListen=/run/x (Datagram)\nActiveState=active\nUnitFileState=disabled\n"); !slices.Equal(got, []string{"127.0.0.1:5673"}) {
		t.Errorf("sockets %q", got)
	}
	if got := socketAddresses("Listen=127.0.0.1:5673 (Stream)\nActiveState=inactive\nUnitFileState=disabled\n"); got != nil {
		t.Errorf("a socket unit that is not in use: %q", got)
	}
}

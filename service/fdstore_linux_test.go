package service

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// store plays systemd's end of the notify socket.
func store(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return conn
}

// heard is the next message, with the file that came with it, if one did.
func heard(t *testing.T, conn *net.UnixConn) (string, *os.File) {
	t.Helper()
	text, oob := make([]byte, 4096), make([]byte, 256)
	n, oobn, _, _, err := conn.ReadMsgUnix(text, oob)
	if err != nil {
		t.Fatal(err)
	}
	_, name, _ := strings.Cut(string(text[:n]), "FDNAME=")
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) == 0 {
		return string(text[:n]), nil
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("%d descriptors, %v", len(fds), err)
	}
	return string(text[:n]), os.NewFile(uintptr(fds[0]), name)
}

// A socket that was given to systemd serves the next process, with who connected meanwhile.
func TestAKeptSocketServesTheNextProcess(t *testing.T) {
	systemd := store(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	other, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	first := keepers{name: "x"}
	first.keep([]string{address, "127.0.0.1:0", "[::]:5674"}, []net.Listener{l, other, other}, map[int]bool{2: true})
	if len(first.names) != 1 {
		t.Fatalf("kept: %q: %v", first.names, keepListener("x", l))
	}
	said, file := heard(t, systemd)
	if want := "FDSTORE=1\nFDNAME=kept-" + strings.Replace(address, ":", "_", 1); said != want || file == nil {
		t.Fatalf("systemd hears %q, want %q; kept %q", said, want, first.names)
	}
	l.Close() // the process ends
	c, err := net.Dial("tcp4", address)
	if err != nil {
		t.Fatalf("a client that connects meanwhile: %v", err)
	}
	defer c.Close()

	stale, _ := socketFile(t, keptName("10.0.0.1:5673")) // of settings from before
	activated, activatedAddr := socketFile(t, "listen1")
	second := keepers{name: "x"}
	inherited, byUnit, err := second.takeListeners([]*os.File{stale, file, activated}, []string{address, activatedAddr, "127.0.0.1:1"})
	if err != nil || len(inherited) != 2 || byUnit[0] || !byUnit[1] || inherited[0].Addr().String() != address || inherited[1].Addr().String() != activatedAddr {
		t.Fatalf("got %v, %v, %v", inherited, byUnit, err)
	}
	defer inherited[1].Close()
	if served, err := inherited[0].Accept(); err != nil || served.RemoteAddr().String() != c.LocalAddr().String() {
		t.Errorf("the client that waited is not served: %v", err)
	}
	inherited[0].Close()
	if said, _ := heard(t, systemd); said != "FDSTOREREMOVE=1\nFDNAME=kept-10.0.0.1_5673" {
		t.Errorf("systemd hears %q", said)
	}
}

func TestIsItAStopOrARestart(t *testing.T) {
	for jobs, want := range map[string]bool{
		"":                                       false,
		"123 amqproxysvc.service stop running\n": true,
		"122 other.service stop running\n123 amqproxysvc.service restart running\n": false,
		"1 amqproxysvc@x.service stop waiting\n":                                    false,
	} {
		if jobIsStop(jobs, "amqproxysvc") != want {
			t.Errorf("%q: %v", jobs, !want)
		}
	}
}

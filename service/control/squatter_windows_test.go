package control

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Microsoft/go-winio"
	"golang.org/x/sys/windows"
)

func TestWhoIsTrusted(t *testing.T) {
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		t.Fatal(err)
	}
	sid := func(text string) *windows.SID {
		s, err := windows.StringToSid(text)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	stranger := sid("S-1-5-21-1-2-3-1001")
	for name, c := range map[string]struct {
		server  pipeServer
		service uint32
		want    bool
	}{
		"the service":                             {pipeServer{7, stranger, stranger}, 7, true},
		"another process while the service runs":  {pipeServer{8, user.User.Sid, user.User.Sid}, 7, false},
		"an administrators' while it does not":    {pipeServer{8, sid("S-1-5-32-544"), nil}, 0, true},
		"SYSTEM's while it does not":              {pipeServer{8, sid("S-1-5-18"), nil}, 0, true},
		"this user's, in the foreground":          {pipeServer{8, stranger, user.User.Sid}, 0, true},
		"a stranger's while it does not":          {pipeServer{8, stranger, stranger}, 0, false},
		"nobody's":                                {pipeServer{8, nil, nil}, 0, false},
		"of a process that is not known, trusted": {pipeServer{0, user.User.Sid, nil}, 7, true},
		"of a process that is not known":          {pipeServer{0, stranger, nil}, 7, false},
	} {
		if got := c.server.trusted(c.service); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// The pipe of this very process is known as its own.
func TestServerOfAPipe(t *testing.T) {
	at := pipes + "amqproxysvc-test-" + filepath.Base(os.Args[0])
	ln, err := winio.ListenPipe(at, &winio.PipeConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			defer func() { _ = c.Close() }()
		}
	}()
	c, err := winio.DialPipe(at, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	var pid uint32
	if err := windows.GetNamedPipeServerProcessId(windows.Handle(c.(interface{ Fd() uintptr }).Fd()), &pid); err != nil || int(pid) != os.Getpid() {
		t.Logf("the system says process %d, %v; want %d", pid, err, os.Getpid())
	}
	if err := checkServer(c, at); err != nil {
		t.Error(err)
	}
	if err := checkServer(net.Conn(nil), at); err == nil || !strings.Contains(err.Error(), "not a pipe") {
		t.Errorf("of no pipe: %v", err)
	}
}

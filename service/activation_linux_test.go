package service

import (
	"errors"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// socketFile is a listening socket as systemd hands it over, under a name.
func socketFile(t *testing.T, name string) (*os.File, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), name), l.Addr().String()
}

func TestInheritedListenersTakeTheirPlaces(t *testing.T) {
	a, addrA := socketFile(t, "LISTEN_FD_3")
	b, addrB := socketFile(t, "listen0")
	c, addrC := socketFile(t, "amqproxysvc.socket")
	d, addrD := socketFile(t, "listen4")
	got, err := orderListeners([]*os.File{a, b, c, d})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{addrB, addrA, addrC, "", addrD}
	if len(got) != len(want) {
		t.Fatalf("got %d listeners, want %d", len(got), len(want))
	}
	for i, l := range got {
		switch {
		case l == nil && want[i] != "":
			t.Errorf("place %d is empty, want %s", i, want[i])
		case l != nil && l.Addr().String() != want[i]:
			t.Errorf("place %d: got %s, want %q", i, l.Addr(), want[i])
		}
		if l != nil {
			l.Close()
		}
	}
}

func TestNoSocketsAreNoListeners(t *testing.T) {
	if got, err := orderListeners(nil); got != nil || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestWrongSocketsAreAWrongConfiguration(t *testing.T) {
	a, _ := socketFile(t, "listen0")
	b, _ := socketFile(t, "listen0")
	if _, err := orderListeners([]*os.File{a, b}); !errors.Is(err, ErrConfig) {
		t.Errorf("two of one name: got %v", err)
	}
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	f, err := udp.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := orderListeners([]*os.File{f}); !errors.Is(err, ErrConfig) {
		t.Errorf("a datagram socket: got %v", err)
	}
}

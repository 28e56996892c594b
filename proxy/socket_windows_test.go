// What Windows is told of acknowledgements, on real sockets.

package proxy

import (
	"errors"
	"net"
	"testing"

	"golang.org/x/sys/windows"
)

// Windows takes the setting; Wine, which has no such code, says so, and the connection serves all the same.
func TestAckFrequency(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	near, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = near.Close() }()
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = far.Close() }()

	raw, err := near.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var said error
	if err := raw.Control(func(fd uintptr) { said = setAckFrequency(windows.Handle(fd), 1) }); err != nil {
		t.Fatal(err)
	}
	switch wine := windows.NewLazySystemDLL("ntdll.dll").NewProc("wine_get_version").Find() == nil; {
	case said == nil:
	case wine && errors.Is(said, windows.WSAEOPNOTSUPP):
		t.Logf("Wine does not know SIO_TCP_SET_ACK_FREQUENCY: %v", said)
	default:
		t.Errorf("SIO_TCP_SET_ACK_FREQUENCY: %v", said)
	}
	if quickAck(near) != nil {
		t.Error("there is something to do after each read")
	}
	if _, err := far.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, err := near.Read(make([]byte, 2)); n != 1 || err != nil {
		t.Errorf("%d octets, %v", n, err)
	}
}

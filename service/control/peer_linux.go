package control

import (
	"context"
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// peerOf asks the kernel who connected (SO_PEERCRED).
func peerOf(c net.Conn) (Peer, error) {
	cred, err := credentials(c)
	if err != nil {
		return Peer{}, err
	}
	return peerFrom(cred.Uid), nil
}

// ServerPID is the process that serves the socket: the kernel notes who listens.
func ServerPID(ctx context.Context, at string) (int, error) {
	c, err := dial(ctx, at)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	cred, err := credentials(c)
	if err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

func credentials(c net.Conn) (*unix.Ucred, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.New("not a Unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var serr error
	if err := raw.Control(func(fd uintptr) { cred, serr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return nil, err
	}
	return cred, serr
}

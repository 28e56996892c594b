// Socket activation: listeners that systemd has bound and hands over (sd_listen_fds).

package service

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
)

// inheritedFiles are the sockets that systemd passed on, named as it names them.
func inheritedFiles() []*os.File { return activation.Files(true) }

// orderListeners puts sockets in the order of the configured listeners: one named listenN
// (FileDescriptorName=) stands for the Nth, counted from 0, the others take the places left,
// in their order. None: nil. The files are closed.
func orderListeners(files []*os.File) (_ []net.Listener, err error) {
	var out []net.Listener
	defer func() {
		for _, f := range files {
			f.Close() // the listeners hold duplicates
		}
		if err != nil {
			for _, l := range out {
				if l != nil {
					l.Close()
				}
			}
		}
	}()
	place := func(i int, f *os.File) error {
		l, err := net.FileListener(f)
		if err != nil {
			return ConfigError(fmt.Errorf("socket activation: %q is not a listening stream socket (want ListenStream= in the .socket unit): %w", f.Name(), err))
		}
		for len(out) <= i {
			out = append(out, nil)
		}
		out[i] = l
		return nil
	}
	var rest []*os.File
	for _, f := range files {
		i, ok := listenerIndex(f.Name(), len(files))
		if !ok {
			rest = append(rest, f)
			continue
		}
		if i < len(out) && out[i] != nil {
			return nil, ConfigError(fmt.Errorf("socket activation: two sockets are named %q, each listener takes one", f.Name()))
		}
		if err := place(i, f); err != nil {
			return nil, err
		}
	}
	i := 0
	for _, f := range rest {
		for i < len(out) && out[i] != nil {
			i++
		}
		if err := place(i, f); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// listenerIndex reads N from listenN; far more than there are sockets is no index.
func listenerIndex(name string, sockets int) (int, bool) {
	digits, ok := strings.CutPrefix(name, "listen")
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(digits)
	return n, err == nil && n >= 0 && n < sockets+64
}

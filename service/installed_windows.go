// The service as the service control manager has it.

package service

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/mgr"
)

// FindInstalled asks the service control manager how it would start the service.
// ErrNotInstalled: there is none, or it is another program's.
func FindInstalled(_ context.Context, name string) (Installed, error) {
	in := Installed{Name: name, Env: os.LookupEnv}
	if err := checkName(name); err != nil {
		return in, err
	}
	m, err := windows.OpenSCManager(nil, nil, windows.SC_MANAGER_CONNECT)
	if err != nil {
		return in, fmt.Errorf("the service control manager cannot be reached: %w", err)
	}
	defer func() { _ = windows.CloseServiceHandle(m) }()
	text, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return in, err
	}
	h, err := windows.OpenService(m, text, windows.SERVICE_QUERY_CONFIG|windows.SERVICE_QUERY_STATUS)
	if errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST) {
		return in, fmt.Errorf("%w: %s", ErrNotInstalled, name)
	}
	if err != nil {
		return in, fmt.Errorf("the service %s cannot be opened: %w", name, err)
	}
	s := mgr.Service{Name: name, Handle: h}
	defer ignore(s.Close)
	if err := ours(&s); err != nil {
		return in, fmt.Errorf("%w: %w", ErrNotInstalled, err)
	}
	c, err := serviceConfig(h)
	if err != nil {
		return in, err
	}
	args, err := windows.DecomposeCommandLine(windows.UTF16PtrToString(c.BinaryPathName))
	if err != nil || len(args) == 0 {
		return in, fmt.Errorf("the command line of the service %s cannot be read: %w", name, err)
	}
	in.Args = args[1:]
	if st, err := s.Query(); err == nil {
		in.Running = st.State != svc.Stopped
	}
	return in, nil
}

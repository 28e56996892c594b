// A pipe's name belongs to whoever makes it first. While the service does not run, any
// program may take its name and answer in its place; so the client looks who serves the pipe
// before it sends a word.

package control

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"unsafe"

	"golang.org/x/sys/windows"
)

// pipeServer is what is known of who serves a pipe.
type pipeServer struct {
	pid   uint32       // 0: the system does not say
	owner *windows.SID // of the pipe, nil: the same
	user  *windows.SID // who runs the process, nil: not known to this one
}

// checkServer is an error where it is neither the service that the pipe is named after, nor, where that does
// not run, SYSTEM, the administrators or this very user.
func checkServer(c net.Conn, at string) error {
	f, ok := c.(interface{ Fd() uintptr })
	if !ok {
		return errors.New("not a pipe")
	}
	h := windows.Handle(f.Fd())
	var server pipeServer
	if err := windows.GetNamedPipeServerProcessId(h, &server.pid); err != nil {
		server.pid = 0
	}
	if sd, err := windows.GetSecurityInfo(h, windows.SE_KERNEL_OBJECT, windows.OWNER_SECURITY_INFORMATION); err == nil {
		server.owner, _, _ = sd.Owner()
	}
	server.user = userOf(server.pid)
	var service uint32
	if name, ok := strings.CutPrefix(at, DefaultPath("")); ok {
		service = processOfService(name)
	}
	if !server.trusted(service) {
		return fmt.Errorf("it is served by process %d, which is neither the service nor of an administrator or of this user: nothing was sent to it", server.pid)
	}
	return nil
}

// trusted: service is the service's process, 0 where there is none.
func (s pipeServer) trusted(service uint32) bool {
	if service != 0 && s.pid != 0 {
		return s.pid == service
	}
	own, err := windows.GetCurrentProcessToken().GetTokenUser()
	for _, sid := range []*windows.SID{s.owner, s.user} {
		if sid != nil && (sid.IsWellKnown(windows.WinLocalSystemSid) || sid.IsWellKnown(windows.WinBuiltinAdministratorsSid) || err == nil && sid.Equals(own.User.Sid)) {
			return true
		}
	}
	return false
}

// userOf is who runs a process; Wine has a group own what somebody makes.
func userOf(pid uint32) *windows.SID {
	p, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, pid)
	if err != nil {
		return nil
	}
	defer func() { _ = windows.CloseHandle(p) }()
	var token windows.Token
	if windows.OpenProcessToken(p, windows.TOKEN_QUERY, &token) != nil {
		return nil
	}
	defer func() { _ = token.Close() }()
	user, err := token.GetTokenUser()
	if err != nil {
		return nil
	}
	return user.User.Sid
}

// processOfService asks the service control manager, which needs no rights.
func processOfService(name string) uint32 {
	name16, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return 0
	}
	m, err := windows.OpenSCManager(nil, nil, windows.SC_MANAGER_CONNECT)
	if err != nil {
		return 0
	}
	defer func() { _ = windows.CloseServiceHandle(m) }()
	s, err := windows.OpenService(m, name16, windows.SERVICE_QUERY_STATUS)
	if err != nil {
		return 0
	}
	defer func() { _ = windows.CloseServiceHandle(s) }()
	var st windows.SERVICE_STATUS_PROCESS
	var need uint32
	if windows.QueryServiceStatusEx(s, windows.SC_STATUS_PROCESS_INFO, (*byte)(unsafe.Pointer(&st)), uint32(unsafe.Sizeof(st)), &need) != nil {
		return 0
	}
	return st.ProcessId
}

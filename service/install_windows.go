// Installing the service on Windows. kardianos/service registers it with the service control
// manager and the event log; what it cannot set is set after it, from scm.go's data.

package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	kservice "github.com/kardianos/service"
	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc/mgr"
)

// localService runs the service where a virtual account cannot be had.
const localService = `NT AUTHORITY\LocalService`

// ignore ends what needs no word when its end fails.
func ignore(end func() error) { _ = end() }

// dataDir is the program's own directory under ProgramData.
func dataDir() string {
	base, err := windows.KnownFolderPath(windows.FOLDERID_ProgramData, 0)
	if err != nil {
		base = os.Getenv("ProgramData") // the same place in all but broken profiles
	}
	return filepath.Join(base, DefaultName)
}

// DefaultConfig is the configuration file of an instance.
func DefaultConfig(name string) string { return filepath.Join(dataDir(), name+".toml") }

// DefaultLogFile is the log file of an instance.
func DefaultLogFile(name string) string { return filepath.Join(logDir(name), name+".log") }

// DefaultStateFile is where an instance tells its state.
func DefaultStateFile(name string) string { return stateFileIn(stateDir(name)) }

func logDir(name string) string   { return filepath.Join(dataDir(), "logs", name) }
func stateDir(name string) string { return filepath.Join(dataDir(), "state", name) }

// connect opens the service control manager with full rights.
func connect() (*mgr.Mgr, error) {
	m, err := mgr.Connect()
	if errors.Is(err, windows.ERROR_ACCESS_DENIED) {
		return nil, errors.New("this needs an Administrator: run it from an elevated prompt")
	}
	if err != nil {
		return nil, fmt.Errorf("the service control manager cannot be reached: %w", err)
	}
	return m, nil
}

// ours refuses another program's service.
func ours(s *mgr.Service) error {
	c, err := serviceConfig(s.Handle)
	if err != nil {
		return fmt.Errorf("the service %s cannot be asked what it runs: %w", s.Name, err)
	}
	return needOurs(s.Name, windows.UTF16PtrToString(c.BinaryPathName))
}

// Install registers the service with the service control manager. What it did is taken back
// when a later step fails.
func Install(ctx context.Context, o InstallOptions) (err error) {
	if err := o.fill(); err != nil {
		return err
	}
	m, err := connect()
	if err != nil {
		return err
	}
	defer ignore(m.Disconnect)
	exists := false
	if s, err := m.OpenService(o.Name); err == nil {
		exists = true
		if err = ours(s); err == nil && !o.Force {
			err = fmt.Errorf("the service %s is installed already: --force installs it anew", o.Name)
		}
		ignore(s.Close)
		if err != nil {
			return err
		}
	}

	var done undo
	defer func() { done.roll(&err) }()
	if err := o.makeDirs(&done); err != nil {
		return err
	}
	written, err := o.provideConfig(DefaultLogFile(o.Name))
	if err != nil {
		return err
	}
	if written {
		done.add(func() error { return os.Remove(o.Config) })
	}

	account := o.User
	if account == "" {
		account = virtualAccount(o.Name)
	}
	if !exists {
		account, err = o.register(account)
		if err != nil {
			return err
		}
		done.add(func() error {
			return Uninstall(context.WithoutCancel(ctx), UninstallOptions{Name: o.Name, Out: io.Discard})
		})
	}
	s, err := m.OpenService(o.Name)
	if err != nil {
		return err
	}
	defer ignore(s.Close)
	if err := o.configure(s, account); err != nil {
		return err
	}
	o.say("service: %s (automatic, delayed; account %s)", o.Name, account)
	if filepath.Dir(o.Config) != dataDir() {
		o.say("the account must be able to read the configuration: icacls \"%s\" /grant \"%s:R\"", o.Config, account)
	}
	if !o.Start {
		o.say("start it with: amqproxysvc start --name %s", o.Name)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	action := "start"
	if exists {
		action = "restart"
	}
	if err := Control(ctx, o.Name, action); err != nil {
		return err
	}
	o.say("%s: running", o.Name)
	return nil
}

// register has kardianos/service create the service, under LocalService where the account
// that was not asked for cannot be had.
func (o *InstallOptions) register(account string) (string, error) {
	install := func(account string) error {
		carrier, err := kservice.New(program{}, &kservice.Config{Name: o.Name, DisplayName: scmDisplayName(o.Name), Description: description,
			Executable: o.Executable, Arguments: scmArguments(o.Name, o.Config), UserName: account})
		if err != nil {
			return err
		}
		return carrier.Install()
	}
	err := install(account)
	if err != nil && o.User == "" && errors.Is(err, windows.ERROR_INVALID_SERVICE_ACCOUNT) {
		o.say("the account %s cannot be had here, taking %s", account, localService)
		account = localService
		err = install(account)
	}
	if err != nil {
		return "", fmt.Errorf("the service control manager did not take the service %s (account %s): %w", o.Name, account, err)
	}
	return account, nil
}

// Configure gives a service that is registered already (by an MSI, say) the settings and
// the directories that Install gives.
func Configure(_ context.Context, o InstallOptions) error {
	if err := o.fill(); err != nil {
		return err
	}
	m, err := connect()
	if err != nil {
		return err
	}
	defer ignore(m.Disconnect)
	s, err := m.OpenService(o.Name)
	if err != nil {
		return fmt.Errorf("%w: %s", ErrNotInstalled, o.Name)
	}
	defer ignore(s.Close)
	var none undo
	if err := o.makeDirs(&none); err != nil {
		return err
	}
	if _, err := o.provideConfig(DefaultLogFile(o.Name)); err != nil {
		return err
	}
	account := o.User
	if account == "" {
		c, err := serviceConfig(s.Handle)
		if err != nil {
			return err
		}
		account = windows.UTF16PtrToString(c.ServiceStartName)
	}
	return o.configure(s, account)
}

// configure sets what kardianos/service does not. What only makes the service less
// comfortable to run is a warning: Wine lacks some of it.
func (o *InstallOptions) configure(s *mgr.Service, account string) error {
	want := scmSettingsFor(o.Name, o.Executable, o.Config, account, defaultDrain)
	text := func(v string) *uint16 {
		p, err := windows.UTF16PtrFromString(v)
		if err != nil {
			return nil // it held a NUL: leave that setting as it is
		}
		return p
	}
	if err := windows.ChangeServiceConfig(s.Handle, windows.SERVICE_NO_CHANGE, windows.SERVICE_AUTO_START, windows.SERVICE_NO_CHANGE,
		text(want.ImagePath), nil, nil, nil, text(want.Account), nil, text(want.DisplayName)); err != nil {
		return fmt.Errorf("the settings of the service %s were refused (account %s): %w", o.Name, want.Account, err)
	}
	set := func(what string, level uint32, value unsafe.Pointer) {
		o.warn(what, windows.ChangeServiceConfig2(s.Handle, level, (*byte)(value)))
	}
	set("the description", windows.SERVICE_CONFIG_DESCRIPTION, unsafe.Pointer(&windows.SERVICE_DESCRIPTION{Description: text(want.Description)}))
	if want.DelayedAutoStart {
		set("the delayed start", windows.SERVICE_CONFIG_DELAYED_AUTO_START_INFO, unsafe.Pointer(&windows.SERVICE_DELAYED_AUTO_START_INFO{IsDelayedAutoStartUp: 1}))
	}
	if want.UnrestrictedSID {
		sidType := uint32(windows.SERVICE_SID_TYPE_UNRESTRICTED)
		set("the service's own SID", windows.SERVICE_CONFIG_SERVICE_SID_INFO, unsafe.Pointer(&sidType))
	}
	ms := uint32(want.PreShutdown.Milliseconds())
	set("the time to drain at shutdown", windows.SERVICE_CONFIG_PRESHUTDOWN_INFO, unsafe.Pointer(&ms))

	var actions []mgr.RecoveryAction
	for _, delay := range want.Recovery {
		actions = append(actions, mgr.RecoveryAction{Type: mgr.ServiceRestart, Delay: delay})
	}
	o.warn("the program as the event log's message file", ownMessages(o.Name, o.Executable))
	o.warn("the restart after failures", s.SetRecoveryActions(actions, uint32(want.RecoveryReset/time.Second)))
	o.warn("the restart after an exit with an error", s.SetRecoveryActionsOnNonCrashFailures(want.RecoverOnError))
	return nil
}

func (o *InstallOptions) warn(what string, err error) {
	if err != nil {
		o.say("warning: %s could not be set: %v", what, err)
	}
}

// makeDirs makes the directories and sets who may do what in them.
func (o *InstallOptions) makeDirs(done *undo) error {
	sid := serviceSID(o.Name)
	for _, d := range []struct {
		path string
		list func(current string) string
	}{
		{dataDir(), func(current string) string { return sddlConfigDir(current, sid) }},
		{filepath.Dir(logDir(o.Name)), nil},
		{filepath.Dir(stateDir(o.Name)), nil},
		{logDir(o.Name), func(string) string { return sddlWritable(sid) }},
		{stateDir(o.Name), func(string) string { return sddlStateDir(sid) }},
	} {
		switch err := os.Mkdir(d.path, 0o755); {
		case err == nil:
			done.add(func() error { _ = os.Remove(d.path); return nil }) // only when empty
		case !errors.Is(err, fs.ErrExist):
			return err
		}
		if d.list == nil {
			continue
		}
		current, err := accessList(d.path)
		if err == nil {
			err = setAccessList(d.path, d.list(current))
		}
		o.warn("the access list of "+d.path, err)
	}
	return nil
}

func accessList(path string) (string, error) {
	sd, err := windows.GetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.DACL_SECURITY_INFORMATION)
	if err != nil {
		return "", err
	}
	return sd.String(), nil
}

func setAccessList(path, sddl string) error {
	sd, err := windows.SecurityDescriptorFromString(sddl)
	if err != nil {
		return fmt.Errorf("%s: %w", sddl, err)
	}
	owner, _, err := sd.Owner()
	if err != nil {
		return err
	}
	dacl, _, err := sd.DACL()
	if err != nil {
		return err
	}
	return windows.SetNamedSecurityInfo(path, windows.SE_FILE_OBJECT,
		windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION,
		owner, nil, dacl, nil)
}

// Uninstall stops the service, at the latest after the timeout, and removes it. The
// configuration and logs stay but for Purge.
func Uninstall(ctx context.Context, o UninstallOptions) error {
	if err := o.fill(); err != nil {
		return err
	}
	m, err := connect()
	if err != nil {
		return err
	}
	defer ignore(m.Disconnect)
	s, err := m.OpenService(o.Name)
	if err != nil {
		return fmt.Errorf("%w: %s", ErrNotInstalled, o.Name)
	}
	if err = ours(s); err == nil {
		err = stopOrKill(ctx, s, o.Timeout)
	}
	ignore(s.Close)
	if err != nil {
		return err
	}
	carrier, err := kservice.New(program{}, &kservice.Config{Name: o.Name})
	if err != nil {
		return err
	}
	if err := carrier.Uninstall(); err != nil {
		return fmt.Errorf("the service control manager did not let %s go: %w", o.Name, err)
	}
	fmt.Fprintf(o.Out, "%s: stopped and removed\n", o.Name)
	if current, err := accessList(dataDir()); err == nil {
		if left := sddlWithout(current, serviceSID(o.Name)); left != current {
			_ = setAccessList(dataDir(), "O:BA"+left) // else a reader that exists no more stays listed
		}
	}
	_ = removeDir(stateDir(o.Name)) // it says nothing any more, and can stay
	err = o.purgeConfig()
	if !o.Purge {
		return err
	}
	err = errors.Join(err, removeDir(logDir(o.Name)))
	for _, dir := range []string{filepath.Dir(logDir(o.Name)), filepath.Dir(stateDir(o.Name)), dataDir()} {
		_ = os.Remove(dir) // only when empty
	}
	return err
}

// removeDir removes a directory of plain files. (os.RemoveAll asks for more than every
// Windows has, Wine for one.)
func removeDir(dir string) error {
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, f := range files {
		err = errors.Join(err, os.Remove(filepath.Join(dir, f.Name())))
	}
	return errors.Join(err, os.Remove(dir))
}

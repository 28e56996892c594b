// Installing the service on Linux, under systemd. kardianos/service registers the unit;
// what it would do badly (no systemd, a unit already there, a running process) is settled
// before it is asked.

package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	kservice "github.com/kardianos/service"
)

const etcUnits = "/etc/systemd/system"

// vendorUnits are where packages put their units.
var vendorUnits = []string{"/usr/lib/systemd/system", "/lib/systemd/system", "/usr/local/lib/systemd/system"}

// DefaultConfig is the configuration file of an instance.
func DefaultConfig(name string) string {
	if instance, ok := strings.CutPrefix(name, DefaultName+"@"); ok {
		name = instance
	}
	return filepath.Join(unitConfigDir, name+".toml")
}

// DefaultStateFile is where an instance under systemd tells its state.
func DefaultStateFile(name string) string { return stateFileIn(filepath.Join("/run", name)) }

func unitFile(name string) string { return filepath.Join(etcUnits, name+".service") }

func needSystemd() error {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return errors.New("systemd does not run here (no /run/systemd/system), and no other init is supported: " +
			"let yours run `amqproxysvc run --config FILE` in the foreground")
	}
	return nil
}

func needRoot(what string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s needs root: use sudo", what)
	}
	return nil
}

// packaged finds the unit of a package, and whose it is.
func packaged(name string) error {
	for _, dir := range vendorUnits {
		path := filepath.Join(dir, name+".service")
		if _, err := os.Stat(path); err == nil {
			return fmt.Errorf("a package installed the service %s (%s): use `systemctl enable --now %s`, or the package manager to remove it; "+
				"for a second instance use --name, or `systemctl enable --now %s@INSTANCE`", name, path, name, DefaultName)
		}
	}
	return nil
}

// Install registers the service with systemd and enables it. What it did is taken back
// when a later step fails, the user it made excepted.
func Install(ctx context.Context, o InstallOptions) (err error) {
	if err := o.fill(); err != nil {
		return err
	}
	if err := errors.Join(needSystemd(), needRoot("install")); err != nil {
		return err
	}
	if err := packaged(o.Name); err != nil {
		return err
	}
	unit := unitFile(o.Name)
	old, err := os.ReadFile(unit)
	exists := err == nil
	if exists && !o.Force {
		return fmt.Errorf("the service %s is installed already (%s): --force installs it anew", o.Name, unit)
	}
	if exists {
		if err := needOurs(o.Name, string(old)); err != nil {
			return err
		}
	}
	if err := reachable(o.Executable); err != nil {
		return err
	}
	group, err := o.account()
	if err != nil {
		return err
	}
	text, err := renderUnit(unitParams{Executable: o.Executable, Config: o.Config, User: o.User, Group: group})
	if err != nil {
		return err
	}

	var done undo
	defer func() { done.roll(&err) }()
	if o.User == unitUser {
		if err := makeUser(ctx); err != nil {
			return err
		}
	}
	if err := o.configFor(group, &done); err != nil {
		return err
	}

	svc, err := kservice.New(program{}, &kservice.Config{Name: o.Name, Description: description, Executable: o.Executable,
		Option: kservice.KeyValue{"SystemdScript": text}})
	if err != nil {
		return err
	}
	if exists {
		if err := os.Remove(unit); err != nil {
			return err
		}
		done.add(func() error {
			return errors.Join(os.WriteFile(unit, old, 0o644), systemctl(context.WithoutCancel(ctx), "daemon-reload"))
		})
	} else {
		done.add(func() error {
			bg := context.WithoutCancel(ctx)
			_ = systemctl(bg, "stop", o.Name+".service")
			_ = systemctl(bg, "disable", o.Name+".service")
			_ = systemctl(bg, "reset-failed", o.Name+".service")
			return errors.Join(os.Remove(unit), systemctl(bg, "daemon-reload"))
		})
	}
	if err := svc.Install(); err != nil {
		return fmt.Errorf("systemd did not take the unit %s: %w", unit, err)
	}
	o.say("unit: %s (enabled)", unit)

	if o.Start {
		action := "start"
		if exists {
			action = "restart"
		}
		ctx, cancel := context.WithTimeout(ctx, o.Timeout)
		defer cancel()
		if err := Control(ctx, o.Name, action); err != nil {
			return err
		}
		o.say("%s: running", o.Name)
		return nil
	}
	if exists {
		o.say("a running %s goes on as before until: systemctl restart %s", o.Name, o.Name)
	} else {
		o.say("start it with: systemctl start %s", o.Name)
	}
	return nil
}

// account fills in the user that runs the service and gives its group.
func (o *InstallOptions) account() (group string, err error) {
	if o.User == "" {
		o.User = unitUser
	}
	if o.User == unitUser {
		return unitUser, nil // made when it is not there
	}
	u, err := user.Lookup(o.User)
	if err != nil {
		return "", fmt.Errorf("the user %q does not exist: make it, or leave --user away for %s", o.User, unitUser)
	}
	g, err := user.LookupGroupId(u.Gid)
	if err != nil {
		return "", err
	}
	return g.Name, nil
}

// configFor provides the configuration so that root may write and the service only read it.
func (o *InstallOptions) configFor(group string, done *undo) error {
	g, err := user.LookupGroup(group)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return err
	}
	dir := filepath.Dir(o.Config)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return err
		}
		done.add(func() error { return os.Remove(dir) })
		if err := errors.Join(os.Chown(dir, 0, gid), os.Chmod(dir, 0o750|fs.ModeSetgid)); err != nil {
			return err
		}
	}
	written, err := o.provideConfig("") // the journal takes the log
	if err != nil || !written {
		return err
	}
	done.add(func() error { return os.Remove(o.Config) })
	return errors.Join(os.Chown(o.Config, 0, gid), os.Chmod(o.Config, 0o640))
}

// reachable refuses a program that the unit's sandbox would hide from systemd.
func reachable(exe string) error {
	for _, hidden := range []string{"/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/"} {
		if strings.HasPrefix(exe, hidden) {
			return fmt.Errorf("%s cannot run as a service from %s, which its sandbox hides: `install -m 755 %s /usr/local/bin/%s`, and install with that",
				filepath.Base(exe), strings.TrimSuffix(hidden, "/"), exe, filepath.Base(exe))
		}
	}
	return nil
}

func makeUser(ctx context.Context) error {
	if _, err := user.Lookup(unitUser); err == nil {
		return nil
	}
	cmd := exec.CommandContext(ctx, "systemd-sysusers", "-")
	cmd.Stdin = strings.NewReader(SysusersText)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("the user %s could not be made: systemd-sysusers: %w: %s", unitUser, err, bytes.TrimSpace(out))
	}
	return nil
}

// Uninstall stops the service, at the latest after the timeout, and removes its unit. The
// configuration stays but for Purge.
func Uninstall(ctx context.Context, o UninstallOptions) error {
	if err := o.fill(); err != nil {
		return err
	}
	if err := errors.Join(needSystemd(), needRoot("uninstall")); err != nil {
		return err
	}
	unit := unitFile(o.Name)
	text, err := os.ReadFile(unit)
	if err != nil {
		if perr := packaged(o.Name); perr != nil {
			return perr
		}
		return fmt.Errorf("%w: there is no %s", ErrNotInstalled, unit)
	}
	if err := needOurs(o.Name, string(text)); err != nil {
		return err
	}
	// A socket unit beside it would start the service again with the next client.
	socket := filepath.Join(etcUnits, o.Name+".socket")
	if _, err := os.Stat(socket); err == nil {
		if err := errors.Join(systemctl(ctx, "disable", "--now", o.Name+".socket"), os.Remove(socket)); err != nil {
			return err
		}
	}
	if err := stopOrKill(ctx, o.Name, o.Timeout); err != nil {
		return err
	}
	svc, err := kservice.New(program{}, &kservice.Config{Name: o.Name})
	if err != nil {
		return err
	}
	if err := svc.Uninstall(); err != nil {
		return fmt.Errorf("systemd did not let the unit %s go: %w", unit, err)
	}
	_ = systemctl(ctx, "reset-failed", o.Name+".service") // an error here: it had not failed
	fmt.Fprintf(o.Out, "%s: stopped and removed\n", o.Name)
	err = o.purgeConfig()
	if !o.Purge {
		return err
	}
	_ = os.Remove(filepath.Dir(o.Config)) // only when empty
	for _, dir := range []string{"/var/log/" + o.Name, "/var/lib/" + o.Name, unit + ".d"} {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}

// stopOrKill leaves no process of the unit.
func stopOrKill(ctx context.Context, name string, timeout time.Duration) error {
	unit := name + ".service"
	soft, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := systemctl(soft, "stop", unit)
	if err == nil || ctx.Err() != nil {
		return err
	}
	hard, cancel := context.WithTimeout(ctx, giveUp)
	defer cancel()
	_ = systemctl(hard, "kill", "--signal=SIGKILL", unit)
	if err := systemctl(hard, "stop", unit); err != nil {
		return fmt.Errorf("%s did not stop within %v, nor when killed: %w", name, timeout, err)
	}
	return nil
}

// The settings of an installed service as it would run with them: its command line, its
// environment, its user, its sandbox and its socket unit.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"github.com/amqproxysvc/amqproxysvc/service"
	"github.com/amqproxysvc/amqproxysvc/service/config"
)

// installedSource is where the service reads its settings from.
func installedSource(in service.Installed) (config.Source, error) {
	cmd, flags, name := runCommandParts()
	if err := cmd.ParseFlags(in.Args[1:]); err != nil {
		return config.Source{}, err
	}
	src, err := flags.source(cmd.Flags().Args(), nil)
	if src.File == "" {
		src.File = service.DefaultConfig(*name)
	}
	src.Env = in.Env
	return src, err
}

// checkInstalled tells what is wrong with the settings of an installed service.
func checkInstalled(in service.Installed, src config.Source, stdout, stderr io.Writer) error {
	settings, warnings, problems := examineInstalled(in, src)
	return tellChecked(src.File+" (service "+in.Name+")", settings, warnings, problems, stdout, stderr)
}

func examineInstalled(in service.Installed, src config.Source) (settings config.Settings, warnings, problems []string) {
	settings, warnings, problems = examine(src)
	if f, err := os.Open(src.File); errors.Is(err, fs.ErrPermission) {
		return settings, warnings, []string{src.File + ": cannot be read by this user: use sudo"}
	} else if err == nil {
		_ = f.Close()
	}
	for _, file := range in.EnvFiles {
		if f, err := os.Open(file); errors.Is(err, fs.ErrPermission) {
			warnings = append(warnings, file+": cannot be read, what it sets is not checked: try it with sudo")
		} else if err == nil {
			_ = f.Close()
		}
	}
	if reason := service.Unreadable(in.User, src.File); reason != "" {
		problems = append(problems, src.File+": "+reason)
	}
	for _, file := range settings.SecretFiles() {
		if reason := service.Unreadable(in.User, file); reason != "" {
			problems = append(problems, file+": "+reason)
		}
	}
	if len(problems) > 0 {
		return settings, warnings, problems
	}
	if file := settings.Log.File; file != "" && !in.MayWrite(file) {
		problems = append(problems, fmt.Sprintf("log.file: %s: the unit's sandbox lets the service write to /var/log/%s only: log there, or add ReadWritePaths=%s in a drop-in (systemctl edit %s)",
			file, in.Name, filepath.Dir(file), in.Name))
	}
	for i, address := range in.Sockets {
		if i < len(settings.Listeners) && elsewhere(address, settings.Listeners[i].HostPort()) {
			warnings = append(warnings, socketCounts(address, i, settings.Listeners[i].HostPort()))
		}
	}
	return settings, warnings, problems
}

// socketCounts says that systemd listens elsewhere than the settings ask.
func socketCounts(socket string, listener int, asked string) string {
	return fmt.Sprintf("the socket unit listens on %s, listener %d of the settings says %s: ListenStream= of the .socket unit counts", socket, listener+1, asked)
}

// elsewhere reports whether a socket is not the address that was asked for, as far as that can
// be told: a name has many.
func elsewhere(socket, asked string) bool {
	at, err1 := netip.ParseAddrPort(socket)
	host, port, err2 := net.SplitHostPort(asked)
	if err1 != nil || err2 != nil {
		return false
	}
	if strconv.Itoa(int(at.Port())) != port && port != "0" {
		return true
	}
	want, err := netip.ParseAddr(host)
	return err == nil && want != at.Addr() && !(want.IsUnspecified() && at.Addr().IsUnspecified())
}

// guardRestart refuses to stop a service that runs for settings with which it would not
// start again.
func guardRestart(ctx context.Context, name string) error {
	in, err := service.FindInstalled(ctx, name)
	if err != nil || !in.Running {
		return nil // the restart itself says what is wrong
	}
	src, err := installedSource(in)
	if err != nil {
		return nil
	}
	if f, err := os.Open(src.File); errors.Is(err, fs.ErrPermission) {
		return nil // whoever may not read it may not restart either
	} else if err == nil {
		_ = f.Close()
	}
	if _, _, problems := examineInstalled(in, src); len(problems) > 0 {
		wrong := config.Error{Problems: problems}
		return service.ConfigError(fmt.Errorf("%s is not restarted and runs on as before, with these settings it would not start: %w", name, &wrong))
	}
	return nil
}

func sameFile(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

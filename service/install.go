// Installing and removing the service: what is alike on every system. The steps on each
// are in install_linux.go and install_windows.go.

package service

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// ErrNotInstalled says that no service has the name asked for.
var ErrNotInstalled = errors.New("the service is not installed")

const (
	displayName = "amqproxysvc AMQP proxy"
	description = "AMQP 0-9-1 connection and channel pooling proxy"
)

// InstallOptions say what Install registers.
type InstallOptions struct {
	// Name of the service; empty: DefaultName.
	Name string
	// Executable is the program to register; empty: the running one.
	Executable string
	// Config is the configuration file; empty: DefaultConfig(Name).
	Config string
	// User runs the service; empty: a user of its own (Linux: amqproxysvc; Windows: the
	// virtual account NT SERVICE\NAME, or LocalService where that cannot be had).
	User string
	// Start starts the service once it is registered.
	Start bool
	// Force registers anew over an earlier Install.
	Force bool
	// Timeout bounds the start; 0: a minute.
	Timeout time.Duration

	// NewConfig is the text of a configuration file where none is. logFile is where the
	// installed service should log to, empty where the system's log does.
	NewConfig func(logFile string) ([]byte, error)
	// CheckConfig reads a configuration file and reports what is wrong with it.
	CheckConfig func(path string) error
	// Out takes a line for every step.
	Out io.Writer
}

// UninstallOptions say what Uninstall removes.
type UninstallOptions struct {
	Name string
	// Config is removed with Purge; empty: DefaultConfig(Name).
	Config string
	// Purge removes the configuration, logs and state too.
	Purge bool
	// Timeout is how long the service may take to stop before it is killed; 0: a minute.
	Timeout time.Duration
	Out     io.Writer
}

const defaultTimeout = time.Minute

func (o *InstallOptions) fill() error {
	if o.Name == "" {
		o.Name = DefaultName
	}
	if err := checkName(o.Name); err != nil {
		return err
	}
	if o.Executable == "" {
		exe, err := os.Executable()
		if err != nil {
			return fmt.Errorf("the running program's path cannot be found: %w", err)
		}
		o.Executable = exe
	}
	exe, err := filepath.EvalSymlinks(o.Executable)
	if err != nil {
		return err
	}
	o.Executable = exe
	if o.Config == "" {
		o.Config = DefaultConfig(o.Name)
	}
	if o.Config, err = filepath.Abs(o.Config); err != nil {
		return err
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.Out == nil {
		o.Out = io.Discard
	}
	return nil
}

// fill checks the name and puts what is not given in.
func (o *UninstallOptions) fill() error {
	if o.Name == "" {
		o.Name = DefaultName
	}
	if o.Config == "" {
		o.Config = DefaultConfig(o.Name)
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.Out == nil {
		o.Out = io.Discard
	}
	return checkName(o.Name)
}

// purgeConfig removes the configuration, or says that it is kept where Purge is not set.
func (o *UninstallOptions) purgeConfig() error {
	if o.Purge {
		if err := os.Remove(o.Config); !errors.Is(err, os.ErrNotExist) {
			return err
		}
	} else if _, err := os.Stat(o.Config); err == nil {
		fmt.Fprintf(o.Out, "kept: %s (uninstall --purge removes it too)\n", o.Config)
	}
	return nil
}

// needOurs refuses to replace or remove another program's service: its name was mistyped.
// runs is its unit or its command line.
func needOurs(name, runs string) error {
	if strings.Contains(runs, " run --service ") {
		return nil
	}
	return fmt.Errorf("--name: the service %s is another program's (it does not run `amqproxysvc run --service`), it is left alone", name)
}

func (o *InstallOptions) say(format string, args ...any) { fmt.Fprintf(o.Out, format+"\n", args...) }

// undo takes back the steps of an installation that failed, the last first.
type undo []func() error

func (u *undo) add(f func() error) { *u = append(*u, f) }

// roll takes back all steps when *err is set and adds what could not be taken back.
func (u undo) roll(err *error) {
	if *err == nil {
		return
	}
	for i := len(u) - 1; i >= 0; i-- {
		if uerr := u[i](); uerr != nil && !errors.Is(uerr, os.ErrNotExist) {
			*err = fmt.Errorf("%w (and taking back what was done: %w)", *err, uerr)
		}
	}
}

// provideConfig makes sure that a configuration is there and right. It reports whether it
// wrote one.
func (o *InstallOptions) provideConfig(logFile string) (written bool, err error) {
	_, err = os.Stat(o.Config)
	switch {
	case err == nil:
		if err := o.CheckConfig(o.Config); err != nil {
			return false, ConfigError(err)
		}
		o.say("configuration: %s (kept)", o.Config)
		return false, nil
	case !errors.Is(err, os.ErrNotExist):
		return false, err
	}
	text, err := o.NewConfig(logFile)
	if err != nil {
		return false, err
	}
	f, err := os.OpenFile(o.Config, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return false, err
	}
	_, err = f.Write(text)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = ConfigError(o.CheckConfig(o.Config))
	}
	if err != nil {
		return false, errors.Join(err, os.Remove(o.Config))
	}
	o.say("configuration: %s (written)", o.Config)
	return true, nil
}

// msi-configure: what the MSI has the program do for its own service, elevated, while it
// installs. installer/README.md says when each form is called.

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/windows"

	"github.com/amqproxysvc/amqproxysvc/service"
	"github.com/amqproxysvc/amqproxysvc/service/config"
)

func init() {
	systemCommands = append(systemCommands, msiConfigureCommand)
}

// msiOptions are the command's flags. An empty value counts as not given: the MSI passes
// its properties on, set or not.
type msiOptions struct {
	name, config, upstream, listen string
	keep, rollback, commit         bool
}

func msiConfigureCommand() *cobra.Command {
	var o msiOptions
	cmd := &cobra.Command{
		Use:    "msi-configure",
		Short:  "Configure the service that the MSI registered (called by the MSI)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := o.run(cmd.Context(), cmd)
			if err != nil {
				// Windows Installer shows no output of what it runs: the reason must be found in the event log.
				if h := service.SystemLog(o.name, true); h != nil {
					slog.New(h).Error("setup: "+err.Error(), service.Event(service.EventStartFailed))
				}
			}
			return err
		},
	}
	nameFlag(cmd, &o.name)
	f := cmd.Flags()
	f.StringVar(&o.config, "config", "", "Settings `FILE`, written where there is none")
	f.StringVar(&o.upstream, "upstream", "", "`URL` of the broker for a new settings file")
	f.StringVar(&o.listen, "listen", "", "`HOST:PORT` for clients, for a new settings file")
	f.BoolVar(&o.keep, "keep", false, "A settings file that is there may say otherwise")
	f.BoolVar(&o.rollback, "rollback", false, "Take back what the last call did to the settings file")
	f.BoolVar(&o.commit, "commit", false, "Forget how to take it back")
	return cmd
}

func (o *msiOptions) run(ctx context.Context, cmd *cobra.Command) error {
	// The MSI has a space behind each value, see database.sql.
	for _, value := range []*string{&o.config, &o.upstream, &o.listen} {
		*value = strings.TrimSpace(*value)
	}
	if o.config == "" {
		o.config = service.DefaultConfig(o.name)
	}
	if !filepath.IsAbs(o.config) { // setup has no directory of its own that a name could be in
		return fmt.Errorf("CONFIGFILE is %q, wanted is a full path", o.config)
	}
	// There while the file beside it is new and not yet wanted for good.
	isNew := o.config + ".new-by-setup"
	switch {
	case o.rollback:
		switch err := os.Remove(isNew); {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		}
		return os.Remove(o.config)
	case o.commit:
		if err := os.Remove(isNew); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}

	asked, err := o.overrides()
	if err != nil {
		return err
	}
	if _, _, err := config.Load(config.Source{CommandLine: asked}); err != nil {
		return err
	}
	install := service.InstallOptions{
		Name:      o.name,
		Config:    o.config,
		User:      `NT SERVICE\` + o.name,
		NewConfig: func(logFile string) ([]byte, error) { return newConfig(asked, logFile) },
		Out:       cmd.OutOrStdout(),
	}
	_, err = os.Stat(o.config)
	written := errors.Is(err, fs.ErrNotExist)
	install.CheckConfig = func(path string) error {
		if o.keep && !written {
			return checkInstalledConfig(path, nil)
		}
		return checkInstalledConfig(path, asked)
	}
	err = service.Configure(ctx, install)
	if errors.Is(err, windows.ERROR_INVALID_SERVICE_ACCOUNT) {
		install.User = "" // the one that the MSI's table has
		err = service.Configure(ctx, install)
	}
	if written && err == nil {
		err = os.WriteFile(isNew, nil, 0o600)
	}
	if written && err != nil {
		if rerr := os.Remove(o.config); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = fmt.Errorf("%w (and the new %s could not be removed: %w)", err, o.config, rerr)
		}
	}
	return err
}

// overrides are the settings that the MSI's command line asked for.
func (o *msiOptions) overrides() ([]config.Override, error) {
	var asked []config.Override
	add := func(setting, value, origin string) {
		asked = append(asked, config.Override{Setting: config.Find(setting), Value: value, Origin: origin})
	}
	if o.upstream != "" {
		add("upstream.url", o.upstream, "UPSTREAM")
	}
	if o.listen != "" {
		host, port, err := net.SplitHostPort(o.listen)
		if err != nil {
			return nil, fmt.Errorf("LISTEN is %q, allowed is HOST:PORT: %w", o.listen, err)
		}
		add("listener.address", host, "LISTEN")
		add("listener.port", port, "LISTEN")
	}
	return asked, nil
}

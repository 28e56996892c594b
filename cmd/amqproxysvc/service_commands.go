// The commands that install, remove, run and ask the native service. What they do is in
// package service; here are their flags and words.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/amqproxysvc/amqproxysvc/service"
	"github.com/amqproxysvc/amqproxysvc/service/config"
	"github.com/amqproxysvc/amqproxysvc/service/logging"
)

func serviceCommands() []*cobra.Command {
	return []*cobra.Command{runCommand(), installCommand(), uninstallCommand(), reloadCommand(), upgradeCommand(), statusCommand(),
		controlCommand("start", "Start the installed service, and wait until clients can connect"),
		controlCommand("stop", "Stop the installed service: clients get the drain timeout to finish"),
		controlCommand("restart", "Stop and start the installed service, unless its settings are wrong")}
}

func nameFlag(cmd *cobra.Command, name *string) {
	cmd.Flags().StringVar(name, "name", service.DefaultName, "`NAME` of the service, one for each instance")
}

func timeoutFlag(cmd *cobra.Command, timeout *time.Duration, what string) {
	*timeout = time.Minute
	cmd.Flags().Var((*timeoutValue)(timeout), "timeout", what)
}

// timeoutValue is a time, written as those of the settings are.
type timeoutValue time.Duration

func (v *timeoutValue) String() string { return time.Duration(*v).String() }
func (v *timeoutValue) Type() string   { return "TIME" }

func (v *timeoutValue) Set(text string) error {
	d, ok := config.ParseDuration(text)
	if !ok || d <= 0 {
		return errors.New(`allowed is a time above 0, "90s" or "5m" or a number of seconds`)
	}
	*v = timeoutValue(d)
	return nil
}

// pidValue is the number of one process: kill(2) takes 0 and what is below for many.
type pidValue int

func (v *pidValue) Type() string { return "PID" }

func (v *pidValue) String() string {
	if *v == 0 {
		return ""
	}
	return strconv.Itoa(int(*v))
}

func (v *pidValue) Set(text string) error {
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n < 1 {
		return errors.New("allowed is the number of a process, 1 or more")
	}
	*v = pidValue(n)
	return nil
}

func runCommand() *cobra.Command {
	cmd, _, _ := runCommandParts()
	return cmd
}

// runCommandParts is the command with what its flags set.
func runCommandParts() (cmd *cobra.Command, flags *settingFlags, name *string) {
	flags, name = &settingFlags{}, new(string)
	var managed bool
	cmd = &cobra.Command{
		Use:   "run [flags] [AMQP_URL...]",
		Short: "Run the proxy in the foreground; with --service, for systemd or Windows",
		Long: runSignals + " With --service the settings are read from\n" +
			service.DefaultConfig("NAME") + " unless --config says otherwise.",
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if managed && flags.file == "" {
				flags.file = service.DefaultConfig(*name)
			}
			src, err := flags.source(args, nil)
			if err != nil {
				return err
			}
			if !managed {
				return runForeground(cmd.Context(), src)
			}
			return runManaged(cmd.Context(), src, *name)
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&managed, "service", false, "Started by systemd or the Windows service control manager")
	nameFlag(cmd, name)
	return cmd, flags, name
}

// runManaged runs under a service manager: the log goes to what it gave as standard error
// (the journal), and to the system's own log where there is one.
func runManaged(ctx context.Context, src config.Source, name string) error {
	o := runOptions{Name: name, Managed: true}
	o.Log.Output = os.Stderr
	o.Log.Style = logging.StyleOf(os.Stderr)
	if h := service.SystemLog(name, true); h != nil {
		o.Log.Extra = append(o.Log.Extra, h)
	}
	return runProxy(ctx, src, o)
}

func installCommand() *cobra.Command {
	var o service.InstallOptions
	flags := &settingFlags{}
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install the program as a service that starts with the machine",
		Long: "Install the program as a service of systemd or Windows. A commented configuration is written where there is\n" +
			"none, with the settings given here. When a step fails, what was done is taken back.",
		Example: "  amqproxysvc install --upstream amqps://broker.example.com --start\n" +
			"  amqproxysvc install --name eu -p 5674 -b 15674 --upstream amqps://eu.example",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			src, err := flags.source(nil, nil)
			if err != nil {
				return err
			}
			// Checked before anything is done, and apart from the environment, which will
			// be the service's own.
			if _, warnings, err := config.Load(config.Source{CommandLine: src.CommandLine}); err != nil {
				return err
			} else if len(warnings) > 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning: "+strings.Join(warnings, "; "))
			}
			o.Out = cmd.OutOrStdout()
			o.Config = flags.file
			o.NewConfig = func(logFile string) ([]byte, error) { return newConfig(src.CommandLine, logFile) }
			o.CheckConfig = func(path string) error { return checkInstalledConfig(path, src.CommandLine) }
			return service.Install(cmd.Context(), o)
		},
	}
	nameFlag(cmd, &o.Name)
	f := cmd.Flags()
	f.StringVar(&o.User, "user", "", "Existing `USER` that runs the service (default: one of its own)")
	f.Var(&settingValue{flags, config.Find("upstream.url"), "upstream"}, "upstream", "The broker, amqp://HOST or amqps://HOST")
	f.BoolVar(&o.Start, "start", false, "Start it too, and fail if it does not come up")
	f.BoolVar(&o.Force, "force", false, "Install anew over an earlier install; the configuration is kept")
	timeoutFlag(cmd, &o.Timeout, "How long --start may take")
	flags.add(cmd)
	f.Lookup("config").Usage = "Settings `FILE` (default " + service.DefaultConfig("NAME") + ")"
	return cmd
}

// newConfig is the commented settings file that install writes where there is none.
func newConfig(overrides []config.Override, logFile string) ([]byte, error) {
	set := map[string]string{}
	if logFile != "" {
		set["log.file"] = logFile
	}
	for _, o := range overrides {
		text := o.Value
		if o.Setting.Name() == "upstream.url" { // without what is ignored in it, a password say
			canonical, err := config.CanonicalURLs(text)
			if err != nil {
				return nil, fmt.Errorf("%s %w", o.Origin, err)
			}
			text = canonical
		}
		set[o.Setting.Name()] = text
	}
	text, err := config.Sample(set)
	return []byte(text), err
}

// checkInstalledConfig checks a settings file, and that it agrees with the command line:
// a file that is there is never changed.
func checkInstalledConfig(path string, overrides []config.Override) error {
	is, _, err := config.Load(config.Source{File: path})
	if err != nil || len(overrides) == 0 {
		return err
	}
	asked, _, err := config.Load(config.Source{File: path, CommandLine: overrides})
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(is, asked) {
		return fmt.Errorf("%s is there and sets otherwise what the command line asks for: change it there, or leave the settings away", path)
	}
	return nil
}

func uninstallCommand() *cobra.Command {
	var o service.UninstallOptions
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Stop and remove the service; the configuration stays",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Out = cmd.OutOrStdout()
			return notInstalled(service.Uninstall(cmd.Context(), o))
		},
	}
	nameFlag(cmd, &o.Name)
	cmd.Flags().StringVarP(&o.Config, "config", "c", "", "Configuration `FILE` that --purge removes (default "+service.DefaultConfig("NAME")+")")
	cmd.Flags().BoolVar(&o.Purge, "purge", false, "Remove the configuration, logs and state too")
	timeoutFlag(cmd, &o.Timeout, "How long it may take to stop before it is killed")
	return cmd
}

func controlCommand(action, short string) *cobra.Command {
	var name string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   action,
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			if action == "restart" {
				if err := guardRestart(ctx, name); err != nil {
					return err
				}
			}
			return notInstalled(service.Control(ctx, name, action))
		},
	}
	nameFlag(cmd, &name)
	timeoutFlag(cmd, &timeout, "How long to wait for it")
	return cmd
}

// notInstalled gives that error the LSB's exit code for it.
func notInstalled(err error) error {
	if errors.Is(err, service.ErrNotInstalled) {
		return &service.ExitError{Code: 5, Err: err}
	}
	return err
}

// Commands about settings and about the program itself; those of the service are in
// service_*.go.

package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/amqproxysvc/amqproxysvc/service"
	"github.com/amqproxysvc/amqproxysvc/service/config"
)

func checkConfigCommand() *cobra.Command {
	var file, name string
	cmd := &cobra.Command{
		Use:   "check-config [FILE]",
		Short: "Say what is wrong with a settings file, if anything",
		Long: `Reads the settings file, the environment and the files they name (certificates), as a start
or a reload would, and says everything that is wrong, a line each. Nothing is started or changed.
Without FILE, and with the FILE of an installed service, it takes that service's command line and
environment, and looks at its user, its sandbox and its socket unit too.
Exit code 0 when all is well, 78 when not.`,
		Args:              maximumArgs(1, "the FILE"),
		ValidArgsFunction: filesNamed("toml"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				if file != "" {
					return usageError(fmt.Errorf("the file is given twice"))
				}
				file = args[0]
			}
			named := cmd.Flags().Changed("name")
			in, err := service.FindInstalled(cmd.Context(), name)
			if err == nil {
				if src, err := installedSource(in); err == nil && (file == "" || sameFile(file, src.File)) {
					return checkInstalled(in, src, cmd.OutOrStdout(), cmd.ErrOrStderr())
				}
			}
			switch {
			case named && err != nil:
				return notInstalled(err)
			case named:
				return usageError(fmt.Errorf("the service %s does not read %s: leave one of them away", name, file))
			}
			return checkConfig(config.Source{File: file, Env: os.LookupEnv}, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", "", "The settings `FILE`, instead of the argument")
	nameFlag(cmd, &name)
	cmd.Flags().Lookup("name").Usage = "`NAME` of the installed service to check"
	_ = cmd.MarkFlagFilename("config", "toml")
	return cmd
}

// filesNamed completes an argument with the files of that ending.
func filesNamed(ending string) cobra.CompletionFunc {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return []string{ending}, cobra.ShellCompDirectiveFilterFileExt
	}
}

// checkConfig tells problems and warnings, or that all is well.
func checkConfig(src config.Source, stdout, stderr io.Writer) error {
	settings, warnings, problems := examine(src)
	name := src.File
	if name == "" {
		name = "settings of environment and defaults"
	}
	return tellChecked(name, settings, warnings, problems, stdout, stderr)
}

// examine loads the settings and the files they name.
func examine(src config.Source) (settings config.Settings, warnings, problems []string) {
	settings, warnings, err := config.Load(src)
	if err == nil {
		warnings = append(warnings, settings.Warnings()...)
		_, err = settings.HTTP.Password()
	}
	if err == nil {
		_, err = settings.ProxyConfig(programVersion(), nil)
	}
	if err != nil {
		problems = problemsOf(err)
	}
	return settings, warnings, problems
}

func tellChecked(name string, settings config.Settings, warnings, problems []string, stdout, stderr io.Writer) error {
	for _, w := range warnings {
		say(stderr, "warning: %s", w)
	}
	if len(problems) > 0 {
		for _, p := range problems {
			complain(stderr, fmt.Errorf("%s", p))
		}
		return &service.ExitError{Code: service.ExitConfig}
	}
	var upstreams []string
	for _, b := range settings.Brokers() {
		upstreams = append(upstreams, b.String())
	}
	for i := range settings.Named {
		one := &settings.Named[i]
		words := "broker " + one.Name
		for _, b := range one.Brokers() {
			words += " " + b.String()
		}
		upstreams = append(upstreams, words)
	}
	say(stdout, "%s: ok, upstream %s, listening on %s", name, strings.Join(upstreams, ", "), listening(settings))
	return nil
}

func listening(s config.Settings) (text string) {
	for i, l := range s.Listeners {
		if i > 0 {
			text += " "
		}
		text += l.HostPort()
	}
	return text
}

func problemsOf(err error) []string {
	if wrong, ok := err.(*config.Error); ok {
		return wrong.Problems
	}
	return []string{err.Error()}
}

func importConfigCommand() *cobra.Command {
	return importCommand("import-config FILE", "ini", config.Import, "Print the settings of an AMQProxy ini file as TOML",
		`Reads an ini file of AMQProxy and prints the TOML that means the same. What has no equivalent
is named in a comment and on standard error.`)
}

// importCommand prints as settings what a FILE of another program's says, and on standard error what it could not take.
func importCommand(use, ext string, read func(file string) (text string, notes []string, err error), short, long string) *cobra.Command {
	return &cobra.Command{
		Use:               use,
		Short:             short,
		Long:              long,
		Args:              exactArgs(1, "the FILE"),
		ValidArgsFunction: filesNamed(ext),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, notes, err := read(args[0])
			if err != nil {
				return err
			}
			for _, n := range notes {
				say(cmd.ErrOrStderr(), "warning: %s: %s", args[0], n)
			}
			_, err = io.WriteString(cmd.OutOrStdout(), text)
			return err
		},
	}
}

func sampleConfigCommand() *cobra.Command {
	var short bool
	cmd := &cobra.Command{
		Use:   "sample-config",
		Short: "Print a settings file with every setting, commented at its default",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := config.ShortSample(), error(nil)
			if !short {
				text, err = config.Sample(nil)
			}
			if err != nil {
				return err
			}
			_, err = io.WriteString(cmd.OutOrStdout(), text)
			return err
		},
	}
	cmd.Flags().BoolVar(&short, "short", false, "Only those that most people change")
	return cmd
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version and how the program was built",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), fullVersion())
			return err
		},
	}
}

func manCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "man [--dir DIR]",
		Short: "Write the manual pages",
		Long:  `Prints the manual page amqproxysvc(8), or writes it and amqproxysvc.toml(5) into a directory.`,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				_, err := cmd.OutOrStdout().Write(commandPage(cmd.Root()))
				return err
			}
			return writeManPages(cmd.Root(), dir)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "Write amqproxysvc.8 and amqproxysvc.toml.5 into `DIR`")
	_ = cmd.MarkFlagDirname("dir")
	return cmd
}

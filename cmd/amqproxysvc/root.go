// The root command: `amqproxysvc [flags] [AMQP_URL...]` runs the proxy in the foreground, as
// AMQProxy does. Its flags come from the table of settings.

package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/amqproxysvc/amqproxysvc/service"
	"github.com/amqproxysvc/amqproxysvc/service/config"
)

// systemCommands make the commands that only this system has.
var systemCommands []func() *cobra.Command

// newRootCommand is the whole command line.
func newRootCommand() *cobra.Command {
	flags := &settingFlags{}
	root := &cobra.Command{
		Use:   "amqproxysvc [flags] [AMQP_URL...]",
		Short: "AMQP 0-9-1 connection and channel pooling proxy",
		Long: `amqproxysvc keeps connections to an AMQP 0-9-1 broker open and lets applications that
connect often share them. It runs in the foreground until it is interrupted; the commands
below install and control it as a service of the system.

Settings are taken from the command line, then the environment, then the file given with
--config; amqproxysvc sample-config prints a file with all of them.`,
		Example: `  amqproxysvc -l 127.0.0.1 -p 5673 amqps://broker.example.com
  amqproxysvc --config ` + service.DefaultConfig(service.DefaultName),
		Version:       programVersion(),
		Args:          cobra.ArbitraryArgs, // else cobra takes a URL for an unknown command
		SilenceUsage:  true,
		SilenceErrors: true,
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"amqp://", "amqps://"}, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			src, err := flags.source(args, subcommandNames(cmd))
			if err != nil {
				return err
			}
			return runForeground(cmd.Context(), src)
		},
	}
	root.SetVersionTemplate("{{.Version}}\n") // as AMQProxy prints it
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageErrorOf(cmd, withNearestFlag(cmd, err)) })
	flags.add(root)
	root.Flags().BoolP("help", "h", false, "Show this help")
	root.Flags().BoolP("version", "v", false, "Show the version")

	root.AddCommand(checkConfigCommand(), importConfigCommand(), sampleConfigCommand(), versionCommand(), manCommand(), healthcheckCommand())
	root.AddCommand(userCommands()...)
	root.AddCommand(serviceCommands()...)
	root.AddCommand(lookCommands()...)
	for _, command := range systemCommands {
		root.AddCommand(command())
	}
	root.InitDefaultCompletionCmd()
	root.InitDefaultHelpCmd()
	for _, c := range root.Commands() {
		if c.Name() == "help" { // cobra's prints the root's help for what it does not know, and ends well
			help := c.Run
			c.Run = nil
			c.RunE = func(cmd *cobra.Command, args []string) error {
				if found, _, err := root.Find(args); len(args) > 0 && (err != nil || found == root) {
					err := fmt.Errorf("unknown command %q", args[0])
					if near := nearestCommand(args[0], subcommandNames(root)); near != "" {
						err = fmt.Errorf("%w, did you mean %q?", err, near)
					}
					return usageError(err)
				}
				help(cmd, args)
				return nil
			}
		}
		if c.Name() == "completion" { // without a function of its own it takes any shell's name
			c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
	}
	for _, c := range allCommands(root)[1:] {
		usageArgs(c)
		c.InitDefaultHelpFlag()
		c.Flags().Lookup("help").Usage = "Show this help"
	}
	fitHelp(root)
	return root
}

// settingFlags are the flags that change settings. A service command that runs the proxy
// takes them too.
type settingFlags struct {
	file      string
	debug     bool
	overrides []config.Override
}

// add defines the flags on a command.
func (f *settingFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVarP(&f.file, "config", "c", "", "Read settings from `FILE`")
	for _, short := range []bool{true, false} { // those with a letter first
		for i := range config.Table {
			d := &config.Table[i]
			if d.Flag == "" || (d.Short != "") != short {
				continue
			}
			first, _, _ := strings.Cut(d.Help, ". ")
			fs.VarP(&settingValue{f, d, d.Flag}, d.Flag, d.Short, strings.TrimSuffix(first, "."))
		}
	}
	fs.Var(&setValue{f}, "set", "Any other setting, as pool.max_upstreams=20; repeatable")
	fs.BoolVarP(&f.debug, "debug", "d", false, "Log debug lines too")
	_ = cmd.RegisterFlagCompletionFunc("set", func(*cobra.Command, []string, string) (names []string, _ cobra.ShellCompDirective) {
		for i := range config.Table {
			if d := &config.Table[i]; !d.FileOnly() {
				names = append(names, d.Name()+"=")
			}
		}
		return names, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
	})
	_ = cmd.MarkFlagFilename("config", "toml")
}

// source is where to load settings from, after the flags were read; args may hold the URL.
func (f *settingFlags) source(args, commands []string) (config.Source, error) {
	src := config.Source{File: f.file, Env: os.LookupEnv, CommandLine: slices.Clone(f.overrides)}
	if f.debug {
		src.CommandLine = append(src.CommandLine, config.Override{Setting: config.Find("log.level"), Value: "debug", Origin: "--debug"})
	}
	switch {
	case len(args) > 1:
		for _, arg := range args { // each by itself: an error of one must not tell of another
			if _, _, err := config.ParseURL(arg); err != nil {
				return src, usageError(fmt.Errorf("%d arguments, allowed are AMQP_URLs, and one %w", len(args), err))
			}
		}
	case len(args) == 1:
		if near := nearestCommand(args[0], commands); near != "" {
			return src, usageError(fmt.Errorf("unknown command %q, did you mean %q?", args[0], near))
		}
	default:
		return src, nil
	}
	src.CommandLine = append(src.CommandLine, config.Override{Setting: config.Find("upstream.url"), Value: strings.Join(args, ","), Origin: "AMQP_URL"})
	return src, nil
}

// settingValue is a flag of one setting. Values are checked when all sources are loaded,
// so that every error reads alike.
type settingValue struct {
	flags *settingFlags
	d     *config.Setting
	name  string // the flag's
}

func (v *settingValue) String() string {
	if v.d == nil { // pflag asks a zero value
		return ""
	}
	return strings.Trim(v.d.DefaultText(), `"`)
}

func (v *settingValue) Set(text string) error {
	v.flags.overrides = append(v.flags.overrides, config.Override{Setting: v.d, Value: text, Origin: "--" + v.name})
	return nil
}

func (v *settingValue) Type() string {
	switch v.d.Kind {
	case config.KindHost:
		return "ADDRESS"
	case config.KindURL:
		return "URL"
	case config.KindDuration:
		return "TIME"
	}
	if v.d.Key == "port" {
		return "PORT"
	}
	return "NUMBER"
}

// setValue is --set.
type setValue struct{ flags *settingFlags }

func (v *setValue) String() string { return "" }
func (v *setValue) Type() string   { return "NAME=VALUE" }

func (v *setValue) Set(text string) error {
	name, value, found := strings.Cut(text, "=")
	name = strings.TrimSpace(name)
	if !found {
		return fmt.Errorf("%q has no value, allowed is NAME=VALUE", name)
	}
	d := config.Find(name)
	if d == nil {
		if near := config.Nearest(name); near != "" {
			return fmt.Errorf("unknown setting %q, did you mean %q?", name, near)
		}
		return fmt.Errorf("unknown setting %q, sample-config lists all", name)
	}
	if d.FileOnly() {
		return fmt.Errorf("%s is set in the settings file only", d.Name())
	}
	v.flags.overrides = append(v.flags.overrides, config.Override{Setting: d, Value: value, Origin: "--set " + name})
	return nil
}

var _, _ pflag.Value = &settingValue{}, &setValue{}

// withNearestFlag names, for a flag that is not known, the one that was meant most likely.
func withNearestFlag(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		return err
	}
	word := unknown.GetSpecifiedName()
	best, bestDistance := "", 2+len(word)/4
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if n := config.Distance(word, f.Name); n < bestDistance && !f.Hidden && len(word) > 1 {
			best, bestDistance = f.Name, n
		}
	})
	if best == "" {
		return err
	}
	return fmt.Errorf("%w, did you mean --%s?", err, best)
}

// forCompletion takes the marks of a value's name out of the flags' texts, which the shells
// would show.
func forCompletion(root *cobra.Command) {
	for _, c := range allCommands(root) {
		c.LocalFlags().VisitAll(func(f *pflag.Flag) { f.Usage = strings.ReplaceAll(f.Usage, "`", "") })
	}
}

// singleDash finds a long flag behind one dash, which would be taken for letters ("-port" for
// "-p ort"), and letters in one word of which more than one wants a value ("-lp").
func singleDash(root *cobra.Command, args []string) error {
	cmd, _, err := root.Find(args)
	if err != nil {
		cmd = root
	}
	for _, arg := range args {
		word, single := strings.CutPrefix(arg, "-")
		word, _, _ = strings.Cut(word, "=")
		if arg == "--" {
			return nil
		}
		if !single || len(word) < 2 || word[0] == '-' {
			continue
		}
		if cmd.Flags().Lookup(word) != nil {
			return usageError(fmt.Errorf("-%s: did you mean --%s?", word, word))
		}
		first, second := cmd.Flags().ShorthandLookup(word[:1]), cmd.Flags().ShorthandLookup(word[1:2])
		if len(word) == 2 && first != nil && second != nil && first.Value.Type() != "bool" && second.Value.Type() != "bool" {
			return usageError(fmt.Errorf("-%s: each takes a value of its own: -%s %s -%s %s", word, first.Shorthand, first.Value.Type(), second.Shorthand, second.Value.Type()))
		}
	}
	return nil
}

// nearestCommand is the command that someone who wrote word may have meant: one that
// begins with it, the shortest or the first of which it is a whole word, else the one that differs least.
func nearestCommand(word string, commands []string) string {
	if strings.ContainsAny(word, ":/.@") {
		return "" // rather a URL
	}
	best := ""
	for _, c := range commands {
		if len(word) >= 2 && strings.HasPrefix(c, word) && (best == "" || len(c) < len(best) && !strings.HasPrefix(best, word+"-")) {
			best = c
		}
	}
	if best != "" {
		return best
	}
	bestDistance := min(2*(2+len(word)/4), len(word)) // half of a word must be right
	for _, c := range commands {
		n := 2 * config.Distance(word, c)
		if len(c) == len(word) {
			n-- // letters that changed places, rather than one too many
		}
		if n < bestDistance {
			best, bestDistance = c, n
		}
	}
	return best
}

func subcommandNames(cmd *cobra.Command) (names []string) {
	for _, c := range cmd.Commands() {
		if !c.Hidden {
			names = append(names, c.Name())
		}
	}
	return names
}

// allCommands is a command and everything below it.
func allCommands(cmd *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{cmd}
	for _, c := range cmd.Commands() {
		all = append(all, allCommands(c)...)
	}
	return all
}

// maximumArgs and exactArgs are cobra's, in our words.
func maximumArgs(n int, what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) > n {
			return fmt.Errorf("%d arguments, allowed is one, %s", len(args), what)
		}
		return nil
	}
}

func exactArgs(n int, what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != n {
			return fmt.Errorf("%d arguments, needed is one, %s", len(args), what)
		}
		return nil
	}
}

// usageArgs makes a wrong number of arguments a wrong command line.
func usageArgs(cmd *cobra.Command) {
	check := cmd.Args
	if check == nil {
		return
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageErrorOf(cmd, err)
		}
		return nil
	}
}

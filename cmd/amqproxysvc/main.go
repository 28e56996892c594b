// Command amqproxysvc is an AMQP 0-9-1 connection and channel pooling proxy. This package
// is flags and wiring; main turns an error into one line and an exit code.

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/amqproxysvc/amqproxysvc/service"
	"github.com/amqproxysvc/amqproxysvc/service/config"
	"github.com/amqproxysvc/amqproxysvc/service/logging"
)

// version is set by the build: -ldflags "-X main.version=1.2.3".
var version = ""

// gcPercent suits a sidecar, see main.
const gcPercent = 50

func main() {
	// The hot path makes no garbage and a proxy beside an application should be small: the
	// heap may grow by half between collections, not by all. GOGC in the environment wins.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	os.Exit(run(os.Args[1:], os.Stderr))
}

// run runs the program and gives its exit code: 0, 1 for a failure at run time, 64 for a
// wrong command line, 78 for a wrong configuration.
func run(args []string, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(append([]string{}, args...)) // nil would be the process's own
	root.SetErr(stderr)
	if len(args) > 0 && strings.HasPrefix(args[0], cobra.ShellCompRequestCmd) {
		forCompletion(root)
	}
	err := singleDash(root, args)
	if err == nil {
		err = root.Execute()
	}
	if err == nil {
		return service.ExitOK
	}
	complain(stderr, err)
	return exitCode(err)
}

// complain writes the error as one line, unless everything has been said.
func complain(stderr io.Writer, err error) {
	var coded *service.ExitError
	if errors.As(err, &coded) && coded.Err == nil {
		return
	}
	line := "amqproxysvc: " + strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ") + "\n"
	if f, ok := stderr.(*os.File); ok && logging.StyleOf(f) == logging.StyleJournal {
		line = "<3>" + line
	}
	_, _ = io.WriteString(stderr, line)
}

// say writes a line for people; where it cannot be written there is nobody to tell.
func say(w io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintf(w, format+"\n", args...)
}

func exitCode(err error) int {
	var wrong *config.Error
	if errors.As(err, &wrong) {
		if wrong.CommandLine {
			return service.ExitUsage
		}
		return service.ExitConfig
	}
	return service.ExitCode(err)
}

// usageError marks an error as a wrong command line.
func usageError(err error) error {
	return &service.ExitError{Code: service.ExitUsage, Err: fmt.Errorf("%w (see amqproxysvc --help)", err)}
}

// usageErrorOf is the same for the command line of one command.
func usageErrorOf(cmd *cobra.Command, err error) error {
	return &service.ExitError{Code: service.ExitUsage, Err: fmt.Errorf("%w (see %s --help)", err, cmd.CommandPath())}
}

// programVersion is the version without a leading v; "dev" where the build named none.
func programVersion() string {
	if version != "" {
		return strings.TrimPrefix(version, "v")
	}
	if info, ok := debug.ReadBuildInfo(); ok && strings.HasPrefix(info.Main.Version, "v") {
		return strings.TrimPrefix(info.Main.Version, "v")
	}
	return "dev"
}

// fullVersion says what else is known of the build.
func fullVersion() string {
	text := fmt.Sprintf("amqproxysvc %s %s/%s %s", programVersion(), runtime.GOOS, runtime.GOARCH, runtime.Version())
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				text += " " + s.Value
			}
		}
	}
	return text
}

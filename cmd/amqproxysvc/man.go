// The manual pages, from the same commands, flags and settings that the program runs on.

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/amqproxysvc/amqproxysvc/service/config"
)

// writeManPages writes amqproxysvc.8 and amqproxysvc.toml.5.
func writeManPages(root *cobra.Command, dir string) error {
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "amqproxysvc.8"), commandPage(root), 0o644),
		os.WriteFile(filepath.Join(dir, "amqproxysvc.toml.5"), settingsPage(), 0o644),
	)
}

// commandPage is amqproxysvc(8) in roff.
func commandPage(root *cobra.Command) []byte {
	var b strings.Builder
	title(&b, "amqproxysvc 8", "System Administration")
	fmt.Fprintf(&b, "# NAME\namqproxysvc - %s\n\n", root.Short)
	b.WriteString("# SYNOPSIS\n**amqproxysvc** [*flags*] [*AMQP_URL*...]\n\n**amqproxysvc** *command* [*flags*]\n\n")
	fmt.Fprintf(&b, "# DESCRIPTION\n%s\n\n", escape(root.Long))
	b.WriteString("# OPTIONS\n")
	flagList(&b, root.LocalFlags(), nil)
	b.WriteString("# COMMANDS\n")
	for _, c := range root.Commands() {
		if c.Hidden || !c.IsAvailableCommand() {
			continue
		}
		fmt.Fprintf(&b, "## amqproxysvc %s\n", escape(c.Use))
		text := c.Short + "."
		if c.Long != "" && c.Name() != "completion" {
			text = c.Long
		}
		fmt.Fprintf(&b, "%s\n\n", escape(text))
		flagList(&b, c.LocalFlags(), root.LocalFlags())
	}
	b.WriteString("# ENVIRONMENT\n")
	for i := range config.Table {
		if d := &config.Table[i]; d.Env != "" {
			fmt.Fprintf(&b, "**%s**\n: %s\n\n", d.Env, escape("Setting "+d.Name()+"."))
		}
	}
	b.WriteString("**NOTIFY_SOCKET**, **WATCHDOG_USEC**, **LISTEN_FDS**, **JOURNAL_STREAM**\n: Set by systemd, see systemd.exec(5) and sd_notify(3).\n\n")
	b.WriteString("**GOMEMLIMIT**, **GOGC**\n: Memory limits of the Go runtime.\n\n")
	b.WriteString(`# SIGNALS
**SIGTERM**, **SIGINT**
: Stop: clients may finish for drain_timeout, then they are told to close. A second one, a second or more later, ends all at once.

**SIGHUP**
: Read the settings again. Clients stay connected. What is wrong is logged, and nothing is changed then.
When the terminal that it was started in is closed: stop, as for SIGTERM, unless started under nohup(1).

**SIGUSR1**
: Close and open the log file.

# EXIT STATUS
**0**
: Ended as asked.

**1**
: Failed at run time, as when a port is in use.

**3**, **4**
: status: the service does not run; it is not installed, or nothing is known of it.

**5**
: start, stop, restart, reload, uninstall: the service is not installed.

**64**
: Wrong command line.

**78**
: Wrong configuration.

# FILES
*/etc/amqproxysvc/amqproxysvc.toml*
: Settings of the installed service, see amqproxysvc.toml(5).

*/etc/default/amqproxysvc*
: Environment of the installed service; it comes before the settings file.

*/var/log/amqproxysvc/*
: The one directory that the service may write log files to. Without a file it logs to the journal.

*/run/amqproxysvc/status.json*
: What the running service tells of itself, for status.

*/usr/share/doc/amqproxysvc/manual.html*
: All documents in one page: operations, monitoring, troubleshooting, recipes.

# METRICS AND HEALTH
The HTTP port (127.0.0.1:15673, see http.address and http.port) serves:

**/metrics**
: For Prometheus, all named amqproxysvc\_..., and AMQProxy's amqproxy\_client\_connections and amqproxy\_upstream\_connections.

**/healthz**
: 200 while the process lives.

**/readyz**
: 200 when the broker can be reached, else 503 with the reason.

# EXAMPLES
In the foreground, for a broker behind TLS:

` + "```" + `
amqproxysvc -l 127.0.0.1 -p 5673 amqps://broker.example.com
` + "```" + `

As a service, from a bare binary:

` + "```" + `
amqproxysvc install --upstream amqps://broker.example.com --start
amqproxysvc status
` + "```" + `

Change the settings of a running service:

` + "```" + `
amqproxysvc check-config /etc/amqproxysvc/amqproxysvc.toml
amqproxysvc reload
` + "```" + `

# SEE ALSO
**amqproxysvc.toml**(5)
`)
	return md2man.Render([]byte(b.String()))
}

// settingsPage is amqproxysvc.toml(5) in roff.
func settingsPage() []byte {
	var b strings.Builder
	title(&b, "amqproxysvc.toml 5", "File Formats")
	b.WriteString("# NAME\namqproxysvc.toml - settings of amqproxysvc\n\n")
	b.WriteString(`# DESCRIPTION
The file is TOML. **amqproxysvc sample-config** prints one with every setting, **amqproxysvc check-config** *FILE* says
what is wrong with one. Values from the command line and the environment come before those of the file. Settings
marked *live* are applied by a reload, the others need a restart.

Times are written "500ms", "30s", "5m", "1h30m", "7d", or as a number of seconds; sizes "64KiB", "16MiB", "1GiB", or
as a number of bytes. A path that is not absolute starts at the directory of the file.

`)
	for _, sec := range config.Sections {
		name := "TOP OF THE FILE"
		switch sec.Name {
		case "":
		case "listener", "user", "limit", "broker", "route":
			name = `\[\[` + strings.ToUpper(sec.Name) + `\]\]`
		default:
			name = `\[` + strings.ToUpper(sec.Name) + `\]`
		}
		fmt.Fprintf(&b, "# %s\n%s\n\n", name, escape(sec.Help))
		for i := range config.Table {
			d := &config.Table[i]
			if d.Section != sec.Name {
				continue
			}
			facts := "Default: " + d.DefaultText() + ". Allowed: " + d.Allowed() + "."
			if flag := d.FlagText(); flag != "" {
				facts += " Command line: " + flag + "."
			}
			if d.Env != "" {
				facts += " Environment: " + d.Env + "."
			}
			if d.Live {
				facts += " Live."
			}
			fmt.Fprintf(&b, "**%s**\n: %s\n\n: %s\n\n", d.Key, escape(d.Help), escape(facts))
		}
	}
	b.WriteString(`# EXAMPLE
` + "```" + `
[[listener]]
address = "127.0.0.1"
port = 5673

[upstream]
url = "amqps://broker.example.com"
` + "```" + `

# FILES
*/etc/amqproxysvc/amqproxysvc.toml*
: The file of the installed service.

# SEE ALSO
**amqproxysvc**(8)
`)
	return md2man.Render([]byte(b.String()))
}

// title is the first line; no date, so that a build can be repeated byte for byte.
func title(b *strings.Builder, name, part string) {
	fmt.Fprintf(b, "%% %s \"\" \"amqproxysvc %s\" \"%s\"\n\n", name, programVersion(), part)
}

// flagList writes flags, but for those that are known from above with the same meaning.
func flagList(b *strings.Builder, flags, known *pflag.FlagSet) {
	left := 0
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || known != nil && f.Name == "help" {
			return
		}
		if known != nil {
			if above := known.Lookup(f.Name); above != nil && above.Usage == f.Usage {
				left++
				return
			}
		}
		unit, usage := pflag.UnquoteUsage(f)
		name := "**--" + f.Name + "**"
		if f.Shorthand != "" {
			name = "**-" + f.Shorthand + "**, " + name
		}
		if unit != "" {
			name += " *" + escape(unit) + "*"
		}
		if v := f.DefValue; v != "" && v != "false" && v != "0" && v != "[]" {
			usage += " (default " + shortTime(v) + ")"
		}
		fmt.Fprintf(b, "%s\n: %s\n\n", name, escape(strings.TrimSuffix(usage, ".")+"."))
	})
	if left > 0 {
		b.WriteString("The flags of OPTIONS that change settings are taken too.\n\n")
	}
}

// escape keeps Markdown from seeing marks in plain text.
func escape(text string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "_", `\_`, "[", `\[`, "]", `\]`, "<", `\<`, ">", `\>`, "`", "\\`").Replace(text)
}

// shortTime is Go's "1m0s" without what says nothing.
func shortTime(text string) string {
	if strings.HasSuffix(text, "m0s") {
		return strings.TrimSuffix(text, "0s")
	}
	return text
}

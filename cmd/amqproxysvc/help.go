// The help fits the window: cobra's own lines are as long as their texts.

package main

import (
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/amqproxysvc/amqproxysvc/service/terminal"
)

// helpWidth is used where the output is no terminal.
const helpWidth = 78

// manualAt is where the documents are.
const manualAt = "https://github.com/amqproxysvc/amqproxysvc"

// fitHelp breaks the texts of a command, its flags and its commands at the window's edge.
func fitHelp(root *cobra.Command) {
	width := func() int {
		if columns := terminal.Columns(os.Stdout); columns > 0 {
			return min(columns-1, 100)
		}
		return helpWidth
	}
	cobra.AddTemplateFunc("fitFlags", func(fs *pflag.FlagSet) string { return fitFlags(fs, width()) })
	cobra.AddTemplateFunc("fitText", func(text string) string { return fitText(text, width()) })
	cobra.AddTemplateFunc("fitShort", func(padding int, text string) string {
		indent := strings.Repeat(" ", padding+3)
		return strings.TrimSpace(terminal.Wrap(text, max(width(), padding+23), indent))
	})
	usage := strings.NewReplacer(
		".LocalFlags.FlagUsages", "fitFlags .LocalFlags",
		".InheritedFlags.FlagUsages", "fitFlags .InheritedFlags",
		`Use "{{.CommandPath}} [command] --help" for more information about a command.`, `More: {{.CommandPath}} COMMAND --help`,
		"{{rpad .Name .NamePadding }} {{.Short}}", "{{rpad .Name .NamePadding }} {{fitShort .NamePadding .Short}}",
	).Replace(root.UsageTemplate())
	root.SetUsageTemplate(usage)
	root.SetHelpTemplate(`{{with (or .Long .Short)}}{{fitText .}}

{{end}}{{if or .Runnable .HasSubCommands}}{{.UsageString}}{{end}}{{if not .HasParent}}
Documents: ` + manualAt + `
{{end}}`)
}

// fitFlags explains flags, in a narrow window each below its name: pflag breaks no line then.
func fitFlags(fs *pflag.FlagSet, width int) string {
	if width >= 70 {
		return fs.FlagUsagesWrapped(width)
	}
	var b strings.Builder
	for line := range strings.Lines(fs.FlagUsages()) {
		flag, text, _ := strings.Cut(strings.TrimSpace(line), "   ")
		b.WriteString("  " + flag + "\n" + terminal.Wrap(text, width, "      "))
	}
	return b.String()
}

// fitText breaks a text's paragraphs anew; lines that are indented stay as they are.
func fitText(text string, width int) string {
	var b strings.Builder
	var words []string
	flush := func() {
		if words != nil {
			b.WriteString(terminal.Wrap(strings.Join(words, " "), width, ""))
		}
		words = nil
	}
	for line := range strings.Lines(strings.TrimSpace(text)) {
		switch line = strings.TrimRight(line, " \n"); {
		case line == "" || line[0] == ' ':
			flush()
			b.WriteString(line + "\n")
		default:
			words = append(words, line)
		}
	}
	flush()
	return strings.TrimRight(b.String(), "\n")
}

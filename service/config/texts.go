// Texts made from the table: the sample settings file and the settings page. Tests hold
// the files of the repository equal to them.

package config

import (
	"fmt"
	"strings"

	"github.com/amqproxysvc/amqproxysvc/service/terminal"
)

// Sample is a settings file with every setting, commented out at its default. Those named
// in set (full name to text) stand in it as values; an error says what is wrong with one.
func Sample(set map[string]string) (string, error) {
	s := Defaults()
	l := &s.Listeners[0]
	for name, text := range set {
		d := Find(name)
		if d == nil || d.FileOnly() {
			return "", fmt.Errorf("unknown setting %q", name)
		}
		if _, err := d.setText(&s, l, text); err != nil {
			return "", err
		}
	}
	inForce := map[string]bool{}
	for name := range set {
		inForce[Find(name).Name()] = true
	}

	var b strings.Builder
	b.WriteString(`# Settings of amqproxysvc. Every setting is here, commented out at its default:
# remove the "# " in front of one to change it. Then
#     amqproxysvc check-config FILE      says what is wrong with the file, if anything
#     amqproxysvc reload                 applies what is marked (live); the rest needs a restart
# Times: "500ms", "30s", "5m", "1h30m", "7d", or a number of seconds.
# Sizes: "64KiB", "16MiB", "1GiB", or a number of bytes.
`)
	for _, sec := range Sections {
		fmt.Fprintf(&b, "\n\n%s\n%s", "# "+strings.Repeat("-", 20)+" "+sec.Title, comment(sec.Help))
		switch {
		case sec.Name == "":
		case isOptional(sec.Name): // of which there is none until somebody takes the sign away
			b.WriteString("\n# " + header(sec.Name) + "\n")
		default:
			b.WriteString("\n" + header(sec.Name) + "\n")
		}
		for i := range Table {
			d := &Table[i]
			if d.Section != sec.Name {
				continue
			}
			b.WriteString("\n" + comment(d.Help+" "+d.note()))
			prefix := "# "
			if inForce[d.Name()] {
				prefix = ""
			}
			fmt.Fprintf(&b, "%s%s = %s\n", prefix, d.Key, d.TOML(&s, l))
		}
	}
	return b.String(), nil
}

// first are the settings of the short sample: what most people change.
var first = []string{"upstream.url", "listener.address", "listener.port", "pool.max_upstreams", "client.max_clients", "http.port", "log.level"}

// ShortSample is a settings file with those that most people change, at their defaults.
func ShortSample() string {
	var b strings.Builder
	b.WriteString(`# The settings of amqproxysvc that most people change, at their defaults. All of them:
# amqproxysvc sample-config. What is wrong with a file: amqproxysvc check-config FILE.
`)
	section := ""
	for _, name := range first {
		d := Find(name)
		if d.Section != section {
			section = d.Section
			b.WriteString("\n" + header(section) + "\n")
		}
		sentence, _, _ := strings.Cut(d.Help, ". ")
		if d.Min == 0 && strings.Contains(d.Help, "0: no bound") {
			sentence += ". 0: no bound"
		}
		fmt.Fprintf(&b, "%s%s = %s\n", comment(strings.TrimSuffix(sentence, ".")+"."), d.Key, d.DefaultText())
	}
	return b.String()
}

// note is the bounds and whether a reload is enough.
func (d *Setting) note() string {
	live := "(restart)"
	if d.Live {
		live = "(live)"
	}
	switch d.Kind {
	case KindBool, KindHost, KindPath, KindPaths, KindSecret, KindNames, KindNetworks, KindText, KindURL:
		return live
	}
	return "Allowed: " + d.Allowed() + ". " + live
}

// comment wraps a text into comment lines.
func comment(text string) string {
	return terminal.Wrap(text, 96, "# ")
}

// DefaultText is the default as it stands in the settings file.
func (d *Setting) DefaultText() string {
	s := Defaults()
	return d.TOML(&s, &s.Listeners[0])
}

// Page is the settings page in Markdown: one heading per setting.
func Page() string {
	var b strings.Builder
	b.WriteString(`# Settings

<!-- Made from service/config/table.go by "go test ./service/config -update"; edit that. -->

Each setting has one name, here and in the settings file (TOML). A value is looked for on the command line
first, then in the environment, then in the file; what is set nowhere has its default. Every setting can be
given on the command line as ` + "`--set NAME=VALUE`" + `. Times are written ` + "`\"30s\"`, `\"5m\"`, `\"1h30m\"`, `\"7d\"`" + ` or as a number of
seconds, sizes ` + "`\"64KiB\"`, `\"16MiB\"`" + ` or as a number of bytes. *Live* settings are applied by a reload, to what
comes after; the others need a restart.

Contents: [all at a glance](#all-at-a-glance) · [sizes](#sizes)`)
	for _, sec := range Sections {
		fmt.Fprintf(&b, " · [%s](#%s)", strings.ToLower(sec.Title), anchor(sec))
	}
	b.WriteString("\n\n## All at a glance\n\n| setting | default | live |\n|---|---|---|\n")
	for i := range Table {
		d := &Table[i]
		live := "yes"
		if !d.Live {
			live = "restart"
		}
		fmt.Fprintf(&b, "| [%s](#%s) | `%s` | %s |\n", d.Name(), strings.ReplaceAll(strings.ToLower(d.Name()), ".", ""), d.DefaultText(), live)
	}
	b.WriteString(sizes)
	for _, sec := range Sections {
		title := "Top of the file"
		if sec.Name != "" {
			title = header(sec.Name)
		}
		fmt.Fprintf(&b, "\n## %s: %s\n\n%s\n", title, sec.Title, sec.Help)
		for i := range Table {
			d := &Table[i]
			if d.Section != sec.Name {
				continue
			}
			fmt.Fprintf(&b, "\n### %s\n\n%s\n\n", d.Name(), d.Help)
			fmt.Fprintf(&b, "- Default: `%s`\n- Allowed: %s\n", d.DefaultText(), d.Allowed())
			if flag := d.FlagText(); flag != "" {
				fmt.Fprintf(&b, "- Command line: `%s`\n", flag)
			}
			if d.Env != "" {
				fmt.Fprintf(&b, "- Environment: `%s`\n", d.Env)
			}
			if d.Live {
				b.WriteString("- Live: yes\n")
			} else {
				b.WriteString("- Live: no, needs a restart\n")
			}
		}
	}
	return b.String()
}

// sizes is what the numbers mean together.
const sizes = `
## Sizes

The defaults suit a proxy beside one application. What to think about when it serves more:

| you have | look at |
|---|---|
| little memory | the sum that is told with the settings of ` + "`[client]`" + `: lower ` + "`client_queues` and `message_buffer`" + ` first, ` + "`max_message_size`" + ` with them, then bound ` + "`max_clients` and `max_upstreams`" + `; idle it takes some 14 MB and 6 kB for each client |
| a broker that limits connections | ` + "`max_upstreams`" + ` somewhat below its limit: clients wait ` + "`wait_timeout`" + ` for a place instead of being refused |
| many users or vhosts | each has connections of its own, one for publishers and one for readers at least: ` + "`max_upstreams_per_identity`, `idle_timeout`" + ` |
| many channels at a time | channels divided by ` + "`max_channels`" + ` is how many connections they need; more channels on one mean more clients that a lost connection takes along |
| consumers | each without a prefetch, or with one above ` + "`shared_prefetch_limit`" + `, has a connection of its own |
| many clients | descriptors: one for each client and for each connection to the broker, see LimitNOFILE; ` + "`max_clients`" + ` |
| tenants that must not starve one another | ` + "[`[[limit]]`](../OPERATIONS.md#limits)" + `: clients, connections to the broker, logins and bytes a second of each user, vhost, address or listener |
| others than the application on the network | ` + "`max_clients`, `max_upstreams_per_identity`" + `, and [what exposing a listener needs](../../SECURITY.md#exposing-a-listener) |

A plain listener for this machine and one with TLS for others:

` + "```toml" + `
[[listener]]
port = 5673

[[listener]]
address = "0.0.0.0"
port = 5671
tls = true
cert_file = "/etc/amqproxysvc/tls/proxy.pem"
key_file = "/etc/amqproxysvc/tls/proxy.key"
` + "```" + `

Two listeners, one of them for consumers with a connection each:

` + "```toml" + `
[[listener]]
port = 5673

[[listener]]
port = 5674
pool_mode = "session"
` + "```" + `
`

// anchor is under what a section's heading is linked.
func anchor(sec Section) string {
	title := "top-of-the-file"
	if sec.Name != "" {
		title = sec.Name
	}
	return title + "-" + strings.ReplaceAll(strings.ToLower(sec.Title), " ", "-")
}

// FlagText is the setting's flag as one writes it, "" when it has none.
func (d *Setting) FlagText() string {
	switch {
	case d.Kind == KindURL && d.Env != "":
		return "amqproxysvc AMQP_URL"
	case d.Flag == "":
		return ""
	case d.Short != "":
		return "-" + d.Short + ", --" + d.Flag
	}
	return "--" + d.Flag
}

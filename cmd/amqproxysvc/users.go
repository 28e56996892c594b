// Commands for users whose credentials the proxy keeps: a hash of a password, the users of a
// RabbitMQ, whether a login would be let in, a secret encrypted for this machine. Passwords come on standard input or from a terminal,
// never from the command line, which everybody on the machine can see.

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/broker"
	"github.com/amqproxysvc/amqproxysvc/proxy/hash"
	"github.com/amqproxysvc/amqproxysvc/service/config"
)

func userCommands() []*cobra.Command {
	return []*cobra.Command{hashPasswordCommand(), importUsersCommand(), checkLoginCommand(), protectCommand()}
}

func hashPasswordCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "hash-password",
		Short: "Print the hash of a password, for a [[user]]",
		Long: `Reads a password from the terminal, twice and unseen, or from the first line of standard input, and
prints its hash (argon2id, with a salt of its own) for password_hash of a [[user]].`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			password, err := readPassword(cmd, true)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), hash.New(password))
			return err
		},
	}
}

func protectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "protect FILE",
		Short: "Encrypt a secret for this machine, in a file that settings name (Windows)",
		Long: `Reads a secret from the terminal, twice and unseen, or from standard input (an AccessKey has two lines there),
and writes it into FILE, encrypted by Windows' DPAPI with a key of this machine. Settings that name a file with
a secret, as broker_password_file of a [[user]], read it as if it were plain. Whoever may read the file on this
machine can decrypt it, so its access list counts still; elsewhere, as in a backup, it is of no use.
Elsewhere than on Windows it does nothing: there systemd keeps secrets encrypted (systemd-creds encrypt).`,
		Args: exactArgs(1, "the FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := config.CanProtect(); err != nil {
				return err
			}
			secret, err := readSecret(cmd)
			if err != nil {
				return err
			}
			if err := config.Protect(args[0], secret); err != nil {
				return err
			}
			say(cmd.OutOrStdout(), "%s: written, for this machine alone", args[0])
			return nil
		},
	}
}

// readSecret reads a password from the terminal, else all of standard input.
func readSecret(cmd *cobra.Command) ([]byte, error) {
	if in, ok := cmd.InOrStdin().(*os.File); ok && term.IsTerminal(int(in.Fd())) {
		text, err := readPassword(cmd, true)
		return []byte(text), err
	}
	secret, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), config.MostProtected+1))
	if err != nil {
		return nil, fmt.Errorf("the secret cannot be read: %w", err)
	}
	return secret, nil
}

func importUsersCommand() *cobra.Command {
	return importCommand("import-users FILE", "json", config.ImportUsers, "Print the users of a RabbitMQ's definitions as [[user]]",
		`Reads definitions that RabbitMQ has exported (rabbitmqctl export_definitions FILE) and prints a [[user]]
for each user of them that has a password, with its hash and the vhosts that it has permissions for. The
file for the password that the broker is sent is yours to make. Users that cannot be taken are named on
standard error.`)
}

func checkLoginCommand() *cobra.Command {
	flags := &settingFlags{}
	var vhost string
	ask := false
	cmd := &cobra.Command{
		Use:   "check-login USER [flags]",
		Short: "Say whether a user and password would be let in",
		Long: `Reads a password from the terminal or from the first line of standard input and holds it against the [[user]] of that
name, as the proxy with these settings would. With --broker the broker is asked too, with what it
would be sent. Give it the settings file, environment or flags that the proxy is started with. Nothing is
changed, and no running proxy is asked. Exit code 0 when the login is let in, 1 when not.`,
		Args: exactArgs(1, "the USER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			src, err := flags.source(nil, nil)
			if err != nil {
				return err
			}
			settings, _, err := config.Load(src)
			if err != nil {
				return err
			}
			cfg, err := settings.ProxyConfig(programVersion(), nil)
			if err != nil {
				return err
			}
			password, err := readPassword(cmd, false)
			if err != nil {
				return err
			}
			var named *string
			if cmd.Flags().Changed("vhost") {
				named = &vhost
			}
			return tellLogin(cmd.Context(), cmd.OutOrStdout(), cfg, args[0], password, named, ask)
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&ask, "broker", false, "Ask the broker, too")
	cmd.Flags().StringVar(&vhost, "vhost", "/", "The `VHOST` that is to be opened; without it none is")
	return cmd
}

func tellLogin(ctx context.Context, stdout io.Writer, cfg proxy.Config, user, password string, vhost *string, ask bool) error {
	cfg.Logger = slog.New(slog.DiscardHandler)
	kept, by, err := proxy.CheckLogin(ctx, cfg, user, broker.NewSecret(password), vhost, ask)
	switch {
	case err != nil:
		return fmt.Errorf("user %q is not let in: %w", user, err)
	case kept && ask:
		say(stdout, "user %q is let in: the password is right, and the broker at %s accepts what it is sent", user, by)
	case kept:
		say(stdout, "user %q is let in: the password is right; the broker was not asked (--broker)", user)
	case ask:
		say(stdout, "user %q is let in: there is no [[user]] of that name, and the broker at %s accepts the password", user, by)
	default:
		say(stdout, "user %q has no [[user]]: the broker decides, and was not asked (--broker)", user)
	}
	return nil
}

// readPassword reads from the terminal, else the first line of standard input. twice: it is a new one.
func readPassword(cmd *cobra.Command, twice bool) (string, error) {
	in, isFile := cmd.InOrStdin().(*os.File)
	if !isFile || !term.IsTerminal(int(in.Fd())) {
		const most = 4096
		line, err := bufio.NewReaderSize(io.LimitReader(cmd.InOrStdin(), most+1), most+1).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("the password cannot be read: %w", err)
		}
		line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
		line = string(config.WithoutMark([]byte(line))) // PowerShell's pipes may begin with one
		return line, passwordIs(line, len(line) > most-1)
	}
	ask := func(prompt string) (string, error) {
		_, _ = fmt.Fprint(cmd.ErrOrStderr(), prompt)
		typed, err := term.ReadPassword(int(in.Fd()))
		_, _ = fmt.Fprintln(cmd.ErrOrStderr())
		return string(typed), err
	}
	first, err := ask("Password: ")
	if err != nil {
		return "", err
	}
	if twice {
		again, err := ask("Again: ")
		if err != nil {
			return "", err
		}
		if again != first {
			return "", errors.New("these are two different passwords")
		}
	}
	return first, passwordIs(first, false)
}

func passwordIs(text string, long bool) error {
	switch {
	case text == "":
		return errors.New("the password is empty: it is the first line of standard input")
	case long:
		return errors.New("the password is longer than 4,000 octets")
	case strings.ContainsRune(text, 0):
		return errors.New("the password has a NUL, which no client can send")
	}
	return nil
}

// The healthcheck command: for images that hold nothing else, and scripts.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/amqproxysvc/amqproxysvc/service/config"
)

// healthTimeout is within the second that probes wait by default, twice.
const healthTimeout = 2 * time.Second

func healthcheckCommand() *cobra.Command {
	flags := &settingFlags{}
	ready := false
	cmd := &cobra.Command{
		Use:   "healthcheck [flags]",
		Short: "Ask a running proxy whether it is well, over its HTTP port",
		Long: `Asks /healthz of the proxy that runs on this machine, or with --ready /readyz, which also asks
the broker. Give it the settings file, environment or flags that the proxy was started with: http.address and
http.port are taken from them. Exit code 0 when all is well, 1 when not.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			src, err := flags.source(nil, nil)
			if err != nil {
				return err
			}
			settings, _, err := config.Load(src)
			if err != nil {
				return err
			}
			path := "/healthz"
			if ready {
				path = "/readyz"
			}
			said, err := askHealth(cmd.Context(), settings.HTTP, path)
			if err != nil {
				return err
			}
			say(cmd.OutOrStdout(), "%s", said)
			return nil
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&ready, "ready", false, "Ask whether the broker can be reached, too")
	return cmd
}

// askHealth gives what the running proxy says of itself.
func askHealth(ctx context.Context, at config.HTTP, path string) (string, error) {
	if at.HostPort() == "" {
		return "", errors.New("http.port is 0: there is nobody to ask")
	}
	host, port, err := net.SplitHostPort(at.HostPort())
	if err != nil {
		return "", err
	}
	// Every address is one of this machine's. Not by the name localhost: an image of nothing
	// but this program may know no names.
	switch ip := net.ParseIP(host); {
	case ip == nil || !ip.IsUnspecified():
	case ip.To4() != nil:
		host = "127.0.0.1"
	default:
		host = "::1"
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+path, nil)
	if err != nil {
		return "", err
	}
	// Not by way of a proxy that the environment names for the world outside.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		return "", fmt.Errorf("not well: %w", err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 4096))
	said := strings.TrimSpace(string(body))
	switch {
	case err != nil:
		return "", fmt.Errorf("not well: %w", err)
	case res.StatusCode != http.StatusOK:
		return "", fmt.Errorf("not well: %s", said)
	}
	return said, nil
}

// The trace command: a client's frames as they pass, in words, as JSON, or into a file for Wireshark.

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/amqproxysvc/amqproxysvc/proxy/admin"
	"github.com/amqproxysvc/amqproxysvc/service"
	"github.com/amqproxysvc/amqproxysvc/service/terminal"
)

// tracer is what the command was asked for.
type tracer struct {
	asker
	asJSON bool
	bodies uint32
	frames uint64
	last   time.Duration
	pcap   string
}

func traceCommand() *cobra.Command {
	t, q := &tracer{}, url.Values{}
	cmd := &cobra.Command{
		Use:   "trace ID",
		Short: "Show what a client and the proxy send each other, frame by frame",
		Long: `Shows the frames of the client of that ID (see clients) as they pass, or with --user and --address those of
the next client that logs in so: > is what it sends, < what it gets. A channel that is at the broker has its connection
to the broker and its number there behind a slash. Passwords and tokens are never shown, bodies of messages only with
--bodies. Ends with the client, with --frames or --for, or when it is interrupted. What cannot be shown in time is left
out and counted; the client waits for nothing.

With --pcap the frames go into a file that Wireshark and tshark read. The client's and the proxy's addresses are in it,
the port is 5672 whatever it is, since they know AMQP by that; in place of what is not shown there are stars for
secrets, and zeros for bodies.`,
		Example: `  amqproxysvc trace 17
  amqproxysvc trace --user shop --for 1m --bodies 200
  amqproxysvc trace 17 --pcap shop.pcap`,
		Args: maximumArgs(1, "the client's ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == (q.Has("user") || q.Has("address")) {
				return usageErrorOf(cmd, errors.New("needed is a client's ID, or --user or --address for the next client"))
			}
			if t.asJSON && t.pcap != "" {
				return usageErrorOf(cmd, errors.New("--json and --pcap exclude each other"))
			}
			if len(args) == 1 {
				q.Set("client", args[0])
			}
			if t.bodies > 0 {
				q.Set("bodies", strconv.FormatUint(uint64(t.bodies), 10))
			}
			return t.run(cmd, q)
		},
	}
	t.flags(cmd)
	filters(cmd, q, map[string]string{"user": "The next client that logs in as this `USER`", "address": "The next client that logs in from this `ADDRESS`"})
	f := cmd.Flags()
	f.Uint32Var(&t.bodies, "bodies", 0, "Show up to so many `OCTETS` of each body frame")
	f.Uint64Var(&t.frames, "frames", 0, "End after so many, a `NUMBER`")
	f.Var((*timeoutValue)(&t.last), "for", "End after this `TIME`")
	f.Lookup("for").DefValue = ""
	f.BoolVar(&t.asJSON, "json", false, "Tell it as JSON, a line each, the same fields in every version of its schema")
	f.StringVar(&t.pcap, "pcap", "", "Write the frames into `FILE`, for Wireshark")
	_ = cmd.MarkFlagFilename("pcap", "pcap")
	return cmd
}

func (t *tracer) run(cmd *cobra.Command, q url.Values) error {
	ctx := cmd.Context()
	if t.last > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, t.last)
		defer cancel()
	}
	var file io.WriteCloser
	if t.pcap != "" {
		f, err := os.OpenFile(t.pcap, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) // others' messages may be in it
		if err != nil {
			return fmt.Errorf("--pcap: %w", err)
		}
		defer f.Close()
		file = f
		q.Set("raw", "true")
	}
	if q.Has("user") || q.Has("address") {
		say(cmd.ErrOrStderr(), "waiting for the next client")
	}
	res, _, err := t.request(ctx, http.MethodGet, "trace", q)
	if err != nil {
		return unlessOver(ctx, err)
	}
	defer res.Body.Close()
	shown, err := t.show(res.Body, cmd.OutOrStdout(), file)
	if file != nil {
		if cerr := file.Close(); err == nil {
			err = cerr
		}
		say(cmd.ErrOrStderr(), "%s in %s", service.Plural(shown, "frame"), t.pcap)
	}
	return unlessOver(ctx, err)
}

// unlessOver is nil for what comes of an interrupt or of --for.
func unlessOver(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// show tells each line until the last, and counts the frames.
func (t *tracer) show(lines io.Reader, out io.Writer, file io.Writer) (frames int, err error) {
	in := bufio.NewReaderSize(lines, 64<<10)
	var start admin.TraceStart
	var pcap *pcapWriter
	for first := true; ; first = false {
		line, err := in.ReadBytes('\n')
		switch {
		case errors.Is(err, io.EOF) && len(line) == 0:
			return frames, nil
		case err != nil:
			return frames, fmt.Errorf("the trace broke off: %w", err)
		}
		var l admin.TraceLine
		if first {
			err = json.Unmarshal(line, &start)
		} else {
			err = json.Unmarshal(line, &l)
		}
		if err != nil {
			return frames, fmt.Errorf("the answer cannot be read: %w", err)
		}
		switch {
		case first && file != nil:
			pcap = newPcap(bufio.NewWriterSize(file, 64<<10), start.Client.Address, start.Proxy)
			err = pcap.begin()
		case t.asJSON:
			_, err = out.Write(jsonFor(runtime.GOOS, line))
		case first:
			c := &start.Client
			say(out, "client %d, user %s, vhost %s, from %s%s", c.ID, terminal.Printable(c.User), terminal.Printable(c.VHost), c.Address, named(c.Name))
		case l.Kind == "lost" || l.Kind == "end":
			_, err = fmt.Fprintln(out, l.Text)
		case file == nil:
			_, err = fmt.Fprintln(out, traceText(&l))
		}
		if pcap != nil && !first && l.Type != 0 {
			err = pcap.frame(&l)
		}
		if err != nil {
			return frames, err
		}
		if pcap != nil && in.Buffered() == 0 { // what has come is there for who looks at the file now
			if err := pcap.w.Flush(); err != nil {
				return frames, err
			}
		}
		if l.From != "" {
			if frames++; t.frames > 0 && uint64(frames) >= t.frames {
				return frames, pcap.flush()
			}
		}
	}
}

func named(name string) string {
	if name == "" {
		return ""
	}
	return ", " + terminal.Printable(name)
}

// traceText is one line of the trace in words.
func traceText(l *admin.TraceLine) string {
	way := map[string]string{"client": ">", "proxy": "<", "": "-"}[l.From]
	where := strconv.Itoa(int(l.Channel))
	if l.Upstream != 0 {
		where += fmt.Sprintf("/%d.%d", l.Upstream, l.UpstreamChannel)
	}
	at := time.UnixMicro(int64(l.Time * 1e6)).Format("15:04:05.000000")
	return fmt.Sprintf("%s %s %-8s %s", at, way, where, l.Text)
}

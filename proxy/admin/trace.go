// The verb trace: a client's frames as JSON, a line each, until it or the asker goes.

package admin

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/decode"
)

// Tracer is a trace under way, see proxy.Trace.
type Tracer interface {
	Client() proxy.ClientInfo
	ProxyAddress() string
	Next(ctx context.Context) (frames []proxy.TracedFrame, lost uint64, err error)
	Close()
}

// TraceStart is the first line of the answer to `trace`.
type TraceStart struct {
	Schema int    `json:"schema"`
	Client Client `json:"client"`
	Proxy  string `json:"proxy_address"` // the other end of its connection
}

// TraceLine is each line after it.
type TraceLine struct {
	Time float64 `json:"time"` // seconds since 1970
	// Kind is method, header, body, heartbeat or frame (what is none of these); or bound (the channel is at
	// the broker now as told), lost (Lost frames were, as nobody read in time) or end.
	Kind            string `json:"kind"`
	From            string `json:"from,omitempty"` // client, proxy
	Channel         uint16 `json:"channel"`
	Upstream        uint64 `json:"upstream,omitempty"`         // the connection to the broker that carries the channel,
	UpstreamChannel uint16 `json:"upstream_channel,omitempty"` // and its number there
	Size            int    `json:"size_bytes"`                 // of the frame's payload
	Method          string `json:"method,omitempty"`
	Arguments       any    `json:"arguments,omitempty"`       // an object, in the order of the method
	BodySize        uint64 `json:"body_size_bytes,omitempty"` // as a header announces it
	Properties      any    `json:"properties,omitempty"`
	Body            string `json:"body,omitempty"` // what was asked for of it; 0x and hexadecimal digits, where it is no text
	Lost            uint64 `json:"lost,omitempty"`
	Text            string `json:"text"` // all of this in words
	// With raw: the frame's type, and its payload, of a body what was asked for; secrets are stars.
	Type    byte   `json:"type,omitempty"`
	Payload []byte `json:"payload,omitempty"`
}

// tracePause lies between two looks: it bounds what a busy client's trace costs.
const tracePause = 50 * time.Millisecond

func (v *verbs) trace(w http.ResponseWriter, req *http.Request, q url.Values) error {
	want, raw, err := traceWanted(q)
	if err != nil {
		return err
	}
	control := http.NewResponseController(w)
	// The server's bounds are for answers that end; at a read's deadline the request would be taken for
	// given up. Where they cannot be lifted they hold.
	_ = control.SetReadDeadline(time.Time{})
	t, err := v.engine.Trace(req.Context(), want)
	if err != nil {
		return err
	}
	defer t.Close()
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	writes := func() { _ = control.SetWriteDeadline(time.Now().Add(10 * time.Second)) } // who reads nothing is left
	writes()
	traced := t.Client()
	if enc.Encode(TraceStart{Schema, clientOf(&traced), t.ProxyAddress()}) != nil {
		return nil // who hung up is gone
	}
	for control.Flush() == nil {
		frames, lost, err := t.Next(req.Context())
		writes()
		for i := range frames {
			if enc.Encode(lineOf(&frames[i], raw)) != nil {
				return nil
			}
		}
		if lost > 0 {
			_ = enc.Encode(TraceLine{Time: stamp(time.Now()), Kind: "lost", Lost: lost, Text: fmt.Sprintf("%d frames were lost: they were not read in time", lost)})
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				_ = enc.Encode(TraceLine{Time: stamp(time.Now()), Kind: "end", Text: "the client has gone"})
			}
			return nil
		}
		select {
		case <-time.After(tracePause):
		case <-req.Context().Done():
			return nil
		}
	}
	return nil
}

func traceWanted(q url.Values) (want proxy.TraceWanted, raw bool, err error) {
	if want.Client, err = number(q, "client"); err != nil {
		return want, false, err
	}
	want.User, want.Address = q.Get("user"), q.Get("address")
	if (want.Client == 0) == (want.User == "" && want.Address == "") {
		return want, false, errors.New("trace takes a client's ID; or a user, an address, or both, and waits for the next such client")
	}
	bodies, err := number(q, "bodies")
	if err != nil {
		return want, false, err
	}
	want.Bodies = int(min(bodies, 1<<20))
	if q.Has("raw") {
		if raw, err = strconv.ParseBool(q.Get("raw")); err != nil {
			return want, false, fmt.Errorf("raw is %.40q, allowed is true or false", q.Get("raw"))
		}
	}
	return want, raw, nil
}

func stamp(t time.Time) float64 { return float64(t.UnixMicro()) / 1e6 }

// lineOf tells of one frame.
func lineOf(f *proxy.TracedFrame, raw bool) TraceLine {
	l := TraceLine{
		Time: stamp(f.At), From: "proxy", Channel: f.Channel, Upstream: f.Seat.Upstream, UpstreamChannel: f.Seat.Channel, Size: f.Size,
	}
	if f.FromClient {
		l.From = "client"
	}
	if raw {
		l.Type, l.Payload = f.Type, f.Payload
	}
	switch f.Type {
	case 0:
		l.Kind, l.From = "bound", ""
		l.Text = fmt.Sprintf("goes over upstream %d from here on, as its channel %d", f.Seat.Upstream, f.Seat.Channel)
	case amqp.FrameMethod:
		l.Kind = "method"
		name, args, ok := decode.Method(f.Payload)
		l.Method = name
		switch {
		case !ok:
			l.Text = cmp.Or(name, "method") + " with arguments that cannot be read"
		case len(args) > 0:
			l.Arguments, l.Text = args, name+" "+args.String()
		default:
			l.Text = name
		}
	case amqp.FrameHeader:
		l.Kind = "header"
		size, props, ok := decode.Header(f.Payload)
		l.BodySize, l.Text = size, fmt.Sprintf("header body-size=%d", size)
		switch {
		case !ok:
			l.Text = "header that cannot be read"
		case len(props) > 0:
			l.Properties = props
			l.Text += " " + props.String()
		}
	case amqp.FrameBody:
		l.Kind = "body"
		l.Text = fmt.Sprintf("body of %d octets", f.Size)
		if len(f.Payload) > 0 {
			l.Body = bodyText(f.Payload, f.Size)
			l.Text += " " + strconv.Quote(l.Body)
		}
	case amqp.FrameHeartbeat:
		l.Kind, l.Text = "heartbeat", "heartbeat"
	default:
		l.Kind, l.Text = "frame", fmt.Sprintf("frame of the unknown type %d", f.Type)
	}
	return l
}

// bodyText is a body, or as much of it as there is, in characters where it is UTF-8: what is cut may end within one.
func bodyText(p []byte, size int) string {
	for cut := 0; cut < utf8.UTFMax && cut < len(p); cut++ {
		if utf8.Valid(p[:len(p)-cut]) {
			return string(p[:len(p)-cut])
		}
		if len(p) == size {
			break
		}
	}
	return "0x" + hex.EncodeToString(p)
}

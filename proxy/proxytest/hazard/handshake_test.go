//go:build linux

// The hazards of the handshake (behaviour: the broker's verdict comes where the broker
// would give it): octets before a login, straight and through the proxy.

package hazard

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy"
	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// greeting is a handshake: each piece is sent when the answer to the one before is there.
type greeting struct {
	name   string
	pieces [][]byte
	want   string // the answers through the proxy, as far as they matter
	bare   string // the broker's own where it says less; "any": it may know other protocols
	newest string // that of 4.3, where it differs from the others'
}

// startOk announces the capability that makes refusals speak, or none.
func startOk(mechanism, response string, speaks bool, more ...[]byte) []byte {
	var caps []byte
	if speaks {
		caps = amqp.AppendTableField(nil, "capabilities", amqp.AppendBoolField(nil, "authentication_failure_close", true))
	}
	return amqp.AppendStartOk(nil, cat(caps, cat(more...)), mechanism, []byte(response), "en_US")
}

func tuneOk(channelMax uint16, frameMax uint32, heartbeat uint16) []byte {
	return amqp.AppendTune(nil, amqp.ConnectionTuneOk, amqp.Tune{ChannelMax: channelMax, FrameMax: frameMax, Heartbeat: heartbeat})
}

const (
	badHeader = "header 0 0 9 1; cut"
	login     = "\x00guest\x00guest"
	refused   = `connection.close(ch 0) 403 by 0.0 "ACCESS_REFUSED`
	toStart   = "connection.start(ch 0); "
	toTune    = toStart + "connection.tune(ch 0); "
	toOpen    = toTune + "connection.open_ok(ch 0)"
)

func greetings() []greeting {
	head := amqp.ProtocolHeader[:]
	good := startOk("PLAIN", login, true)
	p := func(pieces ...[]byte) [][]byte { return pieces }
	amqplain := cat(amqp.AppendStringField(nil, "LOGIN", "guest"), amqp.AppendStringField(nil, "PASSWORD", "guest"))
	wrong := cat(amqp.AppendStringField(nil, "LOGIN", "guest"), amqp.AppendStringField(nil, "PASSWORD", "no"))
	return []greeting{
		{name: "AMQP 0-9-2", pieces: p([]byte("AMQP\x00\x00\x09\x02")), want: badHeader, bare: "any"},
		{name: "AMQP 0-8", pieces: p([]byte("AMQP\x01\x01\x08\x00")), want: badHeader, bare: "any"},
		{name: "an HTTP request", pieces: p([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")), want: badHeader, bare: "any"},
		{name: "a TLS hello", pieces: p([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("r", 100))), want: badHeader, bare: "any"},
		{name: "PLAIN", pieces: p(head, good, cat(tuneOk(2047, 131072, 60), amqp.AppendOpen(nil, "/"))), want: toOpen},
		{name: "AMQPLAIN", pieces: p(head, startOk("AMQPLAIN", string(amqplain), true), cat(tuneOk(2047, 131072, 60), amqp.AppendOpen(nil, "/"))), want: toOpen},
		{name: "an unlimited tune-ok", pieces: p(head, good, cat(tuneOk(2047, 131072, 0), amqp.AppendOpen(nil, "/"))), want: toOpen},
		{name: "wrong password", pieces: p(head, startOk("PLAIN", "\x00guest\x00no", true)), want: toStart + refused},
		{name: "wrong password, AMQPLAIN", pieces: p(head, startOk("AMQPLAIN", string(wrong), true)), want: toStart + refused},
		{name: "wrong password, mute", pieces: p(head, startOk("PLAIN", "\x00guest\x00no", false)), want: toStart + "cut"},
		{name: "unknown user", pieces: p(head, startOk("PLAIN", "\x00nobody\x00no", true)), want: toStart + refused},
		{name: "empty PLAIN response", pieces: p(head, startOk("PLAIN", "", true)), want: toStart + refused, bare: toStart + "cut"},
		{name: "PLAIN response without NUL", pieces: p(head, startOk("PLAIN", "guest", true)), want: toStart + refused, bare: toStart + "cut"},
		{name: "AMQPLAIN response of garbage", pieces: p(head, startOk("AMQPLAIN", "\xff\xff", true)), want: toStart + refused, bare: toStart + "cut"},
		{name: "AMQPLAIN response without a password", pieces: p(head, startOk("AMQPLAIN", string(amqp.AppendStringField(nil, "LOGIN", "guest")), true)), want: toStart + refused, bare: toStart + "cut"},
		{name: "unknown mechanism", pieces: p(head, startOk("CRAM-MD5", login, true)), want: toStart + "refused"},
		{name: "wrong vhost", pieces: p(head, good, cat(tuneOk(2047, 131072, 60), amqp.AppendOpen(nil, "hz-none"))), want: toTune + `connection.close(ch 0) 530 by 10.40 "NOT_ALLOWED`},
		{name: "frame_max 4095", pieces: p(head, good, tuneOk(2047, 4095, 60)), want: toTune + `connection.close(ch 0) 530 by 10.31 "NOT_ALLOWED`, bare: toTune + "cut"},
		{name: "frame_max over the offer", pieces: p(head, good, tuneOk(2047, 131073, 60)), want: toTune + `connection.close(ch 0) 530 by 10.31 "NOT_ALLOWED`, bare: toTune + "cut"},
		{name: "frame_max 0 where one was offered", pieces: p(head, good, tuneOk(2047, 0, 60)), want: toTune + `connection.close(ch 0) 530 by 10.31 "NOT_ALLOWED`, bare: toTune + "cut"},
		{name: "channel_max over the offer", pieces: p(head, good, tuneOk(2048, 131072, 60)), want: toTune + `connection.close(ch 0) 530 by 10.31 "NOT_ALLOWED`, bare: toTune + "cut"},
		{name: "channel_max 0 where one was offered", pieces: p(head, good, tuneOk(0, 131072, 60)), want: toTune + `connection.close(ch 0) 530 by 10.31 "NOT_ALLOWED`, bare: toTune + "cut"},
		{name: "frame_max 4096", pieces: p(head, good, cat(tuneOk(2047, 4096, 60), amqp.AppendOpen(nil, "/"))), want: toOpen, newest: toTune + "cut"},
		{name: "start-ok with a bad table", pieces: p(head, amqp.AppendStartOk(nil, []byte("\x01aZ"), "PLAIN", []byte(login), "en_US")), want: toStart + "refused"},
		{name: "start-ok cut off", pieces: p(head, method(0, amqp.ConnectionStartOk, long(0))), want: toStart + "refused"},
		{name: "connection.open instead of start-ok", pieces: p(head, amqp.AppendOpen(nil, "/")), want: toStart + "refused"},
		{name: "channel.open instead of start-ok", pieces: p(head, chanOpen(1)), want: toStart + "refused"},
		{name: "a content header instead of start-ok", pieces: p(head, header(1, 3)), want: toStart + "refused"},
		{name: "an unknown frame instead of start-ok", pieces: p(head, frame(9, 0, octet(1))), want: toStart + "refused"},
		{name: "a frame of 1 MiB instead of start-ok", pieces: p(head, octet(1, 0, 0, 0, 16, 0, 0)), want: toStart + "refused"},
		{name: "channel.open before connection.open", pieces: p(head, good, cat(tuneOk(2047, 131072, 60), chanOpen(1))), want: toTune + "refused"},
		{name: "connection.close amid the handshake", pieces: p(head, good, method(0, amqp.ConnectionClose, short(200), str("bye"), long(0))), want: toTune + "refused"},
	}
}

// greet says what the answers were.
func greet(addr string, g greeting) string {
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second)) //nolint:errcheck // shows in what follows
	rd := amqp.NewReader(4096, 1<<20)
	var items []string
	read := func() bool { // one answer; false: there is no more
		for {
			if b := rd.Buffered(); len(b) >= 8 && bytes.HasPrefix(b, []byte("AMQP")) {
				items = append(items, fmt.Sprintf("header %d %d %d %d", b[4], b[5], b[6], b[7]))
				rd.Skip(8)
				return true
			}
			if f, err := rd.Next(); err != nil {
				items = append(items, err.Error())
				return false
			} else if f != nil {
				if f.Type() == amqp.FrameHeartbeat {
					continue
				}
				items = append(items, words(f))
				return f.Method() != amqp.ConnectionClose
			}
			if _, err := rd.Fill(c); err != nil {
				var late net.Error
				if errors.As(err, &late) && late.Timeout() {
					items = append(items, "silence")
				} else {
					items = append(items, "cut")
				}
				return false
			}
		}
	}
	for _, piece := range g.pieces {
		if _, err := c.Write(piece); err != nil {
			items = append(items, "cut")
			return join(items)
		}
		if !read() {
			return join(items)
		}
	}
	if strings.HasPrefix(items[0], "header") {
		for read() {
		}
	}
	return join(items)
}

// greeted says whether an answer is the wanted one; "refused" is any hard error or a cut.
func greeted(want, got string) bool {
	if head, ok := strings.CutSuffix(want, "refused"); ok {
		rest, ok := strings.CutPrefix(got, head)
		return ok && (rest == "cut" || strings.HasPrefix(rest, "connection.close"))
	}
	return strings.HasPrefix(got, want)
}

func TestHandshake(t *testing.T) {
	for _, v := range versions() {
		t.Run(string(v), func(t *testing.T) {
			b := rabbit.Get(t, v)
			for _, where := range []string{"straight", "proxy"} {
				t.Run(where, func(t *testing.T) {
					addr := b.Addr()
					var canary *bird
					if where == "proxy" {
						_, addr = startProxy(t, b, func(c *proxy.Config) { c.RetryDelay = 0 })
						var err error
						if canary, err = newBird(addr, "/"); err != nil {
							t.Fatal(err)
						}
						defer canary.fly()
					}
					var wg sync.WaitGroup
					for _, g := range greetings() {
						wg.Go(func() {
							want := g.want
							if where == "straight" && g.bare != "" {
								want = g.bare
							}
							if where == "straight" && v == rabbit.V43 && g.newest != "" {
								want = g.newest // it refuses below 8192; through the proxy such a client goes on
							}
							if got := greet(addr, g); want != "any" && !greeted(want, got) {
								t.Errorf("%s:\n got  %s\n want %s", g.name, got, want)
							}
						})
					}
					wg.Wait()
					if canary != nil {
						if err := canary.sing(); err != nil {
							t.Error(err)
						}
					}
				})
			}
		})
	}
}

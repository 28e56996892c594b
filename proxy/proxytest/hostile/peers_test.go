//go:build linux

// Hostile brokers, a process out of descriptors, and its HTTP port.

package hostile

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
)

// evil is a broker's side of one connection; it returns when it has done its worst.
type evil func(c net.Conn, rd *amqp.Reader)

// nextFrame reads one frame.
func nextFrame(c net.Conn, rd *amqp.Reader) (amqp.Frame, error) {
	for {
		if f, err := rd.Next(); f != nil || err != nil {
			return f, err
		}
		if _, err := rd.Fill(c); err != nil {
			return nil, err
		}
	}
}

// skip reads frames until the method.
func skip(c net.Conn, rd *amqp.Reader, m amqp.Method) bool {
	for {
		f, err := nextFrame(c, rd)
		if err != nil {
			return false
		}
		if f.Type() == amqp.FrameMethod && f.Method() == m {
			return true
		}
	}
}

// greet makes the handshake up to open-ok with a tune.
func greet(c net.Conn, rd *amqp.Reader, tune amqp.Tune) bool {
	c.Write(amqp.AppendStart(nil, proxytest.RabbitMQProperties("3.10.8"), "PLAIN AMQPLAIN", "en_US"))
	if !skip(c, rd, amqp.ConnectionStartOk) {
		return false
	}
	c.Write(amqp.AppendTune(nil, amqp.ConnectionTune, tune))
	if !skip(c, rd, amqp.ConnectionOpen) {
		return false
	}
	c.Write(proxytest.Method(0, amqp.ConnectionOpenOk, ""))
	return true
}

func nested(n int) []byte {
	var t []byte
	for range n {
		t = amqp.AppendTableField(nil, "t", t)
	}
	return t
}

func TestHostileBrokers(t *testing.T) {
	usual := proxytest.DefaultTune
	// after greets in order and then does its worst.
	after := func(worst func(c net.Conn, rd *amqp.Reader)) evil {
		return func(c net.Conn, rd *amqp.Reader) {
			if greet(c, rd, usual) {
				worst(c, rd)
			}
			io.Copy(io.Discard, c)
		}
	}
	// answers opens channels and answers the first declare as it likes.
	answers := func(say func(ch uint16) []byte) evil {
		return after(func(c net.Conn, rd *amqp.Reader) {
			for {
				f, err := nextFrame(c, rd)
				if err != nil {
					return
				}
				if f.Type() != amqp.FrameMethod {
					continue
				}
				switch f.Method() {
				case amqp.ChannelOpen:
					c.Write(proxytest.Method(f.Channel(), amqp.ChannelOpenOk, ""))
				case amqp.QueueDeclare:
					c.Write(say(f.Channel()))
				}
			}
		})
	}
	for name, do := range map[string]evil{
		"silent": func(c net.Conn, _ *amqp.Reader) { io.Copy(io.Discard, c) },
		"start octet by octet": func(c net.Conn, _ *amqp.Reader) {
			for _, b := range amqp.AppendStart(nil, nil, "PLAIN", "en_US") {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(200 * time.Millisecond)
			}
		},
		"a frame of 4 GB": func(c net.Conn, _ *amqp.Reader) { c.Write([]byte{1, 0, 0, 255, 255, 255, 255}); io.Copy(io.Discard, c) },
		"a start of 1 MiB": func(c net.Conn, rd *amqp.Reader) {
			c.Write(amqp.AppendStart(nil, amqp.AppendStringField(nil, "x", strings.Repeat("A", 1<<20-200)), "PLAIN", "en_US"))
			io.Copy(io.Discard, c)
		},
		"tables 2000 deep": func(c net.Conn, rd *amqp.Reader) {
			c.Write(amqp.AppendStart(nil, nested(2000), "PLAIN", "en_US"))
			io.Copy(io.Discard, c)
		},
		"tune of nothing": func(c net.Conn, rd *amqp.Reader) { greet(c, rd, amqp.Tune{}); io.Copy(io.Discard, c) },
		"tune of one": func(c net.Conn, rd *amqp.Reader) {
			greet(c, rd, amqp.Tune{ChannelMax: 1, FrameMax: 4096, Heartbeat: 1})
			io.Copy(io.Discard, c)
		},
		"tune of all": func(c net.Conn, rd *amqp.Reader) {
			greet(c, rd, amqp.Tune{ChannelMax: 65535, FrameMax: 1<<32 - 1, Heartbeat: 65535})
			io.Copy(io.Discard, c)
		},
		"heartbeats for ever": func(c net.Conn, _ *amqp.Reader) {
			b := []byte(strings.Repeat(string(amqp.Heartbeat), 8000))
			for {
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		},
		"a close of escapes": func(c net.Conn, rd *amqp.Reader) {
			c.Write(proxytest.CloseBytes(0, 320, strings.Repeat("\x1b[31mX\n", 36), 0))
			io.Copy(io.Discard, c)
		},
		"unknown channels": after(func(c net.Conn, _ *amqp.Reader) {
			for ch := range uint16(2000) {
				b := append(proxytest.Method(ch+1, amqp.BasicDeliver, "x", 1, 0, "", "k"), proxytest.Header(ch+1, 100)...)
				c.Write(append(append(b, proxytest.Body(ch+1, make([]byte, 100))...), proxytest.Method(ch+1, amqp.BasicAck, 9, 1)...))
			}
		}),
		"a frame of 2 GB":    after(func(c net.Conn, _ *amqp.Reader) { c.Write([]byte{3, 0, 1, 0x7f, 255, 255, 255}) }),
		"a wrong frame end":  after(func(c net.Conn, _ *amqp.Reader) { c.Write([]byte{1, 0, 1, 0, 0, 0, 4, 0, 20, 0, 11, 0}) }),
		"an unknown frame":   after(func(c net.Conn, _ *amqp.Reader) { c.Write(amqp.AppendFrame(nil, 9, 1, []byte("zzzz"))) }),
		"no channel.open-ok": after(func(c net.Conn, rd *amqp.Reader) { skip(c, rd, amqp.ConnectionClose) }),
		"the wrong answer":   answers(func(ch uint16) []byte { return proxytest.Method(ch, amqp.QueueDeleteOk, 1) }),
		"a delivery of 2^62": answers(func(ch uint16) []byte {
			return append(proxytest.Method(ch, amqp.BasicDeliver, "t", 1, 0, "", "k"), proxytest.Header(ch, 1<<62)...)
		}),
		"a body without a header": answers(func(ch uint16) []byte { return proxytest.Body(ch, []byte("x")) }),
		"an ack of all time":      answers(func(ch uint16) []byte { return proxytest.Method(ch, amqp.BasicAck, uint64(1<<63), 1) }),
		"a cut":                   answers(func(ch uint16) []byte { return []byte{1, 0} }),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // nothing here is measured in time
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			ended, end := context.WithCancel(context.Background())
			var met atomic.Int64
			go func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					met.Add(1)
					go func() {
						defer context.AfterFunc(ended, func() { c.Close() })()
						defer c.Close()
						var head [8]byte
						if _, err := io.ReadFull(c, head[:]); err == nil {
							do(c, amqp.NewReader(4096, 0))
						}
					}()
				}
			}()
			defer end()
			r := start(t, setup{broker: ln.Addr().String(), settings: "[upstream]\nconnect_timeout = \"1s\"\nretry_delay = \"100ms\"\n[client]\nclose_timeout = \"1s\"\n[pool]\nidle_timeout = \"1s\"\n"})
			r.rests()
			began := time.Now()
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			crowd(ctx, 20, 20, func(ctx context.Context, _ int) {
				for ctx.Err() == nil {
					c, err := proxytest.Dial(proxytest.ClientConfig{Addr: r.addr, User: attacker, Password: "p", Timeout: 2 * time.Second})
					if err == nil {
						if c.OpenChannel(1) == nil {
							c.DeclareQueue(1, "q", 0)
						}
						c.Abort()
					}
				}
			})
			r.alive()
			u, err := r.usage()
			if err != nil {
				t.Fatalf("%v after the first client: %v", time.Since(began), err)
			}
			if met.Load() == 0 {
				t.Fatal("nobody met the broker")
			}
			if most := r.base.rss + 64<<20; u.rss > most {
				t.Errorf("%d MiB resident, at most %d", u.rss>>20, most>>20)
			}
			end()
			ln.Close()
			promise(t, r.returns())
		})
	}
}

// Out of descriptors the process lives, serves who is there and answers its probes.
func TestDescriptors(t *testing.T) {
	r := start(t, setup{descriptors: 160, settings: "[client]\nhandshake_timeout = \"3s\"\n[pool]\nidle_timeout = \"1s\"\n"})
	unanswered := 0
	err := r.under(time.Duration(count(8, 30))*time.Second, limits{ratio: 20, spared: []string{"fresh"}}, func(ctx context.Context) {
		go crowd(ctx, 1<<30, 400, func(ctx context.Context, _ int) {
			if c, err := dial(r.addr); err == nil {
				hold(ctx, c)
			}
			rest(ctx, 100*time.Millisecond)
		})
		for ctx.Err() == nil {
			rest(ctx, 500*time.Millisecond)
			if err := get("http://"+r.http+"/healthz", ""); err != nil {
				unanswered++
			}
		}
	})
	if err == nil && unanswered > 0 {
		err = fmt.Errorf("/healthz was not answered %d times", unanswered)
	}
	if strings.Contains(r.log.String(), "self-check failed") {
		err = fmt.Errorf("a lack of descriptors counts as a failed self-check")
	}
	promise(t, err)
}

// get asks and wants 200.
func get(url, host string) error {
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		return err
	}
	if host != "" {
		req.Host = host
	}
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	readAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}

// Whoever reaches the HTTP port keeps nobody's probes from it and reads nothing under a
// foreign name.
func TestHTTP(t *testing.T) {
	for name, hog := range map[string]func(c net.Conn){
		"idle keep-alives": func(c net.Conn) { fmt.Fprintf(c, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n") },
		"half requests":    func(c net.Conn) { fmt.Fprintf(c, "GET /metrics HTTP/1.1\r\nHost: ") },
		"silence":          func(net.Conn) {},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, setup{})
			r.rests()
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(count(6, 30))*time.Second)
			defer cancel()
			go crowd(ctx, 1<<30, count(100, 500), func(ctx context.Context, _ int) {
				if c, err := dial(r.http); err == nil {
					hog(c)
					hold(ctx, c)
				}
				rest(ctx, 50*time.Millisecond)
			})
			rest(ctx, 500*time.Millisecond)
			asked, unanswered := 0, 0
			for ctx.Err() == nil {
				asked++
				if err := get("http://"+r.http+"/healthz", ""); err != nil {
					unanswered++
				}
				rest(ctx, 100*time.Millisecond)
			}
			t.Logf("FIGURE %s: %d of %d probes were not answered", t.Name(), unanswered, asked)
			err := r.returns()
			if err == nil && unanswered > 0 {
				err = fmt.Errorf("%d of %d probes were not answered within 10 s", unanswered, asked)
			}
			promise(t, err)
		})
	}
	t.Run("foreign host", func(t *testing.T) {
		r := start(t, setup{})
		var err error
		if get("http://"+r.http+"/metrics", "evil.example") == nil {
			err = fmt.Errorf("/metrics is told to a page of evil.example")
		}
		if e := get("http://"+r.http+"/metrics", "localhost"); e != nil {
			err = fmt.Errorf("/metrics for localhost: %w", e)
		}
		promise(t, err)
	})
	t.Run("endless profile", func(t *testing.T) {
		if !full {
			t.Skip("takes a minute and a half where it is not refused at once: FULL=1")
		}
		r := start(t, setup{settings: "[http]\npprof = true\n"})
		client := http.Client{Timeout: 90 * time.Second}
		resp, err := client.Get("http://" + r.http + "/debug/pprof/profile?seconds=100000")
		if err == nil {
			resp.Body.Close() // refused, or a profile as long as is allowed
		}
		promise(t, err)
	})
}

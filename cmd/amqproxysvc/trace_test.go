package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/amqproxysvc/amqproxysvc/proxy/admin"
	"github.com/amqproxysvc/amqproxysvc/proxy/amqp"
	"github.com/amqproxysvc/amqproxysvc/proxy/decode"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/service/config"
	"github.com/amqproxysvc/amqproxysvc/service/logging"
)

// beforeBroker runs an engine with an admin channel before the stand-in broker, and a client of it.
func beforeBroker(t *testing.T) (socket string, c *proxytest.Client) {
	t.Helper()
	b := proxytest.StartBroker(t, proxytest.BrokerConfig{})
	socket = adminSocket(t)
	src := config.Source{}
	for name, value := range map[string]string{
		"admin.socket": socket, "listener.address": "127.0.0.1", "listener.port": "0", "http.port": "0", "upstream.url": "amqp://" + b.Addr(), "drain_timeout": "0",
	} {
		src.CommandLine = append(src.CommandLine, config.Override{Setting: config.Find(name), Value: value, Origin: "--set " + name})
	}
	e, err := openEngine(src, logging.Options{Output: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.log.Close() })
	if err := e.Start(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Drain(context.Background()) })
	if c, err = proxytest.Dial(proxytest.ClientConfig{Addr: e.server.Addrs()[0].String(), Name: "shop"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Abort)
	return socket, c
}

// work is what the traced client does: 14 frames.
func work(t *testing.T, c *proxytest.Client) {
	t.Helper()
	for _, err := range []error{c.OpenChannel(1), func() error { _, err := c.DeclareQueue(1, "q", 0); return err }(), c.Publish(1, "", "q", []byte("a secret body"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for { // the message may come behind the get
		if m, err := c.Get(1, "q", true); err == nil && string(m.Body) == "a secret body" {
			break
		} else if err != proxytest.ErrEmpty {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// traceInto begins the command; its output's lines are read from the first.
func traceInto(t *testing.T, args ...string) (lines *bufio.Scanner, ended <-chan error) {
	t.Helper()
	r, w := io.Pipe()
	root := newRootCommand()
	root.SetOut(w)
	root.SetErr(io.Discard)
	root.SetArgs(append([]string{"trace"}, args...))
	done := make(chan error, 1)
	go func() {
		err := root.Execute()
		_ = w.CloseWithError(io.EOF)
		done <- err
	}()
	return bufio.NewScanner(r), done
}

func TestTraceCommand(t *testing.T) {
	socket, c := beforeBroker(t)
	lines, ended := traceInto(t, "1", "--socket", socket, "--bodies", "3")
	if !lines.Scan() || !strings.Contains(lines.Text(), "client 1, user guest, vhost /, from 127.0.0.1:") || !strings.HasSuffix(lines.Text(), ", shop") {
		select {
		case err := <-ended:
			t.Fatal("it has ended: ", err)
		default:
		}
		t.Fatalf("the first line is %q", lines.Text())
	}
	work(t, c) // which waits for no reader of the trace
	var got []string
	for lines.Scan() {
		line := lines.Text()
		if len(line) > 15 && line[2] == ':' { // the time, the seat
			way, rest, _ := strings.Cut(line[16:], " ")
			where, text, _ := strings.Cut(rest, " ")
			channel, _, _ := strings.Cut(where, "/")
			line = way + " " + channel + " " + strings.TrimSpace(text)
		}
		got = append(got, line)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	text := strings.Join(got, "\n")
	for _, want := range []string{
		"> 1 channel.open\n< 1 channel.open-ok\n> 1 queue.declare queue=\"q\" passive=false durable=false exclusive=false auto-delete=false no-wait=false arguments={}\n",
		"- 1 goes over upstream 1 from here on, as its channel 1\n",
		"< 1 queue.declare-ok queue=\"q\" message-count=0 consumer-count=0\n",
		"> 1 basic.publish exchange=\"\" routing-key=\"q\" mandatory=false immediate=false\n> 1 header body-size=13\n> 1 body of 13 octets \"a s\"\n",
		"> 1 basic.get queue=\"q\" no-ack=true\n",
		"< 1 basic.get-ok delivery-tag=", "< 1 body of 13 octets \"a s\"\n> 0 connection.close reply-code=200",
		"< 0 connection.close-ok\nthe client has gone",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the trace lacks\n%s\nit is\n%s", want, text)
		}
	}
	for _, wrong := range [][]string{{}, {"1", "--user", "a"}, {"1", "--json", "--pcap", "x"}, {"1", "2"}} {
		if code, _, errs := tells(t, append(append([]string{"trace"}, wrong...), "--socket", socket)...); code != 64 || strings.Count(errs, "\n") != 1 {
			t.Errorf("trace %q: exit code %d %s, want 64 and a line", wrong, code, errs)
		}
	}
	if code, _, errs := tells(t, "trace", "99", "--socket", socket); code != 1 || !strings.Contains(errs, "there is no client 99") {
		t.Errorf("trace of nobody: %d %s", code, errs)
	}
}

// segments are the TCP payloads of a capture, by who sent them, and each packet's checks.
func segments(t *testing.T, b []byte) (all [2][]byte) {
	t.Helper()
	if len(b) < 24 || binary.LittleEndian.Uint32(b) != pcapMagic || binary.LittleEndian.Uint32(b[20:]) != linkTypeRaw {
		t.Fatalf("no header of a capture: %x", b[:min(24, len(b))])
	}
	next := [2]uint32{1, 1}
	for b = b[24:]; len(b) > 0; {
		n := binary.LittleEndian.Uint32(b[8:])
		if binary.LittleEndian.Uint32(b[12:]) != n || binary.LittleEndian.Uint32(b[4:]) >= 1e6 {
			t.Fatalf("packet header %x", b[:16])
		}
		p := b[16 : 16+n]
		b = b[16+n:]
		head, addresses := 20, p[12:20]
		if p[0]>>4 == 6 {
			head, addresses = 40, p[8:40]
			if int(binary.BigEndian.Uint16(p[4:])) != len(p)-40 || p[6] != 6 {
				t.Errorf("IPv6 header %x", p[:40])
			}
		} else if int(binary.BigEndian.Uint16(p[2:])) != len(p) || p[9] != 6 || checksum(sum16(p[:20])) != 0 {
			t.Errorf("IPv4 header %x", p[:20])
		}
		tcp := p[head:]
		if checksum(sum16(addresses)+6+uint32(len(tcp))+sum16(tcp)) != 0 {
			t.Errorf("TCP checksum of %x", tcp)
		}
		from := 0
		if binary.BigEndian.Uint16(tcp) == amqpPort {
			from = 1
		}
		if seq, ack := binary.BigEndian.Uint32(tcp[4:]), binary.BigEndian.Uint32(tcp[8:]); seq != next[from] || ack != next[1-from] {
			t.Errorf("sequence number %d, acknowledged %d; want %d, %d", seq, ack, next[from], next[1-from])
		}
		next[from] += uint32(len(tcp) - 20)
		all[from] = append(all[from], tcp[20:]...)
	}
	return all
}

func TestPcap(t *testing.T) {
	big := make([]byte, 100_000)
	for _, ends := range [][2]string{{"192.0.2.1:40000", "192.0.2.2:5673"}, {"[2001:db8::1]:40000", "127.0.0.1:1"}, {"[fe80::1%eth0]:2", "[fe80::2%eth0]:1"}, {"pipe", "pipe"}} {
		var b bytes.Buffer
		p := newPcap(bufio.NewWriter(&b), ends[0], ends[1])
		if err := p.begin(); err != nil {
			t.Fatal(err)
		}
		for _, l := range []admin.TraceLine{
			{Time: 1.5, From: "client", Type: 1, Channel: 1, Size: 5, Payload: []byte{0, 20, 0, 10, 0}},
			{Time: 1.5, From: "proxy", Type: 1, Channel: 1, Size: 8, Payload: []byte{0, 20, 0, 11, 0, 0, 0, 0}},
			{Time: 2, From: "client", Type: 3, Channel: 1, Size: len(big), Payload: []byte("abc")},
			{Time: 3, From: "proxy", Type: 8},
		} {
			if err := p.frame(&l); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.flush(); err != nil {
			t.Fatal(err)
		}
		got := segments(t, b.Bytes())
		body := append([]byte("abc"), big[3:]...)
		want := append(proxytest.Method(1, amqp.ChannelOpen, ""), amqp.AppendFrame(nil, amqp.FrameBody, 1, body)...)
		if !bytes.Equal(got[0], want) {
			t.Errorf("%v: the client sends %d octets %.40x, want %d", ends, len(got[0]), got[0], len(want))
		}
		if want := append(proxytest.Method(1, amqp.ChannelOpenOk, ""), amqp.Heartbeat...); !bytes.Equal(got[1], want) {
			t.Errorf("%v: the proxy sends %x, want %x", ends, got[1], want)
		}
	}
	if a := newPcap(nil, "[::1]:3", "[::1]:4").ends; a[0] != netip.MustParseAddrPort("[::1]:3") || a[1] != netip.MustParseAddrPort("[::1]:5672") {
		t.Errorf("the ends are %v", a)
	}
}

// The capture has every frame of the client, and tshark, where there is one, reads in it what we do.
func TestTracePcap(t *testing.T) {
	socket, c := beforeBroker(t)
	file := filepath.Join(t.TempDir(), "shop.pcap")
	lines, ended := traceInto(t, "1", "--socket", socket, "--pcap", file)
	go func() {
		for lines.Scan() { // what it says at its end
		}
	}()
	for { // it has begun
		if info, err := os.Stat(file); err == nil && info.Size() >= 24 {
			break
		}
		select {
		case err := <-ended:
			t.Fatal("it has ended: ", err)
		default:
		}
	}
	work(t, c)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	all := segments(t, b)
	var methods, fields [2][]string
	for from, stream := range all {
		if bytes.Contains(stream, []byte("secret")) {
			t.Error("a body is in the capture that was not asked for")
		}
		frames, err := proxytest.Frames(stream)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range frames {
			row := fmt.Sprintf("%d\t%d\t%d", f.Type(), f.Channel(), len(f.Payload()))
			switch f.Type() {
			case amqp.FrameMethod:
				name, args, _ := decode.Method(f.Payload())
				methods[from] = append(methods[from], fmt.Sprintf("%d %s", f.Channel(), name))
				row += fmt.Sprintf("\t%d\t%d", f.Method().Class(), f.Method().ID()) + asTshark(args) + "\t\t"
			case amqp.FrameHeader: // class, weight, body size
				row += "\t\t" + asTshark(nil) + fmt.Sprintf("\t%d\t%d", binary.BigEndian.Uint16(f.Payload()), binary.BigEndian.Uint64(f.Payload()[4:]))
			default:
				row += "\t\t" + asTshark(nil) + "\t\t"
			}
			fields[from] = append(fields[from], row)
		}
	}
	if text := strings.Join(methods[0], ", "); !strings.HasPrefix(text, "1 channel.open, 1 queue.declare, 1 basic.publish, 1 basic.get") || !strings.HasSuffix(text, "0 connection.close") {
		t.Errorf("the client sent %s", text)
	}
	tshark, err := exec.LookPath("tshark")
	if err != nil {
		t.Log("no tshark here: the capture was read by the tests' own reader alone")
		return
	}
	for from, port := range []string{"tcp.dstport", "tcp.srcport"} {
		args := []string{"-n", "-r", file, "-Y", "amqp && " + port + " == 5672", "-T", "fields", "-e", "amqp.type", "-e", "amqp.channel", "-e", "amqp.length", "-e", "amqp.method.class", "-e", "amqp.method.method"}
		for _, name := range tsharkArguments {
			args = append(args, "-e", "amqp.method.arguments."+strings.ReplaceAll(name, "-", "_"))
		}
		out, err := exec.Command(tshark, append(args, "-e", "amqp.header.class", "-e", "amqp.header.body-size")...).Output()
		if err != nil {
			t.Fatalf("tshark: %v", err)
		}
		if want := strings.Join(fields[from], "\n") + "\n"; string(out) != want {
			t.Errorf("tshark reads\n%s\nwe read\n%s", out, want)
		}
	}
}

// tsharkArguments are those that are compared with what tshark reads.
var tsharkArguments = []string{"queue", "exchange", "routing-key", "passive", "durable", "no-ack", "mandatory", "delivery-tag", "message-count", "consumer-count", "reply-code", "reply-text"}

// asTshark is some arguments as tshark prints fields.
func asTshark(args decode.Fields) string {
	var b strings.Builder
	for _, name := range tsharkArguments {
		b.WriteByte('\t')
		for _, a := range args {
			if a.Name != name {
				continue
			}
			if is, ok := a.Value.(bool); ok {
				a.Value = map[bool]int{true: 1}[is]
			}
			fmt.Fprint(&b, a.Value)
		}
	}
	return b.String()
}

//go:build linux

// What a running proxy shows and does under Wine, over the pipe of its admin channel. There everybody is an
// administrator: that the pipe keeps others out is its access list's work, of which Wine keeps none.

package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/admin"
)

// call is a command, and what it says.
type call struct {
	verb string // of the admin channel, "": none that is asked
	args []string
	code int
	says []string
}

// calls are all verbs of the admin channel, in an order in which each finds what it needs. The client is at work.
func calls(client string) []call {
	guest := []string{"guest"}
	return []call{
		{"clients", []string{"clients", "--user", "guest", "--sort", "age"}, 0, guest},
		{"pools", []string{"pools"}, 0, []string{"REUSE", "guest"}},
		{"upstreams", []string{"upstreams"}, 0, guest},
		{"stats", []string{"stats"}, 0, []string{"logins"}},
		{"limits", []string{"limits"}, 0, nil},
		{"advise", []string{"advise"}, 0, nil},
		{"config", []string{"config"}, 0, []string{winConfig(unit) + ":"}},
		{"status", []string{"status"}, 0, []string{"running, pid "}},
		{"reload", []string{"reload"}, 0, nil},
		{"pause", []string{"pause", "--vhost", "vhöst"}, 0, nil},
		{"", []string{"stats"}, 0, []string{"vhost vhöst"}},          // UTF-8 for people
		{"", []string{"stats", "--json"}, 0, []string{`vh\u00f6st`}}, // ASCII for programs
		{"", []string{"drain", "--vhost", "vhöst"}, 0, nil},
		{"resume", []string{"resume", "--vhost", "vhöst"}, 0, nil},
		{"trace", []string{"trace", client, "--frames", "10", "--for", "1m"}, 0, []string{"client " + client + ", user guest"}},
		{"upgrade", []string{"upgrade"}, 3, []string{"no upgrade on Windows", "restart"}},
		{"reconnect", []string{"reconnect", "--user", "guest"}, 0, []string{"retired"}},
		{"kick", []string{"kick", client}, 0, []string{"1 client closed"}},
		{"", []string{"kick", client}, 1, []string{client}},
		{"", []string{"clients", "--name", "other"}, 3, []string{"no proxy"}},
		{"", []string{"top"}, 64, []string{"top needs a terminal; clients, pools and stats have --json and --watch"}},
	}
}

// hold starts a client, and says by which ID the proxy has it.
func (w *winLife) hold(s *step) (c *client, id string) {
	c = s.start("hold", w.port)
	s.until("the client is listed", func() bool {
		var list admin.Clients
		s.check(json.Unmarshal([]byte(w.ok(s, "clients", "--user", "guest", "--json")), &list))
		for _, one := range list.Clients {
			if one.Channels > 0 {
				id = strconv.FormatUint(one.ID, 10)
			}
		}
		return id != ""
	})
	return c, id
}

func (w *winLife) looking() {
	w.step("every verb of the admin channel, over its pipe", func(s *step) {
		// Wine 8 gives the first caller the pipe's first instance, which go-winio has taken for
		// itself so that the name is its own, and which nobody serves.
		_, _ = w.run(s, winProg, "stats")
		c, id := w.hold(s)
		defer c.stop() // it is cut, and says so
		var asked []string
		for _, one := range calls(id) {
			s.contains(w.exits(s, one.code, one.args...), one.says...)
			asked = append(asked, one.verb)
		}
		for _, v := range admin.Verbs {
			if !slices.Contains(asked, v.Name) {
				s.fail("no command of this test asks for %s", v.Name)
			}
		}
		s.contains(w.log(s), "admin command")
		s.note("%d verbs, as an administrator: Wine has nobody else", len(admin.Verbs))
	})
	w.step("trace: a client's frames in words, and in a file for Wireshark", func(s *step) {
		c, id := w.hold(s)
		words := w.ok(s, "trace", id, "--frames", "60", "--for", "1m")
		s.contains(words, "client "+id+", user guest, vhost /, from 127.0.0.1:", " > ", " < ", "basic.publish", "header body-size=", "body of ", "basic.ack", "basic.get-ok")
		if strings.Contains(words, "message ") {
			s.fail("it shows bodies, which nobody has asked for:\n%s", words)
		}
		s.contains(w.ok(s, "trace", id, "--frames", "60", "--for", "1m", "--bodies", "100"), "message ")
		const file, frames = `C:\trace.pcap`, 40
		s.contains(w.ok(s, "trace", id, "--frames", strconv.Itoa(frames), "--for", "1m", "--pcap", file), strconv.Itoa(frames)+" frames in "+file)
		data, err := os.ReadFile(w.path(file))
		s.check(err)
		from := s.captured(data)
		if n := from[0] + from[1]; n != frames || from[0] == 0 || from[1] == 0 {
			s.fail("the file has %d frames of the client and %d to it, wanted are %d", from[0], from[1], frames)
		}
		s.note("%d lines; %d octets, %d frames of the client and %d to it", strings.Count(words, "\n"), len(data), from[0], from[1])
		s.end(c)
	})
	w.step("top in a console: drawn, sorted by a key, ended by another", func(s *step) {
		c, _ := w.hold(s)
		screen := w.console(s, []keystroke{{"sorted by in+out", "s"}, {"sorted by in (", "q"}}, winProg, "top")
		s.contains(screen, "amqproxysvc ", "broker up", "REUSE", "guest")
		s.note("%d octets drawn", len(screen))
		s.end(c)
	})
}

// captured reads a capture and counts the frames of AMQP: from the client, and to it.
func (s *step) captured(data []byte) (n [2]int) {
	const head, packetHead, ipHead, tcpHead = 24, 16, 20, 20
	le := binary.LittleEndian
	if len(data) < head || le.Uint32(data) != 0xa1b2c3d4 || le.Uint16(data[4:]) != 2 || le.Uint16(data[6:]) != 4 || le.Uint32(data[20:]) != 101 {
		s.fail("no header of a capture: %x", data[:min(head, len(data))])
	}
	for data = data[head:]; len(data) > 0; {
		if len(data) < packetHead+ipHead+tcpHead || le.Uint32(data[8:]) != le.Uint32(data[12:]) || packetHead+int(le.Uint32(data[8:])) > len(data) {
			s.fail("a packet is cut off: %x", data[:min(60, len(data))])
		}
		packet := data[packetHead : packetHead+int(le.Uint32(data[8:]))]
		data = data[packetHead+len(packet):]
		src, _ := netip.AddrFromSlice(packet[12:16])
		ports := [2]uint16{binary.BigEndian.Uint16(packet[ipHead:]), binary.BigEndian.Uint16(packet[ipHead+2:])}
		to := 0
		if ports[0] == 5672 {
			to = 1
		}
		if packet[0] != 0x45 || !src.IsLoopback() || ports[1-to] != 5672 {
			s.fail("a packet from %v, ports %v: %x", src, ports, packet)
		}
		frame := packet[ipHead+tcpHead:]
		if len(frame) < 8 || frame[0] == 0 || frame[0] > 8 || int(binary.BigEndian.Uint32(frame[3:])) != len(frame)-8 || frame[len(frame)-1] != 0xCE {
			s.fail("no frame of AMQP: %x", frame)
		}
		n[to]++
	}
	return n
}

// keystroke is what is typed once the screen shows something.
type keystroke struct{ after, keys string }

// console runs a Windows program in a terminal, which Wine makes a console of, and gives what it wrote there.
func (w *winLife) console(s *step, keys []keystroke, args ...string) string {
	out := filepath.Join(w.work, "screen")
	line := "stty cols 100 rows 30; exec wine"
	for _, a := range args {
		line += " '" + a + "'"
	}
	ctx, cancel := context.WithTimeout(w.ctx, 5*time.Minute)
	defer cancel() // kills it, if a step failed
	cmd := w.command(ctx, "script", "-qefc", line, out)
	in, err := cmd.StdinPipe()
	s.check(err)
	s.check(cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	screen := func() string {
		b, _ := os.ReadFile(out) // not there yet, at first
		return string(b)
	}
	for _, k := range keys {
		s.until("the screen shows "+strconv.Quote(k.after), func() bool { return strings.Contains(screen(), k.after) })
		_, err := in.Write([]byte(k.keys))
		s.check(err)
	}
	if err := <-done; err != nil {
		s.fail("%s: %w: %q", strings.Join(args, " "), err, screen())
	}
	return screen()
}

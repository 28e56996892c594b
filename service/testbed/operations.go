//go:build linux

// The operations chapter, as a new user would follow it: every command in it, in order, on
// a freshly booted machine with a network of its own. Then what other pages have root do.

package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/console"
)

const chapter = "service/OPERATIONS.md"

// pages are the others, in an order in which each leaves what the next needs; before puts
// there what the page's reader has.
var pages = []struct {
	path   string
	before func(s *step, m *machine)
}{
	{"README.md", func(s *step, m *machine) { built(s, m, "/root/dist/bin/amqproxysvc") }},
	{"service/TROUBLESHOOTING.md", func(s *step, m *machine) {
		inMachine(s, m, "echo GET / HTTP/1.1 >/dev/tcp/127.0.0.1/5673")
		s.until("the journal has what was said of it", func() bool { // which journald writes a moment later
			_, err := m.run(s.bed.ctx, "journalctl", "-u", "amqproxysvc", "--no-pager", "--quiet", "--grep", "client refused")
			return err == nil
		})
	}},
	{"service/RECIPES.md", func(s *step, m *machine) {
		inMachine(s, m, `printf '[Service]\nExecStart=/bin/sleep 1000\n[Install]\nWantedBy=multi-user.target\n' >/etc/systemd/system/amqproxy.service
systemctl daemon-reload && systemctl enable --quiet --now amqproxy`)
	}},
	{"packaging/INSTALL.md", func(s *step, m *machine) {
		built(s, m, "/root/amqproxysvc")
		inMachine(s, m, "amqproxysvc uninstall --purge")
	}},
}

// built puts the program into the machine, where a page has it.
func built(s *step, m *machine, path string) {
	prog, err := os.ReadFile(filepath.Join(s.bed.bin, "amqproxysvc"))
	s.check(err)
	s.check(os.MkdirAll(filepath.Dir(m.path(path)), 0o755))
	s.check(os.WriteFile(m.path(path), prog, 0o755))
}

func inMachine(s *step, m *machine, script string) {
	if out, err := m.run(s.bed.ctx, "bash", "-c", script); err != nil {
		s.fail("%s: %w: %s", script, err, out)
	}
}

func operationsBed(b *bed) {
	var m *machine
	b.must("a Debian root boots with systemd as PID 1, with a network of its own", func(s *step) {
		var err error
		m, err = newMachine(b.ctx, b.name, filepath.Join(b.work, "root"))
		s.check(err)
		m.private = true
		b.cleanup(m.halt)
		s.check(m.boot(b.ctx))
		built(s, m, "/usr/local/bin/amqproxysvc")
		// What the packages ca-certificates and sudo bring, and the root lacks.
		const bundle = "/etc/ssl/certs/ca-certificates.crt"
		certs, err := os.ReadFile(bundle)
		s.check(err)
		s.check(os.MkdirAll(filepath.Dir(m.path(bundle)), 0o755))
		s.check(os.WriteFile(m.path(bundle), certs, 0o644))
		issued, err := proxytest.NewCerts()
		s.check(err)
		for name, pem := range map[string][]byte{"proxy.pem": issued.CertPEM, "proxy.key": issued.KeyPEM, "clients-ca.pem": issued.CAPEM} {
			s.check(os.WriteFile(m.path("/root/"+name), pem, 0o600))
		}
		s.check(os.WriteFile(m.path("/usr/local/bin/sudo"), []byte("#!/bin/sh\nexec \"$@\"\n"), 0o755))
	})
	b.follow(m, chapter)
	for _, p := range pages {
		b.step("before "+p.path, func(s *step) { p.before(s, m) })
		b.follow(m, p.path)
	}
}

// follow runs what a page has root do, in its order.
func (b *bed) follow(m *machine, page string) {
	blocks, err := console.Read(page)
	if err != nil {
		panic(bedFailed{err})
	}
	n := 0
	for _, block := range blocks {
		if block.Untried != "" || !block.Root {
			continue
		}
		for _, c := range block.Commands {
			n++
			b.step(fmt.Sprintf("%s:%d # %s", page, block.Line, c.Line), func(s *step) {
				out, err := m.run(b.ctx, "sh", "-c", "cd /root && "+c.Line)
				if err != nil {
					s.fail("%w: %s", err, out)
				}
				if !c.Matches(out) {
					s.fail("the page promises\n%s\nit says\n%s", c.Promised, out)
				}
			})
		}
	}
	if n == 0 {
		b.step(page+" has commands for root", func(s *step) { s.fail("none was found") })
	}
}

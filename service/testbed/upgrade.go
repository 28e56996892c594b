//go:build linux

// Upgrades of the service under systemd, which cut nobody.

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// replace puts another file in the program's place, as package managers do.
func (l *life) replace(s *step, content []byte) {
	at := l.m.path(prog)
	s.check(os.WriteFile(at+".new", content, 0o755))
	s.check(os.Rename(at+".new", at))
}

// upgrade has the program taken over, and gives both processes' numbers.
func (l *life) upgrade(s *step) (old, now int) {
	old = l.pid(s)
	s.contains(l.sh(s, prog, "upgrade"), fmt.Sprintf("has taken over from process %d,", old))
	return old, l.another(s, old)
}

// another is the main process that is not this one, once systemd has heard of it.
func (l *life) another(s *step, than int) (pid int) {
	s.until(fmt.Sprintf("systemd's main process is another one than %d", than), func() bool {
		pid = l.pid(s)
		return pid != than && pid != 0
	})
	return pid
}

// ends waits until there is no such process.
func (l *life) ends(s *step, pid int) time.Duration {
	return s.until(fmt.Sprintf("process %d ends", pid), func() bool { return !l.lives(pid) })
}

// lives reports whether there is such a process.
func (l *life) lives(pid int) bool {
	_, err := l.m.run(l.ctx, "test", "-d", "/proc/"+strconv.Itoa(pid))
	return err == nil
}

func (l *life) upgrading() {
	binary, err := os.ReadFile(l.m.path(prog))
	if err != nil {
		panic(bedFailed{err})
	}
	active := func(s *step) {
		l.becomes(s, "ActiveState", "active") // it is "reloading" until systemd has heard of the reload's end
		s.traffic(l.port, 5)
	}
	l.step("upgrade under load, with a program that crashes too: nobody is refused or cut", func(s *step) {
		mark := time.Now()
		all := append(s.load(l.port), s.load(l.port)...)
		l.replace(s, []byte("#!/bin/sh\nexit 3\n"))
		words := l.fails(s, 1, "/root/amqproxysvc", "upgrade")
		s.contains(words, "serves on as before", "ended before it was ready")
		s.note("%s", words)
		l.replace(s, binary)
		began := time.Now()
		old, now := l.upgrade(s)
		s.note("taken over after %.2f s", time.Since(began).Seconds())
		if !l.lives(old) {
			s.fail("the old process has gone, with clients left")
		}
		s.until("systemd's status text tells of the old process", func() bool {
			return strings.Contains(l.show(s, "StatusText"), fmt.Sprintf("process %d, of before the upgrade, serves ", old))
		})
		s.contains(l.sh(s, prog, "status"), "running, pid "+strconv.Itoa(now), "of before the upgrade")
		s.endAll(all)
		s.note("the old process ended %.1f s after its last client", l.ends(s, old).Seconds())
		active(s)
		l.sh(s, prog, "reload")
		l.journal(s, mark, "has taken over", "from before the upgrade has ended")
	})
	l.step("a new process that ends or hangs once it is ready: systemd keeps the old one", func(s *step) {
		c := s.start("stay", l.port)
		old := l.pid(s)
		var words string
		for then, why := range map[string]string{"exit 3": "ended before it had taken over", "exec sleep 60": "did not take over within 10s"} {
			l.replace(s, []byte("#!/bin/sh\necho ready >&3\n"+then+"\n"))
			words = l.fails(s, 1, "/root/amqproxysvc", "upgrade")
			s.contains(words, "serves on as before", why)
			if now := l.pid(s); now != old || !l.lives(old) {
				s.fail("systemd's main process is %d, and was %d", now, old)
			}
			s.traffic(l.port, 5)
		}
		l.replace(s, binary)
		active(s)
		old, now := l.upgrade(s)
		s.leaves(c)
		l.ends(s, old)
		if l.pid(s) != now {
			s.fail("the service was restarted")
		}
		s.note("%s", words)
	})
	l.step("a reload starts the program on the disk where it is another one, and serves on where that crashes", func(s *step) {
		mark := time.Now()
		c := s.start("stay", l.port)
		old := l.pid(s)
		l.replace(s, []byte("#!/bin/sh\nexit 3\n"))
		s.contains(l.sh(s, "/root/amqproxysvc", "reload"), "did not take over: ") // ExecReload is that script now
		if now := l.pid(s); now != old {
			s.fail("systemd's main process is %d, and was %d", now, old)
		}
		s.contains(l.sh(s, "/root/amqproxysvc", "status"), "did not take over: ")
		l.replace(s, binary)
		l.sh(s, "systemctl", "reload", unit)
		now := l.another(s, old)
		if !l.lives(old) {
			s.fail("the old process has gone, with a client left")
		}
		active(s)
		l.sh(s, "systemctl", "reload", unit) // the same program
		if l.pid(s) != now {
			s.fail("a reload with the same program started another process")
		}
		l.journal(s, mark, "is to take over", "has taken over")
		s.leaves(c)
		l.ends(s, old)
	})
	l.step("after an upgrade a restart refuses no connect", func(s *step) {
		mark := time.Now()
		churn := s.start("churn", l.port)
		l.sh(s, "systemctl", "restart", unit)
		s.end(churn)
		l.journal(s, mark, "kept_sockets=1")
	})
	l.step("the old process is killed amid an upgrade: the new one serves on", func(s *step) {
		c := s.start("stay", l.port)
		old, now := l.upgrade(s)
		l.sh(s, "sh", "-c", fmt.Sprintf("kill -KILL %d", old))
		_ = s.end(c)
		if l.pid(s) != now {
			s.fail("the service was restarted")
		}
		active(s)
	})
	l.step("a stop ends the old process too, in good order", func(s *step) {
		c := s.start("stay", l.port)
		old, _ := l.upgrade(s)
		began := time.Now()
		l.sh(s, prog, "stop")
		s.contains(s.end(c), "320", "shutting down")
		l.ends(s, old)
		if result := l.show(s, "Result"); result != "success" {
			s.fail("systemd calls the stop %s", result)
		}
		s.note("stopped after %.1f s", time.Since(began).Seconds())
		l.sh(s, prog, "start")
	})
	l.step("the new process is killed while the old one drains: the service is started again", func(s *step) {
		c := s.start("stay", l.port)
		_, now := l.upgrade(s)
		l.sh(s, "sh", "-c", fmt.Sprintf("kill -KILL %d", now))
		s.until("another process that listens", func() bool { p := l.pid(s); return p != 0 && p != now && accepts(l.port) })
		_ = s.end(c)
		active(s)
	})
}

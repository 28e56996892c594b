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
	if now = l.pid(s); now == old || now == 0 {
		s.fail("systemd's main process is %d, and was %d", now, old)
	}
	return old, now
}

// lives reports whether there is such a process.
func (l *life) lives(pid int) bool {
	_, err := l.m.run(l.ctx, "test", "-d", "/proc/"+strconv.Itoa(pid))
	return err == nil
}

// stays starts a client that stays until it is closed.
func (l *life) stays(s *step) *client {
	c := s.start("stay", l.port)
	s.until("the client is at work", 10*time.Second, func() bool { _, err := os.Stat(c.file); return err == nil })
	return c
}

func (l *life) upgrading() {
	binary, err := os.ReadFile(l.m.path(prog))
	if err != nil {
		panic(bedFailed{err})
	}
	active := func(s *step) {
		if state := l.show(s, "ActiveState"); state != "active" {
			s.fail("the service is %s", state)
		}
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
		s.until("systemd's status text tells of the old process", 5*time.Second, func() bool {
			return strings.Contains(l.show(s, "StatusText"), fmt.Sprintf("process %d, of before the upgrade, serves ", old))
		})
		s.contains(l.sh(s, prog, "status"), "running, pid "+strconv.Itoa(now), "of before the upgrade")
		s.endAll(all)
		took := s.until("the old process ends with its last client", 10*time.Second, func() bool { return !l.lives(old) })
		s.note("the old process ended %.1f s after its last client", took.Seconds())
		active(s)
		s.contains(l.sh(s, prog, "reload")+l.journal(s, mark), "has taken over", "from before the upgrade has ended")
	})
	l.step("a new process that ends or hangs once it is ready: systemd keeps the old one", func(s *step) {
		c := l.stays(s)
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
		s.until("the old process ends with its last client", 10*time.Second, func() bool { return !l.lives(old) })
		if l.pid(s) != now {
			s.fail("the service was restarted")
		}
		s.note("%s", words)
	})
	l.step("a reload starts the program on the disk where it is another one, and serves on where that crashes", func(s *step) {
		mark := time.Now()
		c := l.stays(s)
		old := l.pid(s)
		l.replace(s, []byte("#!/bin/sh\nexit 3\n"))
		s.contains(l.sh(s, "/root/amqproxysvc", "reload"), "did not take over: ") // ExecReload is that script now
		if now := l.pid(s); now != old {
			s.fail("systemd's main process is %d, and was %d", now, old)
		}
		s.contains(l.sh(s, "/root/amqproxysvc", "status"), "did not take over: ")
		l.replace(s, binary)
		l.sh(s, "systemctl", "reload", unit)
		now := l.pid(s)
		if now == old || !l.lives(old) {
			s.fail("systemd's main process is %d, and was %d", now, old)
		}
		active(s)
		l.sh(s, "systemctl", "reload", unit) // the same program
		if l.pid(s) != now {
			s.fail("a reload with the same program started another process")
		}
		s.contains(l.journal(s, mark), "is to take over", "has taken over")
		s.leaves(c)
		s.until("the old process ends with its last client", 10*time.Second, func() bool { return !l.lives(old) })
	})
	l.step("after an upgrade a restart refuses no connect", func(s *step) {
		mark := time.Now()
		churn := s.start("churn", l.port)
		time.Sleep(300 * time.Millisecond)
		l.sh(s, "systemctl", "restart", unit)
		s.end(churn)
		s.contains(l.journal(s, mark), "kept_sockets=1")
	})
	l.step("the old process is killed amid an upgrade: the new one serves on", func(s *step) {
		c := l.stays(s)
		old, now := l.upgrade(s)
		l.sh(s, "sh", "-c", fmt.Sprintf("kill -KILL %d", old))
		_ = s.end(c)
		if l.pid(s) != now {
			s.fail("the service was restarted")
		}
		active(s)
	})
	l.step("a stop ends the old process too, in good order", func(s *step) {
		c := l.stays(s)
		old, _ := l.upgrade(s)
		began := time.Now()
		l.sh(s, prog, "stop")
		s.contains(s.end(c), "320", "shutting down")
		if l.lives(old) || l.show(s, "Result") != "success" {
			s.fail("the old process lives: %v; systemd calls the stop %s", l.lives(old), l.show(s, "Result"))
		}
		s.note("stopped after %.1f s", time.Since(began).Seconds())
		l.sh(s, prog, "start")
	})
	l.step("the new process is killed while the old one drains: the service is started again", func(s *step) {
		c := l.stays(s)
		_, now := l.upgrade(s)
		l.sh(s, "sh", "-c", fmt.Sprintf("kill -KILL %d", now))
		s.until("another process that listens", 10*time.Second, func() bool { p := l.pid(s); return p != 0 && p != now && accepts(l.port) })
		_ = s.end(c)
		s.until("active", 10*time.Second, func() bool { return l.show(s, "ActiveState") == "active" })
		active(s)
	})
}

//go:build linux

// An upgrade under Windows: another file in the program's place, and a restart. No socket can be handed over there,
// so for a while nobody is answered; how long is measured here, and bounded by nothing: it is the machine's pace.

package main

import (
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"
)

// knockEvery is how often a new client comes.
const knockEvery = 20 * time.Millisecond

// knocks are clients that came one after the other, while something was done.
type knocks struct {
	answered, refused, cut int           // by connection.start; connect was refused; neither
	gap                    time.Duration // the longest from the last one that was answered to the next: from its coming to this one's answer
}

// knock comes as a client does, and goes after connection.start.
func knock(port int) error {
	c, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second)) // else it would wait for ever
	if _, err := c.Write([]byte("AMQP\x00\x00\x09\x01")); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 7))
	return err
}

// knocking has clients come until it is told to stop; that gives what they found.
func knocking(port int) (stop func() knocks) {
	end, found := make(chan struct{}), make(chan knocks)
	go func() {
		var k knocks
		var last time.Time // the last that was answered came then
		tick := time.NewTicker(knockEvery)
		defer tick.Stop()
		away := false
		for {
			came := time.Now()
			err := knock(port)
			switch {
			case err == nil:
				k.answered++
				if away && !last.IsZero() {
					k.gap = max(k.gap, time.Since(last))
				}
				away, last = false, came
			case errors.Is(err, syscall.ECONNREFUSED):
				k.refused++
				away = true
			default:
				k.cut++
				away = true
			}
			select {
			case <-end:
				found <- k
				return
			case <-tick.C:
			}
		}
	}()
	return func() knocks { close(end); return <-found }
}

// replace puts another file in the program's place. Windows lets a program that runs be renamed, not be written over.
func (w *winLife) replace(s *step) {
	at := w.path(winProg)
	program, err := os.ReadFile(at)
	s.check(err)
	_ = os.Remove(at + ".old")
	s.check(os.Rename(at, at+".old"))
	s.check(os.WriteFile(at, program, 0o755))
}

func (w *winLife) upgrading() {
	restart := func(s *step, name string) {
		pid := w.report(s, unit).PID
		w.replace(s)
		stop := knocking(w.port)
		began := time.Now()
		w.ok(s, "restart")
		took := time.Since(began)
		s.until("it answers", func() bool { return knock(w.port) == nil })
		time.Sleep(10 * knockEvery) // the knocks see it too
		k := stop()
		if now := w.report(s, unit).PID; now == pid || now == 0 {
			s.fail("process %d was %d before", now, pid)
		}
		if k.answered == 0 || k.refused == 0 || k.gap == 0 {
			s.fail("%+v: no gap was seen", k)
		}
		s.note("%s: nobody answers for %.2f s of the %.1f s that the command takes; of the clients that come each %v, %d are refused, %d cut, %d answered",
			name, k.gap.Seconds(), took.Seconds(), knockEvery, k.refused, k.cut, k.answered)
	}
	w.step("upgrade: another file in the program's place, a restart, and how long nobody answers", func(s *step) {
		restart(s, "nobody is connected")
		c := s.start("stay", w.port)
		restart(s, "a client stays (drain_timeout 4 s)")
		s.contains(s.end(c), "320", "shutting down")
		s.traffic(w.port, 20)
	})
}

package service

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A new process that says nothing is waited for in vain for so long, and no longer.
func TestANewProcessIsWaitedForInBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, its := net.Pipe()
		defer its.Close()
		c := &successor{conn: ours}
		began := time.Now()
		err := c.awaitReady(t.Context(), upgradeWait)
		if err == nil || !strings.Contains(err.Error(), "not ready within 1m0s") || time.Since(began) != upgradeWait {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := c.awaitReady(ctx, upgradeWait); err != errStopping {
			t.Errorf("on a stop: %v", err)
		}
	})
}

// An engine that cannot be handed over is told as that, and serves on.
func TestUpgradeIsRefused(t *testing.T) {
	s, _ := testSupervisor(newFakeEngine())
	result := runService(t, s)
	if _, err := s.Upgrade(t.Context()); err == nil {
		t.Error("no error")
	}
	s.requestStop()
	if err := <-result; err != nil {
		t.Error(err)
	}
	if _, err := s.Upgrade(t.Context()); err != errStopping {
		t.Errorf("after the stop: %v", err)
	}
}

// A new process that says it is ready, and no more, is not left alone with the clients.
func TestANewProcessThatDoesNotTakeOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, ends := range []bool{false, true} {
			ours, its := net.Pipe()
			s, told := testSupervisor(newFakeEngine())
			s.eng = newFakeEngine()
			s.state.path = stateFileIn(t.TempDir())
			killed := false
			c := &successor{pid: 4711, conn: ours, kill: func() { killed = true; _ = ours.Close() }}
			go func() {
				if line, err := readLine(its); line != "go" || err != nil {
					t.Errorf("it is told %q, %v", line, err)
				}
				if ends {
					_ = its.Close()
				}
			}()
			err := s.handOver(c)
			want := "did not take over within 10s"
			if ends {
				want = "ended before it had taken over"
			}
			if err == nil || !strings.Contains(err.Error(), want) || !killed {
				t.Errorf("%v, killed %v; want %q", err, killed, want)
			}
			if words := told.take(); len(words) != 0 {
				t.Errorf("systemd hears %q", words)
			}
			if s.tell(PhaseServing, "READY=1\n"); told.count("READY=1") != 1 {
				t.Error("systemd hears nothing more")
			}
			if _, err := ReadState(s.state.path); err != nil || s.after != nil {
				t.Errorf("its state is told no more: %v, %+v", err, s.after)
			}
			_ = its.Close()
		}
	})
}

// The new process answers before systemd takes it for the main one, and speaks to systemd after that.
func TestWhatIsSaidWhenANewProcessTakesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, its := net.Pipe()
		old, told := testSupervisor(newFakeEngine())
		old.eng = newFakeEngine()
		old.state.path = stateFileIn(t.TempDir())
		c := &successor{pid: 4711, conn: ours, kill: func() { t.Error("the new process is killed") }}
		next, nextTold := testSupervisor(newFakeEngine())
		next.eng = newFakeEngine()
		next.before = &predecessor{pid: os.Getpid(), conn: its, lines: bufio.NewReader(its), gone: make(chan struct{})}
		notify := next.notify
		next.notify = func(text string) {
			if told.count("MAINPID=4711") != 1 {
				t.Errorf("%q comes before the old one's last word", text)
			}
			notify(text)
		}
		inPlace := next.inPlace()
		served := make(chan struct{})
		go func() {
			defer close(served)
			next.tell(PhaseServing, "READY=1\n") // not heard yet
			inPlace()
			next.tell(PhaseServing, "READY=1\n")
		}()
		if err := c.awaitReady(t.Context(), upgradeWait); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if told.count("MAINPID") != 0 || nextTold.count("READY=1") != 0 {
			t.Error("systemd hears of it too early")
		}
		if err := old.handOver(c); err != nil {
			t.Fatal(err)
		}
		<-served
		if told.count("MAINPID=4711") != 1 || nextTold.count("READY=1") != 1 {
			t.Errorf("systemd heard %q and %q", told.take(), nextTold.take())
		}
		_, _ = ours.Close(), its.Close()
	})
}

// What is asked of the old process too late is told that it is, and a reload by signal is passed on.
func TestAskedWhileTheNewProcessTakesOver(t *testing.T) {
	s, _ := testSupervisor(newFakeEngine())
	s.after = &successor{pid: 4711}
	close(s.served)
	if _, err := s.Reload(t.Context()); !errors.Is(err, ErrTakenOver) {
		t.Errorf("a reload: %v", err)
	}
	if _, err := s.Upgrade(t.Context()); !errors.Is(err, ErrTakenOver) {
		t.Errorf("an upgrade: %v", err)
	}
	ours, its := net.Pipe()
	p := &predecessor{pid: 42, lines: bufio.NewReader(ours), gone: make(chan struct{})}
	reloads := make(chan struct{}, 1)
	go p.listen(func() { reloads <- struct{}{} })
	for _, line := range []string{"until 1900000000", "a later version's word", "clients 3", "reload"} {
		sendLine(its, "%s", line)
	}
	<-reloads
	if b := p.state(); b == nil || b.PID != 42 || b.Clients != 3 || b.Until.Unix() != 1_900_000_000 || !strings.Contains(b.text(), "3 clients to the end, at most until 2030-03-1") {
		t.Errorf("it knows %+v", b)
	}
	_ = its.Close()
	<-p.gone
	if b := p.state(); b != nil {
		t.Errorf("at its end: %+v", b)
	}
}

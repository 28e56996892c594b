package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func refusedDial() error {
	return &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5672},
		Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
}

// The first refusal begins an absence, which later ones do not begin anew, and the first greeting
// ends it; while a link stands there is none.
func TestAway(t *testing.T) {
	withBroker(t, func(r *rig) {
		if since, reason, ok := r.b.Away(); ok {
			t.Errorf("before the first attempt: away since %v, %q", since, reason)
		}
		r.to.Refuse(refusedDial())
		gone := time.Now()
		for range 20 {
			<-r.login(Known, "u")
			time.Sleep(time.Second)
		}
		if since, reason, ok := r.b.Away(); !ok || !since.Equal(gone) || reason != "connection refused" {
			t.Errorf("away %v since %v, %q; want since %v, connection refused", ok, since, reason, gone)
		}
		k := &Link{b: r.b}
		k.Stand()
		if _, _, ok := r.b.Away(); ok {
			t.Error("away although a link stands")
		}
		k.End(true)
		if _, _, ok := r.b.Away(); !ok {
			t.Error("not away after the last link was lost")
		}
		r.to.Refuse(nil)
		time.Sleep(time.Second)
		done := r.login(Known, "u")
		r.sc.AcceptOpen()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if since, reason, ok := r.b.Away(); ok {
			t.Errorf("it greeted, and is away since %v, %q", since, reason)
		}
		synctest.Wait()
		r.mu.Lock()
		defer r.mu.Unlock()
		if log := r.logs.String(); strings.Count(log, `level=INFO msg="broker can be reached again" address=broker:5672 after=21s`) != 1 {
			t.Errorf("logged\n%s", log)
		}
	})
}

// An address that did not answer once is no absence, but its answer ends what the log had begun.
func TestSlowOnceIsNotAway(t *testing.T) {
	withBroker(t, func(r *rig) {
		r.to.Refuse(context.DeadlineExceeded)
		<-r.login(Known, "u")
		if _, _, ok := r.b.Away(); ok {
			t.Error("one dial without an answer is an absence")
		}
		r.to.Refuse(nil)
		time.Sleep(3 * time.Second)
		done := r.login(Known, "u")
		r.sc.AcceptOpen()
		<-done
		r.mu.Lock()
		defer r.mu.Unlock()
		if log := r.logs.String(); !strings.Contains(log, `msg="broker can be reached again" address=broker:5672 after=3s`) {
			t.Errorf("logged\n%s", log)
		}
	})
}

func TestReasonIsOneShortLine(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{&Unreachable{Address: "b:1", Err: refusedDial()}, "connection refused"},
		{&Unreachable{Address: "b:1", Err: errors.New("no answer within connect_timeout = 5s")}, "no answer within connect_timeout = 5s"},
		{fmt.Errorf("a\nb\x1b[31m"), "a b [31m"},
		{errors.New(strings.Repeat("ä", 150)), strings.Repeat("ä", 100) + "…"},
		{errors.New("x" + strings.Repeat("ä", 150)), "x" + strings.Repeat("ä", 99) + "…"},
	} {
		if got := shortReason(c.err); got != c.want {
			t.Errorf("%q becomes %q, want %q", c.err, got, c.want)
		}
	}
}

// An outage is told once a minute, and anew when its reason changes or it comes again.
func TestOutageIsToldOnceAMinute(t *testing.T) {
	withBroker(t, func(r *rig) {
		told := func() int {
			synctest.Wait()
			r.mu.Lock()
			defer r.mu.Unlock()
			return strings.Count(r.logs.String(), `msg="broker cannot be reached"`)
		}
		r.to.Refuse(refusedDial())
		for range 50 {
			<-r.login(Known, "u")
			time.Sleep(time.Second)
		}
		if n := told(); n != 1 {
			t.Errorf("told %d times in 50 s", n)
		}
		for range 50 {
			<-r.login(Known, "u")
			time.Sleep(time.Second)
		}
		if n := told(); n != 2 {
			t.Errorf("told %d times in 100 s", n)
		}
		r.to.Refuse(errors.New("no route to host"))
		<-r.login(Known, "u")
		if n := told(); n != 3 {
			t.Errorf("told %d times with another reason", n)
		}
		time.Sleep(time.Second)
		r.to.Refuse(nil)
		done := r.login(Known, "u")
		r.sc.AcceptOpen()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		r.to.Refuse(errors.New("no route to host"))
		<-r.login(Known, "u")
		if n := told(); n != 4 {
			t.Errorf("told %d times when it came again", n)
		}
	})
}

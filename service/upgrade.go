// Upgrade: a new process of the program as it is on the disk takes over the listening sockets
// of the one that runs, which serves its clients to their end. What the two say to each other
// is here, lines over a socket; how the new one is started is in upgrade_linux.go.

package service

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// upgradeWait bounds the start of the new process, and its wait for the word to go.
	upgradeWait = time.Minute
	// goWait bounds its answer to that word.
	goWait = 10 * time.Second
)

// notHere says why no upgrade can be had where this process runs, whatever is on the disk: it is errors.ErrUnsupported.
type notHere string

func (n notHere) Error() string        { return string(n) }
func (n notHere) Is(target error) bool { return target == errors.ErrUnsupported }

// Upgradable is an Engine whose sockets another process's can take over.
type Upgradable interface {
	// Sockets are the listening ones beside the clients', named by what they are for and where.
	Sockets() map[string]net.Listener
	// Take gives, before Start, those of the process before. Who is not asked for any more is closed.
	Take(sockets map[string]net.Listener)
	// Leave stops accepting and leaves the sockets where they are; clients go on, told nothing.
	Leave()
	// UpgradeDrain is how long after Leave they may.
	UpgradeDrain() time.Duration
}

// Before is the process from before an upgrade, while it serves its clients.
type Before struct {
	PID     int       `json:"pid"`
	Clients int       `json:"clients"`
	Until   time.Time `json:"until,omitzero"` // when upgrade_drain is over
}

func (b *Before) text() string {
	text := fmt.Sprintf("process %d, of before the upgrade, serves %s to the end", b.PID, Plural(b.Clients, "client"))
	if !b.Until.IsZero() {
		text += ", at most until " + b.Until.Local().Format(time.DateTime)
	}
	return text
}

// successor is the new process as the old one knows it.
type successor struct {
	pid  int
	conn net.Conn
	kill func()
}

// predecessor is the old process as the new one knows it; nil: there was none.
type predecessor struct {
	pid     int
	conn    net.Conn
	lines   *bufio.Reader
	files   []*os.File              // of listeners, named as systemd's are
	sockets map[string]net.Listener // the others
	clients atomic.Int32
	until   atomic.Int64 // in seconds since 1970; 0: it has not said
	gone    chan struct{}
	heard   bool // it was told that this process is ready, or why not
}

// upgraded is how an upgrade came out.
type upgraded struct {
	child *successor
	err   error
}

// Upgrade has the program on the disk take over, and waits until it has, or has not. It is for any goroutine.
func (s *supervisor) Upgrade(ctx context.Context) (pid int, err error) {
	outcome := make(chan upgraded, 1)
	select {
	case s.upgrades <- outcome:
	case <-s.served:
		return 0, s.unserved()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	select { // not ctx: who asked may go, the upgrade goes on and is told in the log
	case u := <-outcome:
		if u.err != nil {
			return 0, u.err
		}
		return u.child.pid, nil
	case <-s.served:
	}
	select {
	case u := <-outcome: // it was done just before
		if u.err == nil {
			return u.child.pid, nil
		}
		return 0, u.err
	default:
		return 0, s.unserved()
	}
}

// awaitReady reads the new process's first line.
func (c *successor) awaitReady(ctx context.Context, within time.Duration) error {
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetReadDeadline(time.Now()) })
	defer stop()
	line, err := c.answer(within)
	reason, failed := strings.CutPrefix(line, "failed ")
	switch {
	case ctx.Err() != nil:
		return errStopping
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the new process was not ready within %v", within)
	case err != nil:
		return errors.New("the new process ended before it was ready, and gave no reason")
	case failed:
		return errors.New("the new process did not start: " + reason)
	case line != "ready":
		return fmt.Errorf("the new process answers %.60q", line)
	}
	return nil
}

// answer is the new process's next line.
func (c *successor) answer(within time.Duration) (string, error) {
	_ = c.conn.SetReadDeadline(time.Now().Add(within))
	line, err := readLine(c.conn)
	_ = c.conn.SetReadDeadline(time.Time{})
	return line, err
}

// readLine reads no byte beyond the line.
func readLine(r io.Reader) (string, error) {
	var line []byte
	for one := make([]byte, 1); len(line) < 4096; {
		if _, err := io.ReadFull(r, one); err != nil {
			return "", err
		}
		if one[0] == '\n' {
			return string(line), nil
		}
		line = append(line, one[0])
	}
	return "", errors.New("the line is too long")
}

// listen hears the new process ask this one to stop, until one of them ends.
func (c *successor) listen(stop func()) {
	for {
		line, err := readLine(c.conn)
		if err != nil {
			return
		}
		if line == "stop" {
			stop()
		}
	}
}

func sendLine(conn net.Conn, format string, args ...any) {
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second)) // a process that is stopped reads nothing
	_, _ = fmt.Fprintf(conn, format+"\n", args...)
}

// handOver makes the new process the service's, once it has answered: from MAINPID on systemd hears nobody
// but it, and kills the whole service where it ends. That is this process's last word to systemd, and "yours"
// tells the new one that its own come after it.
func (s *supervisor) handOver(c *successor) error {
	sendLine(c.conn, "go")
	if line, err := c.answer(goWait); err != nil || line != "here" {
		c.kill()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("the new process was ready, and did not take over within %v", goWait)
		}
		return errors.New("the new process ended before it had taken over")
	}
	s.state.leave()
	s.notify("MAINPID=" + strconv.Itoa(c.pid))
	sendLine(c.conn, "yours")
	s.notify = func(string) {}
	s.after = c
	go c.listen(s.requestStop)
	slog.Info("a new process of the program has taken over; clients that are connected stay with this one to their end",
		"new_pid", c.pid, "pid", os.Getpid(), "clients", s.eng.Status().Clients, Event(EventUpgraded))
	return nil
}

// linger serves the clients of this process to their end, after an upgrade.
func (s *supervisor) linger() {
	up := s.eng.(Upgradable) // else there was no upgrade
	up.Leave()
	drain := up.UpgradeDrain()
	most := time.NewTimer(drain)
	defer most.Stop()
	sendLine(s.after.conn, "until %d", time.Now().Add(drain).Unix())
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	told := -1
	for {
		left := s.eng.Status().Clients
		if b := s.before.state(); b != nil {
			left += b.Clients
		}
		if left != told {
			sendLine(s.after.conn, "clients %d", left)
			told = left
		}
		if left == 0 && s.before.hasGone() {
			return
		}
		select {
		case <-s.stopping:
			return
		case <-s.eng.Done():
			return
		case <-s.reopen: // rotations signal every process of the unit
			_ = s.eng.ReopenLog()
		case <-most.C:
			slog.Warn("upgrade_drain is over: clients of before the upgrade now have drain_timeout to finish", "clients", left, "pid", os.Getpid())
			return
		case <-tick.C:
		}
	}
}

// ready tells the old process that this one serves, and returns when it has given up its place, or has ended.
func (p *predecessor) ready() {
	p.heard = true
	_ = p.conn.SetReadDeadline(time.Now().Add(upgradeWait))
	defer func() { _ = p.conn.SetReadDeadline(time.Time{}) }()
	say, hear := []string{"ready", "here"}, []string{"go", "yours"}
	for i := range say {
		sendLine(p.conn, "%s", say[i])
		if line, err := p.lines.ReadString('\n'); err != nil || line != hear[i]+"\n" {
			slog.Warn("the process from before the upgrade did not say that it leaves", "old_pid", p.pid, "error", err)
			return
		}
	}
}

// fail tells the old process why this one does not serve.
func (p *predecessor) fail(err error) {
	if !p.heard {
		p.heard = true
		sendLine(p.conn, "failed %s", oneLine(err))
	}
}

// listen hears it tell its clients, and ask for a reload that came to it too late, until it ends.
func (p *predecessor) listen(reload func()) {
	defer close(p.gone)
	for {
		line, err := p.lines.ReadString('\n')
		if err != nil {
			p.clients.Store(0)
			slog.Info("the process from before the upgrade has ended", "old_pid", p.pid)
			return
		}
		word, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, _ := strconv.ParseInt(text, 10, 64)
		switch word {
		case "clients":
			p.clients.Store(int32(n))
		case "until":
			p.until.Store(n)
		case "reload":
			reload()
		}
	}
}

func (p *predecessor) hasGone() bool {
	if p == nil {
		return true
	}
	select {
	case <-p.gone:
		return true
	default:
		return false
	}
}

// state is nil when there is none any more.
func (p *predecessor) state() *Before {
	if p.hasGone() {
		return nil
	}
	b := &Before{PID: p.pid, Clients: int(p.clients.Load())}
	if until := p.until.Load(); until != 0 {
		b.Until = time.Unix(until, 0)
	}
	return b
}

// stop asks it to stop, too; asked again later, at once.
func (p *predecessor) stop() {
	if !p.hasGone() {
		sendLine(p.conn, "stop")
	}
}

// wait waits for its end: systemd kills what is left once the main process has ended.
func (p *predecessor) wait(ctx context.Context) {
	if p == nil {
		return
	}
	select {
	case <-p.gone:
	case <-ctx.Done():
		select {
		case <-p.gone:
		case <-time.After(giveUp / 2):
		}
	}
}

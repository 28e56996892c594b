// The state file: what a running service tells `status` and `reload`, on every system
// alike. It holds counts and addresses, never a credential, and is replaced whole.

package service

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Phase is what a running service is doing.
type Phase string

const (
	PhaseStarting  Phase = "starting"
	PhaseServing   Phase = "serving"
	PhaseReloading Phase = "reloading"
	PhaseDraining  Phase = "draining"
	// PhaseFailed: the service did not start, or did not last. The file outlives it where
	// its directory does (Windows).
	PhaseFailed Phase = "failed"
)

func (p Phase) text(st Status) string {
	text := fmt.Sprintf("%s %s over %s", p, Plural(st.Clients, "client"), Plural(st.Upstreams, "upstream"))
	if trouble := st.Broker.trouble(time.TimeOnly); trouble != "" {
		text += "; broker " + trouble
	}
	return text
}

// trouble is what is wrong with the broker and those of routes, or nothing.
func (b BrokerState) trouble(layout string) string {
	away := func(since time.Time, reason string) string {
		return fmt.Sprintf("cannot be reached since %s: %s", since.Local().Format(layout), reason)
	}
	var all []string
	switch {
	case !b.AwaySince.IsZero():
		all = append(all, away(b.AwaySince, b.Reason))
	case b.Blocked > 0:
		all = append(all, "blocks publishers on "+Plural(b.Blocked, "upstream"))
	}
	for _, o := range b.Others {
		all = append(all, o.Name+" "+away(o.Since, o.Reason))
	}
	if len(b.Out) > 0 {
		all = append(all, "out of rotation: "+strings.Join(b.Out, "; "))
	}
	return strings.Join(all, "; ")
}

// Plural is a number and what it counts: "1 client", "2 clients".
func Plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

// State is the content of the state file.
type State struct {
	Name      string       `json:"name"`
	PID       int          `json:"pid"`
	Phase     Phase        `json:"phase"`
	Clients   int          `json:"clients"`
	Upstreams int          `json:"upstreams"`
	Listening []string     `json:"listening"`
	Upstream  string       `json:"upstream"`
	Routes    []string     `json:"routes,omitempty"`
	Broker    *BrokerState `json:"broker,omitempty"`
	Advice    int          `json:"advice,omitempty"` // pieces of it
	Since     time.Time    `json:"since"`
	Updated   time.Time    `json:"updated"`
	Reload    *ReloadState `json:"reload,omitempty"` // nil: not reloaded since the start
	Before    *Before      `json:"before,omitempty"` // the process of before an upgrade, while it lasts
	Error     string       `json:"error,omitempty"`  // why, of PhaseFailed
}

// ReloadState is the outcome of the last reload.
type ReloadState struct {
	Count       int       `json:"count"` // reloads since the start
	At          time.Time `json:"at"`
	Error       string    `json:"error,omitempty"`
	Changed     []string  `json:"changed,omitempty"` // settings with another value than before
	NeedRestart []string  `json:"need_restart,omitempty"`
	// NoUpgrade is why the program on the disk, which is another one than runs, has not taken over.
	NoUpgrade string `json:"no_upgrade,omitempty"`
	// TakenOver is the process that has, 0: none.
	TakenOver int `json:"taken_over,omitempty"`
	// Warnings are of what is unwise in the settings or not used.
	Warnings []string `json:"warnings,omitempty"`
}

func stateFileIn(dir string) string { return filepath.Join(dir, "status.json") }

// ReadState reads a state file. A state whose process has gone is the caller's to detect.
func ReadState(path string) (State, error) {
	var st State
	b, err := os.ReadFile(path)
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal(b, &st); err != nil {
		return st, fmt.Errorf("%s does not hold a service's state: %w", path, err)
	}
	return st, nil
}

// stateFile is written by the one goroutine that owns the supervisor.
type stateFile struct {
	path   string // empty: nowhere
	failed bool   // and said so
	mark   *os.File
}

// markFileIn is beside a state file, locked by the process that the state is of: the file may
// outlive it, and its number come to be another program's.
func markFileIn(dir string) string { return filepath.Join(dir, "status.lock") }

// hold marks the state file as this process's.
func (f *stateFile) hold() {
	if f.path == "" || f.mark != nil {
		return
	}
	mark, err := lockMark(markFileIn(filepath.Dir(f.path)))
	if err != nil {
		slog.Debug("the state file could not be marked, `reload --pid` needs the admin channel", "error", err)
	}
	f.mark = mark
}

// write reports whether the state is told.
func (f *stateFile) write(st State) bool {
	if f.path == "" {
		return true
	}
	b, err := json.MarshalIndent(st, "", "  ")
	if err == nil {
		err = replaceFile(f.path, append(b, '\n'), 0o644)
	}
	// A reader on Windows can hold the file for a moment; it is written again a second later.
	if err != nil && !f.failed {
		slog.Debug("the state file could not be written, `status` shows less", "error", err)
	}
	f.failed = err != nil
	return err == nil
}

func (f *stateFile) remove() {
	if f.path == "" {
		return
	}
	if err := os.Remove(f.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		slog.Debug("the state file could not be removed", "error", err)
	}
	if f.mark != nil {
		_ = os.Remove(f.mark.Name())
		_ = f.mark.Close()
		f.mark = nil
	}
}

// leave gives the file to the process that has taken over.
func (f *stateFile) leave() {
	f.path = ""
	if f.mark != nil {
		_ = f.mark.Close()
		f.mark = nil
	}
}

// replaceFile puts a whole new content in place of a file, so that no reader sees half.
func replaceFile(path string, content []byte, perm os.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails after the rename, which is right
	_, err = tmp.Write(content)
	if err == nil {
		err = tmp.Chmod(perm)
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

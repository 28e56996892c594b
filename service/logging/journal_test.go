//go:build !windows

package logging

import (
	"fmt"
	"os"
	"syscall"
	"testing"
)

func TestIsJournal(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	own := fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
	for value, want := range map[string]bool{own: true, "": false, "1:2": false, own + "0": false, "junk": false} {
		if got := isJournal(f, value); got != want {
			t.Errorf("JOURNAL_STREAM=%q: got %v, want %v", value, got, want)
		}
	}
	t.Setenv("JOURNAL_STREAM", own)
	if got := StyleOf(f); got != StyleJournal {
		t.Errorf("style is %v, want the journal's", got)
	}
	t.Setenv("JOURNAL_STREAM", "1:2") // inherited, but the stream was redirected since
	if got := StyleOf(f); got != StylePlain {
		t.Errorf("style is %v, want plain", got)
	}
}

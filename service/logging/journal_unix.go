//go:build !windows

// Is a stream the journal's? systemd.exec(5) gives JOURNAL_STREAM as DEVICE:INODE.

package logging

import (
	"fmt"
	"os"
	"syscall"
)

func isJournal(f *os.File, journalStream string) bool {
	if journalStream == "" {
		return false
	}
	info, err := f.Stat()
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && journalStream == fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
}

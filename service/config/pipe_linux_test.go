package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What tells no size (a pipe, a device) is read up to the bound too.
func TestEndlessFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	wrote := make(chan int64)
	go func() {
		n := 0
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			n, _ = f.Write(make([]byte, 4<<20)) // ends with an error when the reader has enough
			_ = f.Close()
		}
		wrote <- int64(n)
	}()
	_, _, err := Load(Source{File: path})
	if err == nil || !strings.Contains(err.Error(), path+": cannot be read: has more than 1MiB") {
		t.Errorf("got %v", err)
	}
	if n := <-wrote; n > 2<<20 {
		t.Errorf("%d bytes were read of a file that may have 1 MiB", n)
	}
}

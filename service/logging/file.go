// The log file: opened early, so that a wrong path is an error at the start and not a
// silence later; rotated by lumberjack; changed and reopened while the program runs.

package logging

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"gopkg.in/natefinch/lumberjack.v2"

	"github.com/amqproxysvc/amqproxysvc/service/config"
)

const (
	mib = 1 << 20
	day = 24 * time.Hour
)

// rotating is lumberjack's file, rotated a little before lumberjack would: the file that it makes then is
// not open for appending, and would be written over what another process writes to it, the one from
// before an upgrade say. Opened anew it is. It is the caller's to lock.
type rotating struct {
	lumberjack.Logger
	size, most int64
}

func (r *rotating) Write(line []byte) (int, error) {
	if r.size+int64(len(line)) >= r.most {
		if err := errors.Join(r.Rotate(), r.Close()); err != nil {
			return 0, err
		}
		r.size = 0
	}
	n, err := r.Logger.Write(line)
	r.size += int64(n)
	return n, err
}

// following writes to a file that another process rotates, and may move away at any time. It is the caller's to lock.
type following struct {
	path string
	open *os.File
}

func (f *following) Write(line []byte) (int, error) {
	var is os.FileInfo
	if f.open != nil {
		is, _ = f.open.Stat()
	}
	// Nothing in its place: for a moment, amid a rotation.
	if there, err := os.Lstat(f.path); f.open == nil || err == nil && there.Mode().IsRegular() && !os.SameFile(is, there) {
		next, err := os.OpenFile(f.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
		if err != nil {
			return 0, err
		}
		_ = f.Close()
		f.open = next
	}
	return f.open.Write(line)
}

func (f *following) Close() error {
	if f.open == nil {
		return nil
	}
	err := f.open.Close()
	f.open = nil
	return err
}

// openFile opens or creates the file; the error names the setting.
func openFile(s config.Log) (*rotating, error) {
	f := &rotating{Logger: lumberjack.Logger{
		Filename:   s.File,
		MaxSize:    int((s.MaxSize + mib - 1) / mib),
		MaxAge:     int((s.MaxAge + day - 1) / day),
		MaxBackups: s.MaxBackups,
		Compress:   s.Compress,
	}}
	f.most = int64(f.MaxSize) * mib
	if err := touch(f); err != nil {
		return nil, err
	}
	return f, nil
}

// touch opens the file. The look at it before is needed: what lumberjack cannot open for
// writing it moves aside, a directory of that name too.
func touch(f *rotating) error {
	err := os.MkdirAll(filepath.Dir(f.Filename), 0o750)
	if info, statErr := os.Lstat(f.Filename); err == nil && statErr == nil && !info.Mode().IsRegular() {
		err = errors.New("is not a file")
		if info.Mode().Type() == os.ModeSymlink { // whoever made it could have us append to any file
			err = errors.New("is a symbolic link, name the file itself")
		}
	}
	if err == nil {
		var probe *os.File
		if probe, err = os.OpenFile(f.Filename, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640); err == nil {
			var info os.FileInfo
			if info, err = probe.Stat(); err == nil {
				f.size = info.Size()
			}
			err = errors.Join(err, probe.Close())
		}
	}
	if err == nil {
		_, err = f.Write(nil) // opens it, as every write does that finds it closed
	}
	if err == nil {
		return nil
	}
	_ = f.Close()
	var pathErr *os.PathError
	if errors.As(err, &pathErr) {
		err = pathErr.Err
	}
	return fmt.Errorf("log.file: %s: cannot be written: %w%s", f.Filename, err, sandboxHint(err))
}

// sandboxHint says, for a service of systemd, why a file system that is not read-only is.
func sandboxHint(err error) string {
	if dirs := os.Getenv("LOGS_DIRECTORY"); dirs != "" && errors.Is(err, syscall.EROFS) {
		return fmt.Sprintf(" (the unit lets the service write to %s; for another directory add ReadWritePaths= in a drop-in: systemctl edit)", dirs)
	}
	return ""
}

// apply opens the file that the settings name, anew if it is the same: it may have been
// moved away. On an error the old one stays.
func (f *file) apply(s config.Log) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.open.(*following); ok { // it belongs to another process
		return nil
	}
	same := s.File == f.set.File && s.MaxSize == f.set.MaxSize && s.MaxAge == f.set.MaxAge &&
		s.MaxBackups == f.set.MaxBackups && s.Compress == f.set.Compress
	switch {
	case same && f.open != nil:
		if err := f.openAnew(); err != nil {
			return err
		}
	case !same || s.File != "":
		old := f.open
		f.open = nil
		if s.File != "" {
			next, err := openFile(s)
			if err != nil {
				f.open = old
				return err
			}
			f.open = next
		}
		if old != nil {
			_ = old.Close()
		}
	}
	f.set = s
	f.isSet.Store(f.open != nil)
	return nil
}

func (f *file) reopen() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open == nil {
		return nil
	}
	return f.openAnew()
}

// openAnew is called with the lock held.
func (f *file) openAnew() error {
	// lumberjack opens anew, for appending, at the write after a Close.
	if err := f.open.Close(); err != nil {
		return fmt.Errorf("log.file: %s: %w", f.set.File, err)
	}
	if f, ok := f.open.(*rotating); ok {
		return touch(f)
	}
	return nil
}

// follow leaves the rotation to another process, which writes to the file, too.
func (f *file) follow() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.open.(*rotating); ok {
		_ = f.open.Close()
		f.open = &following{path: f.set.File}
	}
}

func (f *file) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open == nil {
		return nil
	}
	err := f.open.Close()
	f.open = nil
	f.isSet.Store(false)
	return err
}

// isOpen waits for no write: every log call asks it.
func (f *file) isOpen() bool { return f.isSet.Load() }

// Processes that end with the test: each is started by a thread that lives as long as
// the process does, so that the kernel kills it when the test ends, however it ends.

//go:build linux

package rabbit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
)

type process struct {
	pid  int
	done chan struct{} // closed when it has ended and was waited for
	err  error         // how it ended; read after done
}

// spawn starts a program of the broker's, its output appended to the file "output".
func (b *Broker) spawn(name string, args ...string) (*process, error) {
	out, err := os.OpenFile(b.dir+"/output", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := b.command(context.Background(), name, args...)
	cmd.Stdout, cmd.Stderr = out, out
	p := &process{done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// Pdeathsig is sent when the thread that started the process ends, so the
		// thread stays in this goroutine until then.
		runtime.LockOSThread()
		if b.root != "" && b.seesProc {
			// The process inherits this thread's mounts. Nobody else may get the thread
			// afterwards: it stays locked, and so ends with this goroutine.
			b.NoProc = mountProc(b.root + "/proc")
		} else {
			defer runtime.UnlockOSThread()
		}
		err := cmd.Start()
		if err == nil {
			p.pid = cmd.Process.Pid
		}
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		if p.err == nil {
			p.err = errors.New("exit status 0")
		}
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

// mountProc mounts proc at a path for the calling thread and what it starts, and for
// nobody else: it is gone with the last of them.
func mountProc(path string) error {
	if err := syscall.Unshare(syscall.CLONE_NEWNS); err != nil {
		return fmt.Errorf("mounts of its own: %w", err)
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mounts that nobody else sees: %w", err)
	}
	if err := syscall.Mount("proc", path, "proc", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount %s: %w", path, err)
	}
	return nil
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// kill ends the process and all of its group, and waits for it.
func (p *process) kill() {
	syscall.Kill(-p.pid, syscall.SIGKILL) // an error means that there is none left
	<-p.done
}

// given are ports that FreePorts has found: who asked for one may not listen on it yet when the next asks.
var given struct {
	mu    sync.Mutex
	ports map[int]bool
}

// FreePorts finds n ports that nobody listens on, below the range from which the
// kernel takes ports for outgoing connections, so that they stay free over a restart.
func FreePorts(n int) ([]int, error) {
	given.mu.Lock()
	defer given.mu.Unlock()
	if given.ports == nil || len(given.ports) > 5000 { // in a long run they come round
		given.ports = map[int]bool{}
	}
	var ports []int
	var last error
	for range 1000 {
		port := 10000 + rand.IntN(20000)
		if given.ports[port] {
			continue
		}
		ln, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			last = err
			continue
		}
		_ = ln.Close() // nothing was to be read or written
		given.ports[port] = true
		if ports = append(ports, port); len(ports) == n {
			return ports, nil
		}
	}
	return nil, fmt.Errorf("no free ports between 10000 and 30000: %w", last)
}

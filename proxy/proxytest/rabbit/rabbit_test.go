// The testbed itself: it starts, answers, restarts with its data, and leaves no
// process behind even when the test is killed.

//go:build linux

package rabbit

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if os.Getenv("RABBIT_TEST_ORPHAN") != "" {
		orphan()
	}
	os.Exit(Main(m))
}

// orphan starts a broker, prints its processes and waits to be killed.
func orphan() {
	b, err := Start(V310)
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println(b.proc.pid, b.epmdPro.pid, b.dir)
	select {}
}

func TestBroker(t *testing.T) {
	for _, v := range Versions {
		t.Run(string(v), func(t *testing.T) {
			t.Parallel() // most of it is the brokers' starts
			began := time.Now()
			b := Get(t, v)
			up := time.Since(began)
			got, err := b.Ctl("version")
			if err != nil || !strings.HasPrefix(got, string(v)+".") {
				t.Fatalf("rabbitmqctl version: %q, %v", got, err)
			}
			t.Logf("RabbitMQ %s up in %v", strings.TrimSpace(got), up.Round(100*time.Millisecond))
			if got, err := b.Eval("rabbit:is_running()."); err != nil || got != "true" {
				t.Errorf("eval: %q, %v", got, err)
			}
			if _, err := b.Eval("erlang:error(why)."); err == nil {
				t.Error("an error in eval is not reported")
			}
			if _, err := b.Ctl("no_such_command"); err == nil {
				t.Error("an error of rabbitmqctl is not reported")
			}

			pool := x509.NewCertPool()
			pem, err := os.ReadFile(b.CAFile)
			if err != nil || !pool.AppendCertsFromPEM(pem) {
				t.Fatalf("CA file: %v", err)
			}
			for _, name := range []string{"localhost", "127.0.0.1"} {
				c, err := tls.Dial("tcp", b.TLSAddr(), &tls.Config{RootCAs: pool, ServerName: name})
				if err != nil {
					t.Errorf("TLS as %s: %v", name, err)
					continue
				}
				c.Close()
			}

			// What was there is there after a stop and after a kill.
			if _, err := b.Ctl("add_vhost", "kept"); err != nil {
				t.Fatal(err)
			}
			for _, end := range []func() error{b.Stop, b.Kill} {
				if err := end(); err != nil {
					t.Fatal(err)
				}
				if b.Running() || b.ask() == nil {
					t.Fatal("still answers after its end")
				}
				if err := b.Restart(); err != nil {
					t.Fatal(err)
				}
				if got, err := b.Ctl("list_vhosts"); err != nil || !strings.Contains(got, "kept") {
					t.Errorf("virtual hosts after a restart: %q, %v", got, err)
				}
			}
			if _, err := b.Ctl("delete_vhost", "kept"); err != nil {
				t.Error(err)
			}
		})
	}
}

// With /proc in its root a broker has its memory monitor, also after a restart, and the
// root as others see it stays without.
func TestProc(t *testing.T) {
	if err := Available(V40); err != nil {
		Skip(t, err)
	}
	b, err := Start(V40, WithProc)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	check := func(when string) {
		t.Helper()
		if b.NoProc != nil {
			t.Skipf("SKIPPED LOUDLY: %v", b.NoProc)
		}
		got, err := b.Eval("{element(1, file:read_file_info(\"/proc/meminfo\")), is_pid(whereis(vm_memory_monitor))}.")
		if err != nil || got != "{ok, true}" {
			t.Errorf("%s: /proc and the memory monitor: %q, %v", when, got, err)
		}
		entries, err := os.ReadDir(b.root + "/proc")
		if err != nil || len(entries) != 0 {
			t.Errorf("%s: /proc of the root, seen from outside: %d entries, %v", when, len(entries), err)
		}
	}
	check("started")
	if err := b.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := b.Restart(); err != nil {
		t.Fatal(err)
	}
	check("restarted")
}

// The test's own death, by a signal it cannot handle, ends broker and epmd.
func TestKilledTestLeavesNothing(t *testing.T) {
	if err := Available(V310); err != nil {
		Skip(t, err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "RABBIT_TEST_ORPHAN=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	var beam, epmd int
	var dir string
	if n, _ := fmt.Sscan(line, &beam, &epmd, &dir); n != 3 {
		cmd.Process.Kill()
		t.Fatalf("the child said %q, %v", line, err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cmd.Process.Kill()
	cmd.Wait()
	deadline := time.Now().Add(10 * time.Second)
	for _, pid := range []int{beam, epmd} {
		for !gone(pid) {
			if time.Now().After(deadline) {
				t.Fatalf("process %d lives on after the test's death", pid)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// gone says whether a process has ended, waited for by its new parent or not.
func gone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X")
}

// A suite on a broker: its working copy, its runs straight and through the proxy, the
// repetition of tests that differ.

//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

const (
	suiteTimeout = 15 * time.Minute // a whole suite, once
	proxyTimeout = 20 * time.Second // until the proxy listens, and until it has ended
)

type bench struct {
	ctx context.Context
	options
	work    string
	program string         // the proxy's executable
	broker  *rabbit.Broker // nil: it is the user's own
	name    string         // of the broker, in the table
	port    int            // the broker's, on this machine
}

// target is what a suite talks to.
type target struct {
	name string // straight, session, auto
	port int
	log  string // what the suite printed
	ctl  string // a rabbitmqctl for the broker
	// quick leaves out what takes minutes by itself.
	quick bool
}

// suite runs one suite straight and in every mode. What it lacks is told in the row.
func (b *bench) suite(s *suite) *row {
	r := &row{suite: s, broker: b.name, through: map[string]*comparison{}}
	say := func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%s %s, broker %s: %s\n",
			time.Now().Format(time.TimeOnly), s.name, b.name, fmt.Sprintf(format, args...))
	}
	if err := install(b.ctx, s.packages); err != nil {
		r.missing = err.Error()
		return r
	}
	source, err := b.source(s)
	if err != nil {
		r.missing = err.Error()
		return r
	}
	dir := filepath.Join(b.work, s.name+"-"+b.fileName())
	fresh := func(port int) error {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		if _, err := command(b.ctx, "", nil, "cp", "-rL", source, dir); err != nil {
			return err
		}
		if _, err := command(b.ctx, "", nil, "chmod", "-R", "u+w", dir); err != nil {
			return err
		}
		if s.prepare == nil {
			return nil
		}
		return s.prepare(dir, ports{port, b.management})
	}
	var only []string
	if b.only != "" {
		only = []string{b.only}
	}
	// once runs the suite, or some units of it, on a broker and a proxy that are new to it.
	once := func(mode string, only []string, n int) (results, error) {
		if err := b.reset(); err != nil {
			return nil, err
		}
		t := target{name: mode, port: b.port, ctl: b.ctl, quick: b.quick}
		t.log = filepath.Join(b.work, fmt.Sprintf("%s-%s-%s-%d.log", s.name, b.fileName(), mode, n))
		if mode != straight {
			p, err := b.startProxy(mode, strings.TrimSuffix(t.log, ".log")+".proxy.log")
			if err != nil {
				return nil, err
			}
			defer p.stop()
			t.port = p.port
		}
		if err := fresh(t.port); err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(b.ctx, suiteTimeout)
		defer cancel()
		began := time.Now()
		got, err := s.run(ctx, dir, t, only)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", mode, err)
		}
		say("%s: %d of %d passed in %v", mode, got.count(passed), len(got), time.Since(began).Round(time.Second))
		return got, nil
	}
	if r.straight, err = once(straight, only, 0); err != nil {
		r.missing = err.Error()
		return r
	}
	if r.straight.count(passed) == 0 {
		r.missing = "no test passes straight"
		return r
	}
	for _, mode := range b.modes {
		got, err := once(mode, only, 0)
		if err != nil {
			r.missing = err.Error()
			return r
		}
		c := newComparison(r.straight, got, func(test string) string { return explanation(s.name, r.broker, mode, test) })
		for n := 1; n <= b.reruns; n++ {
			units := c.units(b.reruns)
			if len(units) == 0 {
				break
			}
			say("%s: %d tests differ; again, %d of %d: %s", mode, len(c.differing), n, b.reruns, strings.Join(units, " "))
			again, err := once(straight, units, n)
			if err == nil {
				got, err = once(mode, units, n)
			}
			if err != nil {
				r.missing = err.Error()
				return r
			}
			c.repeated(again, got)
		}
		c.judge()
		r.through[mode] = c
	}
	return r
}

// manage starts the broker's management plugin, through which tests close connections.
func (b *bench) manage() error {
	free, err := rabbit.FreePorts(1)
	if err != nil {
		return err
	}
	b.management = free[0]
	if b.ctl, err = b.broker.CtlScript(b.work); err != nil {
		return err
	}
	// The broker's private folder is that of its authority.
	plugins := filepath.Join(filepath.Dir(b.broker.CAFile), "enabled_plugins")
	if err := os.WriteFile(plugins, []byte("[rabbitmq_management].\n"), 0o444); err != nil {
		return err
	}
	// A broker answers AMQP a little before it says that it runs.
	for deadline := time.Now().Add(proxyTimeout); ; time.Sleep(200 * time.Millisecond) {
		out, err := b.broker.Eval(fmt.Sprintf(`begin
			application:set_env(rabbit, collect_statistics_interval, 1000),
			application:set_env(rabbitmq_management, tcp_config, [{port, %d}, {ip, "127.0.0.1"}]),
			case whereis(vm_memory_monitor) of
				undefined -> needs_proc;
				_ -> rabbit_plugins:ensure(rabbit_plugins:enabled_plugins_file())
			end end.`, b.management))
		if out == "needs_proc" {
			fmt.Fprintf(os.Stderr, "SKIPPED LOUDLY: tests that look a connection up on RabbitMQ %s: "+
				"its root has no /proc, which the management plugin needs: %v\n", b.broker.Version, b.broker.NoProc)
			return nil
		}
		if err == nil && strings.HasPrefix(out, "{ok,") {
			return nil
		}
		if err != nil || time.Now().After(deadline) {
			return fmt.Errorf("RabbitMQ %s: the management plugin does not start: %w: %s", b.broker.Version, err, out)
		}
	}
}

// fileName is the broker's name as a part of one.
func (b *bench) fileName() string {
	return strings.NewReplacer(" ", "-", "/", "-", ":", "-").Replace(b.name)
}

// reset gives the broker empty virtual hosts and the users that suites expect. What is in a
// broker of the user's own is the user's.
func (b *bench) reset() error {
	if b.broker == nil {
		return nil
	}
	_, err := b.broker.Eval(`begin
		By = <<"compat">>, All = <<".*">>,
		[begin catch rabbit_vhost:delete(V, By), ok = rabbit_vhost:add(V, By) end || V <- [<<"/">>, <<"bunny_testbed">>]],
		[begin
			catch rabbit_auth_backend_internal:add_user(U, P, By),
			ok = rabbit_auth_backend_internal:set_permissions(U, V, C, C, All, By)
		end || {U, P, V, C} <- [
			{<<"guest">>, <<"guest">>, <<"/">>, All},
			{<<"guest">>, <<"guest">>, <<"bunny_testbed">>, All},
			{<<"bunny_gem">>, <<"bunny_password">>, <<"bunny_testbed">>, All},
			{<<"bunny_reader">>, <<"reader_password">>, <<"bunny_testbed">>, <<"^---$">>}]] end.`)
	return err
}

// A proxy is the product as a process of its own.
type proxyProcess struct {
	port int
	cmd  *exec.Cmd
	done chan struct{}
	log  *os.File
}

func (b *bench) startProxy(mode, log string) (*proxyProcess, error) {
	ports, err := rabbit.FreePorts(2)
	if err != nil {
		return nil, err
	}
	config := strings.TrimSuffix(log, ".log") + ".toml"
	text := fmt.Sprintf("[[listener]]\nport = %d\npool_mode = %q\n[upstream]\nurl = %q\n[http]\nport = %d\n",
		ports[0], mode, fmt.Sprintf("amqp://127.0.0.1:%d", b.port), ports[1])
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	p := &proxyProcess{port: ports[0], done: make(chan struct{})}
	if p.log, err = os.Create(log); err != nil {
		return nil, err
	}
	p.cmd = exec.Command(b.program, "--debug", "--config", config)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	deadline := time.Now().Add(proxyTimeout)
	for {
		conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", p.port), time.Second)
		if err == nil {
			_ = conn.Close()
			return p, nil
		}
		select {
		case <-p.done:
			text, _ := os.ReadFile(log)
			return nil, fmt.Errorf("the proxy ended: %s", text)
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			p.stop()
			return nil, fmt.Errorf("the proxy did not listen within %v", proxyTimeout)
		}
	}
}

func (p *proxyProcess) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGKILL)
	<-p.done
	_ = p.log.Close()
}

// command runs a program in dir with env added, and returns what it printed, which is
// in the error too. The program and its children end with the context.
func command(ctx context.Context, dir string, env []string, name string, args ...string) ([]byte, error) {
	var out bytes.Buffer
	cmd := child(ctx, dir, env, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		tail := out.Bytes()
		tail = tail[max(0, len(tail)-2000):]
		return out.Bytes(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(tail))
	}
	return out.Bytes(), nil
}

func child(ctx context.Context, dir string, env []string, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	// What suites do with CI=true is to leave tests out.
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "CI=") }), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

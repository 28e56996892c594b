// Behind a balancer that tells who the clients are, before a broker that wants to be told: HAProxy by
// three protocols, with its checks on, and nginx.

//go:build linux

package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest"
	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// remote is a client's address that is on no machine here. A balancer before the balancer tells it.
const remote = "192.0.2.7"

// balancer is one that takes clients on a port, and on another those of a balancer before it.
type balancer struct {
	name, program string
	arguments     func(config, dir string) []string
	config        func(dir string, port, behind int, to string) string
}

func haproxy(how string) balancer {
	return balancer{how, "haproxy", func(config, _ string) []string { return []string{"-db", "-f", config} }, func(_ string, port, behind int, to string) string {
		return fmt.Sprintf("defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\nlisten a\n bind 127.0.0.1:%d\n bind 127.0.0.1:%d accept-proxy\n"+
			" server p %s %s check check-send-proxy inter 200ms\n", port, behind, to, how)
	}}
}

// nginx speaks version 1.
var nginx = balancer{"nginx", "nginx", func(config, dir string) []string { return []string{"-e", dir + "/error.log", "-p", dir, "-c", config} },
	func(dir string, port, behind int, to string) string {
		return fmt.Sprintf("load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\nmaster_process off;\npid %s/pid;\nevents {}\nstream {\n"+
			" server { listen 127.0.0.1:%d; proxy_pass %[4]s; proxy_protocol on; }\n"+
			" server { listen 127.0.0.1:%[3]d proxy_protocol; set_real_ip_from 127.0.0.0/8; proxy_pass %[4]s; proxy_protocol on; }\n}\n", dir, port, behind, to)
	}}

func (b balancer) start(t *testing.T, to string) (addr, behind string) {
	t.Helper()
	program, err := exec.LookPath(b.program)
	if err != nil {
		program, err = exec.LookPath("/usr/sbin/" + b.program)
	}
	if err != nil {
		rabbit.Skip(t, fmt.Errorf("%s is not installed (`make deps` installs it): %w", b.program, err))
	}
	ports, err := rabbit.FreePorts(2)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "config")
	if err := os.WriteFile(config, []byte(b.config(dir, ports[0], ports[1], to)), 0o600); err != nil {
		t.Fatal(err)
	}
	var said syncBuffer
	cmd := exec.Command(program, b.arguments(config, dir)...)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	addr, behind = fmt.Sprintf("127.0.0.1:%d", ports[0]), fmt.Sprintf("127.0.0.1:%d", ports[1])
	eventually(t, b.name+" listens", func() error {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, said.String())
		}
		return c.Close()
	})
	return addr, behind
}

func TestBehindBalancers(t *testing.T) {
	if straight {
		t.Skip("STRAIGHT=1")
	}
	t.Parallel() // most of it is the broker's start
	of := versions(t)[:1]
	if full {
		of = versions(t)
	}
	for _, v := range of {
		if err := rabbit.Available(v); err != nil {
			rabbit.Skip(t, err)
		}
		t.Run(string(v), func(t *testing.T) {
			t.Parallel()
			b, err := rabbit.Start(v, rabbit.BehindBalancer)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(b.Close)
			for _, args := range [][]string{{"add_user", "walker", "secret"}, {"set_permissions", "-p", "/", "walker", ".*", ".*", ".*"}} {
				if said, err := b.Ctl(args...); err != nil {
					t.Fatal(err, said)
				}
			}
			for _, by := range []balancer{haproxy("send-proxy"), haproxy("send-proxy-v2"), haproxy("send-proxy-v2-ssl-cn"), nginx} {
				t.Run(by.name, func(t *testing.T) { behindBalancer(t, b, by) })
			}
		})
	}
}

func behindBalancer(t *testing.T, b *rabbit.Broker, by balancer) {
	p := startProxy(t, true, b.URL(), "[[listener]]\nproxy_protocol = \"required\"\nproxy_from = \"127.0.0.1\"\n[upstream]\nproxy_protocol = \"v2\"\n[log]\nlevel = \"debug\"\n")
	addr, behind := by.start(t, p.addr)
	logged := func(what string) {
		t.Helper()
		eventually(t, "the log has "+what, func() error {
			if !strings.Contains(p.log.String(), what) {
				return fmt.Errorf("it is\n%s", p.log.String())
			}
			return nil
		})
	}
	refused := func(cfg proxytest.ClientConfig) {
		t.Helper()
		cfg.Timeout = patience
		c, err := proxytest.Dial(cfg)
		if err == nil {
			_ = c.Hangup()
		}
		const want = "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker logfile."
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("%v, want %s", err, want)
		}
	}
	// The client comes from an address that is nobody else's.
	from := make(chan string, 1)
	refused(proxytest.ClientConfig{Addr: addr, User: "guest", Password: "wrong", Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 77)}}
		conn, err := d.DialContext(ctx, network, addr)
		if err == nil {
			from <- conn.LocalAddr().String()
		}
		return conn, err
	}})
	logged("address=" + <-from)
	canary(t, addr)

	// The client comes from another machine.
	remotely := func(ctx context.Context, network, addr string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, addr)
		if err == nil {
			_, err = io.WriteString(conn, "PROXY TCP4 "+remote+" 192.0.2.1 40000 5672\r\n")
		}
		return conn, err
	}
	refused(proxytest.ClientConfig{Addr: behind, Dial: remotely, User: "guest", Password: "guest"})
	logged("its user may come from loopback only")
	logged("address=" + remote)
	var walkers []*proxytest.Client
	for range 2 {
		c, err := proxytest.Dial(proxytest.ClientConfig{Addr: behind, Dial: remotely, User: "walker", Password: "secret", Timeout: patience})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Hangup()
		if err := c.OpenChannel(1); err != nil {
			t.Fatal(err)
		}
		walkers = append(walkers, c)
	}
	if _, err := walkers[0].DeclareQueue(1, "", proxytest.Exclusive); err != nil { // a session
		t.Fatal(err)
	}
	err := walkers[1].Confirm(1)
	if err == nil {
		err = walkers[1].Publish(1, "", "nowhere", []byte("x"))
	}
	if err == nil {
		err = walkers[1].WaitConfirms(1)
	}
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the broker lists the client's address for its session, and the proxy's for what is shared", func() error {
		said, err := b.Ctl("list_connections", "user", "peer_host")
		if err != nil {
			return err
		}
		hosts := map[string]int{}
		for line := range strings.Lines(said) {
			if f := strings.Fields(line); len(f) == 2 && f[0] == "walker" {
				hosts[f[1]]++
			}
		}
		if hosts[remote] != 1 || hosts["127.0.0.1"] == 0 || len(hosts) != 2 {
			return fmt.Errorf("it lists %v\n%s", hosts, said)
		}
		return nil
	})
}

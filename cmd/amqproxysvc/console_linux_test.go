// The console blocks of the documents that anybody may run, run as they stand, in a network of
// their own. Those for root are run by service/testbed in a booted machine.

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/console"
)

// untried is how many console blocks no test runs, each with its reason behind the word. One
// more is one to think about.
const untried = 10

// consoles are the console blocks of all documents.
func consoles(t *testing.T) (all []console.Block) {
	t.Helper()
	for _, path := range documents(t) {
		blocks, err := console.Read(path)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, blocks...)
	}
	return all
}

// A command stands in a console block, where it is run or says why not.
func TestCommandsStandInConsoleBlocks(t *testing.T) {
	command := regexp.MustCompile(`^([$#] )?(sudo |amqproxysvc |\S*/amqproxysvc |make |systemctl |journalctl |sc\.exe |msiexec |docker |wget |curl )`)
	for _, path := range documents(t) {
		fence := ""
		for i, line := range strings.Split(document(t, path), "\n") {
			switch {
			case strings.HasPrefix(line, "```") && fence != "":
				fence = ""
			case strings.HasPrefix(line, "```"):
				fence = line
			case fence != "" && !strings.HasPrefix(fence, "```console") && command.MatchString(line):
				t.Errorf("%s:%d: the command %q stands in a block that begins with %s, not in a console block", path, i+1, line, fence)
			}
		}
	}
	n, root, run := 0, 0, 0
	for _, b := range consoles(t) {
		switch {
		case b.Untried != "":
			n++
		case b.Root:
			root++
		default:
			run++
		}
	}
	t.Logf("console blocks: %d run here, %d in a machine of their own, %d untried", run, root, n)
	if n != untried {
		t.Errorf("%d console blocks are untried, %d were", n, untried)
	}
}

// What a page tells people to make or to test is there.
func TestNamedTargetsExist(t *testing.T) {
	makefile := document(t, top+"/Makefile")
	target := regexp.MustCompile("(?m)(?:^[$#] |^    |`)(?:[A-Z_]+=\\S+ )*make ([a-z][a-z-]*)")
	n := 0
	for _, path := range documents(t) {
		for _, m := range target.FindAllStringSubmatch(document(t, path), -1) {
			n++
			if !strings.Contains(makefile, "\n"+m[1]+":") {
				t.Errorf("%s names make %s, which there is not", path, m[1])
			}
		}
	}
	if n < 20 {
		t.Errorf("only %d targets of make found", n)
	}
}

func TestConsoleBlocks(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the program and runs the demo")
	}
	alone := ownNetwork(t)
	bin := t.TempDir()
	shim := fmt.Sprintf("#!/bin/sh\n%s=real exec %q \"$@\"\n", asProgram, os.Args[0])
	if err := os.WriteFile(filepath.Join(bin, "amqproxysvc"), []byte(shim), 0o755); err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs(top)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range consoles(t) {
		if b.Root || b.Untried != "" {
			continue
		}
		page, err := filepath.Rel(top, b.Page)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		for _, c := range b.Commands {
			t.Run(fmt.Sprintf("%s:%d %s", page, b.Line, c.Line), func(t *testing.T) {
				if c.Line == "make demo" && os.Getenv("CI") != "true" && os.Getenv("FULL") == "" {
					t.Skip("takes a quarter of a minute: with CI=true or FULL=1 only")
				}
				at := dir
				if strings.HasPrefix(c.Line, "make ") || strings.HasPrefix(c.Line, "dist/") {
					at = root // of a clone
				}
				tryCommand(t, alone, at, bin, &c)
			})
		}
	}
}

// ownNetwork is what runs a shell's command in a network with a loopback and nothing else.
func ownNetwork(t *testing.T) []string {
	t.Helper()
	const up = `ip link set lo up && exec sh -c "$0"`
	for _, cmd := range [][]string{{"unshare", "--net", "sh", "-c", up}, {"unshare", "--net", "--map-root-user", "sh", "-c", up}} {
		if exec.Command(cmd[0], append(cmd[1:], "true")...).Run() == nil {
			return cmd
		}
	}
	if os.Getenv("CI") == "true" && os.Getuid() == 0 {
		t.Fatal("no network of its own can be had: unshare --net, ip link")
	}
	t.Skip("SKIPPED LOUDLY: no network of its own can be had (unshare --net, ip link)")
	return nil
}

// controls are what a terminal acts on and nobody reads.
var controls = regexp.MustCompile("\x1b\\[[0-9;?]*[A-Za-z]|\r")

// tryCommand runs a command, the program on a terminal, as its reader would see it. One that
// goes on after it has said what is promised, as the proxy does in the foreground, is
// interrupted, and must then end.
func tryCommand(t *testing.T, alone []string, dir, bin string, c *console.Command) {
	said := newOutput()
	cmd := exec.Command(alone[0], append(alone[1:], c.Line)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "MAKEFLAGS=", "MAKELEVEL=")
	cmd.Stdout, cmd.Stderr = said, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if strings.HasPrefix(c.Line, "amqproxysvc ") || strings.HasPrefix(c.Line, "dist/bin/amqproxysvc ") {
		var tty *os.File
		tty, said = openPTY(t)
		cmd.Stdout, cmd.Stderr = tty, tty
	}
	text := func() string { return controls.ReplaceAllString(said.String(), "") }
	foreground := strings.Trim(c.Promised, "…\n") != ""
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	limit := time.After(10 * time.Minute) // builds, on a loaded machine
	var enough <-chan time.Time           // comes when all is said: after long enough for one that ends by itself
	for {
		select {
		case err := <-ended:
			for wait := time.After(time.Minute); !c.Matches(text()) && wait != nil; {
				select {
				case <-said.more: // what a terminal has not passed on yet
				case <-wait:
					wait = nil
				}
			}
			if err != nil || !c.Matches(text()) {
				t.Errorf("%v, the page promises\n%s\nit says\n%s", err, c.Promised, text())
			}
			return
		case <-said.more:
			if foreground && enough == nil && c.Matches(text()) {
				enough = time.After(3 * time.Second)
			}
			continue
		case <-enough:
		case <-limit:
			t.Errorf("no end within ten minutes; the page promises\n%s\nit says\n%s", c.Promised, text())
			return
		}
		break
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
	select {
	case err := <-ended:
		var exit *exec.ExitError // make ends by the signal too
		if err != nil && (!errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGINT && exit.ExitCode() != 2) {
			t.Errorf("interrupted: %v: %s", err, text())
		}
	case <-limit:
		t.Errorf("it does not end when it is interrupted: %s", text())
	}
}

// The PHP lines that the demo prints, run as they stand there.

package main

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestTheSnippetWorks(t *testing.T) {
	if err := exec.Command("php", "-r", "exit(class_exists('AMQPConnection') ? 0 : 1);").Run(); err != nil {
		t.Skip("php-amqp is not installed")
	}
	d := &demo{out: io.Discard, columns: func() int { return 80 }}
	to, err := d.target()
	if err != nil {
		t.Fatal(err)
	}
	defer to.close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv, err := start(ln, to)
	if err != nil {
		t.Fatal(err)
	}
	defer stopServer(srv)
	to.watchMessages()
	_, code, found := strings.Cut(invitation(80, ln.Addr().(*net.TCPAddr).Port, to), "    <?php\n")
	code, _, ends := strings.Cut(code, "\n\n")
	file := filepath.Join(t.TempDir(), "pasted.php")
	if err := os.WriteFile(file, []byte("<?php\n"+code), 0o600); err != nil || !found || !ends {
		t.Fatalf("no PHP in the invitation, or %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if said, err := exec.CommandContext(ctx, "php", file).CombinedOutput(); err != nil || string(said) != "hello came back\n" {
		t.Fatalf("it says %q, %v", said, err)
	}
	select {
	case size := <-to.messages: // what the demo tells of
		if size != len("hello") {
			t.Errorf("a message of %d bytes is told of", size)
		}
	case <-ctx.Done():
		t.Error("the demo does not tell of the message")
	}
}

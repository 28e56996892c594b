// What libraries make of it when they cannot connect: their words are in service/TROUBLESHOOTING.md,
// where people look for them.

//go:build linux

package integration

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// connects are programs that log in at PORT, to VHOST, and print the error.
var connects = map[string][2]string{
	"php-amqp": {"php", `<?php try { (new AMQPConnection(["host"=>"127.0.0.1","port"=>PORT,"login"=>"guest","password"=>"guest","vhost"=>"VHOST"]))->connect(); }
catch (Exception $e) { echo $e->getMessage(), "\n"; }`},
	"php-amqplib": {"php", `<?php require "/usr/share/php/PhpAmqpLib/autoload.php";
try { new PhpAmqpLib\Connection\AMQPStreamConnection("127.0.0.1", PORT, "guest", "guest", "VHOST"); } catch (Exception $e) { echo $e->getMessage(), "\n"; }`},
	"pika": {"python", `import pika
try: pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", PORT, "VHOST"))
except Exception as e: print(repr(e))`},
	"kombu, Celery": {"python", `from kombu import Connection
try: Connection(hostname="127.0.0.1", port=PORT, virtual_host="VHOST").connect()
except Exception as e: print(e)`},
	"amqplib (node)": {"javascript", `require("amqplib").connect({hostname: "127.0.0.1", port: PORT, vhost: "VHOST"}).catch((e) => console.log(e.message))`},
	"Java": {"java", `public class Recipe { public static void main(String[] args) throws Exception {
com.rabbitmq.client.ConnectionFactory f = new com.rabbitmq.client.ConnectionFactory();
f.setHost("127.0.0.1"); f.setPort(PORT); f.setVirtualHost("VHOST");
try { f.newConnection(); } catch (Exception e) { System.out.println(e + " " + e.getCause()); } } }`},
}

func TestWhatLibrariesSay(t *testing.T) {
	if straight {
		t.Skip("STRAIGHT=1")
	}
	page, err := os.ReadFile("../../../service/TROUBLESHOOTING.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string][]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| (.*) \\| `(.*)` \\| `(.*)` \\| `(.*)` \\|$").FindAllStringSubmatch(string(page), -1) {
		rows[m[1]] = m[2:]
	}
	const nobody = "1" // listens on port 1
	b := rabbit.Get(t, versions(t)[0])
	ports := []string{nobody, portOf(startProxy(t, true, "amqp://127.0.0.1:"+nobody, "").addr), portOf(startProxy(t, true, b.URL(), "").addr)}
	for name, program := range connects {
		if len(rows[name]) != len(ports) {
			t.Errorf("%s has no row of that kind on the page: %q", name, rows[name])
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lang := languages[program[0]]
			for _, file := range lang.needs {
				if _, err := os.Stat(file); err != nil {
					rabbit.Skip(t, err)
				}
			}
			for i, port := range ports {
				vhost := "/"
				if i == 2 {
					vhost = "missing"
				}
				file := filepath.Join(t.TempDir(), lang.file)
				if err := os.WriteFile(file, []byte(strings.NewReplacer("PORT", port, "VHOST", vhost).Replace(program[1])), 0o600); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				cmd := exec.CommandContext(ctx, lang.command[0], append(lang.command[1:len(lang.command):len(lang.command)], file)...)
				cmd.Env = append(os.Environ(), "NODE_PATH="+filepath.Join(rabbit.CacheDir(), "node/node_modules"))
				said, err := cmd.CombinedOutput()
				cancel()
				want := strings.ReplaceAll(regexp.QuoteMeta(rows[name][i]), "…", ".*")
				if err != nil || !regexp.MustCompile(want).Match(said) {
					t.Errorf("%v, it says %q, the page %q", err, said, rows[name][i])
				}
			}
		})
	}
	if len(rows) != len(connects) {
		t.Errorf("the page has %d rows, %d programs are tried", len(rows), len(connects))
	}
}
